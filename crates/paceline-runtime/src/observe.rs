//! Where observable events go: tracing, a bounded log, counters, and whoever waits for the join.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use paceline_ipc::clock;
use paceline_proto::{
    event::Event,
    id::Mark,
    look::EventRecord,
    program::{Misfit, Program},
    time::Time,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::Level;

use crate::{death::Death, replica::changed_or_dead};

/// Events kept for inspection.
pub const EVENTS_KEPT: usize = 1024;

/// Whether the session is joined.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum JoinState {
    /// Not yet.
    #[default]
    Joining,
    /// Welcome and snapshot were received.
    Joined(Mark),
    /// It cannot join as things are.
    Blocked(Blocked),
}

/// Why a session cannot join as things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocked {
    /// It has no protocol version in common with the primary.
    Version(Box<Misfit>),
    /// Nobody leads, and its build cannot read the group's store.
    Store {
        /// The schema of the store.
        schema: u32,
        /// The lowest schema that a build must be made for to read it.
        min_reader: u32,
        /// The program that cannot.
        ours: Box<Program>,
    },
    /// The text says why and what to do.
    Other(Arc<str>),
}

/// Receiver of observable events of one session. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Observer(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    log: Mutex<Log>,
    debug: AtomicBool,
    arrived: watch::Sender<u64>,
    join: watch::Sender<JoinState>,
}

#[derive(Debug, Default)]
struct Log {
    recent: VecDeque<(Time, Event)>,
    written: u64,
    counts: BTreeMap<&'static str, u64>,
}

/// Follows the events of a session.
#[derive(Debug)]
pub struct EventCursor {
    observer: Observer,
    arrived: watch::Receiver<u64>,
    seen: u64,
}

impl EventCursor {
    /// The events since the last call, oldest first, and how many came before them that are no longer kept. Waits until
    /// there is one; `None` when the runtime ended and all were returned. Cancel-safe.
    pub async fn next(&mut self, death: &Death) -> Option<(Vec<(Time, Event)>, u64)> {
        loop {
            let seen = self.arrived.borrow_and_update().max(self.seen);
            if seen > self.seen {
                return Some(self.take());
            }
            if changed_or_dead(&mut self.arrived, death).await.is_err() {
                let rest = self.take();
                return (!rest.0.is_empty()).then_some(rest);
            }
        }
    }

    fn take(&mut self) -> (Vec<(Time, Event)>, u64) {
        let log = self.observer.0.log.lock();
        let new = log.written - self.seen;
        self.seen = log.written;
        let kept = (log.recent.len() as u64).min(new);
        let events = log.recent.iter().skip(log.recent.len() - kept as usize).cloned().collect();
        (events, new - kept)
    }
}

impl Observer {
    pub(crate) fn event(&self, event: Event) {
        trace(&event, self.0.debug.load(Ordering::Relaxed));
        let mut log = self.0.log.lock();
        log.written += 1;
        let written = log.written;
        *log.counts.entry(event.kind()).or_default() += 1;
        if log.recent.len() == EVENTS_KEPT {
            log.recent.pop_front();
        }
        log.recent.push_back((clock::boottime(), event));
        drop(log);
        self.0.arrived.send_replace(written);
    }

    /// Raises debug events to the level of information, or ends that. Returns whether they were raised.
    pub fn set_debug(&self, on: bool) -> bool {
        self.0.debug.swap(on, Ordering::Relaxed)
    }

    /// Whether debug events are raised.
    pub fn is_debug(&self) -> bool {
        self.0.debug.load(Ordering::Relaxed)
    }

    /// How many events ever happened, and its changes.
    pub fn arrived(&self) -> watch::Receiver<u64> {
        self.0.arrived.subscribe()
    }

    /// The events after the first `after` that are still kept, as they are told to others, and how many ever happened.
    pub fn records_after(&self, after: u64) -> (Vec<EventRecord>, u64) {
        let log = self.0.log.lock();
        let new = usize::try_from(log.written.saturating_sub(after)).unwrap_or(usize::MAX);
        let skip = log.recent.len().saturating_sub(new);
        let record = |(at, event): &(Time, Event)| EventRecord {
            at: at.0,
            kind: event.kind().to_owned(),
            text: event.to_string(),
            level: level(event).to_string().to_lowercase(),
        };
        (log.recent.iter().skip(skip).map(record).collect(), log.written)
    }

    /// Follows the events, from the oldest that is kept.
    pub fn follow(&self) -> EventCursor {
        let kept_from = {
            let log = self.0.log.lock();
            log.written - log.recent.len() as u64
        };
        EventCursor { observer: self.clone(), arrived: self.arrived(), seen: kept_from }
    }

    /// Follows the events from now on.
    pub fn follow_from_now(&self) -> EventCursor {
        let seen = self.0.log.lock().written;
        EventCursor { observer: self.clone(), arrived: self.arrived(), seen }
    }

    /// How often each kind of event happened.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.log.lock().counts.clone()
    }

    /// The newest events, oldest first.
    pub fn recent(&self) -> Vec<(Time, Event)> {
        self.0.log.lock().recent.iter().cloned().collect()
    }

    pub(crate) fn joined(&self, at: Mark) {
        self.0.join.send_replace(JoinState::Joined(at));
    }

    pub(crate) fn blocked(&self, why: Blocked) {
        self.0.join.send_if_modified(|state| {
            let open = !matches!(state, JoinState::Joined(_));
            if open {
                *state = JoinState::Blocked(why);
            }
            open
        });
    }

    /// Whether the session is joined, and its changes.
    pub fn join(&self) -> watch::Receiver<JoinState> {
        self.0.join.subscribe()
    }
}

fn trace(event: &Event, debug: bool) {
    let kind = event.kind();
    match level(event) {
        Level::WARN => tracing::warn!(kind, "{event}"),
        Level::DEBUG if !debug => tracing::debug!(kind, "{event}"),
        _ => tracing::info!(kind, "{event}"),
    }
}

/// The level follows what an operator should do: DEBUG a branch taken, INFO a change a user would notice, WARN somebody
/// should look.
pub fn level(event: &Event) -> Level {
    match event {
        Event::AdoptionFailed { .. }
        | Event::OwnerUnreachable { .. }
        | Event::JoinRefused { .. }
        | Event::VersionRefused { .. }
        | Event::StoreTooNew { .. }
        | Event::ClaimFailed { .. }
        | Event::PeerRefused { .. }
        | Event::FollowerConflated { .. }
        | Event::GapShown { .. }
        | Event::VersionClash { .. }
        | Event::HandoverAborted { .. }
        | Event::UpstreamMessageRefused { .. }
        | Event::DeclarationRefused { .. }
        | Event::ConfigConflict(_)
        | Event::ServerAskedToWait { .. }
        | Event::LimitReached { .. } => Level::WARN,
        Event::PrimaryElected { .. }
        | Event::Adopted { .. }
        | Event::Fenced { .. }
        | Event::SubmitsMoved { .. }
        | Event::SteppedDown { .. }
        | Event::Following { .. }
        | Event::Suspended { .. }
        | Event::HandoverStarted { .. }
        | Event::UpstreamChanged { .. }
        | Event::LayersTakenBack { .. }
        | Event::StrategyChanged { .. }
        | Event::OnlineChanged { .. }
        | Event::FetchFailed { background: false, .. } => Level::INFO,
        Event::Suspected { .. }
        | Event::SuspicionCleared { .. }
        | Event::ClaimLost { .. }
        | Event::Joined { .. }
        | Event::Unlinked { .. }
        | Event::PresenceChanged { .. }
        | Event::HeirAppointed { .. }
        | Event::HeirCurrent { .. }
        | Event::HeirDismissed { .. }
        | Event::FollowerCaughtUp { .. }
        | Event::Resynced { .. }
        | Event::TailPulled { .. }
        | Event::WinnerRepublished { .. }
        | Event::OperationAdopted { .. }
        | Event::ChannelRewound { .. }
        | Event::Fetched { .. }
        | Event::FetchFailed { background: true, .. }
        | Event::TurnedStale { .. }
        | Event::RefreshLooked { .. } => Level::DEBUG,
    }
}

#[cfg(test)]
mod tests {
    use paceline_proto::id::Epoch;

    use super::*;
    use crate::death::End;

    async fn next(cursor: &mut EventCursor, death: &Death) -> Option<(Vec<u64>, u64)> {
        let epoch = |(_, event): (Time, Event)| match event {
            Event::SteppedDown { epoch } => epoch.0,
            other => panic!("{other:?}"),
        };
        let (events, lost) = cursor.next(death).await?;
        Some((events.into_iter().map(epoch).collect(), lost))
    }

    #[tokio::test]
    async fn who_looks_in_time_gets_every_event_and_who_does_not_is_told_how_many_are_gone() {
        let (observer, death) = (Observer::default(), Death::default());
        let happens = |range: std::ops::RangeInclusive<usize>| {
            for n in range {
                observer.event(Event::SteppedDown { epoch: Epoch(n as u64) });
            }
        };
        let (mut early, mut late) = (observer.follow(), observer.follow_from_now());
        happens(1..=EVENTS_KEPT);
        assert_eq!(next(&mut early, &death).await, Some(((1..=EVENTS_KEPT as u64).collect(), 0)));
        happens(EVENTS_KEPT + 1..=EVENTS_KEPT + 1);
        assert_eq!(next(&mut early, &death).await, Some((vec![EVENTS_KEPT as u64 + 1], 0)));
        assert_eq!(next(&mut late, &death).await, Some(((2..=EVENTS_KEPT as u64 + 1).collect(), 1)));
        assert_eq!(observer.recent().len(), EVENTS_KEPT);
        assert_eq!(observer.counts()["stepped_down"], EVENTS_KEPT as u64 + 1);
        happens(0..=0);
        death.declare(End::Left);
        assert_eq!(next(&mut early, &death).await, Some((vec![0], 0)), "what came before the end");
        assert_eq!(next(&mut early, &death).await, None);
    }
}
