//! Election actor: carries out on the file system what the pure election decides.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use paceline_ipc::{
    claim, clock,
    dirs::StateDir,
    failpoint::hit,
    fence::OwnedClaim,
    kit::{self, Kit, LinkError},
    member::{self, SessionLock},
    process,
    socket::Bound,
};
use paceline_proto::{
    election::{ClaimResult, Config, ConnectFailure, Effect, Election, Input, Listing, Role},
    event::Event,
    hub::Carried,
    id::{Epoch, Mark, Nonce, SessionId},
    message::{KitAddress, Ping, Refusal},
    time::{Time, earliest},
};
use paceline_store::{Durability, QueueDb, StoreError};

use tokio::sync::oneshot;

use crate::{
    death::End,
    follower::FollowerIn,
    hub::{BeginReign, HubIn},
    listing::{Lister, lock_of},
    observe::Blocked,
    options::Identity,
    outbox::OutboxIn,
    shell::{Business, Describe, Io},
    socket::SocketIn,
    thread::Seat,
};

/// A wake-up after a suspend of at least this is told to the machine.
const SUSPEND_NOTICED: Duration = Duration::from_millis(100);

/// An owner that lives but cannot be reached, or a claim that cannot be made, may be better soon: the join fails only
/// after this time. What does not get better by itself fails at once.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);

/// Messages of the election actor.
pub(crate) enum ElectionIn {
    /// Begin.
    Start,
    /// The listing is ready.
    Listed(Listing),
    /// An attempt was accepted.
    Welcomed { attempt: u64, epoch: Epoch, owner: SessionId },
    /// An attempt met a full owner.
    Busy { attempt: u64, retry_ms: u32 },
    /// An attempt was turned away.
    Refused { attempt: u64, refusal: Refusal },
    /// An attempt failed.
    ConnectFailed { attempt: u64, failure: ConnectFailure },
    /// The link of an attempt ended.
    Eof { attempt: u64 },
    /// The listing failed.
    ListFailed { why: String },
    /// A ping of the owner.
    Ping(Ping),
    /// The owner appointed this session heir, or dismissed it.
    Heir(bool),
    /// The owner told to claim.
    Go { last: Mark },
    /// The owner handed over.
    Moved { epoch: Epoch, to: KitAddress },
    /// The owner ends.
    OwnerClosed,
    /// A kit was made.
    KitMade(Result<Box<PreparedKit>, String>),
    /// The outbox adopted, or failed to.
    Adopted { epoch: Epoch, result: Result<u64, String> },
    /// All that is stored was read. Claims from this one on are still needed: their owners may have sent something.
    Read { epoch: Epoch, keep_from: Option<Epoch> },
    /// The store cannot be written any more.
    StoreFailed { epoch: Epoch, why: String },
    /// A fence check failed.
    Fenced { epoch: Epoch, why: String },
    /// The hub is quiet.
    Drained { last: Mark },
    /// The heir owns the epoch.
    Took { epoch: Epoch, to: Option<KitAddress> },
    /// The hub wants to know whether the session is dead.
    LookAtMember { epoch: Epoch, session: SessionId },
    /// Hand over, stay joined.
    Promote { to: Option<SessionId> },
    /// Welcome nobody any more if nobody is here.
    Retire { reply: oneshot::Sender<bool> },
    /// The process was stopped and goes on.
    Continued,
    /// Leave the group.
    Leave,
}

/// A kit with its database.
pub(crate) struct PreparedKit {
    // Closed before the kit is dropped, which removes the file.
    database: QueueDb,
    kit: Kit,
}

impl Describe for ElectionIn {
    fn kind(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Listed(_) => "listed",
            Self::Welcomed { .. } => "welcomed",
            Self::Busy { .. } => "busy",
            Self::Refused { .. } => "refused",
            Self::ConnectFailed { .. } => "connect_failed",
            Self::Eof { .. } => "eof",
            Self::ListFailed { .. } => "list_failed",
            Self::Ping(_) => "ping",
            Self::Heir(_) => "heir",
            Self::Go { .. } => "go",
            Self::Moved { .. } => "moved",
            Self::OwnerClosed => "owner_closed",
            Self::KitMade(_) => "kit_made",
            Self::Adopted { .. } => "adopted",
            Self::Read { .. } => "read",
            Self::StoreFailed { .. } => "store_failed",
            Self::Fenced { .. } => "fenced",
            Self::Drained { .. } => "drained",
            Self::Took { .. } => "took",
            Self::LookAtMember { .. } => "look_at_member",
            Self::Promote { .. } => "promote",
            Self::Retire { .. } => "retire",
            Self::Continued => "continued",
            Self::Leave => "leave",
        }
    }
}

/// A claim this session won, until its reign began.
struct Won {
    claim: Arc<OwnedClaim>,
    bound: Option<Bound>,
    database: Option<QueueDb>,
    address: KitAddress,
}

pub(crate) struct ElectionBusiness {
    machine: Election,
    seat: Seat,
    lister: Lister,
    kit: Option<Box<PreparedKit>>,
    making_kit: bool,
    claim_when_made: Option<Epoch>,
    /// Won claims, until their reign ended: two while this session claims over itself.
    won: BTreeMap<Epoch, Won>,
    // Held for as long as the session lives: its being free is the proof of the session's death.
    session_lock: Option<SessionLock>,
    suspended: Duration,
    /// Why this session cannot join now, and when whoever waits for the join is told.
    blocked: Option<(Time, String)>,
    patience: Duration,
    /// It cannot join because of what its build is.
    misfit: Option<Blocked>,
    /// Old files are to be collected.
    collecting: bool,
    /// The reign whose store was read, and the first claim that is still needed.
    read: Option<(Epoch, Option<Epoch>)>,
    answers: VecDeque<Input>,
    driving: bool,
}

impl ElectionBusiness {
    pub(crate) fn new(seat: Seat, session_lock: SessionLock, seed: u64) -> Self {
        let identity = &seat.identity;
        let program = identity.program.clone();
        let config = Config { session: identity.session, rank: identity.rank, program };
        Self {
            machine: Election::new(config, seed),
            lister: Lister::new(seat.dir.clone(), seat.identity.program.schema),
            seat,
            kit: None,
            making_kit: false,
            claim_when_made: None,
            won: BTreeMap::new(),
            session_lock: Some(session_lock),
            suspended: clock::suspend_total(),
            blocked: None,
            patience: JOIN_PATIENCE,
            misfit: None,
            collecting: false,
            read: None,
            answers: VecDeque::new(),
            driving: false,
        }
    }

    /// Hands in a fact, carries out everything it caused, and then hands in what that answered at once.
    fn drive(&mut self, input: Input, io: &mut Io<'_, ElectionIn>) {
        self.answers.push_back(input);
        if std::mem::replace(&mut self.driving, true) {
            return;
        }
        let mut effects = Vec::new();
        while let Some(input) = self.answers.pop_front() {
            self.machine.handle(io.now, input, &mut effects);
            for effect in effects.drain(..) {
                self.effect(effect, io);
            }
        }
        self.driving = false;
    }

    fn effect(&mut self, effect: Effect, io: &mut Io<'_, ElectionIn>) {
        match effect {
            Effect::List => {
                if !self.keep_place() {
                    return;
                }
                let lister = self.lister.clone();
                io.complete(async move {
                    match blocking(move || lister.list()).await {
                        Ok(listing) => ElectionIn::Listed(listing),
                        Err(error) => ElectionIn::ListFailed { why: error.to_string() },
                    }
                });
            }
            Effect::TestLock { epoch } => {
                let lock = lock_of(&claim::inspect_claim(&self.seat.dir, epoch).lock);
                self.drive(Input::LockTested { epoch, lock }, io);
            }
            Effect::Connect { attempt, target } => {
                self.seat.peers.follower(FollowerIn::Connect { attempt, target }, io.trace);
            }
            Effect::Disconnect { attempt } => {
                self.seat.peers.follower(FollowerIn::Disconnect { attempt }, io.trace)
            }
            Effect::MakeKit => self.make_kit(io),
            Effect::DropKit => self.kit = None,
            Effect::Claim { epoch } => self.claim(epoch, io),
            Effect::Begin { epoch, members, cause } => {
                let polite = cause == paceline_proto::event::Cause::HandedOver;
                self.begin(epoch, members, polite, io);
            }
            Effect::Adopt { epoch } => self.adopt(epoch, io),
            Effect::Drain { epoch, to } => {
                hit("drain");
                self.seat.peers.socket(SocketIn::Drain { epoch, to }, io.trace);
            }
            Effect::SendGo { to, last } => {
                hit("drained");
                self.seat.peers.hub(HubIn::SendGo { to, last }, io.trace);
            }
            Effect::RefusePromote { why } => self.seat.peers.hub(HubIn::PromoteRefused { why }, io.trace),
            Effect::ResumeReign { epoch } => {
                self.seat.peers.socket(SocketIn::Resume { epoch }, io.trace);
                self.seat.peers.outbox(OutboxIn::Resume { epoch }, io.trace);
                self.seat.peers.hub(HubIn::Resume { epoch }, io.trace);
            }
            Effect::SendMoved { epoch, to } => {
                hit("took");
                self.seat.peers.hub(HubIn::SendMoved { epoch, to }, io.trace);
            }
            Effect::SendTook { epoch } => self.seat.peers.follower(FollowerIn::Took(epoch), io.trace),
            Effect::End { epoch, close } => self.end(epoch, close, io),
            Effect::CheckFence { epoch } => {
                if self.seat.reign.epoch() == Some(epoch)
                    && let Err((epoch, why)) = self.seat.reign.check()
                {
                    self.drive(Input::Fenced { epoch, why }, io);
                }
            }
            Effect::LookAtOwner { epoch } => {
                let seen = claim::inspect_claim(&self.seat.dir, epoch);
                let stopped = seen.body.is_some_and(|body| process::is_stopped(&body.process) == Some(true));
                self.drive(Input::OwnerStopped(stopped), io);
            }
            Effect::Collect { .. } => {
                self.collecting = true;
                self.collect();
            }
            Effect::Left => self.left(io),
            Effect::Role(role) => {
                self.blocked = match (&role, self.blocked.take()) {
                    (Role::Blocked { why }, before) => {
                        let until = before.map_or(io.now + self.patience, |(until, _)| until);
                        Some((until, why.clone()))
                    }
                    // On its way to the next try, which may fail as the last one did.
                    (Role::Joining | Role::Candidate { .. }, before) => before,
                    (
                        Role::Follower { .. } | Role::Primary { .. } | Role::Draining { .. } | Role::Left,
                        _,
                    ) => {
                        self.misfit = None;
                        None
                    }
                };
                self.seat.replica.change_group(|view| view.role = role);
            }
            Effect::Event(event) => {
                match &event {
                    Event::VersionRefused { misfit, .. } => {
                        self.misfit = Some(Blocked::Version(misfit.clone()))
                    }
                    Event::StoreTooNew { schema, min_reader } => {
                        let (schema, min_reader) = (*schema, *min_reader);
                        let ours = self.seat.identity.program.clone();
                        self.misfit = Some(Blocked::Store { schema, min_reader, ours: Box::new(ours) });
                    }
                    Event::JoinRefused { .. } => self.misfit = None,
                    _ => {}
                }
                if matches!(
                    event,
                    Event::StoreTooNew { .. } | Event::JoinRefused { .. } | Event::VersionRefused { .. }
                ) {
                    // The role that says so may come before or behind the event: it fails the join when next looked at.
                    self.patience = Duration::ZERO;
                    if let Some((until, _)) = &mut self.blocked {
                        *until = io.now;
                    }
                }
                self.seat.observer.event(event);
            }
        }
    }

    fn make_kit(&mut self, io: &mut Io<'_, ElectionIn>) {
        if let Some(kit) = &self.kit {
            let address = kit.kit.address();
            return self.kit_ready(address, io);
        }
        if std::mem::replace(&mut self.making_kit, true) {
            return;
        }
        let dir = self.seat.dir.clone();
        let identity = self.seat.identity.clone();
        io.complete(async move { ElectionIn::KitMade(blocking(move || prepare_kit(&dir, &identity)).await) });
    }

    fn kit_ready(&mut self, address: KitAddress, io: &mut Io<'_, ElectionIn>) {
        self.seat.peers.follower(FollowerIn::Kit(address.clone()), io.trace);
        self.drive(Input::KitMade(Ok(address)), io);
    }

    fn kit_made(&mut self, result: Result<Box<PreparedKit>, String>, io: &mut Io<'_, ElectionIn>) {
        self.making_kit = false;
        let wanted = self.claim_when_made.take();
        match (result, wanted) {
            (Ok(kit), Some(epoch)) => {
                self.kit = Some(kit);
                self.claim(epoch, io);
            }
            (Ok(kit), None) => {
                let address = kit.kit.address();
                self.kit = Some(kit);
                self.kit_ready(address, io);
            }
            (Err(why), Some(epoch)) => {
                self.drive(Input::Claimed { epoch, result: ClaimResult::Failed(why) }, io);
            }
            (Err(why), None) => self.drive(Input::KitMade(Err(why)), io),
        }
    }

    /// Links the kit as the claim of `epoch`, lists again, and checks that the claim is still found at its name.
    fn claim(&mut self, epoch: Epoch, io: &mut Io<'_, ElectionIn>) {
        let Some(prepared) = self.kit.take() else {
            self.claim_when_made = Some(epoch);
            return self.make_kit(io);
        };
        let PreparedKit { kit, database } = *prepared;
        let address = kit.address();
        hit("claim");
        let linked = kit.link(epoch);
        hit("linked");
        let result = match linked {
            Ok((claim, bound)) => match claim.confirm() {
                Ok(()) => {
                    hit("confirmed");
                    let claim = Arc::new(claim);
                    let won = Won { claim, bound: Some(bound), database: Some(database), address };
                    self.won.insert(epoch, won);
                    ClaimResult::Won
                }
                Err(fenced) => {
                    tracing::debug!(%fenced, "the claim counts for nothing");
                    ClaimResult::Superseded
                }
            },
            Err(LinkError::Exists(kit)) => {
                self.kit = Some(Box::new(PreparedKit { database, kit: *kit }));
                ClaimResult::Exists
            }
            Err(LinkError::Io { kit, source }) => {
                // Where the kit's own file was removed the next try begins with another kit.
                if source.kind() != io::ErrorKind::NotFound {
                    self.kit = Some(Box::new(PreparedKit { database, kit: *kit }));
                }
                ClaimResult::Failed(format!(
                    "link a claim in {}: {source}; make the directory writable, free some space, or name another state \
                     directory",
                    self.seat.dir.claims().display()
                ))
            }
        };
        self.drive(Input::Claimed { epoch, result }, io);
    }

    fn begin(
        &mut self,
        epoch: Epoch,
        members: Option<Vec<paceline_proto::message::Member>>,
        polite: bool,
        io: &mut Io<'_, ElectionIn>,
    ) {
        let Some(won) = self.won.get_mut(&epoch) else { return };
        let Some(bound) = won.bound.take() else { return };
        let listener = match bound.into_listener() {
            Ok(listener) => listener,
            Err(error) => {
                // Without a listener nobody can follow: the next candidate takes over at once.
                tracing::error!(%error, "the claimed socket cannot be served");
                self.won.remove(&epoch);
                return self.drive(
                    Input::Fenced { epoch, why: format!("its socket cannot be served: {error}") },
                    io,
                );
            }
        };
        hit("begin");
        self.seat.reign.begin(epoch, won.claim.fence(), io.now);
        let address = won.address.clone();
        let carried = Carried::default();
        let begin = BeginReign { epoch, address, listener, members, polite, carried };
        self.seat.peers.follower(FollowerIn::Begin(Box::new(begin)), io.trace);
    }

    fn adopt(&mut self, epoch: Epoch, io: &mut Io<'_, ElectionIn>) {
        let Some(won) = self.won.get_mut(&epoch) else { return };
        let Some(database) = won.database.take() else { return };
        let claim = won.claim.clone();
        self.seat.peers.outbox(OutboxIn::Adopt { epoch, database: Box::new(database), claim }, io.trace);
    }

    fn end(&mut self, epoch: Epoch, close: bool, io: &mut Io<'_, ElectionIn>) {
        hit("end");
        if self.seat.reign.epoch() == Some(epoch) {
            self.seat.reign.end();
        }
        self.seat.peers.socket(SocketIn::Close { epoch }, io.trace);
        self.seat.peers.hub(HubIn::End { epoch, close }, io.trace);
        // The outbox drops its hold on the claim when its thread ended; ours goes first, so the lock goes last.
        self.won.remove(&epoch);
        hit("released");
        self.seat.peers.outbox(OutboxIn::End { epoch }, io.trace);
    }

    /// Somebody removed the group's directory, or put another in its place: whoever comes now forms another group, and one
    /// wire would be two. This session ends and says so. Of what is inside it what can be is made anew. True: it is in its
    /// place.
    fn keep_place(&mut self) -> bool {
        let dir = &self.seat.dir;
        let in_place = dir.is_in_place();
        if in_place {
            let restored = dir.restore().map_err(|error| error.to_string());
            let kept = self.session_lock.as_mut().map_or(Ok(()), SessionLock::keep);
            if let Err(error) = restored.and(kept.map_err(|error| error.to_string())) {
                tracing::debug!(%error, "what was removed of the group's directory cannot be made anew");
            }
        } else {
            self.seat.reign.end();
            let why = format!(
                "the group's directory {} was removed or replaced while the group was running; what was queued in it \
                 and not sent is gone; join again, and name a state directory that nothing cleans up",
                dir.root().display()
            );
            tracing::error!("{why}");
            self.seat.death.declare(End::Failed(why.into()));
        }
        in_place
    }

    /// Somebody removed the socket's name: newcomers could not come, though the lock is held. It is bound again.
    fn keep_socket(&self, io: &mut Io<'_, ElectionIn>) {
        let Some(epoch) = self.seat.reign.epoch() else { return };
        let Some(won) = self.won.get(&epoch).filter(|won| !won.claim.socket_is_in_place()) else { return };
        match won.claim.rebind().and_then(Bound::into_listener) {
            Ok(listener) => {
                tracing::warn!("the group's socket was removed and is bound again");
                self.seat.peers.hub(HubIn::Rebound { epoch, listener }, io.trace);
            }
            // The next ping tries again.
            Err(error) => tracing::warn!(%error, "the group's socket was removed and cannot be bound again"),
        }
    }

    /// Removes what is not needed any more, once it is known what that is.
    fn collect(&mut self) {
        let Some((_, keep_from)) = self.read.filter(|(epoch, _)| self.seat.reign.epoch() == Some(*epoch))
        else {
            return;
        };
        if !std::mem::take(&mut self.collecting) {
            return;
        }
        let dir = self.seat.dir.clone();
        tokio::task::spawn_blocking(move || {
            // Whatever cannot be collected now is collected by a later owner.
            let kept = claim::list_claims(&dir)
                .and_then(|_| claim::collect_claims(&dir, keep_from).map(drop))
                .and_then(|()| kit::collect_kits(&dir, &was_never_used).map(drop))
                .and_then(|()| member::collect_sessions(&dir).map(drop));
            if let Err(error) = kept {
                tracing::debug!(%error, "collecting old files failed");
            }
        });
    }

    fn left(&mut self, io: &mut Io<'_, ElectionIn>) {
        self.kit = None;
        self.won.clear();
        if let Some(Err(error)) = self.session_lock.take().map(SessionLock::leave) {
            tracing::debug!(%error, "the session's lock file stays behind");
        }
        self.seat.peers.follower(FollowerIn::Leave, io.trace);
        // Socket, Outbox, Hub and Follower stop in turn, each behind everything it was told before.
        self.seat.peers.socket(SocketIn::Stop, io.trace);
    }
}

impl Business for ElectionBusiness {
    const NAME: &'static str = "election";
    type Input = ElectionIn;

    fn handle(&mut self, input: ElectionIn, io: &mut Io<'_, ElectionIn>) {
        self.wake(io);
        let input = match input {
            ElectionIn::Start => Input::Start,
            ElectionIn::Listed(listing) => Input::Listed(listing),
            ElectionIn::Welcomed { attempt, epoch, owner } => Input::Welcomed { attempt, epoch, owner },
            ElectionIn::Busy { attempt, retry_ms } => {
                let why = || {
                    "the primary is full: too many connections at its door, too many sessions, or no descriptors left; \
                     end what is not needed, or raise its limit (ulimit -n)"
                        .to_owned()
                };
                self.blocked.get_or_insert_with(|| (io.now + self.patience, why()));
                Input::Busy { attempt, retry_ms }
            }
            ElectionIn::Refused { attempt, refusal } => Input::Refused { attempt, refusal },
            ElectionIn::ConnectFailed { attempt, failure } => Input::ConnectFailed { attempt, failure },
            ElectionIn::Eof { attempt } => Input::Eof { attempt },
            ElectionIn::ListFailed { why } => Input::ListFailed { why },
            ElectionIn::Ping(ping) => {
                if !self.keep_place() {
                    return;
                }
                self.keep_socket(io);
                Input::Ping(ping)
            }
            ElectionIn::Heir(heir) => Input::Heir(heir),
            ElectionIn::Go { last } => Input::Go { last },
            ElectionIn::Moved { epoch, to } => Input::Moved { epoch, to },
            ElectionIn::OwnerClosed => Input::OwnerClosed,
            ElectionIn::KitMade(result) => return self.kit_made(result, io),
            ElectionIn::Adopted { epoch, result } => {
                // Also where there is none: then those who submit hear from the outbox why.
                self.seat.peers.hub(HubIn::Adopted { epoch }, io.trace);
                Input::Adopted { epoch, result }
            }
            ElectionIn::Read { epoch, keep_from } => {
                self.read = Some((epoch, keep_from));
                return self.collect();
            }
            ElectionIn::StoreFailed { epoch, why } => {
                self.seat.peers.hub(HubIn::Adopted { epoch }, io.trace);
                Input::StoreFailed { epoch, why }
            }
            ElectionIn::Fenced { epoch, why } => Input::Fenced { epoch, why },
            ElectionIn::Drained { last } => Input::Drained { last },
            ElectionIn::Took { epoch, to } => Input::Took { epoch, to },
            ElectionIn::LookAtMember { epoch, session } => {
                if !member::session_alive(&self.seat.dir, session) {
                    self.seat.peers.hub(HubIn::MemberDead { epoch, session }, io.trace);
                }
                return;
            }
            ElectionIn::Promote { to } => Input::Promote { to },
            ElectionIn::Retire { reply } => {
                return self.seat.peers.hub(HubIn::Retire { reply }, io.trace);
            }
            ElectionIn::Continued => {
                if let Err((epoch, why)) = self.seat.reign.check() {
                    self.drive(Input::Fenced { epoch, why }, io);
                }
                return;
            }
            ElectionIn::Leave => Input::Leave,
        };
        self.drive(input, io);
    }

    fn deadline(&self) -> Option<Time> {
        earliest(self.machine.deadline(), self.blocked.as_ref().map(|(until, _)| *until))
    }

    fn due(&mut self, io: &mut Io<'_, ElectionIn>) {
        self.wake(io);
        if let Some((_, why)) = self.blocked.take_if(|(until, _)| *until <= io.now) {
            self.seat.observer.blocked(self.misfit.clone().unwrap_or_else(|| Blocked::Other(why.into())));
        }
        if self.machine.deadline().is_some_and(|at| at <= io.now) {
            let heard = self.seat.reign.heard();
            self.drive(Input::Deadline { heard }, io);
        }
    }
}

impl ElectionBusiness {
    /// A long sleep is looked at before anything else is acted on: the fence, and the machine's suspend.
    fn wake(&mut self, io: &mut Io<'_, ElectionIn>) {
        if let Err((epoch, why)) = self.seat.reign.wake(io.now) {
            self.drive(Input::Fenced { epoch, why }, io);
        }
        let total = clock::suspend_total();
        let jump = total.saturating_sub(self.suspended);
        if jump >= SUSPEND_NOTICED {
            self.suspended = total;
            self.drive(Input::Suspended { ms: u64::try_from(jump.as_millis()).unwrap_or(u64::MAX) }, io);
        }
    }
}

/// Runs blocking work on tokio's pool. A panic there is a panic here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn prepare_kit(dir: &StateDir, identity: &Identity) -> Result<Box<PreparedKit>, String> {
    let nonce = Nonce(uuid::Uuid::new_v4().as_u128());
    let database = QueueDb::create(&dir.database(nonce), Durability::Power)
        .map_err(|error| format!("make a queue database: {}", of_directory(error, dir)))?;
    hit("kit_database");
    let claimant = claim::Claimant {
        session: identity.session,
        label: identity.label.clone(),
        build: identity.program.build.clone(),
        proto: identity.program.proto,
        schema: identity.program.schema,
        min_reader: identity.program.min_reader,
    };
    let kit = Kit::make(dir, claim::ClaimBody::new(nonce, claimant)).map_err(|error| error.to_string())?;
    Ok(Box::new(PreparedKit { database, kit }))
}

/// What is wrong with the directory and not with this one name, which is another at the next try: one trouble is to be
/// reported once.
fn of_directory(error: StoreError, dir: &StateDir) -> StoreError {
    let path = dir.root().to_owned();
    match error {
        StoreError::DiskFull { why, .. } => StoreError::DiskFull { path, why },
        StoreError::Io { why, .. } => StoreError::Io { path, why },
        other => other,
    }
}

/// A kit's database that no owner ever completed. What cannot be read is kept: it may be somebody's newest.
fn was_never_used(database: &Path) -> bool {
    match paceline_store::inspect(database) {
        Ok(found) => found.complete.is_none(),
        Err(_) => !database.exists(),
    }
}
