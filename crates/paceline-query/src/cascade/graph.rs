//! Who depends on what, laid out for the walk.

use std::{collections::BTreeMap, sync::Arc};

use paceline_proto::id::Key;
use serde_json::Value;

use super::area::{Area, Segment};
use crate::{
    key::QueryKey,
    pattern,
    rules::{Dependency, Resource},
};

/// Resources by number, and the ways from what is invalidated to them.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    pub(super) resources: Vec<Arc<Resource>>,
    /// Those that have the tag.
    pub(super) tagged: BTreeMap<Arc<str>, Vec<usize>>,
    /// Those that depend on the tag.
    pub(super) on_tag: BTreeMap<Arc<str>, Vec<usize>>,
    /// Keys that resources depend on.
    on_key: ByFirst<Edge>,
    /// Keys of resources that have tags.
    with_tags: ByFirst<(usize, Area)>,
}

/// A resource depends on a key and those under it.
#[derive(Debug)]
struct Edge {
    resource: usize,
    on: Vec<Term>,
}

#[derive(Debug)]
enum Term {
    Segment(Segment),
    /// What the dependent's key binds.
    Bound(String),
}

/// Things by the first segment of their keys, if that is a scalar.
#[derive(Debug)]
struct ByFirst<T> {
    scalar: BTreeMap<Key, Vec<T>>,
    other: Vec<T>,
}

impl<T> Default for ByFirst<T> {
    fn default() -> Self {
        Self { scalar: BTreeMap::new(), other: Vec::new() }
    }
}

impl<T> ByFirst<T> {
    fn add(&mut self, first: Option<&Segment>, thing: T) {
        match first.and_then(scalar) {
            Some(key) => self.scalar.entry(key).or_default().push(thing),
            None => self.other.push(thing),
        }
    }

    /// Those that an area may meet.
    fn near(&self, area: &Area) -> impl Iterator<Item = &T> {
        let first = area.segments.first();
        let key = first.and_then(scalar);
        let one = key.as_ref().and_then(|key| self.scalar.get(key)).into_iter();
        // Any segment, and none: all scalars.
        let all =
            matches!(first, Some(Segment::Any) | None).then(|| self.scalar.values()).into_iter().flatten();
        one.chain(all).flatten().chain(&self.other)
    }
}

fn scalar(segment: &Segment) -> Option<Key> {
    match segment {
        Segment::Exact(value) if !value.is_array() && !value.is_object() => {
            QueryKey::new(std::slice::from_ref(value)).ok().map(Key::from)
        }
        Segment::Any | Segment::Exact(_) | Segment::Within(_) => None,
    }
}

impl Graph {
    /// Of these resources, in their order.
    pub(crate) fn new<'a>(resources: impl Iterator<Item = &'a Arc<Resource>>) -> Self {
        let mut graph = Self::default();
        for resource in resources {
            graph.add(resource.clone());
        }
        graph
    }

    fn add(&mut self, resource: Arc<Resource>) {
        let number = self.resources.len();
        for tag in &resource.tags {
            self.tagged.entry(tag.clone()).or_default().push(number);
        }
        if !resource.tags.is_empty() {
            let area = Area::of_pattern(&resource.pattern, |_| None);
            self.with_tags.add(area.segments.first().cloned().as_ref(), (number, area));
        }
        for dependency in &resource.depends_on {
            match dependency {
                Dependency::Tag(tag) => self.on_tag.entry(tag.clone()).or_default().push(number),
                Dependency::Key(segments) => {
                    let on: Vec<Term> = segments.iter().map(|value| term(value, &resource)).collect();
                    let first = match on.first() {
                        Some(Term::Segment(segment)) => Some(segment.clone()),
                        Some(Term::Bound(_)) | None => None,
                    };
                    self.on_key.add(first.as_ref(), Edge { resource: number, on });
                }
            }
        }
        self.resources.push(resource);
    }

    /// The resources that depend on keys of an area, each with those of its keys that do.
    pub(super) fn dependents(&self, area: &Area) -> Vec<(usize, Area)> {
        let edges = self.on_key.near(area);
        edges
            .filter_map(|edge| {
                let bound = edge.bind(area)?;
                let pattern = &self.resources[edge.resource].pattern;
                Some((edge.resource, Area::of_pattern(pattern, |name| bound.get(name).cloned())))
            })
            .collect()
    }

    /// The tags of keys of an area.
    pub(super) fn tags(&self, area: &Area) -> impl Iterator<Item = &Arc<str>> {
        let meeting: Vec<usize> = self
            .with_tags
            .near(area)
            .filter(|(_, keys)| keys.meets(area))
            .map(|(number, _)| *number)
            .collect();
        meeting.into_iter().flat_map(|number| &self.resources[number].tags)
    }
}

fn term(value: &Value, dependent: &Resource) -> Term {
    match value.as_str().and_then(pattern::name_in_braces) {
        Some(name) if dependent.pattern.names().any(|bound| bound == name) => Term::Bound(name.to_owned()),
        Some(_) => Term::Segment(Segment::Any),
        None => Term::Segment(Segment::part(value)),
    }
}

impl Edge {
    /// What the names of the dependent are bound to if it depends on some key of the area; `None` if it depends on none.
    fn bind(&self, area: &Area) -> Option<BTreeMap<&str, Segment>> {
        if self.on.len() > area.segments.len() && !area.open {
            return None;
        }
        let mut bound = BTreeMap::new();
        for (term, segment) in self.on.iter().zip(&area.segments) {
            match term {
                Term::Segment(on) => drop(on.common(segment)?),
                Term::Bound(name) => {
                    let common = bound.get(name.as_str()).unwrap_or(&Segment::Any).common(segment)?;
                    bound.insert(name.as_str(), common);
                }
            }
        }
        Some(bound)
    }
}
