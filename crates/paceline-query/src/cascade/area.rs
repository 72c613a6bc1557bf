//! Sets of keys, one condition per segment.

use paceline_proto::id::Key;
use serde_json::Value;

use crate::{
    filter::is_in,
    index::Index,
    key::QueryKey,
    number,
    pattern::{KeyPattern, Part},
};

/// What a segment may be.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Segment {
    Any,
    /// This.
    Exact(Value),
    /// Whatever has all of this list or object.
    Within(Value),
}

/// Keys whose segments are these; more may follow where it is open.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Area {
    pub(super) segments: Vec<Segment>,
    pub(super) open: bool,
}

impl Segment {
    /// What matches a value of a filter in part.
    pub(super) fn part(value: &Value) -> Self {
        match value {
            Value::Array(_) | Value::Object(_) => Self::Within(value.clone()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Self::Exact(value.clone()),
        }
    }

    fn has(&self, value: &Value) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => number::equal(value, exact),
            Self::Within(part) => is_in(value, part),
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Exact(value)) => self.has(value),
            (Self::Within(part), Self::Within(value)) => is_in(value, part),
            (Self::Exact(_), Self::Within(_)) | (Self::Exact(_) | Self::Within(_), Self::Any) => false,
        }
    }

    /// What is in both; `None` where nothing is. May be too large where both are parts, never too small.
    pub(super) fn common(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Any, one) | (one, Self::Any) => Some(one.clone()),
            (Self::Exact(value), one) | (one, Self::Exact(value)) => {
                one.has(value).then(|| Self::Exact(value.clone()))
            }
            (Self::Within(one), Self::Within(two)) => both(one, two).map(Self::Within),
        }
    }
}

/// The least that has all of both; `None` where nothing can.
fn both(one: &Value, two: &Value) -> Option<Value> {
    match (one, two) {
        (Value::Array(short), Value::Array(long)) | (Value::Array(long), Value::Array(short))
            if short.len() <= long.len() =>
        {
            let ahead =
                short.iter().zip(long).map(|(one, two)| both(one, two)).collect::<Option<Vec<_>>>()?;
            Some(ahead.into_iter().chain(long[short.len()..].iter().cloned()).collect())
        }
        (Value::Object(one), Value::Object(two)) => {
            let mut all = one.clone();
            for (name, part) in two {
                let member = one.get(name).map_or_else(|| Some(part.clone()), |member| both(member, part))?;
                all.insert(name.clone(), member);
            }
            Some(Value::Object(all))
        }
        // A list whose elements the object names by their indexes: it is not looked into.
        (Value::Array(_), Value::Object(_)) | (Value::Object(_), Value::Array(_)) => Some(one.clone()),
        _ => number::equal(one, two).then(|| one.clone()),
    }
}

impl Area {
    /// The key alone, or all that match it in part.
    pub(super) fn of_key(key: &QueryKey, exact: bool) -> Self {
        let segments = key.segments();
        let segment =
            |value: &Value| if exact { Segment::Exact(value.clone()) } else { Segment::part(value) };
        Self { segments: segments.iter().map(segment).collect(), open: !exact }
    }

    /// The keys of a pattern whose names are bound so.
    pub(super) fn of_pattern(pattern: &KeyPattern, bound: impl Fn(&str) -> Option<Segment>) -> Self {
        let segment = |part| match part {
            Part::Literal(value) => Segment::Exact(Value::clone(value)),
            Part::Name(name) => bound(name).unwrap_or(Segment::Any),
        };
        Self { segments: pattern.parts().map(segment).collect(), open: pattern.is_open() }
    }

    /// Whether it has keys that its first one does not begin.
    pub(super) fn has_parts(&self) -> bool {
        self.segments.iter().any(|segment| !matches!(segment, Segment::Exact(_)))
    }

    /// Whether some key is in both.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let longer_fits = |one: &Self, two: &Self| one.segments.len() <= two.segments.len() || two.open;
        longer_fits(self, other)
            && longer_fits(other, self)
            && self.segments.iter().zip(&other.segments).all(|(one, two)| one.common(two).is_some())
    }

    /// Whether all keys of the other, an area of the same pattern, are in this one.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.segments.iter().zip(&other.segments).all(|(one, two)| one.covers(two))
    }

    /// The keys of the index that are in it.
    pub(super) fn members(&self, index: &Index) -> Vec<Key> {
        let exact: Vec<Value> = self
            .segments
            .iter()
            .map_while(|segment| match segment {
                Segment::Exact(value) => Some(value.clone()),
                Segment::Any | Segment::Within(_) => None,
            })
            .collect();
        let prefix = match QueryKey::new(&exact) {
            Ok(key) => key.to_key(),
            Err(_) if exact.is_empty() => Key::default(),
            // Longer than any key.
            Err(_) => return Vec::new(),
        };
        let is_whole = exact.len() == self.segments.len();
        if is_whole && !self.open {
            return index.contains(&prefix).then_some(prefix).into_iter().collect();
        }
        let has = |key: &&Key| is_whole || QueryKey::from_key(key).is_ok_and(|key| self.has(&key.segments()));
        index.under(&prefix).filter(has).cloned().collect()
    }

    fn has(&self, segments: &[Value]) -> bool {
        let fits =
            segments.len() == self.segments.len() || (self.open && segments.len() > self.segments.len());
        fits && self.segments.iter().zip(segments).all(|(segment, value)| segment.has(value))
    }
}
