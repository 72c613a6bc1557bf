//! I1: what was acknowledged is among the rows reachable from the highest complete database, once, with its content.

use std::collections::BTreeMap;

use paceline_proto::id::MutationId;

use crate::{
    fact::Fact,
    invariants::{Invariant, View},
    store::{Hash, Reachable, group_rows},
};

#[derive(Default)]
pub(super) struct AcknowledgedIsReachable {
    acknowledged: BTreeMap<MutationId, Hash>,
}

impl AcknowledgedIsReachable {
    fn check(&self, view: &View<'_>, broken: &mut Vec<String>) {
        let rows = group_rows(view.disk);
        for (id, hash) in &self.acknowledged {
            if let Some(what) = wrong(&rows, id, hash) {
                broken.push(what);
                return;
            }
        }
    }
}

fn wrong(rows: &Reachable, id: &MutationId, hash: &Hash) -> Option<String> {
    match rows.get(id) {
        None => Some(format!("{id:?} was acknowledged and is not reachable")),
        Some((stored, _)) if stored != hash => Some(format!("{id:?} is stored with another content")),
        Some((_, 1)) => None,
        Some((_, times)) => Some(format!("{id:?} is stored {times} times")),
    }
}

impl Invariant for AcknowledgedIsReachable {
    fn name(&self) -> &'static str {
        "I1"
    }

    fn observe(&mut self, fact: &Fact, view: &View<'_>, broken: &mut Vec<String>) {
        match fact {
            Fact::Acknowledged { id, hash, .. } => {
                self.acknowledged.insert(*id, *hash);
                broken.extend(wrong(&group_rows(view.disk), id, hash));
            }
            Fact::AcknowledgementSeen { id, hash } if self.acknowledged.get(id) != Some(hash) => {
                broken.push(format!("a caller was told that {id:?} is durable, but no owner decided so"));
            }
            Fact::Completed { .. } | Fact::StoresChanged | Fact::PowerLost => self.check(view, broken),
            _ => {}
        }
    }

    fn finish(&mut self, view: &View<'_>, broken: &mut Vec<String>) {
        self.check(view, broken);
    }
}
