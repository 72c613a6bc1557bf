//! A process's thread: which actor runs next, and effects carried out one by one, so that a stop or a kill can come
//! between any two of them.

use std::time::Duration;

use paceline_proto::{election::Input, limits::OWNER_GAP, time::Time};

use crate::{
    disk::{Inode, Pid},
    mutant::Mutant,
    process::{AfterFence, ElectionMail, FenceCheck, Pending, Run},
    scenario::Point,
    world::{Event, World, log},
};

/// Most steps before the thread lets time pass.
const BURST: u64 = 6;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Actor {
    Election,
    Hub,
    Follower,
    Socket,
    Outbox,
}

impl World {
    /// Makes sure the thread runs when it has something to do.
    pub fn wake(&mut self, pid: Pid) {
        let slack = self.random.micros(10, 400);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.run != Run::Running {
            return;
        }
        let due = if process.has_work() || process.suspended_ms > 0 {
            process.busy_until.max(self.now).max(self.suspended_until)
        } else if let Some(deadline) = process.deadline() {
            (deadline + slack).max(process.busy_until).max(self.now).max(self.suspended_until)
        } else {
            return;
        };
        if process.next_turn.is_none_or(|turn| turn > due) {
            process.next_turn = Some(due);
            self.at(due, Event::Turn(pid));
        }
    }

    pub(super) fn turn(&mut self, pid: Pid) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.run != Run::Running || process.next_turn != Some(self.now) {
            return;
        }
        process.next_turn = None;
        let steps = 1 + self.random.below(BURST);
        let mut cost = Duration::ZERO;
        for _ in 0..steps {
            if self.processes.get(&pid).is_none_or(|process| process.run != Run::Running)
                || !self.step_process(pid)
            {
                break;
            }
            cost += Duration::from_micros(2);
        }
        self.charge(pid, cost);
        self.exit_if_left(pid);
        self.wake(pid);
    }

    /// The thread was at work; a starved one waits for its next slice as well.
    fn charge(&mut self, pid: Pid, cost: Duration) {
        let mut until = self.now + cost + self.random.micros(1, 10);
        let Some(process) = self.processes.get(&pid) else { return };
        let (starved_until, starved_us) = (process.starved_until, process.starved_us);
        if starved_until > self.now && starved_us > 0 {
            // Mostly a slice, now and then far more: that is what a loaded machine looks like.
            let longest = if self.random.chance(20) { starved_us } else { starved_us / 40 };
            until = until + self.random.micros(0, longest);
        }
        if let Some(process) = self.processes.get_mut(&pid) {
            process.busy_until = until;
        }
    }

    /// One step; false when there is nothing to do.
    fn step_process(&mut self, pid: Pid) -> bool {
        self.step += 1;
        let Some(process) = self.processes.get_mut(&pid) else { return false };
        if let Some(pending) = process.pending.pop_front() {
            self.carry_out(pid, pending);
            self.point(pid, Point::Effect);
            return true;
        }
        if process.suspended_ms > 0 {
            let ms = std::mem::take(&mut process.suspended_ms);
            process.election_mail.push_front(ElectionMail::In(Input::Suspended { ms }));
        }
        let ready = self.ready(pid);
        let Some(&actor) = self.random.pick(&ready) else { return false };
        if matches!(actor, Actor::Election | Actor::Hub) && self.woke_after_gap(pid) {
            return true;
        }
        match actor {
            Actor::Election => self.step_election(pid),
            Actor::Hub => self.step_hub(pid),
            Actor::Follower => self.step_follower(pid),
            Actor::Socket => self.step_socket(pid),
            Actor::Outbox => self.step_outbox(pid),
        }
        true
    }

    fn ready(&self, pid: Pid) -> Vec<Actor> {
        let Some(process) = self.processes.get(&pid) else { return Vec::new() };
        let due = |deadline: Option<Time>| deadline.is_some_and(|at| at <= self.now);
        let hub_deadline = process.owned.as_ref().and_then(crate::process::Owned::deadline);
        let candidates = [
            (Actor::Election, !process.election_mail.is_empty() || due(process.election.deadline())),
            (Actor::Hub, !process.hub_mail.is_empty() || due(hub_deadline)),
            (Actor::Follower, !process.follower_mail.is_empty() || due(process.follower.deadline())),
            (Actor::Socket, !process.socket_mail.is_empty()),
            (Actor::Outbox, !process.outbox_mail.is_empty()),
        ];
        candidates.into_iter().filter_map(|(actor, ready)| ready.then_some(actor)).collect()
    }

    /// An owner that slept looks at its fence before anything else.
    fn woke_after_gap(&mut self, pid: Pid) -> bool {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else { return false };
        let gap = now.since(std::mem::replace(&mut process.last_wake, now));
        let Some((epoch, inode)) = process.reign.filter(|_| gap > OWNER_GAP) else { return false };
        process
            .pending
            .push_back(Pending::Fence { check: FenceCheck::new(epoch, inode), then: AfterFence::Tell });
        true
    }

    fn carry_out(&mut self, pid: Pid, pending: Pending) {
        match pending {
            Pending::Election(effect) => self.election_effect(pid, effect),
            Pending::Hub { epoch, effect } => self.hub_effect(pid, epoch, effect),
            Pending::Follower(effect) => self.follower_effect(pid, effect),
            Pending::WriteLinks => self.write_links(pid),
            Pending::Fence { mut check, then } => {
                if self.fence_half(&mut check) {
                    self.after_fence(pid, check, then);
                } else {
                    self.point(pid, Point::FenceHalf);
                    if let Some(process) = self.processes.get_mut(&pid) {
                        process.pending.push_front(Pending::Fence { check, then });
                    }
                }
            }
        }
    }

    /// Looks at the next half of a fence; true when the look is complete.
    pub(super) fn fence_half(&mut self, check: &mut FenceCheck) -> bool {
        let successor_first = !self.is(Mutant::FenceHalvesSwapped);
        if (check.halves == 0) == successor_first {
            check.unfenced &= self.disk.successor_absent(check.epoch);
            check.at = self.step;
        } else if !self.is(Mutant::FenceWithoutSecondHalf) {
            check.unfenced &= self.disk.own_claim_stands(check.epoch, check.inode);
        }
        check.halves += 1;
        check.halves == 2
    }

    fn after_fence(&mut self, pid: Pid, check: FenceCheck, then: AfterFence) {
        if check.unfenced {
            if let AfterFence::Link { conn, hello } = then {
                self.welcome(pid, conn, *hello);
            }
            return;
        }
        log!(self, "{} is fenced in {}", pid.0, check.epoch);
        self.fenced(pid, check.epoch);
        if let AfterFence::Link { conn, .. } = then {
            self.close_server_end(conn);
        }
    }
}

impl FenceCheck {
    pub fn new(epoch: u64, inode: Inode) -> Self {
        Self { epoch, inode, halves: 0, unfenced: true, at: 0 }
    }
}
