//! One election on the bench ([`Rig`]): its inputs are written by hand and its deadlines fired in virtual time.
//! Several on shared files: [`group::Group`].
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

pub mod group;

use std::time::Duration;

use paceline_proto::{
    election::{ClaimResult, ClaimSeen, Config, Effect, Election, Input, Listing, Lock, Role},
    event::Event,
    id::{Epoch, Nonce, SessionId},
    message::{Heir, KitAddress, Member, Ping, Rank},
    program::{Age, Program},
    time::Time,
};

/// The session on the bench.
pub const ME: SessionId = SessionId(1);
/// The owner it finds.
pub const OWNER: SessionId = SessionId(2);
/// Two others.
pub const ANN: SessionId = SessionId(3);
pub const BOB: SessionId = SessionId(4);

/// An heir makes ready so long after it was appointed.
pub const HEIR_PREPARES: Duration = Duration::from_millis(10);

pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The address in the claim or kit numbered `n`.
pub fn address(n: u64) -> KitAddress {
    KitAddress { socket: format!("{n:08x}.sock"), nonce: Nonce(n.into()) }
}

/// A readable claim of [`OWNER`].
pub fn claim(epoch: u64, lock: Lock) -> ClaimSeen {
    ClaimSeen { epoch: Epoch(epoch), address: Some(address(epoch)), owner: Some(OWNER), lock, readable: true }
}

/// A listing whose highest claim is [`claim`] and whose stores agree with it.
pub fn listing(epoch: u64, lock: Lock) -> Listing {
    Listing { claim: Some(claim(epoch, lock)), highest_complete: Epoch(epoch), too_new: None }
}

pub fn heir(session: SessionId) -> Heir {
    let kit = Some(address(1000 + u64::try_from(session.0).unwrap()));
    Heir { session, kit, current: true, rank: Rank::Candidate, age: Age::Same }
}

pub fn ping(heirs: &[SessionId]) -> Ping {
    let member = |&session: &SessionId| Member { session, label: String::new(), pid: 1, joined: true };
    Ping {
        heirs: heirs.iter().map(|&session| heir(session)).collect(),
        members: [ME, OWNER].iter().map(member).collect(),
        ..Ping::default()
    }
}

pub struct Rig {
    pub machine: Election,
    pub now: Time,
    /// What the shell would say in `Deadline`.
    pub heard: Time,
}

impl Rig {
    pub fn new(rank: Rank) -> Self {
        let machine = Election::new(Config { session: ME, rank, program: Program::new("own", 1) }, 7);
        Self { machine, now: Time(1_000_000_000), heard: Time::ZERO }
    }

    /// A started candidate.
    pub fn started() -> Self {
        Self::started_as(Rank::Candidate)
    }

    pub fn started_as(rank: Rank) -> Self {
        let mut rig = Self::new(rank);
        assert_eq!(rig.feed(Input::Start), [Effect::Role(Role::Joining), Effect::List]);
        rig
    }

    /// A candidate that follows the owner of `epoch`, who named these heirs.
    pub fn following(epoch: u64, heirs: &[SessionId]) -> Self {
        Self::following_as(Rank::Candidate, epoch, heirs)
    }

    pub fn following_as(rank: Rank, epoch: u64, heirs: &[SessionId]) -> Self {
        let mut rig = Self::started_as(rank);
        let effects = rig.feed(Input::Listed(listing(epoch, Lock::Held)));
        let attempt = connected(&effects).expect("connects to the owner");
        rig.feed(Input::Welcomed { attempt, epoch: Epoch(epoch), owner: OWNER });
        rig.feed(Input::Ping(ping(heirs)));
        // As an heir it made ready.
        if rig.wait(HEIR_PREPARES).contains(&Effect::MakeKit) {
            rig.feed(Input::KitMade(Ok(heir(ME).kit.expect("heirs have kits"))));
        }
        rig.heard = rig.now;
        rig.feed(Input::Ping(ping(heirs)));
        assert_eq!(rig.machine.epoch(), Epoch(epoch));
        rig
    }

    /// An adopted primary of `epoch`, won over a dead owner, whose hub named these heirs.
    pub fn owning(epoch: u64, heirs: &[SessionId]) -> Self {
        let mut rig = Self::started();
        let effects = rig.feed(Input::Listed(listing(epoch - 1, Lock::Free)));
        assert_eq!(claims(&effects), [Epoch(epoch)]);
        rig.feed(Input::Claimed { epoch: Epoch(epoch), result: ClaimResult::Won });
        rig.feed(Input::Adopted { epoch: Epoch(epoch), result: Ok(0) });
        rig.feed(Input::Ping(ping(heirs)));
        rig
    }

    pub fn feed(&mut self, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.machine.handle(self.now, input, &mut out);
        if let Some(due) = self.machine.deadline() {
            assert!(due > self.now, "the deadline lies in the future");
        }
        out
    }

    /// Lets time pass, firing each deadline when it is due.
    pub fn wait(&mut self, time: Duration) -> Vec<Effect> {
        self.wait_late(time, Duration::ZERO)
    }

    /// The same on a machine so busy that each deadline is fired so late.
    pub fn wait_late(&mut self, time: Duration, late: Duration) -> Vec<Effect> {
        let end = self.now + time;
        let mut effects = Vec::new();
        while let Some(due) = self.machine.deadline().map(|due| due + late)
            && due <= end
        {
            self.now = due;
            effects.extend(self.feed(Input::Deadline { heard: self.heard }));
        }
        self.now = end;
        effects
    }

    /// Lets time pass up to and including the next deadline.
    pub fn step(&mut self) -> Vec<Effect> {
        self.now = self.machine.deadline().expect("a deadline is set");
        self.feed(Input::Deadline { heard: self.heard })
    }

    /// Moves the clock without firing anything: the process did not run.
    pub fn sleep(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    pub fn attempt(&self) -> u64 {
        self.machine.attempt().expect("a link stands")
    }

    pub fn blocked(&self) -> bool {
        matches!(self.machine.role(), Role::Blocked { .. })
    }
}

/// The token of the only new attempt.
pub fn connected(effects: &[Effect]) -> Option<u64> {
    let mut attempts = effects.iter().filter_map(|effect| match effect {
        Effect::Connect { attempt, .. } => Some(*attempt),
        _ => None,
    });
    let first = attempts.next();
    assert_eq!(attempts.next(), None, "one attempt in {effects:?}");
    first
}

/// The attempt at that address.
pub fn connected_to(effects: &[Effect], wanted: &KitAddress) -> Option<u64> {
    effects.iter().find_map(|effect| match effect {
        Effect::Connect { attempt, target } if target.address == *wanted => Some(*attempt),
        _ => None,
    })
}

pub fn claims(effects: &[Effect]) -> Vec<Epoch> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Claim { epoch } => Some(*epoch),
            _ => None,
        })
        .collect()
}

pub fn events(effects: &[Effect]) -> Vec<&'static str> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Event(event) => Some(event.kind()),
            _ => None,
        })
        .collect()
}

/// Effects without what is only shown.
pub fn wishes(effects: Vec<Effect>) -> Vec<Effect> {
    effects.into_iter().filter(|effect| !matches!(effect, Effect::Role(_) | Effect::Event(_))).collect()
}

pub fn has_event(effects: &[Effect], wanted: &Event) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Event(event) if event == wanted))
}
