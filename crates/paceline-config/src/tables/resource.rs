//! Named rules for keys.

use paceline_channel::template::{Setting, Template};
use serde_json::Value;

use super::{
    defaults::{NetworkMode, Retry, Trigger, unique},
    poll::Poll,
};
use crate::{
    node::{Data, Node},
    origin::Origin,
    part::Part,
    problem::{Problem, ProblemKind},
    reader::{Check, Entry, Field, KeyDoc, Named, Reader, Sourced},
    value::{
        Credential, CredentialFields, Headers, Interval, JsonPath, KeyTemplate, Name, OrNever, ResourceKey,
        Staleness, Text, UrlFields, UrlPath, Wait, token_of,
    },
};

words! {
    /// What a resource is.
    ResourceKind {
        /// Data.
        Data = "data",
        /// A secret that is refreshed, by one session for all.
        Token = "token",
    }
}

words! {
    /// The method of a request.
    Method {
        /// GET
        Get = "GET",
        /// POST
        Post = "POST",
        /// PUT
        Put = "PUT",
        /// PATCH
        Patch = "PATCH",
        /// DELETE
        Delete = "DELETE",
    }
}

words! {
    /// Where the rotating token is kept.
    TokenStore {
        /// In a file that only the user can read.
        File = "file",
        /// In the system's keyring.
        Keyring = "keyring",
    }
}

/// The server that a request goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpName(Name);

impl HttpName {
    /// As text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl Field for HttpName {
    fn kind() -> String {
        "name of a server in `http`".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let name = Name::read(node, reader)?;
        reader.refer(node, "http", name.as_str()).then_some(Self(name))
    }

    fn canon(&self) -> Value {
        self.0.canon()
    }
}

table! {
    /// A declared request, which any primary can make.
    HttpFetch {
        /// The server.
        must http: HttpName,
        /// The method.
        has method: Method = "GET", "what reads",
        /// The path.
        must path: UrlPath,
        /// Parameters of the URL.
        table query: UrlFields,
        /// Fields of the form that is sent.
        table form: CredentialFields,
        /// Headers besides the server's.
        table headers: Headers,
        /// Asks only for what changed, by ETag.
        has etag: bool = false, "servers that send no ETag are asked as usual",
    }
}

impl Check for HttpFetch {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        if let (Some((_, first)), Method::Get) = (self.form.iter().next(), self.method.value()) {
            reader.relate(
                ("form", first.origin()),
                ("method", self.method.origin()),
                "a GET sends no form",
                "say `method = \"POST\"`, or use `query`",
            );
        }
        if let (true, method) = (*self.etag.value(), *self.method.value())
            && method != Method::Get
        {
            let what = format!("a {method} is not conditional");
            reader.relate(
                ("etag", self.etag.origin()),
                ("method", self.method.origin()),
                &what,
                "leave `etag` out",
            );
        }
    }
}

/// Who fetches a resource.
#[derive(Debug, Clone, PartialEq)]
pub enum Fetch {
    /// A session that registered a closure for it.
    Closure,
    /// The primary, by a declared request.
    Http(Box<HttpFetch>),
}

impl Field for Fetch {
    fn kind() -> String {
        "`closure`, or a table of http, method, path, query, form, headers, etag".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        match &node.data {
            Data::Table(_) => HttpFetch::read(node, reader).map(|fetch| Self::Http(Box::new(fetch))),
            Data::Text(text) | Data::Raw(text) if text == "closure" => Some(Self::Closure),
            Data::Text(text) | Data::Raw(text) => {
                reader.unknown_word(node, text, &["closure"]);
                None
            }
            _ => {
                reader.invalid(node, Self::kind());
                None
            }
        }
    }

    fn canon(&self) -> Value {
        match self {
            Self::Closure => "closure".into(),
            Self::Http(fetch) => fetch.canon(),
        }
    }

    fn list(&self, key: &str, origin: &Origin, out: &mut Vec<Entry>) {
        match self {
            Self::Closure => {
                out.push(Entry {
                    key: key.to_owned(),
                    value: "\"closure\"".to_owned(),
                    origin: origin.clone(),
                });
            }
            Self::Http(fetch) => fetch.list(key, origin, out),
        }
    }

    fn describe(key: &str, out: &mut Vec<KeyDoc>) {
        HttpFetch::describe(key, out);
    }
}

table! {
    /// What a resource depends on: invalidating it invalidates the resource.
    Dependency {
        /// A key, and those under it.
        may key: KeyTemplate,
        /// All resources with this tag.
        may tag: Name,
    }
}

impl Check for Dependency {
    fn check(&self, at: &Origin, reader: &mut Reader<'_>) {
        match (&self.key, &self.tag) {
            (Some(key), Some(tag)) => reader.relate(
                ("key", key.origin()),
                ("tag", tag.origin()),
                "a dependency is a key or a tag",
                "write two dependencies",
            ),
            (None, None) if !reader.is_malformed("key") && !reader.is_malformed("tag") => {
                let problem = Problem::new(ProblemKind::Missing, reader.key(), at.clone(), "names nothing");
                reader.report(problem.allowed("key, tag").fix("give one of them"));
            }
            (None, None) | (Some(_), None) | (None, Some(_)) => {}
        }
    }
}

table! {
    /// Keeps values over the end of the group.
    Persist {
        /// An older value is not served.
        has max_age: Interval = "24h", "yesterday's view at a cold start, not last week's",
        /// Values of another text are not served: change it with the form of the data.
        may buster: Text,
    }
}

impl Check for Persist {}

table! {
    /// How a token is refreshed.
    Token {
        /// The first refresh token.
        must seed: Credential,
        /// Where the answer has the access token.
        has access: JsonPath = "$.access_token", "RFC 6749",
        /// Where it has the next refresh token.
        has refresh: JsonPath = "$.refresh_token", "RFC 6749",
        /// Where it has the access token's life in seconds.
        has expires_in: JsonPath = "$.expires_in", "RFC 6749",
        /// Where the rotating token is kept.
        has store: TokenStore = "file", "there is a file system everywhere, a keyring is not",
        /// A refresh whose outcome is unknown is repeated within this time.
        has grace: Wait = "0s", "a server that sees a token twice may revoke the account",
    }
}

impl Check for Token {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        if *self.store.value() == TokenStore::Keyring {
            reader.need(Part::Keyring, "store", self.store.origin());
        }
        if let Some(token) = token_of(self.seed.template()) {
            let key = reader.key_of("seed");
            let what = format!("asks for {token}, which does not exist before the first refresh");
            let problem = Problem::new(ProblemKind::Value, key, self.seed.origin().clone(), what);
            reader.report(problem.allowed("{secret:NAME}"));
        }
        if let Some(name) = self.seed.template().names().next() {
            let what = format!("fills in {{{name}}}, and nothing binds it here");
            let problem =
                Problem::new(ProblemKind::Reference, reader.key_of("seed"), self.seed.origin().clone(), what);
            reader.report(problem.allowed("{secret:NAME}"));
        }
    }
}

table! {
    /// `[resources.NAME]`: rules for keys. `[resources."NAME.ACTION"]` beats `[resources.NAME]`.
    Resource {
        /// What it is.
        has kind: ResourceKind = "data", "most are",
        /// Its keys; those that begin with its name where it is left out.
        may key: ResourceKey,
        /// Age at which a value turns stale.
        may stale_time: Staleness,
        /// A value that nobody looks at is removed after so long.
        may gc_time: OrNever,
        /// What refetches a stale value.
        may refetch_on: Vec<Sourced<Trigger>>,
        /// Whether requests wait for the network.
        may network_mode: NetworkMode,
        /// How often a fetch that a caller waits for is tried.
        may retry: Retry,
        /// Tags to invalidate it by.
        table tags: Vec<Sourced<Name>>,
        /// What it depends on.
        table depends_on: Vec<Sourced<Dependency>>,
        /// Who fetches it.
        may fetch: Fetch,
        /// A session that was asked to fetch must have answered by then.
        may fetch_deadline: Interval,
        /// How often it is polled.
        may poll: Poll,
        /// Kept fresh while no session is visible.
        has critical: bool = false, "what nobody sees costs nothing",
        /// Kept over the end of the group.
        may persist: Persist; needs PersistedCache,
        /// A token is refreshed so long before it expires.
        may refresh_before: Interval; needs Tokens,
        /// How a token is refreshed.
        may token: Token; needs Tokens,
    }
}

impl Check for Resource {
    fn check(&self, at: &Origin, reader: &mut Reader<'_>) {
        unique(&self.tags, "tags", reader);
        if let Some(triggers) = &self.refetch_on {
            unique(triggers, "refetch_on", reader);
        }
        if let Some(deadline) = &self.fetch_deadline {
            match &self.fetch {
                Some(fetch) if *fetch.value() == Fetch::Closure => {}
                Some(fetch) => reader.relate(
                    ("fetch_deadline", deadline.origin()),
                    ("fetch", fetch.origin()),
                    "only a fetch that is delegated has a deadline",
                    "use `timeout` of the server",
                ),
                None if reader.is_malformed("fetch") => {}
                None => {
                    let what = "the key `fetch` is missing, which `fetch_deadline` needs";
                    let problem = Problem::new(
                        ProblemKind::Missing,
                        reader.key_of("fetch"),
                        deadline.origin().clone(),
                        what,
                    );
                    reader.report(problem.allowed(Fetch::kind()));
                }
            }
        }
        if reader.is_malformed("kind") {
            return;
        }
        match self.kind.value() {
            ResourceKind::Data => {
                let token = [
                    ("refresh_before", self.refresh_before.as_ref().map(Sourced::origin)),
                    ("token", self.token.as_ref().map(Sourced::origin)),
                ];
                for (key, origin) in token {
                    if let Some(origin) = origin {
                        let what = format!("only a token has `{key}`");
                        reader.relate(
                            (key, origin),
                            ("kind", self.kind.origin()),
                            &what,
                            "say `kind = \"token\"`",
                        );
                    }
                }
            }
            ResourceKind::Token => self.check_token(at, reader),
        }
    }
}

impl Resource {
    fn check_token(&self, at: &Origin, reader: &mut Reader<'_>) {
        reader.need(Part::Tokens, "kind", self.kind.origin());
        let kind = ("kind", self.kind.origin());
        let is_http = self.fetch.as_ref().is_some_and(|fetch| matches!(fetch.value(), Fetch::Http(_)));
        for (key, given) in [("token", self.token.is_some()), ("fetch", self.fetch.is_some())] {
            if !given && !reader.is_malformed(key) {
                let what = format!("the key `{key}` is missing, which a token needs");
                let problem = Problem::new(ProblemKind::Missing, reader.key_of(key), at.clone(), what);
                reader.report(problem.related(reader.key_of(kind.0), kind.1.clone()));
            }
        }
        if let (Some(fetch), false) = (&self.fetch, is_http) {
            let what = "a token is refreshed by a declared request, not by a closure";
            reader.relate(("fetch", fetch.origin()), kind, what, "say http, method and path");
        }
        let never = [
            ("key", self.key.as_ref().map(Sourced::origin)),
            ("stale_time", self.stale_time.as_ref().map(Sourced::origin)),
            ("poll", self.poll.as_ref().map(Sourced::origin)),
            ("persist", self.persist.as_ref().map(Sourced::origin)),
        ];
        for (key, origin) in never {
            if let Some(origin) = origin {
                let what = format!("a token has no `{key}`: it is kept and refreshed by its own rules");
                reader.relate((key, origin), kind, &what, "leave it out");
            }
        }
    }

    /// The names that the resource's keys bind.
    pub fn names(&self) -> Vec<&str> {
        self.key.iter().flat_map(|key| key.pattern().names()).collect()
    }

    /// Names that are filled in are bound by the key. The reader stands at the resource.
    pub(crate) fn check_names(&self, reader: &mut Reader<'_>) {
        if reader.is_malformed("key") {
            return;
        }
        let bound = self.names();
        if let Some(Fetch::Http(fetch)) = self.fetch.as_ref().map(Sourced::value) {
            let mut wanted: Vec<(String, &Template, &Origin)> =
                vec![("fetch.path".to_owned(), fetch.path.template(), fetch.path.origin())];
            for (name, template, origin) in fetch.query.origins() {
                wanted.push((format!("fetch.query.{name}"), template, origin));
            }
            for (name, value) in fetch.form.iter() {
                wanted.push((format!("fetch.form.{name}"), value.template(), value.origin()));
            }
            for (name, value) in fetch.headers.iter() {
                wanted.push((format!("fetch.headers.{name}"), value.template(), value.origin()));
            }
            for (key, template, origin) in wanted {
                for name in template.names().filter(|name| !bound.contains(name)) {
                    let what = format!("fills in {{{name}}}, and the resource's key does not bind it");
                    let problem =
                        Problem::new(ProblemKind::Reference, reader.key_of(&key), origin.clone(), what);
                    reader.report(problem.one_of(name, bound.iter().copied()).fix("name it in `key`"));
                }
            }
        }
        if let Some(poll) = &self.poll {
            poll.check_names(&bound, reader);
        }
        for (n, dependency) in self.depends_on.iter().enumerate() {
            let Some(key) = &dependency.key else { continue };
            let at = format!("{}[{n}].key", reader.key_of("depends_on"));
            let segments = key.json().as_array().map_or(&[][..], Vec::as_slice);
            for (segment, text) in
                segments.iter().flat_map(|one| texts(one).into_iter().map(move |text| (one, text)))
            {
                let refuse =
                    |what: String| Problem::new(ProblemKind::Reference, &at, key.origin().clone(), what);
                if text.starts_with('$') && !text.starts_with("$$") {
                    let what =
                        format!("takes {text:?} for a path, and there is no message that it could lead into");
                    reader.report(refuse(what).fix("write `$$` for a text that begins with `$`"));
                    continue;
                }
                let Ok(template) = Template::new(text, Setting::Name) else {
                    reader.report(refuse(format!("{text:?} is no template of a name")));
                    continue;
                };
                if text.contains(['{', '}']) && (template.as_name().is_none() || !segment.is_string()) {
                    let what = format!("{text:?} is neither a text without braces nor a whole segment");
                    reader.report(refuse(what).fix("fill in a segment as a whole, as \"{id}\""));
                    continue;
                }
                for name in template.names().filter(|name| !bound.contains(name)) {
                    let what = format!("fills in {{{name}}}, and the resource's key does not bind it");
                    reader.report(refuse(what).one_of(name, bound.iter().copied()).fix("name it in `key`"));
                }
            }
        }
    }
}

/// All texts in a JSON value.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(members) => members.values().flat_map(texts).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

table! {
    /// What a profile changes of a resource.
    ProfileResource {
        /// Age at which a value turns stale.
        may stale_time: Staleness,
        /// A value that nobody looks at is removed after so long.
        may gc_time: OrNever,
        /// What refetches a stale value.
        may refetch_on: Vec<Sourced<Trigger>>,
        /// Whether requests wait for the network.
        may network_mode: NetworkMode,
        /// How often a fetch that a caller waits for is tried.
        may retry: Retry,
    }
}

impl Check for ProfileResource {}

table! {
    /// `[profiles.NAME]`: other numbers for other surroundings.
    Profile {
        /// What it changes, by resource.
        table resources: Named<ProfileResource>,
    }
}

impl Check for Profile {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        let declared = reader.declared("resources");
        for (name, resource) in self.resources.iter() {
            if !declared.contains_key(name.as_str()) && !reader.is_lost("resources") {
                let what = format!(
                    "changes the resource {:?}, and no [resources.{name}] is declared",
                    name.as_str()
                );
                let key = reader.key_of(&format!("resources.{name}"));
                let problem = Problem::new(ProblemKind::Reference, key, resource.origin().clone(), what);
                reader.report(problem.one_of(name.as_str(), declared.keys().map(String::as_str)));
            }
        }
    }
}
