//! What goes into the follower and what comes out.

use bytes::Bytes;

use crate::{
    connection::Connection,
    event::Event,
    fetch::{Declared, FetchId, FetchOutcome, FetchRequest, QueryState},
    id::{Key, Mark, SessionId, Stream, Trace},
    look::{Look, Seen},
    message::{
        Answer, Ask, DeclaredItem, Gap, Held, HeldEvent, KitAddress, Layer, OpOutcome, Operation, Ping,
        SubmitOutcome, ToHub, ToSession, Welcome,
    },
    presence::Presence,
};

/// Facts the machine is told.
#[expect(clippy::large_enum_variant, reason = "a fact is handed over once, never stored")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A new link: its Welcome. Everything that follows on it comes as [`Input::Message`].
    Linked(Welcome),
    /// A message of the current link.
    Message(ToSession),
    /// The current link ended.
    LinkLost,
    /// The first local subscriber of a key came.
    Subscribe(Key),
    /// The last local subscriber of a key left.
    Unsubscribe(Key),
    /// The first local subscriber of a stream came.
    SubscribeStream(Stream),
    /// The last local subscriber of a stream left.
    UnsubscribeStream(Stream),
    /// A caller's volatile operation; answered by [`Effect::OpDone`] with its token.
    Op {
        /// The caller's token.
        token: u64,
        /// What.
        operation: Operation,
        /// Its cause.
        trace: Trace,
    },
    /// Show what an operation would make of a key before it is done; answered by [`Effect::Laid`] with its token.
    Lay {
        /// The caller's token.
        token: u64,
        /// The key.
        key: Key,
        /// Patch bytes as `paceline-query` writes them.
        patch: Bytes,
    },
    /// The operation of a layer: it takes the layer's place. Answered as [`Input::Op`]; one that changes nothing takes the
    /// layer back.
    Commit {
        /// The caller's token.
        token: u64,
        /// The layer.
        layer: u64,
        /// What it does to the key.
        operation: Operation,
        /// Its cause.
        trace: Trace,
    },
    /// Take a layer back.
    TakeBack(u64),
    /// A caller's mutation; answered by [`Effect::SubmitDone`] with its token.
    Submit {
        /// The caller's token.
        token: u64,
        /// First 16 bytes of SHA-256 of the payload.
        hash: [u8; 16],
        /// What to store.
        payload: Bytes,
    },
    /// A caller's question; answered by [`Effect::Answered`] with its token.
    Ask {
        /// The caller's token.
        token: u64,
        /// What.
        ask: Ask,
        /// Its cause.
        trace: Trace,
    },
    /// The session knows these resources, besides those it told before.
    Declare(Vec<Declared>),
    /// All that the session declares for its group; told where sessions declare differently.
    Items(Vec<DeclaredItem>),
    /// What the session asks of a key, told on every link while it subscribes to it; comes before [`Input::Subscribe`]
    /// where it is to be known by then.
    Observe {
        /// The key.
        key: Key,
        /// What, as `paceline-query` writes it; empty = nothing any more.
        options: Bytes,
    },
    /// Answer to [`Effect::Fetch`].
    Fetched {
        /// The epoch of the request: an answer is for nobody else than who asked.
        epoch: crate::id::Epoch,
        /// The attempt.
        id: FetchId,
        /// What came of it.
        outcome: FetchOutcome,
    },
    /// What the session shows changed.
    Presence(Presence),
    /// The own kit is ready.
    KitReady(KitAddress),
    /// Tell the old owner that this session owns the epoch now.
    Took(crate::id::Epoch),
    /// Say Close to the owner.
    Leave,
    /// Answer to [`Effect::Look`].
    Seen {
        /// Who asked.
        asker: SessionId,
        /// Its number for it.
        id: u64,
        /// What was found.
        seen: Seen,
    },
    /// The deadline passed.
    Deadline,
}

/// Wishes of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send on the current link.
    Send(ToHub),
    /// The value of a key to show.
    Show(Held),
    /// The value that is shown was found to be right: only its time and place moved.
    Touch(Held),
    /// The key has no value any more.
    Clear(Key),
    /// A key and the layers over it, to show together. All other changes of a key with layers come so.
    ShowLayered {
        /// The key.
        key: Key,
        /// Its value, the base.
        held: Option<Held>,
        /// The layers, the lowest first; none = the base alone from here on.
        layers: Vec<Layer>,
    },
    /// A layer is shown here.
    Laid {
        /// The caller's token.
        token: u64,
        /// The layer's number in this session.
        layer: u64,
    },
    /// The state of a subscribed query to show.
    ShowState(Key, QueryState),
    /// Fetch; answered by [`Input::Fetched`].
    Fetch {
        /// The epoch of the owner that asks.
        epoch: crate::id::Epoch,
        /// What.
        request: FetchRequest,
    },
    /// The attempt is not wanted any more.
    CancelFetch {
        /// The epoch of the owner that asked.
        epoch: crate::id::Epoch,
        /// Which.
        id: FetchId,
    },
    /// Deliver to the stream's subscribers, in order.
    Deliver(HeldEvent),
    /// Show to all subscribers of streams of the channel.
    ShowGap(Gap),
    /// State of an upstream.
    Connection(Connection),
    /// The first snapshot of this link is complete: the session is joined.
    Synced {
        /// Up to here.
        at: Mark,
    },
    /// An operation ended.
    OpDone {
        /// The caller's token.
        token: u64,
        /// How.
        outcome: OpOutcome,
    },
    /// A submit ended.
    SubmitDone {
        /// The caller's token.
        token: u64,
        /// The mutation's sequence number in this session.
        seq: u64,
        /// How.
        outcome: SubmitOutcome,
    },
    /// An ask ended.
    Answered {
        /// The caller's token.
        token: u64,
        /// The answer.
        answer: Answer,
    },
    /// A caller's request was refused here: too many are unanswered.
    Overloaded {
        /// The caller's token.
        token: u64,
    },
    /// To Election.
    Ping(Ping),
    /// To Election: this session is an heir now (true) or no longer.
    Heir(bool),
    /// To Election: claim now.
    Go {
        /// The owner's last place.
        last: Mark,
    },
    /// To Election: the owner handed over.
    Moved {
        /// The new epoch.
        epoch: crate::id::Epoch,
        /// Where to connect.
        to: KitAddress,
    },
    /// To Election: the owner ends.
    OwnerClosed,
    /// Another session wants a look into this one; answered by [`Input::Seen`].
    Look {
        /// Who asks.
        asker: SessionId,
        /// Its number for it.
        id: u64,
        /// What it wants to see.
        look: Look,
    },
    /// The peer broke the protocol; drop the link.
    Break(String),
    /// Observable event.
    Event(Event),
}

/// What the machine is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// This session.
    pub session: SessionId,
}
