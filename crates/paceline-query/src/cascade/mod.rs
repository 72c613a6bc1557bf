//! What an invalidation reaches: what depends on it, and on that in turn.
//!
//! Resources declare what they depend on. The walk goes over sets of keys, not over what happens to be cached: a list that
//! depends on its elements is stale though no element was ever fetched, and so is what depends on the list. Each set is
//! a resource's keys with some names bound, and is walked once, so cycles end.
//!
//! - Invalidating a key, and without `exact` what matches it in part, reaches what depends on these keys, and what depends on a
//!   tag that one of them has.
//! - Invalidating a tag reaches the resources that have it and what depends on it.

mod area;
mod graph;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use paceline_proto::{fetch::CascadeLine, id::Key, limits::VALUE_MAX};

use crate::{
    index::Index,
    key::QueryKey,
    limits::{AREAS_MAX, CASCADE_LINES_MAX},
    resources::Resources,
};
use area::Area;
pub(crate) use graph::Graph;

/// Numbers and lengths of a line.
const LINE_OVERHEAD: usize = 32;

/// What is invalidated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// A key.
    Key {
        /// The key.
        key: Key,
        /// Only it; else all that match it in part.
        exact: bool,
    },
    /// A tag.
    Tag(Arc<str>),
}

/// What an invalidation reaches.
#[derive(Debug, Clone, PartialEq)]
pub struct Cascade {
    /// From the nearest to the farthest.
    reached: Vec<Reached>,
}

#[derive(Debug, Clone, PartialEq)]
struct Reached {
    depth: u32,
    cause: Arc<str>,
    /// `None` for the key that was asked for.
    resource: Option<Arc<str>>,
    area: Area,
}

impl Cascade {
    /// The walk. Its cost does not depend on how many keys there are.
    pub fn new(resources: &mut Resources, root: &Root) -> Self {
        let mut walk = Walk::default();
        let graph = resources.graph();
        match root {
            Root::Key { key, exact } => {
                // Bytes that are no key are those of no resource.
                if let Ok(read) = QueryKey::from_key(key) {
                    let (area, cause) = (Area::of_key(&read, *exact), Arc::from(short(&read)));
                    let resource = None;
                    walk.reached.push(Reached {
                        depth: 0,
                        cause: Arc::clone(&cause),
                        resource,
                        area: area.clone(),
                    });
                    walk.open.push_back((0, area, cause));
                }
            }
            Root::Tag(tag) => {
                for number in graph.tagged.get(tag).into_iter().flatten() {
                    walk.reach(graph, 0, &cause_of_tag(tag), *number, whole(graph, *number));
                }
                walk.touch(graph, 0, tag);
            }
        }
        walk.run(graph);
        Self { reached: walk.reached }
    }

    /// The keys in the index that are reached, with those of the root itself; in order, each once.
    pub fn keys(&self, index: &Index) -> BTreeSet<Key> {
        self.reached.iter().flat_map(|reached| reached.area.members(index)).collect()
    }

    /// Those of them that do not lie at or under a key that was asked for: whoever holds the values has marked the others. Costs
    /// nothing for what lies under it.
    pub fn dependents(&self, index: &Index, root: &Root) -> BTreeSet<Key> {
        let is_own = |key: &Key| match root {
            Root::Key { key: own, exact: true } => key == own,
            Root::Key { key: own, exact: false } => own.is_prefix_of(key),
            Root::Tag(_) => false,
        };
        let beyond = self.reached.iter().filter(|one| one.resource.is_some() || one.area.has_parts());
        beyond.flat_map(|reached| reached.area.members(index)).filter(|key| !is_own(key)).collect()
    }

    /// The same for people, from the nearest to the farthest, each key once: at most [`CASCADE_LINES_MAX`] lines, and no more
    /// bytes than a value may have. `refetches` says whether a key would be fetched at once.
    pub fn lines(
        &self,
        index: &Index,
        resources: &mut Resources,
        refetches: impl Fn(&Key) -> bool,
    ) -> Vec<CascadeLine> {
        let mut seen = BTreeSet::new();
        let mut without_key = BTreeSet::new();
        let mut lines = Vec::new();
        let mut room = VALUE_MAX;
        for Reached { depth, cause, resource, area } in &self.reached {
            let mut members = area.members(index);
            members.sort_unstable();
            let shown = match (resource, members.is_empty()) {
                (Some(name), true) if without_key.insert(name.clone()) => vec![None],
                (Some(_) | None, _) => {
                    members.into_iter().filter(|key| seen.insert(key.clone())).map(Some).collect()
                }
            };
            for key in shown {
                let named = key.as_ref().map(|key| resources.rules(key).name().cloned());
                let line = CascadeLine {
                    depth: *depth,
                    cause: Arc::clone(cause),
                    resource: named.unwrap_or_else(|| resource.clone()),
                    refetches: key.as_ref().is_some_and(&refetches),
                    key,
                };
                let fits = size(&line) <= room && lines.len() < CASCADE_LINES_MAX;
                if !fits {
                    return lines;
                }
                room -= size(&line);
                lines.push(line);
            }
        }
        lines
    }
}

/// Bytes of a line in an answer, or a few more.
fn size(line: &CascadeLine) -> usize {
    let resource = line.resource.as_ref().map_or(0, |name| name.len());
    line.cause.len() + resource + line.key.as_ref().map_or(0, |key| key.0.len()) + LINE_OVERHEAD
}

#[derive(Default)]
struct Walk {
    reached: Vec<Reached>,
    /// What it goes on from: the depth, the keys, and what they are called as a cause.
    open: VecDeque<(u32, Area, Arc<str>)>,
    tags: BTreeSet<Arc<str>>,
    /// Of each resource, what was reached.
    areas: BTreeMap<usize, Vec<Area>>,
}

impl Walk {
    fn run(&mut self, graph: &Graph) {
        while let Some((depth, area, cause)) = self.open.pop_front() {
            for (number, dependent) in graph.dependents(&area) {
                self.reach(graph, depth + 1, &cause, number, dependent);
            }
            graph.tags(&area).for_each(|tag| self.touch(graph, depth, tag));
        }
    }

    /// A tag of keys that were reached at this depth.
    fn touch(&mut self, graph: &Graph, depth: u32, tag: &Arc<str>) {
        if self.tags.insert(tag.clone()) {
            for number in graph.on_tag.get(tag).into_iter().flatten() {
                self.reach(graph, depth + 1, &cause_of_tag(tag), *number, whole(graph, *number));
            }
        }
    }

    fn reach(&mut self, graph: &Graph, depth: u32, cause: &Arc<str>, number: usize, mut area: Area) {
        let before = self.areas.entry(number).or_default();
        if before.len() >= AREAS_MAX {
            area = whole(graph, number);
        }
        if before.iter().any(|known| known.covers(&area)) {
            return;
        }
        before.push(area.clone());
        let name = &graph.resources[number].name;
        self.reached.push(Reached {
            depth,
            cause: Arc::clone(cause),
            resource: Some(Arc::clone(name)),
            area: area.clone(),
        });
        self.open.push_back((depth, area, format!("resource {name}").into()));
    }
}

fn whole(graph: &Graph, number: usize) -> Area {
    Area::of_pattern(&graph.resources[number].pattern, |_| None)
}

fn cause_of_tag(tag: &str) -> Arc<str> {
    format!("tag {tag}").into()
}

/// The short form of a key, or JSON where that says something else.
fn short(key: &QueryKey) -> String {
    let parts: Vec<String> = key
        .segments()
        .iter()
        .map(|segment| segment.as_str().map_or_else(|| segment.to_string(), str::to_owned))
        .collect();
    let text = parts.join("/");
    if text.parse().as_ref() == Ok(key) { text } else { key.to_string() }
}
