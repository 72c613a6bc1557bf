//! No view ever has the effect of an operation twice: in the value and in a layer, or in two layers.

use std::collections::BTreeSet;

use crate::{
    data,
    fact::Fact,
    invariants::{Invariant, View},
};

pub(super) struct NothingTwice;

impl Invariant for NothingTwice {
    fn name(&self) -> &'static str {
        "layers"
    }

    fn observe(&mut self, fact: &Fact, _view: &View<'_>, broken: &mut Vec<String>) {
        let Fact::Layered { session, key, value } = fact else { return };
        let mut seen = BTreeSet::new();
        if let Some(twice) = data::tokens(key, value).find(|token| !seen.insert(*token)) {
            broken.push(format!("{session:?} is shown {twice} twice in {key:?}"));
        }
    }
}
