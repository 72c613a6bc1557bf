//! Routes: what a message changes. One message makes one ordered list of changes, applied as one atom.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use paceline_proto::{
    id::{Key, Stream, Version},
    limits::VALUE_MAX,
    message::Change,
};
use paceline_query::{
    key::{KeyError, QueryKey},
    patch::Patch,
};
use serde_json::Value;

use crate::{
    condition::{Condition, ConditionError},
    path::{Path, PathError},
};

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
}

/// A message does not fit the route that matched. It changes nothing.
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
}

/// A template in which texts that are paths stand for what they lead to. `$$` begins a text with one `$`.
#[derive(Debug, Clone, PartialEq)]
enum Template {
    Literal(Value),
    Path(Path),
    List(Vec<Template>),
    Members(Vec<(String, Template)>),
}

impl Template {
    fn new(value: &Value) -> Result<Self, PathError> {
        Ok(match value {
            Value::String(text) if text.starts_with("$$") => Self::Literal(Value::from(&text[1..])),
            Value::String(text) if text.starts_with('$') => Self::Path(text.parse()?),
            Value::Array(items) => Self::List(items.iter().map(Self::new).collect::<Result<_, _>>()?),
            Value::Object(members) => Self::Members(
                members
                    .iter()
                    .map(|(name, member)| Ok((name.clone(), Self::new(member)?)))
                    .collect::<Result<_, PathError>>()?,
            ),
            other => Self::Literal(other.clone()),
        })
    }

    fn fill(&self, message: &Value) -> Result<Value, MisfitError> {
        Ok(match self {
            Self::Literal(value) => value.clone(),
            Self::Path(path) => {
                path.find(message).cloned().ok_or_else(|| MisfitError::Missing(path.to_string()))?
            }
            Self::List(items) => {
                Value::Array(items.iter().map(|item| item.fill(message)).collect::<Result<_, _>>()?)
            }
            Self::Members(members) => Value::Object(
                members
                    .iter()
                    .map(|(name, member)| Ok((name.clone(), member.fill(message)?)))
                    .collect::<Result<_, MisfitError>>()?,
            ),
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
struct KeyTemplate(Vec<Template>);

impl KeyTemplate {
    fn new(key: &Value) -> Result<Self, RouteError> {
        let segments = key.as_array().ok_or(KeyError::NotAnArray)?;
        Ok(Self(segments.iter().map(Template::new).collect::<Result<_, _>>()?))
    }

    fn fill(&self, message: &Value) -> Result<Key, MisfitError> {
        let segments = self.0.iter().map(|part| part.fill(message)).collect::<Result<Vec<_>, _>>()?;
        Ok(QueryKey::new(&segments)?.to_key())
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Action {
    Set { key: KeyTemplate, value: Path, version: Option<Path> },
    Merge { key: KeyTemplate, patch: Template },
    Invalidate { key: KeyTemplate, exact: bool },
    Event { stream: Stream, data: Path },
}

/// A declared route.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Route {
    when: Option<Condition>,
    actions: Vec<Action>,
}

impl Route {
    /// A route for every message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only for messages for which the condition holds.
    ///
    /// # Errors
    /// When the text is no condition.
    pub fn when(mut self, condition: &str) -> Result<Self, RouteError> {
        self.when = Some(condition.parse()?);
        Ok(self)
    }

    /// Sets a key (a JSON array whose texts may be paths) to the value at a path, with the version at another.
    ///
    /// # Errors
    /// When the key or a path is not valid.
    pub fn set(mut self, key: &Value, value: &str, version: Option<&str>) -> Result<Self, RouteError> {
        let version = version.map(str::parse).transpose()?;
        self.actions.push(Action::Set { key: KeyTemplate::new(key)?, value: value.parse()?, version });
        Ok(self)
    }

    /// Folds a merge patch, a JSON value whose texts may be paths, onto a key.
    ///
    /// # Errors
    /// As [`Route::set`].
    pub fn merge(mut self, key: &Value, patch: &Value) -> Result<Self, RouteError> {
        self.actions.push(Action::Merge { key: KeyTemplate::new(key)?, patch: Template::new(patch)? });
        Ok(self)
    }

    /// Marks keys at or under a key stale.
    ///
    /// # Errors
    /// As [`Route::set`].
    pub fn invalidate(mut self, key: &Value, exact: bool) -> Result<Self, RouteError> {
        self.actions.push(Action::Invalidate { key: KeyTemplate::new(key)?, exact });
        Ok(self)
    }

    /// Emits what is at a path as an ordered event of a stream.
    ///
    /// # Errors
    /// When the path is not valid.
    pub fn event(mut self, stream: &str, data: &str) -> Result<Self, RouteError> {
        self.actions.push(Action::Event { stream: stream.into(), data: data.parse()? });
        Ok(self)
    }

    fn apply(&self, message: Message<'_>, changes: &mut Vec<Change>) -> Result<(), MisfitError> {
        if self.when.as_ref().is_some_and(|when| !when.holds(message.value)) {
            return Ok(());
        }
        for action in &self.actions {
            changes.push(match action {
                Action::Set { key, value, version } => Change::Set {
                    key: key.fill(message.value)?,
                    value: bytes_at(value, message)?,
                    version: version.as_ref().map_or(Version::None, |path| version_at(path, message.value)),
                },
                Action::Merge { key, patch } => Change::Merge {
                    key: key.fill(message.value)?,
                    patch: Patch::Merge(patch.fill(message.value)?).to_bytes().into(),
                },
                Action::Invalidate { key, exact } => {
                    Change::Invalidate { key: key.fill(message.value)?, exact: *exact }
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
    let bytes = if std::ptr::eq(value, message.value) {
        message.raw.clone()
    } else {
        Bytes::from(value.to_string())
    };
    if bytes.len() > VALUE_MAX {
        return Err(MisfitError::TooLong { path: path.to_string(), bytes: bytes.len() });
    }
    Ok(bytes)
}

fn version_at(path: &Path, message: &Value) -> Version {
    match path.find(message) {
        Some(Value::Number(number)) => number.as_u64().map_or(Version::None, Version::Number),
        Some(Value::String(text)) => Version::Text(text.as_str().into()),
        _ => Version::None,
    }
}

/// A user's own routing.
pub type Closure = Arc<dyn Fn(&Value) -> Vec<Change> + Send + Sync>;

/// All routes of an upstream, in order; a closure comes last.
#[derive(Clone, Default)]
pub struct Router {
    routes: Vec<Route>,
    closure: Option<Closure>,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("routes", &self.routes).field("closure", &self.closure.is_some()).finish()
    }
}

impl Router {
    /// Adds a declared route.
    pub fn push(&mut self, route: Route) {
        self.routes.push(route);
    }

    /// Sets the closure.
    pub fn set_closure(&mut self, closure: Closure) {
        self.closure = Some(closure);
    }

    /// Everything the message changes, in order.
    ///
    /// # Errors
    /// When it does not fit a route that matched: it changes nothing then.
    pub fn changes(&self, message: Message<'_>) -> Result<Vec<Change>, MisfitError> {
        let mut changes = Vec::new();
        for route in &self.routes {
            route.apply(message, &mut changes)?;
        }
        if let Some(closure) = &self.closure {
            changes.extend(closure(message.value));
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
}
