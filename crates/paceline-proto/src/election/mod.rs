//! Election: who owns the group's wire (ELECTION 1–3).
//!
//! Facts about the file system and connections come in as [`Input`]s, wishes go out as [`Effect`]s; the file system
//! decides every race (a hard link succeeds once). States: Idle → Probing → Following(e) → Suspecting(e) →
//! Claiming(e+1) → Owning(e+1) → Draining → Probing; any owner that finds itself fenced goes back to Probing.
//!
//! | state | waits for | leaves to |
//! |---|---|---|
//! | Probing | listing, lock test, Welcome | Following (Welcome), Suspecting (silence), Claiming (free lock, or no claim) |
//! | Following | pings, EOF, Moved, Go | Probing (EOF, Moved), Suspecting (silence), Claiming (Go) |
//! | Suspecting | own ticks, then the direct probe | Following (any sign of life), Probing, Claiming (held lock, no reply) |
//! | Claiming | the claim's answer | Owning (won), Probing (lost), Following (a Welcome came first, or a Go that could not be met) |
//! | Owning | fence, store, Leave, Promote | Draining, Probing (fenced) |
//! | Draining | quiet hub, the heir's Took | Probing, Owning (aborted), Left |
//!
//! **Invariant:** at most one [`Effect::Claim`] is unanswered, and [`Effect::Begin`] follows only [`ClaimResult::Won`]
//! (`tests/election_random.rs`).
//!
//! **Invariant:** of several attempts at most one is welcomed: accepting a Welcome drops all other attempts and the
//! former link in the same batch of effects (`tests/election_random.rs`).
//!
//! **Invariant:** an owner whose lock is held is claimed over only after it gave no reply through the suspicion time and
//! the direct probe, and a re-read of the claims (`tests/election_suspicion.rs`).
//!
//! The shell fires due deadlines before any other input, carries out all effects of one input before it hands in the
//! next, answers included, and ignores answers of attempts after [`Effect::Disconnect`].

mod claiming;
mod draining;
mod following;
mod kit;
mod machine;
mod owning;
mod probing;
mod state;
mod suspecting;
mod timing;

pub use machine::Election;

use crate::{
    event::{Cause, Event},
    id::{Epoch, Mark, SessionId},
    message::{Heir, KitAddress, Member, Ping, Rank, Refusal},
    program::Program,
};

/// What the newest claim and the stores say; answer to [`Effect::List`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The highest claim, if any.
    pub claim: Option<ClaimSeen>,
    /// The highest `complete` of any queue database.
    pub highest_complete: Epoch,
    /// Set when the newest store needs a newer reader than this build: `(schema, min_reader)`.
    pub too_new: Option<(u32, u32)>,
}

/// A claim as another session sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimSeen {
    /// Its epoch, from its name.
    pub epoch: Epoch,
    /// Where its owner listens; `None` when the body is short (power loss): owner unknown.
    pub address: Option<KitAddress>,
    /// Its owner, if readable.
    pub owner: Option<SessionId>,
    /// Whether somebody holds its lock. A missing claim file counts as held: it is not a free lock.
    pub lock: Lock,
    /// `(schema, min_reader)` of the claim are readable by this build.
    pub readable: bool,
}

/// State of a claim's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Its owner is dead.
    Free,
    /// Its owner's process still has it open.
    Held,
    /// The claim file is not there any more.
    Missing,
}

/// How a connection attempt ended without a Welcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectFailure {
    /// Nobody listens.
    Refused,
    /// The socket's name is gone.
    Missing,
    /// No permission, or another user's process.
    Forbidden,
    /// Connected or not, nothing was said in time (also a full backlog).
    Silent,
    /// The peer closed the connection before Welcome.
    Closed,
    /// Anything else.
    Other(String),
}

/// How a claim ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimResult {
    /// Linked, re-listed (no higher claim), still linked and found at its name.
    Won,
    /// Somebody else's claim has that name.
    Exists,
    /// A higher claim was there after the link, or the own claim was collected: it counts for nothing.
    Superseded,
    /// No kit could be made or linked.
    Failed(String),
}

/// Facts the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Begin.
    Start,
    /// Answer to [`Effect::List`].
    Listed(Listing),
    /// The claims or stores could not be listed: nothing is known, so nothing is claimed. (An empty
    /// [`Listing`] would mean that there never was an owner.)
    ListFailed {
        /// What the file system said.
        why: String,
    },
    /// Answer to [`Effect::TestLock`].
    LockTested {
        /// The claim tested.
        epoch: Epoch,
        /// What was seen.
        lock: Lock,
    },
    /// The attempt reached an owner that accepted; its frames follow.
    Welcomed {
        /// Token of [`Effect::Connect`].
        attempt: u64,
        /// The owner's epoch.
        epoch: Epoch,
        /// The owner.
        owner: SessionId,
    },
    /// The attempt reached an owner that is alive but full.
    Busy {
        /// Token of [`Effect::Connect`].
        attempt: u64,
        /// Milliseconds to wait.
        retry_ms: u32,
    },
    /// The attempt reached an owner that turned this session away.
    Refused {
        /// Token of [`Effect::Connect`].
        attempt: u64,
        /// Why.
        refusal: Refusal,
    },
    /// The attempt failed.
    ConnectFailed {
        /// Token of [`Effect::Connect`].
        attempt: u64,
        /// How.
        failure: ConnectFailure,
    },
    /// The connection of this attempt ended after everything received from it was processed.
    Eof {
        /// Token of [`Effect::Connect`].
        attempt: u64,
    },
    /// A ping from the owner; while owning, from the own hub over the loopback link: it names the heirs.
    Ping(Ping),
    /// The owner appointed this session heir, or dismissed it. Pings say the same, later.
    Heir(bool),
    /// The deadline passed. `heard` is when the last byte came from the owner.
    Deadline {
        /// Time of the last frame, as the shell saw it.
        heard: crate::time::Time,
    },
    /// Answer to [`Effect::MakeKit`].
    KitMade(Result<KitAddress, String>),
    /// Answer to [`Effect::Claim`].
    Claimed {
        /// The epoch wanted.
        epoch: Epoch,
        /// How it ended.
        result: ClaimResult,
    },
    /// Answer to [`Effect::Adopt`]: reachable mutations, or what failed.
    Adopted {
        /// The reign.
        epoch: Epoch,
        /// Rows, or why not.
        result: Result<u64, String>,
    },
    /// A fence check failed (after a commit, before a Welcome, after a long gap).
    Fenced {
        /// The reign that was checked.
        epoch: Epoch,
        /// Which part spoke.
        why: String,
    },
    /// The store cannot be written any more (fsync error, disk full): rule "fsync error, ENOSPC".
    StoreFailed {
        /// The reign.
        epoch: Epoch,
        /// What failed.
        why: String,
    },
    /// The machine was suspended for so many milliseconds since the last input.
    Suspended {
        /// Length of the jump.
        ms: u64,
    },
    /// Answer to [`Effect::LookAtOwner`]: the owner's process is stopped (`T`): a hint.
    OwnerStopped(bool),
    /// The session leaves.
    Leave,
    /// Hand over to this session (or the first heir) but stay joined.
    Promote {
        /// To whom; `None` = first heir.
        to: Option<SessionId>,
    },
    /// The hub and its upstreams are quiet and everything acknowledged is flushed (answer to [`Effect::Drain`]).
    Drained {
        /// The hub's last place.
        last: Mark,
    },
    /// As heir: the owner stopped and asks this session to claim now.
    Go {
        /// The owner's last place.
        last: Mark,
    },
    /// As draining owner: the heir says it owns this epoch.
    Took {
        /// The heir's epoch.
        epoch: Epoch,
        /// Where it listens.
        to: Option<KitAddress>,
    },
    /// As follower: the owner handed over to `to`.
    Moved {
        /// The new epoch.
        epoch: Epoch,
        /// Where to connect.
        to: KitAddress,
    },
    /// As follower: the owner ends without a successor.
    OwnerClosed,
}

/// Whom to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Socket and nonce.
    pub address: KitAddress,
    /// The claim it belongs to; `None` for an heir's kit that is not claimed yet.
    pub epoch: Option<Epoch>,
}

/// Wishes of the machine. The shell carries each out in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// List claims and stores; answer with [`Input::Listed`].
    List,
    /// Test the lock of a claim; answer with [`Input::LockTested`].
    TestLock {
        /// Which.
        epoch: Epoch,
    },
    /// Connect, say Hello, answer with Welcomed, Busy, Refused or ConnectFailed; replaces no earlier attempt.
    Connect {
        /// Token for the answers.
        attempt: u64,
        /// Whom.
        target: Target,
    },
    /// Drop the attempt or its connection; no answer.
    Disconnect {
        /// Token of the attempt.
        attempt: u64,
    },
    /// Make a kit off the join path; answer with [`Input::KitMade`]. If an unused one is there already (from a lost
    /// claim), answer with that at once. In both cases the owner is told its address.
    MakeKit,
    /// Drop the unused kit.
    DropKit,
    /// Link the kit (making one first if there is none) as the claim of `epoch`, list again, check that it is still
    /// linked; answer with [`Input::Claimed`].
    Claim {
        /// The epoch wanted.
        epoch: Epoch,
    },
    /// Start hub and listener for `epoch`, from what the own follower holds: broadcast and reads serve at once. The
    /// follower's link moves to the own hub; with [`Cause::HandedOver`] the connection to the old owner stays open for
    /// the [`Effect::SendTook`] that follows, until it ends or [`Effect::Disconnect`].
    Begin {
        /// The new reign.
        epoch: Epoch,
        /// The last member list heard; `None` where none was heard or it may not have been whole.
        members: Option<Vec<Member>>,
        /// Why the predecessor was replaced.
        cause: Cause,
    },
    /// Sync directories, adopt the newest complete store below `epoch`, commit `complete`, verify the path; answer
    /// with [`Input::Adopted`].
    Adopt {
        /// The new reign.
        epoch: Epoch,
    },
    /// Stop acknowledging, close the upstreams, flush; answer with [`Input::Drained`].
    Drain {
        /// The reign.
        epoch: Epoch,
        /// The heir.
        to: SessionId,
    },
    /// Tell the heir to claim.
    SendGo {
        /// The heir.
        to: SessionId,
        /// The own last place.
        last: Mark,
    },
    /// The handover failed and nothing had changed: acknowledge and connect again.
    ResumeReign {
        /// The reign.
        epoch: Epoch,
    },
    /// Tell all followers where the new owner is, then end the reign.
    SendMoved {
        /// The new epoch.
        epoch: Epoch,
        /// The new owner.
        to: KitAddress,
    },
    /// Tell the old owner that this session owns `epoch` now.
    SendTook {
        /// The own new epoch.
        epoch: Epoch,
    },
    /// No handover was started; nothing changed. The hub answers whoever asked.
    RefusePromote {
        /// Why.
        why: String,
    },
    /// Stop hub, listener, store and upstreams of `epoch` and of no other (with [`Cause::Own`] the next reign's claim
    /// is won already); release the claim's lock last.
    End {
        /// The reign.
        epoch: Epoch,
        /// Say Close to followers (leaving without a successor).
        close: bool,
    },
    /// Check the fence of `epoch` now; answer with [`Input::Fenced`] if it fails.
    CheckFence {
        /// The reign.
        epoch: Epoch,
    },
    /// Look whether the owner's process is stopped; answer with [`Input::OwnerStopped`].
    LookAtOwner {
        /// The owner's claim.
        epoch: Epoch,
    },
    /// Collect old claims, kits and session files, off the critical path.
    Collect {
        /// The own reign.
        epoch: Epoch,
    },
    /// The session left: everything is released; a link to an owner gets its Close first.
    Left,
    /// The role shown to the user changed.
    Role(Role),
    /// Observable event.
    Event(Event),
}

/// The role of this session as shown to its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Looking for an owner.
    Joining,
    /// Following the owner of `epoch`.
    Follower {
        /// The owner's reign.
        epoch: Epoch,
        /// The owner.
        owner: SessionId,
    },
    /// Wants to lead.
    Candidate {
        /// The epoch wanted.
        epoch: Epoch,
    },
    /// Owns `epoch`.
    Primary {
        /// The own reign.
        epoch: Epoch,
        /// Submits are acknowledged.
        adopted: bool,
    },
    /// Hands over.
    Draining {
        /// The own reign.
        epoch: Epoch,
    },
    /// Cannot join; the text says why and what to do.
    Blocked {
        /// Why.
        why: String,
    },
    /// Left.
    Left,
}

/// What the machine is tuned with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This session.
    pub session: SessionId,
    /// Whether it may lead.
    pub rank: Rank,
    /// Its program.
    pub program: Program,
}

/// The heirs as last heard; `Ping::heirs`.
pub type Heirs = Vec<Heir>;
