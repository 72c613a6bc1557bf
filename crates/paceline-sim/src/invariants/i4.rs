//! I4: a database is written by its owner only, what is adopted is read after the claim, and what an owner writes after
//! its rows were adopted is never seen.

use crate::{
    fact::Fact,
    invariants::{Invariant, View},
};

pub(super) struct OneWriterPerDatabase;

impl Invariant for OneWriterPerDatabase {
    fn name(&self) -> &'static str {
        "I4"
    }

    fn observe(&mut self, fact: &Fact, view: &View<'_>, broken: &mut Vec<String>) {
        match fact {
            Fact::Written { database, owner, by, .. } if owner != by => {
                broken.push(format!("{} wrote {database:?}, which is {}'s", by.0, owner.0));
            }
            Fact::Written { database, after_row, .. } => {
                let newest = view.disk.highest_complete().1;
                let Some(newest) = newest.first().and_then(|newest| view.disk.databases.get(newest)) else {
                    return;
                };
                let Some(written) = view.disk.databases.get(database) else { return };
                let visible =
                    newest.segments.iter().any(|part| part.database == *database && part.bound > *after_row);
                if visible && written.last_row() > *after_row {
                    broken.push(format!(
                        "rows after {after_row} of {database:?} are seen although it was adopted before"
                    ));
                }
            }
            Fact::AdoptionRead { epoch, claimed: false } => {
                broken.push(format!("the rows that {epoch} adopts were read before it was claimed"));
            }
            _ => {}
        }
    }
}
