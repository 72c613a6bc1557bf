//! I3: the look at the fence that precedes an acknowledgement precedes every later claim.

use std::collections::BTreeMap;

use crate::{
    fact::Fact,
    invariants::{Invariant, View},
};

#[derive(Default)]
pub(super) struct CheckPrecedesSuccessor {
    /// Epoch → when its winning claim was linked.
    linked: BTreeMap<u64, u64>,
    /// Epoch → the last look that led to an acknowledgement.
    checked: BTreeMap<u64, u64>,
}

impl Invariant for CheckPrecedesSuccessor {
    fn name(&self) -> &'static str {
        "I3"
    }

    fn observe(&mut self, fact: &Fact, _view: &View<'_>, broken: &mut Vec<String>) {
        match fact {
            Fact::ClaimWon { epoch, linked, .. } => {
                self.linked.insert(*epoch, *linked);
                if let Some((older, checked)) =
                    self.checked.range(..epoch).find(|(_, checked)| *checked > linked)
                {
                    broken.push(format!(
                        "{older} looked at step {checked}, after {epoch} was claimed at {linked}"
                    ));
                }
            }
            Fact::Acknowledged { id, epoch, checked, .. } => {
                if let Some((later, linked)) =
                    self.linked.range(epoch + 1..).find(|(_, linked)| *linked < checked)
                {
                    broken.push(format!(
                        "{epoch} acknowledged {id:?} after a look at step {checked}; {later} was claimed at {linked}"
                    ));
                }
                let last = self.checked.entry(*epoch).or_default();
                *last = (*last).max(*checked);
            }
            Fact::PowerLost => {
                // Epochs of lost claims may come again.
                self.linked.clear();
                self.checked.clear();
            }
            _ => {}
        }
    }
}
