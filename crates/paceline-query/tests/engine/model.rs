//! The engine against a naive model: no timers, no index, no derived state. Every millisecond it looks through everything and
//! asks what is due. Any sequence of subscriptions, writes, pushes, invalidations, questions, answers, failures, time,
//! visibility and network must look the same in both after each step.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use paceline_proto::{
    fetch::{FailureKind, FetchStatus, Want},
    id::SessionId,
    presence::Presence,
};
use paceline_query::{
    engine::{AskId, RefetchType},
    rules::{Defaults, Refresh, Resource, Retry},
};
use proptest::prelude::*;

use crate::world::*;

const KEYS: [&str; 4] = ["k/0", "k/1", "k/2", "k/3"];
const LOOKERS: [SessionId; 2] = [B, SessionId(4)];

const STALE: u64 = 300;
const GC: u64 = 700;
const RETRY: u64 = 100;
const CHECK: u64 = 400;
const CHECK_AFTER_FAILURE: u64 = 500;
const DEBOUNCE: u64 = 50;
const WINDOW: u64 = 10;
const GRACE: u64 = 60;

#[derive(Debug, Clone)]
enum Step {
    Observe(usize, usize),
    Unobserve(usize, usize),
    Set(usize),
    Push(usize),
    Invalidate(usize),
    InvalidateAll,
    Ask(usize),
    Refetch(usize),
    Succeed(usize),
    Fail(usize),
    Show(usize, bool),
    Online(bool),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (looker, key) = (0..LOOKERS.len(), 0..KEYS.len());
    prop_oneof![
        3 => (looker.clone(), key.clone()).prop_map(|(looker, key)| Step::Observe(looker, key)),
        2 => (looker.clone(), key.clone()).prop_map(|(looker, key)| Step::Unobserve(looker, key)),
        1 => key.clone().prop_map(Step::Set),
        1 => key.clone().prop_map(Step::Push),
        2 => key.clone().prop_map(Step::Invalidate),
        1 => Just(Step::InvalidateAll),
        2 => key.clone().prop_map(Step::Ask),
        2 => key.clone().prop_map(Step::Refetch),
        4 => key.clone().prop_map(Step::Succeed),
        2 => key.prop_map(Step::Fail),
        1 => (looker, any::<bool>()).prop_map(|(looker, visible)| Step::Show(looker, visible)),
        1 => any::<bool>().prop_map(Step::Online),
        6 => (1_u64..20).prop_map(Step::Pass),
        4 => (20_u64..900).prop_map(Step::Pass),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Running { written: bool, invalidated: bool },
    Retry(u64),
    Offline,
    Hidden,
}

#[derive(Debug, Clone)]
struct Flight {
    phase: Phase,
    askers: Vec<AskId>,
    next: Vec<AskId>,
    again: bool,
    had_value: bool,
    renewed: bool,
    failures: u32,
}

#[derive(Debug, Clone, Default)]
struct Entry {
    value: Option<(String, u64)>,
    /// A mark, and since when somebody knows of it.
    marked: Option<u64>,
    unnoticed: bool,
    observers: BTreeSet<usize>,
    keep_until: u64,
    flight: Option<Flight>,
    failed_refreshes: u32,
    last_attempt: Option<u64>,
    invalidation_fetched: Option<u64>,
}

#[derive(Debug, Default)]
struct Model {
    now: u64,
    entries: BTreeMap<usize, Entry>,
    answers: BTreeMap<AskId, Result<(String, bool), ()>>,
    online: bool,
    visible: [bool; 2],
    active: bool,
    grace: Option<u64>,
    focus: BTreeSet<usize>,
    reconnect: bool,
    triggers_at: Option<u64>,
    gathered: BTreeSet<usize>,
    gathered_since: u64,
    gathered_until: Option<u64>,
    requests: u32,
}

impl Model {
    fn new() -> Self {
        Self { online: true, visible: [true; 2], active: true, ..Self::default() }
    }

    fn entry(&mut self, key: usize) -> &mut Entry {
        self.notice(key);
        self.entries.entry(key).or_default()
    }

    fn notice(&mut self, key: usize) {
        let now = self.now;
        if let Some(entry) = self.entries.get_mut(&key)
            && std::mem::take(&mut entry.unnoticed)
        {
            entry.marked = entry.marked.or(entry.value.as_ref().map(|_| now));
            if let Some(Flight { phase: Phase::Running { invalidated, .. }, .. }) = &mut entry.flight {
                *invalidated = true;
            }
        }
    }

    fn is_stale(&self, key: usize) -> bool {
        let entry = &self.entries[&key];
        let Some((_, at)) = &entry.value else { return true };
        entry.marked.is_some() || entry.unnoticed || self.now - at >= STALE
    }

    fn is_background(&self, key: usize) -> bool {
        let Some(entry) = self.entries.get(&key) else { return false };
        entry.flight.as_ref().is_some_and(|flight| {
            flight.askers.is_empty()
                && flight.next.is_empty()
                && (flight.had_value || entry.observers.is_empty())
        })
    }

    /// Somebody wants the key.
    fn want(&mut self, key: usize, asker: Option<AskId>, renew: bool) {
        let entry = self.entry(key);
        let holds = entry.value.is_some();
        let Some(flight) = &mut entry.flight else {
            entry.flight = Some(Flight {
                phase: Phase::Offline,
                askers: asker.into_iter().collect(),
                next: Vec::new(),
                again: false,
                had_value: holds,
                renewed: false,
                failures: 0,
            });
            return self.attempt(key);
        };
        let renew = renew && holds;
        match flight.phase {
            Phase::Running { .. } if renew && flight.renewed => {
                flight.again |= asker.is_none();
                flight.next.extend(asker);
            }
            Phase::Running { .. } => {
                flight.askers.extend(asker);
                if renew {
                    flight.renewed = true;
                    self.attempt(key);
                }
            }
            Phase::Retry(_) => {
                flight.askers.extend(asker);
                if renew {
                    self.attempt(key);
                }
            }
            Phase::Offline | Phase::Hidden => {
                flight.askers.extend(asker);
                self.attempt(key);
            }
        }
    }

    fn attempt(&mut self, key: usize) {
        self.notice(key);
        let (now, online) = (self.now, self.online);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let Some(flight) = &mut entry.flight else { return };
        if !online {
            flight.phase = Phase::Offline;
            return;
        }
        flight.phase = Phase::Running { written: false, invalidated: false };
        entry.last_attempt = Some(now);
        self.requests += 1;
    }

    fn finish(&mut self, key: usize, ok: bool) {
        let now = self.now;
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let Some(flight) = entry.flight.take() else { return };
        entry.keep_until = entry.keep_until.max(now + GC);
        entry.failed_refreshes = if ok { 0 } else { entry.failed_refreshes + 1 };
        let answer = match &entry.value {
            Some((text, _)) if ok => Ok((text.clone(), entry.marked.is_some())),
            Some(_) | None => Err(()),
        };
        for asker in flight.askers {
            self.answers.insert(asker, answer.clone());
        }
        if flight.again && !self.entries[&key].observers.is_empty() {
            self.want(key, None, false);
        }
        for asker in flight.next {
            self.want(key, Some(asker), false);
        }
    }

    fn changed(&mut self, key: usize, text: &str) {
        let now = self.now;
        let entry = self.entry(key);
        entry.value = Some((text.to_owned(), now));
        entry.marked = None;
        entry.failed_refreshes = 0;
        entry.keep_until = entry.keep_until.max(now + GC);
        if let Some(Flight { phase: Phase::Running { written, .. }, .. }) = &mut entry.flight {
            *written = true;
        }
    }

    fn invalidate(&mut self, keys: impl IntoIterator<Item = usize>, exact: bool) {
        for key in keys {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.unnoticed = true;
            let active = !entry.observers.is_empty();
            if active || exact {
                self.notice(key);
            }
            if active {
                self.refetch(key);
            }
        }
    }

    fn refetch(&mut self, key: usize) {
        let (now, active) = (self.now, self.active);
        let entry = self.entry(key);
        let quiet = entry.invalidation_fetched.is_none_or(|at| now - at >= WINDOW);
        if active && quiet && !self.gathered.contains(&key) {
            self.entry(key).invalidation_fetched = Some(now);
            return self.want(key, None, true);
        }
        if self.gathered.is_empty() {
            self.gathered_since = now;
        }
        self.gathered.insert(key);
        self.gathered_until = Some((now + WINDOW).min(self.gathered_since + 10 * WINDOW));
    }

    fn succeed(&mut self, key: usize, text: &str) {
        self.notice(key);
        let now = self.now;
        let gathered = self.gathered.contains(&key);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let Some(flight) = &mut entry.flight else { return };
        let Phase::Running { written, invalidated } = flight.phase else { return };
        let asked = !flight.askers.is_empty() || !flight.next.is_empty();
        let once_more = !flight.renewed && (written || (invalidated && (asked || !gathered)));
        if once_more {
            flight.renewed = true;
            return self.attempt(key);
        }
        if !written {
            entry.value = Some((text.to_owned(), now));
            entry.keep_until = entry.keep_until.max(now + GC);
            if invalidated {
                entry.marked.get_or_insert(now);
            } else {
                entry.marked = None;
            }
        }
        self.finish(key, true);
    }

    fn fail(&mut self, key: usize) {
        self.notice(key);
        let (now, online, active) = (self.now, self.online, self.active);
        let background = self.is_background(key);
        let Some(flight) = self.entries.get_mut(&key).and_then(|entry| entry.flight.as_mut()) else { return };
        if !matches!(flight.phase, Phase::Running { .. }) {
            return;
        }
        let asked = !flight.askers.is_empty() || !flight.next.is_empty();
        if !online && !background {
            flight.phase = Phase::Offline;
            return;
        }
        flight.failures += 1;
        if background || flight.failures > 1 {
            return self.finish(key, false);
        }
        flight.phase = if !asked && !active { Phase::Hidden } else { Phase::Retry(now + RETRY) };
    }

    fn leave(&mut self, key: usize) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let wanted = !entry.observers.is_empty()
            || entry.flight.as_ref().is_some_and(|flight| {
                !flight.askers.is_empty()
                    || !flight.next.is_empty()
                    || matches!(flight.phase, Phase::Running { .. })
            });
        if !wanted {
            entry.flight = None;
        }
    }

    fn wake(&mut self) {
        self.triggers_at = self.triggers_at.or(Some(self.now + DEBOUNCE));
    }

    fn set_active(&mut self, active: bool) {
        self.active = active;
        if active {
            self.resume(Phase::Hidden);
        }
    }

    fn resume(&mut self, from: Phase) {
        for key in 0..KEYS.len() {
            let paused = |entry: &Entry| entry.flight.as_ref().is_some_and(|flight| flight.phase == from);
            if !self.entries.get(&key).is_some_and(paused) {
                continue;
            }
            let in_turn = self.is_background(key) && !self.entries[&key].observers.is_empty();
            if from == Phase::Offline && in_turn {
                self.entries.entry(key).or_default().flight = None;
                self.want_if_worth(key);
            } else {
                self.attempt(key);
            }
        }
    }

    /// A turn of the service, which has room for all.
    fn want_if_worth(&mut self, key: usize) {
        let entry = &self.entries[&key];
        let idle = entry.flight.is_none() && !entry.observers.is_empty();
        if idle && self.active && self.online && self.is_stale(key) {
            self.want(key, None, false);
        }
    }

    fn do_step(&mut self, step: &Step, ask: Option<AskId>, text: &str) {
        match *step {
            Step::Observe(looker, key) => {
                let known = !self.entry(key).observers.insert(looker);
                if !known && self.is_stale(key) {
                    self.want(key, None, false);
                }
            }
            Step::Unobserve(looker, key) => {
                let now = self.now;
                if let Some(entry) = self.entries.get_mut(&key)
                    && entry.observers.remove(&looker)
                {
                    entry.keep_until = entry.keep_until.max(now + GC);
                    self.leave(key);
                }
            }
            Step::Set(key) | Step::Push(key) => self.changed(key, text),
            Step::Invalidate(key) => self.invalidate([key], true),
            Step::InvalidateAll => self.invalidate(0..KEYS.len(), false),
            Step::Ask(key) | Step::Refetch(key) => {
                let (now, ask) = (self.now, ask.expect("a number"));
                let entry = self.entry(key);
                entry.keep_until = entry.keep_until.max(now + GC);
                let new = matches!(step, Step::Refetch(_));
                if new {
                    entry.failed_refreshes = 0;
                }
                let held = entry.value.clone();
                match held {
                    Some((text, _)) if !new && !self.is_stale(key) => {
                        self.answers.insert(ask, Ok((text, false)));
                    }
                    Some(_) | None => self.want(key, Some(ask), new),
                }
            }
            Step::Succeed(key) => self.succeed(key, text),
            Step::Fail(key) => self.fail(key),
            Step::Show(looker, visible) => {
                if visible && !self.visible[looker] {
                    self.focus.insert(looker);
                    for entry in self.entries.values_mut().filter(|e| e.observers.contains(&looker)) {
                        entry.failed_refreshes = 0;
                    }
                    self.wake();
                }
                self.visible[looker] = visible;
                if self.visible.contains(&true) {
                    self.grace = None;
                    if !self.active {
                        self.set_active(true);
                    }
                } else if self.active {
                    self.grace = self.grace.or(Some(self.now + GRACE));
                }
            }
            Step::Online(online) => {
                let back = online && !self.online;
                self.online = online;
                if back {
                    self.resume(Phase::Offline);
                    self.reconnect = true;
                    self.wake();
                    for entry in self.entries.values_mut().filter(|e| !e.observers.is_empty()) {
                        entry.failed_refreshes = 0;
                    }
                }
            }
            Step::Pass(ms) => {
                for _ in 0..ms {
                    self.due();
                    self.now += 1;
                }
            }
        }
        self.due();
    }

    /// Looks through everything for what is due now.
    fn due(&mut self) {
        let now = self.now;
        for key in 0..KEYS.len() {
            let retry = |entry: &Entry| {
                let phase = entry.flight.as_ref().map(|flight| flight.phase);
                matches!(phase, Some(Phase::Retry(at)) if at <= now)
            };
            if self.entries.get(&key).is_some_and(retry) {
                self.attempt(key);
            }
        }
        if self.grace.is_some_and(|at| at <= now) {
            self.grace = None;
            self.set_active(false);
        }
        if self.gathered_until.is_some_and(|at| at <= now) {
            self.gathered_until = None;
            for key in std::mem::take(&mut self.gathered) {
                let Some(entry) = self.entries.get(&key) else { continue };
                let asked = entry.flight.as_ref().is_some_and(|f| !f.askers.is_empty() || !f.next.is_empty());
                if self.is_stale(key) && !entry.observers.is_empty() && (self.active || asked) {
                    let late = matches!(
                        self.entries[&key].flight,
                        Some(Flight { phase: Phase::Running { invalidated: true, .. }, .. })
                    );
                    self.entry(key).invalidation_fetched = Some(now);
                    self.want(key, None, late);
                }
            }
        }
        if self.triggers_at.is_some_and(|at| at <= now) {
            self.triggers_at = None;
            let (focus, reconnect) = (std::mem::take(&mut self.focus), std::mem::take(&mut self.reconnect));
            for key in 0..KEYS.len() {
                let Some(entry) = self.entries.get(&key) else { continue };
                let woken = entry.observers.iter().any(|looker| reconnect || focus.contains(looker));
                if woken && self.online && entry.value.is_none() {
                    self.want(key, None, false);
                } else if woken && self.online {
                    self.want_if_worth(key);
                }
            }
        }
        for key in 0..KEYS.len() {
            let Some(entry) = self.entries.get(&key) else { continue };
            let stale_at = match (&entry.value, entry.marked) {
                (None, _) => 0,
                (Some(_), Some(marked)) => marked + CHECK,
                (Some((_, at)), None) => at + STALE,
            };
            let interval = if entry.failed_refreshes == 0 { CHECK } else { CHECK_AFTER_FAILURE };
            let again = entry.last_attempt.map_or(0, |last| last + interval);
            if entry.failed_refreshes <= 1 && stale_at.max(again) <= now {
                self.want_if_worth(key);
            }
        }
        self.entries.retain(|_, entry| {
            let unused = entry.observers.is_empty() && entry.flight.is_none();
            !(unused && (entry.value.is_none() || entry.keep_until <= now))
        });
        self.gathered.retain(|key| self.entries.contains_key(key));
    }
}

fn world() -> World {
    let ms = Duration::from_millis;
    let defaults = Defaults {
        gc: ms(GC),
        retry: Retry { times: 1, base: ms(RETRY), cap: ms(RETRY), jitter: false },
        refresh: Refresh {
            check_interval: ms(CHECK),
            concurrent: 100,
            batch: 100,
            retry_interval: ms(CHECK_AFTER_FAILURE),
            max_retries: 1,
        },
        debounce: ms(DEBOUNCE),
        batch_window: ms(WINDOW),
        grace: ms(GRACE),
        deadline: ms(1_000_000_000),
        ..Defaults::default()
    };
    let mut world = World::with(defaults, []);
    for looker in LOOKERS {
        world.presence(looker, |presence| presence);
    }
    let hidden = |presence| Presence { visible: false, ..presence };
    world.presence(A, hidden);
    world.presence(OWN, hidden);
    world.declare(A, Resource { ..stale_after("k", ms(STALE)) });
    world.presence(A, hidden);
    world
}

fn do_step(world: &mut World, step: &Step, text: &str) -> Option<AskId> {
    let open = |world: &World, at: usize| world.open.iter().any(|(_, request)| request.key == key(KEYS[at]));
    match *step {
        Step::Observe(looker, at) => world.observe(LOOKERS[looker], KEYS[at]),
        Step::Unobserve(looker, at) => world.unobserve(LOOKERS[looker], KEYS[at]),
        Step::Set(at) => world.set(KEYS[at], text),
        Step::Push(at) => world.push(KEYS[at], text),
        Step::Invalidate(at) => world.invalidate_as(KEYS[at], true, RefetchType::Active),
        Step::InvalidateAll => world.invalidate("k"),
        Step::Ask(at) => return Some(world.ask(OWN, KEYS[at], FRESH)),
        Step::Refetch(at) => return Some(world.ask(OWN, KEYS[at], Want::New)),
        Step::Succeed(at) if open(world, at) => world.reply_to(KEYS[at], value(text)),
        Step::Fail(at) if open(world, at) => world.reply_to(KEYS[at], failed(FailureKind::Network)),
        Step::Succeed(_) | Step::Fail(_) => {}
        Step::Show(looker, visible) => {
            world.presence(LOOKERS[looker], |presence| Presence { visible, ..presence });
        }
        Step::Online(online) => world.online(online),
        Step::Pass(ms) => world.pass(Duration::from_millis(ms)),
    }
    None
}

fn compare(world: &World, model: &Model) {
    assert_eq!(world.requests.len(), model.requests as usize, "requests");
    for (at, name) in KEYS.iter().enumerate() {
        let entry = model.entries.get(&at);
        let held = entry.and_then(|entry| entry.value.as_ref()).map(|(text, _)| text.as_str());
        assert_eq!(world.held(name), held, "the value of {name}");
        let open = world.open.iter().filter(|(_, request)| request.key == key(name)).count();
        let flight = entry.and_then(|entry| entry.flight.as_ref());
        let running = flight.is_some_and(|flight| matches!(flight.phase, Phase::Running { .. }));
        assert_eq!(open, usize::from(running), "attempts of {name}");
        let Some(entry) = entry.filter(|entry| !entry.observers.is_empty()) else { continue };
        let fetch = match entry.flight.as_ref().map(|flight| flight.phase) {
            None => FetchStatus::Idle,
            Some(Phase::Running { .. } | Phase::Retry(_)) => FetchStatus::Fetching,
            Some(Phase::Offline | Phase::Hidden) => FetchStatus::Paused,
        };
        let state = world.state(name);
        let expected = (fetch, model.is_stale(at), model.is_background(at));
        assert_eq!((state.fetch, state.stale, state.background), expected, "the state of {name}");
    }
    let answers: BTreeMap<AskId, Result<(String, bool), ()>> = world
        .answers
        .keys()
        .map(|id| {
            let answer = world.answer(*id).expect("an answer");
            (*id, answer.map(|(text, stale, _)| (text, stale)).map_err(|_| ()))
        })
        .collect();
    assert_eq!(answers, model.answers, "answers");
}

fn run(steps: &[Step]) {
    let (mut world, mut model) = (world(), Model::new());
    for (n, step) in steps.iter().enumerate() {
        let text = format!("{n}");
        let ask = do_step(&mut world, step, &text);
        // What is due at this very instant.
        world.pass(Duration::ZERO);
        model.do_step(step, ask, &text);
        compare(&world, &model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_looks_the_same_to_a_model_that_scans(steps in prop::collection::vec(step(), 1..100)) {
        run(&steps);
    }
}
