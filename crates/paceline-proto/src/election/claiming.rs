//! Claiming: the claim was asked for, and the file system decides. Nothing else happens until its answer.

use crate::{
    election::{
        ClaimResult, Effect, Input, Role,
        machine::{Core, drop_attempt},
        probing::drop_ahead,
        state::{Ahead, Claiming, Following, Found, Link, Reader, State},
    },
    event::{Cause, Event},
    id::{Epoch, SessionId},
    limits::HANDOVER_TIMEOUT,
    time::Time,
};

impl Core {
    pub(super) fn claiming(
        &mut self,
        now: Time,
        mut claiming: Claiming,
        input: Input,
        out: &mut Vec<Effect>,
    ) -> State {
        match input {
            Input::Claimed { epoch, result } if epoch == claiming.epoch => {
                self.claimed(now, claiming, result, out)
            }
            Input::Welcomed { attempt, epoch, owner } => {
                self.welcomed_meanwhile(&mut claiming, attempt, epoch, owner, out);
                State::Claiming(claiming)
            }
            Input::Eof { attempt } => {
                claiming.link = claiming.link.filter(|link| link.attempt != attempt);
                claiming.welcomed = claiming.welcomed.filter(|link| link.attempt != attempt);
                State::Claiming(claiming)
            }
            Input::OwnerClosed => {
                drop_attempt(claiming.link.take().map(|link| link.attempt), out);
                State::Claiming(claiming)
            }
            Input::Busy { attempt, .. }
            | Input::Refused { attempt, .. }
            | Input::ConnectFailed { attempt, .. } => {
                claiming.ahead = claiming.ahead.filter(|ahead| ahead.attempt != attempt);
                State::Claiming(claiming)
            }
            Input::Ping(ping) => {
                self.note_ping(ping);
                State::Claiming(claiming)
            }
            Input::Suspended { ms } => {
                out.push(Effect::Event(Event::Suspended { ms }));
                State::Claiming(claiming)
            }
            Input::Leave => {
                // Won or lost, the answer must be waited for: a won claim has to be released.
                self.leaving = true;
                State::Claiming(claiming)
            }
            Input::Promote { .. } => {
                out.push(Effect::Event(Event::HandoverAborted {
                    why: "this session does not lead yet".into(),
                }));
                State::Claiming(claiming)
            }
            Input::Start
            | Input::Listed(_)
            | Input::ListFailed { .. }
            | Input::LockTested { .. }
            | Input::Heir(_)
            | Input::Deadline { .. }
            | Input::KitMade(_)
            | Input::Claimed { .. }
            | Input::Adopted { .. }
            | Input::Fenced { .. }
            | Input::StoreFailed { .. }
            | Input::OwnerStopped(_)
            | Input::Drained { .. }
            | Input::Go { .. }
            | Input::Took { .. }
            | Input::Moved { .. } => State::Claiming(claiming),
        }
    }

    /// The better placed heir was quicker: remembered until the own claim is answered.
    fn welcomed_meanwhile(
        &mut self,
        claiming: &mut Claiming,
        attempt: u64,
        epoch: Epoch,
        owner: SessionId,
        out: &mut Vec<Effect>,
    ) {
        match claiming.ahead.take() {
            Some(Ahead { attempt: own, address, over }) if own == attempt && epoch > over => {
                drop_attempt(claiming.link.take().map(|link| link.attempt), out);
                let found = Found { epoch, address, reader: Reader::Unknown };
                claiming.welcomed = Some(Link::new(attempt, owner, found));
            }
            Some(Ahead { attempt: own, .. }) if own == attempt => drop_attempt(Some(attempt), out),
            ahead => claiming.ahead = ahead,
        }
    }

    fn claimed(
        &mut self,
        now: Time,
        claiming: Claiming,
        result: ClaimResult,
        out: &mut Vec<Effect>,
    ) -> State {
        self.note_claimed(now, &result);
        match result {
            ClaimResult::Won => self.won(now, claiming, out),
            ClaimResult::Exists | ClaimResult::Superseded => self.lost_claim(now, claiming, out),
            ClaimResult::Failed(why) => self.claim_failed(now, claiming, why, out),
        }
    }

    fn won(&mut self, now: Time, claiming: Claiming, out: &mut Vec<Effect>) -> State {
        let Claiming { epoch, cause, link, ahead, welcomed, usurps } = claiming;
        if usurps {
            self.restraint.note_won(now);
        }
        drop_ahead(ahead, out);
        drop_attempt(welcomed.map(|link| link.attempt), out);
        let mut parting = None;
        if let Some(link) = link {
            if cause == Cause::HandedOver {
                // It carries Took, so it is not dropped before its owner ends it.
                parting = Some((link.attempt, now + HANDOVER_TIMEOUT));
            } else {
                drop_attempt(Some(link.attempt), out);
            }
        }
        let owning = self.own(now, epoch, cause, parting, out);
        if self.leaving {
            return self.leave_owning(now, owning, out);
        }
        State::Owning(owning)
    }

    fn lost_claim(&mut self, now: Time, claiming: Claiming, out: &mut Vec<Effect>) -> State {
        let Claiming { epoch, link, ahead, welcomed, .. } = claiming;
        out.push(Effect::Event(Event::ClaimLost { epoch }));
        drop_attempt(link.map(|link| link.attempt), out);
        if self.leaving {
            drop_ahead(ahead, out);
            return self.left(out);
        }
        match welcomed {
            Some(link) => {
                drop_ahead(ahead, out);
                self.follow(now, link, out)
            }
            None if self.retries == 0 => {
                self.retries = 1;
                self.list(now, ahead, out)
            }
            // Lost again without a Welcome in between: the files and the claims disagree for the moment.
            None => {
                self.show(Role::Joining, out);
                self.pause(now, ahead)
            }
        }
    }

    fn claim_failed(&mut self, now: Time, claiming: Claiming, why: String, out: &mut Vec<Effect>) -> State {
        let Claiming { epoch, cause, link, ahead, welcomed, .. } = claiming;
        self.report(Event::ClaimFailed { epoch, why: why.clone() }, out);
        if self.leaving {
            drop_ahead(ahead, out);
            return self.left(out);
        }
        match (welcomed, link) {
            (Some(link), _) => {
                drop_ahead(ahead, out);
                self.follow(now, link, out)
            }
            // The owner resumes when the handover's time is up.
            (None, Some(link)) if cause == Cause::HandedOver => {
                drop_ahead(ahead, out);
                self.show(Role::Follower { epoch: link.found.epoch, owner: link.owner }, out);
                State::Following(Following { link, quiet_since: now })
            }
            (None, link) => {
                drop_attempt(link.map(|link| link.attempt), out);
                self.show(Role::Blocked { why: format!("epoch {epoch} could not be claimed: {why}") }, out);
                self.pause(now, ahead)
            }
        }
    }
}
