//! Routes: what a message changes. One message makes one ordered list of changes, applied as one atom: all routes that
//! fit, in the order of their declaration, then what a closure says.
//!
//! Paths begin at the message as it came, the envelope included. In keys, `{name}` stands for what the pattern of the
//! route's channel bound, or for a parameter of the connection.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use paceline_proto::{
    id::{Stream, Version},
    limits::VALUE_MAX,
    message::Change,
};
use paceline_query::{key::KeyError, number, patch::Patch, pattern::KeyPattern};
use serde_json::Value;

use crate::{
    condition::{Bindings, Condition, ConditionError, Scope},
    path::{Path, PathError},
    pattern::{Pattern, PatternError},
    shape::{KeyShape, Shape},
    template::{FillError, TemplateError},
};

/// Changes of one message. A message that makes more belongs into one value.
pub const CHANGES_MAX: usize = 256;

/// A message as routes see it.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Parsed.
    pub value: &'a Value,
    /// As it came.
    pub raw: &'a Bytes,
}

/// A declaration is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Its condition.
    #[error(transparent)]
    Condition(#[from] ConditionError),
    /// One of its paths.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Its key is no array.
    #[error("read the key of a route: {0}")]
    Key(#[from] KeyError),
    /// A text of its key is no template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Its channel is no pattern.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Its key wants a name that neither its channel nor its connection binds.
    #[error("fill {{{0}}} in a key: neither the route's channel nor its connection binds it")]
    Unbound(String),
}

/// A message does not fit the route that matched. It changes nothing, and the same message will fit no better later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MisfitError {
    /// A path leads nowhere.
    #[error("there is nothing at {0} in the message")]
    Missing(String),
    /// The filled key is not valid.
    #[error("the key filled from the message is not valid: {0}")]
    Key(#[from] KeyError),
    /// A value exceeds `VALUE_MAX`.
    #[error("the value at {path} takes {bytes} bytes, at most {VALUE_MAX} are allowed")]
    TooLong {
        /// Where.
        path: String,
        /// Its size.
        bytes: usize,
    },
    /// A version is neither a whole number nor a text, so that it has no place among the others.
    #[error("the version at {0} is neither a whole number nor a text")]
    Version(String),
    /// More changes than `CHANGES_MAX`.
    #[error("the message makes {0} changes, at most {CHANGES_MAX} are allowed")]
    TooMany(usize),
    /// What the channel bound has no text.
    #[error("the key cannot be filled: {0}")]
    Fill(#[from] FillError),
    /// A change that the closure made exceeds a bound.
    #[error("the closure made a change of {0} bytes, more than is allowed")]
    Closure(usize),
}

/// Where messages say what they are; missing parts are empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The message's type, a text. Default: `$.type`.
    pub name: Path,
    /// The upstream's channel it came on, a text. Default: `$.channel`.
    pub channel: Path,
}

impl Default for Envelope {
    fn default() -> Self {
        Self { name: Path::member("type"), channel: Path::member("channel") }
    }
}

/// A message with what its envelope says.
#[derive(Debug, Clone, Copy)]
struct Letter<'a> {
    message: Message<'a>,
    name: &'a str,
    channel: &'a str,
}

#[derive(Debug, Clone, PartialEq)]
enum Action {
    Set { key: KeyShape, value: Path, version: Option<Path> },
    Merge { key: KeyShape, patch: Shape },
    Invalidate { key: KeyShape, exact: bool },
    Event { stream: Stream, data: Path },
}

impl Action {
    const fn key(&self) -> Option<&KeyShape> {
        match self {
            Self::Set { key, .. } | Self::Merge { key, .. } | Self::Invalidate { key, .. } => Some(key),
            Self::Event { .. } => None,
        }
    }
}

/// A declared route.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Route {
    parameters: Vec<String>,
    channel: Option<Pattern>,
    names: Vec<String>,
    when: Option<Condition>,
    actions: Vec<Action>,
}

impl Route {
    /// A route for every message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only for messages on channels of this pattern, for example `private-org.{org}`. What it binds fills `{org}` in
    /// the keys of the route, and is `key.org` in its condition. Say it before the keys.
    ///
    /// # Errors
    /// When the text is no pattern.
    pub fn channel(mut self, pattern: &str) -> Result<Self, RouteError> {
        self.channel = Some(Pattern::new(pattern)?);
        Ok(self)
    }

    /// Names that the connection binds, one connection for each of their values. Say them before the keys.
    #[must_use]
    pub fn parameters<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.parameters.extend(names.into_iter().map(Into::into));
        self
    }

    /// Only for messages of one of these types.
    #[must_use]
    pub fn named<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.names.extend(names.into_iter().map(Into::into));
        self
    }

    /// Changes the names of types.
    #[must_use]
    pub fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        self.names.iter_mut().for_each(|name| *name = rename(name));
        self
    }

    /// Only for messages for which the condition holds.
    ///
    /// # Errors
    /// When the text is no condition.
    pub fn when(mut self, condition: &str) -> Result<Self, RouteError> {
        self.when = Some(condition.parse()?);
        Ok(self)
    }

    /// Sets a key (a JSON array whose texts may be paths) to the value at a path, with the version at another: a whole
    /// number or a text. A message without one sets a value without version, which never replaces one with.
    ///
    /// # Errors
    /// When the key or a path is not valid.
    pub fn set(self, key: &Value, value: &str, version: Option<&str>) -> Result<Self, RouteError> {
        let version = version.map(str::parse).transpose()?;
        self.act(Action::Set { key: KeyShape::new(key)?, value: value.parse()?, version })
    }

    /// Folds a merge patch, a JSON value whose texts may be paths, onto a key.
    ///
    /// # Errors
    /// As [`Route::set`].
    pub fn merge(self, key: &Value, patch: &Value) -> Result<Self, RouteError> {
        self.act(Action::Merge { key: KeyShape::new(key)?, patch: Shape::new(patch, false)? })
    }

    /// Marks keys at or under a key stale.
    ///
    /// # Errors
    /// As [`Route::set`].
    pub fn invalidate(self, key: &Value, exact: bool) -> Result<Self, RouteError> {
        self.act(Action::Invalidate { key: KeyShape::new(key)?, exact })
    }

    /// Emits what is at a path as an ordered event of a stream.
    ///
    /// # Errors
    /// When the path is not valid.
    pub fn event(self, stream: &str, data: &str) -> Result<Self, RouteError> {
        self.act(Action::Event { stream: stream.into(), data: data.parse()? })
    }

    fn act(mut self, action: Action) -> Result<Self, RouteError> {
        let wanted = action.key().map(KeyShape::names).unwrap_or_default();
        let is_bound = |name: &str| {
            self.parameters.iter().any(|parameter| parameter == name)
                || self.channel.as_ref().is_some_and(|channel| channel.binds(name))
        };
        if let Some(unbound) = wanted.into_iter().find(|name| !is_bound(name)) {
            return Err(RouteError::Unbound(unbound.to_owned()));
        }
        self.actions.push(action);
        Ok(self)
    }

    /// What the pattern of the channel binds, if the message is one for this route.
    fn fits(&self, letter: Letter<'_>, parameters: &Bindings) -> Option<Bindings> {
        if !self.names.is_empty() && !self.names.iter().any(|name| name == letter.name) {
            return None;
        }
        let mut bindings = parameters.clone();
        if let Some(pattern) = &self.channel {
            bindings.extend(pattern.bind(letter.channel)?);
        }
        let scope = Scope { root: letter.message.value, bindings: &bindings, failed: false };
        let holds = self.when.as_ref().is_none_or(|when| when.holds_in(scope));
        holds.then_some(bindings)
    }

    fn apply(
        &self,
        letter: Letter<'_>,
        parameters: &Bindings,
        changes: &mut Vec<Change>,
    ) -> Result<(), MisfitError> {
        let Some(bindings) = self.fits(letter, parameters) else { return Ok(()) };
        let message = letter.message;
        for action in &self.actions {
            changes.push(match action {
                Action::Set { key, value, version } => Change::Set {
                    key: key.fill(message.value, &bindings)?,
                    value: bytes_at(value, message)?,
                    version: match version {
                        Some(path) => version_at(path, message.value)?,
                        None => Version::None,
                    },
                },
                Action::Merge { key, patch } => Change::Merge {
                    key: key.fill(message.value, &bindings)?,
                    patch: Patch::Merge(patch.fill(message.value, &bindings)?).to_bytes().into(),
                },
                Action::Invalidate { key, exact } => {
                    Change::Invalidate { key: key.fill(message.value, &bindings)?, exact: *exact }
                }
                Action::Event { stream, data } => {
                    Change::Event { stream: stream.clone(), data: bytes_at(data, message)? }
                }
            });
        }
        Ok(())
    }
}

fn bytes_at(path: &Path, message: Message<'_>) -> Result<Bytes, MisfitError> {
    let value = path.find(message.value).ok_or_else(|| MisfitError::Missing(path.to_string()))?;
    let bytes =
        if std::ptr::eq(value, message.value) { message.raw.clone() } else { Bytes::from(value.to_string()) };
    if bytes.len() > VALUE_MAX {
        return Err(MisfitError::TooLong { path: path.to_string(), bytes: bytes.len() });
    }
    Ok(bytes)
}

fn version_at(path: &Path, message: &Value) -> Result<Version, MisfitError> {
    let odd = || MisfitError::Version(path.to_string());
    match path.find(message) {
        None | Some(Value::Null) => Ok(Version::None),
        Some(Value::Number(version)) => {
            let whole = number::integer(version).and_then(|whole| u64::try_from(whole).ok());
            whole.map(Version::Number).ok_or_else(odd)
        }
        Some(Value::String(text)) => Ok(Version::Text(text.as_str().into())),
        Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)) => Err(odd()),
    }
}

/// Bytes that a change adds to the wire.
fn size(change: &Change) -> usize {
    match change {
        Change::Set { value, .. } => value.len(),
        Change::Merge { patch, .. } => patch.len(),
        Change::Event { data, .. } => data.len(),
        Change::Invalidate { .. } => 0,
    }
}

/// A user's own routing.
pub type Closure = Arc<dyn Fn(&Value) -> Vec<Change> + Send + Sync>;

/// All routes of an upstream, in order; a closure comes last.
#[derive(Clone, Default)]
pub struct Router {
    envelope: Envelope,
    parameters: Bindings,
    routes: Vec<Route>,
    closure: Option<Closure>,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("routes", &self.routes)
            .field("closure", &self.closure.is_some())
            .finish()
    }
}

impl Router {
    /// Says where messages have their type and channel.
    pub fn set_envelope(&mut self, envelope: Envelope) {
        self.envelope = envelope;
    }

    /// Says what the connection's parameters are bound to.
    pub fn set_parameters(&mut self, parameters: Bindings) {
        self.parameters = parameters;
    }

    /// Adds a declared route.
    pub fn push(&mut self, route: Route) {
        self.routes.push(route);
    }

    /// Sets the closure.
    pub fn set_closure(&mut self, closure: Closure) {
        self.closure = Some(closure);
    }

    /// Whether a message may change a key of the pattern. What a closure changes nobody knows before.
    pub fn feeds(&self, pattern: &KeyPattern) -> bool {
        let Value::Array(segments) = pattern.to_value() else { return false };
        let mut actions = self.routes.iter().flat_map(|route| &route.actions);
        actions.any(|action| match action {
            Action::Set { key, .. } | Action::Merge { key, .. } | Action::Invalidate { key, exact: true } => {
                key.may_meet(&segments, false)
            }
            Action::Invalidate { key, exact: false } => key.may_meet(&segments, true),
            Action::Event { .. } => false,
        })
    }

    /// The channels that routes name, each with the keys that may bind names in it.
    pub(crate) fn wishes(&self) -> impl Iterator<Item = (&Pattern, impl Iterator<Item = &KeyShape>)> {
        self.routes.iter().filter_map(|route| {
            let keys = route.actions.iter().filter_map(Action::key);
            Some((route.channel.as_ref()?, keys))
        })
    }

    /// Everything the message changes, in order.
    ///
    /// # Errors
    /// When it does not fit a route that matched, or a bound: it changes nothing then.
    pub fn changes(&self, message: Message<'_>) -> Result<Vec<Change>, MisfitError> {
        let text = |path: &Path| path.find(message.value).and_then(Value::as_str).unwrap_or_default();
        let letter =
            Letter { message, name: text(&self.envelope.name), channel: text(&self.envelope.channel) };
        let mut changes = Vec::new();
        for route in &self.routes {
            route.apply(letter, &self.parameters, &mut changes)?;
        }
        if let Some(closure) = &self.closure {
            let made = closure(message.value);
            if let Some(bytes) = made.iter().map(size).find(|bytes| *bytes > VALUE_MAX) {
                return Err(MisfitError::Closure(bytes));
            }
            changes.extend(made);
        }
        if changes.len() > CHANGES_MAX {
            return Err(MisfitError::TooMany(changes.len()));
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use paceline_query::key;
    use serde_json::json;

    use super::*;

    fn changes(route: Route, message: &Value) -> Result<Vec<Change>, MisfitError> {
        let mut router = Router::default();
        router.push(route);
        router.changes(Message { value: message, raw: &Bytes::from(message.to_string()) })
    }

    #[test]
    fn one_message_sets_a_key_invalidates_its_list_and_is_an_event() {
        let route = Route::new()
            .when(r#"$.type == "PACKAGE_UPDATE""#)
            .and_then(|r| r.set(&json!(["packages", "$.id"]), "$.data", Some("$.data.updated_at")))
            .and_then(|r| r.invalidate(&json!(["packages"]), false))
            .and_then(|r| r.merge(&json!(["job", "$$x"]), &json!({"done": "$.id", "how": "$$as is"})))
            .and_then(|r| r.event("notices", "$"))
            .unwrap();
        let message = json!({"type":"PACKAGE_UPDATE","id":7,"data":{"updated_at":"2026-01-02T00:00:00Z"}});
        let expected = vec![
            Change::Set {
                key: key!["packages", 7].to_key(),
                value: Bytes::from(message["data"].to_string()),
                version: Version::Text("2026-01-02T00:00:00Z".into()),
            },
            Change::Invalidate { key: key!["packages"].to_key(), exact: false },
            Change::Merge {
                key: key!["job", "$x"].to_key(),
                patch: Patch::merge(json!({"done":7,"how":"$as is"})).to_bytes().into(),
            },
            Change::Event { stream: "notices".into(), data: Bytes::from(message.to_string()) },
        ];
        assert_eq!(changes(route.clone(), &message), Ok(expected));
        assert_eq!(changes(route, &json!({"type":"OTHER"})), Ok(vec![]));
    }

    #[test]
    fn a_message_that_does_not_fit_changes_nothing() {
        let route = Route::new()
            .event("s", "$")
            .and_then(|r| r.set(&json!(["packages", "$.id"]), "$.data", None))
            .unwrap();
        assert_eq!(changes(route, &json!({"id":1})), Err(MisfitError::Missing("$.data".into())));
    }

    #[test]
    fn values_are_bounded() {
        let route = || Route::new().set(&json!(["k"]), "$.d", None).unwrap();
        // Two quotes belong to the text's bytes.
        assert!(changes(route(), &json!({"d":"x".repeat(VALUE_MAX - 2)})).is_ok());
        let over = changes(route(), &json!({"d":"x".repeat(VALUE_MAX - 1)}));
        assert_eq!(over, Err(MisfitError::TooLong { path: "$.d".into(), bytes: VALUE_MAX + 1 }));
    }

    #[test]
    fn a_channel_binds_names_for_keys_and_conditions() {
        let route = || {
            Route::new()
                .named(["LabelApproved", "LabelRejected"])
                .channel("private-org.{org}")
                .and_then(|r| r.when("key.org > 5"))
                .and_then(|r| r.invalidate(&json!(["labels", "{org}", "of-{org}", {"in": "{org}"}]), true))
                .unwrap()
        };
        let message = |name: &str, channel: &str| json!({"type": name, "channel": channel, "data": {}});
        let key = key!["labels", 7, "of-7", { "in": 7 }].to_key();
        let fitting = changes(route(), &message("LabelRejected", "private-org.7"));
        assert_eq!(fitting, Ok(vec![Change::Invalidate { key, exact: true }]));
        for (name, channel) in [
            ("LabelMoved", "private-org.7"),
            ("LabelApproved", "private-org.5"),
            ("LabelApproved", "private-org.7.inventory"),
            ("LabelApproved", "private-transfer.7"),
        ] {
            assert_eq!(changes(route(), &message(name, channel)), Ok(vec![]), "{name} {channel}");
        }
        assert_eq!(changes(route(), &json!([1])), Ok(vec![]), "no envelope at all");
    }

    #[test]
    fn a_connection_binds_its_parameters() {
        let mut router = Router::default();
        router.set_parameters(Bindings::from([("license".to_owned(), json!("A-1"))]));
        let route = Route::new().parameters(["license"]);
        router.push(route.invalidate(&json!(["packages", "{license}"]), false).unwrap());
        let value = json!({});
        let made = router.changes(Message { value: &value, raw: &Bytes::from("{}") });
        let key = key!["packages", "A-1"].to_key();
        assert_eq!(made, Ok(vec![Change::Invalidate { key, exact: false }]));
    }

    #[test]
    fn the_envelope_says_where_type_and_channel_are() {
        let mut router = Router::default();
        router.set_envelope(Envelope { name: "$.e.n".parse().unwrap(), channel: "$.c".parse().unwrap() });
        router.push(Route::new().named(["x"]).channel("{c}").and_then(|r| r.event("s", "$.e")).unwrap());
        let value = json!({"e":{"n":"x"},"c":"any","type":"y"});
        let made = router.changes(Message { value: &value, raw: &Bytes::from(value.to_string()) });
        let data = Bytes::from(r#"{"n":"x"}"#);
        assert_eq!(made, Ok(vec![Change::Event { stream: "s".into(), data }]));
    }

    #[test]
    fn a_version_is_a_whole_number_or_a_text_or_absent() {
        let route = || Route::new().set(&json!(["k"]), "$.v", Some("$.v")).unwrap();
        let version = |message: Value| match changes(route(), &message)?.remove(0) {
            Change::Set { version, .. } => Ok(version),
            other => panic!("{other:?}"),
        };
        assert_eq!(version(json!({"v":7})), Ok(Version::Number(7)));
        assert_eq!(version(json!({"v":7.0})), Ok(Version::Number(7)));
        assert_eq!(version(json!({"v":u64::MAX})), Ok(Version::Number(u64::MAX)));
        assert_eq!(
            version(json!({"v":"2026-01-01T00:00:00Z"})),
            Ok(Version::Text("2026-01-01T00:00:00Z".into()))
        );
        assert_eq!(version(json!({"v":null})), Ok(Version::None));
        for odd in [json!(-1), json!(1.5), json!(true), json!([1]), json!({})] {
            assert_eq!(version(json!({"v":odd})), Err(MisfitError::Version("$.v".into())), "{odd}");
        }
    }

    #[test]
    fn declarations_are_refused_where_they_are_wrong() {
        let unbound =
            Route::new().channel("org.{org}").and_then(|r| r.invalidate(&json!(["{license}"]), true));
        assert_eq!(unbound, Err(RouteError::Unbound("license".into())));
        assert!(matches!(Route::new().set(&json!(["a"]), "data", None), Err(RouteError::Path(_))));
        assert!(matches!(
            Route::new().set(&json!("a"), "$", None),
            Err(RouteError::Key(KeyError::NotAnArray))
        ));
        assert!(matches!(Route::new().set(&json!([]), "$", None), Err(RouteError::Key(KeyError::Empty))));
        assert!(matches!(Route::new().set(&json!(["$x"]), "$", None), Err(RouteError::Path(_))));
        assert!(matches!(Route::new().merge(&json!(["a"]), &json!({"b":"$["})), Err(RouteError::Path(_))));
        assert!(matches!(Route::new().when("$.a"), Err(RouteError::Condition(_))));
        assert!(matches!(
            Route::new().invalidate(&json!(["{secret:x}"]), true),
            Err(RouteError::Template(_))
        ));
        // In values braces are text.
        assert!(Route::new().merge(&json!(["a"]), &json!("{b}")).is_ok());
    }

    #[test]
    fn a_route_feeds_the_resources_whose_keys_it_may_change() {
        let mut router = Router::default();
        let route = Route::new().parameters(["org"]).event("s", "$");
        let route = route.and_then(|route| route.set(&json!(["packages", "$.id"]), "$", None));
        let route = route.and_then(|route| route.merge(&json!(["job", "{org}", "x"]), &json!({})));
        let route = route.and_then(|route| route.invalidate(&json!(["labels"]), false));
        router.push(route.and_then(|route| route.invalidate(&json!(["exact"]), true)).unwrap());
        for (pattern, feeds) in [
            (json!(["packages", "{id}"]), true),
            (json!(["packages", 7]), true),
            (json!(["packages", ".."]), true),
            (json!(["{any}", ".."]), true),
            (json!(["packages"]), false),
            (json!(["packages", "{id}", "history"]), false),
            (json!(["job", 7, "x"]), true),
            (json!(["job", 7, "y"]), false),
            (json!(["labels", "{org}", "{filter}"]), true),
            (json!(["exact", "{id}"]), false),
            (json!(["exact"]), true),
            (json!(["other", ".."]), false),
        ] {
            let read = KeyPattern::new(pattern.as_array().unwrap()).unwrap();
            assert_eq!(router.feeds(&read), feeds, "{pattern}");
        }
    }

    #[test]
    fn routes_apply_in_order_then_the_closure_and_all_or_nothing() {
        let mut router = Router::default();
        for stream in ["one", "two"] {
            router.push(Route::new().event(stream, "$").unwrap());
        }
        let change =
            |stream: &str, data: &'static str| Change::Event { stream: stream.into(), data: data.into() };
        router.set_closure(Arc::new(move |message| match message["n"].as_u64() {
            Some(0) => vec![Change::Event { stream: "big".into(), data: vec![b'1'; VALUE_MAX + 1].into() }],
            Some(n) => (0..n).map(|_| change("three", "3")).collect(),
            None => Vec::new(),
        }));
        let made = |text: &'static str| {
            let value = serde_json::from_str(text).unwrap();
            router.changes(Message { value: &value, raw: &Bytes::from(text) })
        };
        let expected = [change("one", r#"{"n":1}"#), change("two", r#"{"n":1}"#), change("three", "3")];
        assert_eq!(made(r#"{"n":1}"#), Ok(expected.to_vec()));
        assert_eq!(made(r#"{"n":0}"#), Err(MisfitError::Closure(VALUE_MAX + 1)));
        assert_eq!(made(r#"{"n":254}"#).map(|all| all.len()), Ok(CHANGES_MAX));
        assert_eq!(made(r#"{"n":255}"#), Err(MisfitError::TooMany(CHANGES_MAX + 1)));
    }
}
