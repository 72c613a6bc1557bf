//! What must hold in every run, one file each. Numbers as in the protocol's documents.

mod builds;
mod i1;
mod i10;
mod i11;
mod i2;
mod i3;
mod i4;
mod i7;
mod i8;
mod layers;
mod volatile;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use paceline_proto::{id::SessionId, time::Time};

use crate::{disk::Disk, fact::Fact, feed::Feed};

/// What an observer of the whole machine can look at besides the fact told.
pub struct View<'a> {
    /// The state directory.
    pub disk: &'a Disk,
    /// The servers.
    pub feeds: &'a [Feed],
    /// The time.
    pub now: Time,
    /// The step of the run.
    pub step: u64,
    /// Per feed: which sessions were delivered which message.
    pub seen: &'a [BTreeMap<u64, BTreeSet<SessionId>>],
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// One rule with what it remembers.
pub trait Invariant {
    /// Its short name.
    fn name(&self) -> &'static str;
    /// Looks at a fact; what is pushed is broken.
    fn observe(&mut self, fact: &Fact, view: &View<'_>, broken: &mut Vec<String>);
    /// The group is at rest.
    fn finish(&mut self, _view: &View<'_>, _broken: &mut Vec<String>) {}
}

/// All of them.
pub struct Invariants(Vec<Box<dyn Invariant>>);

impl Default for Invariants {
    fn default() -> Self {
        Self(vec![
            Box::new(i1::AcknowledgedIsReachable::default()),
            Box::new(i2::OneOwnerPerEpoch::default()),
            Box::new(i3::CheckPrecedesSuccessor::default()),
            Box::new(i4::OneWriterPerDatabase),
            Box::new(i7::FollowersGoForward::default()),
            Box::new(i8::StaleFramesChangeNothing),
            Box::new(i10::SyncedMeansSubscribed),
            Box::new(i11::EveryEventOnceInOrder::default()),
            Box::new(volatile::HeldOperationsSurvive),
            Box::new(layers::NothingTwice),
            Box::new(builds::OwnersReadWhatTheyFind),
        ])
    }
}

impl Invariants {
    /// Shows a fact to each.
    pub fn observe(&mut self, fact: &Fact, view: &View<'_>, violations: &mut Vec<Violation>) {
        self.each(violations, |invariant, broken| invariant.observe(fact, view, broken));
    }

    /// Ends the run.
    pub fn finish(&mut self, view: &View<'_>, violations: &mut Vec<Violation>) {
        self.each(violations, |invariant, broken| invariant.finish(view, broken));
    }

    fn each(
        &mut self,
        violations: &mut Vec<Violation>,
        mut look: impl FnMut(&mut dyn Invariant, &mut Vec<String>),
    ) {
        for invariant in &mut self.0 {
            let mut broken = Vec::new();
            look(invariant.as_mut(), &mut broken);
            let name = invariant.name();
            violations.extend(broken.into_iter().map(|what| Violation { invariant: name, what }));
        }
    }
}
