//! What the invariants are told: facts an outside observer of the whole machine can see.

use std::collections::BTreeSet;

use bytes::Bytes;
use paceline_proto::{
    follower,
    id::{Epoch, Key, Mark, MutationId, SessionId, Stream},
    message::{Gap, Held, HeldEvent},
};

use crate::{
    disk::{DbId, Pid},
    store::Hash,
};

/// One observation.
#[derive(Debug, Clone)]
pub enum Fact {
    /// A claim got its name.
    ClaimLinked {
        /// The epoch.
        epoch: u64,
        /// By whom.
        pid: Pid,
    },
    /// A claimer checked its claim and counts it as won.
    ClaimWon {
        /// The epoch.
        epoch: u64,
        /// By whom.
        pid: Pid,
        /// The step at which it was linked.
        linked: u64,
    },
    /// Which owners would pass their fence if they asked now; told whenever claims change.
    Unfenced(Vec<(Pid, u64)>),
    /// A process wrote a database.
    Written {
        /// Which.
        database: DbId,
        /// Whose it is.
        owner: Pid,
        /// Who wrote.
        by: Pid,
        /// Rows up to here were there before.
        after_row: u64,
    },
    /// A claimer read what it adopts.
    AdoptionRead {
        /// Its epoch.
        epoch: u64,
        /// Its claim was linked before.
        claimed: bool,
    },
    /// A database became complete.
    Completed {
        /// Its epoch.
        epoch: u64,
        /// Which.
        database: DbId,
    },
    /// Databases may have lost names, rows or segments.
    StoresChanged,
    /// The owner decided to acknowledge a mutation: it is committed and the fence was checked.
    Acknowledged {
        /// The mutation.
        id: MutationId,
        /// Its payload's hash.
        hash: Hash,
        /// The owner's reign.
        epoch: u64,
        /// The step at which the fence found no successor.
        checked: u64,
    },
    /// A session's caller was told that its mutation is durable.
    AcknowledgementSeen {
        /// The mutation.
        id: MutationId,
        /// Its payload's hash.
        hash: Hash,
    },
    /// A session's follower handled something.
    Followed {
        /// The session.
        session: SessionId,
        /// Where it stands now.
        last: Mark,
    },
    /// A follower's answer to a frame of an old reign.
    StaleFrame {
        /// The session.
        session: SessionId,
        /// What it did.
        effects: Vec<follower::Effect>,
        /// Whether its place moved.
        moved: bool,
    },
    /// A session joined: its first snapshot on this link is complete.
    Synced {
        /// The session.
        session: SessionId,
        /// Whether the owner it follows is fenced.
        fenced: bool,
        /// Keys and streams it subscribed to and the owner's link lacks.
        lacking: Vec<String>,
    },
    /// A key was subscribed to.
    Subscribed {
        /// The session.
        session: SessionId,
        /// The key.
        key: Key,
    },
    /// A key's last subscriber left.
    Unsubscribed {
        /// The session.
        session: SessionId,
        /// The key.
        key: Key,
    },
    /// A stream was subscribed to.
    StreamSubscribed {
        /// The session.
        session: SessionId,
        /// The stream.
        stream: Stream,
    },
    /// A stream's last subscriber left.
    StreamUnsubscribed {
        /// The session.
        session: SessionId,
        /// The stream.
        stream: Stream,
    },
    /// A value was shown.
    Shown {
        /// The session.
        session: SessionId,
        /// The value.
        held: Held,
    },
    /// A key was shown with its layers.
    Layered {
        /// The session.
        session: SessionId,
        /// The key.
        key: Key,
        /// What its user sees.
        value: Bytes,
    },
    /// A key lost its value.
    Cleared {
        /// The session.
        session: SessionId,
        /// The key.
        key: Key,
    },
    /// An event was delivered.
    Delivered {
        /// The session.
        session: SessionId,
        /// The event.
        event: HeldEvent,
    },
    /// A gap was shown.
    GapShown {
        /// The session.
        session: SessionId,
        /// The gap.
        gap: Gap,
        /// Whether somebody who is there could have closed it.
        avoidable: bool,
    },
    /// A caller was told that an heir holds its operation.
    OperationHeld {
        /// The token it leaves in the value.
        token: u64,
        /// Sessions that hold its effect now, the owner that answered apart.
        holders: Vec<SessionId>,
        /// A session that died since held it as well.
        died: bool,
    },
    /// The group came to rest: what the owner's values say about operations.
    OperationsSettled {
        /// Tokens acknowledged, and held by somebody after every fault.
        owed: BTreeSet<u64>,
        /// Tokens in the owner's values, with repetitions.
        found: Vec<u64>,
    },
    /// A process died.
    Died {
        /// Its session.
        session: SessionId,
    },
    /// All sessions died.
    PowerLost,
    /// A new reign's hub started.
    ReignBegun {
        /// Its epoch.
        epoch: Epoch,
        /// Its owner.
        session: SessionId,
    },
}
