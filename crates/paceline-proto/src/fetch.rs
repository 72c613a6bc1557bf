//! Fetches as they cross local connections: who can make them, what is asked for, what came of it. Rules and options are
//! opaque here; `paceline-query` reads them.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    id::{Key, Trace, Version},
    time::Time,
};

/// Names one attempt of one fetch within a reign; never reused there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FetchId(pub u64);

/// A resource as a session declares it. The group uses the rules of the first who declares them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declared {
    /// Its name.
    pub name: Arc<str>,
    /// Its rules as `paceline-query` writes them: JSON.
    pub rules: Bytes,
    /// The session can fetch it.
    pub fetches: bool,
}

/// Asks a session to fetch. Answered by `ToHub::Fetched`, or by the end of the link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRequest {
    /// The attempt.
    pub id: FetchId,
    /// The resource whose fetcher is meant.
    pub resource: Arc<str>,
    /// What to fetch.
    pub key: Key,
    /// The attempt is given to another session after so long.
    pub deadline_ms: u64,
    /// Nobody waits for it.
    pub background: bool,
    /// What the server gave with the value that is held; empty without one.
    pub etag: Arc<str>,
    /// Its cause.
    pub trace: Trace,
}

/// What a fetcher found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchOutcome {
    /// A value.
    Value {
        /// JSON bytes.
        value: Bytes,
        /// The server's version, if it gives one.
        version: Version,
        /// The server's validator for a conditional request; empty without one.
        etag: Arc<str>,
        /// What the fetcher knows about this value in particular, JSON as `paceline-query` writes it; may be empty.
        hints: Bytes,
    },
    /// The value that is held is still right (304).
    NotModified,
    /// No value.
    Failed(FetchFailure),
}

/// Why a fetch brought no value. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{why}")]
pub struct FetchFailure {
    /// What kind of failure; decides whether another attempt makes sense.
    pub kind: FailureKind,
    /// What went wrong, where, and what to do, for people. Holds no secret.
    pub why: String,
    /// Milliseconds that the server asked to wait, for everybody who asks it.
    pub retry_after_ms: Option<u64>,
    /// What came in place of a value, for who asked: a body, or what a command wrote. May be empty.
    pub detail: Bytes,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The server could not be reached.
    Network,
    /// It did not answer in time.
    Timeout,
    /// It answered with this HTTP status.
    Status(u16),
    /// A fetcher of the application said no, or a command ended with this status.
    Refused(i32),
    /// The answer is no value: not JSON, or past a bound.
    Invalid,
    /// No session can fetch the key.
    NoFetcher,
    /// The fetch was given up: nobody waits, or the session that ran it left and no other can.
    Cancelled,
}

impl FailureKind {
    /// Whether another attempt may succeed without anything being changed. Of the answers of a server: those that speak of
    /// overload or a passing fault (408, 425, 429, 5xx; RFC 9110 section 15, RFC 6585, RFC 8470).
    pub fn is_passing(self) -> bool {
        match self {
            Self::Network | Self::Timeout => true,
            Self::Status(status) => matches!(status, 408 | 425 | 429 | 500..=599),
            // What an application's own fetcher says is not known to be final.
            Self::Refused(_) => true,
            Self::Invalid | Self::NoFetcher | Self::Cancelled => false,
        }
    }
}

/// Which members of an invalidation or refetch are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RefetchType {
    /// Those somebody subscribes to.
    #[default]
    Active,
    /// Those nobody subscribes to.
    Inactive,
    /// All.
    All,
    /// None: they are marked.
    None,
}

impl RefetchType {
    /// Whether it means a key that somebody subscribes to, or that nobody does.
    pub const fn takes(self, active: bool) -> bool {
        match self {
            Self::Active => active,
            Self::Inactive => !active,
            Self::All => true,
            Self::None => false,
        }
    }
}

/// What a caller wants to be fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// A value that is fresh by the rules, or younger than `max_age_ms` where that is given; with `max_wait_ms`, the value
    /// that is held after so long, stale as it is.
    Fresh {
        /// Oldest age that is taken; `None` = what the rules call fresh.
        max_age_ms: Option<u64>,
        /// Longest wait for a younger one while an older one is held; `None` = until the fetch ends.
        max_wait_ms: Option<u64>,
    },
    /// A new value in any case.
    New,
    /// As `Fresh` by the rules, but nobody waits: answered at once.
    Prefetch,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fetched {
    /// The value.
    Value {
        /// JSON bytes.
        value: Bytes,
        /// When it was found to be right.
        updated_at: Time,
        /// It is older than asked for: the fetch failed or took too long.
        stale: bool,
        /// It was held already: nothing was asked of a server.
        cached: bool,
    },
    /// A prefetch was begun, or was not needed.
    Begun,
    /// No value.
    Failed(FetchFailure),
}

impl Fetched {
    /// An estimate of its bytes.
    pub fn size(&self) -> usize {
        64 + match self {
            Self::Value { value, .. } => value.len(),
            Self::Begun => 0,
            Self::Failed(failure) => failure.why.len() + failure.detail.len(),
        }
    }
}

/// Whether a fetch is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum FetchStatus {
    /// No.
    #[default]
    Idle,
    /// Yes, or it waits for its next attempt.
    Fetching,
    /// It waits for the network, or for a session that can.
    Paused,
}

/// State of a query besides its value, the same for all sessions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueryState {
    /// Whether a fetch is under way.
    pub fetch: FetchStatus,
    /// Nobody waits for that fetch.
    pub background: bool,
    /// The value is stale by the rules. That there is none, or that it is marked, is told with the value.
    pub stale: bool,
    /// Failed attempts since the last success.
    pub failures: u32,
    /// The last failure of a fetch that somebody waited for, until the next success.
    pub error: Option<Arc<str>>,
}

/// A line of a cascade: what an invalidation reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CascadeLine {
    /// Steps from what was asked for.
    pub depth: u32,
    /// Why it is reached: a key in its short form, `tag NAME`, or `resource NAME`.
    pub cause: Arc<str>,
    /// The key; `None` for a resource without a key in the cache.
    pub key: Option<Key>,
    /// The resource, if one has rules for the key.
    pub resource: Option<Arc<str>>,
    /// It would be fetched at once: somebody looks at it, and somebody can fetch it.
    pub refetches: bool,
}
