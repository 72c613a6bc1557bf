//! A volatile operation that its caller was told an heir holds is held by a second session at that moment, survives
//! everything short of the end of all its holders, and takes effect once.

use std::collections::BTreeSet;

use crate::{
    fact::Fact,
    invariants::{Invariant, View},
};

pub(super) struct HeldOperationsSurvive;

impl Invariant for HeldOperationsSurvive {
    fn name(&self) -> &'static str {
        "volatile"
    }

    fn observe(&mut self, fact: &Fact, _view: &View<'_>, broken: &mut Vec<String>) {
        match fact {
            Fact::OperationHeld { token, holders, died: false } if holders.is_empty() => {
                broken.push(format!(
                    "operation {token} is said to be held by an heir, and nobody but the owner holds it"
                ));
            }
            Fact::OperationsSettled { owed, found } => {
                let distinct: BTreeSet<u64> = found.iter().copied().collect();
                if distinct.len() < found.len() {
                    let twice =
                        found.iter().find(|token| found.iter().filter(|other| other == token).count() > 1);
                    broken.push(format!("operation {twice:?} took effect twice"));
                }
                if let Some(lost) = owed.difference(&distinct).next() {
                    broken.push(format!(
                        "operation {lost} was acknowledged, always held by somebody, and is lost"
                    ));
                }
            }
            _ => {}
        }
    }
}
