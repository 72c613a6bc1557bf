//! The processes of a run, as the parent sees them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use tokio::{sync::mpsc, time::Instant};

use super::{
    args::RunArgs,
    child::ChildProcess,
    clock::now_ns,
    control::{Counters, FeedCommand, FeedLine, Place, SessionCommand, SessionLine},
    log::{Progress, Tail},
    message::Versioned,
    table::Table,
};

/// How often the parent looks at logs and conditions.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How often the primary's memory is read.
const MEASURE_EVERY: Duration = Duration::from_millis(200);

/// Time for a session that has left to end its process.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// Where a session process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Started, not yet a member.
    Joining,
    /// A member.
    Member,
    /// A member that was stopped.
    Frozen,
    /// Killed on purpose.
    Killed,
    /// Asked to leave.
    Leaving,
    /// Left as asked.
    Left,
    /// Ended, and nobody asked for it.
    Failed,
}

/// A session process.
#[derive(Debug)]
pub struct Member {
    /// Name shown to people.
    pub name: String,
    /// The process.
    pub process: ChildProcess,
    /// What it delivered.
    pub log: PathBuf,
    /// Where it is in its life.
    pub life: Life,
    /// Its place in the group, as it last said.
    pub place: Place,
    /// From when on every event must reach it.
    pub joined_ns: Option<u64>,
    /// Version of the outage key that its query shows.
    pub outage_version: u64,
    /// What its queries showed when it was last asked.
    pub values: Option<BTreeMap<String, Versioned>>,
    /// Why its last command was refused.
    pub refused: Option<String>,
    tail: Option<Tail>,
}

impl Member {
    /// How far its log is.
    pub fn progress(&self) -> Progress {
        self.tail.as_ref().map(Tail::progress).unwrap_or_default()
    }

    /// Whether it runs as a member.
    pub fn is_member(&self) -> bool {
        self.life == Life::Member
    }
}

/// The built-in feed's process.
#[derive(Debug)]
struct FeedProcess {
    process: ChildProcess,
    tail: Option<Tail>,
}

/// What the feed ended with.
#[derive(Debug, Clone, PartialEq)]
pub struct Paused {
    /// The last number.
    pub seq: u64,
    /// The final value of each key.
    pub values: BTreeMap<String, Versioned>,
}

#[derive(Debug)]
enum Report {
    Feed(Option<FeedLine>),
    Session(usize, Option<SessionLine>),
}

/// All processes of a run. They end when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    run: RunArgs,
    dir: PathBuf,
    to_self: mpsc::UnboundedSender<Report>,
    reports: mpsc::UnboundedReceiver<Report>,
    feed: Option<FeedProcess>,
    port: Option<u16>,
    next_look: Instant,
    next_measure: Instant,
    table: Table,
    /// Every session that was ever started, in order.
    pub members: Vec<Member>,
    /// What the feed saw of its consumers.
    pub counters: Counters,
    /// What the feed ended with, once paused.
    pub paused: Option<Paused>,
    /// The most memory a primary used.
    pub primary_rss_kib: Option<u64>,
    /// Epochs in which some session was primary.
    pub epochs: BTreeSet<u64>,
    /// What went wrong apart from the comparison.
    pub failures: Vec<String>,
}

impl Fleet {
    /// A fleet without processes, whose files are in `dir`.
    pub fn new(run: RunArgs, dir: &Path) -> Self {
        let (to_self, reports) = mpsc::unbounded_channel();
        Self {
            table: Table::new(),
            run,
            dir: dir.to_owned(),
            to_self,
            reports,
            feed: None,
            port: None,
            next_look: Instant::now(),
            next_measure: Instant::now(),
            members: Vec::new(),
            counters: Counters::default(),
            paused: None,
            primary_rss_kib: None,
            epochs: BTreeSet::new(),
            failures: Vec::new(),
        }
    }

    /// Where the feed logs what it publishes.
    pub fn feed_log(&self) -> PathBuf {
        self.dir.join("feed.log")
    }

    /// Starts the built-in feed.
    pub fn start_feed(&mut self) -> io::Result<()> {
        let mut args =
            vec!["feed".into(), format!("--rate={}", self.run.rate), option("log", self.feed_log())];
        args.extend(self.run.no_resume.then(|| "--no-resume".into()));
        args.extend(self.run.without.then(|| "--admit-all".into()));
        let to = self.to_self.clone();
        let process = ChildProcess::spawn(&args, move |line| {
            // Nobody listens when the run is over.
            let _ = to.send(Report::Feed(line));
        })?;
        self.feed = Some(FeedProcess { process, tail: None });
        Ok(())
    }

    /// Whether the feed is the built-in one.
    pub fn has_feed(&self) -> bool {
        self.feed.is_some()
    }

    /// Whether the feed told its port.
    pub fn feed_listens(&self) -> bool {
        self.port.is_some()
    }

    /// Starts one more session.
    pub fn start_session(&mut self) -> io::Result<usize> {
        let index = self.members.len();
        let name = format!("s{}", index + 1);
        let log = self.dir.join(format!("{name}.log"));
        let url = match (&self.run.url, self.port) {
            (Some(url), _) => url.clone(),
            (None, Some(port)) => format!("ws://127.0.0.1:{port}/metrics"),
            (None, None) => return Err(io::Error::other("the feed does not listen yet")),
        };
        let group = if self.run.without { format!("one-wire-{name}") } else { "one-wire".to_owned() };
        let mut args = vec![
            "session".into(),
            format!("--name={name}"),
            format!("--group={group}"),
            option("state-dir", self.dir.join("state")),
            option("log", log.clone()),
            format!("--url={url}"),
        ];
        if self.run.url.is_some() {
            args.push("--foreign".into());
            args.extend(self.run.position_path.as_ref().map(|path| format!("--position-path={path}")));
            args.extend(self.run.resume_query.as_ref().map(|name| format!("--resume-query={name}")));
        } else {
            args.push("--position-path=$.seq".into());
            args.extend((!self.run.no_resume).then(|| "--resume-query=since".into()));
        }
        if let (Some(inject), 0) = (self.run.inject, index) {
            args.push(format!("--inject={inject:?}").to_lowercase());
        }
        let to = self.to_self.clone();
        let process = ChildProcess::spawn(&args, move |line| {
            // Nobody listens when the run is over.
            let _ = to.send(Report::Session(index, line));
        })?;
        self.members.push(Member {
            name,
            process,
            log,
            life: Life::Joining,
            place: Place::default(),
            joined_ns: None,
            outage_version: 0,
            values: None,
            refused: None,
            tail: None,
        });
        Ok(index)
    }

    /// Watches until `done`, for `limit` at most; false if it did not come to that, or a process failed meanwhile.
    pub async fn until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = Instant::now() + limit;
        let failures = self.failures.len();
        loop {
            self.look();
            if done(self) {
                return true;
            }
            if Instant::now() >= end || self.failures.len() > failures {
                return false;
            }
            let wake = self.next_look.min(end);
            tokio::select! {
                Some(report) = self.reports.recv() => self.apply(report),
                () = tokio::time::sleep_until(wake) => {}
            }
            while let Ok(report) = self.reports.try_recv() {
                self.apply(report);
            }
        }
    }

    /// The running session that says it is primary of the highest epoch.
    pub fn primary(&self) -> Option<usize> {
        let primaries =
            self.members.iter().enumerate().filter(|(_, one)| one.is_member() && one.place.is_primary());
        primaries.max_by_key(|(_, one)| one.place.epoch).map(|(index, _)| index)
    }

    /// Indexes of the running members.
    pub fn running(&self) -> Vec<usize> {
        self.members.iter().enumerate().filter(|(_, one)| one.is_member()).map(|(index, _)| index).collect()
    }

    /// How far the feed's own log is.
    pub fn published(&self) -> Progress {
        self.feed.as_ref().and_then(|feed| feed.tail.as_ref()).map(Tail::progress).unwrap_or_default()
    }

    /// Sends a signal to a session; returns when it was sent.
    pub fn signal(&mut self, index: usize, signal: Signal) -> io::Result<u64> {
        let member = &mut self.members[index];
        member.life = match signal {
            Signal::KILL => Life::Killed,
            Signal::STOP => Life::Frozen,
            _ => Life::Member,
        };
        let at_ns = now_ns();
        member.process.signal(signal)?;
        Ok(at_ns)
    }

    /// Sends a command to a session; returns when it was sent.
    pub async fn command(&mut self, index: usize, command: SessionCommand) -> u64 {
        let member = &mut self.members[index];
        if command == SessionCommand::Leave {
            member.life = Life::Leaving;
        }
        if command == SessionCommand::Final {
            member.values = None;
        }
        let at_ns = now_ns();
        member.process.tell(&command).await;
        at_ns
    }

    /// Lets the feed publish no more.
    pub async fn pause_feed(&mut self) {
        if let Some(feed) = &mut self.feed {
            feed.process.tell(&FeedCommand::Pause).await;
        }
    }

    /// Says something that happened, beside the live table.
    pub fn tell(&mut self, what: &str) {
        self.table.say(what);
    }

    /// Waits for the end of processes that were told to end, and ends the others.
    pub async fn end(&mut self) {
        for member in &mut self.members {
            let patience = if member.life == Life::Left { LEAVE_LIMIT } else { Duration::ZERO };
            if tokio::time::timeout(patience, member.process.ended()).await.is_err() {
                // Nothing is left to do for a process that cannot be killed.
                let _ = member.process.kill().await;
            }
        }
        if let Some(feed) = &mut self.feed {
            let _ = feed.process.kill().await;
        }
        self.table.close();
    }

    /// Reads what was logged since the last look: how far everybody is at this moment.
    pub fn read_logs(&mut self) {
        let feed_log = self.feed_log();
        if let Some(feed) = &mut self.feed {
            follow(&mut feed.tail, &feed_log, &mut self.failures);
        }
        for member in &mut self.members {
            if matches!(member.life, Life::Joining | Life::Member | Life::Frozen | Life::Leaving) {
                follow(&mut member.tail, &member.log, &mut self.failures);
            }
        }
    }

    fn look(&mut self) {
        let now = Instant::now();
        if now < self.next_look {
            return;
        }
        self.next_look = now + LOOK_EVERY;
        self.read_logs();
        if now >= self.next_measure {
            self.next_measure = now + MEASURE_EVERY;
            let used = self.primary().and_then(|index| self.members[index].process.resident_kib());
            self.primary_rss_kib = self.primary_rss_kib.max(used);
        }
        let published = self.published();
        self.table.draw(&self.members, published, self.counters);
    }

    fn apply(&mut self, report: Report) {
        match report {
            Report::Feed(Some(FeedLine::Listening { port })) => self.port = Some(port),
            Report::Feed(Some(FeedLine::Counters(counters))) => self.counters = counters,
            Report::Feed(Some(FeedLine::Paused { seq, values, counters })) => {
                self.counters = counters;
                self.paused = Some(Paused { seq, values });
            }
            Report::Feed(None) => self.failures.push("the feed ended by itself".to_owned()),
            Report::Session(index, line) => self.apply_session(index, line),
        }
    }

    fn apply_session(&mut self, index: usize, line: Option<SessionLine>) {
        let member = &mut self.members[index];
        let expected = matches!(member.life, Life::Killed | Life::Left | Life::Failed);
        match line {
            // What a process said before it was killed no longer holds.
            Some(_) if expected => {}
            Some(SessionLine::Joined { at_ns }) => {
                member.joined_ns = Some(at_ns);
                member.life = Life::Member;
            }
            Some(SessionLine::State(place)) => {
                if place.is_primary() {
                    self.epochs.insert(place.epoch);
                }
                member.place = place;
            }
            Some(SessionLine::Outage { version }) => member.outage_version = version,
            Some(SessionLine::Gap { what }) => {
                self.table.say(&format!("{} was told of a gap: {what}", member.name))
            }
            Some(SessionLine::Final { values }) => member.values = Some(values),
            Some(SessionLine::Refused { why }) => member.refused = Some(why),
            Some(SessionLine::Ended { error: Some(error) }) => {
                self.failures.push(format!("{}: {error}", member.name));
                member.life = Life::Failed;
            }
            Some(SessionLine::Ended { error: None }) if member.life == Life::Leaving => {
                member.life = Life::Left
            }
            Some(SessionLine::Ended { error: None }) | None if !expected => {
                self.failures.push(format!("{}: ended by itself", member.name));
                member.life = Life::Failed;
            }
            Some(SessionLine::Ended { error: None }) | None => {}
        }
    }
}

fn option(name: &str, path: PathBuf) -> String {
    format!("--{name}={}", path.display())
}

/// Opens a log when it is there and reads on.
fn follow(tail: &mut Option<Tail>, log: &Path, failures: &mut Vec<String>) {
    if tail.is_none() {
        *tail = Tail::open(log).ok();
    }
    if let Some(Err(error)) = tail.as_mut().map(Tail::advance) {
        failures.push(format!("log {}: {error}", log.display()));
    }
}
