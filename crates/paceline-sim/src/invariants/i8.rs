//! I8: a frame of an old reign changes nothing.

use crate::{
    fact::Fact,
    invariants::{Invariant, View},
};

pub(super) struct StaleFramesChangeNothing;

impl Invariant for StaleFramesChangeNothing {
    fn name(&self) -> &'static str {
        "I8"
    }

    fn observe(&mut self, fact: &Fact, _view: &View<'_>, broken: &mut Vec<String>) {
        if let Fact::StaleFrame { session, effects, moved } = fact
            && (*moved || !effects.is_empty())
        {
            broken.push(format!("{session:?} acted on a stale frame: {effects:?} (moved: {moved})"));
        }
    }
}
