//! Several elections on shared files, in virtual time: hard links, locks, sockets with backlogs, pings. No data, no
//! stores beyond `complete`: the simulator has those.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use paceline_proto::{
    election::{
        ClaimResult, ClaimSeen, Config, ConnectFailure, Effect, Election, Input, Listing, Lock, Role,
    },
    event::Event,
    id::{Epoch, Mark, SessionId},
    message::{Heir, KitAddress, Ping, Rank},
    program::{Age, Program},
    time::Time,
};

use super::{address, ms};

const MICRO: Duration = Duration::from_micros(1);

#[derive(Debug, Clone)]
enum Happening {
    /// The session hears this from its own shell.
    Told(usize, Input),
    /// It comes on the link of this attempt.
    Frame(usize, u64, Input),
    Eof(usize, u64),
    /// A connection arrives at a kit's socket.
    Hello {
        kit: u64,
        from: usize,
        attempt: u64,
    },
    Link(usize, Epoch),
    Release(Epoch),
    PingDue(usize, Epoch),
}

struct ClaimFile {
    node: usize,
    kit: u64,
    lock: Lock,
}

struct Kit {
    node: usize,
    backlog: Vec<(usize, u64)>,
}

struct Reign {
    epoch: Epoch,
    kit: u64,
    links: Vec<(usize, u64)>,
}

pub struct Node {
    pub machine: Election,
    pub session: SessionId,
    rank: Rank,
    pub alive: bool,
    pub frozen: bool,
    deferred: Vec<Happening>,
    kit: Option<u64>,
    won: Option<(Epoch, u64)>,
    reign: Option<Reign>,
    heard: Time,
    /// Open attempts, and whether they were welcomed.
    attempts: BTreeMap<u64, bool>,
    claiming: bool,
}

pub struct Group {
    pub now: Time,
    pub nodes: Vec<Node>,
    claims: BTreeMap<Epoch, ClaimFile>,
    kits: BTreeMap<u64, Kit>,
    complete: Epoch,
    queue: BTreeMap<(Time, u64), Happening>,
    count: u64,
    random: u64,
    /// All events, by session.
    pub events: Vec<(usize, Event)>,
}

impl Group {
    pub fn new(seed: u64) -> Self {
        Self {
            now: Time(1_000_000_000),
            nodes: Vec::new(),
            claims: BTreeMap::new(),
            kits: BTreeMap::new(),
            complete: Epoch::NONE,
            queue: BTreeMap::new(),
            count: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            events: Vec::new(),
        }
    }

    pub fn join(&mut self, rank: Rank) -> usize {
        let node = self.nodes.len();
        let session = SessionId(node as u128 + 1);
        let seed = self.draw(u64::MAX);
        self.nodes.push(Node {
            machine: Election::new(Config { session, rank, program: Program::new("", 1) }, seed),
            session,
            rank,
            alive: true,
            frozen: false,
            deferred: Vec::new(),
            kit: None,
            won: None,
            reign: None,
            heard: Time::ZERO,
            attempts: BTreeMap::new(),
            claiming: false,
        });
        self.at(Duration::ZERO, Happening::Told(node, Input::Start));
        node
    }

    pub fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    pub fn tell(&mut self, node: usize, input: Input) {
        self.at(Duration::ZERO, Happening::Told(node, input));
    }

    /// SIGKILL: locks and connections go in no fixed order, up to 20 ms apart.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].alive = false;
        self.nodes[node].deferred.clear();
        let held: Vec<_> =
            self.claims.iter().filter(|(_, file)| file.node == node).map(|(&epoch, _)| epoch).collect();
        for epoch in held {
            let after = MICRO * u32::try_from(self.draw(20_000)).unwrap();
            self.at(after, Happening::Release(epoch));
        }
        self.end_links(node, 20_000);
        let waiting: Vec<_> = self
            .kits
            .values_mut()
            .filter(|kit| kit.node == node)
            .flat_map(|kit| std::mem::take(&mut kit.backlog))
            .collect();
        for (from, attempt) in waiting {
            self.at(MICRO * 100, Happening::Eof(from, attempt));
        }
        let attempts: Vec<_> = self.nodes[node].attempts.keys().copied().collect();
        for attempt in attempts {
            self.unlink(node, attempt);
        }
    }

    pub fn freeze(&mut self, node: usize) {
        self.nodes[node].frozen = true;
    }

    pub fn thaw(&mut self, node: usize) {
        self.nodes[node].frozen = false;
        let heard = self.nodes[node].heard;
        if self.nodes[node].machine.deadline().is_some_and(|due| due <= self.now) {
            self.handle(node, Input::Deadline { heard });
        }
        for happening in std::mem::take(&mut self.nodes[node].deferred) {
            self.at(Duration::ZERO, happening);
        }
    }

    /// The machine loses power: everybody dies, names of claims above `claim` are lost, stores are not.
    pub fn power_loss(&mut self, claim: Epoch) {
        for node in 0..self.nodes.len() {
            self.nodes[node].alive = false;
            self.nodes[node].deferred.clear();
        }
        self.queue.clear();
        self.kits.clear();
        self.claims.retain(|&epoch, _| epoch <= claim);
        self.claims.values_mut().for_each(|file| file.lock = Lock::Free);
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = (0..self.nodes.len())
                .filter(|&n| self.nodes[n].alive && !self.nodes[n].frozen)
                .filter_map(|n| Some((self.nodes[n].machine.deadline()?, n)))
                .min();
            let next = self.queue.first_key_value().map(|(&(at, _), _)| at);
            let at = match (due, next) {
                (Some((due, _)), Some(next)) => due.min(next),
                (Some((due, _)), None) => due,
                (None, Some(next)) => next,
                (None, None) => break,
            };
            if at > end {
                break;
            }
            self.now = self.now.max(at);
            match due {
                Some((due, node)) if due <= at => {
                    let heard = self.nodes[node].heard;
                    self.handle(node, Input::Deadline { heard });
                }
                Some(_) | None => {
                    let (_, happening) = self.queue.pop_first().unwrap();
                    self.happen(happening);
                }
            }
            self.check();
        }
        self.now = end;
    }

    /// Runs until everybody follows one owner; how long that took.
    pub fn settle(&mut self, within: Duration) -> Duration {
        let start = self.now;
        while !self.settled() {
            assert!(self.now.since(start) < within, "not settled: {:?}", self.roles());
            self.run(ms(1));
        }
        self.now.since(start)
    }

    pub fn roles(&self) -> Vec<(usize, Role)> {
        self.living().map(|n| (n, self.nodes[n].machine.role().clone())).collect()
    }

    pub fn owner(&self) -> Option<usize> {
        let mut owners = self.living().filter(|&n| self.nodes[n].reign.is_some());
        let owner = owners.next();
        owner.filter(|_| owners.next().is_none())
    }

    pub fn epoch(&self) -> Epoch {
        self.claims.last_key_value().map_or(Epoch::NONE, |(&epoch, _)| epoch)
    }

    pub fn living(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|&n| self.nodes[n].alive && !self.nodes[n].frozen)
    }

    pub fn count(&self, kind: &str) -> usize {
        self.events.iter().filter(|(_, event)| event.kind() == kind).count()
    }

    fn settled(&self) -> bool {
        let Some(owner) = self.owner() else { return false };
        let epoch = self.nodes[owner].machine.epoch();
        *self.nodes[owner].machine.role() == Role::Primary { epoch, adopted: true }
            && self.living().all(|n| {
                n == owner
                    || *self.nodes[n].machine.role()
                        == Role::Follower { epoch, owner: self.nodes[owner].session }
            })
    }

    /// One owner without a successor's claim, at every moment.
    fn check(&self) {
        let unfenced: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| node.alive)
            .filter_map(|node| node.reign.as_ref())
            .filter(|reign| !self.claims.contains_key(&reign.epoch.next()))
            .map(|reign| reign.epoch)
            .collect();
        assert!(unfenced.len() <= 1, "owners without successor: {unfenced:?}");
    }

    fn at(&mut self, after: Duration, happening: Happening) {
        self.count += 1;
        self.queue.insert((self.now + after, self.count), happening);
    }

    fn happen(&mut self, happening: Happening) {
        let node = match &happening {
            Happening::Told(node, _)
            | Happening::Frame(node, ..)
            | Happening::Eof(node, _)
            | Happening::Link(node, _)
            | Happening::PingDue(node, _) => Some(*node),
            Happening::Hello { .. } | Happening::Release(_) => None,
        };
        if let Some(node) = node {
            if !self.nodes[node].alive {
                return;
            }
            if self.nodes[node].frozen {
                self.nodes[node].deferred.push(happening);
                return;
            }
        }
        match happening {
            Happening::Told(node, input) => self.handle(node, input),
            Happening::Frame(node, attempt, input) => {
                if self.nodes[node].machine.attempt() == Some(attempt) {
                    self.nodes[node].heard = self.now;
                    self.handle(node, input);
                }
            }
            Happening::Eof(node, attempt) => match self.nodes[node].attempts.remove(&attempt) {
                Some(true) => self.handle(node, Input::Eof { attempt }),
                Some(false) => {
                    self.handle(node, Input::ConnectFailed { attempt, failure: ConnectFailure::Closed });
                }
                None => {}
            },
            Happening::Hello { kit, from, attempt } => self.hello(kit, from, attempt),
            Happening::Link(node, epoch) => self.link(node, epoch),
            Happening::Release(epoch) => {
                if let Some(file) = self.claims.get_mut(&epoch) {
                    file.lock = Lock::Free;
                }
            }
            Happening::PingDue(node, epoch) => self.ping(node, epoch),
        }
    }

    fn handle(&mut self, node: usize, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            if !self.nodes[node].alive {
                return;
            }
            let mut effects = Vec::new();
            let now = self.now;
            self.nodes[node].machine.handle(now, input, &mut effects);
            for effect in effects {
                inputs.extend(self.carry_out(node, effect));
            }
        }
    }

    /// The answer, where it is there at once.
    fn carry_out(&mut self, node: usize, effect: Effect) -> Option<Input> {
        match effect {
            Effect::List => {
                let listed = Input::Listed(self.listing());
                let after = MICRO * (100 + u32::try_from(self.draw(400)).unwrap());
                self.at(after, Happening::Told(node, listed));
            }
            Effect::TestLock { epoch } => {
                let lock = self.claims.get(&epoch).map_or(Lock::Missing, |file| file.lock);
                return Some(Input::LockTested { epoch, lock });
            }
            Effect::Connect { attempt, target } => {
                self.nodes[node].attempts.insert(attempt, false);
                let kit = u64::try_from(target.address.nonce.0).unwrap();
                self.at(MICRO * 100, Happening::Hello { kit, from: node, attempt });
            }
            Effect::Disconnect { attempt } => self.unlink(node, attempt),
            Effect::MakeKit => {
                let kit = self.kit_of(node);
                self.at(ms(2), Happening::Told(node, Input::KitMade(Ok(address(kit)))));
            }
            Effect::DropKit => self.nodes[node].kit = None,
            Effect::Claim { epoch } => {
                assert!(!std::mem::replace(&mut self.nodes[node].claiming, true), "two claims in flight");
                assert!(self.nodes[node].rank != Rank::Observer);
                let after = if self.nodes[node].kit.is_some() { MICRO * 200 } else { ms(3) };
                self.at(after, Happening::Link(node, epoch));
            }
            Effect::Begin { epoch, .. } => self.begin(node, epoch),
            Effect::Adopt { epoch } => {
                self.complete = self.complete.max(epoch);
                self.at(ms(1), Happening::Told(node, Input::Adopted { epoch, result: Ok(0) }));
            }
            Effect::Drain { epoch, .. } => {
                let last = Mark { epoch, ..Mark::ZERO };
                self.at(MICRO * 500, Happening::Told(node, Input::Drained { last }));
            }
            Effect::SendGo { to, last } => self.send(node, Some(to), &Input::Go { last }),
            Effect::SendMoved { epoch, to } => self.send(node, None, &Input::Moved { epoch, to }),
            Effect::SendTook { epoch } => {
                let kit = self.claims[&epoch].kit;
                let old = self.claims.range(..epoch).next_back().map(|(_, file)| file.node);
                let took = Input::Took { epoch, to: Some(address(kit)) };
                if let Some(old) = old {
                    self.at(MICRO * 100, Happening::Told(old, took));
                }
            }
            Effect::End { epoch, close } => {
                if close {
                    self.send(node, None, &Input::OwnerClosed);
                }
                self.end_links(node, 200);
                self.at(MICRO * 300, Happening::Release(epoch));
            }
            Effect::CheckFence { epoch } => {
                let fenced = self.claims.contains_key(&epoch.next());
                return fenced.then(|| Input::Fenced { epoch, why: "the next claim is there".into() });
            }
            Effect::LookAtOwner { epoch } => {
                let owner = self.claims.get(&epoch).map(|file| file.node);
                return Some(Input::OwnerStopped(owner.is_some_and(|owner| self.nodes[owner].frozen)));
            }
            Effect::Left => {
                let attempts: Vec<_> = self.nodes[node].attempts.keys().copied().collect();
                for attempt in attempts {
                    self.unlink(node, attempt);
                }
                self.nodes[node].alive = false;
            }
            Effect::Event(event) => self.events.push((node, event)),
            Effect::RefusePromote { .. }
            | Effect::ResumeReign { .. }
            | Effect::Collect { .. }
            | Effect::Role(_) => {}
        }
        None
    }

    fn listing(&self) -> Listing {
        let claim = self.claims.last_key_value().map(|(&epoch, file)| ClaimSeen {
            epoch,
            address: Some(address(file.kit)),
            owner: Some(self.nodes[file.node].session),
            lock: file.lock,
            readable: true,
        });
        Listing { claim, highest_complete: self.complete, too_new: None }
    }

    fn kit_of(&mut self, node: usize) -> u64 {
        if let Some(kit) = self.nodes[node].kit {
            return kit;
        }
        let kit = self.kits.len() as u64 + 1;
        self.kits.insert(kit, Kit { node, backlog: Vec::new() });
        self.nodes[node].kit = Some(kit);
        kit
    }

    fn link(&mut self, node: usize, epoch: Epoch) {
        self.nodes[node].claiming = false;
        let kit = self.kit_of(node);
        let result = if self.claims.contains_key(&epoch) {
            ClaimResult::Exists
        } else {
            self.nodes[node].kit = None;
            self.claims.insert(epoch, ClaimFile { node, kit, lock: Lock::Held });
            if self.epoch() > epoch {
                self.at(Duration::ZERO, Happening::Release(epoch));
                ClaimResult::Superseded
            } else {
                self.nodes[node].won = Some((epoch, kit));
                ClaimResult::Won
            }
        };
        self.handle(node, Input::Claimed { epoch, result });
    }

    fn begin(&mut self, node: usize, epoch: Epoch) {
        let (won, kit) = self.nodes[node].won.take().expect("begins what it won");
        assert_eq!(won, epoch);
        assert!(self.nodes[node].reign.is_none(), "one reign at a time");
        self.nodes[node].reign = Some(Reign { epoch, kit, links: Vec::new() });
        for (from, attempt) in std::mem::take(&mut self.kits.get_mut(&kit).unwrap().backlog) {
            self.at(MICRO * 50, Happening::Hello { kit, from, attempt });
        }
        self.at(ms(1), Happening::PingDue(node, epoch));
    }

    fn hello(&mut self, kit: u64, from: usize, attempt: u64) {
        if !self.nodes[from].attempts.contains_key(&attempt) {
            return;
        }
        let Some(node) = self.kits.get(&kit).map(|kit| kit.node) else { return self.fail(from, attempt) };
        if !self.nodes[node].alive {
            return self.fail(from, attempt);
        }
        let reigns = self.nodes[node].reign.as_ref().is_some_and(|reign| reign.kit == kit);
        let waits =
            self.nodes[node].kit == Some(kit) || self.nodes[node].won.is_some_and(|(_, won)| won == kit);
        if self.nodes[node].frozen {
            let hello = Happening::Hello { kit, from, attempt };
            return self.nodes[node].deferred.push(hello);
        }
        if reigns {
            return self.welcome(node, from, attempt);
        }
        match self.kits.get_mut(&kit) {
            Some(kit) if waits => kit.backlog.push((from, attempt)),
            Some(_) | None => self.fail(from, attempt),
        }
    }

    fn welcome(&mut self, node: usize, from: usize, attempt: u64) {
        let Some(reign) = &mut self.nodes[node].reign else { return };
        let epoch = reign.epoch;
        if self.claims.contains_key(&epoch.next()) {
            self.at(Duration::ZERO, Happening::Eof(from, attempt));
            return self.handle(node, Input::Fenced { epoch, why: "the next claim is there".into() });
        }
        reign.links.push((from, attempt));
        let owner = self.nodes[node].session;
        self.nodes[from].attempts.insert(attempt, true);
        self.nodes[from].heard = self.now;
        self.at(MICRO * 100, Happening::Told(from, Input::Welcomed { attempt, epoch, owner }));
    }

    fn fail(&mut self, from: usize, attempt: u64) {
        self.nodes[from].attempts.remove(&attempt);
        let failure = ConnectFailure::Refused;
        self.at(Duration::ZERO, Happening::Told(from, Input::ConnectFailed { attempt, failure }));
    }

    fn unlink(&mut self, node: usize, attempt: u64) {
        self.nodes[node].attempts.remove(&attempt);
        for owner in &mut self.nodes {
            if let Some(reign) = &mut owner.reign {
                reign.links.retain(|&link| link != (node, attempt));
            }
        }
    }

    fn end_links(&mut self, node: usize, micros: u64) {
        let Some(reign) = self.nodes[node].reign.take() else { return };
        for (from, attempt) in reign.links {
            let after = MICRO * u32::try_from(100 + self.draw(micros)).unwrap();
            self.at(after, Happening::Eof(from, attempt));
        }
    }

    fn send(&mut self, node: usize, to: Option<SessionId>, input: &Input) {
        let Some(reign) = &self.nodes[node].reign else { return };
        let links = reign.links.clone();
        for (from, attempt) in links {
            if to.is_none_or(|to| to == self.nodes[from].session) {
                self.at(MICRO * 50, Happening::Frame(from, attempt, input.clone()));
            }
        }
    }

    fn ping(&mut self, node: usize, epoch: Epoch) {
        let Some(reign) = &self.nodes[node].reign else { return };
        if reign.epoch != epoch {
            return;
        }
        let mut able: Vec<_> = reign.links.iter().map(|&(n, _)| n).collect();
        able.retain(|&n| self.nodes[n].rank != Rank::Observer);
        able.sort_by_key(|&n| std::cmp::Reverse(self.nodes[n].rank));
        let heir = |&n: &usize| {
            let node = &self.nodes[n];
            let kit: Option<KitAddress> = node.kit.map(address);
            Heir { session: node.session, current: kit.is_some(), kit, rank: node.rank, age: Age::Same }
        };
        let ping = Ping { heirs: able.iter().take(2).map(heir).collect(), ..Ping::default() };
        self.send(node, None, &Input::Ping(ping.clone()));
        self.at(ms(250), Happening::PingDue(node, epoch));
        self.handle(node, Input::Ping(ping));
    }
}
