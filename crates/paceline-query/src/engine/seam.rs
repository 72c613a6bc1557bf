//! Index of the engine, as narrow as it needs it.

use std::collections::{BTreeMap, BTreeSet};

use paceline_proto::{fetch::CascadeLine, id::Key};

use crate::{key::QueryKey, resources::Resources};

#[derive(Debug, Default)]
pub(super) struct Index {
    active: BTreeMap<Key, bool>,
}

impl Index {
    pub(super) fn insert(&mut self, key: Key) {
        self.active.entry(key).or_insert(false);
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.active.remove(key);
    }

    pub(super) fn set_active(&mut self, key: &Key, active: bool) {
        if let Some(entry) = self.active.get_mut(key) {
            *entry = active;
        }
    }

    pub(super) fn under(&self, prefix: &Key) -> Vec<Key> {
        let from = self.active.range(prefix.clone()..);
        from.take_while(|(key, _)| prefix.is_prefix_of(key)).map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn active_under(&self, prefix: &Key) -> Vec<Key> {
        let from = self.active.range(prefix.clone()..).take_while(|(key, _)| prefix.is_prefix_of(key));
        from.filter(|(_, active)| **active).map(|(key, _)| key.clone()).collect()
    }
}

/// What was invalidated.
pub(super) enum Root<'a> {
    Key { key: &'a Key, exact: bool },
    Tag(&'a str),
}

/// What an invalidation reaches besides its root.
pub(super) fn cascade(resources: &Resources, index: &Index, root: &Root<'_>) -> Vec<CascadeLine> {
    let mut seen = BTreeSet::new();
    match root {
        Root::Key { key, exact: false } => seen.extend(index.under(key)),
        Root::Key { key, exact: true } => drop(seen.insert((*key).clone())),
        Root::Tag(tag) => {
            for resource in resources.iter().filter(|resource| resource.tags.iter().any(|own| **own == **tag))
            {
                let fits = |key: &Key| {
                    QueryKey::from_key(key).is_ok_and(|key| resource.pattern.bind(&key).is_some())
                };
                seen.extend(index.under(&resource.pattern.prefix()).into_iter().filter(fits));
            }
        }
    }
    let line =
        |key| CascadeLine { depth: 0, cause: "".into(), key: Some(key), resource: None, refetches: false };
    seen.into_iter().map(line).collect()
}
