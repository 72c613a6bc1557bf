//! Draining: a reign is handed to an heir with nothing refused, or goes on as if nothing had been.

use crate::{
    election::{
        Effect, Input, Role,
        machine::{Core, drop_attempt},
        state::{Draining, Found, Handover, Owning, Reader, Stage, State},
        timing::{FENCE_WAIT, PREFERRED_INTERVAL, UPGRADE_INTERVAL},
    },
    event::Event,
    id::{Epoch, Mark, SessionId},
    limits::HANDOVER_TIMEOUT,
    message::{Heir, KitAddress},
    program::Age,
    time::Time,
};

/// Handovers tried by a session that leaves, before it just ends.
const LEAVE_TRIES: u32 = 2;

impl Draining {
    pub(super) fn due(&self) -> Time {
        match self.step {
            Handover::Quieting { until }
            | Handover::Claiming { until }
            | Handover::Aborting { until, .. } => until,
        }
    }
}

impl Core {
    pub(super) fn draining(
        &mut self,
        now: Time,
        mut draining: Draining,
        input: Input,
        out: &mut Vec<Effect>,
    ) -> State {
        let epoch = draining.owning.epoch;
        match input {
            Input::Drained { last } => self.drained(now, draining, last, out),
            Input::Took { epoch: next, to } if next > epoch => self.took(now, draining, next, to, out),
            Input::Deadline { .. } => self.drain_on(now, draining, out),
            Input::Fenced { epoch: fenced, why } if fenced == epoch => {
                self.leaving |= draining.leaving;
                self.fenced(now, draining.owning, why, out)
            }
            Input::StoreFailed { epoch: failed, why } if failed == epoch => {
                // The heir brings a new store; if it does not come, this is dealt with then.
                draining.store_failed = Some(why);
                State::Draining(draining)
            }
            Input::Adopted { epoch: adopted, result } if adopted == epoch => {
                if draining.owning.stage == Stage::Adopting {
                    self.adopted_while_draining(&mut draining, result, out);
                }
                State::Draining(draining)
            }
            Input::Leave => {
                draining.leaving = true;
                State::Draining(draining)
            }
            Input::Promote { .. } => {
                let why = "a handover is under way already".into();
                out.push(Effect::Event(Event::HandoverAborted { why }));
                State::Draining(draining)
            }
            Input::Ping(ping) => {
                self.note_ping(ping);
                State::Draining(draining)
            }
            Input::Eof { attempt } => {
                draining.owning.part(now, Some(attempt), out);
                State::Draining(draining)
            }
            Input::Suspended { ms } => {
                out.push(Effect::Event(Event::Suspended { ms }));
                out.push(Effect::CheckFence { epoch });
                State::Draining(draining)
            }
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
            | Input::Go { .. }
            | Input::Took { .. }
            | Input::Moved { .. }
            | Input::OwnerClosed => State::Draining(draining),
        }
    }

    /// Leave, as owner: hand over if somebody is ready, else end with Close.
    pub(super) fn leave_owning(&mut self, now: Time, owning: Owning, out: &mut Vec<Effect>) -> State {
        self.leaving = true;
        if matches!(owning.stage, Stage::Renewing { .. }) {
            // Its answer must be waited for: a won claim has to be released.
            return State::Owning(owning);
        }
        match self.ready_heir(None) {
            Some(to) => self.drain(now, owning, to, 0, out),
            None => self.end(owning, out),
        }
    }

    pub(super) fn promote(
        &mut self,
        now: Time,
        owning: Owning,
        to: Option<SessionId>,
        out: &mut Vec<Effect>,
    ) -> State {
        let refusal = match (&owning.stage, self.ready_heir(to), to) {
            (Stage::Renewing { .. }, _, _) => "the store is being replaced".to_owned(),
            (_, Some(to), _) => return self.drain(now, owning, to, 0, out),
            (_, None, Some(to)) => {
                format!("session {} is not an heir that is up to date and ready", to.short())
            }
            (_, None, None) => "no heir is up to date and ready".to_owned(),
        };
        out.push(Effect::RefusePromote { why: refusal.clone() });
        out.push(Effect::Event(Event::HandoverAborted { why: refusal }));
        State::Owning(owning)
    }

    /// A polite handover to a preferred session or a newer build, once it is ready. Never from a preferred session to
    /// one that is not, nor to an older build: whoever was handed the wire has no reason to hand it back.
    pub(super) fn prefer(&mut self, now: Time, mut owning: Owning, out: &mut Vec<Effect>) -> State {
        let own = self.config.rank;
        let better = |heir: &&Heir| {
            let promoted = heir.rank > own && heir.age != Age::Older && now >= owning.preferred_at;
            let upgraded = heir.rank >= own && heir.age == Age::Newer && now >= owning.upgrade_at;
            ready(heir) && (promoted || upgraded)
        };
        match self.heirs.iter().find(better).map(|heir| heir.session) {
            Some(to) => {
                owning.preferred_at = now + PREFERRED_INTERVAL;
                owning.upgrade_at = now + UPGRADE_INTERVAL;
                self.drain(now, owning, to, 0, out)
            }
            None => State::Owning(owning),
        }
    }

    /// To Draining.
    fn drain(
        &mut self,
        now: Time,
        owning: Owning,
        to: SessionId,
        failed: u32,
        out: &mut Vec<Effect>,
    ) -> State {
        let epoch = owning.epoch;
        out.push(Effect::Event(Event::HandoverStarted { to }));
        self.show(Role::Draining { epoch }, out);
        out.push(Effect::Drain { epoch, to });
        let step = Handover::Quieting { until: now + HANDOVER_TIMEOUT };
        State::Draining(Draining { owning, to, step, leaving: self.leaving, failed, store_failed: None })
    }

    fn drained(&mut self, now: Time, mut draining: Draining, last: Mark, out: &mut Vec<Effect>) -> State {
        if matches!(draining.step, Handover::Quieting { .. }) {
            draining.step = Handover::Claiming { until: now + HANDOVER_TIMEOUT };
            out.push(Effect::SendGo { to: draining.to, last });
        }
        State::Draining(draining)
    }

    /// The heir owns the next epoch: everybody is told where, and this reign ends.
    fn took(
        &mut self,
        now: Time,
        draining: Draining,
        next: Epoch,
        to: Option<KitAddress>,
        out: &mut Vec<Effect>,
    ) -> State {
        if matches!(draining.step, Handover::Quieting { .. }) {
            // Nobody was asked yet: the files decide.
            out.push(Effect::CheckFence { epoch: draining.owning.epoch });
            return State::Draining(draining);
        }
        let Draining { owning, to: heir, leaving, .. } = draining;
        let epoch = owning.epoch;
        let known = || self.heirs.iter().find(|h| h.session == heir).and_then(|h| h.kit.clone());
        let address = to.or_else(known);
        if let Some(to) = address.clone() {
            out.push(Effect::SendMoved { epoch: next, to });
        }
        out.push(Effect::End { epoch, close: false });
        drop_attempt(owning.parting.map(|(attempt, _)| attempt), out);
        out.push(Effect::Event(Event::SteppedDown { epoch }));
        if leaving {
            return self.left(out);
        }
        match address {
            Some(address) => {
                self.show(Role::Joining, out);
                self.connect(now, Found { epoch: next, address, reader: Reader::Unknown }, None, out)
            }
            None => self.list(now, None, out),
        }
    }

    fn drain_on(&mut self, now: Time, mut draining: Draining, out: &mut Vec<Effect>) -> State {
        draining.owning.part(now, None, out);
        if now < draining.due() {
            return State::Draining(draining);
        }
        let epoch = draining.owning.epoch;
        let why = match draining.step {
            Handover::Quieting { .. } => "the hub did not become quiet in time",
            Handover::Claiming { .. } => "the heir did not claim in time",
            Handover::Aborting { why, .. } => {
                draining.step = Handover::Quieting { until: now };
                return self.resume(now, draining, why, out);
            }
        };
        out.push(Effect::CheckFence { epoch });
        draining.step = Handover::Aborting { until: now + FENCE_WAIT, why: why.to_owned() };
        State::Draining(draining)
    }

    /// The fence held: the reign goes on, or ends for good if this session gave up on handing it over.
    fn resume(&mut self, now: Time, draining: Draining, why: String, out: &mut Vec<Effect>) -> State {
        let Draining { owning, to, leaving, failed, store_failed, .. } = draining;
        out.push(Effect::Event(Event::HandoverAborted { why }));
        if leaving {
            self.leaving = true;
            if failed + 1 >= LEAVE_TRIES {
                return self.end(owning, out);
            }
            let other =
                self.heirs_in_order().find(|heir| ready(heir) && heir.session != to).map(|heir| heir.session);
            let Some(next) = other.or_else(|| self.ready_heir(None)) else {
                return self.end(owning, out);
            };
            out.push(Effect::ResumeReign { epoch: owning.epoch });
            return self.drain(now, owning, next, failed + 1, out);
        }
        out.push(Effect::ResumeReign { epoch: owning.epoch });
        self.show(owning.role(), out);
        match store_failed {
            Some(why) => self.store_failed(now, owning, why, out),
            None => State::Owning(owning),
        }
    }

    /// Ends the reign without a successor and leaves.
    fn end(&mut self, owning: Owning, out: &mut Vec<Effect>) -> State {
        let epoch = owning.epoch;
        out.push(Effect::End { epoch, close: true });
        drop_attempt(owning.parting.map(|(attempt, _)| attempt), out);
        out.push(Effect::Event(Event::SteppedDown { epoch }));
        self.left(out)
    }

    /// Adoption ended after the handover began: noted for the case that the reign goes on.
    fn adopted_while_draining(
        &mut self,
        draining: &mut Draining,
        result: Result<u64, String>,
        out: &mut Vec<Effect>,
    ) {
        let epoch = draining.owning.epoch;
        match result {
            Ok(rows) => {
                draining.owning.stage = Stage::Adopted;
                out.push(Effect::Event(Event::Adopted { epoch, rows }));
            }
            Err(why) => {
                draining.owning.stage = Stage::ReadOnly { retry: None };
                out.push(Effect::Event(Event::AdoptionFailed { epoch, why }));
            }
        }
    }

    /// The first heir that may be asked to claim now, or the wanted one if it may.
    fn ready_heir(&self, wanted: Option<SessionId>) -> Option<SessionId> {
        self.heirs
            .iter()
            .filter(|heir| ready(heir) && heir.session != self.config.session)
            .map(|heir| heir.session)
            .find(|session| wanted.is_none_or(|wanted| wanted == *session))
    }
}

fn ready(heir: &Heir) -> bool {
    heir.current && heir.kit.is_some()
}
