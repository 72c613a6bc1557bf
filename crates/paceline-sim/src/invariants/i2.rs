//! I2: an epoch has one owner, epochs are claimed in ascending order, and never do two owners pass their fence at once.

use std::collections::BTreeMap;

use crate::{
    disk::Pid,
    fact::Fact,
    invariants::{Invariant, View},
};

#[derive(Default)]
pub(super) struct OneOwnerPerEpoch {
    /// Epoch → who won it, and when it was linked.
    won: BTreeMap<u64, (Pid, u64)>,
}

impl Invariant for OneOwnerPerEpoch {
    fn name(&self) -> &'static str {
        "I2"
    }

    fn observe(&mut self, fact: &Fact, view: &View<'_>, broken: &mut Vec<String>) {
        match fact {
            Fact::ClaimWon { epoch, pid, linked } => {
                if let Some((other, _)) = self.won.insert(*epoch, (*pid, *linked)) {
                    broken.push(format!("epoch {epoch} was won by {} and {}", other.0, pid.0));
                }
                let below = self.won.range(..epoch).next_back().filter(|(_, (_, at))| at > linked);
                let above = self.won.range(epoch + 1..).next().filter(|(_, (_, at))| at < linked);
                for (other, _) in below.into_iter().chain(above) {
                    broken.push(format!("epochs {epoch} and {other} were claimed in the wrong order"));
                }
            }
            Fact::Unfenced(owners) if owners.len() > 1 => {
                broken.push(format!("these pass their fence at once: {owners:?}"));
            }
            Fact::Completed { .. } | Fact::PowerLost => {
                let (epoch, carriers) = view.disk.highest_complete();
                if carriers.len() > 1 {
                    broken.push(format!("{carriers:?} are both complete for epoch {epoch}"));
                }
                if matches!(fact, Fact::PowerLost) {
                    // A claim whose name was lost never acknowledged anything: its epoch may be claimed again,
                    // unless its database is complete.
                    self.won.retain(|won, _| *won <= epoch);
                }
            }
            _ => {}
        }
    }
}
