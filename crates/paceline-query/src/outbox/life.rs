//! What happened to a mutation: marks in the order in which they became durable, and what they come to.
//!
//! **Invariant:** the state of a mutation is the fold of its marks and of nothing else, so whoever reads them next goes on
//! where the last owner stood.

use paceline_proto::id::Epoch;
use serde::{Deserialize, Serialize};

/// Where a mutation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits for its turn or its time.
    Pending,
    /// An attempt began that has no answer.
    Sending,
    /// The server took it.
    Done,
    /// The server refused it, for good.
    Rejected,
    /// All attempts failed.
    Failed,
    /// The value changed at the server meanwhile; both versions are kept.
    Conflict,
    /// Whether it was applied is not known and cannot be found out by sending it again; somebody has to say.
    Parked,
    /// It was taken back.
    Discarded,
}

impl Status {
    /// Whether the outbox still has to do with it: never cleaned up.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Sending | Self::Parked)
    }
}

/// One durable fact about a mutation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// From here on its bytes may be on their way, sent by the owner of `epoch`.
    Sending {
        /// Whose attempt it is.
        epoch: Epoch,
        /// When, in milliseconds since 1970.
        at: u64,
    },
    /// An attempt came to nothing; there will be another.
    Again {
        /// Not before, in milliseconds since 1970.
        due: u64,
        /// It is one of the attempts that are counted.
        counted: bool,
        /// Whether the attempt is known to be over: answered, or never begun.
        settled: bool,
        /// Why.
        error: String,
    },
    /// It has an outcome.
    Ended {
        /// Which: none of [`Status::Pending`] and [`Status::Sending`].
        status: Status,
        /// Why, where it is not [`Status::Done`].
        error: Option<String>,
        /// Whether the last attempt is known to be over without effect. Says nothing where the status does.
        settled: bool,
        /// When, in milliseconds since 1970.
        at: u64,
    },
    /// Somebody wants it sent once more.
    Reopened {
        /// Under another key: the server said for certain that it did not take the one before.
        anew: bool,
    },
}

/// What the marks of a mutation come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// Where it stands.
    pub status: Status,
    /// Counted attempts that failed since it was opened.
    pub failures: u32,
    /// Failures one after another, counted or not: what the delay grows with.
    pub delays: u32,
    /// Not before, in milliseconds since 1970.
    pub due: u64,
    /// How often its key changed. Part of the key.
    pub generation: u32,
    /// Owners whose attempts under the present key have no answer; one entry for each attempt.
    pub unanswered: Vec<Epoch>,
    /// When it was first sent under the present key, in milliseconds since 1970: its bytes are frozen.
    pub first_sent: Option<u64>,
    /// The last error.
    pub error: Option<String>,
    /// When it ended, in milliseconds since 1970.
    pub ended: Option<u64>,
}

impl Default for Life {
    fn default() -> Self {
        Self {
            status: Status::Pending,
            failures: 0,
            delays: 0,
            due: 0,
            generation: 0,
            unanswered: Vec::new(),
            first_sent: None,
            error: None,
            ended: None,
        }
    }
}

impl Life {
    /// What all `marks` come to.
    pub fn of<'a>(marks: impl IntoIterator<Item = &'a Mark>) -> Self {
        let mut life = Self::default();
        for mark in marks {
            life.apply(mark);
        }
        life
    }

    /// Takes the next mark.
    pub fn apply(&mut self, mark: &Mark) {
        match mark {
            Mark::Sending { epoch, at } => {
                self.status = Status::Sending;
                self.unanswered.push(*epoch);
                self.first_sent.get_or_insert(*at);
            }
            Mark::Again { due, counted, settled, error } => {
                self.status = Status::Pending;
                self.due = *due;
                self.failures = self.failures.saturating_add(u32::from(*counted));
                self.delays = self.delays.saturating_add(1);
                self.error = Some(error.clone());
                if *settled {
                    self.unanswered.pop();
                }
            }
            Mark::Ended { status, error, settled, at } => {
                self.status = *status;
                self.error.clone_from(error);
                self.ended = Some(*at);
                match status {
                    Status::Parked | Status::Failed if *settled => drop(self.unanswered.pop()),
                    Status::Parked | Status::Failed => {}
                    _ => self.unanswered.clear(),
                }
            }
            Mark::Reopened { anew } => {
                let generation = self.generation + u32::from(*anew);
                let kept = if *anew { Vec::new() } else { std::mem::take(&mut self.unanswered) };
                let first_sent = self.first_sent.filter(|_| !anew);
                *self = Self { generation, unanswered: kept, first_sent, ..Self::default() };
            }
        }
    }

    /// Whether it may have been applied although it has no answer that says so.
    pub fn is_uncertain(&self) -> bool {
        !self.unanswered.is_empty()
    }
}
