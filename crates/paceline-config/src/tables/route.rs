//! What a message changes.

use paceline_channel::route::{self, RouteError};

use super::upstream::{Upstream, bound_names};
use crate::{
    node::{Node, join},
    origin::Origin,
    problem::{Problem, ProblemKind},
    reader::{Check, Field, Reader, Sourced},
    value::{ChannelPattern, ConditionText, JsonPath, KeyTemplate, MergeValue, Name, Text},
};

const NONE: [&str; 0] = [];

/// The upstream that a route belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamName(Name);

impl UpstreamName {
    /// As text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl Field for UpstreamName {
    fn kind() -> String {
        "name of an upstream".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let name = Name::read(node, reader)?;
        reader.refer(node, "upstreams", name.as_str()).then_some(Self(name))
    }

    fn canon(&self) -> serde_json::Value {
        self.0.canon()
    }
}

words! {
    /// Which keys are fetched anew when they are invalidated.
    Refetch {
        /// Those that some session looks at.
        Active = "active",
        /// Those that no session looks at.
        Inactive = "inactive",
        /// All.
        All = "all",
        /// None: they are marked stale.
        None = "none",
    }
}

table! {
    /// Sets a key.
    Set {
        /// The key.
        must key: KeyTemplate,
        /// Where the value is; the envelope's payload where it is left out.
        may value: JsonPath,
        /// Where its version is, a whole number or a text: an older one never replaces a newer one.
        may version: JsonPath,
    }
}

impl Check for Set {}

table! {
    /// Folds a merge patch (RFC 7396) onto a key.
    Merge {
        /// The key.
        must key: KeyTemplate,
        /// The patch; texts that are paths yield what they lead to.
        must value: MergeValue,
    }
}

impl Check for Merge {}

table! {
    /// Marks keys stale.
    Invalidate {
        /// The key; those under it too.
        must key: KeyTemplate,
        /// Only the key itself.
        has exact: bool = false, "a list and all its filters go stale together",
        /// Which of them are fetched anew.
        has refetch: Refetch = "active",
            "what nobody looks at is fetched when somebody does"; needs RouteRefetch,
    }
}

impl Check for Invalidate {}

table! {
    /// Emits an ordered event of a stream: every subscriber gets every one.
    Event {
        /// The stream.
        must stream: Name,
        /// Where its data is; the envelope's payload where it is left out.
        may data: JsonPath,
    }
}

impl Check for Event {}

table! {
    /// `[[routes]]`: which messages, and what they change. All routes that fit a message apply, in order, as one change.
    Route {
        /// The upstream; its fallbacks too.
        must upstream: UpstreamName,
        /// Only for messages on channels of this pattern.
        may channel: ChannelPattern,
        /// Only for messages of one of these types.
        has name: Vec<Sourced<Text>> = NONE, "every type",
        /// Only for messages for which this holds.
        may when: ConditionText,
        /// Keys that are set.
        table set: Vec<Sourced<Set>>,
        /// Keys that are merged.
        table merge: Vec<Sourced<Merge>>,
        /// Keys that are marked stale.
        table invalidate: Vec<Sourced<Invalidate>>,
        /// An event.
        may event: Event,
    }
}

impl Check for Route {
    fn check(&self, at: &Origin, reader: &mut Reader<'_>) {
        let actions = ["set", "merge", "invalidate", "event"];
        let silent = self.set.is_empty()
            && self.merge.is_empty()
            && self.invalidate.is_empty()
            && self.event.is_none();
        if silent && !actions.iter().any(|action| reader.is_malformed(action)) {
            let problem = Problem::new(ProblemKind::Missing, reader.key(), at.clone(), "changes nothing");
            reader.report(problem.allowed(actions.join(", ")).fix("say what a message changes"));
        }
    }
}

/// What route keys can be filled from.
pub(crate) struct Scope<'a> {
    /// Names that the connection binds.
    pub(crate) parameters: Vec<&'a str>,
    /// What a route takes that does not say more.
    pub(crate) data: String,
}

impl<'a> Scope<'a> {
    pub(crate) fn of(upstream: &'a Upstream) -> Self {
        let data = match upstream {
            Upstream::WebSocket(upstream) => upstream.envelope().data().path().to_string(),
            Upstream::Poll(upstream) => upstream.envelope().data().path().to_string(),
            Upstream::Sse(_) | Upstream::Pusher(_) => "$.data".to_owned(),
        };
        Self { parameters: upstream.parameters(), data }
    }
}

impl Route {
    /// Checks what depends on the upstream. The reader stands at the route.
    pub(crate) fn check_in(&self, scope: &Scope<'_>, reader: &mut Reader<'_>) {
        let mut bound = scope.parameters.clone();
        let own: Vec<String> =
            self.channel.iter().flat_map(|channel| names_of(&channel.pattern().to_string())).collect();
        bound.extend(own.iter().map(String::as_str));
        let per = join(&join("upstreams", self.upstream.as_str()), "per");
        let is_unclear = reader.is_malformed("channel") || reader.is_lost(&per);
        if let (Some(when), false) = (&self.when, is_unclear) {
            bound_names(when, "when", &bound, false, reader);
        }
        let here = format!("{}.", reader.key());
        let mut refuse = |key: String, origin: &Origin, error: RouteError| {
            let problem = match &error {
                RouteError::Unbound(_) if is_unclear => return,
                RouteError::Unbound(name) => {
                    let what = format!("fills in {{{name}}}, and nothing binds it");
                    Problem::new(ProblemKind::Reference, key, origin.clone(), what)
                        .one_of(name, bound.iter().copied())
                        .fix("bind it by the route's `channel` or by `per` of the upstream")
                }
                other => Problem::new(ProblemKind::Value, key, origin.clone(), other.to_string()),
            };
            reader.report(problem);
        };
        for (n, set) in self.set.iter().enumerate() {
            let made = self.head(scope).and_then(|route| add_set(route, set, scope));
            if let Err(error) = made {
                refuse(format!("{here}set[{n}].key"), set.key.origin(), error);
            }
        }
        for (n, merge) in self.merge.iter().enumerate() {
            if let Err(error) =
                self.head(scope).and_then(|route| route.merge(merge.key.json(), &serde_json::Value::Null))
            {
                refuse(format!("{here}merge[{n}].key"), merge.key.origin(), error);
            } else if let Err(error) = self.head(scope).and_then(|route| add_merge(route, merge)) {
                refuse(format!("{here}merge[{n}].value"), merge.value.origin(), error);
            }
        }
        for (n, invalidate) in self.invalidate.iter().enumerate() {
            if let Err(error) = self.head(scope).and_then(|route| add_invalidate(route, invalidate)) {
                refuse(format!("{here}invalidate[{n}].key"), invalidate.key.origin(), error);
            }
        }
    }

    /// The route as the machines of `paceline-channel` apply it.
    pub(crate) fn build(&self, scope: &Scope<'_>) -> Result<route::Route, RouteError> {
        let mut built = self.head(scope)?;
        if let Some(when) = &self.when {
            built = built.when(&when.condition().to_string())?;
        }
        for set in self.set.iter() {
            built = add_set(built, set, scope)?;
        }
        for merge in self.merge.iter() {
            built = add_merge(built, merge)?;
        }
        for invalidate in self.invalidate.iter() {
            built = add_invalidate(built, invalidate)?;
        }
        if let Some(event) = &self.event {
            let data = event.data.as_ref().map_or_else(|| scope.data.clone(), |data| data.path().to_string());
            built = built.event(event.stream.as_str(), &data)?;
        }
        Ok(built)
    }

    fn head(&self, scope: &Scope<'_>) -> Result<route::Route, RouteError> {
        let route = route::Route::new().parameters(scope.parameters.iter().copied());
        let route = route.named(self.name.iter().map(|name| name.as_str()));
        match &self.channel {
            Some(channel) => route.channel(&channel.pattern().to_string()),
            None => Ok(route),
        }
    }
}

fn add_set(route: route::Route, set: &Set, scope: &Scope<'_>) -> Result<route::Route, RouteError> {
    let value = set.value.as_ref().map_or_else(|| scope.data.clone(), |value| value.path().to_string());
    let version = set.version.as_ref().map(|version| version.path().to_string());
    route.set(set.key.json(), &value, version.as_deref())
}

fn add_merge(route: route::Route, merge: &Merge) -> Result<route::Route, RouteError> {
    route.merge(merge.key.json(), merge.value.json())
}

fn add_invalidate(route: route::Route, invalidate: &Invalidate) -> Result<route::Route, RouteError> {
    route.invalidate(invalidate.key.json(), *invalidate.exact.value())
}

/// The names in a pattern, which is valid.
fn names_of(pattern: &str) -> Vec<String> {
    pattern
        .split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .map(|(name, _)| name.to_owned())
        .collect()
}
