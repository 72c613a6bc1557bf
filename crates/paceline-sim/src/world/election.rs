//! The election actor's shell.

use paceline_proto::{
    election::{Effect, Input, Lock, Role},
    event::{Cause, Event as Observed},
    follower,
    id::Epoch,
};

use crate::{
    disk::Pid,
    fact::Fact,
    process::{
        AfterFence, ElectionMail, FenceCheck, FollowerMail, HubMail, OutboxMail, Pending, Run, SocketMail,
        Task,
    },
    world::{World, log},
};

impl World {
    pub(super) fn step_election(&mut self, pid: Pid) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.election.deadline().is_some_and(|at| at <= now) {
            let heard = process.heard;
            return self.drive_election(pid, Input::Deadline { heard });
        }
        match process.election_mail.pop_front() {
            Some(ElectionMail::In(input)) => {
                if let Input::Adopted { epoch, result: Ok(_) } = &input {
                    let mail =
                        HubMail::In { epoch: *epoch, input: Box::new(paceline_proto::hub::Input::Adopted) };
                    process.hub_mail.push_back(mail);
                }
                self.drive_election(pid, input);
            }
            Some(ElectionMail::LookAtMember { epoch, session }) if self.disk.session_dead(session) => {
                let input = Box::new(paceline_proto::hub::Input::MemberDead(session));
                process.hub_mail.push_back(HubMail::In { epoch, input });
            }
            Some(ElectionMail::Leave) => {
                if process.reign.is_none() {
                    process.follower_mail.push_back(FollowerMail::In(Box::new(follower::Input::Leave)));
                }
                self.drive_election(pid, Input::Leave);
            }
            Some(ElectionMail::LookAtMember { .. }) | None => {}
        }
    }

    pub(super) fn drive_election(&mut self, pid: Pid, input: Input) {
        log!(self, "{} election <- {input:?}", pid.0);
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let mut out = Vec::new();
        process.election.handle(now, input, &mut out);
        if process.election.deadline().is_some_and(|at| at <= now) {
            self.violated("deadline", format!("{} election's deadline is not in the future", pid.0));
        }
        if let Some(process) = self.processes.get_mut(&pid) {
            process.pending.extend(out.into_iter().map(Pending::Election));
        }
    }

    pub(super) fn election_effect(&mut self, pid: Pid, effect: Effect) {
        log!(self, "{} election -> {effect:?}", pid.0);
        match effect {
            Effect::List => self.start_task(pid, Task::List { stage: 0, highest: 0, seen: None }),
            Effect::TestLock { epoch } => {
                let lock = self.lock_of(epoch.0);
                self.answer_election(pid, Input::LockTested { epoch, lock });
            }
            Effect::Connect { attempt, target } => {
                self.mail_follower(pid, FollowerMail::Connect { attempt, target })
            }
            Effect::Disconnect { attempt } => self.mail_follower(pid, FollowerMail::Disconnect { attempt }),
            Effect::MakeKit => self.make_kit(pid, None),
            Effect::DropKit => self.drop_kit(pid),
            Effect::Claim { epoch } => self.begin_claim(pid, epoch),
            Effect::Begin { epoch, members, cause } => self.begin_reign(pid, epoch, members, cause),
            Effect::Adopt { epoch } => {
                let Some((_, kit)) = self.processes.get_mut(&pid).and_then(|process| process.won.take())
                else {
                    return;
                };
                self.mail_outbox(pid, OutboxMail::Adopt { epoch, kit });
            }
            Effect::Drain { epoch, to } => self.mail_socket(pid, SocketMail::Drain { epoch, to }),
            Effect::SendGo { to, last } => {
                self.mail_hub(pid, None, paceline_proto::hub::Input::SendGo { to, last });
            }
            Effect::RefusePromote { why } => {
                self.mail_hub(pid, None, paceline_proto::hub::Input::PromoteRefused { why });
            }
            Effect::ResumeReign { epoch } => {
                self.mail_socket(pid, SocketMail::Resume { epoch });
                self.mail_outbox(pid, OutboxMail::Resume { epoch });
                self.mail_hub(pid, Some(epoch), paceline_proto::hub::Input::Resume);
            }
            Effect::SendMoved { epoch, to } => {
                self.mail_hub(pid, None, paceline_proto::hub::Input::SendMoved { epoch, to });
            }
            Effect::SendTook { epoch } => self.mail_follower(pid, FollowerMail::Took(epoch)),
            Effect::End { epoch, close } => self.end_reign(pid, epoch, close),
            Effect::CheckFence { epoch } => {
                let Some(process) = self.processes.get_mut(&pid) else { return };
                let Some((own, inode)) = process.reign.filter(|(own, _)| *own == epoch.0) else { return };
                let check = FenceCheck::new(own, inode);
                process.pending.push_front(Pending::Fence { check, then: AfterFence::Tell });
            }
            Effect::LookAtOwner { epoch } => {
                let stopped = self.owner_stopped(epoch);
                self.answer_election(pid, Input::OwnerStopped(stopped));
            }
            Effect::Collect { epoch } => {
                self.start_task(pid, Task::Collect { stage: 0, epoch: epoch.0, names: Vec::new() });
            }
            Effect::Left => {
                self.drop_kit(pid);
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.left = true;
                }
            }
            Effect::Role(role) => self.role_changed(pid, role),
            Effect::Event(event) => {
                self.note_election_event(pid, &event);
                self.observed(pid, &event);
            }
        }
    }

    /// Synchronous answers come before anything else that waits.
    fn answer_election(&mut self, pid: Pid, input: Input) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.election_mail.push_front(ElectionMail::In(input));
        }
    }

    /// State of a claim's lock. A missing claim file is not a free lock.
    pub(super) fn lock_of(&self, epoch: u64) -> Lock {
        match self.disk.claim(epoch) {
            None => Lock::Missing,
            Some(file) if file.lock.is_some() => Lock::Held,
            Some(_) => Lock::Free,
        }
    }

    fn owner_stopped(&self, epoch: Epoch) -> bool {
        let holder = self.disk.claim(epoch.0).and_then(|file| file.lock);
        holder.and_then(|pid| self.processes.get(&pid)).is_some_and(|process| process.run == Run::Stopped)
    }

    fn role_changed(&mut self, pid: Pid, role: Role) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.role = role;
        }
    }

    fn note_election_event(&mut self, pid: Pid, event: &Observed) {
        let Observed::PrimaryElected { epoch, over: Cause::Silent } = event else { return };
        let alive = self.processes.values().any(|process| {
            process.pid != pid && process.alive() && process.reign.is_some_and(|(own, _)| own < epoch.0)
        });
        if alive {
            self.counters.add("usurped_while_alive");
        }
        if self.scenario.one_reign {
            self.violated("busy", format!("{} took {epoch} over although nobody was at fault", pid.0));
        }
    }

    fn begin_reign(
        &mut self,
        pid: Pid,
        epoch: Epoch,
        members: Option<Vec<paceline_proto::message::Member>>,
        cause: Cause,
    ) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let session = process.session;
        let Some((own, kit)) = &process.won else {
            return self.violated("glue", format!("{} begins {epoch} without a claim won", pid.0));
        };
        if *own != epoch.0 {
            let own = *own;
            return self.violated("glue", format!("{} begins {epoch} but won {own}", pid.0));
        }
        process.reign = Some((epoch.0, kit.inode));
        process.last_wake = now;
        let address = kit.address.clone();
        let polite = cause == Cause::HandedOver;
        self.counters.add(match cause {
            Cause::First => "reign_first",
            Cause::Dead => "reign_over_dead",
            Cause::Silent => "reign_over_silent",
            Cause::HandedOver => "reign_handed_over",
            Cause::Own => "reign_over_own",
        });
        self.tell(&Fact::ReignBegun { epoch, session });
        self.mail_follower(pid, FollowerMail::Begin { epoch, address, members, polite });
    }

    fn end_reign(&mut self, pid: Pid, epoch: Epoch, close: bool) {
        if let Some(process) = self.processes.get_mut(&pid)
            && process.reign.is_some_and(|(own, _)| own == epoch.0)
        {
            process.reign = None;
        }
        self.mail_socket(pid, SocketMail::Close { epoch });
        if let Some(process) = self.processes.get_mut(&pid) {
            process.hub_mail.push_back(HubMail::End { epoch, close });
        }
        self.mail_outbox(pid, OutboxMail::End { epoch });
    }

    /// The fence spoke: the hub ends here, the election learns it.
    pub(super) fn fenced(&mut self, pid: Pid, epoch: u64) {
        let why = "its successor's claim exists, or its own is gone".to_owned();
        if let Some(process) = self.processes.get_mut(&pid) {
            if process.reign.is_some_and(|(own, _)| own == epoch) {
                process.reign = None;
            }
            process.election_mail.push_front(ElectionMail::In(Input::Fenced { epoch: Epoch(epoch), why }));
        }
        self.drop_hub(pid, Epoch(epoch));
    }

    pub(super) fn mail_election(&mut self, pid: Pid, input: Input) {
        if let Some(process) = self.live(pid) {
            process.election_mail.push_back(ElectionMail::In(input));
            self.wake(pid);
        }
    }

    pub(super) fn mail_follower(&mut self, pid: Pid, mail: FollowerMail) {
        if let Some(process) = self.live(pid) {
            process.follower_mail.push_back(mail);
            self.wake(pid);
        }
    }

    pub(super) fn mail_socket(&mut self, pid: Pid, mail: SocketMail) {
        if let Some(process) = self.live(pid) {
            process.socket_mail.push_back(mail);
            self.wake(pid);
        }
    }

    pub(super) fn mail_outbox(&mut self, pid: Pid, mail: OutboxMail) {
        if let Some(process) = self.live(pid) {
            process.outbox_mail.push_back(mail);
            self.wake(pid);
        }
    }

    /// `epoch` = only if the hub still is that reign's.
    pub(super) fn mail_hub(&mut self, pid: Pid, epoch: Option<Epoch>, input: paceline_proto::hub::Input) {
        let Some(process) = self.live(pid) else { return };
        let Some(epoch) = epoch.or_else(|| process.owned.as_ref().map(|owned| owned.epoch)) else { return };
        process.hub_mail.push_back(HubMail::In { epoch, input: Box::new(input) });
        self.wake(pid);
    }
}
