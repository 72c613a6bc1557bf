//! What a session can be asked about itself and its group: for status, listings, traces and the doctor.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    id::{Key, Mark, Offset, Place, Trace},
    message::{Member, Rank},
};

/// A session as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// As in the list of members.
    pub member: Member,
    /// Build of its binary; empty while it is awaited.
    pub build: String,
    /// Whether it leads when needed.
    pub rank: Rank,
    /// What it is in this reign.
    pub standing: Standing,
    /// Milliseconds since it linked, or since it was lost.
    pub since_ms: u64,
    /// Keys it is subscribed to.
    pub keys: u64,
    /// Streams it is subscribed to.
    pub streams: u64,
    /// Frames queued for it.
    pub queued: u64,
    /// What it acknowledged.
    pub acked: Option<Offset>,
    /// It is too slow and gets the latest of each key only.
    pub conflated: bool,
    /// Frames left out for it so far.
    pub dropped: u64,
    /// Protocol version of its connection; 0 while it is awaited.
    pub proto: u16,
}

/// What a session is in a reign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// The owner.
    Primary,
    /// An heir; `current` once it acknowledged all shared state.
    Heir {
        /// It acknowledged all shared state.
        current: bool,
    },
    /// Follows.
    Follower,
    /// Its snapshot is on the way.
    Joining,
    /// Gone without a word, may come back.
    Awaited,
}

/// A key of the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// The key.
    pub key: Key,
    /// Where its value stands.
    pub place: Place,
    /// Bytes of the value.
    pub bytes: u64,
    /// Marked stale.
    pub invalidated: bool,
    /// Sessions subscribed to it.
    pub subscribers: u64,
}

/// Counters of a reign.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReignStats {
    /// The last frame.
    pub last: Mark,
    /// Milliseconds since the reign began.
    pub age_ms: u64,
    /// Keys of the cache.
    pub keys: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// By name, in the order of the hub's counters.
    pub counters: Vec<(String, u64)>,
}

/// A look into a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Look {
    /// Records of its trace ring.
    Trace {
        /// Only those written after so many.
        after: u64,
        /// Only those of this cause.
        trace: Option<u128>,
    },
    /// Its observable events.
    Events {
        /// Only those after so many.
        after: u64,
    },
    /// Switches its debug lines on or off.
    Debug(bool),
}

/// What a session found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seen {
    /// Records of the trace ring, oldest first.
    Trace {
        /// The records.
        records: Vec<TraceRecord>,
        /// How many were ever written.
        written: u64,
    },
    /// Observable events, oldest first.
    Events {
        /// The events.
        events: Vec<EventRecord>,
        /// How many ever happened.
        written: u64,
        /// How often each kind happened.
        counts: Vec<(String, u64)>,
    },
    /// Debug lines were on before.
    Debug {
        /// As they were.
        before: bool,
    },
}

/// A message that an actor handled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRecord {
    /// When, on the machine's clock that counts suspend, nanoseconds.
    pub at: u64,
    /// By which actor.
    pub actor: String,
    /// Which message.
    pub kind: String,
    /// The first bytes of the key it was about.
    pub key: Bytes,
    /// Nanoseconds in the mailbox.
    pub queue_ns: u32,
    /// Nanoseconds in the handler.
    pub run_ns: u32,
    /// `done`, `due` or `panicked`.
    pub outcome: String,
    /// Its cause and own span.
    pub trace: Trace,
    /// The span that caused it.
    pub parent: u64,
}

/// An observable event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// When, as in a trace record.
    pub at: u64,
    /// Its kind.
    pub kind: String,
    /// What happened, for people.
    pub text: String,
    /// `debug`, `info` or `warn`.
    pub level: String,
}

impl Seen {
    /// An estimate of its bytes on the wire.
    pub fn size(&self) -> usize {
        match self {
            Self::Trace { records, .. } => records.iter().map(TraceRecord::size).sum(),
            Self::Events { events, .. } => events.iter().map(EventRecord::size).sum(),
            Self::Debug { .. } => 64,
        }
    }
}

impl TraceRecord {
    /// An estimate of its bytes on the wire.
    pub fn size(&self) -> usize {
        80 + self.actor.len() + self.kind.len() + self.key.len() + self.outcome.len()
    }
}

impl EventRecord {
    /// An estimate of its bytes on the wire.
    pub fn size(&self) -> usize {
        32 + self.kind.len() + self.text.len() + self.level.len()
    }
}
