//! Owning: adopting, leading, read-only, and renewing the own store.

use crate::{
    election::{
        ClaimResult, Effect, Input, Role,
        machine::{Core, drop_attempt},
        state::{Claiming, Owning, Stage, State},
        timing::{COLLECT_INTERVAL, RENEW_MAX, RENEW_MIN, doubled},
    },
    event::{Cause, Event},
    id::Epoch,
    message::Ping,
    time::{Time, earliest},
};

impl Owning {
    pub(super) fn due(&self) -> Option<Time> {
        let retry = match self.stage {
            Stage::ReadOnly { retry } => retry,
            Stage::Adopting | Stage::Adopted | Stage::Renewing { .. } => None,
        };
        earliest(retry, self.parting_due())
    }

    pub(super) fn parting_due(&self) -> Option<Time> {
        self.parting.map(|(_, until)| until)
    }

    /// The old owner's connection ended, or has had its time.
    pub(super) fn part(&mut self, now: Time, ended: Option<u64>, out: &mut Vec<Effect>) {
        if let Some((attempt, until)) = self.parting {
            if ended == Some(attempt) {
                self.parting = None;
            } else if now >= until {
                self.parting = None;
                drop_attempt(Some(attempt), out);
            }
        }
    }

    pub(super) fn role(&self) -> Role {
        Role::Primary { epoch: self.epoch, adopted: self.stage == Stage::Adopted }
    }
}

impl Core {
    pub(super) fn owning(
        &mut self,
        now: Time,
        mut owning: Owning,
        input: Input,
        out: &mut Vec<Effect>,
    ) -> State {
        match input {
            Input::Ping(ping) => self.own_ping(now, owning, ping, out),
            Input::Adopted { epoch, result } if epoch == owning.epoch && owning.stage == Stage::Adopting => {
                self.adopted(&mut owning, result, out);
                State::Owning(owning)
            }
            Input::Fenced { epoch, why } if epoch == owning.epoch => self.fenced(now, owning, why, out),
            Input::StoreFailed { epoch, why } if epoch == owning.epoch => {
                self.store_failed(now, owning, why, out)
            }
            Input::Claimed { epoch, result } if owning.stage == (Stage::Renewing { next: epoch }) => {
                self.renewal_claimed(now, owning, epoch, result, out)
            }
            Input::Took { epoch, .. } if epoch > owning.epoch => {
                // An heir that was too late for its handover, or says so: the files decide.
                out.push(Effect::CheckFence { epoch: owning.epoch });
                State::Owning(owning)
            }
            Input::Deadline { .. } => self.own_deadline(now, owning, out),
            Input::Eof { attempt } => {
                owning.part(now, Some(attempt), out);
                State::Owning(owning)
            }
            Input::Suspended { ms } => {
                out.push(Effect::Event(Event::Suspended { ms }));
                out.push(Effect::CheckFence { epoch: owning.epoch });
                State::Owning(owning)
            }
            Input::Leave => self.leave_owning(now, owning, out),
            Input::Promote { to } => self.promote(now, owning, to, out),
            Input::Start
            | Input::Listed(_)
            | Input::ListFailed { .. }
            | Input::LockTested { .. }
            | Input::Welcomed { .. }
            | Input::Busy { .. }
            | Input::Refused { .. }
            | Input::ConnectFailed { .. }
            | Input::Heir(_)
            | Input::KitMade(_)
            | Input::Claimed { .. }
            | Input::Adopted { .. }
            | Input::Fenced { .. }
            | Input::StoreFailed { .. }
            | Input::OwnerStopped(_)
            | Input::Drained { .. }
            | Input::Go { .. }
            | Input::Took { .. }
            | Input::Moved { .. }
            | Input::OwnerClosed => State::Owning(owning),
        }
    }

    /// The own hub's ping: the only regular wake-up of an idle owner, so the seldom work hangs on it.
    fn own_ping(&mut self, now: Time, mut owning: Owning, ping: Ping, out: &mut Vec<Effect>) -> State {
        self.note_ping(ping);
        self.spare_kit(now, out);
        if owning.stage != Stage::Adopted {
            return State::Owning(owning);
        }
        if now >= owning.collect_at {
            owning.collect_at = now + COLLECT_INTERVAL;
            out.push(Effect::Collect { epoch: owning.epoch });
        }
        self.prefer(now, owning, out)
    }

    fn adopted(&mut self, owning: &mut Owning, result: Result<u64, String>, out: &mut Vec<Effect>) {
        let epoch = owning.epoch;
        match result {
            Ok(rows) => {
                owning.stage = Stage::Adopted;
                self.renewals_failed = 0;
                out.push(Effect::Event(Event::Adopted { epoch, rows }));
            }
            Err(why) => {
                // A damaged predecessor does not heal by another claim: people decide.
                owning.stage = Stage::ReadOnly { retry: None };
                out.push(Effect::Event(Event::AdoptionFailed { epoch, why }));
            }
        }
        self.show(owning.role(), out);
    }

    pub(super) fn fenced(&mut self, now: Time, owning: Owning, why: String, out: &mut Vec<Effect>) -> State {
        let epoch = owning.epoch;
        out.push(Effect::End { epoch, close: false });
        drop_attempt(owning.parting.map(|(attempt, _)| attempt), out);
        out.push(Effect::Event(Event::Fenced { epoch, why }));
        match owning.stage {
            Stage::Renewing { next } => {
                // It may be the own new claim that fences; its answer is still awaited.
                self.show(Role::Candidate { epoch: next }, out);
                State::Claiming(Claiming {
                    epoch: next,
                    cause: Cause::Own,
                    link: None,
                    ahead: None,
                    welcomed: None,
                    usurps: false,
                })
            }
            Stage::Adopting | Stage::Adopted | Stage::ReadOnly { .. } if self.leaving => self.left(out),
            Stage::Adopting | Stage::Adopted | Stage::ReadOnly { .. } => self.list(now, None, out),
        }
    }

    /// Never write to that store again: a new one is claimed, or nothing is acknowledged any more.
    pub(super) fn store_failed(
        &mut self,
        now: Time,
        mut owning: Owning,
        why: String,
        out: &mut Vec<Effect>,
    ) -> State {
        if !matches!(owning.stage, Stage::Adopting | Stage::Adopted) {
            return State::Owning(owning);
        }
        let too_soon = self.renewed.map(|at| at + RENEW_MIN).filter(|&until| until > now);
        let epoch = owning.epoch;
        out.push(Effect::Event(Event::AdoptionFailed { epoch, why }));
        if let Some(until) = too_soon {
            owning.stage = Stage::ReadOnly { retry: Some(until) };
            self.show(owning.role(), out);
            return State::Owning(owning);
        }
        self.renew(now, owning, out)
    }

    /// Claims over the own reign, for a kit's store.
    fn renew(&mut self, now: Time, mut owning: Owning, out: &mut Vec<Effect>) -> State {
        let next = owning.epoch.next();
        self.renewed = Some(now);
        owning.stage = Stage::Renewing { next };
        self.show(owning.role(), out);
        out.push(Effect::Claim { epoch: next });
        State::Owning(owning)
    }

    fn renewal_claimed(
        &mut self,
        now: Time,
        mut owning: Owning,
        next: Epoch,
        result: ClaimResult,
        out: &mut Vec<Effect>,
    ) -> State {
        self.note_claimed(now, &result);
        match result {
            ClaimResult::Won => {
                out.push(Effect::End { epoch: owning.epoch, close: false });
                let owning = self.own(now, next, Cause::Own, owning.parting, out);
                if self.leaving { self.leave_owning(now, owning, out) } else { State::Owning(owning) }
            }
            ClaimResult::Exists | ClaimResult::Superseded => {
                out.push(Effect::Event(Event::ClaimLost { epoch: next }));
                owning.stage = Stage::ReadOnly { retry: None };
                self.fenced(now, owning, format!("epoch {next} is claimed by another session"), out)
            }
            ClaimResult::Failed(why) => {
                let wait = doubled(RENEW_MIN, RENEW_MAX, self.renewals_failed);
                self.renewals_failed = self.renewals_failed.saturating_add(1);
                owning.stage = Stage::ReadOnly { retry: Some(now + wait) };
                self.report(Event::ClaimFailed { epoch: next, why }, out);
                self.show(owning.role(), out);
                if self.leaving { self.leave_owning(now, owning, out) } else { State::Owning(owning) }
            }
        }
    }

    fn own_deadline(&mut self, now: Time, mut owning: Owning, out: &mut Vec<Effect>) -> State {
        owning.part(now, None, out);
        match owning.stage {
            Stage::ReadOnly { retry: Some(retry) } if now >= retry => self.renew(now, owning, out),
            Stage::ReadOnly { .. } | Stage::Adopting | Stage::Adopted | Stage::Renewing { .. } => {
                State::Owning(owning)
            }
        }
    }
}
