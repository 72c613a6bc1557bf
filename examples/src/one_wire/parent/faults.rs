//! The faults, one after the other, each followed until the group is whole again.

use std::{io, time::Duration};

use rustix::process::Signal;
use tokio::time::Instant;

use super::{END_LIMIT, Parent, START_LIMIT};
use crate::one_wire::{
    args::RunArgs,
    clock::now_ns,
    control::SessionCommand,
    fleet::{Fleet, Life, Member},
    schedule::{Fault, FaultKind, Handover, schedule},
    verify::Takeover,
};

/// Time for a group to come to rest after a fault; suspicion of a frozen primary takes two seconds of it.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

impl Parent {
    /// Runs for the time asked for, and until all faults are done or one of them did not settle.
    pub(super) async fn faults(&mut self) -> io::Result<()> {
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
        let mark = Mark::of(&mut self.fleet);
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
        let mark = Mark::of(&mut self.fleet);
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
    fn of(fleet: &mut Fleet) -> Self {
        fleet.read_logs();
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
pub(super) fn places(fleet: &Fleet) -> String {
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
