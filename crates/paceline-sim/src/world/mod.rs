//! The world: one heap of due events, one clock, one generator, and everything they act on.

mod callers;
mod election;
mod faults;
mod follower;
mod hub;
mod outbox;
mod queries;
mod settle;
mod tamper;
mod tasks;
mod turn;
mod upstream;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use paceline_proto::{
    election::{Config, Election, Input, Role},
    event::Event as Observed,
    fetch::FetchId,
    follower::{Config as FollowerConfig, Follower},
    id::{Epoch, Place, SessionId},
    message::Rank,
    program::{Program, ProtoRange},
    time::Time,
};

use queries::Server;

use crate::{
    counters::Counters,
    disk::{Disk, Pid},
    fact::Fact,
    feed::Feed,
    invariants::{Invariants, View, Violation},
    mutant::Mutant,
    net::{ConnId, End, Net},
    process::{Caller, ElectionMail, Link, Outbox, Process, Run},
    random::Random,
    scenario::{Point, Scenario},
};

/// Something due.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// A process's thread runs.
    Turn(Pid),
    /// Blocking work makes its next step.
    Task(Pid, u64),
    /// A message or the end arrived.
    Readable(ConnId, End),
    /// A feed's message arrived at its consumer.
    UpstreamReadable(Pid, usize),
    /// The owner's upstream actor tries to connect.
    UpstreamConnect(Pid, usize, u64),
    /// An attempt heard nothing.
    AttemptTimeout(Pid, u64),
    /// The kernel closes a dead process's sockets.
    SocketsClose(Pid),
    /// The kernel releases a dead process's locks.
    LocksFree(Pid),
    /// SIGCONT.
    Continue(Pid),
    /// A session starts.
    Start(Rank),
    /// A socket path is back.
    PathRestored(String),
    /// There is room on the disk again.
    DiskRestored,
    /// A feed publishes.
    FeedTick(usize),
    /// A feed asks whether its consumer lives.
    FeedPing(usize),
    /// A feed notices the end of a connection.
    FeedDrop(usize, u64),
    /// A caller does something.
    CallerTick,
    /// A fault strikes.
    FaultTick,
    /// The machine starts again.
    PowerOn,
    /// A feed answers a fetch: feed, key, where the key stood at the owner when it began.
    FetchAnswered(usize, usize, Place),
    /// A request of a session's attempt arrived at the server: process, reign, attempt, key.
    ServerAsked(Pid, Epoch, FetchId, usize),
    /// Its answer: the value, or a failure.
    ServerAnswered(Pid, Epoch, FetchId, Option<u64>),
    /// Faults stop.
    Heal,
    /// Has the group come to rest?
    HealCheck,
}

impl Event {
    /// It goes on while the machine is suspended.
    fn is_outside(&self) -> bool {
        matches!(
            self,
            Self::FeedTick(_) | Self::FeedPing(_) | Self::FeedDrop(..) | Self::Heal | Self::HealCheck
        )
    }
}

/// Which part of a run it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Chaos,
    Healing,
    Done,
}

/// One run's state.
pub(crate) struct World {
    pub now: Time,
    pub step: u64,
    pub random: Random,
    pub scenario: Scenario,
    pub mutant: Option<Mutant>,
    pub phase: Phase,
    pub disk: Disk,
    pub net: Net,
    pub feeds: Vec<Feed>,
    pub processes: BTreeMap<Pid, Process>,
    pub counters: Counters,
    pub violations: Vec<Violation>,
    pub tracing: bool,
    pub lines: Vec<String>,
    /// Which sessions' followers saw which message of which feed.
    pub seen: Vec<BTreeMap<u64, BTreeSet<SessionId>>>,
    /// Ranges (after, upto] of each feed over which a session was shown a gap.
    pub gaps: Vec<Vec<(SessionId, u64, u64)>>,
    /// Tokens of operations that a dead session held.
    pub dead_tokens: BTreeSet<u64>,
    /// Acknowledged tokens that somebody held after every death so far.
    pub owed_tokens: BTreeSet<u64>,
    pub next_token: u64,
    pub server: Server,
    /// When the feeds said their last words.
    pub spoke_last: Option<Time>,
    pub heal_until: Time,
    pub powered: bool,
    /// The machine sleeps until then.
    pub suspended_until: Time,
    invariants: Invariants,
    heap: BinaryHeap<Reverse<(Time, u64, Event)>>,
    next_event: u64,
    next_pid: u32,
    next_conn: u64,
}

/// Appends a line to the trace, if one is kept.
macro_rules! log {
    ($world:expr, $($arg:tt)*) => {
        if $world.tracing {
            let line = format!("{:?} #{} {}", $world.now, $world.step, format_args!($($arg)*));
            $world.lines.push(line);
        }
    };
}
pub(crate) use log;

/// The program of a session of the release `release` of 0 to `newest`: all have versions in common, and what the newest
/// stores the oldest cannot read.
fn program(pid: u32, release: u16, newest: u16) -> Program {
    let mut program = Program::new(format!("sim {release}"), pid);
    program.release.minor += release;
    program.proto = ProtoRange { min: 1 + release / 2, max: 2 + release };
    if release > 0 {
        program.schema = 2;
        program.min_reader = if release == newest { 2 } else { 1 };
    }
    program
}

impl World {
    pub fn new(seed: u64, scenario: Scenario, mutant: Option<Mutant>, tracing: bool) -> Self {
        let mut random = Random::new(seed);
        let feeds: Vec<Feed> = scenario
            .feeds
            .iter()
            .enumerate()
            .map(|(index, kind)| {
                Feed::new(index, *kind, 1 + random.below(2) as usize, 2 + random.below(3) as usize)
            })
            .collect();
        let seen = feeds.iter().map(|_| BTreeMap::new()).collect();
        let gaps = feeds.iter().map(|_| Vec::new()).collect();
        let mut world = Self {
            // Away from zero, so that "never" and "at the start" differ.
            now: Time(1_000_000_000),
            step: 0,
            random,
            scenario,
            mutant,
            phase: Phase::Chaos,
            disk: Disk::default(),
            net: Net::default(),
            feeds,
            processes: BTreeMap::new(),
            counters: Counters::default(),
            violations: Vec::new(),
            tracing,
            lines: Vec::new(),
            seen,
            gaps,
            dead_tokens: BTreeSet::new(),
            owed_tokens: BTreeSet::new(),
            next_token: 0,
            server: Server::default(),
            spoke_last: None,
            heal_until: Time::NEVER,
            powered: true,
            suspended_until: Time::ZERO,
            invariants: Invariants::default(),
            heap: BinaryHeap::new(),
            next_event: 0,
            next_pid: 0,
            next_conn: 0,
        };
        world.schedule_start();
        world
    }

    fn schedule_start(&mut self) {
        let (observers, preferred) = (self.scenario.observers, self.scenario.preferred);
        for n in 0..self.scenario.sessions {
            let rank = match n {
                n if n < preferred => Rank::Preferred,
                n if n < preferred + observers => Rank::Observer,
                _ => Rank::Candidate,
            };
            let delay = self.random.millis(0, self.scenario.start_within_ms);
            self.after(delay, Event::Start(rank));
        }
        for feed in 0..self.feeds.len() {
            self.after(Duration::from_millis(5), Event::FeedTick(feed));
            self.after(Duration::from_millis(250), Event::FeedPing(feed));
        }
        self.after(Duration::from_millis(20), Event::CallerTick);
        if self.scenario.fault_ms > 0 {
            self.after(Duration::from_millis(300), Event::FaultTick);
        }
        self.after(Duration::from_millis(self.scenario.chaos_ms), Event::Heal);
    }

    /// Runs to the end of the heal phase, or to the first violation.
    pub fn run(&mut self) {
        while self.phase != Phase::Done && self.violations.is_empty() {
            let Some(Reverse((due, _, event))) = self.heap.pop() else { break };
            self.now = self.now.max(due);
            self.dispatch(event);
        }
        if self.violations.is_empty() {
            let view = View {
                disk: &self.disk,
                feeds: &self.feeds,
                now: self.now,
                step: self.step,
                seen: &self.seen,
            };
            self.invariants.finish(&view, &mut self.violations);
        }
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Turn(pid) => self.turn(pid),
            Event::Task(pid, task) => self.task_due(pid, task),
            Event::Readable(conn, end) => self.readable(conn, end),
            Event::UpstreamReadable(pid, feed) => self.upstream_readable(pid, feed),
            Event::UpstreamConnect(pid, feed, token) => self.upstream_connect_due(pid, feed, token),
            Event::AttemptTimeout(pid, attempt) => self.attempt_timed_out(pid, attempt),
            Event::SocketsClose(pid) => self.close_sockets(pid),
            Event::LocksFree(pid) => self.free_locks(pid),
            Event::Continue(pid) => self.continue_process(pid),
            Event::Start(rank) => self.start_session(rank),
            Event::PathRestored(socket) => self.restore_path(&socket),
            Event::DiskRestored => self.disk.full = false,
            Event::FeedTick(feed) => self.feed_tick(feed),
            Event::FeedPing(feed) => self.feed_ping(feed),
            Event::FeedDrop(feed, conn) => self.feed_drop(feed, conn),
            Event::CallerTick => self.caller_tick(),
            Event::FaultTick => self.fault_tick(),
            Event::PowerOn => self.power_on(),
            Event::FetchAnswered(feed, key, base) => self.fetch_answered(feed, key, base),
            Event::ServerAsked(pid, epoch, id, n) => self.server_asked(pid, epoch, id, n),
            Event::ServerAnswered(pid, epoch, id, number) => self.server_answered(pid, epoch, id, number),
            Event::Heal => self.heal(),
            Event::HealCheck => self.heal_check(),
        }
    }

    /// Schedules an event.
    pub fn at(&mut self, due: Time, event: Event) {
        let due = if event.is_outside() { due } else { due.max(self.suspended_until) };
        self.next_event += 1;
        self.heap.push(Reverse((due, self.next_event, event)));
    }

    /// Schedules an event.
    pub fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    /// The machine was suspended for `by`: its own clock jumped, everything on it happens later. Feeds go on.
    pub fn shift_local_events(&mut self, by: Duration) {
        let events = std::mem::take(&mut self.heap).into_vec();
        let shifted = events.into_iter().map(|Reverse((due, id, event))| {
            Reverse((if event.is_outside() { due } else { due + by }, id, event))
        });
        self.heap = shifted.collect();
        for process in self.processes.values_mut() {
            // Its scheduled turn moved with the heap.
            process.next_turn = process.next_turn.map(|due| due + by);
        }
    }

    /// Tells the invariants.
    pub fn tell(&mut self, fact: &Fact) {
        let view =
            View { disk: &self.disk, feeds: &self.feeds, now: self.now, step: self.step, seen: &self.seen };
        self.invariants.observe(fact, &view, &mut self.violations);
    }

    /// Notes a violation that the world itself saw.
    pub fn violated(&mut self, invariant: &'static str, what: String) {
        self.violations.push(Violation { invariant, what });
    }

    /// Which owners would pass their fence now.
    pub fn tell_unfenced(&mut self) {
        let owners = self.processes.values().filter(|process| process.alive());
        let held = owners.flat_map(|process| {
            let won = process.won.as_ref().map(|(epoch, kit)| (process.pid, *epoch, kit.inode));
            let reign = process.reign.map(|(epoch, inode)| (process.pid, epoch, inode));
            [won, reign].into_iter().flatten()
        });
        let mut unfenced: Vec<(Pid, u64)> = held
            .filter(|(_, epoch, inode)| {
                self.disk.successor_absent(*epoch) && self.disk.own_claim_stands(*epoch, *inode)
            })
            .map(|(pid, epoch, _)| (pid, epoch))
            .collect();
        unfenced.sort_unstable();
        unfenced.dedup();
        self.tell(&Fact::Unfenced(unfenced));
    }

    /// Counts an observable event.
    pub fn observed(&mut self, pid: Pid, event: &Observed) {
        log!(self, "{} event {event}", pid.0);
        self.counters.add(event.kind());
    }

    /// A fault may strike here.
    pub fn point(&mut self, pid: Pid, point: Point) {
        if self.phase != Phase::Chaos || !self.processes.get(&pid).is_some_and(|p| p.run == Run::Running) {
            return;
        }
        let scarce = if point == Point::Effect { 20 } else { 1 };
        let focused = self.scenario.focus == Some(point) && self.random.chance(500);
        let stop = self.scenario.point_stop > 0
            && self.random.below(1000 * scarce) < u64::from(self.scenario.point_stop);
        let kill = self.scenario.point_kill > 0
            && self.random.below(1000 * scarce) < u64::from(self.scenario.point_kill);
        if kill && !focused {
            log!(self, "{} killed at {point:?}", pid.0);
            self.kill(pid);
        } else if stop || focused {
            log!(self, "{} stopped at {point:?}", pid.0);
            self.stop(pid);
        }
    }

    fn start_session(&mut self, rank: Rank) {
        if !self.powered {
            return;
        }
        self.next_pid += 1;
        let pid = Pid(self.next_pid);
        let session = SessionId(u128::from(self.next_pid) << 64 | (self.random.id() & 0xffff_ffff));
        // Where all are the same nothing is drawn: seeds of other scenarios stay what they are.
        let newest = self.scenario.releases - 1;
        let release = match self.phase {
            Phase::Chaos if newest > 0 => self.random.below(u64::from(newest) + 1) as u16,
            _ => newest,
        };
        let program = program(self.next_pid, release, newest);
        let seed = self.random.draw();
        let process = Process {
            pid,
            session,
            rank,
            program: program.clone(),
            run: Run::Running,
            election: Election::new(Config { session, rank, program }, seed),
            follower: Follower::new(FollowerConfig { session }),
            owned: None,
            outbox: Outbox::default(),
            upstreams: BTreeMap::new(),
            socket_epoch: Epoch::NONE,
            socket_closed: None,
            role: Role::Joining,
            synced: false,
            election_mail: [ElectionMail::In(Input::Start)].into(),
            hub_mail: [].into(),
            follower_mail: [].into(),
            socket_mail: [].into(),
            outbox_mail: [].into(),
            pending: [].into(),
            next_turn: None,
            busy_until: self.now,
            tasks: BTreeMap::new(),
            parked: Vec::new(),
            next_task: 0,
            kit: None,
            making_kit: false,
            reign: None,
            won: None,
            last_wake: self.now,
            heard: self.now,
            suspended_ms: 0,
            link: Link::None,
            parting: None,
            attempts: BTreeMap::new(),
            starved_until: if self.scenario.busy_us > 0 { Time::NEVER } else { Time::ZERO },
            starved_us: self.scenario.busy_us,
            slow_until: Time::ZERO,
            write_error: false,
            left: false,
            subscribed: Default::default(),
            linked_with: Default::default(),
            stale: Vec::new(),
            caller: Caller::default(),
        };
        log!(self, "{} starts as {rank:?}", pid.0);
        self.disk.sessions.insert(session, Some(pid));
        self.processes.insert(pid, process);
        self.subscribe_at_start(pid);
        if self.scenario.queries {
            self.declare(pid);
        }
        self.wake(pid);
    }

    /// A process that is alive or stopped.
    pub fn live(&mut self, pid: Pid) -> Option<&mut Process> {
        self.processes.get_mut(&pid).filter(|process| process.alive())
    }

    pub fn next_conn(&mut self) -> u64 {
        self.next_conn += 1;
        self.next_conn
    }

    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}
