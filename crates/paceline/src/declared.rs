//! What a session declares by configuration.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use paceline_channel::{
    protocol::Secret,
    template::{Template, Token, Vault},
    token::Paths,
};
use paceline_config::{
    Capabilities, Config, Digest, Draft, Item, Part, Source,
    tables::{Fetch, Http, HttpFetch, Method, Resource, Upstream as Declared},
};
use paceline_ipc::dirs::StateDir;
use paceline_proto::{
    limits::{ITEM_TEXT_MAX, ITEMS_MAX},
    message::{DeclaredItem, Rank},
};
use paceline_query::{condition::Bindings, rules};
use paceline_runtime::{
    fetcher::Fetchers,
    socket::Upstream,
    token::{Authorized, Keeper, TokenRules},
};
use paceline_upstream::{
    fetch::Fetcher,
    http::{self, HttpClient, HttpFetcher, HttpRequest},
    send::{HttpSender, Origin},
};

use crate::error::Error;

/// The parts of the configuration language that this build can carry out.
///
/// ```
/// use paceline::config::Part;
///
/// assert!(paceline::capabilities().has(Part::Http));
/// ```
pub fn capabilities() -> Capabilities {
    Capabilities::of([
        Part::WebSocket,
        Part::Sse,
        Part::Pusher,
        Part::Channels,
        Part::MessageIds,
        Part::Fallback,
        Part::Http,
        Part::QueryEngine,
        Part::Tokens,
    ])
}

/// Configuration as it was handed to the builder.
#[derive(Debug, Default)]
pub(crate) struct Declarations {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) validated: Option<Config>,
    pub(crate) from_env: bool,
}

impl Declarations {
    /// Reads and checks it; `None` where there is none.
    pub(crate) fn read(&self) -> Result<Option<Config>, Error> {
        if let Some(config) = &self.validated {
            return Ok(Some(config.clone()));
        }
        if self.files.is_empty() {
            return Ok(None);
        }
        let mut sources = Vec::new();
        for path in &self.files {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Error::ConfigFile { path: path.clone(), why: error.to_string() })?;
            sources.push(Source::named(path.display().to_string(), text));
        }
        if self.from_env {
            sources.push(Source::environment(|name| std::env::var(name).ok()));
        }
        Ok(Some(Draft::new(sources)?.validate(&capabilities())?))
    }

    /// Its upstreams. One that never leads opens none, and needs no secrets.
    pub(crate) fn upstreams(&self, config: &Config, rank: Rank) -> Result<Vec<Upstream>, Error> {
        let secrets = match rank {
            Rank::Observer => Secrets { config, from_env: false, leads: false },
            Rank::Candidate | Rank::Preferred => {
                let secrets = Secrets { config, from_env: self.from_env, leads: true };
                secrets.check()?;
                secrets
            }
        };
        let made = config.live_upstreams(&secrets).map_err(|error| Error::Invalid(error.to_string()))?;
        Ok(made
            .into_iter()
            .map(|it| Upstream {
                name: it.name.into(),
                adapters: it.adapters,
                backoff: it.backoff,
                router: it.router,
            })
            .collect())
    }
}

/// What a configuration says of queries.
#[derive(Debug, Default)]
pub(crate) struct Queries {
    pub(crate) defaults: rules::Defaults,
    /// By name.
    pub(crate) resources: BTreeMap<Arc<str>, rules::Resource>,
    /// Those that this process can fetch.
    pub(crate) fetchers: Fetchers,
    /// Tokens among them.
    pub(crate) tokens: Vec<Keeper>,
    /// What mutations are sent by, if this process may lead.
    pub(crate) sender: Option<HttpSender>,
}

impl Declarations {
    /// Its resources, and its requests with their secrets. One that never leads makes none: secrets stay with those that may
    /// hold the wire.
    pub(crate) fn queries(&self, config: &Config, rank: Rank, dir: &StateDir) -> Result<Queries, Error> {
        let mut queries = Queries { defaults: config.query_defaults(), ..Queries::default() };
        let resources = config.query_resources().map_err(|error| Error::Invalid(error.to_string()))?;
        let secrets = Secrets { config, from_env: self.from_env, leads: true };
        let client = HttpClient::default();
        let keepers = match rank {
            Rank::Observer => BTreeMap::new(),
            Rank::Candidate | Rank::Preferred => keepers(config, &secrets, dir)?,
        };
        for rules in resources {
            let declared = config.resources().get(&*rules.name).map(|it| it.value());
            let fetcher: Option<Arc<dyn Fetcher>> = match declared.and_then(|it| request_of(config, it)) {
                None => None,
                Some(_) if rank == Rank::Observer => None,
                Some((server, fetch)) => match keepers.get(&rules.name) {
                    Some(keeper) => Some(Arc::new(keeper.clone())),
                    None => {
                        let request = request(&rules.name, server, fetch);
                        Some(fetcher(request, &secrets, &client, keepers.values().next())?)
                    }
                },
            };
            if let Some(fetcher) = fetcher {
                queries.fetchers.insert(rules.name.clone(), rules.pattern.clone(), fetcher);
            }
            queries.resources.insert(rules.name.clone(), rules);
        }
        queries.tokens = keepers.into_values().collect();
        queries.sender = (rank != Rank::Observer).then(|| HttpSender::new(client, origins(config, &secrets)));
        Ok(queries)
    }
}

/// What is added to mutations, by server.
fn origins(config: &Config, secrets: &Secrets<'_>) -> Vec<Origin> {
    let servers = config.http().values().map(|server| server.value());
    let origin = |server: &Http| {
        let headers: Vec<_> =
            server.headers().iter().map(|(name, text)| (name.to_string(), text.template().clone())).collect();
        let vault = secrets.resolve(headers.iter().map(|(_, template)| template));
        Origin {
            base: server.base().as_str().to_owned(),
            headers,
            vault: vault.map(|vault| Arc::new(vault) as _).map_err(|error| error.to_string().into()),
        }
    };
    servers.map(origin).collect()
}

/// The tokens of a configuration. A first refresh token that is not there is wanted only by who signs in.
fn keepers(
    config: &Config,
    secrets: &Secrets<'_>,
    dir: &StateDir,
) -> Result<BTreeMap<Arc<str>, Keeper>, Error> {
    let mut keepers = BTreeMap::new();
    for (name, resource) in config.resources().iter() {
        let resource = resource.value();
        let (Some(token), Some((server, fetch))) = (resource.token(), request_of(config, resource)) else {
            continue;
        };
        let request = request(name.as_str(), server, fetch);
        let name: Arc<str> = name.as_str().into();
        let rules = TokenRules {
            name: name.clone(),
            vault: Arc::new(secrets.resolve(templates(&request))?),
            request,
            paths: Paths {
                access: token.access().path().clone(),
                refresh: token.refresh().path().clone(),
                expires_in: token.expires_in().path().clone(),
            },
            grace: token.grace().value().get(),
            refresh_before: resource.refresh_before().as_ref().map_or(Duration::ZERO, |it| it.value().get()),
            seed: token.seed().template().fill_secret(&Bindings::new(), secrets).ok(),
        };
        let keeper = Keeper::new(dir, rules).map_err(|error| Error::Invalid(error.to_string()))?;
        // Whoever starts with a new one has signed in, whichever session refreshes.
        keeper.sign_in();
        keepers.insert(name, keeper);
    }
    Ok(keepers)
}

/// Makes a declared request; with a token, if it asks for the one there is.
fn fetcher(
    request: HttpRequest,
    secrets: &Secrets<'_>,
    client: &HttpClient,
    keeper: Option<&Keeper>,
) -> Result<Arc<dyn Fetcher>, Error> {
    let vault = Arc::new(secrets.resolve(templates(&request))?);
    let authorized = templates(&request).any(|template| template.tokens().next().is_some());
    let fetcher = HttpFetcher::new(request, vault.clone(), client.clone());
    Ok(match keeper.filter(|_| authorized) {
        Some(keeper) => Arc::new(Authorized { fetcher, vault, keeper: keeper.clone() }),
        None => Arc::new(fetcher),
    })
}

/// All that a session declares for its group, with a digest over it: what its configuration says, and the rules of its
/// resources as code and configuration make them together.
pub(crate) fn items(
    configured: paceline_config::Declared,
    resources: &[paceline_proto::fetch::Declared],
) -> (u64, Vec<DeclaredItem>) {
    let mut items: BTreeMap<String, Item> =
        configured.items().map(|(name, item)| (name.to_owned(), item.clone())).collect();
    for resource in resources {
        let Ok(rules) = rules::Resource::from_bytes(&resource.rules) else { continue };
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&rules.digest().to_be_bytes());
        let digest = Digest::from_bytes(digest);
        let coded = || Item { digest, place: "code".to_owned() };
        items.entry(format!("resources.{}", resource.name)).or_insert_with(coded).digest = digest;
    }
    let all = paceline_config::Declared::from_items(items);
    let items: Vec<DeclaredItem> = all.items().take(ITEMS_MAX).map(declared_item).collect();
    (if items.is_empty() { 0 } else { all.root().short() }, items)
}

fn declared_item((name, item): (&str, &Item)) -> DeclaredItem {
    let cut = |text: &str| {
        let end = (0..=text.len().min(ITEM_TEXT_MAX)).rfind(|end| text.is_char_boundary(*end));
        text[..end.unwrap_or(0)].to_owned()
    };
    DeclaredItem { name: cut(name), digest: item.digest.short(), place: cut(&item.place) }
}

fn request_of<'a>(config: &'a Config, resource: &'a Resource) -> Option<(&'a Http, &'a HttpFetch)> {
    match resource.fetch().as_ref()?.value() {
        Fetch::Closure => None,
        Fetch::Http(fetch) => Some((config.http().get(fetch.http().as_str())?.value(), fetch)),
    }
}

fn request(resource: &str, server: &Http, fetch: &HttpFetch) -> HttpRequest {
    let headers = server.headers().iter().chain(fetch.headers().iter());
    HttpRequest {
        resource: resource.to_owned(),
        method: match fetch.method().value() {
            Method::Get => http::Method::GET,
            Method::Post => http::Method::POST,
            Method::Put => http::Method::PUT,
            Method::Patch => http::Method::PATCH,
            Method::Delete => http::Method::DELETE,
        },
        base: server.base().as_str().to_owned(),
        path: fetch.path().template().clone(),
        query: fetch.query().iter().map(|(name, text)| (name.to_owned(), text.clone())).collect(),
        form: fetch.form().iter().map(|(name, text)| (name.to_owned(), text.template().clone())).collect(),
        headers: headers.map(|(name, text)| (name.to_string(), text.template().clone())).collect(),
        etag: *fetch.etag().value(),
        timeout: server.timeout().value().get(),
    }
}

/// Where secrets may stand.
fn templates(request: &HttpRequest) -> impl Iterator<Item = &Template> {
    request.headers.iter().chain(&request.form).map(|(_, template)| template)
}

/// The secrets of one request.
struct Resolved(BTreeMap<String, Secret>);

impl Vault for Resolved {
    fn secret(&self, name: &str) -> Option<Secret> {
        self.0.get(name).cloned()
    }

    fn token(&self, _: Token) -> Option<Secret> {
        None
    }
}

/// The secrets of a configuration, in a process that may hold the wire.
struct Secrets<'a> {
    config: &'a Config,
    from_env: bool,
    leads: bool,
}

impl Secrets<'_> {
    /// Every secret that an upstream needs is there.
    fn check(&self) -> Result<(), Error> {
        for upstream in self.config.upstreams().values() {
            let headers = match upstream.value() {
                Declared::WebSocket(upstream) => Some(upstream.headers()),
                Declared::Sse(upstream) => Some(upstream.headers()),
                Declared::Poll(upstream) => Some(upstream.headers()),
                Declared::Pusher(upstream) => upstream.auth().as_ref().map(|auth| auth.headers()),
            };
            for (_, header) in headers.into_iter().flat_map(|headers| headers.iter()) {
                for name in header.template().secrets() {
                    self.look_up(name)?;
                }
            }
        }
        Ok(())
    }

    /// Those that the templates need.
    fn resolve<'t>(&self, templates: impl Iterator<Item = &'t Template>) -> Result<Resolved, Error> {
        let names = templates.flat_map(Template::secrets);
        names.map(|name| Ok((name.to_owned(), self.look_up(name)?))).collect::<Result<_, _>>().map(Resolved)
    }

    fn look_up(&self, name: &str) -> Result<Secret, Error> {
        let declared = self.config.secrets().get(name);
        let Some((variable, secret)) = declared.and_then(|it| Some((it.env().as_ref()?, it))) else {
            return Err(Error::Invalid(format!("the secret {name:?} is declared by no variable")));
        };
        let failed =
            |why: String| Error::Secret { name: name.to_owned(), origin: secret.origin().clone(), why };
        if !self.from_env {
            let why = format!(
                "it is in the variable {variable}, and `from_env` was not called",
                variable = variable.as_str()
            );
            return Err(failed(why));
        }
        match std::env::var(variable.as_str()) {
            Ok(text) if !text.is_empty() && !text.chars().any(char::is_control) => Ok(Secret::new(text)),
            Ok(_) => Err(failed(format!(
                "the variable {} is empty or holds a control character",
                variable.as_str()
            ))),
            Err(_) => Err(failed(format!("set the variable {}", variable.as_str()))),
        }
    }
}

impl Vault for Secrets<'_> {
    fn secret(&self, name: &str) -> Option<Secret> {
        if self.leads { self.look_up(name).ok() } else { Some(Secret::new("")) }
    }

    fn token(&self, _: Token) -> Option<Secret> {
        None
    }
}

#[cfg(test)]
mod tests {
    use paceline_ipc::group::GroupName;

    use super::*;

    #[test]
    fn a_group_may_be_called_the_same_in_code_and_in_a_file() {
        let long = "x".repeat(64);
        for name in [
            "default",
            "a",
            "0",
            "a.b_c-d",
            long.as_str(),
            "",
            "-a",
            ".a",
            "A",
            "ä",
            "a b",
            &format!("{long}x"),
        ] {
            let text = format!("[group]\nname = {name:?}\n");
            let declared = Draft::new([Source::named("f", text)]).unwrap().validate(&capabilities());
            assert_eq!(declared.is_ok(), name.parse::<GroupName>().is_ok(), "{name:?}");
        }
    }
}
