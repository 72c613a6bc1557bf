//! Which queries are meant: filters that combine by "and", and keys that match in part.
//!
//! In part, a key matches a filter if each segment of the filter matches the one of the key in its place. Scalars match what
//! is equal to them, null only null. A list matches a list that begins with what it has, an object one that has at least its
//! members, at every depth; between a list and an object, the members of a list are its indexes. These are the rules of
//! TanStack Query.

use paceline_proto::{fetch::FetchStatus, id::Key};
use serde_json::Value;

use crate::{index::Index, key::QueryKey, number};

/// What is meant. The default means every query.
#[derive(Clone, Copy, Default)]
pub struct Filter<'a> {
    /// Keys that match this one in part.
    pub key: Option<&'a QueryKey>,
    /// Only the key itself.
    pub exact: bool,
    /// Whether somebody subscribes.
    pub activity: Activity,
    /// Whether the value is stale.
    pub stale: Option<bool>,
    /// Whether a fetch is under way.
    pub fetch: Option<FetchStatus>,
    /// Anything else.
    pub predicate: Option<&'a dyn Fn(&Key) -> bool>,
}

/// Whether somebody subscribes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activity {
    /// Either way.
    #[default]
    All,
    /// Somebody does.
    Active,
    /// Nobody does.
    Inactive,
}

/// What a filter asks of a query that the index does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The value is stale.
    pub stale: bool,
    /// Whether a fetch is under way.
    pub fetch: FetchStatus,
}

impl Filter<'_> {
    /// The keys that are meant, in order. The facts are asked for only of keys that all else lets through.
    pub fn select(&self, index: &Index, facts: impl Fn(&Key) -> Facts) -> Vec<Key> {
        let mut keys: Vec<Key> = match self.key {
            Some(key) if self.exact => {
                let key = key.to_key();
                index.contains(&key).then_some(key).into_iter().collect()
            }
            Some(key) => matching(index, key, self.activity == Activity::Active),
            None if self.activity == Activity::Active => {
                index.active_under(&Key::default()).cloned().collect()
            }
            None => index.under(&Key::default()).cloned().collect(),
        };
        keys.retain(|key| self.lets_through(index, key, &facts));
        keys.sort_unstable();
        keys
    }

    fn lets_through(&self, index: &Index, key: &Key, facts: impl Fn(&Key) -> Facts) -> bool {
        let by_activity = match self.activity {
            Activity::All => true,
            Activity::Active => index.is_active(key),
            Activity::Inactive => !index.is_active(key),
        };
        let by_facts = || {
            if self.stale.is_none() && self.fetch.is_none() {
                return true;
            }
            let facts = facts(key);
            self.stale.is_none_or(|stale| stale == facts.stale)
                && self.fetch.is_none_or(|fetch| fetch == facts.fetch)
        };
        by_activity && by_facts() && self.predicate.is_none_or(|predicate| predicate(key))
    }
}

/// The keys, or the active keys, that match a filter in part. Costs no more than the keys that have its leading scalars.
pub(crate) fn matching(index: &Index, filter: &QueryKey, only_active: bool) -> Vec<Key> {
    let wanted = filter.segments();
    let scalars = wanted.iter().take_while(|segment| !segment.is_array() && !segment.is_object()).count();
    let prefix = QueryKey::new(&wanted[..scalars]).map(Key::from).unwrap_or_default();
    let is_meant = |key: &&Key| {
        scalars == wanted.len()
            || QueryKey::from_key(key).is_ok_and(|key| is_list_in(&key.segments(), &wanted))
    };
    if only_active {
        index.active_under(&prefix).filter(is_meant).cloned().collect()
    } else {
        index.under(&prefix).filter(is_meant).cloned().collect()
    }
}

/// Whether a key matches a filter in part.
pub fn matches(key: &QueryKey, filter: &QueryKey) -> bool {
    is_list_in(&key.segments(), &filter.segments())
}

/// Whether a value has all of another one.
pub(crate) fn is_in(value: &Value, part: &Value) -> bool {
    match (value, part) {
        (Value::Array(items), Value::Array(parts)) => is_list_in(items, parts),
        (Value::Object(members), Value::Object(parts)) => {
            parts.iter().all(|(name, part)| members.get(name).is_some_and(|value| is_in(value, part)))
        }
        (Value::Array(items), Value::Object(parts)) => {
            parts.iter().all(|(name, part)| element(items, name).is_some_and(|value| is_in(value, part)))
        }
        (Value::Object(members), Value::Array(parts)) => parts
            .iter()
            .enumerate()
            .all(|(at, part)| members.get(&at.to_string()).is_some_and(|value| is_in(value, part))),
        _ => number::equal(value, part),
    }
}

fn is_list_in(items: &[Value], parts: &[Value]) -> bool {
    parts.len() <= items.len() && items.iter().zip(parts).all(|(value, part)| is_in(value, part))
}

/// The element that a member's name is the index of, as JavaScript writes it.
fn element<'a>(items: &'a [Value], name: &str) -> Option<&'a Value> {
    let at: usize = name.parse().ok()?;
    items.get(at).filter(|_| at.to_string() == name)
}
