//! Who is next: heads of scopes, by due time and then by an order that time does not change.
//!
//! **Invariant:** of a scope at most one mutation is offered, the earliest of those that block it, and only while no other of
//! that scope is busy.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use paceline_proto::{id::MutationId, time::Time};

use super::Brief;

/// Where a mutation stands among the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) scope: Option<Arc<str>>,
    /// Counts acceptances.
    number: u64,
    /// Milliseconds since 1970, earlier by `age_boost` for each priority.
    rank: i128,
}

#[derive(Debug, Default)]
struct Scope {
    /// Those that block it.
    members: BTreeMap<u64, MutationId>,
    busy: BTreeSet<u64>,
    offered: Option<Place>,
}

#[derive(Debug, Default)]
pub(super) struct Order {
    accepted: u64,
    scopes: BTreeMap<Arc<str>, Scope>,
    /// Those that block a scope or are alone, and have no outcome.
    open: BTreeSet<u64>,
    waiting: BTreeSet<(Time, u64)>,
    ready: BTreeSet<(i128, u64)>,
    offers: BTreeMap<u64, (Time, Place, MutationId)>,
}

impl Order {
    /// The place of a mutation that was just accepted. Who has a clock ahead of `wall` gains nothing by it.
    pub(super) fn admit(&mut self, brief: &Brief, age_boost: Duration, wall: u64) -> Place {
        self.accepted += 1;
        let boost = i128::try_from(age_boost.as_millis()).unwrap_or(i128::from(i64::MAX));
        let rank = i128::from(brief.at.min(wall)) - i128::from(brief.priority) * boost;
        Place { scope: brief.scope.clone(), number: self.accepted, rank }
    }

    /// From here on it holds back the later ones of its scope.
    pub(super) fn enter(&mut self, place: &Place, id: MutationId) {
        self.open.insert(place.number);
        if let Some(scope) = &place.scope {
            self.scopes.entry(scope.clone()).or_default().members.insert(place.number, id);
        }
    }

    /// It holds back nobody any more.
    pub(super) fn leave(&mut self, place: &Place) {
        self.withdraw(place);
        self.open.remove(&place.number);
        let Some(name) = &place.scope else { return };
        if let Some(scope) = self.scopes.get_mut(name) {
            scope.members.remove(&place.number);
            if scope.members.is_empty() && scope.busy.is_empty() {
                self.scopes.remove(name);
            }
        }
    }

    /// Something about it is being done.
    pub(super) fn start(&mut self, place: &Place) {
        self.withdraw(place);
        if let Some(scope) = &place.scope {
            self.scopes.entry(scope.clone()).or_default().busy.insert(place.number);
        }
    }

    /// What was being done about it is done.
    pub(super) fn stop(&mut self, place: &Place) {
        if let Some(scope) = place.scope.as_ref().and_then(|name| self.scopes.get_mut(name)) {
            scope.busy.remove(&place.number);
        }
    }

    /// Who of the scope of `place` may be next, if nobody of it is busy.
    pub(super) fn head(&self, place: &Place) -> Option<MutationId> {
        let scope = self.scopes.get(place.scope.as_ref()?)?;
        scope.busy.is_empty().then(|| scope.members.values().next().copied())?
    }

    /// It may be begun at `due`; an offer of its scope that stood before does not stand any more.
    pub(super) fn offer(&mut self, place: &Place, id: MutationId, due: Time) {
        if let Some(name) = &place.scope {
            let scope = self.scopes.entry(name.clone()).or_default();
            if let Some(other) = scope.offered.replace(place.clone()) {
                self.take(&other);
            }
        }
        self.take(place);
        self.waiting.insert((due, place.number));
        self.offers.insert(place.number, (due, place.clone(), id));
    }

    /// It may not be begun.
    pub(super) fn withdraw(&mut self, place: &Place) {
        self.take(place);
        if let Some(scope) = place.scope.as_ref().and_then(|name| self.scopes.get_mut(name)) {
            scope.offered.take_if(|offered| offered.number == place.number);
        }
    }

    fn take(&mut self, place: &Place) {
        if let Some((due, ..)) = self.offers.remove(&place.number) {
            self.waiting.remove(&(due, place.number));
            self.ready.remove(&(place.rank, place.number));
        }
    }

    /// Takes the offer that is first among those that are due and not held.
    pub(super) fn next(&mut self, now: Time, is_held: impl Fn(MutationId) -> bool) -> Option<MutationId> {
        while let Some((_, number)) = self.waiting.first().filter(|(due, _)| *due <= now).copied() {
            self.waiting.pop_first();
            if let Some((_, place, _)) = self.offers.get(&number) {
                self.ready.insert((place.rank, number));
            }
        }
        let (place, id) = self.ready.iter().find_map(|(_, number)| {
            let (_, place, id) = self.offers.get(number)?;
            (!is_held(*id)).then(|| (place.clone(), *id))
        })?;
        self.withdraw(&place);
        Some(id)
    }

    /// When the next offer is due that is not yet.
    pub(super) fn first_due(&self) -> Option<Time> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// How many have no outcome.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}
