//! Any inputs in any order: true answers, stale ones, late ones, and things that nobody asked for.

mod election_support;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use election_support::{ANN, BOB, ME, OWNER, address, claim, heir, ping};
use paceline_proto::{
    election::{ClaimResult, Config, ConnectFailure, Effect, Election, Input, Listing, Lock, Role},
    id::{Epoch, Mark, SessionId},
    message::{Heir, Ping, Rank, Refusal},
    program::Program,
    time::Time,
};
use proptest::prelude::*;

/// One input: after how many microseconds, which, and with what.
type Step = (u32, u8, u8, u8);

struct Watcher {
    machine: Election,
    twin: Election,
    rank: Rank,
    now: Time,
    /// Open attempts, and whether they were welcomed.
    attempts: BTreeMap<u64, bool>,
    claim: Option<Epoch>,
    reign: Option<Epoch>,
    begun: BTreeSet<Epoch>,
    left: bool,
}

impl Watcher {
    fn new(rank: Rank, seed: u64) -> Self {
        let config = Config { session: ME, rank, program: Program::new("own", 1) };
        Self {
            machine: Election::new(config.clone(), seed),
            twin: Election::new(config, seed),
            rank,
            now: Time(1),
            attempts: BTreeMap::new(),
            claim: None,
            reign: None,
            begun: BTreeSet::new(),
            left: false,
        }
    }

    fn step(&mut self, (micros, kind, a, b): Step) {
        self.now = self.now + Duration::from_micros(micros.into());
        let input = self.input(kind, a, b);
        self.feed(input);
    }

    /// Half of the answers are the true ones of the moment, the others made up.
    fn input(&self, kind: u8, a: u8, b: u8) -> Input {
        let open = self.attempts.keys().nth(usize::from(a) % self.attempts.len().max(1)).copied();
        let attempt = open.filter(|_| !b.is_multiple_of(8)).unwrap_or(u64::from(a));
        let near = self.machine.epoch().0.max(self.begun.last().map_or(0, |e| e.0));
        let epoch = Epoch(near + u64::from(a % 4)).max(Epoch(1));
        let own = self.reign.filter(|_| !b.is_multiple_of(8)).unwrap_or(epoch);
        let session = [ME, OWNER, ANN, BOB][usize::from(a) % 4];
        let lock = [Lock::Free, Lock::Held, Lock::Held, Lock::Missing][usize::from(b) % 4];
        match kind % 32 {
            0 => Input::Start,
            1..=3 => Input::Listed(self.listing(epoch, lock, b)),
            4 => Input::ListFailed { why: "cannot".into() },
            5 | 6 => Input::LockTested { epoch, lock },
            7 | 8 => Input::Welcomed { attempt, epoch, owner: session },
            9 => Input::Busy { attempt, retry_ms: u32::from(b) * 100 },
            10 => Input::Refused { attempt, refusal: Refusal::Full },
            11 => Input::ConnectFailed { attempt, failure: failure(b) },
            12 => Input::Eof { attempt },
            13..=15 => Input::Ping(Ping { heirs: heirs(a, b), ..ping(&[]) }),
            16..=18 => Input::Deadline { heard: Time(self.now.0.saturating_sub(u64::from(b) * 10_000_000)) },
            19 if b.is_multiple_of(4) => Input::KitMade(Err("full".into())),
            19 => Input::KitMade(Ok(address(u64::from(a)))),
            20..=22 => Input::Claimed {
                epoch: self.claim.filter(|_| !b.is_multiple_of(8)).unwrap_or(epoch),
                result: claim_result(b),
            },
            23 if b.is_multiple_of(4) => Input::Adopted { epoch: own, result: Err("damaged".into()) },
            23 => Input::Adopted { epoch: own, result: Ok(u64::from(b)) },
            24 => Input::Fenced { epoch: own, why: "replaced".into() },
            25 => Input::StoreFailed { epoch: own, why: "fsync".into() },
            26 if b.is_multiple_of(2) => Input::Suspended { ms: u64::from(a) * 100 },
            26 => Input::OwnerStopped(b % 4 == 1),
            27 if b.is_multiple_of(16) => Input::Leave,
            27 => Input::Promote { to: b.is_multiple_of(2).then_some(session) },
            28 => Input::Drained { last: Mark::ZERO },
            29 => Input::Go { last: Mark::ZERO },
            30 => Input::Took { epoch, to: b.is_multiple_of(2).then(|| address(u64::from(a))) },
            _ if b.is_multiple_of(4) => Input::OwnerClosed,
            _ if b % 4 == 1 => Input::Heir(b % 8 == 1),
            _ => Input::Moved { epoch, to: address(u64::from(a)) },
        }
    }

    fn listing(&self, epoch: Epoch, lock: Lock, b: u8) -> Listing {
        let mut listing =
            Listing { claim: Some(claim(epoch.0, lock)), highest_complete: epoch, too_new: None };
        match b / 4 % 8 {
            0 => listing.too_new = Some((9, 8)),
            1 => {
                listing.claim =
                    listing.claim.map(|c| paceline_proto::election::ClaimSeen { readable: false, ..c })
            }
            2 => {
                listing.claim =
                    listing.claim.map(|c| paceline_proto::election::ClaimSeen { address: None, ..c })
            }
            3 => listing.claim = None,
            4 => listing.highest_complete = Epoch(epoch.0 + 1),
            _ => {}
        }
        listing
    }

    fn feed(&mut self, input: Input) {
        let won = match &input {
            Input::Claimed { epoch, result } if self.claim == Some(*epoch) => {
                self.claim = None;
                (*result == ClaimResult::Won).then_some(*epoch)
            }
            _ => None,
        };
        match &input {
            Input::Welcomed { attempt, .. } => {
                self.attempts.entry(*attempt).and_modify(|welcomed| *welcomed = true);
            }
            Input::Busy { attempt, .. }
            | Input::Refused { attempt, .. }
            | Input::ConnectFailed { attempt, .. }
            | Input::Eof { attempt } => {
                self.attempts.remove(attempt);
            }
            _ => {}
        }
        let mut effects = Vec::new();
        let mut same = Vec::new();
        self.machine.handle(self.now, input.clone(), &mut effects);
        self.twin.handle(self.now, input.clone(), &mut same);
        assert_eq!(effects, same, "the seed decides everything");
        assert!(effects.len() <= 16, "{input:?} => {effects:?}");
        if self.left {
            assert!(effects.iter().all(|effect| *effect == Effect::DropKit), "{input:?} => {effects:?}");
        }
        for effect in &effects {
            self.check(effect, won);
        }
        if let Some(due) = self.machine.deadline() {
            assert!(due > self.now, "{input:?}: due {due:?}, now {:?}", self.now);
        }
        let links = self.attempts.values().filter(|welcomed| **welcomed).count();
        assert!(links <= 1 || self.left, "{links} links after {input:?}");
        assert!(self.attempts.len() <= 4, "{} attempts after {input:?}", self.attempts.len());
        assert_eq!(self.machine.role() == &Role::Left, self.left);
        if let Role::Primary { epoch, .. } | Role::Draining { epoch } = self.machine.role() {
            assert_eq!(Some(*epoch), self.reign);
        }
    }

    fn check(&mut self, effect: &Effect, won: Option<Epoch>) {
        match effect {
            Effect::Claim { epoch } => {
                assert_ne!(self.rank, Rank::Observer, "observers never claim");
                assert_eq!(self.claim.replace(*epoch), None, "two claims in flight");
            }
            Effect::Begin { epoch, .. } => {
                assert_eq!(Some(*epoch), won, "begins only what it won");
                assert_eq!(self.reign.replace(*epoch), None, "one reign at a time");
                assert!(self.begun.insert(*epoch), "an epoch is reigned once");
            }
            Effect::End { epoch, .. } => assert_eq!(self.reign.take(), Some(*epoch), "ends what it began"),
            Effect::Adopt { epoch }
            | Effect::CheckFence { epoch }
            | Effect::Drain { epoch, .. }
            | Effect::ResumeReign { epoch }
            | Effect::Collect { epoch }
            | Effect::SendTook { epoch } => assert_eq!(self.reign, Some(*epoch), "{effect:?}"),
            Effect::Connect { attempt, .. } => {
                assert_eq!(self.attempts.insert(*attempt, false), None, "tokens are new");
            }
            Effect::Disconnect { attempt } => {
                self.attempts.remove(attempt);
            }
            Effect::Left => self.left = true,
            Effect::List
            | Effect::TestLock { .. }
            | Effect::MakeKit
            | Effect::DropKit
            | Effect::SendGo { .. }
            | Effect::SendMoved { .. }
            | Effect::LookAtOwner { .. }
            | Effect::Role(_)
            | Effect::RefusePromote { .. }
            | Effect::Event(_) => {}
        }
    }
}

fn failure(b: u8) -> ConnectFailure {
    match b % 6 {
        0 => ConnectFailure::Refused,
        1 => ConnectFailure::Missing,
        2 => ConnectFailure::Forbidden,
        3 => ConnectFailure::Silent,
        4 => ConnectFailure::Closed,
        _ => ConnectFailure::Other("odd".into()),
    }
}

fn claim_result(b: u8) -> ClaimResult {
    match b % 8 {
        0 => ClaimResult::Exists,
        1 => ClaimResult::Superseded,
        2 => ClaimResult::Failed("full".into()),
        _ => ClaimResult::Won,
    }
}

fn heirs(a: u8, b: u8) -> Vec<Heir> {
    let all: [SessionId; 3] = [ME, ANN, BOB];
    let from = usize::from(a) % 3;
    let kit = |heir: Heir| Heir { kit: heir.kit.filter(|_| !b.is_multiple_of(5)), ..heir };
    let rank = if b.is_multiple_of(3) { Rank::Preferred } else { Rank::Candidate };
    (0..usize::from(a / 3) % 3)
        .map(|n| kit(Heir { current: !b.is_multiple_of(4), rank, ..heir(all[(from + n) % 3]) }))
        .collect()
}

fn ranks() -> impl Strategy<Value = Rank> {
    prop_oneof![Just(Rank::Observer), Just(Rank::Candidate), Just(Rank::Candidate), Just(Rank::Preferred)]
}

/// Mostly short waits, sometimes long ones.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let micros = prop_oneof![4 => 0u32..2_000, 3 => 0u32..60_000, 1 => 0u32..6_000_000];
    proptest::collection::vec((micros, any::<u8>(), any::<u8>(), any::<u8>()), 1..250)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_breaks_it(rank in ranks(), seed in any::<u64>(), steps in steps()) {
        let mut watcher = Watcher::new(rank, seed);
        watcher.feed(Input::Start);
        for step in steps {
            watcher.step(step);
        }
    }

    #[test]
    fn deadlines_alone_never_spin(rank in ranks(), seed in any::<u64>(), steps in steps()) {
        let mut watcher = Watcher::new(rank, seed);
        watcher.feed(Input::Start);
        for step in steps {
            watcher.step(step);
        }
        let start = watcher.now;
        for _ in 0..100 {
            let Some(due) = watcher.machine.deadline() else { return Ok(()) };
            watcher.now = due;
            watcher.feed(Input::Deadline { heard: Time::ZERO });
        }
        prop_assert!(watcher.now.since(start) >= Duration::from_secs(1), "{:?}", watcher.now.since(start));
    }
}

/// The watcher is not blind: an owner, a follower and a leaver are reached by such inputs.
#[test]
fn random_inputs_reach_everything() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut roles = BTreeSet::new();
    for _ in 0..300 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        let mut watcher = Watcher::new(Rank::Candidate, 1);
        watcher.feed(Input::Start);
        for step in steps {
            watcher.step(step);
            roles.insert(match watcher.machine.role() {
                Role::Joining => "joining",
                Role::Follower { .. } => "follower",
                Role::Candidate { .. } => "candidate",
                Role::Primary { adopted: false, .. } => "adopting",
                Role::Primary { adopted: true, .. } => "primary",
                Role::Draining { .. } => "draining",
                Role::Blocked { .. } => "blocked",
                Role::Left => "left",
            });
        }
    }
    assert_eq!(roles.len(), 8, "{roles:?}");
}
