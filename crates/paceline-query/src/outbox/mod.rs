//! The order in which stored mutations are sent, and what follows from each answer. Pure: it decides, its owner commits,
//! sends and tells.
//!
//! A mutation is stored before it comes here, and every decision about it is a [`Mark`] that becomes durable before it has
//! any effect: [`Effect::Commit`] asks for that, [`Input::Committed`] says that it is so **and that the fence was looked at
//! afterwards**. Only then bytes go out ([`Effect::Send`]) or somebody hears an outcome ([`Effect::Outcome`]). An owner that
//! is replaced between the two has done nothing.
//!
//! **Order.** Within a scope one after the other, in the order of acceptance; a mutation whose fate is uncertain holds the
//! later ones of its scope back. Among the heads of scopes the one with the highest priority, where waiting for
//! [`Rules::age_boost`] counts as much as one priority: the head with the least *at* − *priority* · `age_boost` is next, an
//! order that time does not change.
//!
//! **Once.** All attempts under one key (see [`Outbox::key`]) carry the same bytes, so a server that honours the key applies
//! them once, whoever sends them. What cannot be told from the outside is never guessed: an attempt without an answer at a
//! server without keys, or later than the server remembers them, ends [`Status::Parked`]. A refusal counts only where no
//! former owner could send any more when it was asked for: one that is frozen may get through behind it, by a server that
//! changed its mind, and what was refused would be applied. So it is asked for once more when they are gone.

mod answer;
mod life;
mod order;
mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use paceline_proto::{
    id::{Epoch, MutationId},
    time::Time,
};
use serde::{Deserialize, Serialize};

pub use self::{
    answer::Answer,
    life::{Life, Mark, Status},
    record::{Body, Record, RecordError},
};
use self::{
    answer::Verdict,
    order::{Order, Place},
};
use crate::limits::RETRY_AFTER_MAX;

/// What a server promises about a key that it has seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// It applies what comes under one key once.
    #[default]
    Idempotent,
    /// Nothing: what may have arrived is not sent again.
    AtMostOnce,
}

/// What follows when the server's value is not the one that the mutation was made from (requirement M8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// The server's value stays; the mutation is rejected.
    #[default]
    ServerWins,
    /// It is sent again without its condition.
    ClientWins,
    /// Both versions are kept until somebody decides.
    Manual,
}

/// The rules of an outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Attempts that may fail, the first included; at least one.
    pub attempts: u32,
    /// The delay after the first failure; it doubles.
    pub base: Duration,
    /// The longest delay that no server asked for.
    pub cap: Duration,
    /// Mutations that are on their way at a time.
    pub parallel: usize,
    /// Waiting so long counts as much as one priority.
    pub age_boost: Duration,
    /// How long a server remembers a key, from the first attempt.
    pub window: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            attempts: 5,
            base: Duration::from_secs(1),
            cap: Duration::from_secs(30),
            parallel: 4,
            age_boost: Duration::from_secs(30),
            window: Duration::from_secs(24 * 3600),
        }
    }
}

/// What the order needs to know of a mutation; the rest stays in the store until it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Brief {
    /// Its scope.
    pub scope: Option<Arc<str>>,
    /// Its priority.
    pub priority: i32,
    /// When it was made, in milliseconds since 1970.
    pub at: u64,
    /// What its server promises.
    pub delivery: Delivery,
    /// What a conflict leads to.
    pub on_conflict: OnConflict,
}

/// The two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Decides what is due.
    pub time: Time,
    /// Milliseconds since 1970: only to say a due time, and the age of a key, to an owner after this one.
    pub wall: u64,
}

/// What happens to an outbox.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A stored mutation: a new one, or one that an earlier owner left; in the order of acceptance.
    Queued {
        /// Its identity.
        id: MutationId,
        /// What the order needs to know.
        brief: Brief,
        /// What its marks come to.
        life: Life,
    },
    /// The mark that was to be committed for this mutation is durable, and the fence held afterwards.
    Committed {
        /// The mutation.
        id: MutationId,
    },
    /// What became of an attempt.
    Answered {
        /// The mutation.
        id: MutationId,
        /// What became of it.
        answer: Answer,
    },
    /// The owner of this epoch cannot send any more: its lock is free.
    Released {
        /// The epoch.
        epoch: Epoch,
    },
    /// Whether there is a network.
    Online(bool),
    /// There are other credentials: who waited for them is sent again.
    Authenticated,
    /// Nothing new is sent, or it is again; of one scope, or of all.
    Pause {
        /// Which scope.
        scope: Option<Arc<str>>,
        /// Whether it is held.
        paused: bool,
    },
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make the mark durable, look at the fence, and say [`Input::Committed`].
    Commit {
        /// The mutation.
        id: MutationId,
        /// The mark.
        mark: Mark,
    },
    /// Send the record, and say [`Input::Answered`].
    Send {
        /// The mutation.
        id: MutationId,
        /// The idempotency key to send it under.
        key: String,
        /// Without the condition on the version it was made from.
        unconditional: bool,
    },
    /// It ended. Those who wait for it hear it; [`Status::Parked`], [`Status::Failed`] and [`Status::Conflict`] may still change.
    Outcome {
        /// The mutation.
        id: MutationId,
        /// Where it stands.
        status: Status,
        /// Why, where it is not done.
        error: Option<String>,
        /// Whether it may have been applied all the same.
        uncertain: bool,
    },
    /// The server wants credentials that it did not get.
    NeedAuth {
        /// The mutation.
        id: MutationId,
    },
    /// How the outbox stands, when that changed.
    Sync(SyncStatus),
}

/// How an outbox stands (requirement S6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SyncStatus {
    /// What it does.
    pub state: SyncState,
    /// Mutations that have no outcome.
    pub pending: usize,
}

/// What an outbox does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncState {
    /// Nothing is on its way.
    #[default]
    Idle,
    /// Something is.
    Syncing,
    /// Nothing is, and something waits after a failure or for somebody.
    Error,
}

/// What a person, or the application, wants of a mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Send it again, with all its attempts.
    Retry,
    /// Give it up.
    Discard,
}

/// A wish that cannot be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// No such mutation waits here.
    #[error("the outbox holds no such mutation that can still change; `outbox list` shows those it holds")]
    Unknown,
    /// It has not failed.
    #[error("the mutation waits for its turn; only one that ended can be sent again")]
    NotEnded,
    /// A decision about it is being stored, or it is on its way.
    #[error("the mutation is being sent, and may be applied; wait for the answer")]
    Sending,
    /// A former owner may still send it.
    #[error(
        "the mutation may still be sent by a former primary that is not gone; wait until it is, or end its process"
    )]
    MayBeSent,
}

#[derive(Debug)]
struct Item {
    brief: Brief,
    place: Place,
    life: Life,
    /// Becomes durable.
    writing: Option<Mark>,
    /// An attempt of this owner is on its way.
    in_flight: bool,
    /// It was refused while a former owner could still send it, who may have had or may get another answer.
    held: bool,
    unauthorized: bool,
    due: Time,
}

impl Item {
    fn is_busy(&self) -> bool {
        self.in_flight || self.writing.is_some()
    }

    /// Whether the later ones of its scope wait for it.
    fn blocks(&self) -> bool {
        self.writing.is_some()
            || matches!(self.life.status, Status::Pending | Status::Sending | Status::Parked)
            || self.life.is_uncertain()
    }

    /// Whether an attempt may begin when it is due.
    fn may_be_offered(&self) -> bool {
        let waits = matches!(self.life.status, Status::Pending | Status::Sending);
        waits && !self.is_busy() && !self.held && !self.unauthorized
    }

    /// Whether it is neither to be sent nor to be asked about any more.
    fn is_over(&self) -> bool {
        matches!(self.life.status, Status::Done | Status::Rejected | Status::Discarded)
    }
}

/// The outbox of one epoch.
#[derive(Debug)]
pub struct Outbox {
    rules: Rules,
    epoch: Epoch,
    items: BTreeMap<MutationId, Item>,
    order: Order,
    /// Former owners whose lock is free.
    released: BTreeSet<Epoch>,
    online: bool,
    paused: bool,
    paused_scopes: BTreeSet<Arc<str>>,
    /// Attempts that are to begin or on their way.
    busy: usize,
    /// Marks that become durable.
    writing: usize,
    told: SyncStatus,
    /// Those whose last attempt failed, or that somebody has to decide about.
    troubled: BTreeSet<MutationId>,
}

impl Outbox {
    /// An empty outbox of the owner of `epoch`, online.
    pub fn new(rules: Rules, epoch: Epoch) -> Self {
        Self {
            rules,
            epoch,
            items: BTreeMap::new(),
            order: Order::default(),
            released: BTreeSet::new(),
            online: true,
            paused: false,
            paused_scopes: BTreeSet::new(),
            busy: 0,
            writing: 0,
            told: SyncStatus::default(),
            troubled: BTreeSet::new(),
        }
    }

    /// Takes a fact.
    pub fn handle(&mut self, now: Now, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Queued { id, brief, life } => self.queued(now, id, brief, life),
            Input::Committed { id } => self.committed(now, id, out),
            Input::Answered { id, answer } => self.answered(now, id, &answer, out),
            Input::Released { epoch } => self.release(epoch),
            Input::Online(online) => self.online = online,
            Input::Authenticated => {
                let waited: Vec<_> =
                    self.items.iter().filter(|(_, item)| item.unauthorized).map(|(id, _)| *id).collect();
                for id in waited {
                    self.items.entry(id).and_modify(|item| item.unauthorized = false);
                    self.place(id);
                }
            }
            Input::Pause { scope: None, paused } => self.paused = paused,
            Input::Pause { scope: Some(scope), paused: true } => drop(self.paused_scopes.insert(scope)),
            Input::Pause { scope: Some(scope), paused: false } => drop(self.paused_scopes.remove(&scope)),
            Input::Tick => {}
        }
        self.begin(now, out);
        self.tell(out);
    }

    /// Does what somebody wants of a mutation; its mark is committed like any other.
    ///
    /// # Errors
    /// Says why not; nothing changed.
    pub fn wish(
        &mut self,
        now: Now,
        id: MutationId,
        wish: Wish,
        out: &mut Vec<Effect>,
    ) -> Result<(), WishError> {
        let item = self.items.get(&id).filter(|item| !item.is_over()).ok_or(WishError::Unknown)?;
        if item.is_busy() {
            return Err(WishError::Sending);
        }
        if self.may_be_sent(&item.life) {
            return Err(WishError::MayBeSent);
        }
        let waits = matches!(item.life.status, Status::Pending | Status::Sending);
        let mark = match wish {
            Wish::Retry if waits => return Err(WishError::NotEnded),
            Wish::Retry => {
                Mark::Reopened { anew: !self.is_safe(now, item) || item.life.status == Status::Conflict }
            }
            // It is still tried, and the answer to that will tell.
            Wish::Discard if waits && item.life.is_uncertain() => return Err(WishError::Sending),
            Wish::Discard => {
                let error = item.life.is_uncertain().then(|| "it may have been applied".to_owned());
                Mark::Ended { status: Status::Discarded, error, settled: true, at: now.wall }
            }
        };
        self.write(id, mark, out);
        self.tell(out);
        Ok(())
    }

    /// When [`Input::Tick`] is wanted.
    pub fn deadline(&self) -> Option<Time> {
        if self.may_begin() { self.order.first_due() } else { None }
    }

    /// What the marks of a mutation come to, while it can change.
    pub fn life(&self, id: MutationId) -> Option<&Life> {
        self.items.get(&id).map(|item| &item.life)
    }

    /// Whether a mutation may be sent by an owner of before without this one's doing.
    pub fn may_still_be_sent(&self, id: MutationId) -> bool {
        self.items.get(&id).is_some_and(|item| self.may_be_sent(&item.life))
    }

    /// Mutations without an outcome.
    pub fn pending(&self) -> usize {
        self.order.len()
    }

    /// Whether something is under way that a successor could only park: an attempt at a server without keys.
    pub fn must_finish(&self) -> bool {
        let is_single = |item: &&Item| item.is_busy() && item.brief.delivery == Delivery::AtMostOnce;
        self.items.values().any(|item| is_single(&item))
    }

    /// Former owners that may still send something.
    pub fn former_owners(&self) -> BTreeSet<Epoch> {
        let all = self.items.values().flat_map(|item| &item.life.unanswered);
        all.copied().filter(|epoch| *epoch != self.epoch && !self.released.contains(epoch)).collect()
    }

    /// The key that all attempts of a generation carry: stable across retries, restarts and owners.
    pub fn key(id: MutationId, generation: u32) -> String {
        let MutationId { session, seq } = id;
        match generation {
            0 => format!("{:032x}-{seq}", session.0),
            _ => format!("{:032x}-{seq}.{generation}", session.0),
        }
    }

    fn may_be_sent(&self, life: &Life) -> bool {
        life.unanswered.iter().any(|epoch| *epoch != self.epoch && !self.released.contains(epoch))
    }

    /// Whether another attempt under the same key applies it no second time.
    fn is_safe(&self, now: Now, item: &Item) -> bool {
        if !item.life.is_uncertain() {
            return true;
        }
        let window = u64::try_from(self.rules.window.as_millis()).unwrap_or(u64::MAX);
        let age = item.life.first_sent.map_or(0, |at| now.wall.saturating_sub(at));
        item.brief.delivery == Delivery::Idempotent && age < window
    }

    fn queued(&mut self, now: Now, id: MutationId, brief: Brief, life: Life) {
        if self.items.contains_key(&id) {
            return;
        }
        let place = self.order.admit(&brief, self.rules.age_boost, now.wall);
        let left = life.due.saturating_sub(now.wall);
        let longest = u64::try_from(RETRY_AFTER_MAX.max(self.rules.cap).as_millis()).unwrap_or(u64::MAX);
        let due = now.time + Duration::from_millis(left.min(longest));
        let item = Item {
            brief,
            place,
            life,
            writing: None,
            in_flight: false,
            held: false,
            unauthorized: false,
            due,
        };
        self.items.insert(id, item);
        self.place(id);
    }

    /// Puts a mutation where its state belongs, and offers the head of its scope.
    fn place(&mut self, id: MutationId) {
        let Some(item) = self.items.get(&id) else { return };
        let place = item.place.clone();
        let troubled = item.life.error.is_some() && !item.is_over();
        if troubled {
            self.troubled.insert(id)
        } else {
            self.troubled.remove(&id)
        };
        if !item.is_busy() {
            self.order.stop(&place);
        }
        let blocks = item.blocks();
        if blocks {
            self.order.enter(&place, id);
        } else {
            self.order.leave(&place);
            if item.is_over() {
                self.items.remove(&id);
            }
        }
        let alone = place.scope.is_none();
        let head = if alone { blocks.then_some(id) } else { self.order.head(&place) };
        let Some((id, item)) = head.and_then(|id| Some((id, self.items.get(&id)?))) else { return };
        if item.may_be_offered() {
            self.order.offer(&item.place, id, item.due);
        } else {
            self.order.withdraw(&item.place);
        }
    }

    fn write(&mut self, id: MutationId, mark: Mark, out: &mut Vec<Effect>) {
        let Some(item) = self.items.get_mut(&id) else { return };
        self.order.start(&item.place);
        item.writing = Some(mark.clone());
        self.writing += 1;
        out.push(Effect::Commit { id, mark });
    }

    fn may_begin(&self) -> bool {
        self.online && !self.paused && self.busy < self.rules.parallel
    }

    /// Begins as many attempts as may be on their way.
    fn begin(&mut self, now: Now, out: &mut Vec<Effect>) {
        while self.may_begin() {
            let paused = &self.paused_scopes;
            let items = &self.items;
            let is_held = |id: MutationId| {
                let scope = items.get(&id).and_then(|item| item.brief.scope.as_ref());
                scope.is_some_and(|scope| paused.contains(scope))
            };
            let Some(id) = self.order.next(now.time, is_held) else { return };
            let Some(item) = self.items.get(&id) else { continue };
            if !self.is_safe(now, item) {
                if !self.may_be_sent(&item.life) {
                    let why =
                        "an attempt has no answer, and sending it again might apply it twice".to_owned();
                    self.end(now, id, Status::Parked, Some(why), out);
                }
                continue;
            }
            self.busy += 1;
            let mark = Mark::Sending { epoch: self.epoch, at: now.wall };
            self.write(id, mark, out);
        }
    }

    fn committed(&mut self, now: Now, id: MutationId, out: &mut Vec<Effect>) {
        let Some(item) = self.items.get_mut(&id) else { return };
        let Some(mark) = item.writing.take() else { return };
        self.writing -= 1;
        item.life.apply(&mark);
        match &mark {
            Mark::Sending { .. } => {
                item.in_flight = true;
                let generation = item.life.generation;
                let unconditional = generation > 0 && item.brief.on_conflict == OnConflict::ClientWins;
                out.push(Effect::Send { id, key: Self::key(id, generation), unconditional });
                return;
            }
            Mark::Again { due, .. } => {
                item.due = now.time + Duration::from_millis(due.saturating_sub(now.wall));
            }
            Mark::Ended { status, error, .. } => {
                let uncertain = item.life.is_uncertain() || error.is_some() && *status == Status::Discarded;
                out.push(Effect::Outcome { id, status: *status, error: error.clone(), uncertain });
            }
            Mark::Reopened { .. } => item.due = now.time,
        }
        self.place(id);
    }

    fn answered(&mut self, now: Now, id: MutationId, answer: &Answer, out: &mut Vec<Effect>) {
        let Some(item) = self.items.get_mut(&id).filter(|item| item.in_flight) else { return };
        item.in_flight = false;
        self.busy = self.busy.saturating_sub(1);
        let settled = answer.is_settled();
        let item = &self.items[&id];
        let may_be_sent = self.may_be_sent(&item.life);
        let again =
            |counted, wait, error| (Mark::Again { due: now.wall + wait, counted, settled, error }, counted);
        match answer.verdict(item.brief.delivery) {
            Verdict::Done => self.end(now, id, Status::Done, None, out),
            Verdict::Unknown { why } => self.end(now, id, Status::Parked, Some(why), out),
            Verdict::Unauthorized { why } => {
                self.items.entry(id).and_modify(|item| item.unauthorized = true);
                out.push(Effect::NeedAuth { id });
                self.write(id, again(false, 0, why).0, out);
            }
            Verdict::Again { counted, wait, why } => {
                // Without a network nothing can be sent, which is no failure of the mutation.
                let counted =
                    counted && (self.online || settled && !matches!(answer, Answer::NotSent { .. }));
                if counted && item.life.failures + 1 >= self.rules.attempts {
                    let mark =
                        Mark::Ended { status: Status::Failed, error: Some(why), settled, at: now.wall };
                    return self.write(id, mark, out);
                }
                let delay = self.rules.delay(item.life.delays + 1).max(wait.unwrap_or_default());
                let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                self.write(id, again(counted, delay, why).0, out);
            }
            Verdict::Rejected { why } | Verdict::Conflict { why, .. } if may_be_sent => {
                self.items.entry(id).and_modify(|item| item.held = true);
                self.write(id, again(false, 0, why).0, out);
            }
            Verdict::Rejected { why } => self.end(now, id, Status::Rejected, Some(why), out),
            Verdict::Conflict { why, theirs } => match item.brief.on_conflict {
                OnConflict::ClientWins => self.write(id, Mark::Reopened { anew: true }, out),
                policy => {
                    let status =
                        if policy == OnConflict::Manual { Status::Conflict } else { Status::Rejected };
                    let why = match theirs {
                        Some(theirs) => format!("{why} (the server has version {theirs})"),
                        None => why,
                    };
                    self.end(now, id, status, Some(why), out);
                }
            },
        }
    }

    fn end(
        &mut self,
        now: Now,
        id: MutationId,
        status: Status,
        error: Option<String>,
        out: &mut Vec<Effect>,
    ) {
        self.write(id, Mark::Ended { status, error, settled: false, at: now.wall }, out);
    }

    fn release(&mut self, epoch: Epoch) {
        if !self.released.insert(epoch) {
            return;
        }
        let concerned: Vec<_> = self
            .items
            .iter()
            .filter(|(_, item)| item.life.unanswered.contains(&epoch))
            .map(|(id, _)| *id)
            .collect();
        for id in concerned {
            let may_be_sent = self.items.get(&id).is_some_and(|item| self.may_be_sent(&item.life));
            if let Some(item) = self.items.get_mut(&id) {
                item.held &= may_be_sent;
            }
            self.place(id);
        }
    }

    fn tell(&mut self, out: &mut Vec<Effect>) {
        let pending = self.order.len();
        let state = if self.busy + self.writing > 0 {
            SyncState::Syncing
        } else if self.troubled.is_empty() {
            SyncState::Idle
        } else {
            SyncState::Error
        };
        let sync = SyncStatus { state, pending };
        if sync != self.told {
            self.told = sync;
            out.push(Effect::Sync(sync));
        }
    }
}
