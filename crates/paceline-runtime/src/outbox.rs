//! Outbox actor: the queue database of the reign. Submits gather while a commit runs and go into the next one.
//!
//! **Invariant:** an acknowledgement follows the commit *and* a look at the fence after it, in that order, on the thread
//! that committed; see `docs/FAILOVER.md`.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use paceline_ipc::{claim, dirs::StateDir, failpoint::hit, fence::OwnedClaim};
use paceline_proto::{
    event::Event,
    id::{Epoch, MutationId, SessionId},
    limits::{COMMIT_MAX, COMMIT_PER_SESSION},
    message::{Submit, SubmitOutcome},
    time::Time,
};
use paceline_store::{FoldLimit, Inheritance, QueueDb, StoreError, SubmitResult, limits::SEGMENTS_SOFT};

use tokio::sync::oneshot;

use crate::{
    election::{ElectionIn, blocking},
    hub::HubIn,
    shell::{Business, Describe, Io},
    thread::Seat,
};

/// An idle store copies its log back and folds one step of old segments after this time.
const FOLD_AFTER_IDLE: Duration = Duration::from_secs(1);
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
    /// Why there is no store, for those who submit.
    why_absent: String,
}

impl OutboxBusiness {
    pub(crate) fn new(seat: Seat) -> Self {
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
            why_absent: String::new(),
        }
    }

    fn adopt(&mut self, epoch: Epoch, database: QueueDb, claim: Arc<OwnedClaim>, io: &mut Io<'_, OutboxIn>) {
        self.epoch = epoch;
        self.state = State::Away;
        self.waiting.clear();
        self.draining = None;
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
        if !self.waiting.is_empty()
            && let State::Here(store) = std::mem::replace(&mut self.state, State::Away)
        {
            let batch = next_batch(&mut self.waiting, &mut self.turn);
            self.dirty = true;
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
        if let Some(to) = self.draining.take() {
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
            OutboxIn::Drain { epoch, to } if epoch == self.epoch => {
                self.draining = Some(to);
                self.go_on(io);
            }
            OutboxIn::Resume { epoch } if epoch == self.epoch => self.draining = None,
            OutboxIn::End { epoch } if epoch == self.epoch => {
                self.fold_next = false;
                self.moved(epoch, self.waiting.values().map(VecDeque::len).sum());
                self.epoch = Epoch::NONE;
                self.state = State::Absent;
                self.waiting.clear();
                self.fold_at = None;
            }
            OutboxIn::Retire { epoch, reply } => {
                let empty = match &self.state {
                    State::Here(store) => self.waiting.is_empty() && store.database.counts().rows == 0,
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
            | OutboxIn::Drain { .. }
            | OutboxIn::Resume { .. }
            | OutboxIn::End { .. } => {}
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.fold_at
    }

    fn due(&mut self, io: &mut Io<'_, OutboxIn>) {
        self.fold_at = None;
        self.start_fold(io);
    }

    fn flush(&mut self, io: &mut Io<'_, OutboxIn>) {
        if std::mem::take(&mut self.changed) {
            self.go_on(io);
        }
    }
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
fn commit(mut store: Box<Store>, batch: &[Submit]) -> (Box<Store>, Committed) {
    let mut committed = Committed {
        results: Vec::with_capacity(batch.len()),
        fenced: None,
        failed: None,
        moved: 0,
        full: false,
    };
    let all = |outcome: &SubmitOutcome| batch.iter().map(|submit| (submit.id, outcome.clone())).collect();
    hit("commit");
    let stored = store.database.commit(batch);
    hit("committed");
    match stored {
        Ok(results) => match store.claim.fence().unfenced() {
            Ok(()) => {
                hit("acknowledge");
                let outcomes = results.iter().map(outcome);
                committed.results = batch.iter().map(|submit| submit.id).zip(outcomes).collect();
            }
            Err(fenced) => {
                committed.results = all(&SubmitOutcome::Moved);
                committed.fenced = Some(fenced.to_string());
                committed.moved = batch.len();
            }
        },
        Err(error) if error.retryable() && !error.state_unknown() => {
            tracing::warn!(%error, "a batch was not stored");
            committed.full = matches!(error, StoreError::CapReached { .. });
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
        let submit = |session, seq| Submit {
            id: MutationId { session, seq },
            hash: [0; 16],
            payload: bytes::Bytes::new(),
        };
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
