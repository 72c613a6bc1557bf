//! A fetch under way: who waits for it, and where it stands.
//!
//! **Invariant:** a key has at most one flight, and a flight at most one attempt that runs. Whoever wants the key joins.
//!
//! What a response brings is right as of the moment when its attempt began. A write, an invalidation or a push that comes
//! later makes the attempt *late*: its response is discarded and asked for once more. Once, because a key may be pushed a
//! thousand times a second and its callers must be answered:
//! - a second response that a write or a push overtook is discarded too, and the value that is held answers: it is younger
//!   than the question;
//! - a second response that only an invalidation overtook is installed and stays marked stale, for it is younger than what
//!   is held; the callers are told so, and the invalidation has another flight follow for those who look.

use std::collections::BTreeSet;

use bytes::Bytes;
use paceline_proto::{
    fetch::FetchId,
    id::{SessionId, Trace, Version},
    time::Time,
};

use super::AskId;
use crate::limits::RENEWALS_MAX;

#[derive(Debug)]
pub(super) struct Flight {
    /// Who waits.
    pub(super) askers: Vec<AskId>,
    /// Who wants something younger than what the attempt that runs can bring: the next flight is theirs.
    pub(super) next: Vec<AskId>,
    /// The next flight is wanted even if nobody waits for it.
    pub(super) again: bool,
    /// A value was held when it began.
    pub(super) had_value: bool,
    /// Failed attempts since the last success when it began.
    pub(super) failures_before: u32,
    /// When the first attempt began.
    pub(super) began: Option<Time>,
    pub(super) attempts: u32,
    /// Failed attempts that count against the retries.
    pub(super) failures: u32,
    pub(super) renewals: u32,
    /// Sessions that left or missed the deadline since the last answer: others come first.
    pub(super) tried: BTreeSet<SessionId>,
    pub(super) step: Step,
    pub(super) trace: Trace,
}

#[derive(Debug)]
pub(super) enum Step {
    /// A session was asked.
    Running(Attempt),
    /// For the next attempt.
    Waiting {
        /// Then.
        until: Time,
    },
    /// For something that is no time.
    Paused {
        /// For this.
        why: Pause,
        /// It is looked at again then.
        until: Option<Time>,
    },
    /// The hub was told what came of it.
    Installing {
        /// An invalidation overtook it: the value stays marked.
        marked: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// The network is gone.
    Offline,
    /// No session can fetch it.
    NoFetcher,
    /// No session is visible, and nobody waits.
    Hidden,
}

#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) id: FetchId,
    pub(super) session: SessionId,
    pub(super) due: Time,
    pub(super) late: Late,
}

/// What happened since the attempt began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Late {
    pub(super) written: bool,
    pub(super) invalidated: bool,
    /// A whole value came that nothing orders against the response.
    pub(super) pushed: bool,
    /// A whole value came with a version.
    pub(super) pushed_version: bool,
}

/// What to do with a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Install,
    /// Discard it and ask again.
    Renew,
    /// Discard it: what is held is younger.
    Hold,
    /// Install it, and leave it marked stale.
    InstallMarked,
}

impl Flight {
    pub(super) fn new(had_value: bool, failures_before: u32, trace: Trace) -> Self {
        Self {
            askers: Vec::new(),
            next: Vec::new(),
            again: false,
            had_value,
            failures_before,
            began: None,
            attempts: 0,
            failures: 0,
            renewals: 0,
            tried: BTreeSet::new(),
            step: Step::Waiting { until: Time::ZERO },
            trace,
        }
    }

    pub(super) fn is_asked(&self) -> bool {
        !self.askers.is_empty() || !self.next.is_empty()
    }

    pub(super) fn running(&self) -> Option<&Attempt> {
        match &self.step {
            Step::Running(attempt) => Some(attempt),
            Step::Waiting { .. } | Step::Paused { .. } | Step::Installing { .. } => None,
        }
    }

    pub(super) fn late(&mut self) -> Option<&mut Late> {
        match &mut self.step {
            Step::Running(attempt) => Some(&mut attempt.late),
            Step::Waiting { .. } | Step::Paused { .. } | Step::Installing { .. } => None,
        }
    }

    /// When it goes on by itself.
    pub(super) fn due(&self) -> Option<Time> {
        match &self.step {
            Step::Running(attempt) => Some(attempt.due),
            Step::Waiting { until } => Some(*until),
            Step::Paused { until, .. } => *until,
            Step::Installing { .. } => None,
        }
    }

    /// What the response of an attempt with this record is worth. `version` is the one that it brings; `gathered`: the key is
    /// fetched again anyway.
    pub(super) fn judge(&self, late: Late, version: &Version, gathered: bool) -> Verdict {
        let overtaken = late.written || late.pushed || (late.pushed_version && *version == Version::None);
        let renews = self.renewals < RENEWALS_MAX;
        match (overtaken, late.invalidated) {
            (false, false) => Verdict::Install,
            (true, _) if renews => Verdict::Renew,
            (true, _) => Verdict::Hold,
            (false, true) if renews && (self.is_asked() || !gathered) => Verdict::Renew,
            (false, true) => Verdict::InstallMarked,
        }
    }
}

/// A response that may be installed.
#[derive(Debug)]
pub(super) struct Response {
    /// `None`: what is held is right.
    pub(super) value: Option<Bytes>,
    pub(super) version: Version,
    pub(super) etag: std::sync::Arc<str>,
    pub(super) hints: Bytes,
}
