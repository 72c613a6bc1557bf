//! JSON that is filled from a message: keys, and the patches of merges.

use paceline_proto::id::Key;
use paceline_query::key::{KeyError, QueryKey};
use serde_json::Value;

use crate::{
    condition::Bindings,
    path::Path,
    route::{MisfitError, RouteError},
    template::{Setting, Template},
};

/// JSON in which texts that are paths stand for what they lead to. `$$` begins a text with one `$`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    Literal(Value),
    Path(Path),
    /// In keys only.
    Text(Template),
    List(Vec<Shape>),
    Members(Vec<(String, Shape)>),
}

impl Shape {
    pub(crate) fn new(value: &Value, in_key: bool) -> Result<Self, RouteError> {
        Ok(match value {
            Value::String(text) if text.starts_with("$$") => Self::Literal(Value::from(&text[1..])),
            Value::String(text) if text.starts_with('$') => Self::Path(text.parse()?),
            Value::String(text) if in_key => match Template::new(text, Setting::Name)? {
                template if template.names().next().is_some() => Self::Text(template),
                _ => Self::Literal(value.clone()),
            },
            Value::Array(items) => {
                Self::List(items.iter().map(|item| Self::new(item, in_key)).collect::<Result<_, _>>()?)
            }
            Value::Object(members) => Self::Members(
                members
                    .iter()
                    .map(|(name, member)| Ok((name.clone(), Self::new(member, in_key)?)))
                    .collect::<Result<_, RouteError>>()?,
            ),
            other => Self::Literal(other.clone()),
        })
    }

    fn names<'a>(&'a self, found: &mut Vec<&'a str>) {
        match self {
            Self::Text(template) => found.extend(template.names()),
            Self::List(items) => items.iter().for_each(|item| item.names(found)),
            Self::Members(members) => members.iter().for_each(|(_, member)| member.names(found)),
            Self::Literal(_) | Self::Path(_) => {}
        }
    }

    pub(crate) fn fill(&self, message: &Value, bindings: &Bindings) -> Result<Value, MisfitError> {
        Ok(match self {
            Self::Literal(value) => value.clone(),
            Self::Path(path) => {
                path.find(message).cloned().ok_or_else(|| MisfitError::Missing(path.to_string()))?
            }
            // A text that is one name keeps the type of what is bound to it.
            Self::Text(template) => match template.as_name().and_then(|name| bindings.get(name)) {
                Some(bound) => bound.clone(),
                None => Value::from(template.fill(bindings)?),
            },
            Self::List(items) => Value::Array(
                items.iter().map(|item| item.fill(message, bindings)).collect::<Result<_, MisfitError>>()?,
            ),
            Self::Members(members) => Value::Object(
                members
                    .iter()
                    .map(|(name, member)| Ok((name.clone(), member.fill(message, bindings)?)))
                    .collect::<Result<_, MisfitError>>()?,
            ),
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeyShape(Vec<Shape>);

impl KeyShape {
    pub(crate) fn new(key: &Value) -> Result<Self, RouteError> {
        let segments = key.as_array().ok_or(KeyError::NotAnArray)?;
        if segments.is_empty() {
            return Err(KeyError::Empty.into());
        }
        Ok(Self(segments.iter().map(|segment| Shape::new(segment, true)).collect::<Result<_, _>>()?))
    }

    pub(crate) fn fill(&self, message: &Value, bindings: &Bindings) -> Result<Key, MisfitError> {
        let segments =
            self.0.iter().map(|segment| segment.fill(message, bindings)).collect::<Result<Vec<_>, _>>()?;
        Ok(QueryKey::new(&segments)?.to_key())
    }

    /// What the names are bound to if a key with these segments is at or under one of this shape.
    pub(crate) fn bind(&self, segments: &[Value]) -> Option<Bindings> {
        let mut bindings = Bindings::new();
        for (n, shape) in self.0.iter().enumerate() {
            let segment = segments.get(n)?;
            let fits = match shape {
                Shape::Literal(value) => value == segment,
                Shape::Text(template) => template.as_name().is_none_or(|name| {
                    bindings.insert(name.to_owned(), segment.clone()).is_none_or(|before| before == *segment)
                }),
                Shape::Path(_) | Shape::List(_) | Shape::Members(_) => true,
            };
            if !fits {
                return None;
            }
        }
        Some(bindings)
    }

    /// Whether it may be a key of the pattern, whose segments these are, or, with `under`, one that such keys are under.
    pub(crate) fn may_meet(&self, pattern: &[Value], under: bool) -> bool {
        let (pattern, open) = match pattern.split_last() {
            Some((Value::String(last), before)) if last == ".." => (before, true),
            _ => (pattern, false),
        };
        let fits = |(ours, theirs): (&Shape, &Value)| match (ours, theirs) {
            (Shape::Literal(_), Value::String(name)) if name.starts_with('{') => true,
            (Shape::Literal(ours), theirs) => ours == theirs,
            (Shape::Path(_) | Shape::Text(_) | Shape::List(_) | Shape::Members(_), _) => true,
        };
        let is_long_enough = under || self.0.len() >= pattern.len();
        is_long_enough && (open || self.0.len() <= pattern.len()) && self.0.iter().zip(pattern).all(fits)
    }

    /// The names it wants bound.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut found = Vec::new();
        self.0.iter().for_each(|segment| segment.names(&mut found));
        found
    }
}
