//! Suspecting: nothing came from the owner for too long.
//!
//! A session that is starved itself gets few on-time ticks and so cannot usurp an owner that is starved with it; one
//! that slept counts from the start. Any sign of life ends the suspicion, up to the last look before the claim.

use crate::{
    election::{
        ConnectFailure, Effect, Input, Listing, Lock,
        machine::{Core, drop_attempt},
        probing::{drop_ahead, reader_of},
        state::{Ahead, Following, Found, Link, Probing, Reader, Search, State, Suspecting, Watch},
        timing::{ANSWER_WAIT, BUSY_MAX, BUSY_MIN, LAST_LOOK},
    },
    event::{Cause, Event},
    id::{Epoch, SessionId},
    limits::{PING_INTERVAL, PROBE_TIMEOUT, SUSPICION_TICK, SUSPICION_TICKS, TICK_LATE},
    time::Time,
};

/// A session without a link, or one that waits longer than others do, looks at the claims every so many ticks: nobody
/// else tells it of a successor.
const TICKS_PER_LISTING: u32 = 5;

impl Suspecting {
    pub(super) fn due(&self) -> Time {
        match self.step {
            Watch::Ticking { next } => next,
            Watch::Probing { until }
            | Watch::Locking { until, .. }
            | Watch::HeldBack { until }
            | Watch::Staggering { until }
            | Watch::Confirming { until } => until,
        }
    }

    /// Drops what was opened for the suspicion and returns the link.
    fn close(self, out: &mut Vec<Effect>) -> Option<Link> {
        drop_attempt(self.probe, out);
        drop_ahead(self.ahead, out);
        self.link
    }
}

impl Core {
    pub(super) fn suspecting(
        &mut self,
        now: Time,
        mut suspecting: Suspecting,
        input: Input,
        out: &mut Vec<Effect>,
    ) -> State {
        match input {
            Input::Ping(_) | Input::Heir(_) | Input::Go { .. } | Input::Moved { .. } | Input::OwnerClosed => {
                if suspecting.link.is_none() {
                    return State::Suspecting(suspecting);
                }
                match self.cleared(now, suspecting, out) {
                    State::Following(following) => self.following(now, following, input, out),
                    other => other,
                }
            }
            Input::Deadline { heard } => {
                let heard = heard.min(now);
                if suspecting.link.is_some() && heard > suspecting.quiet_since {
                    return self.cleared(heard, suspecting, out);
                }
                if now < suspecting.due() {
                    return State::Suspecting(suspecting);
                }
                self.watch(now, suspecting, out)
            }
            Input::Suspended { ms } => {
                out.push(Effect::Event(Event::Suspended { ms }));
                self.start_over(now, suspecting, out)
            }
            Input::Eof { attempt } => match &suspecting.link {
                Some(link) if link.attempt == attempt => match suspecting.close(out) {
                    Some(link) => self.lost_owner(now, link, out),
                    None => self.list(now, None, out),
                },
                Some(_) | None => State::Suspecting(suspecting),
            },
            Input::Welcomed { attempt, epoch, owner } => {
                self.answered(now, suspecting, attempt, epoch, owner, out)
            }
            Input::Busy { attempt, retry_ms } if suspecting.probe == Some(attempt) => {
                suspecting.probe = None;
                if suspecting.link.is_some() {
                    return self.cleared(now, suspecting, out);
                }
                let wait = std::time::Duration::from_millis(retry_ms.into()).clamp(BUSY_MIN, BUSY_MAX);
                suspecting.close(out);
                State::Probing(Probing { step: Search::Pausing { until: now + wait }, ahead: None })
            }
            Input::Refused { attempt, refusal } if suspecting.probe == Some(attempt) => {
                suspecting.probe = None;
                if suspecting.link.is_some() {
                    return self.cleared(now, suspecting, out);
                }
                let epoch = suspecting.found.epoch;
                suspecting.close(out);
                self.refused(now, epoch, &refusal, None, out)
            }
            Input::ConnectFailed { attempt, failure } => {
                self.probe_failed(now, suspecting, attempt, failure, out)
            }
            Input::LockTested { epoch, lock } => self.suspect_tested(now, suspecting, epoch, lock, out),
            Input::Listed(listing) => self.suspect_listed(now, suspecting, listing, out),
            Input::OwnerStopped(stopped) => {
                suspecting.stopped = stopped;
                State::Suspecting(suspecting)
            }
            Input::Leave => {
                // A link stays until its Close is written.
                suspecting.close(out);
                self.left(out)
            }
            Input::Promote { .. } => {
                out.push(Effect::Event(Event::HandoverAborted { why: "this session does not lead".into() }));
                State::Suspecting(suspecting)
            }
            Input::Start
            | Input::ListFailed { .. }
            | Input::Busy { .. }
            | Input::Refused { .. }
            | Input::KitMade(_)
            | Input::Claimed { .. }
            | Input::Adopted { .. }
            | Input::Fenced { .. }
            | Input::StoreFailed { .. }
            | Input::Drained { .. }
            | Input::Took { .. } => State::Suspecting(suspecting),
        }
    }

    /// A sign of life on the link.
    fn cleared(&mut self, heard: Time, suspecting: Suspecting, out: &mut Vec<Effect>) -> State {
        let epoch = suspecting.found.epoch;
        match suspecting.close(out) {
            Some(link) => {
                out.push(Effect::Event(Event::SuspicionCleared { epoch }));
                State::Following(Following { link, quiet_since: heard })
            }
            None => self.list(heard, None, out),
        }
    }

    /// The suspicion begins anew, with what was heard so far.
    fn start_over(&mut self, now: Time, suspecting: Suspecting, out: &mut Vec<Effect>) -> State {
        let Suspecting { found, link, quiet_since, probe, ahead, .. } = suspecting;
        drop_attempt(probe, out);
        drop_ahead(ahead, out);
        State::Suspecting(Suspecting {
            found,
            link,
            quiet_since,
            ticks: 0,
            probe: None,
            ahead: None,
            stopped: false,
            step: Watch::Ticking { next: now + SUSPICION_TICK },
        })
    }

    /// The deadline of a step passed and nothing was heard.
    fn watch(&mut self, now: Time, mut suspecting: Suspecting, out: &mut Vec<Effect>) -> State {
        let epoch = suspecting.found.epoch;
        let on_time = now <= suspecting.due() + TICK_LATE;
        match &mut suspecting.step {
            Watch::Probing { until } | Watch::HeldBack { until } | Watch::Staggering { until }
                if !on_time =>
            {
                // This session did not run: what the owner said meanwhile is still to be read.
                *until = now + SUSPICION_TICK;
                return State::Suspecting(suspecting);
            }
            Watch::Ticking { .. }
            | Watch::Probing { .. }
            | Watch::Locking { .. }
            | Watch::HeldBack { .. }
            | Watch::Staggering { .. }
            | Watch::Confirming { .. } => {}
        }
        match suspecting.step {
            Watch::Ticking { next } => {
                suspecting.ticks += u32::from(on_time);
                if suspecting.ticks >= self.restraint.ticks(now) {
                    return self.probe(now, suspecting, out);
                }
                let alone = suspecting.link.is_none() || suspecting.ticks > SUSPICION_TICKS;
                if alone && on_time && suspecting.ticks.is_multiple_of(TICKS_PER_LISTING) {
                    out.push(Effect::List);
                }
                // A late tick must not make the next one early.
                let from = if on_time { next } else { now };
                suspecting.step = Watch::Ticking { next: from + SUSPICION_TICK };
            }
            Watch::Probing { .. } => {
                // The attempt stays open: a late Welcome still counts.
                let failure = ConnectFailure::Silent;
                suspecting.step = Watch::Locking { failure, until: now + ANSWER_WAIT };
                out.push(Effect::TestLock { epoch });
            }
            Watch::Locking { failure, .. } => {
                suspecting.step = Watch::Locking { failure, until: now + ANSWER_WAIT };
                out.push(Effect::TestLock { epoch });
            }
            Watch::HeldBack { .. } => return self.probe(now, suspecting, out),
            Watch::Staggering { .. } | Watch::Confirming { .. } => {
                suspecting.step = Watch::Confirming { until: now + ANSWER_WAIT };
                out.push(Effect::List);
            }
        }
        State::Suspecting(suspecting)
    }

    /// The direct probe: a new connection to the claim's own socket. Beside it, the first heir's kit: if that one
    /// claims, this session is there at once.
    fn probe(&mut self, now: Time, mut suspecting: Suspecting, out: &mut Vec<Effect>) -> State {
        let Found { epoch, address, .. } = suspecting.found.clone();
        drop_attempt(suspecting.probe.take(), out);
        suspecting.probe = Some(self.attempt(address, Some(epoch), out));
        if suspecting.ahead.is_none() && suspecting.link.is_some() {
            suspecting.ahead = self.look_ahead(epoch, out);
        }
        suspecting.stopped = false;
        suspecting.step = Watch::Probing { until: now + PROBE_TIMEOUT };
        out.push(Effect::LookAtOwner { epoch });
        State::Suspecting(suspecting)
    }

    /// A Welcome: of the suspected owner, which lives, or of its successor.
    fn answered(
        &mut self,
        now: Time,
        mut suspecting: Suspecting,
        attempt: u64,
        epoch: Epoch,
        owner: SessionId,
        out: &mut Vec<Effect>,
    ) -> State {
        if suspecting.probe == Some(attempt) {
            suspecting.probe = None;
            if epoch != suspecting.found.epoch {
                drop_attempt(Some(attempt), out);
                return self.look_again(now, suspecting, out);
            }
            // The new connection is the one that is known to work.
            let found = suspecting.found.clone();
            drop_link(suspecting, out);
            out.push(Effect::Event(Event::SuspicionCleared { epoch }));
            return self.follow(now, Link::new(attempt, owner, found), out);
        }
        match suspecting.ahead.take() {
            Some(Ahead { attempt: own, address, over }) if own == attempt && epoch > over => {
                drop_link(suspecting, out);
                let found = Found { epoch, address, reader: Reader::Unknown };
                self.follow(now, Link::new(attempt, owner, found), out)
            }
            Some(Ahead { attempt: own, .. }) if own == attempt => {
                drop_attempt(Some(attempt), out);
                State::Suspecting(suspecting)
            }
            ahead => {
                suspecting.ahead = ahead;
                State::Suspecting(suspecting)
            }
        }
    }

    fn probe_failed(
        &mut self,
        now: Time,
        mut suspecting: Suspecting,
        attempt: u64,
        failure: ConnectFailure,
        out: &mut Vec<Effect>,
    ) -> State {
        if suspecting.ahead.as_ref().is_some_and(|ahead| ahead.attempt == attempt) {
            suspecting.ahead = None;
        }
        if suspecting.probe != Some(attempt) {
            return State::Suspecting(suspecting);
        }
        suspecting.probe = None;
        if matches!(suspecting.step, Watch::Probing { .. }) {
            let epoch = suspecting.found.epoch;
            suspecting.step = Watch::Locking { failure, until: now + ANSWER_WAIT };
            out.push(Effect::TestLock { epoch });
        }
        State::Suspecting(suspecting)
    }

    fn suspect_tested(
        &mut self,
        now: Time,
        mut suspecting: Suspecting,
        epoch: Epoch,
        lock: Lock,
        out: &mut Vec<Effect>,
    ) -> State {
        let Watch::Locking { failure, .. } = &suspecting.step else {
            return State::Suspecting(suspecting);
        };
        if epoch != suspecting.found.epoch {
            return State::Suspecting(suspecting);
        }
        let failure = failure.clone();
        if lock != Lock::Held {
            // Dead, or long replaced: the files say which.
            return self.look_again(now, suspecting, out);
        }
        let reason = match failure {
            ConnectFailure::Silent => None,
            ConnectFailure::Refused | ConnectFailure::Closed => Some(None),
            ConnectFailure::Missing => Some(Some("its socket is gone".to_owned())),
            ConnectFailure::Forbidden => Some(Some("its socket is closed to this user".to_owned())),
            ConnectFailure::Other(why) => Some(Some(why)),
        };
        match reason {
            None if self.may_claim(suspecting.found.reader) || self.may_learn(&suspecting.found) => {
                suspecting.step = match self.restraint.until(now).filter(|_| !suspecting.stopped) {
                    Some(until) => {
                        out.push(Effect::List);
                        Watch::HeldBack { until: until.min(now + PROBE_TIMEOUT) }
                    }
                    None => Watch::Staggering { until: now + self.stagger().max(LAST_LOOK) },
                };
                State::Suspecting(suspecting)
            }
            None => self.wait_for_others(now, suspecting, out),
            Some(why) => {
                if let Some(why) = why {
                    self.report(Event::OwnerUnreachable { epoch, why }, out);
                }
                self.wait_for_others(now, suspecting, out)
            }
        }
    }

    /// The claim's schema is not known yet; the listing before the claim will tell.
    fn may_learn(&self, found: &Found) -> bool {
        found.reader == Reader::Unknown && self.may_claim(Reader::Able)
    }

    /// This session must not claim over the owner: keep the link and watch on; without one, look at the files again.
    fn wait_for_others(&mut self, now: Time, suspecting: Suspecting, out: &mut Vec<Effect>) -> State {
        if suspecting.link.is_some() {
            out.push(Effect::List);
            return self.start_over(now, suspecting, out);
        }
        suspecting.close(out);
        self.pause(now, None)
    }

    fn suspect_listed(
        &mut self,
        now: Time,
        mut suspecting: Suspecting,
        listing: Listing,
        out: &mut Vec<Effect>,
    ) -> State {
        let epoch = suspecting.found.epoch;
        let highest = listing.claim.as_ref().map_or(Epoch::NONE, |claim| claim.epoch);
        let held = listing.claim.as_ref().is_some_and(|claim| claim.lock == Lock::Held);
        let Watch::Confirming { until } = suspecting.step else {
            if highest > epoch {
                return self.replaced(now, suspecting, listing, out);
            }
            return State::Suspecting(suspecting);
        };
        if highest != epoch || !held {
            return self.replaced(now, suspecting, listing, out);
        }
        if now > until - ANSWER_WAIT + PING_INTERVAL {
            // So long after the last look at the link, a living owner would have spoken again: look again.
            suspecting.step = Watch::Staggering { until: now + SUSPICION_TICK };
            return State::Suspecting(suspecting);
        }
        // A store above the living owner's epoch: its fence would not see the claim, so this is for people to repair.
        let torn = listing.highest_complete > epoch;
        if torn || !self.may_claim(reader_of(&listing)) {
            return self.wait_for_others(now, suspecting, out);
        }
        self.note_listing(&listing);
        let usurps = !suspecting.stopped;
        let Suspecting { link, probe, ahead, .. } = suspecting;
        drop_attempt(probe, out);
        self.claim(now, Cause::Silent, link, ahead, usurps, out)
    }

    /// The files do not show the suspected owner any more, or show it dead: act on them.
    fn replaced(
        &mut self,
        now: Time,
        mut suspecting: Suspecting,
        listing: Listing,
        out: &mut Vec<Effect>,
    ) -> State {
        let ahead = suspecting.ahead.take();
        drop_link(suspecting, out);
        self.show(super::Role::Joining, out);
        self.listed(now, None, ahead, listing, out)
    }

    fn look_again(&mut self, now: Time, mut suspecting: Suspecting, out: &mut Vec<Effect>) -> State {
        let ahead = suspecting.ahead.take();
        drop_link(suspecting, out);
        self.list(now, ahead, out)
    }
}

fn drop_link(suspecting: Suspecting, out: &mut Vec<Effect>) {
    let link = suspecting.close(out);
    drop_attempt(link.map(|link| link.attempt), out);
}
