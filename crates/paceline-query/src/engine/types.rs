//! What goes into the engine and what comes out.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
pub use paceline_proto::fetch::RefetchType;
use paceline_proto::{
    fetch::{CascadeLine, FetchId, FetchOutcome, FetchRequest, Fetched, QueryState, Want},
    id::{Key, SessionId, Trace, Version},
    presence::Presence,
    time::Time,
};

use crate::rules::{Options, Resource};

/// Names a question until it is answered; numbered by whoever asks the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// What changed a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A fetch of this engine: answers [`Effect::Install`] and [`Effect::Touch`].
    Fetch,
    /// A whole value from an upstream.
    Push {
        /// It has a version: the hub decides between it and a response that has one too.
        versioned: bool,
    },
    /// A whole value or a part of it by a session, or a part of it by an upstream: a fetch that began before does not know it.
    Write,
}

/// Facts, in the order in which the hub decided them.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A session subscribes to a key, or changes what it asks of it. Told again for a key it has: then its state is shown
    /// again.
    Observed {
        /// Who.
        session: SessionId,
        /// The key.
        key: Key,
        /// What it asks.
        /// What it asks for, once for each place where it looks; none is one that asks for nothing.
        options: Vec<Options>,
    },
    /// A session does not subscribe to the key any more.
    Unobserved {
        /// Who.
        session: SessionId,
        /// The key.
        key: Key,
    },
    /// A session's presence; `None` = it left, with its subscriptions, fetchers and questions.
    Presence {
        /// Who.
        session: SessionId,
        /// What it shows.
        presence: Option<Presence>,
    },
    /// A session declares a resource; the first declaration's rules count.
    Declared {
        /// Who.
        session: SessionId,
        /// The rules.
        resource: Arc<Resource>,
        /// It can fetch the resource.
        fetches: bool,
    },
    /// A value was installed, or found to be right.
    Changed {
        /// The key.
        key: Key,
        /// The value.
        value: Bytes,
        /// When.
        at: Time,
        /// By what.
        cause: Cause,
    },
    /// The key lost its value: a reset, or [`Effect::Remove`].
    Removed {
        /// The key.
        key: Key,
    },
    /// Keys were marked stale. Those that depend on them are the engine's business.
    Invalidated {
        /// The prefix.
        key: Key,
        /// Only the key itself.
        exact: bool,
        /// What is fetched at once.
        refetch: RefetchType,
        /// Its cause.
        trace: Trace,
    },
    /// Resources with this tag are stale, and what depends on it.
    TagInvalidated {
        /// The tag.
        tag: Arc<str>,
        /// What is fetched at once.
        refetch: RefetchType,
        /// Its cause.
        trace: Trace,
    },
    /// A question.
    Ask {
        /// Names it.
        id: AskId,
        /// Who asks.
        session: SessionId,
        /// What.
        ask: Ask,
        /// Its cause.
        trace: Trace,
    },
    /// Nobody waits for the answer any more.
    Unasked {
        /// The question.
        id: AskId,
    },
    /// Answer to [`Effect::Fetch`].
    Fetched {
        /// The attempt.
        id: FetchId,
        /// Who made it.
        session: SessionId,
        /// What came of it.
        outcome: FetchOutcome,
    },
    /// Whether upstreams can be reached.
    Online(bool),
    /// Whether the channel that feeds a key is healthy, by resource.
    Channel {
        /// The resource.
        resource: Arc<str>,
        /// It is.
        healthy: bool,
    },
    /// What the user chose.
    Preferences(Preferences),
    /// The deadline passed.
    Deadline,
}

/// What a user chose for all resources at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preferences {
    /// Data is refreshed by itself; else only what somebody asks for, looks at without a value, or invalidates.
    pub automatic_updates: bool,
    /// A session that is new to a key refetches a stale value.
    pub refetch_on_subscribe: bool,
    /// Stale values are fetched when a session gains focus.
    pub refetch_on_focus: bool,
    /// Stale values are fetched when the network is back.
    pub refetch_on_reconnect: bool,
    /// Shortest interval of polling for a visible session.
    pub poll_active: Duration,
    /// Shortest interval of polling for a hidden one.
    pub poll_background: Duration,
    /// Percent of charge below which polling is slow.
    pub battery_saver_below: u8,
}

impl Default for Preferences {
    /// Nothing is switched off, and no interval is longer than a resource asks for.
    fn default() -> Self {
        Self {
            automatic_updates: true,
            refetch_on_subscribe: true,
            refetch_on_focus: true,
            refetch_on_reconnect: true,
            poll_active: Duration::ZERO,
            poll_background: Duration::ZERO,
            battery_saver_below: 20,
        }
    }
}

/// Questions.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// A value.
    Fetch {
        /// The key.
        key: Key,
        /// How fresh.
        want: Want,
    },
    /// Fetch all at or under a key that somebody can fetch; answered when all are done.
    Refetch {
        /// The prefix.
        key: Key,
        /// Only the key itself.
        exact: bool,
        /// Only what is stale.
        stale: bool,
        /// Which.
        refetch: RefetchType,
    },
    /// What an invalidation would reach.
    Preview {
        /// The prefix.
        key: Key,
        /// Only the key itself.
        exact: bool,
    },
}

/// Answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To [`Ask::Fetch`].
    Fetched(Fetched),
    /// To [`Ask::Refetch`]: how many were fetched, and the failures, at most [`FAILURES_SHOWN`](crate::limits::FAILURES_SHOWN) of them in full.
    Refetched {
        /// With a new value.
        ok: u64,
        /// Without.
        failed: u64,
        /// The first failures.
        failures: Vec<(Key, Arc<str>)>,
    },
    /// To [`Ask::Preview`].
    Cascade(Vec<CascadeLine>),
}

/// Wishes. The hub carries out those about values at once, and tells the outcome as facts.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Ask this session to fetch; answered by [`Input::Fetched`].
    Fetch {
        /// Whom.
        session: SessionId,
        /// What.
        request: FetchRequest,
    },
    /// Nobody wants the attempt any more; its answer will be ignored.
    CancelFetch {
        /// Whom.
        session: SessionId,
        /// The attempt.
        id: FetchId,
    },
    /// Install what a fetch found. The hub may keep a greater version; either way it says what stands by
    /// [`Input::Changed`].
    Install {
        /// The key.
        key: Key,
        /// JSON bytes.
        value: Bytes,
        /// The server's version.
        version: Version,
        /// The cause.
        trace: Trace,
    },
    /// The value that is held is right: only its time moves.
    Touch {
        /// The key.
        key: Key,
        /// The cause.
        trace: Trace,
    },
    /// Mark these keys stale, each alone: they depend on what was invalidated. Not told back.
    Mark {
        /// The keys.
        keys: Vec<Key>,
        /// The cause.
        trace: Trace,
    },
    /// No mark makes this value stale: it is taken away. Not told back.
    Unmark {
        /// The key.
        key: Key,
    },
    /// Show the state of a query to its subscribers.
    Show {
        /// The key.
        key: Key,
        /// Its state.
        state: QueryState,
    },
    /// Nobody looked at the key for its gc time: drop its value.
    Remove {
        /// The key.
        key: Key,
    },
    /// Answer a question.
    Answer {
        /// The question.
        id: AskId,
        /// The answer.
        answer: Answer,
    },
    /// Something that people may want to know.
    Note(Note),
}

/// Observable steps of the engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// A fetch ended.
    FetchEnded {
        /// The key.
        key: Key,
        /// Nobody waited.
        background: bool,
        /// Nanoseconds from the first attempt to the end.
        took_ns: u64,
        /// Attempts.
        attempts: u32,
        /// Why it failed.
        failure: Option<Arc<str>>,
        /// The cause.
        trace: Trace,
    },
    /// The refresh service looked at what is due.
    Refresh {
        /// Values looked at.
        checked: u32,
        /// Of them stale.
        stale: u32,
        /// Refreshes begun.
        begun: u32,
    },
    /// A value turned stale by time.
    TurnedStale {
        /// The key.
        key: Key,
        /// Its age.
        age_ns: u64,
        /// The limit.
        limit_ns: u64,
    },
    /// The group went over to another strategy.
    Strategy {
        /// Some session is visible.
        active: bool,
    },
    /// Upstreams can, or cannot, be reached.
    Online(bool),
    /// The group has as many resources as it may have; this one has no effect.
    ResourcesFull {
        /// The resource.
        resource: Arc<str>,
        /// Who declared it.
        session: SessionId,
    },
    /// A server asked everybody to wait.
    RetryAfter {
        /// The server, or the resource.
        server: Arc<str>,
        /// Until then.
        until: Time,
    },
}
