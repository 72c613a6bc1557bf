//! Patches are data: they cross processes, are kept, and are folded again by a new primary.
//!
//! List operations name elements by identity, not by index: two concurrent prepends both apply and can be taken back
//! independently, which positions cannot express.
//!
//! Members of the result are in the order of their names. Numbers keep their value up to 64 bits.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::number;

/// Nested arrays and objects of a patch, and of the value it makes. Well below the 128 that the JSON reader takes, so
/// that what one patch made the next one can read.
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
    /// Put in front. A missing or null list counts as empty.
    Prepend(Value),
    /// Put at the end. A missing or null list counts as empty.
    Append(Value),
    /// Replace the first element whose member `by` equals `id`; no such element = no change.
    ReplaceWhere {
        /// Name of the identifying member.
        by: String,
        /// Its value.
        id: Value,
        /// The new element.
        item: Value,
    },
    /// Remove the elements whose member `by` equals `id`; no such element = no change.
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
    /// The patch, or the value it would make, nests too deeply.
    #[error("patch to a depth of more than {DEPTH_MAX} nested lists and objects")]
    TooDeep,
}

impl Patch {
    /// A merge patch of any serialisable value; what cannot be serialised becomes null.
    pub fn merge(value: impl Serialize) -> Self {
        Self::Merge(serde_json::to_value(value).unwrap_or(Value::Null))
    }

    /// A patch that makes the whole value this one, whatever it was; what cannot be serialised becomes null.
    pub fn replace(value: impl Serialize) -> Self {
        let value = serde_json::to_value(value).unwrap_or(Value::Null);
        Self::Ops(vec![Op::Add { path: String::new(), value }])
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
    /// [`PatchError::Patch`], [`PatchError::TooDeep`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PatchError> {
        let patch: Self =
            serde_json::from_slice(bytes).map_err(|error| PatchError::Patch(error.to_string()))?;
        if patch.values().any(|value| is_deeper(value, DEPTH_MAX)) {
            return Err(PatchError::TooDeep);
        }
        Ok(patch)
    }

    fn values(&self) -> impl Iterator<Item = &Value> {
        let (one, many) = match self {
            Self::Merge(value) => (Some(value), [].as_slice()),
            Self::Ops(ops) => (None, ops.as_slice()),
            Self::List { change, .. } => (change.item(), [].as_slice()),
        };
        one.into_iter().chain(many.iter().filter_map(Op::value))
    }

    /// The value after the patch; no value counts as null. Nothing is applied in part.
    ///
    /// # Errors
    /// See [`PatchError`]; the value stays as it was.
    pub fn apply(&self, old: Option<&[u8]>) -> Result<Vec<u8>, PatchError> {
        let value = match old {
            Some(bytes) => {
                serde_json::from_slice(bytes).map_err(|error| PatchError::Value(error.to_string()))?
            }
            None => Value::Null,
        };
        let value = self.apply_to(value)?;
        serde_json::to_vec(&value).map_err(|error| PatchError::Value(error.to_string()))
    }

    /// The same for a value that was read already.
    ///
    /// # Errors
    /// See [`PatchError`].
    pub fn apply_to(&self, mut value: Value) -> Result<Value, PatchError> {
        match self {
            Self::Merge(patch) => merge(&mut value, patch, 0)?,
            Self::Ops(ops) => ops.iter().try_for_each(|op| op.apply(&mut value))?,
            Self::List { at, change } => change.apply(&mut value, at)?,
        }
        if is_deeper(&value, DEPTH_MAX) { Err(PatchError::TooDeep) } else { Ok(value) }
    }
}

/// Whether the value nests more than `depth` lists and objects. Looks no deeper than that.
fn is_deeper(value: &Value, depth: usize) -> bool {
    let inside = |value: &Value| depth == 0 || is_deeper(value, depth - 1);
    match value {
        Value::Array(items) => depth == 0 || items.iter().any(inside),
        Value::Object(members) => depth == 0 || members.values().any(inside),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// An index as JSON pointers write it: digits without a leading zero.
fn index(token: &str) -> Option<usize> {
    let plain = token == "0" || token.starts_with(|first: char| matches!(first, '1'..='9'));
    token.parse().ok().filter(|_| plain)
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
    fn value(&self) -> Option<&Value> {
        match self {
            Self::Add { value, .. } | Self::Replace { value, .. } | Self::Test { value, .. } => Some(value),
            Self::Remove { .. } => None,
        }
    }

    fn apply(&self, value: &mut Value) -> Result<(), PatchError> {
        match self {
            Self::Add { path, value: new } => add(value, path, new.clone()),
            Self::Remove { path } => remove(value, path).map(drop),
            Self::Replace { path, value: new } => {
                *value.pointer_mut(path).ok_or_else(|| PatchError::Missing(path.clone()))? = new.clone();
                Ok(())
            }
            Self::Test { path, value: expected } => match value.pointer(path) {
                Some(found) if number::equal(found, expected) => Ok(()),
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
        Value::Array(items) => match index(&token) {
            Some(at) if at <= items.len() => {
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
        Value::Array(items) => match index(&token) {
            Some(at) if at < items.len() => Ok(items.remove(at)),
            _ => Err(missing()),
        },
        _ => Err(missing()),
    }
}

impl ListChange {
    fn item(&self) -> Option<&Value> {
        match self {
            Self::Prepend(item) | Self::Append(item) | Self::ReplaceWhere { item, .. } => Some(item),
            Self::RemoveWhere { .. } => None,
        }
    }

    fn apply(&self, value: &mut Value, at: &str) -> Result<(), PatchError> {
        if value.pointer(at).is_none_or(Value::is_null) {
            // A new list begins with its first element; where there is no list, nobody is to be replaced or removed.
            return match self {
                Self::Prepend(item) | Self::Append(item) => add(value, at, Value::Array(vec![item.clone()])),
                Self::ReplaceWhere { .. } | Self::RemoveWhere { .. } => Ok(()),
            };
        }
        let target = value.pointer_mut(at);
        let Some(Value::Array(items)) = target else { return Err(PatchError::NotAList(at.to_owned())) };
        let is_meant = |element: &Value, by: &str, id: &Value| {
            element.get(by).is_some_and(|found| number::equal(found, id))
        };
        match self {
            Self::Prepend(item) => items.insert(0, item.clone()),
            Self::Append(item) => items.push(item.clone()),
            Self::ReplaceWhere { by, id, item } => {
                if let Some(found) = items.iter_mut().find(|element| is_meant(element, by, id)) {
                    *found = item.clone();
                }
            }
            Self::RemoveWhere { by, id } => items.retain(|element| !is_meant(element, by, id)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
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
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
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
        assert_eq!(
            apply(&Patch::append("/items/0", json!(1)), &old),
            Err(PatchError::NotAList("/items/0".into()))
        );
        assert_eq!(Patch::append("", json!(1)).apply(None), Ok(b"[1]".to_vec()));
    }

    #[test]
    fn lists_begin_with_their_first_element_and_nothing_else_makes_one() {
        let item = || json!({"id":1});
        assert_eq!(apply(&Patch::append("/items", item()), &json!({})), Ok(json!({"items":[{"id":1}]})));
        assert_eq!(
            apply(&Patch::prepend("/items", item()), &json!({"items":null})),
            Ok(json!({"items":[{"id":1}]}))
        );
        assert_eq!(apply(&Patch::remove_where("/items", "id", 1), &json!({})), Ok(json!({})));
        assert_eq!(apply(&Patch::replace_where("/a/b", "id", 1, item()), &json!(null)), Ok(json!(null)));
        assert_eq!(apply(&Patch::append("/a/b", item()), &json!({})), Err(PatchError::Missing("/a".into())));
        assert_eq!(
            apply(&Patch::append("/a", item()), &json!({"a":7})),
            Err(PatchError::NotAList("/a".into()))
        );
    }

    #[test]
    fn numbers_are_compared_by_value() {
        let list = json!([{"id":7.0},{"id":9_007_199_254_740_993_u64}]);
        assert_eq!(
            apply(&Patch::remove_where("", "id", 7), &list),
            Ok(json!([{"id":9_007_199_254_740_993_u64}]))
        );
        let neighbour = Patch::remove_where("", "id", 9_007_199_254_740_992_u64);
        assert_eq!(apply(&neighbour, &list), Ok(list.clone()));
        let test = Patch::Ops(vec![Op::Test { path: String::new(), value: json!({"a":[1.0, u64::MAX]}) }]);
        assert!(apply(&test, &json!({"a":[1, u64::MAX]})).is_ok());
        assert!(apply(&test, &json!({"a":[1, u64::MAX - 1]})).is_err());
    }

    #[test]
    fn pointers_follow_rfc_6901() {
        let old = json!({"a":[1,2],"m~n":1,"":2});
        let remove = |path: &str| apply(&Patch::Ops(vec![Op::Remove { path: path.into() }]), &old);
        assert_eq!(remove("/m~0n"), Ok(json!({"a":[1,2],"":2})));
        assert_eq!(remove("/"), Ok(json!({"a":[1,2],"m~n":1})));
        for path in ["/a/01", "/a/+1", "/a/-1", "/a/2", "/b"] {
            assert_eq!(remove(path), Err(PatchError::Missing(path.into())));
        }
        assert_eq!(remove("a"), Err(PatchError::Pointer("a".into())));
    }

    #[test]
    fn depth_is_bounded_just_outside_and_not_just_inside() {
        let nest = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        for patch in [Patch::Merge as fn(Value) -> Patch, |value| Patch::append("", value)] {
            let under = if patch(json!(1)) == Patch::Merge(json!(1)) { DEPTH_MAX } else { DEPTH_MAX - 1 };
            let made = patch(nest(under)).apply(None).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&made).unwrap(), nest(DEPTH_MAX));
            assert_eq!(patch(nest(under + 1)).apply(None), Err(PatchError::TooDeep));
        }
        assert!(Patch::from_bytes(&Patch::Merge(nest(DEPTH_MAX)).to_bytes()).is_ok());
        assert_eq!(
            Patch::from_bytes(&Patch::Merge(nest(DEPTH_MAX + 1)).to_bytes()),
            Err(PatchError::TooDeep)
        );
        let hostile = format!(r#"{{"merge":{}"#, "[".repeat(100_000));
        assert!(matches!(Patch::from_bytes(hostile.as_bytes()), Err(PatchError::Patch(_))));
    }

    #[test]
    fn the_bytes_on_the_wire_are_fixed() {
        let cases = [
            (Patch::merge(json!({"a":null})), r#"{"merge":{"a":null}}"#),
            (
                Patch::Ops(vec![
                    Op::Test { path: "/a".into(), value: json!(1) },
                    Op::Remove { path: "/a".into() },
                ]),
                r#"{"ops":[{"op":"test","path":"/a","value":1},{"op":"remove","path":"/a"}]}"#,
            ),
            (Patch::prepend("/l", 1), r#"{"list":{"at":"/l","change":{"prepend":1}}}"#),
            (Patch::append("/l", 1), r#"{"list":{"at":"/l","change":{"append":1}}}"#),
            (
                Patch::replace_where("", "id", 1, 2),
                r#"{"list":{"at":"","change":{"replace_where":{"by":"id","id":1,"item":2}}}}"#,
            ),
            (
                Patch::remove_where("", "id", 1),
                r#"{"list":{"at":"","change":{"remove_where":{"by":"id","id":1}}}}"#,
            ),
        ];
        for (patch, bytes) in cases {
            assert_eq!(String::from_utf8(patch.to_bytes()).unwrap(), bytes);
            assert_eq!(Patch::from_bytes(bytes.as_bytes()), Ok(patch));
        }
        assert!(Patch::from_bytes(br#"{"merge":1,"ops":[]}"#).is_err());
        assert!(Patch::from_bytes(br#"{"splice":1}"#).is_err());
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(Value::Null), (0..4).prop_map(Value::from), "[ab]{0,2}".prop_map(Value::from)];
        leaf.prop_recursive(3, 16, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[abc]", inner, 0..3)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// Section 2 of RFC 7396, word for word and without regard to cost.
    fn merge_as_specified(target: &Value, patch: &Value) -> Value {
        let Value::Object(changes) = patch else { return patch.clone() };
        let mut result = target.as_object().cloned().unwrap_or_default();
        for (name, change) in changes {
            if change.is_null() {
                result.remove(name);
            } else {
                let merged = merge_as_specified(result.get(name).unwrap_or(&Value::Null), change);
                result.insert(name.clone(), merged);
            }
        }
        Value::Object(result)
    }

    proptest! {
        #[test]
        fn merge_is_what_the_rfc_says_and_once_more_changes_nothing(old in json_value(), patch in json_value()) {
            let expected = merge_as_specified(&old, &patch);
            let merged = apply(&Patch::Merge(patch.clone()), &old).unwrap();
            prop_assert_eq!(&merged, &expected);
            prop_assert_eq!(apply(&Patch::Merge(patch), &merged), Ok(merged));
        }

        #[test]
        fn concurrent_prepends_are_taken_back_independently(ids in prop::collection::btree_set(0_u32..100, 2..8)) {
            let item = |id: u32| json!({"id":id});
            let all = ids.iter().fold(json!([]), |list, id| apply(&Patch::prepend("", item(*id)), &list).unwrap());
            for gone in &ids {
                let without = apply(&Patch::remove_where("", "id", *gone), &all).unwrap();
                let expected: Vec<Value> = ids.iter().rev().filter(|id| *id != gone).map(|id| item(*id)).collect();
                prop_assert_eq!(without, Value::from(expected));
            }
        }
    }
}
