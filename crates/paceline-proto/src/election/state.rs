//! The states of the election and the data each carries.

use crate::{
    election::ConnectFailure,
    event::Cause,
    id::{Epoch, SessionId},
    message::KitAddress,
    time::Time,
};

/// Where the machine stands.
#[derive(Debug)]
pub(super) enum State {
    /// Not started.
    Idle,
    /// Looks for the owner.
    Probing(Probing),
    /// Follows one.
    Following(Following),
    /// Has not heard from it for too long.
    Suspecting(Suspecting),
    /// Waits for the answer to a claim.
    Claiming(Claiming),
    /// Owns an epoch.
    Owning(Owning),
    /// Hands it over.
    Draining(Draining),
    /// Left for good.
    Left,
}

/// Whether this build may claim over what the owner writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// Not looked at yet.
    Unknown,
    /// It reads the owner's schema.
    Able,
    /// It does not: it never claims over it.
    Unable,
}

/// The claim that was found highest.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) epoch: Epoch,
    pub(super) address: KitAddress,
    pub(super) reader: Reader,
}

/// A connection whose owner said Welcome.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) attempt: u64,
    pub(super) owner: SessionId,
    pub(super) found: Found,
    /// It brought at least one ping.
    pub(super) pinged: bool,
    /// This session is an heir of that owner.
    pub(super) heir: bool,
    /// As an heir, when to look at the owner's claim, or to make a kit.
    pub(super) prepare_at: Option<Time>,
}

impl Link {
    pub(super) const fn new(attempt: u64, owner: SessionId, found: Found) -> Self {
        Self { attempt, owner, found, pinged: false, heir: false, prepare_at: None }
    }
}

/// A connection to an heir's kit, made before its claim: its backlog holds us until it claims.
#[derive(Debug, Clone)]
pub(super) struct Ahead {
    pub(super) attempt: u64,
    pub(super) address: KitAddress,
    /// The reign that ended; the heir's must be higher.
    pub(super) over: Epoch,
}

#[derive(Debug)]
pub(super) struct Probing {
    pub(super) step: Search,
    pub(super) ahead: Option<Ahead>,
}

/// Steps of Probing.
#[derive(Debug)]
pub(super) enum Search {
    /// Asked for a listing.
    Listing { until: Time, dead: Option<Dead> },
    /// Waits for Welcome.
    Connecting { found: Found, attempt: u64, until: Time },
    /// Tests a lock that may be released any moment, until `until`.
    Locking { epoch: Epoch, reader: Reader, doubt: Doubt, until: Time, tries: u32, asked: bool, due: Time },
    /// Others may be better placed to claim; looks again at `until`.
    Staggering { dead: Dead, until: Time },
    /// Waits, then lists again.
    Pausing { until: Time },
}

/// An owner found dead.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dead {
    pub(super) epoch: Epoch,
    /// When this session may claim over it.
    pub(super) claim_at: Time,
}

/// Why the lock is tested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Doubt {
    /// The link of an heir ended.
    LinkLost,
    /// Nobody listens, or the peer closed.
    NoListener,
    /// The socket's name is gone or closed to us.
    Unreachable(String),
}

#[derive(Debug)]
pub(super) struct Following {
    pub(super) link: Link,
    /// Nothing came since.
    pub(super) quiet_since: Time,
}

#[derive(Debug)]
pub(super) struct Suspecting {
    pub(super) found: Found,
    /// `None` when the owner never answered this session at all.
    pub(super) link: Option<Link>,
    pub(super) quiet_since: Time,
    /// Own on-time ticks since then.
    pub(super) ticks: u32,
    /// The open attempt at the claim's own socket.
    pub(super) probe: Option<u64>,
    /// The attempt at the kit of the heir that will claim first.
    pub(super) ahead: Option<Ahead>,
    /// The owner's process was seen stopped.
    pub(super) stopped: bool,
    pub(super) step: Watch,
}

/// Steps of Suspecting.
#[derive(Debug)]
pub(super) enum Watch {
    /// Counts own ticks.
    Ticking { next: Time },
    /// The direct probe.
    Probing { until: Time },
    /// The probe failed; tests the lock. Only silence allows a claim over a held one.
    Locking { failure: ConnectFailure, until: Time },
    /// Claimed over a living owner lately.
    HeldBack { until: Time },
    /// Lets better placed candidates go first.
    Staggering { until: Time },
    /// Reads the claims again.
    Confirming { until: Time },
}

#[derive(Debug)]
pub(super) struct Claiming {
    pub(super) epoch: Epoch,
    pub(super) cause: Cause,
    /// The link to the owner claimed over, if it still stands.
    pub(super) link: Option<Link>,
    pub(super) ahead: Option<Ahead>,
    /// A new owner that said Welcome meanwhile.
    pub(super) welcomed: Option<Link>,
    /// The owner claimed over lives, as far as known.
    pub(super) usurps: bool,
}

#[derive(Debug)]
pub(super) struct Owning {
    pub(super) epoch: Epoch,
    pub(super) stage: Stage,
    /// The old owner's connection, until it ends or the time comes.
    pub(super) parting: Option<(u64, Time)>,
    pub(super) collect_at: Time,
    /// No handover to a preferred session before.
    pub(super) preferred_at: Time,
    /// No handover to a newer build before.
    pub(super) upgrade_at: Time,
}

/// What an owner does with submits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// They wait for the adoption.
    Adopting,
    /// They are acknowledged.
    Adopted,
    /// They are refused; broadcast and reads go on. `retry`: then this session claims over itself.
    ReadOnly { retry: Option<Time> },
    /// Claims over itself, for a new store.
    Renewing { next: Epoch },
}

#[derive(Debug)]
pub(super) struct Draining {
    pub(super) owning: Owning,
    pub(super) to: SessionId,
    pub(super) step: Handover,
    /// Leave asked for: the session ends with the reign.
    pub(super) leaving: bool,
    /// Handovers of this leave that failed.
    pub(super) failed: u32,
    /// The store failed meanwhile.
    pub(super) store_failed: Option<String>,
}

/// Steps of Draining.
#[derive(Debug)]
pub(super) enum Handover {
    /// The hub goes quiet.
    Quieting { until: Time },
    /// The heir claims.
    Claiming { until: Time },
    /// Too late: the fence is checked before the reign goes on.
    Aborting { until: Time, why: String },
}
