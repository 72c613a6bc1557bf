//! Outbox actor: the queue database of the reign, and what is sent of it. Submits and marks gather while a commit runs and go
//! into the next one.
//!
//! **Invariant:** an acknowledgement follows the commit *and* a look at the fence after it, in that order, on the thread
//! that committed; see `docs/FAILOVER.md`.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use paceline_ipc::{claim, dirs::StateDir, failpoint::hit, fence::OwnedClaim};
use paceline_proto::{
    event::Event,
    id::{Epoch, LinkId, MutationId, SessionId},
    limits::{COMMIT_MAX, COMMIT_PER_SESSION},
    message::{OutboxAsk, Submit, SubmitOutcome},
    time::{Time, earliest},
};
use paceline_query::outbox::{Answer, Brief, Input, Mark};
use paceline_store::{
    FoldLimit, Inheritance, QueueDb, RowState, StoreError, SubmitResult, limits::SEGMENTS_SOFT,
};

use tokio::sync::oneshot;

use crate::{
    drain::{self, Drain, Found, Page, Sends},
    election::{ElectionIn, blocking},
    hub::HubIn,
    shell::{Business, Describe, Io},
    thread::Seat,
};

/// An idle store copies its log back and folds one step of old segments after this time.
const FOLD_AFTER_IDLE: Duration = Duration::from_secs(1);
/// Locks of former owners whose attempts have no answer are looked at so often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Rows copied forward in one step of a fold: a commit of some milliseconds.
const FOLD_ROWS: usize = 1024;

/// Messages of the outbox actor.
pub(crate) enum OutboxIn {
    /// A reign begins: adopt the newest complete store below it.
    Adopt { epoch: Epoch, database: Box<QueueDb>, claim: Arc<OwnedClaim> },
    /// Adoption ended.
    Adopted { epoch: Epoch, result: Result<(Box<Store>, u64), AdoptError> },
    /// Store a mutation.
    Store { epoch: Epoch, submit: Submit },
    /// A commit ended.
    Committed { epoch: Epoch, store: Box<Store>, committed: Committed },
    /// A step of a fold ended.
    Folded { epoch: Epoch, store: Box<Store>, result: Result<(), String> },
    /// A step of reading what is stored ended.
    Read { epoch: Epoch, store: Box<Store>, page: Result<Page, String> },
    /// A session asks, or wishes.
    Ask { epoch: Epoch, link: LinkId, id: u64, ask: OutboxAsk },
    /// An attempt ended. The claim is held until then, so that nobody takes its owner for gone.
    Answered { epoch: Epoch, id: MutationId, answer: Answer, claim: Arc<OwnedClaim> },
    /// Former owners that are gone.
    Released { epoch: Epoch, gone: Vec<Epoch> },
    /// Flush for a handover, then let the hub drain.
    Drain { epoch: Epoch, to: SessionId },
    /// The handover failed.
    Resume { epoch: Epoch },
    /// The reign is over.
    End { epoch: Epoch },
    /// Tell the hub whether nothing is kept or under way.
    Retire { epoch: Epoch, reply: oneshot::Sender<bool> },
    /// The session left: stop the hub when nothing is under way.
    Stop,
}

impl Describe for OutboxIn {
    fn kind(&self) -> &'static str {
        match self {
            Self::Adopt { .. } => "adopt",
            Self::Adopted { .. } => "adopted",
            Self::Store { .. } => "store",
            Self::Committed { .. } => "committed",
            Self::Folded { .. } => "folded",
            Self::Read { .. } => "read",
            Self::Ask { .. } => "ask",
            Self::Answered { .. } => "answered",
            Self::Released { .. } => "released",
            Self::Drain { .. } => "drain",
            Self::Resume { .. } => "resume",
            Self::End { .. } => "end",
            Self::Retire { .. } => "retire",
            Self::Stop => "stop",
        }
    }
}

/// The database and the claim that allows to use it. Travels to the blocking pool and back.
pub(crate) struct Store {
    // Closed before the claim is released.
    database: QueueDb,
    claim: Arc<OwnedClaim>,
    dir: StateDir,
}

/// Why a reign has no store.
pub(crate) enum AdoptError {
    /// It was replaced meanwhile.
    Fenced(String),
    /// What the reign before left behind is damaged or unknown: another attempt meets the same.
    Lasting(String),
    /// Another attempt may do: with room on the disk, or with descriptors.
    Passing(String),
}

impl From<StoreError> for AdoptError {
    fn from(error: StoreError) -> Self {
        let lasting = match &error {
            StoreError::TooNew { .. }
            | StoreError::Corrupt { .. }
            | StoreError::TwoComplete { .. }
            | StoreError::Sqlite { .. }
            | StoreError::Superseded { .. } => true,
            StoreError::Exists { .. }
            | StoreError::Name { .. }
            | StoreError::NotAdopted { .. }
            | StoreError::AlreadyAdopted { .. }
            | StoreError::Busy { .. }
            | StoreError::Changing { .. }
            | StoreError::CapReached { .. }
            | StoreError::NoRoom { .. }
            | StoreError::DiskFull { .. }
            | StoreError::Io { .. }
            | StoreError::Moved { .. }
            | StoreError::Poisoned { .. } => false,
        };
        if lasting { Self::Lasting(error.to_string()) } else { Self::Passing(error.to_string()) }
    }
}

/// How a commit ended.
pub(crate) struct Committed {
    results: Vec<(MutationId, SubmitOutcome)>,
    /// New mutations, and what is to be known of each.
    accepted: Vec<(MutationId, Option<Brief>)>,
    /// Marks that are durable; with what is to be sent.
    marked: Vec<(MutationId, Option<Bytes>)>,
    found: Vec<(MutationId, Found)>,
    /// Marks that the store could not take now; nothing of them was stored.
    put_off: Vec<(MutationId, Mark)>,
    fenced: Option<String>,
    failed: Option<String>,
    /// How many were committed by an owner that was replaced meanwhile.
    moved: usize,
    /// The disk cap was reached: nothing was stored.
    full: bool,
}

enum State {
    /// No reign, or its store cannot be used.
    Absent,
    /// On the blocking pool.
    Away,
    /// Ready.
    Here(Box<Store>),
}

pub(crate) struct OutboxBusiness {
    seat: Seat,
    epoch: Epoch,
    state: State,
    waiting: BTreeMap<SessionId, VecDeque<Submit>>,
    /// The session that is served first in the next commit.
    turn: Option<SessionId>,
    draining: Option<SessionId>,
    stopping: bool,
    /// Committed since the log was copied back.
    dirty: bool,
    fold_at: Option<Time>,
    /// A step of a fold comes before the next commit: there are too many segments, or the disk cap is reached.
    fold_next: bool,
    /// Something came in that `go_on` has not looked at.
    changed: bool,
    /// The own reign whose store failed, and its last durable row.
    failed: Option<(Epoch, u64)>,
    /// What this session sends, if it can.
    sends: Option<Sends>,
    drain: Option<Drain>,
    /// Questions that came before the reign that they are for.
    early: Vec<(Epoch, LinkId, u64, OutboxAsk)>,
    /// A step of reading comes before the next commit.
    read_next: bool,
    look_at: Option<Time>,
    /// Marks that wait for the store to take them, with the next look.
    put_off: Vec<(MutationId, Mark)>,
    /// Why there is no store, for those who submit.
    why_absent: String,
}

impl OutboxBusiness {
    pub(crate) fn new(seat: Seat, sends: Option<Sends>) -> Self {
        Self {
            seat,
            epoch: Epoch::NONE,
            state: State::Absent,
            waiting: BTreeMap::new(),
            turn: None,
            draining: None,
            stopping: false,
            dirty: false,
            fold_at: None,
            fold_next: false,
            changed: false,
            failed: None,
            sends,
            drain: None,
            early: Vec::new(),
            read_next: false,
            look_at: None,
            put_off: Vec::new(),
            why_absent: String::new(),
        }
    }

    fn adopt(&mut self, epoch: Epoch, database: QueueDb, claim: Arc<OwnedClaim>, io: &mut Io<'_, OutboxIn>) {
        self.epoch = epoch;
        self.state = State::Away;
        self.waiting.clear();
        self.draining = None;
        let rules = self.sends.as_ref().map(|sends| sends.rules.clone()).unwrap_or_default();
        let mut drain = Drain::new(rules, epoch);
        for (of, link, id, ask) in std::mem::take(&mut self.early) {
            if of == epoch {
                drain.ask(io.now, link, id, &ask);
            }
        }
        self.drain = Some(drain);
        self.look_at = None;
        self.put_off.clear();
        let store = Box::new(Store { database, claim, dir: self.seat.dir.clone() });
        let failed = self.failed;
        io.complete(async move {
            OutboxIn::Adopted { epoch, result: blocking(move || adopt(store, epoch, failed)).await }
        });
    }

    fn adopted(&mut self, result: Result<(Box<Store>, u64), AdoptError>, io: &mut Io<'_, OutboxIn>) {
        let epoch = self.epoch;
        let told = match result {
            Ok((store, rows)) => {
                self.state = State::Here(store);
                ElectionIn::Adopted { epoch, result: Ok(rows) }
            }
            Err(error) => {
                self.state = State::Absent;
                self.drain = None;
                let (AdoptError::Fenced(why) | AdoptError::Lasting(why) | AdoptError::Passing(why)) = &error;
                self.why_absent.clone_from(why);
                match error {
                    AdoptError::Fenced(why) => ElectionIn::Fenced { epoch, why },
                    AdoptError::Lasting(why) => ElectionIn::Adopted { epoch, result: Err(why) },
                    AdoptError::Passing(why) => ElectionIn::StoreFailed { epoch, why },
                }
            }
        };
        self.seat.peers.election(told, io.trace);
        self.go_on(io);
    }

    fn committed(&mut self, committed: Committed, io: &mut Io<'_, OutboxIn>) {
        let epoch = self.epoch;
        // The hub learns the outcomes in any case: a NACK is an answer too.
        self.seat.peers.hub(HubIn::Stored { epoch, results: committed.results }, io.trace);
        if committed.fenced.is_none()
            && committed.failed.is_none()
            && let Some(drain) = &mut self.drain
        {
            for (id, brief) in committed.accepted {
                drain.accepted(io.now, id, brief);
            }
            for (id, payload) in committed.marked {
                drain.marked(io.now, id, payload);
            }
            for (id, found) in committed.found {
                drain.found(id, &found);
            }
            if !committed.put_off.is_empty() {
                self.put_off = committed.put_off;
                self.look_at.get_or_insert(io.now + LOOK_AGAIN);
            }
        } else {
            self.drain = None;
        }
        if committed.full {
            self.seat.observer.event(Event::LimitReached { limit: "DISK_CAP" });
        }
        if let Some(why) = committed.fenced {
            self.state = State::Absent;
            self.moved(epoch, committed.moved);
            self.seat.peers.election(ElectionIn::Fenced { epoch, why }, io.trace);
        } else if let Some(why) = committed.failed {
            if let State::Here(store) = std::mem::replace(&mut self.state, State::Absent) {
                self.failed = Some((epoch, store.database.last_durable()));
            }
            self.why_absent.clone_from(&why);
            self.seat.peers.election(ElectionIn::StoreFailed { epoch, why }, io.trace);
        }
    }

    /// Mutations that this owner took and, replaced, does not acknowledge. Their callers ask the next owner.
    fn moved(&self, epoch: Epoch, submits: usize) {
        if submits > 0 {
            self.seat.observer.event(Event::SubmitsMoved { epoch, submits: submits as u64 });
        }
    }

    /// Starts the next commit, or what waits for the store to be idle.
    fn go_on(&mut self, io: &mut Io<'_, OutboxIn>) {
        if matches!(self.state, State::Away) {
            return;
        }
        if std::mem::take(&mut self.fold_next) && self.start_fold(io) {
            return;
        }
        let epoch = self.epoch;
        self.work(io);
        if std::mem::take(&mut self.read_next) && self.start_reading(io) {
            return;
        }
        if self.wants_commit()
            && let State::Here(store) = std::mem::replace(&mut self.state, State::Away)
        {
            let mut batch =
                Batch { submits: next_batch(&mut self.waiting, &mut self.turn), ..Batch::default() };
            if let Some(drain) = &mut self.drain {
                batch.marks = std::mem::take(&mut drain.work.marks);
                batch.lookups = std::mem::take(&mut drain.work.lookups);
            }
            self.dirty = true;
            self.read_next = true;
            io.complete(async move {
                let (store, committed) = blocking(move || commit(store, &batch)).await;
                OutboxIn::Committed { epoch, store, committed }
            });
            self.fold_at = None;
            return;
        }
        if matches!(self.state, State::Away) {
            // Submits wait for a store that is gone: the hub hears that their fate is unknown.
            self.state = State::Absent;
        }
        if matches!(self.state, State::Absent) && !self.waiting.is_empty() {
            let why = format!("the group's store cannot be written: {}", self.why_absent);
            let results = std::mem::take(&mut self.waiting)
                .into_values()
                .flatten()
                .map(|submit| (submit.id, SubmitOutcome::Unknown(why.clone())))
                .collect();
            self.seat.peers.hub(HubIn::Stored { epoch, results }, io.trace);
        }
        if self.start_reading(io) {
            return;
        }
        if let Some(to) =
            self.draining.take_if(|_| self.drain.as_ref().is_none_or(|drain| !drain.must_finish()))
        {
            hit("flushed");
            self.seat.peers.hub(HubIn::Drain { epoch, to }, io.trace);
        }
        if self.stopping {
            self.state = State::Absent;
            self.seat.peers.hub(HubIn::Stop, io.trace);
        }
        if let State::Here(store) = &self.state
            && (self.dirty || !store.database.segments().is_empty())
        {
            self.fold_at = Some(io.now + FOLD_AFTER_IDLE);
        }
    }

    fn wants_commit(&self) -> bool {
        let work = self.drain.as_ref().map(|drain| &drain.work);
        !self.waiting.is_empty()
            || work.is_some_and(|work| !work.marks.is_empty() || !work.lookups.is_empty())
    }

    /// Sends and tells what is to be.
    fn work(&mut self, io: &mut Io<'_, OutboxIn>) {
        let epoch = self.epoch;
        let Some(drain) = &mut self.drain else { return };
        for (link, id, answer) in std::mem::take(&mut drain.work.answers) {
            self.seat.peers.hub(HubIn::Answer { epoch, link, id, answer }, io.trace);
        }
        let (State::Here(store), Some(sends)) = (&self.state, &self.sends) else { return };
        for (id, outgoing) in std::mem::take(&mut drain.work.sends) {
            let (sending, claim) = (sends.sender.send(outgoing), store.claim.clone());
            io.complete(async move { OutboxIn::Answered { epoch, id, answer: sending.await, claim } });
        }
    }

    /// Starts a step of reading, if the store is here and not all of it is read.
    fn start_reading(&mut self, io: &mut Io<'_, OutboxIn>) -> bool {
        let wanted = self.drain.as_ref().filter(|_| self.draining.is_none() && !self.stopping);
        let Some(after) = wanted.and_then(Drain::reads_after) else { return false };
        match std::mem::replace(&mut self.state, State::Away) {
            State::Here(mut store) => {
                let epoch = self.epoch;
                io.complete(async move {
                    let read = move || {
                        let page = drain::read(&mut store.database, after).map_err(|error| error.to_string());
                        (store, page)
                    };
                    let (store, page) = blocking(read).await;
                    OutboxIn::Read { epoch, store, page }
                });
                true
            }
            other @ (State::Absent | State::Away) => {
                self.state = other;
                false
            }
        }
    }

    /// Looks whether former owners are gone whose attempts have no answer.
    fn look(&mut self, io: &mut Io<'_, OutboxIn>) {
        let former = self.drain.as_ref().map(Drain::former_owners).unwrap_or_default();
        self.look_at = None;
        if former.is_empty() {
            return;
        }
        let (epoch, dir) = (self.epoch, self.seat.dir.clone());
        io.complete(async move {
            let look = move || {
                let is_gone = |epoch: &Epoch| claim::inspect_claim(&dir, *epoch).lock.is_free();
                former.into_iter().filter(is_gone).collect()
            };
            OutboxIn::Released { epoch, gone: blocking(look).await }
        });
    }

    /// Starts a step of a fold, if the store is here.
    fn start_fold(&mut self, io: &mut Io<'_, OutboxIn>) -> bool {
        match std::mem::replace(&mut self.state, State::Away) {
            State::Here(store) => {
                let epoch = self.epoch;
                self.dirty = false;
                io.complete(async move {
                    let (store, result) = blocking(move || fold(store)).await;
                    OutboxIn::Folded { epoch, store, result }
                });
                true
            }
            other @ (State::Absent | State::Away) => {
                self.state = other;
                false
            }
        }
    }
}

impl Business for OutboxBusiness {
    const NAME: &'static str = "outbox";
    type Input = OutboxIn;

    fn handle(&mut self, input: OutboxIn, io: &mut Io<'_, OutboxIn>) {
        match input {
            OutboxIn::Adopt { epoch, database, claim } => self.adopt(epoch, *database, claim, io),
            OutboxIn::Adopted { epoch, result } if epoch == self.epoch => self.adopted(result, io),
            OutboxIn::Store { epoch, submit } if epoch == self.epoch => {
                self.waiting.entry(submit.id.session).or_default().push_back(submit);
                self.changed = true;
                // Started by `flush`, so that everything that came together is committed together.
            }
            OutboxIn::Committed { epoch, store, committed } if epoch == self.epoch => {
                self.fold_next = committed.full || store.database.segments().len() > SEGMENTS_SOFT;
                self.state = State::Here(store);
                self.committed(committed, io);
                self.changed = true;
            }
            OutboxIn::Folded { epoch, store, result } if epoch == self.epoch => {
                match result {
                    Ok(()) => self.state = State::Here(store),
                    Err(why) => {
                        self.state = State::Absent;
                        self.why_absent.clone_from(&why);
                        self.seat.peers.election(ElectionIn::StoreFailed { epoch, why }, io.trace);
                    }
                }
                self.go_on(io);
            }
            OutboxIn::Read { epoch, store, page } if epoch == self.epoch => {
                self.state = State::Here(store);
                match (page, &mut self.drain) {
                    (Ok(page), Some(drain)) => {
                        if drain.take(io.now, page) {
                            let keep_from = drain.former_owners().first().copied();
                            self.seat.peers.election(ElectionIn::Read { epoch, keep_from }, io.trace);
                            self.look(io);
                        }
                    }
                    (Err(why), _) => {
                        self.drain = None;
                        self.state = State::Absent;
                        self.why_absent.clone_from(&why);
                        self.seat.peers.election(ElectionIn::StoreFailed { epoch, why }, io.trace);
                    }
                    (Ok(_), None) => {}
                }
                self.go_on(io);
            }
            OutboxIn::Ask { epoch, link, id, ask } if epoch == self.epoch => {
                if let Some(drain) = &mut self.drain {
                    drain.ask(io.now, link, id, &ask);
                }
                self.changed = true;
            }
            OutboxIn::Ask { epoch, link, id, ask } if epoch > self.epoch => {
                self.early.push((epoch, link, id, ask));
            }
            OutboxIn::Answered { epoch, id, answer, claim } if epoch == self.epoch => {
                drop(claim);
                if let Some(drain) = &mut self.drain {
                    drain.handle(io.now, Input::Answered { id, answer });
                }
                self.changed = true;
            }
            OutboxIn::Released { epoch, gone } if epoch == self.epoch => {
                if let Some(drain) = &mut self.drain {
                    gone.into_iter().for_each(|epoch| drain.handle(io.now, Input::Released { epoch }));
                    self.look_at = (!drain.former_owners().is_empty()).then(|| io.now + LOOK_AGAIN);
                }
                self.changed = true;
            }
            OutboxIn::Drain { epoch, to } if epoch == self.epoch => {
                self.draining = Some(to);
                self.pause(io.now, true);
                self.go_on(io);
            }
            OutboxIn::Resume { epoch } if epoch == self.epoch => {
                self.draining = None;
                self.pause(io.now, false);
                self.go_on(io);
            }
            OutboxIn::End { epoch } if epoch == self.epoch => {
                self.fold_next = false;
                self.moved(epoch, self.waiting.values().map(VecDeque::len).sum());
                self.epoch = Epoch::NONE;
                self.state = State::Absent;
                self.drain = None;
                self.look_at = None;
                self.waiting.clear();
                self.fold_at = None;
            }
            OutboxIn::Retire { epoch, reply } => {
                let empty = match &self.state {
                    State::Here(_) => {
                        self.waiting.is_empty() && self.drain.as_ref().is_some_and(Drain::is_empty)
                    }
                    State::Absent | State::Away => false,
                };
                self.seat.peers.hub(HubIn::Retired { epoch, empty, reply }, io.trace);
            }
            OutboxIn::Stop => {
                self.stopping = true;
                self.go_on(io);
            }
            // Of a reign that is over: the store and its hold on the claim end here.
            OutboxIn::Committed { epoch, committed, .. } => self.moved(epoch, committed.moved),
            OutboxIn::Store { epoch, .. } => self.moved(epoch, 1),
            OutboxIn::Adopted { .. }
            | OutboxIn::Folded { .. }
            | OutboxIn::Read { .. }
            | OutboxIn::Ask { .. }
            | OutboxIn::Answered { .. }
            | OutboxIn::Released { .. }
            | OutboxIn::Drain { .. }
            | OutboxIn::Resume { .. }
            | OutboxIn::End { .. } => {}
        }
    }

    fn deadline(&self) -> Option<Time> {
        let drain = self.drain.as_ref().and_then(Drain::deadline);
        earliest(earliest(self.fold_at, self.look_at), drain)
    }

    fn due(&mut self, io: &mut Io<'_, OutboxIn>) {
        if let Some(drain) = &mut self.drain {
            drain.work.marks.append(&mut self.put_off);
            drain.handle(io.now, Input::Tick);
            self.changed = true;
        }
        if self.look_at.is_some_and(|at| at <= io.now) {
            self.look(io);
        }
        if self.fold_at.is_some_and(|at| at <= io.now) {
            self.fold_at = None;
            self.start_fold(io);
        }
    }

    fn flush(&mut self, io: &mut Io<'_, OutboxIn>) {
        if std::mem::take(&mut self.changed) {
            self.go_on(io);
        }
    }
}

impl OutboxBusiness {
    fn pause(&mut self, now: Time, paused: bool) {
        if let Some(drain) = &mut self.drain {
            drain.handle(now, Input::Pause { scope: None, paused });
        }
    }
}

/// What one commit stores, and what is looked up before the next.
#[derive(Default)]
struct Batch {
    submits: Vec<Submit>,
    marks: Vec<(MutationId, Mark)>,
    lookups: Vec<MutationId>,
}

/// At most `COMMIT_PER_SESSION` submits of one session and `COMMIT_MAX` in all, sessions in turn.
fn next_batch(
    waiting: &mut BTreeMap<SessionId, VecDeque<Submit>>,
    turn: &mut Option<SessionId>,
) -> Vec<Submit> {
    let mut batch = Vec::new();
    let sessions: Vec<SessionId> = match *turn {
        Some(turn) => {
            let later = waiting.range(turn..).map(|(session, _)| *session);
            later.chain(waiting.range(..turn).map(|(session, _)| *session)).collect()
        }
        None => waiting.keys().copied().collect(),
    };
    for session in sessions {
        let Some(queue) = waiting.get_mut(&session) else { continue };
        let room = (COMMIT_MAX - batch.len()).min(COMMIT_PER_SESSION).min(queue.len());
        batch.extend(queue.drain(..room));
        if queue.is_empty() {
            waiting.remove(&session);
        }
        if batch.len() == COMMIT_MAX {
            *turn = Some(SessionId(session.0.wrapping_add(1)));
            break;
        }
    }
    batch
}

/// Reads after the claim, syncs the directories, commits `complete`, and only then the store may be used.
fn adopt(
    mut store: Box<Store>,
    epoch: Epoch,
    failed: Option<(Epoch, u64)>,
) -> Result<(Box<Store>, u64), AdoptError> {
    let adopted = adopt_steps(&mut store, epoch, failed)?;
    store.claim.fence().unfenced().map_err(|fenced| AdoptError::Fenced(fenced.to_string()))?;
    hit("usable");
    Ok((store, adopted.rows))
}

fn adopt_steps(
    store: &mut Store,
    epoch: Epoch,
    failed: Option<(Epoch, u64)>,
) -> Result<paceline_store::Adopted, AdoptError> {
    let mut inheritance = Inheritance::read(store.dir.root(), epoch)?;
    if let Some((own, last_durable)) = failed
        && own.next() == epoch
    {
        // Rows of the failed commit were answered as unknown and may never reach the disk.
        inheritance.forget_beyond(last_durable);
    }
    hit("inherited");
    claim::sync_claims(&store.dir).map_err(|error| {
        AdoptError::Passing(format!("{} cannot be made durable: {error}", store.dir.claims().display()))
    })?;
    hit("synced");
    let adopted = store.database.adopt(&inheritance)?;
    hit("complete");
    store.database.verify_path()?;
    hit("adopted");
    Ok(adopted)
}

/// Commits, then looks at the fence, then says what may be said.
fn commit(mut store: Box<Store>, batch: &Batch) -> (Box<Store>, Committed) {
    let submits = &batch.submits;
    let mut committed = Committed {
        results: Vec::with_capacity(submits.len()),
        accepted: Vec::new(),
        marked: Vec::new(),
        found: Vec::new(),
        put_off: Vec::new(),
        fenced: None,
        failed: None,
        moved: 0,
        full: false,
    };
    let all = |outcome: &SubmitOutcome| submits.iter().map(|submit| (submit.id, outcome.clone())).collect();
    let marks: Vec<_> = batch.marks.iter().map(|(id, mark)| drain::stored(*id, mark)).collect();
    hit("commit");
    let mut stored = store.database.store(submits, &marks);
    if matches!(&stored, Err(error) if error.retryable() && !error.state_unknown()) && !marks.is_empty() {
        // No room for more mutations; what became of others is stored all the same.
        let refused = stored;
        let alone = store.database.store(&[], &marks);
        match &alone {
            Ok(_) if store.claim.fence().unfenced().is_ok() => {
                committed.marked = marked(&mut store, &batch.marks);
            }
            Ok(_) => {}
            Err(_) => committed.put_off.clone_from(&batch.marks),
        }
        stored = alone.and(refused);
    }
    hit("committed");
    match stored {
        Ok(results) => match store.claim.fence().unfenced() {
            Ok(()) => {
                hit("acknowledge");
                let outcomes = results.iter().map(outcome);
                committed.results = submits.iter().map(|submit| submit.id).zip(outcomes).collect();
                let new = submits.iter().zip(&results);
                let new = new.filter(|(_, result)| matches!(result, SubmitResult::Accepted { .. }));
                committed.accepted =
                    new.map(|(submit, _)| (submit.id, drain::brief(&submit.payload))).collect();
                committed.marked = marked(&mut store, &batch.marks);
                committed.found = looked_up(&mut store, &batch.lookups);
            }
            Err(fenced) => {
                committed.results = all(&SubmitOutcome::Moved);
                committed.fenced = Some(fenced.to_string());
                committed.moved = submits.len();
            }
        },
        Err(error) if error.retryable() && !error.state_unknown() => {
            tracing::warn!(%error, "a batch was not stored");
            committed.full = matches!(error, StoreError::CapReached { .. });
            committed.found = looked_up(&mut store, &batch.lookups);
            committed.results = all(&SubmitOutcome::Busy);
        }
        Err(error) => {
            let why = format!("the group's store cannot be written: {error}");
            committed.results = all(&SubmitOutcome::Unknown(why));
            committed.failed = Some(error.to_string());
        }
    }
    (store, committed)
}

fn looked_up(store: &mut Store, ids: &[MutationId]) -> Vec<(MutationId, Found)> {
    let look = |id: &MutationId| match drain::look_up(&mut store.database, *id) {
        Ok(found) => Some((*id, found)),
        Err(error) => {
            tracing::warn!(%error, "a mutation cannot be looked up");
            None
        }
    };
    ids.iter().filter_map(look).collect()
}

/// The durable marks, each with what is to be sent behind it.
fn marked(store: &mut Store, marks: &[(MutationId, Mark)]) -> Vec<(MutationId, Option<Bytes>)> {
    let mut payload = |id: MutationId, mark: &Mark| match mark {
        Mark::Sending { .. } => {
            let rows = store.database.of(id).ok()?;
            rows.into_iter().find(|row| row.state == RowState::Queued).map(|row| row.payload)
        }
        _ => None,
    };
    marks.iter().map(|(id, mark)| (*id, payload(*id, mark))).collect()
}

fn outcome(result: &SubmitResult) -> SubmitOutcome {
    match *result {
        SubmitResult::Accepted { .. } | SubmitResult::Duplicate => SubmitOutcome::Acknowledged,
        SubmitResult::HashMismatch => SubmitOutcome::HashMismatch,
        SubmitResult::Hole { expected } => SubmitOutcome::Hole { expected },
    }
}

/// One step of a fold, and the log copied back. Files that nothing reachable lies in are removed only by an owner that
/// is complete and, looked at after they were listed, unfenced.
fn fold(mut store: Box<Store>) -> (Box<Store>, Result<(), String>) {
    let result = fold_steps(&mut store).map_err(|error| error.to_string());
    (store, result)
}

fn fold_steps(store: &mut Store) -> Result<(), StoreError> {
    match store.database.fold(FoldLimit { rows: FOLD_ROWS, ..FoldLimit::default() }) {
        Ok(_) => {}
        // Nothing was written: the next idle time will do.
        Err(error) if !error.state_unknown() => tracing::debug!(%error, "folding waits"),
        Err(error) => return Err(error),
    }
    hit("folded");
    store.database.maintain()?;
    let discardable = store.database.discardable()?;
    if store.claim.fence().unfenced().is_ok() {
        for path in discardable {
            paceline_store::remove(&path)?;
            hit("removed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `each` submits of each of the sessions 1 to `sessions`.
    fn waiting(sessions: usize, each: usize) -> BTreeMap<SessionId, VecDeque<Submit>> {
        let submit =
            |session, seq| Submit { id: MutationId { session, seq }, hash: [0; 16], payload: Bytes::new() };
        let of = |n: usize| {
            let session = SessionId(n as u128);
            (session, (1..=each as u64).map(|seq| submit(session, seq)).collect())
        };
        (1..=sessions).map(of).collect()
    }

    #[test]
    fn a_session_gets_its_share_of_a_commit_and_one_more_waits() {
        let mut inside = waiting(1, COMMIT_PER_SESSION);
        assert_eq!(next_batch(&mut inside, &mut None).len(), COMMIT_PER_SESSION);
        assert!(inside.is_empty());
        let mut outside = waiting(2, COMMIT_PER_SESSION + 1);
        assert_eq!(next_batch(&mut outside, &mut None).len(), 2 * COMMIT_PER_SESSION);
        let left: Vec<_> = outside.values().flatten().map(|submit| submit.id.seq).collect();
        assert_eq!(left, [COMMIT_PER_SESSION as u64 + 1; 2], "in order");
    }

    #[test]
    fn a_commit_takes_its_most_and_the_next_begins_with_who_waits() {
        let all = COMMIT_MAX / COMMIT_PER_SESSION;
        let mut turn = None;
        assert_eq!(next_batch(&mut waiting(all, COMMIT_PER_SESSION), &mut turn).len(), COMMIT_MAX);
        let (mut more, mut turn) = (waiting(all + 1, 2 * COMMIT_PER_SESSION), None);
        assert_eq!(next_batch(&mut more, &mut turn).len(), COMMIT_MAX);
        let next = next_batch(&mut more, &mut turn);
        assert_eq!(next.first().map(|submit| submit.id.session), Some(SessionId(all as u128 + 1)));
    }
}
