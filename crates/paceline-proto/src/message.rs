//! Everything that crosses a local connection. The only serializable messages of the group protocol.
//!
//! **Invariant:** variants and fields are append-only within a protocol version; `paceline-ipc`'s golden-bytes test
//! holds the encoding of each. Every reader checks length caps before it allocates.
//!
//! The life of a link, from the session's side: `Hello` → `Welcome` (or `Busy`, `Refused`) → `Subscribe`* and offers →
//! `Snapshot`* → batches, each a `Batch` header followed by its `Frame`s, until `Moved`, `Close` or EOF.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    connection::Connection,
    fetch::{
        CascadeLine, Declared, FetchId, FetchOutcome, FetchRequest, Fetched, QueryState, RefetchType, Want,
    },
    id::{
        Channel, Epoch, Key, Mark, MutationId, Nonce, Offset, OpId, Place, Position, SessionId, Stream,
        Trace, Version,
    },
    look::{KeyInfo, Look, ReignStats, Seen, SessionInfo},
    presence::Presence,
    program::{Age, Features, ProtoRange, Release},
    time::Time,
};

/// First message of a session on a new connection; at most `HELLO_MAX` bytes. It and its answers are read before a version
/// is agreed on, so they are the same in every version: what a later one adds goes into `more`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Proof that the session could read the owner's claim: the nonce in it.
    pub proof: Nonce,
    /// Versions the session speaks.
    pub proto: ProtoRange,
    /// Who joins.
    pub session: SessionId,
    /// A name for people.
    pub label: String,
    /// Build of the session's binary, for people.
    pub build: String,
    /// Process id, for people; never used to decide.
    pub pid: u32,
    /// Whether the session may lead.
    pub rank: Rank,
    /// The last place up to which the session has everything of its interest.
    pub last: Mark,
    /// Digest of all that the session declares for the group; zero where it declares nothing.
    pub declared: u64,
    /// What the session shows to its user.
    pub presence: Presence,
    /// The release of this software in the session's program.
    pub release: Release,
    /// What its build can do beyond the version.
    pub features: Features,
    /// The highest schema of a store that its build was made for.
    pub schema: u32,
    /// What later versions add; passed over by whoever does not know it.
    pub more: Bytes,
}

/// Whether and how readily a session leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Rank {
    /// Never leads.
    Observer,
    /// Leads when needed.
    Candidate,
    /// A coordinator: chosen first as heir, and given a polite handover.
    Preferred,
}

/// A heir as named in pings and Welcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heir {
    /// The session.
    pub session: SessionId,
    /// Its kit, once made; a session may connect there at once after the owner's death.
    pub kit: Option<KitAddress>,
    /// Whether it has acknowledged all shared state (an heir that has not is not counted).
    pub current: bool,
    /// As in its Hello; a preferred one that is current gets a polite handover.
    pub rank: Rank,
    /// How its build stands to the owner's; a newer one that is current gets a polite handover.
    pub age: Age,
}

/// Where a kit's socket listens, and the nonce that its claim file will show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitAddress {
    /// File name of the socket below `s/`.
    pub socket: String,
    /// The kit's nonce.
    pub nonce: Nonce,
}

/// A member of the group as the owner counts them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The session.
    pub session: SessionId,
    /// A name for people.
    pub label: String,
    /// Process id, for people.
    pub pid: u32,
    /// Connected now, or still awaited.
    pub joined: bool,
}

/// Answer to an acceptable Hello. From here on the session follows `epoch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Protocol version of this connection.
    pub proto: u16,
    /// The owner's session.
    pub owner: SessionId,
    /// The owner has not adopted the predecessor's mutations yet: submits wait, all else is served.
    pub adopting: bool,
    /// Changes the session knows since this place are wanted as an offer; `None` = offer everything held.
    pub offer_since: Option<Mark>,
    /// Where the channels stand.
    pub positions: Vec<(Channel, Position)>,
    /// What both ends of this connection can do beyond the version.
    pub features: Features,
    /// What later versions add; passed over by whoever does not know it.
    pub more: Bytes,
}

/// Sent every `PING_INTERVAL`; carries what a claimer must know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ping {
    /// The heirs, first in line first.
    pub heirs: Vec<Heir>,
    /// What every counted member has acknowledged.
    pub stable: Mark,
    /// Joined and still awaited members; on the wire empty where unchanged since the link's last ping (the follower
    /// machine fills it in again).
    pub members: Vec<Member>,
    /// Whether adoption is still under way.
    pub adopting: bool,
    /// The owner began without a list, a short time ago: there may be members that it has not heard of.
    pub unlisted: bool,
}

/// Why a session was turned away for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No common protocol version.
    Version {
        /// The owner's range.
        owner: ProtoRange,
        /// The owner's build.
        build: String,
        /// The owner's process id.
        pid: u32,
    },
    /// The nonce was not the one in the claim.
    Proof,
    /// `SESSIONS_MAX` sessions are joined.
    Full,
    /// The message broke the protocol; the text says how.
    Protocol(String),
}

/// Header of a batch: everything of the link's interest in (after, upto] is in the `count` frames that follow.
/// A gap is `after` ≠ the last `upto`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// End of the previous batch or snapshot of this link.
    pub after: Offset,
    /// End of this one.
    pub upto: Offset,
    /// Where channels stand at `upto`; only those that moved since `after`.
    pub positions: Vec<(Channel, Position)>,
    /// How many frames follow.
    pub count: u32,
    /// Acknowledge at once: somebody waits for it.
    pub ack_now: bool,
    /// Older frames of a key were left out in favour of newer ones; event streams were cut (a `Gap` frame says so).
    pub conflated: bool,
}

/// One change of shared state, encoded once and shared by all links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Its place within the epoch.
    pub offset: Offset,
    /// Its cause.
    pub trace: Trace,
    /// The channel message it came from.
    pub origin: Option<(Channel, Position)>,
    /// The volatile operation it carries out.
    pub op: Option<HeldOp>,
    /// Frames of one upstream message form an atom; this is its last. Batches end only here.
    pub ends_atom: bool,
    /// What changed.
    pub body: Body,
}

/// What a frame changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// A key has this value at this place.
    Value(Held),
    /// Keys at or under `key` (`exact`: only it) are stale from here on.
    Invalidate {
        /// The prefix.
        key: Key,
        /// Only the key itself.
        exact: bool,
    },
    /// An ordered event of a stream; never conflated.
    Event {
        /// The stream.
        stream: Stream,
        /// JSON bytes.
        data: Bytes,
    },
    /// Events or values of a channel may be missing in (after, upto].
    Gap(Gap),
    /// The key goes back to `held` (or to no value): the one way a version may go down.
    Reset {
        /// The key.
        key: Key,
        /// Its new value, if any.
        held: Option<Held>,
        /// Why.
        why: String,
    },
    /// The state of an upstream connection, the group's.
    Connection(Connection),
    /// Takes a place without a change (an operation that changed nothing).
    Nothing,
    /// The state of a query besides its value.
    Query {
        /// The key.
        key: Key,
        /// Its state.
        state: QueryState,
    },
    /// The value of a key that nobody subscribes to was dropped. Unlike a Reset it leaves no place behind.
    Removed {
        /// The key.
        key: Key,
    },
    /// The layers over a key, all of them. Only on links with [`Features::LAYERS`].
    Layers(Layered),
}

/// What an operation that is not done yet would make of a value. Its id is that of the operation: who has its effect in the
/// value does not fold the layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The operation that makes it permanent.
    pub id: OpId,
    /// The frame that laid it, which is its place among the layers of the key; [`Mark::ZERO`] = not laid yet.
    pub at: Mark,
    /// Patch bytes as `paceline-query` writes them.
    pub patch: Bytes,
}

/// A key and its layers, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layered {
    /// The key.
    pub key: Key,
    /// The layers.
    pub layers: Vec<Layer>,
}

/// A value with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The key.
    pub key: Key,
    /// Where it stands among all values of the key.
    pub place: Place,
    /// JSON bytes; empty where a Reset left the key without a value.
    pub value: Bytes,
    /// Content hash of `value`.
    pub hash: u64,
    /// Marked stale by an invalidation after it was installed.
    pub invalidated: bool,
    /// When it was found to be right: pushed, set or fetched.
    pub updated_at: Time,
}

/// A part of a channel that could not be delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The channel.
    pub channel: Channel,
    /// The last position known to be delivered, if any.
    pub after: Option<Position>,
    /// The first position known to be delivered again is after this one, if known.
    pub upto: Option<Position>,
    /// Who lost it.
    pub why: GapCause,
}

/// Who lost the events of a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GapCause {
    /// The upstream could not resume.
    Upstream,
    /// The subscriber was too slow and its queue was conflated.
    SlowReader,
    /// The subscriber came back too late for every ring and the upstream cannot replay.
    Resync,
}

/// An event as kept in rings and sent as a tail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldEvent {
    /// The frame that carried it first.
    pub mark: Mark,
    /// Its channel and position.
    pub origin: (Channel, Position),
    /// The stream.
    pub stream: Stream,
    /// JSON bytes.
    pub data: Bytes,
}

/// A volatile operation as kept by heirs above the stable offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldOp {
    /// Its identity.
    pub id: OpId,
    /// What it does.
    pub operation: Operation,
}

/// A volatile change by a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Replace the value.
    Set {
        /// The key.
        key: Key,
        /// JSON bytes.
        value: Bytes,
    },
    /// Fold a patch onto the value.
    Merge {
        /// The key.
        key: Key,
        /// Patch bytes as `paceline-query` writes them.
        patch: Bytes,
    },
    /// Replace the value if it still stands at `base` (`None`: if there is none).
    CompareSet {
        /// The key.
        key: Key,
        /// The place the caller saw.
        base: Option<Place>,
        /// JSON bytes.
        value: Bytes,
    },
    /// Mark keys stale.
    Invalidate {
        /// The prefix.
        key: Key,
        /// Only the key itself.
        exact: bool,
    },
}

/// How a volatile operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpOutcome {
    /// Applied at `mark`; `volatile` = no heir holds it, so the owner's death alone would lose it.
    Applied {
        /// The frame that carried it.
        mark: Mark,
        /// Held by the owner only.
        volatile: bool,
    },
    /// A compare-and-set lost; nothing changed.
    Conflict,
    /// The patch does not fit the value, or a bound was exceeded; nothing changed.
    Rejected(String),
}

/// Where a session stands in a channel, offered to a new owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelOffer {
    /// The channel.
    pub channel: Channel,
    /// Everything of the session's interest up to here arrived.
    pub covered: Position,
    /// The events it can hand on: all of its subscribed streams after this position (`None` = since the channel
    /// began; equal to `covered` where none are kept).
    pub ring_after: Option<Position>,
    /// The session was an up-to-date heir: its ring holds the events of all streams, not only of its own.
    pub complete: bool,
}

/// Operations of one session that were applied, whether or not their bytes are still kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The session whose caller made them.
    pub session: SessionId,
    /// Their sequence numbers, as ascending inclusive runs.
    pub runs: Vec<(u64, u64)>,
}

/// Something that a session declares for its group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredItem {
    /// For example `upstreams.feed`.
    pub name: String,
    /// Of its content.
    pub digest: u64,
    /// Where it is declared, for people.
    pub place: String,
}

/// Who declares an item, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declarer {
    /// The session.
    pub session: SessionId,
    /// Its process id, for people.
    pub pid: u32,
    /// For people.
    pub place: String,
}

/// An item that two sessions declare differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemConflict {
    /// Its name.
    pub item: String,
    /// Whose declaration does not count.
    pub ignored: Declarer,
    /// Whose declaration counts.
    pub counts: Declarer,
}

/// A key a session holds, offered to a new owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyOffer {
    /// The key.
    pub key: Key,
    /// Place of the held value.
    pub place: Place,
    /// Hash of the held value.
    pub hash: u64,
}

/// A mutation on its way to the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submit {
    /// Identity, made by the caller before the first submit.
    pub id: MutationId,
    /// First 16 bytes of SHA-256 of the payload.
    pub hash: [u8; 16],
    /// What to store.
    pub payload: Bytes,
}

/// The owner's word on a submit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubmitOutcome {
    /// Durable: it cannot be lost any more.
    Acknowledged,
    /// Another payload is stored under this id; the state did not change.
    HashMismatch,
    /// An earlier mutation of the session is missing; submit that first.
    Hole {
        /// The sequence number wanted.
        expected: u64,
    },
    /// The owner was replaced before it could acknowledge; the next owner decides, submit again with the same id.
    Moved,
    /// Whether it is stored is unknown; submit again with the same id.
    Unknown(String),
    /// A bound is reached; try later.
    Busy,
}

/// A question to the owner; re-issued to the next one when it stays unanswered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Hand over to this session, or to the first heir.
    Promote(Option<SessionId>),
    /// Answered when everything before it was processed.
    Sync,
    /// Who is in the group.
    Members,
    /// Who is in the group and how far each is, in full.
    Sessions,
    /// The keys of the cache after this one, in the order of their bytes.
    Keys {
        /// Exclusive start; `None` = from the first.
        after: Option<Key>,
    },
    /// Counters of the reign.
    Stats,
    /// A look into this session, passed on to it and answered by it. Stays unanswered while the session does not answer.
    Look {
        /// Whom to ask.
        at: SessionId,
        /// What.
        look: Look,
    },
    /// A value of a key, as fresh as wanted.
    Fetch {
        /// The key.
        key: Key,
        /// How fresh.
        want: Want,
    },
    /// Fetch again what lies at or under a key; answered when all of it is done.
    Refetch {
        /// The prefix.
        key: Key,
        /// Only the key itself.
        exact: bool,
        /// Only what is stale.
        stale: bool,
        /// Which members.
        refetch: RefetchType,
    },
    /// What an invalidation would reach.
    Preview {
        /// The prefix.
        key: Key,
        /// Only the key itself.
        exact: bool,
    },
    /// Mark the resources of a tag stale, and what depends on it.
    InvalidateTag {
        /// The tag.
        tag: Arc<str>,
        /// Which members are fetched at once.
        refetch: RefetchType,
    },
    /// The manual switch: whether upstreams can be reached.
    Online(bool),
    /// What sessions declare differently.
    Conflicts,
    /// How many layers lie over keys after this one, in the order of their bytes.
    Layers {
        /// Exclusive start; `None` = from the first.
        after: Option<Key>,
    },
    /// A question about mutations, or a wish.
    Outbox(OutboxAsk),
}

/// What a session asks of the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutboxAsk {
    /// What became of a mutation; answered when it has an outcome.
    Outcome(MutationId),
    /// Send one that ended without success once more.
    Retry(MutationId),
    /// Give one up.
    Discard(MutationId),
    /// There are other credentials: what waits for them is sent again.
    Authenticated,
}

/// How a mutation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OutcomeKind {
    /// The server took it.
    Done,
    /// The server refused it.
    Rejected,
    /// All attempts failed. May change.
    Failed,
    /// The server's value had changed, and both versions are kept. May change.
    Conflict,
    /// Whether it was applied is not known. May change.
    Parked,
    /// It was taken back.
    Discarded,
}

/// Answer to an `Ask`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Done,
    /// The members.
    Members(Vec<Member>),
    /// Not done; the text says why.
    Refused(String),
    /// The sessions, the owner first.
    Sessions(Vec<SessionInfo>),
    /// Keys in the order of their bytes.
    Keys {
        /// The keys.
        keys: Vec<KeyInfo>,
        /// Others follow the last of these.
        more: bool,
    },
    /// The counters.
    Stats(ReignStats),
    /// What the session found.
    Seen(Seen),
    /// What came of a fetch.
    Fetched(Fetched),
    /// What came of a refetch.
    Refetched {
        /// Keys with a new value.
        ok: u64,
        /// Keys without.
        failed: u64,
        /// The first failures.
        failures: Vec<(Key, Arc<str>)>,
    },
    /// What an invalidation would reach.
    Cascade(Vec<CascadeLine>),
    /// What sessions declare differently; of more than a chunk, the first.
    Conflicts(Vec<ItemConflict>),
    /// Keys with layers, in the order of their bytes.
    Layers {
        /// The keys, and how many lie over each.
        keys: Vec<(Key, u64)>,
        /// Others follow the last of these.
        more: bool,
    },
    /// What became of a mutation.
    Outcome {
        /// How it ended.
        kind: OutcomeKind,
        /// Why, where the server did not take it.
        error: Option<String>,
        /// Whether it may have been applied all the same.
        uncertain: bool,
    },
}

/// From a session to the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHub {
    /// First message.
    Hello(Hello),
    /// Adds to the link's interest.
    Subscribe {
        /// Keys.
        keys: Vec<Key>,
        /// Streams.
        streams: Vec<Stream>,
    },
    /// Takes from the link's interest.
    Unsubscribe {
        /// Keys.
        keys: Vec<Key>,
        /// Streams.
        streams: Vec<Stream>,
    },
    /// Keys held, in chunks.
    OfferKeys(Vec<KeyOffer>),
    /// Channels and operations, after the keys; `end` closes the offer.
    OfferRest {
        /// Where the session stands.
        channels: Vec<ChannelOffer>,
        /// Operations above the stable offset.
        ops: Vec<(Mark, HeldOp)>,
        /// Operations whose effect is in the values held, those below the stable offset included.
        applied: Vec<Applied>,
        /// The offer is complete.
        end: bool,
    },
    /// Values the owner wanted.
    Values(Vec<Held>),
    /// Events the owner wanted; `end` closes the tail.
    Tail {
        /// The channel.
        channel: Channel,
        /// In order of position.
        events: Vec<HeldEvent>,
        /// Nothing more comes.
        end: bool,
    },
    /// Everything up to here is applied.
    Ack(Offset),
    /// The link broke the order (gap): send a snapshot.
    Resync,
    /// A volatile operation.
    Op {
        /// Its identity and content.
        op: HeldOp,
        /// Its cause.
        trace: Trace,
    },
    /// A mutation.
    Submit(Submit),
    /// A question.
    Ask {
        /// The session's number for it.
        id: u64,
        /// The question.
        ask: Ask,
        /// Its cause.
        trace: Trace,
    },
    /// What the session shows to its user changed.
    Presence(Presence),
    /// The heir's kit is ready.
    Kit(KitAddress),
    /// The heir claimed after `Go`.
    Took(Epoch),
    /// Leaves for good.
    Close,
    /// Answer to a look, for the session that asked.
    Seen {
        /// Who asked.
        asker: SessionId,
        /// Its number for it.
        id: u64,
        /// What was found.
        seen: Seen,
    },
    /// Part of the archive of a former heir: keys beyond its interest as it held them when it was last up to date, what
    /// those values contain, in chunks, before `OfferRest`. Without any keys from one that was up to date until now: what
    /// it would put aside is offered as held.
    OfferArchive {
        /// Where the channels stood in the values.
        channels: Vec<(Channel, Position)>,
        /// Operations in the values.
        applied: Vec<Applied>,
        /// Keys.
        keys: Vec<KeyOffer>,
    },
    /// Values of the archive that the owner wanted.
    ArchivedValues(Vec<Held>),
    /// Resources that the session knows, in chunks; told on every link.
    Declare(Vec<Declared>),
    /// What the session asks of a key, before it subscribes to it or while it does.
    Observe {
        /// The key.
        key: Key,
        /// What, as `paceline-query` writes it: JSON.
        options: Bytes,
    },
    /// What came of a fetch that the session was asked for.
    Fetched {
        /// The attempt.
        id: FetchId,
        /// What came of it.
        outcome: FetchOutcome,
    },
    /// What the session declares, in chunks; answer to `WantItems`.
    Items {
        /// The items.
        items: Vec<DeclaredItem>,
        /// Nothing more comes.
        end: bool,
    },
    /// Layers, in chunks. Within an offer: all that the session laid and that are open, and those of others that it
    /// shows. Afterwards: one that it lays now.
    Layers(Vec<Layered>),
    /// The session takes these layers of its own back.
    TakeBack(Vec<u64>),
}

/// From the owner to a session.
#[expect(
    clippy::large_enum_variant,
    reason = "a message is encoded or applied at once, never stored in numbers"
)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSession {
    /// Accepted.
    Welcome(Welcome),
    /// Alive, but not now.
    Busy {
        /// Try again after so many milliseconds.
        retry_ms: u32,
    },
    /// Turned away.
    Refused(Refusal),
    /// Alive.
    Ping(Ping),
    /// Frames follow.
    Batch(Batch),
    /// One of the frames of a batch.
    Frame(Frame),
    /// State of the link's interest, in chunks.
    Snapshot(Snapshot),
    /// Values of the offer that the owner lacks.
    WantKeys(Vec<Key>),
    /// Events after `after` that the owner lacks.
    WantTail {
        /// The channel.
        channel: Channel,
        /// Exclusive start; `None` = all kept.
        after: Option<Position>,
    },
    /// The operation's end.
    OpDone {
        /// Which.
        id: OpId,
        /// How.
        outcome: OpOutcome,
    },
    /// The submit's end.
    SubmitDone {
        /// Which.
        id: MutationId,
        /// How.
        outcome: SubmitOutcome,
    },
    /// Answer to an ask.
    Answer {
        /// Which.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// The session is now an heir: it receives everything and makes a kit. Its snapshot follows.
    Appointed,
    /// The session is an heir no longer.
    Dismissed,
    /// Claim now: the owner stopped at this place, and its upstream connections are closed.
    Go {
        /// The owner's last place.
        last: Mark,
    },
    /// The owner handed over.
    Moved {
        /// The new epoch.
        epoch: Epoch,
        /// Its socket and nonce.
        to: KitAddress,
    },
    /// The owner ends without a successor.
    Close,
    /// Another session wants a look into this one.
    Look {
        /// Who asks.
        asker: SessionId,
        /// Its number for it.
        id: u64,
        /// What it wants to see.
        look: Look,
    },
    /// A current heir holds everything that the session's archive offered.
    ArchiveHeld,
    /// Operations whose effect is in everybody's values, which the owner learned of only now.
    Applied(Vec<Applied>),
    /// Fetch this.
    Fetch(FetchRequest),
    /// The attempt is not wanted any more.
    CancelFetch(FetchId),
    /// Not all sessions declare the same: say what you do.
    WantItems,
    /// What the session declares and others declared otherwise, whose declarations count.
    Conflicts(Vec<ItemConflict>),
    /// Part of the snapshot that goes on: layers over keys of the chunks before and after it.
    Layers(Vec<Layered>),
    /// There is no room for these layers of the session: nobody shows them. Their operations are none the worse.
    NoRoom(Vec<u64>),
}

/// A chunk of a snapshot. The follower's `last` advances only at `end`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Values.
    pub held: Vec<Held>,
    /// Tails of event streams that the session has not seen, in order.
    pub events: Vec<HeldEvent>,
    /// Gaps that lie in those tails, with the frames that showed them first; those of one chunk come before its events.
    pub gaps: Vec<(Mark, Gap)>,
    /// Volatile operations known (full to heirs).
    pub ops: Vec<(Mark, HeldOp)>,
    /// Upstream connections.
    pub connections: Vec<Connection>,
    /// States of queries other than the default.
    pub states: Vec<(Key, QueryState)>,
    /// The snapshot is complete.
    pub end: Option<SnapshotEnd>,
}

/// Closes a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEnd {
    /// The link's batches continue after this offset.
    pub upto: Offset,
    /// Where the channels stand there.
    pub positions: Vec<(Channel, Position)>,
    /// It held all shared state (for an heir), not only the interest.
    pub complete: bool,
    /// Where the event rings begin that an heir now holds (`None` = since the channel began). To others: the channels
    /// that have not begun.
    pub rings: Vec<(Channel, Option<Position>)>,
    /// Operations whose effect is in it, those whose bytes are not kept any more included.
    pub applied: Vec<Applied>,
}

/// A change as an upstream's routes produce it, before it has a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Set a key.
    Set {
        /// The key.
        key: Key,
        /// JSON bytes.
        value: Bytes,
        /// The server's version.
        version: Version,
    },
    /// Fold a patch.
    Merge {
        /// The key.
        key: Key,
        /// Patch bytes.
        patch: Bytes,
    },
    /// Mark stale.
    Invalidate {
        /// The prefix.
        key: Key,
        /// Only the key itself.
        exact: bool,
    },
    /// Emit an ordered event.
    Event {
        /// The stream.
        stream: Stream,
        /// JSON bytes.
        data: Bytes,
    },
}

/// A frame shared by all links: the encoding is made once, by the first link that needs it.
#[derive(Debug)]
pub struct Shared {
    /// The frame.
    pub frame: Frame,
    /// Its length-prefixed encoding as `ToSession::Frame`; filled by the transport.
    pub encoded: std::sync::OnceLock<Bytes>,
    /// Estimated bytes, for bounds.
    pub size: usize,
}

impl Shared {
    /// Wraps a frame.
    pub fn new(frame: Frame) -> Arc<Self> {
        let size = 96 + frame.body.size() + frame.op.as_ref().map_or(0, |op| op.operation.size());
        Arc::new(Self { frame, encoded: std::sync::OnceLock::new(), size })
    }
}

impl Body {
    /// The key it is about.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Self::Value(held) => Some(&held.key),
            Self::Invalidate { key, .. }
            | Self::Reset { key, .. }
            | Self::Query { key, .. }
            | Self::Removed { key } => Some(key),
            Self::Layers(layered) => Some(&layered.key),
            Self::Event { .. } | Self::Gap(_) | Self::Connection(_) | Self::Nothing => None,
        }
    }

    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        match self {
            Self::Value(held) => held.size(),
            Self::Invalidate { key, .. } | Self::Removed { key } => key.0.len(),
            Self::Query { key, state } => key.0.len() + state.error.as_ref().map_or(0, |why| why.len()),
            Self::Event { stream, data } => stream.0.len() + data.len(),
            Self::Gap(gap) => gap.channel.0.len(),
            Self::Reset { key, held, .. } => key.0.len() + held.as_ref().map_or(0, Held::size),
            Self::Layers(layered) => layered.size(),
            Self::Connection(_) | Self::Nothing => 0,
        }
    }
}

impl ItemConflict {
    /// An estimate of its bytes on the wire.
    pub fn size(&self) -> usize {
        64 + self.item.len() + self.ignored.place.len() + self.counts.place.len()
    }
}

impl fmt::Display for Declarer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {}, process {} ({})", self.session.short(), self.pid, self.place)
    }
}

impl fmt::Display for ItemConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { item, ignored, counts } = self;
        write!(f, "{item} of {ignored} is not that of {counts}, which counts")
    }
}

impl Layered {
    /// Bytes of key and patches, and what a layer adds to its patch.
    pub fn size(&self) -> usize {
        self.key.0.len() + self.layers.iter().map(|layer| 64 + layer.patch.len()).sum::<usize>()
    }
}

impl Held {
    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        self.key.0.len() + self.value.len()
    }
}

impl Operation {
    /// The key it touches.
    pub fn key(&self) -> &Key {
        match self {
            Self::Set { key, .. }
            | Self::Merge { key, .. }
            | Self::CompareSet { key, .. }
            | Self::Invalidate { key, .. } => key,
        }
    }

    /// Bytes of key and value or patch.
    pub fn size(&self) -> usize {
        match self {
            Self::Set { key, value } | Self::CompareSet { key, value, .. } => key.0.len() + value.len(),
            Self::Merge { key, patch } => key.0.len() + patch.len(),
            Self::Invalidate { key, .. } => key.0.len(),
        }
    }
}
