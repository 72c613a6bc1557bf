//! Hub: the owner's cache, the one place where order is decided, and the fan-out to the links (ELECTION 4).
//!
//! Output to a link is pulled: the machine says [`Effect::Wake`], the transport calls [`Hub::write`] for the next piece and
//! reports [`Input::Written`] when the socket took all of it. What is queued for a link is bounded and shares its frames
//! with all other links.

mod types;
pub use types::*;

use crate::{
    id::{Epoch, Key, LinkId, Mark, Offset},
    message::Held,
    time::Time,
};

/// The machine.
pub struct Hub {
    epoch: Epoch,
}
#[expect(unused_variables)]
#[allow(missing_docs)]
impl Hub {
    pub fn new(begin: Begin, fold: Box<dyn Fold>, now: Time, out: &mut Vec<Effect>) -> Self {
        Self { epoch: begin.epoch }
    }
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {}
    pub fn deadline(&self) -> Option<Time> {
        None
    }
    pub fn write(&mut self, link: LinkId, max_bytes: usize) -> Option<Vec<Part>> {
        None
    }
    pub fn last(&self) -> Mark {
        Mark::new(self.epoch, Offset::ZERO)
    }
    pub fn get(&self, key: &Key) -> Option<&Held> {
        None
    }
}
