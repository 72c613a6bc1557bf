//! What the outbox of a reign sends: the machine that decides, what it waits for, and what it read of the store.
//!
//! **Invariant:** the machine hears of a mutation in the order of its acceptance. So while the store is being read, new ones
//! are left to the reading, which ends behind them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use paceline_ipc::clock;
use paceline_proto::{
    id::{Epoch, LinkId, MutationId},
    message::{Answer, OutboxAsk, OutcomeKind},
    time::Time,
};
use paceline_query::outbox::{Brief, Effect, Input, Life, Mark, Now, Outbox, Record, Rules, Status, Wish};
use paceline_store::{Mark as Stored, Origin, QueueDb, Row, RowState, StoreError};
use paceline_upstream::send::{Outgoing, Sender};

/// Rows read in one step: submits wait for no longer than that.
const PAGE: usize = 512;

/// What a session sends when it leads.
#[derive(Debug, Clone)]
pub struct Sends {
    /// The rules.
    pub rules: Rules,
    /// Sends them.
    pub sender: Arc<dyn Sender>,
}

/// A row, without what is only wanted when it is sent.
pub(crate) enum Read {
    /// A mutation; `None` = its record cannot be read: it stays, and is never sent.
    Queued(MutationId, Option<Brief>),
    Mark(MutationId, Option<Mark>),
}

/// A step of reading.
pub(crate) struct Page {
    rows: Vec<Read>,
    after: Option<Origin>,
    last: bool,
}

/// Reads the next rows.
pub(crate) fn read(database: &mut QueueDb, after: Option<Origin>) -> Result<Page, StoreError> {
    let rows = database.rows(after, PAGE)?;
    let last = rows.len() < PAGE;
    Ok(Page {
        after: rows.last().map(|row| row.origin).or(after),
        rows: rows.iter().map(read_row).collect(),
        last,
    })
}

fn read_row(row: &Row) -> Read {
    match row.state {
        RowState::Queued => Read::Queued(row.id, brief(&row.payload)),
        _ => Read::Mark(row.id, serde_json::from_slice(&row.payload).ok()),
    }
}

/// What the order needs to know of a stored mutation; `None` where it is no record.
pub(crate) fn brief(payload: &[u8]) -> Option<Brief> {
    Record::from_payload(payload).ok().map(|record| record.brief())
}

/// A mark as it is stored: the state for people, all of it for whoever goes on.
pub(crate) fn stored(id: MutationId, mark: &Mark) -> Stored {
    let state = match mark {
        Mark::Sending { .. } => RowState::Sending,
        Mark::Again { .. } => RowState::Again,
        Mark::Reopened { .. } => RowState::Reopened,
        Mark::Ended { status, .. } => match status {
            Status::Done => RowState::Done,
            Status::Rejected => RowState::Rejected,
            Status::Failed => RowState::Failed,
            Status::Conflict => RowState::Conflict,
            Status::Discarded => RowState::Discarded,
            Status::Parked | Status::Pending | Status::Sending => RowState::Parked,
        },
    };
    Stored { id, state, details: serde_json::to_vec(mark).unwrap_or_default().into() }
}

/// How a mutation stands by its rows alone.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    /// There is none of this id, or it cannot be read.
    Nothing,
    Life(Life),
}

/// Looks one mutation up.
pub(crate) fn look_up(database: &mut QueueDb, id: MutationId) -> Result<Found, StoreError> {
    let rows = database.of(id)?;
    if rows.is_empty() {
        return Ok(Found::Nothing);
    }
    let marks = rows.iter().filter(|row| row.state != RowState::Queued);
    let marks: Option<Vec<Mark>> = marks.map(|row| serde_json::from_slice(&row.payload).ok()).collect();
    Ok(marks.map_or(Found::Nothing, |marks| Found::Life(Life::of(&marks))))
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Work {
    /// To be stored.
    pub(crate) marks: Vec<(MutationId, Mark)>,
    /// To be sent.
    pub(crate) sends: Vec<(MutationId, Outgoing)>,
    /// To be told.
    pub(crate) answers: Vec<(LinkId, u64, Answer)>,
    /// To be looked up in the store.
    pub(crate) lookups: Vec<MutationId>,
}

pub(crate) struct Drain {
    machine: Outbox,
    reading: Option<Reading>,
    /// Rows that are no mutations of this build: they stay.
    unread: BTreeSet<MutationId>,
    /// Of those that are about to be sent.
    payloads: BTreeMap<MutationId, Bytes>,
    asked: BTreeMap<MutationId, Vec<(LinkId, u64)>>,
    /// Whose wish becomes durable.
    wished: BTreeMap<MutationId, (LinkId, u64)>,
    effects: Vec<Effect>,
    pub(crate) work: Work,
}

#[derive(Default)]
struct Reading {
    after: Option<Origin>,
    found: BTreeMap<MutationId, (Brief, Life)>,
    order: Vec<MutationId>,
}

impl Drain {
    pub(crate) fn new(rules: Rules, epoch: Epoch) -> Self {
        Self {
            machine: Outbox::new(rules, epoch),
            reading: Some(Reading::default()),
            unread: BTreeSet::new(),
            payloads: BTreeMap::new(),
            asked: BTreeMap::new(),
            wished: BTreeMap::new(),
            effects: Vec::new(),
            work: Work::default(),
        }
    }

    /// Where reading goes on, until all is read.
    pub(crate) fn reads_after(&self) -> Option<Option<Origin>> {
        self.reading.as_ref().map(|reading| reading.after)
    }

    /// Takes a page; true with the last one.
    pub(crate) fn take(&mut self, now: Time, page: Page) -> bool {
        let Some(reading) = &mut self.reading else { return false };
        reading.after = page.after;
        for row in page.rows {
            match row {
                Read::Queued(id, Some(brief)) => {
                    reading.found.insert(id, (brief, Life::default()));
                    reading.order.push(id);
                }
                Read::Queued(id, None) => drop(self.unread.insert(id)),
                Read::Mark(id, Some(mark)) => {
                    if let Some((_, life)) = reading.found.get_mut(&id) {
                        life.apply(&mark);
                        if matches!(life.status, Status::Done | Status::Rejected | Status::Discarded) {
                            reading.found.remove(&id);
                        }
                    }
                }
                // Another build's: what it says of the mutation is not known here.
                Read::Mark(id, None) => {
                    reading.found.remove(&id);
                    self.unread.insert(id);
                }
            }
        }
        if !page.last {
            return false;
        }
        let Some(mut reading) = self.reading.take() else { return false };
        for id in reading.order {
            if let Some((brief, life)) = reading.found.remove(&id) {
                self.handle(now, Input::Queued { id, brief, life });
            }
        }
        let asked: Vec<_> = self.asked.keys().copied().collect();
        asked.into_iter().for_each(|id| self.answer(id));
        true
    }

    /// A new mutation is stored.
    pub(crate) fn accepted(&mut self, now: Time, id: MutationId, brief: Option<Brief>) {
        if self.reading.is_some() {
            return;
        }
        match brief {
            Some(brief) => self.handle(now, Input::Queued { id, brief, life: Life::default() }),
            None => drop(self.unread.insert(id)),
        }
    }

    /// A mark is durable, and the fence held. `payload` = what is to be sent behind it.
    pub(crate) fn marked(&mut self, now: Time, id: MutationId, payload: Option<Bytes>) {
        self.payloads.extend(payload.map(|payload| (id, payload)));
        if let Some((link, asked)) = self.wished.remove(&id) {
            self.work.answers.push((link, asked, Answer::Done));
        }
        self.handle(now, Input::Committed { id });
    }

    pub(crate) fn handle(&mut self, now: Time, input: Input) {
        let mut effects = std::mem::take(&mut self.effects);
        self.machine.handle(moment(now), input, &mut effects);
        self.follow(&mut effects);
        self.effects = effects;
    }

    /// A question or a wish of a session.
    pub(crate) fn ask(&mut self, now: Time, link: LinkId, asked: u64, ask: &OutboxAsk) {
        let answer = match ask {
            OutboxAsk::Outcome(id) => {
                let waiting = self.asked.entry(*id).or_default();
                waiting.retain(|other| *other != (link, asked));
                waiting.push((link, asked));
                if self.reading.is_none() {
                    self.answer(*id);
                }
                return;
            }
            OutboxAsk::Retry(id) => return self.wish(now, *id, Wish::Retry, (link, asked)),
            OutboxAsk::Discard(id) => return self.wish(now, *id, Wish::Discard, (link, asked)),
            OutboxAsk::Authenticated => {
                self.handle(now, Input::Authenticated);
                Answer::Done
            }
        };
        self.work.answers.push((link, asked, answer));
    }

    /// Says what came of a mutation that the machine does not know.
    pub(crate) fn found(&mut self, id: MutationId, found: &Found) {
        if self.machine.life(id).is_some() {
            return self.answer(id);
        }
        let answer = match found {
            Found::Life(life) => outcome(life),
            Found::Nothing => None,
        };
        let answer = answer.unwrap_or_else(|| {
            Answer::Refused(
                "the outbox holds no such mutation; it was never accepted, or it was cleaned up".into(),
            )
        });
        self.tell(id, &answer);
    }

    /// Mutations without an outcome, those that cannot be read among them.
    pub(crate) fn is_empty(&self) -> bool {
        self.reading.is_none() && self.machine.pending() == 0 && self.unread.is_empty()
    }

    /// Whether a handover would park what is under way.
    pub(crate) fn must_finish(&self) -> bool {
        self.machine.must_finish()
    }

    pub(crate) fn former_owners(&self) -> BTreeSet<Epoch> {
        self.machine.former_owners()
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.machine.deadline()
    }

    fn wish(&mut self, now: Time, id: MutationId, wish: Wish, asker: (LinkId, u64)) {
        let mut effects = Vec::new();
        let refused = match &self.reading {
            Some(_) => Some("the outbox is still being read; ask again".to_owned()),
            None => {
                let done = self.machine.wish(moment(now), id, wish, &mut effects);
                done.err().map(|error| error.to_string())
            }
        };
        match refused {
            Some(why) => self.work.answers.push((asker.0, asker.1, Answer::Refused(why))),
            None => drop(self.wished.insert(id, asker)),
        }
        self.follow(&mut effects);
    }

    fn follow(&mut self, effects: &mut Vec<Effect>) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Commit { id, mark } => self.work.marks.push((id, mark)),
                Effect::Send { id, key, unconditional } => {
                    // It was read when it was queued.
                    let record =
                        self.payloads.remove(&id).and_then(|bytes| Record::from_payload(&bytes).ok());
                    if let Some(record) = record {
                        self.work.sends.push((id, Outgoing { record, key, unconditional }));
                    }
                }
                Effect::Outcome { id, status, error, uncertain } => {
                    if let Some(answer) = answer_of(status, error, uncertain) {
                        self.tell(id, &answer);
                    }
                }
                Effect::NeedAuth { .. } | Effect::Sync(_) => {}
            }
        }
    }

    /// Answers those who ask for a mutation, now if it has an outcome.
    fn answer(&mut self, id: MutationId) {
        match self.machine.life(id) {
            Some(life) => {
                if let Some(answer) = outcome(life) {
                    self.tell(id, &answer);
                }
            }
            None if self.asked.contains_key(&id) => self.work.lookups.push(id),
            None => {}
        }
    }

    fn tell(&mut self, id: MutationId, answer: &Answer) {
        for (link, asked) in self.asked.remove(&id).unwrap_or_default() {
            self.work.answers.push((link, asked, answer.clone()));
        }
    }
}

fn outcome(life: &Life) -> Option<Answer> {
    answer_of(life.status, life.error.clone(), life.is_uncertain())
}

fn answer_of(status: Status, error: Option<String>, uncertain: bool) -> Option<Answer> {
    let kind = match status {
        Status::Pending | Status::Sending => return None,
        Status::Done => OutcomeKind::Done,
        Status::Rejected => OutcomeKind::Rejected,
        Status::Failed => OutcomeKind::Failed,
        Status::Conflict => OutcomeKind::Conflict,
        Status::Parked => OutcomeKind::Parked,
        Status::Discarded => OutcomeKind::Discarded,
    };
    Some(Answer::Outcome { kind, error, uncertain })
}

fn moment(time: Time) -> Now {
    let wall = clock::wall_of(time).duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Now { time, wall: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
}
