//! Builds: nobody claims over a store that its build cannot read.

use crate::{
    fact::Fact,
    invariants::{Invariant, View},
};

pub(super) struct OwnersReadWhatTheyFind;

impl Invariant for OwnersReadWhatTheyFind {
    fn name(&self) -> &'static str {
        "builds"
    }

    fn observe(&mut self, fact: &Fact, view: &View<'_>, broken: &mut Vec<String>) {
        let Fact::ClaimWon { epoch, pid, .. } = fact else { return };
        let databases = &view.disk.databases;
        let Some(own) = view.disk.claim(*epoch).and_then(|file| databases.get(&file.database)) else {
            return;
        };
        let (found, carriers) = view.disk.newest_complete_below(*epoch);
        for store in carriers.iter().filter_map(|carrier| databases.get(carrier)) {
            if store.min_reader > own.schema {
                broken.push(format!(
                    "{} claimed epoch {epoch} with schema {}, and the store of epoch {found} needs a reader of {}",
                    pid.0, own.schema, store.min_reader
                ));
            }
        }
    }
}
