//! The resources that sessions declared, and the rules that they give each key.
//!
//! Of several declarations of one name the first that is still there counts. All resources whose patterns have a key give it
//! rules, the more specific first (equally specific ones by name): what one leaves open comes from the next, then from
//! [`Defaults`]. Tags and dependencies add up, and so do `critical` and `cancellable`.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc, time::Duration};

use paceline_proto::id::{Key, SessionId};

use crate::{
    cascade::Graph,
    condition::Bindings,
    key::QueryKey,
    limits::{RESOURCES_MAX, RULES_KEPT},
    rules::{Defaults, Dependency, NetworkMode, Poll, Resource, Retry, Source, Staleness, Triggers},
};

/// What all sessions declared.
#[derive(Debug)]
pub struct Resources {
    defaults: Defaults,
    declared: BTreeMap<Arc<str>, Named>,
    /// The resources in force, the most specific first; none after a change, until they are needed.
    in_force: Vec<InForce>,
    /// What they depend on; none until it is needed.
    graph: Option<Graph>,
    /// Rules that were asked for.
    kept: BTreeMap<Key, Arc<KeyRules>>,
    /// Rules that are the same for all keys with these resources, since nothing is bound.
    shared: BTreeMap<Vec<usize>, Arc<KeyRules>>,
    generation: u64,
}

#[derive(Debug, Default)]
struct Named {
    /// In the order in which they came.
    declarations: Vec<Declaration>,
    in_force: Option<InForce>,
}

#[derive(Debug)]
struct Declaration {
    session: SessionId,
    resource: Arc<Resource>,
    fetches: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct InForce {
    resource: Arc<Resource>,
    source: Option<Source>,
    prefix: Key,
}

/// What came of a declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declared {
    /// Rules of some keys changed.
    Changed,
    /// As somebody declared it before, or otherwise: the first declaration counts.
    Known,
    /// The group has as many resources as it may have; this one has no effect.
    Full,
}

/// The rules of a key.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyRules {
    /// The resources that have the key, the most specific first.
    pub resources: Vec<Matched>,
    /// When the value turns stale.
    pub stale: Staleness,
    /// Without subscribers it is removed after so long; `Duration::MAX` = never.
    pub gc: Duration,
    /// What refetches it.
    pub refetch_on: Triggers,
    /// Whether requests wait for the network.
    pub network: NetworkMode,
    /// Attempts.
    pub retry: Retry,
    /// An attempt is given to another session after so long.
    pub deadline: Duration,
    /// Who fetches.
    pub source: Source,
    /// The resource whose fetcher is meant; `None` where nobody fetches.
    pub fetcher: Option<Arc<str>>,
    /// The tags of all its resources, each once, in order.
    pub tags: Vec<Arc<str>>,
    /// Kept fresh while no session is visible.
    pub critical: bool,
    /// A fetch is given up when nobody looks at the key any more.
    pub cancellable: bool,
}

/// A resource that has a key.
#[derive(Debug, Clone, PartialEq)]
pub struct Matched {
    /// The resource.
    pub resource: Arc<Resource>,
    /// What the names of its pattern are bound to.
    pub bound: Bindings,
}

impl KeyRules {
    /// The name of the most specific resource.
    pub fn name(&self) -> Option<&Arc<str>> {
        self.resources.first().map(|matched| &matched.resource.name)
    }

    /// When time makes the value stale. What nobody can fetch again came by a push or a `set`: it is not old unless a
    /// resource says so.
    pub fn staleness(&self) -> Staleness {
        let said = |matched: &Matched| matched.resource.stale.is_some();
        if self.source == Source::None && !self.resources.iter().any(said) {
            Staleness::Never
        } else {
            self.stale
        }
    }

    /// Whether a value that was not fetched is the only one there will be: nobody can fetch the key, and no resource says
    /// how long it is kept.
    pub fn keeps_what_is_set(&self) -> bool {
        self.source == Source::None && !self.resources.iter().any(|matched| matched.resource.gc.is_some())
    }

    /// How the key is polled, and what the names in the conditions stand for.
    pub fn poll(&self) -> Option<(&Poll, &Bindings)> {
        self.resources.iter().find_map(|matched| Some((matched.resource.poll.as_ref()?, &matched.bound)))
    }

    /// What the key depends on, and what the names in there stand for.
    pub fn dependencies(&self) -> impl Iterator<Item = (&Dependency, &Bindings)> {
        self.resources.iter().flat_map(|matched| {
            matched.resource.depends_on.iter().map(|dependency| (dependency, &matched.bound))
        })
    }
}

impl Resources {
    /// No resources: every key has the defaults.
    pub fn new(defaults: Defaults) -> Self {
        Self {
            defaults,
            declared: BTreeMap::new(),
            in_force: Vec::new(),
            graph: None,
            kept: BTreeMap::new(),
            shared: BTreeMap::new(),
            generation: 0,
        }
    }

    /// What holds where no resource says otherwise.
    pub const fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// Counts changes of rules: rules taken at one count hold until it is another.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// A session declares a resource, in place of what it declared under this name before.
    pub fn declare(&mut self, session: SessionId, resource: Arc<Resource>, fetches: bool) -> Declared {
        let full = self.declared.len() >= RESOURCES_MAX;
        if full && !self.declared.contains_key(&resource.name) {
            return Declared::Full;
        }
        let name = resource.name.clone();
        let ours = Declaration { session, resource, fetches };
        let named = self.declared.entry(name).or_default();
        match named.declarations.iter_mut().find(|declaration| declaration.session == session) {
            Some(before) => *before = ours,
            None => named.declarations.push(ours),
        }
        if named.weigh() {
            self.renew();
            Declared::Changed
        } else {
            Declared::Known
        }
    }

    /// A session left, with what it declared. Whether rules of some keys changed.
    pub fn forget(&mut self, session: SessionId) -> bool {
        let mut changed = false;
        self.declared.retain(|_, named| {
            let before = named.declarations.len();
            named.declarations.retain(|declaration| declaration.session != session);
            changed |= named.declarations.len() < before && named.weigh();
            !named.declarations.is_empty()
        });
        if changed {
            self.renew();
        }
        changed
    }

    /// The sessions that can fetch a resource, in the order in which they declared it.
    pub fn fetchers(&self, resource: &str) -> impl Iterator<Item = SessionId> {
        let declarations = self.declared.get(resource).map_or(&[][..], |named| &named.declarations);
        declarations.iter().filter(|declaration| declaration.fetches).map(|declaration| declaration.session)
    }

    /// The resources in force, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.declared.values().filter_map(|named| named.in_force.as_ref()).map(|in_force| &in_force.resource)
    }

    /// The rules of a key.
    pub fn rules(&mut self, key: &Key) -> Arc<KeyRules> {
        if let Some(rules) = self.kept.get(key) {
            return rules.clone();
        }
        let rules = self.merged(key);
        if self.kept.len() >= RULES_KEPT {
            self.kept.clear();
        }
        self.kept.insert(key.clone(), rules.clone());
        rules
    }

    /// Who depends on what.
    pub(crate) fn graph(&mut self) -> &Graph {
        let declared = &self.declared;
        self.graph.get_or_insert_with(|| {
            let in_force = declared.values().filter_map(|named| named.in_force.as_ref());
            Graph::new(in_force.map(|in_force| &in_force.resource))
        })
    }

    fn merged(&mut self, key: &Key) -> Arc<KeyRules> {
        if self.in_force.is_empty() {
            self.in_force = self.declared.values().filter_map(|named| named.in_force.clone()).collect();
            // Stable: equally specific ones stay in the order of their names.
            self.in_force.sort_by_key(|one| Reverse(one.resource.pattern.specificity()));
        }
        let mut candidates =
            self.in_force.iter().enumerate().filter(|(_, one)| one.prefix.is_prefix_of(key)).peekable();
        // Reading a key costs more than looking at its bytes, and most keys of a group may have no resource.
        let read = candidates.peek().and_then(|_| QueryKey::from_key(key).ok());
        let matching: Vec<(usize, Bindings)> = candidates
            .filter_map(|(at, one)| Some((at, one.resource.pattern.bind(read.as_ref()?)?)))
            .collect();
        if matching.iter().any(|(_, bound)| !bound.is_empty()) {
            return Arc::new(merge(&self.defaults, &self.in_force, matching));
        }
        let which = matching.iter().map(|(at, _)| *at).collect();
        let (defaults, in_force) = (&self.defaults, &self.in_force);
        self.shared.entry(which).or_insert_with(|| Arc::new(merge(defaults, in_force, matching))).clone()
    }

    /// Other resources are in force: what was worked out of the former ones is gone.
    fn renew(&mut self) {
        self.in_force.clear();
        self.graph = None;
        self.kept.clear();
        self.shared.clear();
        self.generation += 1;
    }
}

impl Named {
    /// The first declaration counts; who fetches comes from the first that says so. Whether something else is in force now.
    fn weigh(&mut self) -> bool {
        let said = self.declarations.iter().find_map(|declaration| {
            declaration.resource.source.clone().filter(|source| *source != Source::None)
        });
        let fetched = || {
            let fetches = self.declarations.iter().any(|declaration| declaration.fetches);
            fetches.then_some(Source::Closure)
        };
        let now = self.declarations.first().map(|first| InForce {
            resource: first.resource.clone(),
            source: said.or_else(fetched).or_else(|| first.resource.source.clone()),
            prefix: first.resource.pattern.prefix(),
        });
        let changed = now != self.in_force;
        self.in_force = now;
        changed
    }
}

fn merge(defaults: &Defaults, in_force: &[InForce], matching: Vec<(usize, Bindings)>) -> KeyRules {
    fn first<'a, T>(all: &[&'a InForce], get: impl Fn(&'a Resource) -> Option<T>, or: T) -> T {
        all.iter().find_map(|one| get(&one.resource)).unwrap_or(or)
    }
    let all: Vec<&InForce> = matching.iter().map(|(at, _)| &in_force[*at]).collect();
    let source = all.iter().find_map(|one| Some((one.resource.name.clone(), one.source.clone()?)));
    let (fetcher, source) = match source {
        Some((_, Source::None)) | None => (None, Source::None),
        Some((name, source)) => (Some(name), source),
    };
    let mut tags: Vec<Arc<str>> = all.iter().flat_map(|one| one.resource.tags.iter().cloned()).collect();
    tags.sort_unstable();
    tags.dedup();
    KeyRules {
        stale: first(&all, |resource| resource.stale, defaults.stale),
        gc: first(&all, |resource| resource.gc, defaults.gc),
        refetch_on: first(&all, |resource| resource.refetch_on, defaults.refetch_on),
        network: first(&all, |resource| resource.network, defaults.network),
        retry: first(&all, |resource| resource.retry, defaults.retry),
        deadline: first(&all, |resource| resource.deadline, defaults.deadline),
        source,
        fetcher,
        tags,
        critical: all.iter().any(|one| one.resource.critical),
        cancellable: all.iter().any(|one| one.resource.cancellable),
        resources: matching
            .into_iter()
            .map(|(at, bound)| Matched { resource: in_force[at].resource.clone(), bound })
            .collect(),
    }
}
