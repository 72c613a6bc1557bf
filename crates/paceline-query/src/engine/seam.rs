//! What an invalidation reaches.

use std::collections::BTreeSet;

use paceline_proto::{fetch::CascadeLine, id::Key};

use crate::{index::Index, key::QueryKey, resources::Resources};

/// What was invalidated.
pub(super) enum Root<'a> {
    Key { key: &'a Key, exact: bool },
    Tag(&'a str),
}

/// What an invalidation reaches besides its root.
pub(super) fn cascade(resources: &Resources, index: &Index, root: &Root<'_>) -> Vec<CascadeLine> {
    let mut seen = BTreeSet::new();
    match root {
        Root::Key { key, exact: false } => seen.extend(index.under(key).cloned()),
        Root::Key { key, exact: true } => drop(seen.insert((*key).clone())),
        Root::Tag(tag) => {
            for resource in resources.iter().filter(|resource| resource.tags.iter().any(|own| **own == **tag))
            {
                let fits = |key: &Key| {
                    QueryKey::from_key(key).is_ok_and(|key| resource.pattern.bind(&key).is_some())
                };
                seen.extend(index.under(&resource.pattern.prefix()).filter(|key| fits(key)).cloned());
            }
        }
    }
    let line =
        |key| CascadeLine { depth: 0, cause: "".into(), key: Some(key), resource: None, refetches: false };
    seen.into_iter().map(line).collect()
}
