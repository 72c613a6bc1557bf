//! Patches are data: they cross processes, are kept, and are folded again by a new primary.
//!
//! List operations name elements by identity, not by index: two concurrent prepends both apply and can be taken back
//! independently, which positions cannot express.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Depth of a value that a patch may touch.
pub const DEPTH_MAX: usize = 64;

/// A change to a JSON value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Patch {
    /// JSON merge patch, RFC 7396.
    Merge(Value),
    /// A subset of JSON patch, RFC 6902: all or nothing.
    Ops(Vec<Op>),
    /// A change to a list, by identity.
    List {
        /// JSON pointer (RFC 6901) to the list; empty = the value itself.
        at: String,
        /// What to do.
        change: ListChange,
    },
}

/// One operation of RFC 6902.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Op {
    /// Insert or set.
    Add {
        /// JSON pointer.
        path: String,
        /// The value.
        value: Value,
    },
    /// Remove; it must be there.
    Remove {
        /// JSON pointer.
        path: String,
    },
    /// Replace; it must be there.
    Replace {
        /// JSON pointer.
        path: String,
        /// The value.
        value: Value,
    },
    /// Fail unless equal.
    Test {
        /// JSON pointer.
        path: String,
        /// The value.
        value: Value,
    },
}

/// A change to a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListChange {
    /// Put in front.
    Prepend(Value),
    /// Put at the end.
    Append(Value),
    /// Replace the element whose member `by` equals `id`; no such element = no change.
    ReplaceWhere {
        /// Name of the identifying member.
        by: String,
        /// Its value.
        id: Value,
        /// The new element.
        item: Value,
    },
    /// Remove the elements whose member `by` equals `id`.
    RemoveWhere {
        /// Name of the identifying member.
        by: String,
        /// Its value.
        id: Value,
    },
}

/// A patch does not fit. The value did not change, and a retry helps only on another value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The bytes are not a patch.
    #[error("read the patch: {0}")]
    Patch(String),
    /// The value is not JSON.
    #[error("read the value: {0}")]
    Value(String),
    /// The pointer leads nowhere.
    #[error("find {0}: there is nothing")]
    Missing(String),
    /// What the pointer leads to is not a list.
    #[error("change the list at {0:?}: it is no list")]
    NotAList(String),
    /// The pointer does not begin with a slash, or an index is no index.
    #[error("follow {0}: it is no JSON pointer into the value")]
    Pointer(String),
    /// A test failed.
    #[error("test {0}: it is not equal")]
    TestFailed(String),
    /// The value nests too deeply.
    #[error("patch a value that nests more than {DEPTH_MAX} deep")]
    TooDeep,
}

impl Patch {
    /// A merge patch of any serialisable value; what cannot be serialised becomes null.
    pub fn merge(value: impl Serialize) -> Self {
        Self::Merge(serde_json::to_value(value).unwrap_or(Value::Null))
    }

    /// Puts `item` in front of the list at `at`.
    pub fn prepend(at: impl Into<String>, item: impl Into<Value>) -> Self {
        Self::List { at: at.into(), change: ListChange::Prepend(item.into()) }
    }

    /// Puts `item` at the end of the list at `at`.
    pub fn append(at: impl Into<String>, item: impl Into<Value>) -> Self {
        Self::List { at: at.into(), change: ListChange::Append(item.into()) }
    }

    /// Replaces the element of the list at `at` whose member `by` is `id`.
    pub fn replace_where(
        at: impl Into<String>,
        by: impl Into<String>,
        id: impl Into<Value>,
        item: impl Into<Value>,
    ) -> Self {
        let change = ListChange::ReplaceWhere { by: by.into(), id: id.into(), item: item.into() };
        Self::List { at: at.into(), change }
    }

    /// Removes the elements of the list at `at` whose member `by` is `id`.
    pub fn remove_where(at: impl Into<String>, by: impl Into<String>, id: impl Into<Value>) -> Self {
        Self::List { at: at.into(), change: ListChange::RemoveWhere { by: by.into(), id: id.into() } }
    }

    /// The patch as bytes, JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Values and strings only: nothing in it can fail to serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what [`Patch::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`PatchError::Patch`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PatchError> {
        serde_json::from_slice(bytes).map_err(|error| PatchError::Patch(error.to_string()))
    }

    /// The value after the patch; no value counts as null.
    ///
    /// # Errors
    /// See [`PatchError`]; the value stays as it was.
    pub fn apply(&self, old: Option<&[u8]>) -> Result<Vec<u8>, PatchError> {
        let mut value = match old {
            Some(bytes) => serde_json::from_slice(bytes).map_err(|error| PatchError::Value(error.to_string()))?,
            None => Value::Null,
        };
        match self {
            Self::Merge(patch) => merge(&mut value, patch, 0)?,
            Self::Ops(ops) => ops.iter().try_for_each(|op| op.apply(&mut value))?,
            Self::List { at, change } => change.apply(&mut value, at)?,
        }
        serde_json::to_vec(&value).map_err(|error| PatchError::Value(error.to_string()))
    }
}

/// RFC 7396, section 2.
fn merge(target: &mut Value, patch: &Value, depth: usize) -> Result<(), PatchError> {
    if depth > DEPTH_MAX {
        return Err(PatchError::TooDeep);
    }
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return Ok(()) };
    for (name, change) in changes {
        if change.is_null() {
            members.remove(name);
        } else {
            merge(members.entry(name.clone()).or_insert(Value::Null), change, depth + 1)?;
        }
    }
    Ok(())
}

impl Op {
    fn apply(&self, value: &mut Value) -> Result<(), PatchError> {
        match self {
            Self::Add { path, value: new } => add(value, path, new.clone()),
            Self::Remove { path } => remove(value, path).map(drop),
            Self::Replace { path, value: new } => {
                *value.pointer_mut(path).ok_or_else(|| PatchError::Missing(path.clone()))? = new.clone();
                Ok(())
            }
            Self::Test { path, value: expected } => match value.pointer(path) {
                Some(found) if found == expected => Ok(()),
                Some(_) => Err(PatchError::TestFailed(path.clone())),
                None => Err(PatchError::Missing(path.clone())),
            },
        }
    }
}

/// The container a pointer's last token is in, and that token.
fn parent<'a>(value: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), PatchError> {
    let (head, last) = path.rsplit_once('/').ok_or_else(|| PatchError::Pointer(path.to_owned()))?;
    let container = value.pointer_mut(head).ok_or_else(|| PatchError::Missing(head.to_owned()))?;
    Ok((container, last.replace("~1", "/").replace("~0", "~")))
}

fn add(value: &mut Value, path: &str, new: Value) -> Result<(), PatchError> {
    if path.is_empty() {
        *value = new;
        return Ok(());
    }
    let (container, token) = parent(value, path)?;
    match container {
        Value::Object(members) => {
            members.insert(token, new);
            Ok(())
        }
        Value::Array(items) if token == "-" => {
            items.push(new);
            Ok(())
        }
        Value::Array(items) => match token.parse::<usize>() {
            Ok(at) if at <= items.len() => {
                items.insert(at, new);
                Ok(())
            }
            _ => Err(PatchError::Pointer(path.to_owned())),
        },
        _ => Err(PatchError::Pointer(path.to_owned())),
    }
}

fn remove(value: &mut Value, path: &str) -> Result<Value, PatchError> {
    let missing = || PatchError::Missing(path.to_owned());
    let (container, token) = parent(value, path)?;
    match container {
        Value::Object(members) => members.remove(&token).ok_or_else(missing),
        Value::Array(items) => match token.parse::<usize>() {
            Ok(at) if at < items.len() => Ok(items.remove(at)),
            _ => Err(missing()),
        },
        _ => Err(missing()),
    }
}

impl ListChange {
    fn apply(&self, value: &mut Value, at: &str) -> Result<(), PatchError> {
        let target = value.pointer_mut(at).ok_or_else(|| PatchError::Missing(at.to_owned()))?;
        if target.is_null() {
            *target = Value::Array(Vec::new());
        }
        let Value::Array(items) = target else { return Err(PatchError::NotAList(at.to_owned())) };
        match self {
            Self::Prepend(item) => items.insert(0, item.clone()),
            Self::Append(item) => items.push(item.clone()),
            Self::ReplaceWhere { by, id, item } => {
                if let Some(found) = items.iter_mut().find(|element| element.get(by) == Some(id)) {
                    *found = item.clone();
                }
            }
            Self::RemoveWhere { by, id } => items.retain(|element| element.get(by) != Some(id)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn apply(patch: &Patch, old: &Value) -> Result<Value, PatchError> {
        // Through the wire and back, as it always travels.
        let patch = Patch::from_bytes(&patch.to_bytes())?;
        let bytes = patch.apply(Some(old.to_string().as_bytes()))?;
        Ok(serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn merge_follows_the_examples_of_rfc_7396() {
        // Appendix A of the RFC.
        let cases = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a","b"]), json!(["c","d"]), json!(["c","d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1,2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ];
        for (old, patch, expected) in cases {
            assert_eq!(apply(&Patch::Merge(patch.clone()), &old), Ok(expected), "{old} + {patch}");
        }
    }

    #[test]
    fn operations_apply_all_or_nothing() {
        let old = json!({"a":[1,2],"b/c":{"x":1}});
        let ops = Patch::Ops(vec![
            Op::Test { path: "/a/0".into(), value: json!(1) },
            Op::Add { path: "/a/1".into(), value: json!(9) },
            Op::Add { path: "/a/-".into(), value: json!(3) },
            Op::Remove { path: "/b~1c/x".into() },
            Op::Replace { path: "/a/0".into(), value: json!(0) },
        ]);
        assert_eq!(apply(&ops, &old), Ok(json!({"a":[0,9,2,3],"b/c":{}})));
        let failing = Patch::Ops(vec![
            Op::Replace { path: "/a/0".into(), value: json!(5) },
            Op::Test { path: "/a/1".into(), value: json!(77) },
        ]);
        assert_eq!(apply(&failing, &old), Err(PatchError::TestFailed("/a/1".into())));
        let outside = Patch::Ops(vec![Op::Add { path: "/a/3".into(), value: json!(0) }]);
        assert_eq!(apply(&outside, &old), Err(PatchError::Pointer("/a/3".into())));
    }

    #[test]
    fn list_changes_name_elements_by_identity() {
        let old = json!({"items":[{"id":1},{"id":2}]});
        let two = apply(&Patch::prepend("/items", json!({"id":3})), &old).unwrap();
        let three = apply(&Patch::prepend("/items", json!({"id":4})), &two).unwrap();
        let back = apply(&Patch::remove_where("/items", "id", 3), &three).unwrap();
        assert_eq!(back, json!({"items":[{"id":4},{"id":1},{"id":2}]}));
        let replaced = apply(&Patch::replace_where("/items", "id", 2, json!({"id":2,"n":1})), &old).unwrap();
        assert_eq!(replaced, json!({"items":[{"id":1},{"id":2,"n":1}]}));
        assert_eq!(apply(&Patch::append("/items/0", json!(1)), &old), Err(PatchError::NotAList("/items/0".into())));
        assert_eq!(Patch::append("", json!(1)).apply(None), Ok(b"[1]".to_vec()));
    }
}
