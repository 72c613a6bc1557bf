//! What goes into the hub, what comes out, and what it begins with.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use crate::{
    connection::Connection,
    event::Event,
    id::{Channel, Epoch, Key, LinkId, Mark, MutationId, Place, Position, SessionId, Stream, Trace, Version},
    message::{
        Applied, Batch, Change, Held, HeldOp, Hello, KitAddress, Layered, Member, Shared, Submit,
        SubmitOutcome, ToHub, ToSession,
    },
    program::Program,
};

/// How patches are folded and contents compared; supplied by the data layer so that values stay opaque here.
pub trait Fold {
    /// The value after the patch, or why it does not fit.
    fn fold(&self, old: Option<&[u8]>, patch: &[u8]) -> Result<Bytes, String>;
    /// Content hash: equal for equal bytes, the same in every process and build.
    fn hash(&self, value: &[u8]) -> u64;
}

pub use crate::ring::Kept;

/// Class of continuity of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Resumes at a position and proves that nothing is missing.
    Proven,
    /// Resumes at a position without proof.
    Unproven,
    /// Cannot resume.
    None,
}

/// A channel the owner opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelSpec {
    /// Its name.
    pub channel: Channel,
    /// What the upstream can do after a reconnect.
    pub resume: Resume,
    /// Positions are numbers without holes, so a hole proves a loss and its absence proves none.
    pub dense: bool,
}

/// What a session carries into its reign: everything its own follower holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Carried {
    /// Up to here it has everything of its interest.
    pub last: Mark,
    /// It was an up-to-date heir: it has all shared state up to `last`.
    pub complete: bool,
    /// The stable place last heard.
    pub stable: Mark,
    /// Values.
    pub held: Vec<Held>,
    /// What it held beyond its interest when it was last an up-to-date heir.
    pub archive: Option<Archive>,
    /// Where the channels stand at `last`.
    pub positions: Vec<(Channel, Position)>,
    /// Streams it was subscribed to.
    pub streams: Vec<Stream>,
    /// Events and gaps kept, in order.
    pub kept: Vec<Kept>,
    /// Where `kept` begins for each channel: it holds every event (of `streams`, or of all if `complete`) after this
    /// position; `None` = since the channel began.
    pub rings: Vec<(Channel, Option<Position>)>,
    /// Volatile operations kept.
    pub ops: Vec<(Mark, HeldOp)>,
    /// Operations known to be applied, those no longer kept included.
    pub applied: Vec<Applied>,
    /// Layers as the owner told them, of keys that the session followed.
    pub layers: Vec<Layered>,
    /// Upstream connections as last heard.
    pub connections: Vec<Connection>,
}

/// Everything a session held when it was last an up-to-date heir. It is kept, and offered to each new owner, until a current
/// heir holds it: who follows as an ordinary member hears only of its own interest.
///
/// **Invariant:** `positions` and `applied` say what is in these values, no more and no less.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Archive {
    /// Values.
    pub held: BTreeMap<Key, Held>,
    /// Where the channels stood.
    pub positions: Vec<(Channel, Position)>,
    /// Operations that were applied.
    pub applied: Vec<Applied>,
}

impl Archive {
    /// The same with its values marked stale: changes since then were not heard.
    pub(crate) fn stale(&self) -> Self {
        let held = self.held.iter().map(|(key, held)| (key.clone(), stale(held))).collect();
        Self { held, ..self.clone() }
    }
}

pub(crate) fn stale(held: &Held) -> Held {
    Held { invalidated: !held.value.is_empty(), ..held.clone() }
}

/// Facts the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A connection said an acceptable Hello and the fence was checked. `remote` = another process.
    Linked {
        /// The connection.
        link: LinkId,
        /// What it said.
        hello: Hello,
        /// Not the owner's own loopback.
        remote: bool,
    },
    /// A message of a linked session.
    Message {
        /// The connection.
        link: LinkId,
        /// The message.
        message: ToHub,
    },
    /// The connection ended.
    Unlinked {
        /// The connection.
        link: LinkId,
    },
    /// The transport took everything of the last `Hub::write`.
    Written {
        /// The connection.
        link: LinkId,
    },
    /// An upstream (re)connected the channel: `resumed` = it continues after the position asked for.
    ChannelOpened {
        /// The channel.
        channel: Channel,
        /// Nothing is missing between the position asked for and the first message.
        resumed: bool,
    },
    /// One upstream message: an atom of changes. A message with a position is told even if it changes nothing: for a
    /// dense channel a hole in the positions is a loss.
    Publish {
        /// The channel it came on.
        channel: Channel,
        /// Its position as the upstream gives it.
        position: Option<Position>,
        /// False for the snapshot that some upstreams send on connect: its values are applied, but it has no position
        /// and its events are not taken.
        live: bool,
        /// The changes, in order.
        changes: Vec<Change>,
        /// Its cause.
        trace: Trace,
    },
    /// What a fetch found when the key had to go back: the one way a version may go down. Ignored unless the key still
    /// stands at `base`, the place seen when the fetch began, and no message that waits changes it.
    Reset {
        /// The key.
        key: Key,
        /// The value found and its version; `None` = the server has none.
        value: Option<(Bytes, Version)>,
        /// Where the key stood when the fetch began; `None` = it was not held.
        base: Option<Place>,
        /// Why it went back.
        why: String,
        /// Its cause.
        trace: Trace,
    },
    /// The state of an upstream connection changed.
    Connection(Connection),
    /// The outbox answers; the fence was checked after the commit.
    Stored(Vec<(MutationId, SubmitOutcome)>),
    /// Adoption ended: submits are taken from here on.
    Adopted,
    /// Answer to [`Effect::LookAtMember`]: the session's lock is free: it is dead.
    MemberDead(SessionId),
    /// Stop taking operations and submits (they stay unanswered and are re-issued to the next owner); answer with
    /// [`Effect::Drained`] once everything queued for `to` is written and acknowledged by it.
    Drain {
        /// The heir.
        to: SessionId,
    },
    /// The handover failed, or was refused before it began: go on as before. All channels are opened again if a drain
    /// had begun; whoever asked for the handover is told.
    Resume,
    /// No handover was started for those who asked for one.
    PromoteRefused {
        /// Why.
        why: String,
    },
    /// Tell this heir to claim.
    SendGo {
        /// The heir.
        to: SessionId,
        /// The own last place.
        last: Mark,
    },
    /// Tell all where the new owner is.
    SendMoved {
        /// Its epoch.
        epoch: Epoch,
        /// Where it listens.
        to: KitAddress,
    },
    /// Tell all that the owner ends without a successor.
    SendClose,
    /// A wish of the query engine.
    Query(super::QueryWish),
    /// The deadline passed.
    Deadline,
}

/// Wishes of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The link has something to write.
    Wake(LinkId),
    /// Drop the connection.
    Unlink {
        /// Which.
        link: LinkId,
        /// Why.
        why: String,
    },
    /// Connect the channel, or reconnect it, to continue after `resume` (`None` = from now).
    OpenChannel {
        /// The channel.
        channel: Channel,
        /// The position to resume at.
        resume: Option<Position>,
    },
    /// Store the mutation; answered by [`Input::Stored`].
    Store(Submit),
    /// Look whether the session is dead (its lock is free); answer with [`Input::MemberDead`] if so.
    LookAtMember(SessionId),
    /// A session asked for a handover; to Election.
    Promote {
        /// To whom.
        to: Option<SessionId>,
    },
    /// The heir says it owns this epoch; to Election.
    Took {
        /// Its epoch.
        epoch: Epoch,
        /// Where it listens.
        to: Option<KitAddress>,
    },
    /// Quiet: answer to [`Input::Drain`]; to Election.
    Drained {
        /// The last place.
        last: Mark,
    },
    /// A session reported its presence (its own link included), or left.
    Presence {
        /// The session.
        session: SessionId,
        /// What it shows; `None` = gone.
        presence: Option<crate::presence::Presence>,
    },
    /// For the query engine, in the order of the log.
    Query(super::QueryFact),
    /// Observable event.
    Event(Event),
}

/// What the machine is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// The reign.
    pub epoch: Epoch,
    /// The owner's session.
    pub session: SessionId,
    /// Its program.
    pub program: Program,
    /// What the owner's follower held.
    pub carried: Carried,
    /// The last member list heard; `None` = never heard one.
    pub members: Option<Vec<Member>>,
    /// Channels to open.
    pub channels: Vec<ChannelSpec>,
}

/// One piece of output for a link.
#[expect(clippy::large_enum_variant, reason = "a piece is written at once, never stored")]
#[derive(Debug, Clone)]
pub enum Part {
    /// A message to encode.
    Message(ToSession),
    /// A batch header and its frames, whose encodings are shared.
    Batch {
        /// The header.
        header: Batch,
        /// `header.count` frames.
        frames: Vec<Arc<Shared>>,
    },
}
