//! The parent: starts everything, injects the faults, and compares what was delivered with what was published.

use std::{io, time::Duration};

use rustix::process::Signal;
use tokio::time::Instant;

use super::{
    args::RunArgs,
    child::TempDir,
    clock::now_ns,
    control::SessionCommand,
    fleet::{Fleet, Life, Member},
    log::{Record, read_log},
    report::{Document, Takeovers, Updates, Upstream},
    schedule::{Fault, FaultKind, Handover, schedule},
    verify::{Latency, Reference, Rules, SessionLog, Takeover, Tally, check_session, check_values, latency},
};

/// Time for processes to start and to join.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Time for a group to come to rest after a fault; suspicion of a frozen primary takes two seconds of it.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// Time for the last events and values to arrive.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What a run ended with.
#[derive(Debug)]
pub struct Outcome {
    /// The document.
    pub document: Document,
    /// Things worth knowing that do not decide the verdict.
    pub notes: Vec<String>,
}

/// Runs the whole example; `None` if `interrupted` came first. No process and no file of it is left afterwards.
///
/// # Errors
/// If files or processes cannot be made. A run that shows a fault of the runtime is no error but a failed verdict.
pub async fn run(args: RunArgs, interrupted: impl Future<Output = ()>) -> io::Result<Option<Outcome>> {
    let dir = TempDir::new("one-wire")?;
    std::fs::create_dir(dir.path().join("state"))?;
    let mut parent = Parent {
        fleet: Fleet::new(args.clone(), dir.path()),
        seed: args.seed.unwrap_or_else(|| now_ns() % 1_000_000),
        args,
        takeovers: Vec::new(),
        fenced_returns: 0,
        survivors: Vec::new(),
        start_ns: 0,
        end_ns: 0,
    };
    let worked = tokio::select! {
        worked = parent.work() => Some(worked),
        () = interrupted => None,
    };
    parent.fleet.end().await;
    match worked {
        None => Ok(None),
        Some(Err(error)) => Err(error),
        Some(Ok(())) => {
            if parent.args.keep {
                parent.fleet.tell(&format!("kept: {}", dir.keep().display()));
            }
            parent.judge().map(Some)
        }
    }
}

struct Parent {
    args: RunArgs,
    seed: u64,
    fleet: Fleet,
    takeovers: Vec<Takeover>,
    fenced_returns: u32,
    /// Sessions that lived to the end.
    survivors: Vec<usize>,
    start_ns: u64,
    end_ns: u64,
}

impl Parent {
    async fn work(&mut self) -> io::Result<()> {
        self.fleet.tell(&format!("seed {}", self.seed));
        if self.start().await? {
            self.faults().await?;
            self.finish().await;
        }
        Ok(())
    }

    /// Starts feed and sessions, and waits until all of them have joined; false if they do not.
    async fn start(&mut self) -> io::Result<bool> {
        let fleet = &mut self.fleet;
        if self.args.url.is_none() {
            fleet.start_feed()?;
            if !fleet.until(START_LIMIT, Fleet::feed_listens).await {
                fleet.failures.push("the feed does not listen".to_owned());
                return Ok(false);
            }
        }
        for _ in 0..self.args.sessions {
            fleet.start_session()?;
        }
        let sessions = self.args.sessions as usize;
        let joined = fleet
            .until(START_LIMIT, |fleet| {
                let flows = fleet.running().iter().all(|index| fleet.members[*index].progress().events > 0);
                fleet.running().len() == sessions && fleet.primary().is_some() && flows
            })
            .await;
        if !joined {
            let places = places(fleet);
            fleet.failures.push(format!("not all sessions joined: {places}"));
        }
        fleet.tell(&format!("{} sessions joined", fleet.running().len()));
        self.start_ns = now_ns();
        Ok(joined)
    }

    /// Runs for the time asked for, and until all faults are done or one of them did not settle.
    async fn faults(&mut self) -> io::Result<()> {
        let start = Instant::now();
        let RunArgs { kills, stops, handovers, duration, .. } = self.args;
        let faults = if self.args.without {
            Vec::new()
        } else {
            schedule(self.seed, kills, stops, handovers, duration)
        };
        for fault in faults {
            let due = fault.due.saturating_sub(start.elapsed());
            self.fleet.until(due, |_| false).await;
            if !self.fleet.failures.is_empty() || !self.inject(fault).await? {
                return Ok(());
            }
        }
        self.fleet.until(duration.saturating_sub(start.elapsed()), |_| false).await;
        Ok(())
    }

    /// Does one fault and waits until the group is whole again; false if it does not get there.
    async fn inject(&mut self, fault: Fault) -> io::Result<bool> {
        let fleet = &mut self.fleet;
        if !fleet.until(SETTLE_LIMIT, |fleet| fleet.primary().is_some()).await {
            return Ok(self.give_up("nobody is primary"));
        }
        let Some(target) = fleet.primary() else { return Ok(false) };
        let epoch = fleet.members[target].place.epoch;
        let name = fleet.members[target].name.clone();
        let (what, sent) = match (fault.kind, fault.handover) {
            (FaultKind::Sigkill, _) => ("killed", Some(fleet.signal(target, Signal::KILL)?)),
            (FaultKind::Sigstop, _) => ("frozen", Some(fleet.signal(target, Signal::STOP)?)),
            (FaultKind::Polite, Handover::Promote) => {
                ("asked to hand over", self.ask_to_hand_over(target, fault.choice).await)
            }
            (FaultKind::Polite, Handover::Leave) => {
                ("asked to leave", Some(fleet.command(target, SessionCommand::Leave).await))
            }
        };
        let survivors = self.fleet.running();
        let settled = match sent {
            Some(_) => self.settle(epoch, &survivors).await,
            None => None,
        };
        let (Some(signal_ns), Some(settled_ns)) = (sent, settled) else {
            return Ok(self.give_up(&format!("no takeover from {name}, {what} in epoch {epoch}")));
        };
        self.fleet.tell(&format!("{name}, primary of epoch {epoch}, {what}; the wire went on"));
        self.takeovers.push(Takeover { kind: fault.kind, signal_ns, settled_ns, survivors });
        match self.fleet.members[target].life {
            Life::Frozen => self.resume(target, epoch, fault.choice).await,
            Life::Killed | Life::Left | Life::Leaving => self.replace(target).await,
            Life::Joining | Life::Member | Life::Failed => Ok(true),
        }
    }

    /// Lets some other session ask for a handover; tells when the request was sent that was not refused. A refusal
    /// (no heir is ready yet, so soon after the last takeover) changes nothing and is followed by another request.
    async fn ask_to_hand_over(&mut self, target: usize, choice: u64) -> Option<u64> {
        let fleet = &mut self.fleet;
        let epoch = fleet.members[target].place.epoch;
        let others: Vec<usize> = fleet.running().into_iter().filter(|index| *index != target).collect();
        let asking = *others.get(usize::try_from(choice % others.len().max(1) as u64).unwrap_or(0))?;
        let end = Instant::now() + SETTLE_LIMIT;
        while Instant::now() < end {
            fleet.members[asking].refused = None;
            let sent_ns = fleet.command(asking, SessionCommand::Promote).await;
            let answered = |fleet: &Fleet| {
                let moved = fleet.primary().is_some_and(|index| fleet.members[index].place.epoch > epoch);
                moved || fleet.members[asking].refused.is_some()
            };
            if !fleet.until(SETTLE_LIMIT, answered).await {
                return None;
            }
            let Some(why) = fleet.members[asking].refused.clone() else { return Some(sent_ns) };
            fleet.tell(&format!("no handover yet: {why}"));
            fleet.until(Duration::from_millis(100), |_| false).await;
        }
        None
    }

    /// Waits until a successor of `epoch` is known to all survivors and updates flow in each of them; tells when.
    async fn settle(&mut self, epoch: u64, survivors: &[usize]) -> Option<u64> {
        let known = |fleet: &Fleet| {
            let Some(primary) = fleet.primary() else { return false };
            let reign = fleet.members[primary].place.epoch;
            reign > epoch && survivors.iter().all(|index| fleet.members[*index].place.epoch >= reign)
        };
        if !self.fleet.until(SETTLE_LIMIT, known).await {
            return None;
        }
        let mark = Mark::of(&self.fleet);
        let reached = |fleet: &Fleet| survivors.iter().all(|index| mark.reached(fleet, *index));
        self.fleet.until(SETTLE_LIMIT, reached).await.then(now_ns)
    }

    /// Lets a frozen session go on; it must come back as a follower of a later epoch, with all it missed.
    async fn resume(&mut self, target: usize, epoch: u64, choice: u64) -> io::Result<bool> {
        let pause = Duration::from_millis(choice % 400);
        self.fleet.until(pause, |_| false).await;
        let name = self.fleet.members[target].name.clone();
        if self.fleet.members[target].process.is_stopped() == Some(false) {
            self.fleet.failures.push(format!("{name} was not stopped while it was to be frozen"));
        }
        self.fleet.signal(target, Signal::CONT)?;
        self.fleet.tell(&format!("{name} resumed"));
        let back = |fleet: &Fleet| {
            let place = &fleet.members[target].place;
            place.role == "follower" && place.epoch > epoch
        };
        if !self.fleet.until(SETTLE_LIMIT, back).await {
            return Ok(self.give_up(&format!("{name} did not come back as a follower")));
        }
        self.fenced_returns += 1;
        let mark = Mark::of(&self.fleet);
        if !self.fleet.until(SETTLE_LIMIT, |fleet| mark.reached(fleet, target)).await {
            return Ok(self.give_up(&format!("{name} came back, but updates do not flow in it")));
        }
        Ok(true)
    }

    /// Starts a session for one that is gone.
    async fn replace(&mut self, gone: usize) -> io::Result<bool> {
        let member = &mut self.fleet.members[gone];
        if tokio::time::timeout(END_LIMIT, member.process.ended()).await.is_err() {
            let name = member.name.clone();
            return Ok(self.give_up(&format!("{name} does not end")));
        }
        let index = self.fleet.start_session()?;
        let joined = |fleet: &Fleet| {
            let member = &fleet.members[index];
            member.is_member() && member.place.epoch > 0 && member.progress().events > 0
        };
        if !self.fleet.until(START_LIMIT, joined).await {
            let name = self.fleet.members[index].name.clone();
            return Ok(self.give_up(&format!("{name} did not join")));
        }
        Ok(true)
    }

    fn give_up(&mut self, why: &str) -> bool {
        let places = places(&self.fleet);
        self.fleet.failures.push(format!("{why}: {places}"));
        false
    }

    /// Stops the feed, lets the last events arrive, asks for the values shown, and lets everybody leave.
    async fn finish(&mut self) {
        self.end_ns = now_ns();
        let fleet = &mut self.fleet;
        let members = fleet.running();
        self.survivors.clone_from(&members);
        if self.args.url.is_none() {
            fleet.pause_feed().await;
            fleet.until(END_LIMIT, |fleet| fleet.paused.is_some()).await;
            if let Some(last) = fleet.paused.as_ref().map(|paused| paused.seq) {
                let arrived =
                    |fleet: &Fleet| members.iter().all(|i| fleet.members[*i].progress().last >= last);
                // What did not arrive shows in the comparison.
                fleet.until(END_LIMIT, arrived).await;
            }
            self.final_values(&members).await;
        }
        let fleet = &mut self.fleet;
        for index in &members {
            fleet.command(*index, SessionCommand::Leave).await;
        }
        let left = |fleet: &Fleet| members.iter().all(|index| fleet.members[*index].life != Life::Leaving);
        if !fleet.until(END_LIMIT, left).await {
            let places = places(fleet);
            fleet.failures.push(format!("not all sessions left: {places}"));
        }
    }

    /// Asks for the values shown until they are those of the feed; what stays different shows in the comparison.
    async fn final_values(&mut self, members: &[usize]) {
        let Some(paused) = self.fleet.paused.clone() else { return };
        let end = Instant::now() + END_LIMIT;
        loop {
            for index in members {
                self.fleet.command(*index, SessionCommand::Final).await;
            }
            let answered = |fleet: &Fleet| members.iter().all(|index| fleet.members[*index].values.is_some());
            let answered = self.fleet.until(END_LIMIT, answered).await;
            let equal = |index: &usize| {
                let member = &self.fleet.members[*index];
                let mut reasons = Vec::new();
                let shown = member.values.clone().unwrap_or_default();
                check_values(&member.name, &paused.values, &shown, &mut reasons);
                reasons.is_empty()
            };
            if !answered || members.iter().all(equal) || Instant::now() >= end {
                return;
            }
            self.fleet.until(Duration::from_millis(50), |_| false).await;
        }
    }

    /// Compares the logs and writes the document.
    fn judge(mut self) -> io::Result<Outcome> {
        let mut reasons = std::mem::take(&mut self.fleet.failures);
        let rules = Rules { resumable: self.args.resumable() };
        let mut logs = self.session_logs()?;
        let reference = if self.args.url.is_none() {
            Reference::from_feed(&existing_log(&self.fleet.feed_log())?)
        } else {
            cut_to_common_end(&mut logs);
            Reference::from_sessions(logs.iter().map(|log| log.records.as_slice()))
        };
        let mut tally = Tally::default();
        for log in &logs {
            tally.add(check_session(&reference, log, rules, &mut reasons));
        }
        if let Some(paused) = &self.fleet.paused {
            for (member, _) in self.fleet.members.iter().zip(&logs).filter(|(_, log)| log.survived) {
                let shown = member.values.clone().unwrap_or_default();
                check_values(&member.name, &paused.values, &shown, &mut reasons);
            }
        }
        let measured = self.measure(&reference, &logs, &mut reasons);
        self.judge_run(&measured, &mut reasons);
        let notes = self.notes(tally, rules);
        let counters = self.args.url.is_none().then_some(self.fleet.counters);
        let document = Document {
            schema: 1,
            sessions: self.args.sessions,
            seed: self.seed,
            duration_s: (self.end_ns.saturating_sub(self.start_ns) / 1_000_000) as f64 / 1000.0,
            upstream: Upstream {
                connections_max: counters.map(|counters| counters.connections_max),
                connections_total: counters.map(|counters| counters.connections_total),
                refused: counters.map(|counters| counters.refused),
            },
            updates: Updates::new(reference.len() as u64, tally),
            takeover_ms: (!self.args.without).then(|| Takeovers::new(&measured)),
            fenced_returns: self.fenced_returns,
            primary_rss_kib: self.fleet.primary_rss_kib,
            verdict: if reasons.is_empty() { "ok" } else { "failed" },
            reasons,
        };
        Ok(Outcome { document, notes })
    }

    fn session_logs(&self) -> io::Result<Vec<SessionLog>> {
        let log = |(index, member): (usize, &Member)| {
            Ok(SessionLog {
                name: member.name.clone(),
                joined_ns: member.joined_ns,
                survived: self.survivors.contains(&index),
                records: existing_log(&member.log)?,
            })
        };
        self.fleet.members.iter().enumerate().map(log).collect()
    }

    fn measure(
        &self,
        reference: &Reference,
        logs: &[SessionLog],
        reasons: &mut Vec<String>,
    ) -> Vec<(FaultKind, Latency)> {
        let mut measured = Vec::new();
        for takeover in &self.takeovers {
            match latency(reference, logs, takeover) {
                Some(latency) => measured.push((takeover.kind, latency)),
                None => reasons.push("after a takeover, some session got no update".to_owned()),
            }
        }
        measured
    }

    /// What must hold for the run as a whole.
    fn judge_run(&self, measured: &[(FaultKind, Latency)], reasons: &mut Vec<String>) {
        let RunArgs { without, sessions, kills, stops, handovers, .. } = self.args;
        if self.args.url.is_none() {
            let (max, expected) =
                (self.fleet.counters.connections_max, if without { sessions.into() } else { 1 });
            if max != expected {
                reasons.push(format!("the feed saw {max} consumers at one time, not {expected}"));
            }
            if self.fleet.paused.is_none() {
                reasons.push("the feed did not come to its end".to_owned());
            }
        }
        if without {
            return;
        }
        let asked =
            [(FaultKind::Sigkill, kills), (FaultKind::Sigstop, stops), (FaultKind::Polite, handovers)];
        for (kind, asked) in asked {
            let done = measured.iter().filter(|one| one.0 == kind).count();
            if done != asked as usize {
                reasons.push(format!("{done} of {asked} takeovers of kind {kind:?} were done"));
            }
        }
        if self.fenced_returns != stops {
            reasons
                .push(format!("{} of {stops} frozen primaries came back as followers", self.fenced_returns));
        }
    }

    fn notes(&self, tally: Tally, rules: Rules) -> Vec<String> {
        let mut notes = vec![format!("epochs with a primary: {}", self.fleet.epochs.len())];
        let asked = self.takeovers.len() + 1;
        if !self.args.without && self.fleet.epochs.len() > asked {
            notes.push(format!("that is {} more than the faults explain", self.fleet.epochs.len() - asked));
        }
        if rules.resumable && tally.needless_gaps > 0 {
            notes.push(format!("{} gaps were told where nothing was lost", tally.needless_gaps));
        }
        if self.fleet.counters.silent > 0 {
            notes.push(format!("{} consumers fell silent and were dropped", self.fleet.counters.silent));
        }
        notes
    }
}

/// A place that updates must reach to be seen flowing.
struct Mark {
    number: u64,
    /// Events that each session had, for feeds whose numbers are not known.
    events: Vec<u64>,
    outage_version: u64,
    foreign: bool,
}

impl Mark {
    fn of(fleet: &Fleet) -> Self {
        let published = fleet.published();
        Self {
            number: published.last,
            events: fleet.members.iter().map(|member| member.progress().events).collect(),
            outage_version: fleet.counters.outage_version,
            foreign: published.events == 0,
        }
    }

    fn reached(&self, fleet: &Fleet, index: usize) -> bool {
        let member = &fleet.members[index];
        if self.foreign {
            return member.progress().events > self.events[index];
        }
        member.progress().last > self.number && member.outage_version >= self.outage_version
    }
}

/// Where everybody is, for a run that got stuck.
fn places(fleet: &Fleet) -> String {
    let gone = |life| matches!(life, Life::Killed | Life::Left);
    let place = |member: &Member| {
        let (place, progress) = (&member.place, member.progress());
        format!(
            "{} {:?} {} of {} {} at {}",
            member.name, member.life, place.role, place.epoch, place.connection, progress.last
        )
    };
    let places: Vec<String> = fleet.members.iter().filter(|one| !gone(one.life)).map(place).collect();
    places.join(", ")
}

/// A process that ended early may not have made its log.
fn existing_log(path: &std::path::Path) -> io::Result<Vec<Record>> {
    match read_log(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// A foreign feed does not stop, so sessions end at different places: what not all of them can have is left out.
fn cut_to_common_end(logs: &mut [SessionLog]) {
    let last = |log: &SessionLog| log.records.iter().rev().find_map(number);
    let Some(end) = logs.iter().filter(|log| log.survived).filter_map(last).min() else { return };
    for log in logs {
        log.records.retain(|record| number(record).is_none_or(|number| number <= end));
    }
}

fn number(record: &Record) -> Option<u64> {
    match record {
        Record::Event { number, .. } => Some(*number),
        Record::Gap { .. } => None,
    }
}
