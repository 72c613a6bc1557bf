//! Where observable events go: tracing, a bounded log, counters, and whoever waits for the join.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use paceline_ipc::clock;
use paceline_proto::{event::Event, id::Mark, time::Time};
use parking_lot::Mutex;
use tokio::sync::watch;

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
    /// It cannot join as things are; the text says why and what to do.
    Blocked(Arc<str>),
}

/// Receiver of observable events of one session. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Observer(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    log: Mutex<Log>,
    join: watch::Sender<JoinState>,
}

#[derive(Debug, Default)]
struct Log {
    recent: VecDeque<(Time, Event)>,
    counts: BTreeMap<&'static str, u64>,
}

impl Observer {
    pub(crate) fn event(&self, event: Event) {
        trace(&event);
        let mut log = self.0.log.lock();
        *log.counts.entry(event.kind()).or_default() += 1;
        if log.recent.len() == EVENTS_KEPT {
            log.recent.pop_front();
        }
        log.recent.push_back((clock::boottime(), event));
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

    pub(crate) fn blocked(&self, why: &str) {
        self.0.join.send_if_modified(|state| {
            let open = !matches!(state, JoinState::Joined(_));
            if open {
                *state = JoinState::Blocked(why.into());
            }
            open
        });
    }

    /// Whether the session is joined, and its changes.
    pub fn join(&self) -> watch::Receiver<JoinState> {
        self.0.join.subscribe()
    }
}

/// The level follows what an operator should do: DEBUG a branch taken, INFO a change a user would notice, WARN somebody
/// should look.
fn trace(event: &Event) {
    let kind = event.kind();
    match event {
        Event::AdoptionFailed { .. }
        | Event::OwnerUnreachable { .. }
        | Event::JoinRefused { .. }
        | Event::StoreTooNew { .. }
        | Event::ClaimFailed { .. }
        | Event::PeerRefused { .. }
        | Event::FollowerConflated { .. }
        | Event::GapShown { .. }
        | Event::VersionClash { .. }
        | Event::HandoverAborted { .. }
        | Event::UpstreamMessageRefused { .. }
        | Event::LimitReached { .. } => tracing::warn!(kind, "{event}"),
        Event::PrimaryElected { .. }
        | Event::Adopted { .. }
        | Event::Fenced { .. }
        | Event::SteppedDown { .. }
        | Event::Following { .. }
        | Event::Suspended { .. }
        | Event::HandoverStarted { .. }
        | Event::UpstreamChanged { .. } => tracing::info!(kind, "{event}"),
        Event::Suspected { .. }
        | Event::SuspicionCleared { .. }
        | Event::ClaimLost { .. }
        | Event::Joined { .. }
        | Event::Unlinked { .. }
        | Event::HeirAppointed { .. }
        | Event::HeirCurrent { .. }
        | Event::HeirDismissed { .. }
        | Event::FollowerCaughtUp { .. }
        | Event::Resynced { .. }
        | Event::TailPulled { .. }
        | Event::WinnerRepublished { .. }
        | Event::OperationAdopted { .. }
        | Event::ChannelRewound { .. } => tracing::debug!(kind, "{event}"),
    }
}
