//! The whole configuration, and what its tables say of one another.

use std::collections::{BTreeMap, BTreeSet};

use paceline_channel::template::Template;
use paceline_query::key::QueryKey;

use crate::{
    node::join,
    origin::Origin,
    part::Part,
    problem::{Problem, ProblemKind},
    reader::{Check, Entry, Field, Named, Reader, Sourced},
    tables::{
        Defaults, FallbackStep, Fetch, Group, Http, NetworkMode, Outbox, Periodic, Preferences, Profile,
        Resource, ResourceKind, Retry, Route, Scope, Secret, Tag, Trigger, Upstream,
    },
    value::{Count, Headers, Name, OrNever, ResourceKey, Staleness, token_of},
};

table! {
    /// A configuration that is valid.
    Config {
        /// Version of the language.
        has schema: Count<1, 1> = 1, "the language as it is described here",
        /// Who shares the wire.
        table group: Group,
        /// Secrets by name.
        table secrets: Named<Secret>,
        /// Servers outside, by name.
        table upstreams: Named<Upstream>,
        /// What messages change.
        table routes: Vec<Sourced<Route>>,
        /// What holds for resources that do not say otherwise.
        table defaults: Defaults; needs QueryEngine,
        /// Servers that requests go to, by name.
        table http: Named<Http>; needs Http,
        /// Rules for keys, by name.
        table resources: Named<Resource>; needs QueryEngine,
        /// Other numbers for other surroundings, by name.
        table profiles: Named<Profile>; needs QueryEngine,
        /// The durable queue of mutations.
        table outbox: Outbox; needs Outbox,
        /// What becomes of mutations with a tag, by tag.
        table tags: Named<Tag>; needs Sync,
        /// What is done now and then, by name.
        table periodic: Named<Periodic>; needs Sync,
        /// Defaults for what users choose.
        table preferences: Preferences; needs Preferences,
    }
}

/// The rules of a key, with the origin of each: the most exact resource that says something decides, a profile before
/// the resource it changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules<'a> {
    /// Age at which a value turns stale.
    pub stale_time: &'a Sourced<Staleness>,
    /// A value that nobody looks at is removed after so long.
    pub gc_time: &'a Sourced<OrNever>,
    /// What refetches a stale value.
    pub refetch_on: &'a Sourced<Vec<Sourced<Trigger>>>,
    /// Whether requests wait for the network.
    pub network_mode: &'a Sourced<NetworkMode>,
    /// How often a fetch that a caller waits for is tried.
    pub retry: &'a Retry,
}

impl Config {
    /// Every value with its key and origin, in the order of the language.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.list("", &Origin::Default { tuned_for: "" }, &mut entries);
        entries
    }

    /// The keys of a resource: those it names, or those that begin with its name.
    pub fn key_of(&self, resource: &str) -> Option<ResourceKey> {
        let found = self.resources.get(resource)?;
        match &found.key {
            Some(key) => Some(key.value().clone()),
            None => ResourceKey::of_name(resource),
        }
    }

    /// The resources whose keys a key is one of, the most exact first.
    pub fn resources_of(&self, key: &QueryKey) -> Vec<&Name> {
        let mut found: Vec<_> = self
            .resources
            .keys()
            .filter_map(|name| {
                let pattern = self.key_of(name.as_str())?;
                pattern.pattern().bind(key).map(|_| (pattern.pattern().specificity(), name))
            })
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        found.into_iter().map(|(_, name)| name).collect()
    }

    /// The rules of a key.
    ///
    /// ```
    /// use paceline_config::{Capabilities, Draft, Source};
    /// use paceline_query::key;
    ///
    /// let text = "[resources.process]\nstale_time = \"5m\"\n[resources.\"process.list\"]\nstale_time = \"2m\"\n";
    /// let config = Draft::new([Source::user("user.toml", text)])?.validate(&Capabilities::all())?;
    /// let rules = config.rules_of(&key!["process", "list", 1]);
    /// assert_eq!(rules.stale_time.origin().to_string(), "user.toml:4:14");
    /// assert_eq!(config.rules_of(&key!["process", 7]).stale_time.origin().to_string(), "user.toml:2:14");
    /// # Ok::<(), paceline_config::ConfigError>(())
    /// ```
    pub fn rules_of(&self, key: &QueryKey) -> Rules<'_> {
        let defaults = self.defaults.value();
        let mut rules = Rules {
            stale_time: &defaults.stale_time,
            gc_time: &defaults.gc_time,
            refetch_on: &defaults.refetch_on,
            network_mode: &defaults.network_mode,
            retry: &defaults.retry,
        };
        let profile = self.profile();
        // The least exact first, so that the most exact has the last word.
        for name in self.resources_of(key).into_iter().rev() {
            if let Some(own) = self.resources.get(name) {
                rules.change(&own.stale_time, &own.gc_time, &own.refetch_on, &own.network_mode, &own.retry);
            }
            if let Some(own) = profile.and_then(|profile| profile.resources.get(name)) {
                rules.change(&own.stale_time, &own.gc_time, &own.refetch_on, &own.network_mode, &own.retry);
            }
        }
        rules
    }

    /// The profile that is set.
    pub fn profile(&self) -> Option<&Profile> {
        let name = self.group.profile.as_ref()?;
        self.profiles.get(name.as_str()).map(Sourced::value)
    }

    /// The routes of an upstream, in order.
    pub fn routes_of(&self, upstream: &str) -> impl Iterator<Item = &Route> {
        self.routes.iter().map(Sourced::value).filter(move |route| route.upstream.as_str() == upstream)
    }
}

impl<'a> Rules<'a> {
    fn change(
        &mut self,
        stale_time: &'a Option<Sourced<Staleness>>,
        gc_time: &'a Option<Sourced<OrNever>>,
        refetch_on: &'a Option<Sourced<Vec<Sourced<Trigger>>>>,
        network_mode: &'a Option<Sourced<NetworkMode>>,
        retry: &'a Option<Sourced<Retry>>,
    ) {
        self.stale_time = stale_time.as_ref().unwrap_or(self.stale_time);
        self.gc_time = gc_time.as_ref().unwrap_or(self.gc_time);
        self.refetch_on = refetch_on.as_ref().unwrap_or(self.refetch_on);
        self.network_mode = network_mode.as_ref().unwrap_or(self.network_mode);
        self.retry = retry.as_ref().map_or(self.retry, Sourced::value);
    }
}

impl Check for Config {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        self.check_routes(reader);
        self.check_fallbacks(reader);
        self.check_resources(reader);
        self.check_tokens(reader);
    }
}

impl Config {
    fn check_routes(&self, reader: &mut Reader<'_>) {
        for (n, route) in self.routes.iter().enumerate() {
            let name = route.upstream.as_str();
            let Some(upstream) = self.upstreams.get(name) else { continue };
            let scope = Scope::of(upstream);
            let at = format!("[{n}]");
            reader.inside("routes", |reader| {
                reader.inside(&at, |reader| {
                    route.check_in(&scope, reader);
                    let Some(channel) = &route.channel else { return };
                    let text = channel.pattern().to_string();
                    let guarded = text.starts_with("private-") || text.starts_with("presence-");
                    if let (true, Upstream::Pusher(pusher)) = (guarded, upstream.value())
                        && pusher.auth.is_none()
                        && !reader.is_lost(&join(&join("upstreams", name), "auth"))
                    {
                        let what = format!(
                            "the channel {text:?} must be authorised, and the upstream has no `auth`"
                        );
                        let problem = Problem::new(
                            ProblemKind::Relation,
                            reader.key_of("channel"),
                            channel.origin().clone(),
                            what,
                        )
                        .related(format!("upstreams.{name}"), upstream.origin().clone())
                        .fix("give the upstream `auth`");
                        reader.report(problem);
                    }
                });
            });
        }
    }

    /// No upstream falls back to itself, on whatever way.
    fn check_fallbacks(&self, reader: &mut Reader<'_>) {
        for (name, upstream) in self.upstreams.iter() {
            let mut seen: BTreeSet<&str> = BTreeSet::new();
            for (n, step) in upstream.fallback().iter().enumerate() {
                let key = format!("upstreams.{name}.fallback[{n}]");
                let word = match step.value() {
                    FallbackStep::Poll => "poll",
                    FallbackStep::Upstream(other) => other.as_str(),
                };
                let report = |kind, what: String, fix: &str| {
                    Problem::new(kind, key.clone(), step.origin().clone(), what).fix(fix)
                };
                if !seen.insert(word) {
                    reader.report(report(
                        ProblemKind::Duplicate,
                        format!("names {word:?} again"),
                        "leave one out",
                    ));
                }
                if *step.value() == FallbackStep::Poll && n + 1 < upstream.fallback().len() {
                    let what = "polling always works, so that nothing comes after it".to_owned();
                    reader.report(report(ProblemKind::Relation, what, "put `poll` at the end"));
                }
                if self.reaches(word, name.as_str()) {
                    let what = format!("falls back to itself by {word:?}");
                    let mut problem = report(ProblemKind::Relation, what, "leave one of the two out");
                    if let Some(other) = self.upstreams.get(word) {
                        problem = problem
                            .related(format!("upstreams.{word}.fallback"), other.fallback().origin().clone());
                    }
                    reader.report(problem);
                }
            }
        }
    }

    /// Whether falling back from an upstream leads to another.
    fn reaches(&self, from: &str, to: &str) -> bool {
        let mut open = vec![from];
        let mut seen = BTreeSet::new();
        while let Some(next) = open.pop() {
            if next == to {
                return true;
            }
            if let (true, Some(upstream)) = (seen.insert(next), self.upstreams.get(next)) {
                open.extend(upstream.fallback().iter().filter_map(|step| match step.value() {
                    FallbackStep::Upstream(name) => Some(name.as_str()),
                    FallbackStep::Poll => None,
                }));
            }
        }
        false
    }

    fn check_resources(&self, reader: &mut Reader<'_>) {
        let tags: BTreeSet<&str> = self
            .resources
            .values()
            .flat_map(|resource| resource.tags.iter().map(|tag| tag.as_str()))
            .collect();
        let mut patterns: Vec<(&Name, &Sourced<Resource>, ResourceKey)> = Vec::new();
        for (name, resource) in self.resources.iter() {
            reader.inside("resources", |reader| {
                reader.inside(name.as_str(), |reader| {
                    resource.check_names(reader);
                    for (n, dependency) in resource.depends_on.iter().enumerate() {
                        let Some(tag) = &dependency.tag else { continue };
                        // The tags of a resource that could not be read are not known.
                        if !tags.contains(tag.as_str()) && !self.lacks_one("tags", reader) {
                            let key = format!("{}[{n}].tag", reader.key_of("depends_on"));
                            let what = format!("refers to the tag {:?}, which no resource has", tag.as_str());
                            let problem =
                                Problem::new(ProblemKind::Reference, key, tag.origin().clone(), what);
                            reader.report(problem.one_of(tag.as_str(), tags.iter().copied()));
                        }
                    }
                    if reader.is_malformed("key") {
                        return;
                    }
                    let Some(key) = self.key_of(name.as_str()) else { return };
                    if let Some((other, first, _)) =
                        patterns.iter().find(|(_, _, pattern)| pattern.pattern().is_same(key.pattern()))
                    {
                        let at = |resource: &Sourced<Resource>| {
                            resource.key.as_ref().map_or(resource.origin(), Sourced::origin).clone()
                        };
                        let what = format!(
                            "is for the same keys as the resource {:?}: {}",
                            other.as_str(),
                            key.pattern()
                        );
                        let problem =
                            Problem::new(ProblemKind::Duplicate, reader.key_of("key"), at(resource), what)
                                .related(format!("resources.{other}.key"), at(first))
                                .fix("make one of them more exact, or merge them");
                        reader.report(problem);
                    }
                    patterns.push((name, resource, key));
                });
            });
        }
    }

    /// Whether some resource, or this key of some resource, could not be read.
    fn lacks_one(&self, key: &str, reader: &Reader<'_>) -> bool {
        reader.is_lost("resources")
            || reader.declared("resources").len() > self.resources.len()
            || self.resources.keys().any(|name| reader.is_lost(&join(&join("resources", name.as_str()), key)))
    }

    /// `{token.access}` outside of a token means the only token there is.
    fn check_tokens(&self, reader: &mut Reader<'_>) {
        let tokens: BTreeMap<&str, &Origin> = self
            .resources
            .iter()
            .filter(|(_, resource)| *resource.kind.value() == ResourceKind::Token)
            .map(|(name, resource)| (name.as_str(), resource.origin()))
            .collect();
        for (key, template, origin) in self.shared_credentials() {
            let Some(token) = token_of(template) else { continue };
            if key.starts_with("upstreams.") {
                reader.need(Part::UpstreamTokens, &key, origin);
            }
            if tokens.len() == 1 || self.lacks_one("kind", reader) {
                continue;
            }
            let what = if tokens.is_empty() {
                format!("asks for {token}, and no resource is a token")
            } else {
                format!("asks for {token}, and it is not clear of which token")
            };
            let fix = if tokens.is_empty() {
                "declare a resource with `kind = \"token\"`"
            } else {
                "leave one token"
            };
            let mut problem = Problem::new(ProblemKind::Reference, key, origin.clone(), what).fix(fix);
            for (name, at) in &tokens {
                problem = problem.related(format!("resources.{name}"), (*at).clone());
            }
            reader.report(problem);
        }
    }

    /// Values of headers and form fields outside of tokens.
    fn shared_credentials(&self) -> Vec<(String, &Template, &Origin)> {
        let mut all: Vec<(String, &Template, &Origin)> = Vec::new();
        for (name, upstream) in self.upstreams.iter() {
            match upstream.value() {
                Upstream::WebSocket(it) => collect(&mut all, &format!("upstreams.{name}"), &it.headers),
                Upstream::Sse(it) => collect(&mut all, &format!("upstreams.{name}"), &it.headers),
                Upstream::Poll(it) => collect(&mut all, &format!("upstreams.{name}"), &it.headers),
                Upstream::Pusher(it) => {
                    if let Some(auth) = &it.auth {
                        collect(&mut all, &format!("upstreams.{name}.auth"), &auth.headers);
                    }
                }
            }
        }
        for (name, http) in self.http.iter() {
            collect(&mut all, &format!("http.{name}"), &http.headers);
        }
        for (name, resource) in self.resources.iter().filter(|(_, it)| *it.kind.value() == ResourceKind::Data)
        {
            if let Some(Fetch::Http(fetch)) = resource.fetch.as_ref().map(Sourced::value) {
                collect(&mut all, &format!("resources.{name}.fetch"), &fetch.headers);
                for (field, value) in fetch.form.iter() {
                    all.push((
                        format!("resources.{name}.fetch.form.{field}"),
                        value.template(),
                        value.origin(),
                    ));
                }
            }
        }
        all
    }
}

fn collect<'a>(all: &mut Vec<(String, &'a Template, &'a Origin)>, table: &str, headers: &'a Headers) {
    for (name, value) in headers.iter() {
        all.push((format!("{table}.headers.{name}"), value.template(), value.origin()));
    }
}
