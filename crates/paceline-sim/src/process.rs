//! A simulated session process: the pure machines, the mailboxes between them, and what the process holds open.
//!
//! The actors are those of the runtime, one after the other on one thread. Each mailbox is first in, first out; which
//! actor runs next is chance. Blocking work (disk, listings) runs beside them as tasks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use paceline_channel::reign::Queries;
use paceline_proto::{
    election::{self, ConnectFailure, Election, Role, Target},
    fetch::FetchId,
    follower::{self, Follower},
    hub::{self, Hub, Part},
    id::{Channel, Epoch, Key, LinkId, MutationId, Offset, Position, SessionId, Stream},
    message::{Held, Hello, KitAddress, Member, Rank, Submit, SubmitOutcome, ToHub},
    program::Program,
    time::Time,
};

use crate::{
    disk::{DbId, Inode, Pid},
    feed::Down,
    net::ConnId,
    store::{Hash, Row, Segment},
};

/// Whether a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// It gets processor time.
    Running,
    /// SIGSTOP: nothing of it runs, everything it holds stays held.
    Stopped,
    /// SIGKILL came; the kernel has not closed everything yet.
    Dying,
    /// Gone.
    Dead,
}

/// A prepared claim: file, listening socket, database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kit {
    pub inode: Inode,
    pub database: DbId,
    pub address: KitAddress,
    /// What a session that reads before it claims remembers; only a wrong protocol does.
    pub early: Option<Vec<Segment>>,
}

/// Mail of the election actor.
#[derive(Debug)]
pub(crate) enum ElectionMail {
    In(election::Input),
    LookAtMember { epoch: Epoch, session: SessionId },
    Leave,
}

/// Mail of the hub actor.
#[derive(Debug)]
pub(crate) enum HubMail {
    Begin(Box<hub::Begin>, KitAddress),
    End { epoch: Epoch, close: bool },
    LoopbackHello { epoch: Epoch, hello: Box<Hello> },
    Loopback { epoch: Epoch, message: ToHub },
    Accept { socket: String },
    Read(ConnId),
    Flush(ConnId),
    In { epoch: Epoch, input: Box<hub::Input> },
}

/// Mail of the follower actor.
#[derive(Debug)]
pub(crate) enum FollowerMail {
    Connect { attempt: u64, target: Target },
    Disconnect { attempt: u64 },
    Failed { attempt: u64, failure: ConnectFailure },
    Read(ConnId),
    Flush(ConnId),
    Begin { epoch: Epoch, address: KitAddress, members: Option<Vec<Member>>, polite: bool },
    Loopback { epoch: Epoch, parts: Vec<Part> },
    LoopbackLost { epoch: Epoch },
    Took(Epoch),
    In(Box<follower::Input>),
}

/// Mail of the upstream actor.
#[derive(Debug)]
pub(crate) enum SocketMail {
    Open { epoch: Epoch, channel: Channel, resume: Option<Position> },
    Drain { epoch: Epoch, to: SessionId },
    Resume { epoch: Epoch },
    Close { epoch: Epoch },
    Connect { channel: usize, token: u64 },
    Read { channel: usize, conn: u64 },
}

/// Mail of the outbox actor.
#[derive(Debug)]
pub(crate) enum OutboxMail {
    Adopt { epoch: Epoch, kit: Kit },
    Store { epoch: Epoch, submit: Submit },
    Drain { epoch: Epoch, to: SessionId },
    Resume { epoch: Epoch },
    End { epoch: Epoch },
    TaskEnded,
}

/// An effect that is still to be carried out.
#[derive(Debug)]
pub(crate) enum Pending {
    Election(election::Effect),
    Hub {
        epoch: Epoch,
        effect: hub::Effect,
    },
    Follower(follower::Effect),
    /// A look at the fence on the actors' thread.
    Fence {
        check: FenceCheck,
        then: AfterFence,
    },
    /// Nothing more is waiting: write what the links have.
    WriteLinks,
}

/// A look at the fence, half by half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FenceCheck {
    pub epoch: u64,
    pub inode: Inode,
    pub halves: u8,
    pub unfenced: bool,
    /// The step at which the successor's claim was looked for.
    pub at: u64,
}

/// What follows a look at the fence.
#[derive(Debug)]
pub(crate) enum AfterFence {
    /// The connection is welcomed.
    Link { conn: ConnId, hello: Box<Hello> },
    /// The election asked, or the process woke after a long sleep.
    Tell,
}

/// Blocking work, step by step.
#[derive(Debug)]
pub(crate) enum Task {
    List { stage: u8, highest: u64, seen: Option<election::ClaimSeen> },
    MakeKit { for_claim: Option<Epoch> },
    Claim { stage: u8, epoch: Epoch, kit: Kit, linked: u64 },
    Collect { stage: u8, epoch: u64, names: Vec<u64> },
    Adopt { stage: u8, epoch: Epoch, kit: Kit, segments: Vec<Segment> },
    Commit(Commit),
    Fold(Fold),
}

/// A group commit.
#[derive(Debug)]
pub(crate) struct Commit {
    pub stage: u8,
    pub epoch: Epoch,
    pub database: DbId,
    pub check: FenceCheck,
    pub batch: Vec<Submit>,
    pub outcomes: Vec<(MutationId, SubmitOutcome)>,
    pub rows: Vec<(MutationId, Hash)>,
}

/// A step of a fold.
#[derive(Debug)]
pub(crate) struct Fold {
    pub stage: u8,
    pub database: DbId,
    pub segment: Segment,
    pub rows: Vec<Row>,
    pub check: FenceCheck,
}

/// Where the follower's messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    None,
    Remote { attempt: u64, epoch: Epoch, conn: ConnId },
    Loopback { epoch: Epoch },
}

/// The hub and what belongs to it.
pub(crate) struct Owned {
    pub epoch: Epoch,
    pub address: KitAddress,
    pub machine: Hub,
    pub loopback: bool,
    pub links: BTreeSet<ConnId>,
    pub awake: BTreeSet<LinkId>,
    /// The member list the reign began with; `None` = it awaits everybody.
    pub listed: Option<BTreeSet<SessionId>>,
    /// Acknowledgements a mutant made for sessions.
    pub promised: BTreeMap<LinkId, Offset>,
    /// Links whose first events a mutant has shuffled.
    pub shuffled: BTreeSet<LinkId>,
    /// The query engine, once it began.
    pub queries: Option<Queries>,
    /// The attempt that runs for a key, and who makes it.
    pub flights: BTreeMap<Key, (FetchId, SessionId)>,
    /// Subscriptions each link asked for, as they passed.
    pub interest: BTreeMap<LinkId, Interest>,
}

impl Owned {
    /// The earliest deadline of hub and engine.
    pub fn deadline(&self) -> Option<Time> {
        let engine = self.queries.as_ref().and_then(Queries::deadline);
        [self.machine.deadline(), engine].into_iter().flatten().min()
    }
}

/// The outbox's state.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub epoch: Epoch,
    pub kit: Option<Kit>,
    /// A task has the database.
    pub away: bool,
    /// Adopted and writable.
    pub ready: bool,
    pub waiting: VecDeque<Submit>,
    pub draining: Option<SessionId>,
    pub known: BTreeMap<MutationId, Hash>,
    pub high: BTreeMap<SessionId, u64>,
    /// Kits of reigns that ended while a task had the database.
    pub ended: Vec<(Epoch, Kit)>,
}

/// One upstream channel of the owner.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub wanted: bool,
    /// Where it continues.
    pub resume: Option<Position>,
    pub token: u64,
    pub attempts: u32,
    /// The connection admitted by the feed.
    pub conn: Option<u64>,
    pub pipe: VecDeque<(Time, Option<Down>)>,
    pub armed: bool,
}

impl Upstream {
    pub fn new() -> Self {
        Self {
            wanted: false,
            resume: None,
            token: 0,
            attempts: 0,
            conn: None,
            pipe: VecDeque::new(),
            armed: false,
        }
    }
}

/// Keys and streams.
pub(crate) type Interest = (BTreeSet<Key>, BTreeSet<Stream>);

/// What a caller waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Waiting {
    Submit {
        hash: Hash,
    },
    Operation {
        mark: Option<u64>,
    },
    /// A change of a key that is fetched, to this number.
    Change {
        n: usize,
        number: u64,
    },
    Ask,
}

/// The program that uses the session.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    pub waiting: BTreeMap<u64, Waiting>,
    pub keys: BTreeSet<Key>,
    pub streams: BTreeSet<Stream>,
    /// Layers asked for and not laid yet, by token.
    pub laying: BTreeMap<u64, Key>,
    /// Open layers by their number: the token in the patch, and the key.
    pub layers: BTreeMap<u64, (u64, Key)>,
    /// Attempts that this session makes.
    pub fetching: BTreeSet<(Epoch, FetchId)>,
    /// The last value of each key, with its place.
    pub held: BTreeMap<Key, Held>,
    /// Values shown, by key.
    pub shown: BTreeMap<Key, Bytes>,
    /// The last event of each stream.
    pub events: BTreeMap<Stream, u64>,
}

/// A session process.
pub(crate) struct Process {
    pub pid: Pid,
    pub session: SessionId,
    pub rank: Rank,
    pub program: Program,
    pub run: Run,
    pub election: Election,
    pub follower: Follower,
    pub owned: Option<Owned>,
    pub outbox: Outbox,
    pub upstreams: BTreeMap<usize, Upstream>,
    pub socket_epoch: Epoch,
    /// The reign whose upstreams stay closed: it drains, or it ended.
    pub socket_closed: Option<Epoch>,
    pub role: Role,
    pub synced: bool,

    pub election_mail: VecDeque<ElectionMail>,
    pub hub_mail: VecDeque<HubMail>,
    pub follower_mail: VecDeque<FollowerMail>,
    pub socket_mail: VecDeque<SocketMail>,
    pub outbox_mail: VecDeque<OutboxMail>,
    pub pending: VecDeque<Pending>,
    pub next_turn: Option<Time>,
    /// The thread is at work until then.
    pub busy_until: Time,

    pub tasks: BTreeMap<u64, Task>,
    pub parked: Vec<u64>,
    pub next_task: u64,

    pub kit: Option<Kit>,
    pub making_kit: bool,
    /// The claim won last and not given up: what the fence is asked about.
    pub reign: Option<(u64, Inode)>,
    pub won: Option<(u64, Kit)>,
    pub last_wake: Time,
    pub heard: Time,
    pub suspended_ms: u64,

    pub link: Link,
    pub parting: Option<(u64, ConnId)>,
    pub attempts: BTreeMap<u64, ConnId>,

    pub starved_until: Time,
    pub starved_us: u64,
    pub slow_until: Time,
    pub write_error: bool,
    pub left: bool,
    /// What the follower was told to subscribe to, and what of it its current link must know of.
    pub subscribed: Interest,
    pub linked_with: Interest,
    /// The last batch seen on a former link, for the check that stale frames change nothing.
    pub stale: Vec<paceline_proto::message::ToSession>,
    pub caller: Caller,
}

impl Process {
    pub fn alive(&self) -> bool {
        matches!(self.run, Run::Running | Run::Stopped)
    }

    /// Keeps the account of what the follower subscribed to.
    pub fn note_subscriptions(&mut self, input: &follower::Input) {
        match input {
            follower::Input::Linked(_) => self.linked_with.clone_from(&self.subscribed),
            follower::Input::Subscribe(key) => {
                self.subscribed.0.insert(key.clone());
            }
            follower::Input::SubscribeStream(stream) => {
                self.subscribed.1.insert(stream.clone());
            }
            follower::Input::Unsubscribe(key) => {
                self.subscribed.0.remove(key);
                self.linked_with.0.remove(key);
            }
            follower::Input::UnsubscribeStream(stream) => {
                self.subscribed.1.remove(stream);
                self.linked_with.1.remove(stream);
            }
            _ => {}
        }
    }

    /// Whether anything can be done without waiting.
    pub fn has_work(&self) -> bool {
        !(self.pending.is_empty()
            && self.election_mail.is_empty()
            && self.hub_mail.is_empty()
            && self.follower_mail.is_empty()
            && self.socket_mail.is_empty()
            && self.outbox_mail.is_empty())
    }

    /// The earliest deadline of its machines.
    pub fn deadline(&self) -> Option<Time> {
        let hub = self.owned.as_ref().and_then(Owned::deadline);
        [self.election.deadline(), self.follower.deadline(), hub].into_iter().flatten().min()
    }
}
