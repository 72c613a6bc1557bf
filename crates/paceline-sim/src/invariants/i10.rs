//! I10: what a synced session subscribed to, its owner knows of (or the words are on their way on this link), or the
//! owner is fenced.

use crate::{
    fact::Fact,
    invariants::{Invariant, View},
};

pub(super) struct SyncedMeansSubscribed;

impl Invariant for SyncedMeansSubscribed {
    fn name(&self) -> &'static str {
        "I10"
    }

    fn observe(&mut self, fact: &Fact, _view: &View<'_>, broken: &mut Vec<String>) {
        if let Fact::Synced { session, fenced: false, lacking } = fact
            && !lacking.is_empty()
        {
            broken.push(format!("{session:?} is synced, but its owner does not know of {lacking:?}"));
        }
    }
}
