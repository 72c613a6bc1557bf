//! Owners that are frozen and killed between any two steps, a network that loses and delays, and a server: nothing is
//! applied twice, out of order or behind the back of an outcome, and everything ends (requirements M1, M5, M6, M9).

use std::collections::{BTreeMap, BTreeSet};

use paceline_proto::{
    id::{Epoch, MutationId, SessionId},
    random::Random,
    time::Time,
};
use paceline_query::outbox::{
    Answer, Brief, Delivery, Effect, Input, Life, Mark, Now, OnConflict, Outbox, Rules, Status,
};

const START: u64 = 1_800_000_000_000;
const MUTATIONS: u64 = 12;

fn id(seq: u64) -> MutationId {
    MutationId { session: SessionId(1), seq }
}

fn delivery(seq: u64) -> Delivery {
    if seq % 4 == 3 { Delivery::AtMostOnce } else { Delivery::Idempotent }
}

fn brief(seq: u64) -> Brief {
    // Those without keys have a scope of their own: one that is parked holds it for good, as nobody decides here.
    let scope = match (seq % 5, delivery(seq)) {
        (0, _) => None,
        (n, Delivery::Idempotent) => Some(format!("{}", n % 2)),
        (_, Delivery::AtMostOnce) => Some("without keys".to_owned()),
    };
    Brief {
        scope: scope.map(Into::into),
        priority: (seq % 3) as i32,
        at: START,
        delivery: delivery(seq),
        on_conflict: if seq.is_multiple_of(2) { OnConflict::ClientWins } else { OnConflict::ServerWins },
    }
}

/// One step of an owner that was decided and not done yet.
#[derive(Debug, Clone)]
enum Todo {
    Store(u64, Mark),
    /// The mark is durable; the fence is looked at.
    Check(u64),
    /// The fence held: from here on nothing stops the bytes but the end of the process.
    Send(u64, String),
    Outcome(u64, Status),
}

struct Owner {
    epoch: Epoch,
    outbox: Outbox,
    todo: Vec<Todo>,
}

#[derive(Debug, Clone)]
struct Request {
    seq: u64,
    key: String,
    from: Epoch,
    /// Its sender took it for lost.
    given_up: bool,
}

/// A rule that an owner does not follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// It does not look at the fence after a commit.
    NoFence,
    /// It sends before the mark that says so is durable.
    SendsFirst,
    /// It takes every former owner for dead.
    AllAreDead,
    /// It takes every server for one that knows keys.
    AllKnowKeys,
    /// It forgets the marks of its predecessors.
    Forgets,
}

struct World {
    mutant: Option<Mutant>,
    /// The first promise that was broken.
    broken: Option<String>,
    random: Random,
    ms: u64,
    accepted: u64,
    /// What is durable, in order.
    marks: Vec<(u64, Mark)>,
    /// The last one leads; the others do not know yet that they were replaced.
    owners: Vec<Owner>,
    newest: Epoch,
    dead: BTreeSet<Epoch>,
    network: Vec<Request>,
    /// The server remembers what it said of a key, refusals too, and requests may come however late; or it remembers what it
    /// applied, and a request ends with its connection.
    remembers_refusals: bool,
    answers: BTreeMap<String, u16>,
    applied: Vec<u64>,
    told: BTreeMap<u64, Status>,
    counts: BTreeMap<&'static str, u64>,
}

impl World {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut random = Random::new(seed);
        let remembers_refusals = random.up_to(1) == 0;
        let mut world = Self {
            mutant,
            broken: None,
            random,
            ms: 0,
            accepted: 0,
            marks: Vec::new(),
            owners: Vec::new(),
            newest: Epoch(0),
            dead: BTreeSet::new(),
            network: Vec::new(),
            remembers_refusals,
            answers: BTreeMap::new(),
            applied: Vec::new(),
            told: BTreeMap::new(),
            counts: BTreeMap::new(),
        };
        world.take_over();
        world
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn demand(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(what());
        }
    }

    fn brief(&self, seq: u64) -> Brief {
        let delivery =
            if self.mutant == Some(Mutant::AllKnowKeys) { Delivery::Idempotent } else { delivery(seq) };
        Brief { delivery, ..brief(seq) }
    }

    fn now(&self) -> Now {
        Now { time: Time(self.ms * 1_000_000), wall: START + self.ms }
    }

    fn pick(&mut self, of: usize) -> Option<usize> {
        (of > 0).then(|| self.random.up_to(of as u64 - 1) as usize)
    }

    fn life(&self, seq: u64) -> Life {
        Life::of(self.marks.iter().filter(|(of, _)| *of == seq).map(|(_, mark)| mark))
    }

    fn tell(&mut self, owner: usize, input: Input) {
        let mut out = Vec::new();
        let now = self.now();
        self.owners[owner].outbox.handle(now, input, &mut out);
        let sends_first = self.mutant == Some(Mutant::SendsFirst);
        for effect in out {
            let todo = match effect {
                Effect::Commit { id, mark } => {
                    if sends_first && matches!(mark, Mark::Sending { .. }) {
                        let key = Outbox::key(id, self.life(id.seq).generation);
                        self.owners[owner].todo.push(Todo::Send(id.seq, key));
                    }
                    Todo::Store(id.seq, mark)
                }
                Effect::Send { .. } if sends_first => continue,
                Effect::Send { id, key, .. } => Todo::Send(id.seq, key),
                Effect::Outcome { id, status, .. } => Todo::Outcome(id.seq, status),
                Effect::NeedAuth { .. } | Effect::Sync(_) => continue,
            };
            self.owners[owner].todo.push(todo);
        }
    }

    fn take_over(&mut self) {
        self.newest = Epoch(self.newest.0 + 1);
        let epoch = self.newest;
        let rules = Rules { attempts: 1_000_000, parallel: 3, ..Rules::default() };
        self.owners.push(Owner { epoch, outbox: Outbox::new(rules, epoch), todo: Vec::new() });
        let new = self.owners.len() - 1;
        let all = (1..epoch.0).map(Epoch).collect();
        let dead = if self.mutant == Some(Mutant::AllAreDead) { all } else { self.dead.clone() };
        for epoch in dead {
            self.tell(new, Input::Released { epoch });
        }
        for seq in 1..=self.accepted {
            let life = if self.mutant == Some(Mutant::Forgets) { Life::default() } else { self.life(seq) };
            self.tell(new, Input::Queued { id: id(seq), brief: self.brief(seq), life });
        }
        self.count("takeovers");
    }

    fn accept(&mut self) {
        if self.accepted < MUTATIONS {
            self.accepted += 1;
            let seq = self.accepted;
            let new = self.owners.len() - 1;
            self.tell(new, Input::Queued { id: id(seq), brief: self.brief(seq), life: Life::default() });
        }
    }

    /// An owner does the next thing it decided.
    fn work(&mut self, owner: usize) {
        if self.owners[owner].todo.is_empty() {
            return;
        }
        let epoch = self.owners[owner].epoch;
        let leads = epoch == self.newest;
        match self.owners[owner].todo.remove(0) {
            Todo::Store(seq, mark) => {
                if leads {
                    self.marks.push((seq, mark));
                } else {
                    // Its database takes it, but beyond what its successor reads.
                    self.count("stored_too_late");
                }
                self.owners[owner].todo.insert(0, Todo::Check(seq));
            }
            Todo::Check(_) if !leads && self.mutant != Some(Mutant::NoFence) => {
                self.count("fenced_after_commit");
                // Nothing that was not on its way to the wire leaves any more.
                self.owners[owner].todo.retain(|todo| matches!(todo, Todo::Send(..) | Todo::Outcome(..)));
            }
            Todo::Check(seq) => self.tell(owner, Input::Committed { id: id(seq) }),
            Todo::Send(seq, key) => {
                if !leads {
                    self.count("sent_by_a_former_owner");
                }
                self.network.push(Request { seq, key, from: epoch, given_up: false });
            }
            Todo::Outcome(seq, status) => self.outcome(seq, status),
        }
    }

    fn outcome(&mut self, seq: u64, status: Status) {
        let before = self.told.insert(seq, status);
        let same = before.is_none_or(|before| before == status);
        self.demand(same, || format!("{seq} was {before:?} and is {status:?}"));
        let applied = self.applied.contains(&seq);
        self.demand(status != Status::Done || applied, || format!("{seq} is said to be done"));
    }

    fn kill(&mut self, owner: usize) {
        let gone = self.owners.remove(owner);
        self.count("kills");
        self.dead.insert(gone.epoch);
        if !self.remembers_refusals {
            self.network.retain(|request| request.from != gone.epoch);
        }
        if gone.epoch == self.newest {
            self.take_over();
        } else {
            let new = self.owners.len() - 1;
            self.tell(new, Input::Released { epoch: gone.epoch });
        }
    }

    /// What the server makes of a request.
    fn serve(&mut self, request: &Request) -> u16 {
        let keyed = delivery(request.seq) == Delivery::Idempotent;
        if let Some(status) = self.answers.get(&request.key).copied().filter(|_| keyed) {
            if status == 200 {
                self.count("seen_again");
            }
            return status;
        }
        let roll = self.random.up_to(9);
        let status = match roll {
            0 => 503,
            1 => 429,
            2 if keyed => 422,
            3 if keyed => 409,
            _ => 200,
        };
        if status == 200 {
            self.apply(request.seq);
            self.answers.insert(request.key.clone(), 200);
            // It failed after it had done its work, or in front of it somebody lost patience.
            return if roll == 4 { 500 } else { 200 };
        }
        if self.remembers_refusals && matches!(status, 409 | 422) {
            self.answers.insert(request.key.clone(), status);
        }
        status
    }

    fn apply(&mut self, seq: u64) {
        let again = self.applied.contains(&seq);
        self.demand(!again, || format!("{seq} is applied twice"));
        let told = self.told.get(&seq).copied().filter(|told| *told != Status::Parked);
        self.demand(told.is_none(), || format!("{seq} is applied behind the back of its outcome, {told:?}"));
        if let Some(scope) = brief(seq).scope {
            let is_later = |other: &&u64| **other > seq && brief(**other).scope.as_ref() == Some(&scope);
            let later = self.applied.iter().find(is_later).copied();
            self.demand(later.is_none(), || format!("{later:?} of the same scope was applied before {seq}"));
        }
        self.applied.push(seq);
    }

    fn answer(&mut self, request: &Request, answer: Answer) {
        let owner = self.owners.iter().position(|owner| owner.epoch == request.from);
        if let Some(owner) = owner.filter(|_| !request.given_up) {
            self.tell(owner, Input::Answered { id: id(request.seq), answer });
        }
    }

    fn deliver(&mut self, at: usize) {
        let request = self.network.remove(at);
        let status = self.serve(&request);
        if self.random.up_to(5) == 0 {
            self.count("answers_lost");
            return self.answer(&request, Answer::Lost { why: "no answer".into() });
        }
        let answer = Answer::Response { status, retry_after: None, version: None, text: String::new() };
        self.answer(&request, answer);
    }

    fn step(&mut self) {
        match self.random.up_to(19) {
            0 | 1 => self.accept(),
            2..=9 => {
                if let Some(owner) = self.pick(self.owners.len()) {
                    self.work(owner);
                }
            }
            10..=13 => {
                if let Some(at) = self.pick(self.network.len()) {
                    self.deliver(at);
                }
            }
            14 if self.remembers_refusals => {
                if let Some(at) = self.pick(self.network.len()).filter(|at| !self.network[*at].given_up) {
                    self.network[at].given_up = true;
                    let request = Request { given_up: false, ..self.network[at].clone() };
                    self.count("delayed");
                    self.answer(&request, Answer::Lost { why: "no answer in time".into() });
                }
            }
            15 => {
                if let Some(at) = self.pick(self.network.len()) {
                    let request = self.network.remove(at);
                    self.count("requests_lost");
                    self.answer(&request, Answer::Lost { why: "the connection broke".into() });
                }
            }
            // The leader is frozen where it stands.
            16 if self.random.up_to(3) == 0 => self.take_over(),
            17 if self.random.up_to(3) == 0 => {
                if let Some(owner) = self.pick(self.owners.len()) {
                    self.kill(owner);
                }
            }
            _ => {
                self.ms += self.random.up_to(3000);
                let new = self.owners.len() - 1;
                self.tell(new, Input::Tick);
            }
        }
    }

    /// The former owners end, and the last one goes on undisturbed.
    fn settle(&mut self) {
        while self.accepted < MUTATIONS {
            self.accept();
        }
        while self.owners.len() > 1 {
            self.kill(0);
        }
        for _ in 0..100_000 {
            if !self.owners[0].todo.is_empty() {
                self.work(0);
            } else if let Some(at) = self.pick(self.network.len()) {
                self.deliver(at);
            } else if let Some(due) = self.owners[0].outbox.deadline() {
                self.ms = self.ms.max(due.0.div_ceil(1_000_000));
                self.tell(0, Input::Tick);
            } else {
                break;
            }
        }
    }

    fn check(&mut self) {
        for seq in 1..=MUTATIONS {
            let status = self.life(seq).status;
            let (applied, keyed) = (self.applied.contains(&seq), delivery(seq) == Delivery::Idempotent);
            let right = match status {
                Status::Done => applied,
                Status::Rejected => !applied,
                // Nobody decides here: one that is parked holds its scope for good.
                Status::Parked | Status::Pending => !keyed,
                _ => false,
            };
            self.demand(right, || format!("{seq} ended as {status:?}, applied: {applied}"));
            if status == Status::Parked {
                self.count("parked");
            }
        }
    }
}

/// The first promise that was broken, and what happened.
fn run(seed: u64, mutant: Option<Mutant>) -> (Option<String>, BTreeMap<&'static str, u64>) {
    let mut world = World::new(seed, mutant);
    for _ in 0..400 {
        world.step();
    }
    world.settle();
    world.check();
    (world.broken, world.counts)
}

#[expect(clippy::disallowed_methods, reason = "which seeds run is the caller's choice")]
fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn whatever_is_killed_frozen_lost_or_late_all_is_applied_once_in_order() {
    let (from, seeds) = (from_environment("PACELINE_SEED_FROM", 0), from_environment("PACELINE_SEEDS", 3000));
    let mut counts = BTreeMap::new();
    for seed in from..from + seeds {
        let (broken, counted) = run(seed, None);
        assert_eq!(broken, None, "PACELINE_SEED_FROM={seed} PACELINE_SEEDS=1");
        for (what, n) in counted {
            *counts.entry(what).or_insert(0) += n;
        }
    }
    for what in [
        "takeovers",
        "kills",
        "stored_too_late",
        "fenced_after_commit",
        "sent_by_a_former_owner",
        "seen_again",
        "answers_lost",
        "requests_lost",
        "delayed",
        "parked",
    ] {
        assert!(counts.get(what).is_some_and(|n| *n > 0), "{what} never happened: {counts:?}");
    }
}

#[test]
fn an_owner_that_leaves_out_a_rule_is_found_out() {
    for mutant in
        [Mutant::NoFence, Mutant::SendsFirst, Mutant::AllAreDead, Mutant::AllKnowKeys, Mutant::Forgets]
    {
        let found = (0..3000).any(|seed| run(seed, Some(mutant)).0.is_some());
        assert!(found, "nobody notices {mutant:?}");
    }
}
