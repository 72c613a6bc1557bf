//! Follower: a session's side of the link. Joins batches without holes, dedupes by position across epochs, keeps what a
//! new owner may need (values, event rings, operations), and re-issues what was not answered.

mod types;
use crate::{hub::Carried, id::Mark, time::Time};
pub use types::*;

/// The machine.
pub struct Follower {}
#[expect(unused_variables)]
#[allow(missing_docs)]
impl Follower {
    pub fn new(config: Config) -> Self {
        Self {}
    }
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {}
    pub fn deadline(&self) -> Option<Time> {
        None
    }
    pub fn hello_last(&self) -> Mark {
        Mark::ZERO
    }
    pub fn carry(&self) -> Carried {
        Carried::default()
    }
}
