//! Probing: find the owner, or the proof that there is none.
//!
//! Unreachable and busy are never taken for dead: a claim follows from here only when there is no claim at all or when
//! the highest one's lock is free.

use std::time::Duration;

use crate::{
    election::{
        ClaimSeen, ConnectFailure, Effect, Input, Listing, Lock, Role,
        machine::{Core, drop_attempt},
        state::{Ahead, Dead, Doubt, Found, Link, Probing, Reader, Search, State},
        timing::{ANSWER_WAIT, BUSY_MAX, BUSY_MIN, LOCK_STEP_MAX, LOCK_STEP_MIN, STAGGER_STEP, doubled},
    },
    event::{Cause, Event},
    id::{Epoch, SessionId},
    limits::{EOF_LOCK_WAIT, PROBE_TIMEOUT},
    message::{Rank, Refusal},
    program::{Misfit, Speaker},
    time::Time,
};

impl Probing {
    pub(super) fn due(&self) -> Time {
        match self.step {
            Search::Listing { until, .. }
            | Search::Connecting { until, .. }
            | Search::Staggering { until, .. }
            | Search::Pausing { until } => until,
            Search::Locking { due, .. } => due,
        }
    }

    fn attempt(&self) -> Option<u64> {
        match self.step {
            Search::Connecting { attempt, .. } => Some(attempt),
            Search::Listing { .. }
            | Search::Locking { .. }
            | Search::Staggering { .. }
            | Search::Pausing { .. } => None,
        }
    }
}

impl Core {
    pub(super) fn probing(
        &mut self,
        now: Time,
        mut probing: Probing,
        input: Input,
        out: &mut Vec<Effect>,
    ) -> State {
        match input {
            Input::Listed(listing) => match probing.step {
                Search::Listing { dead, .. } => self.listed(now, dead, probing.ahead, listing, out),
                Search::Connecting { .. }
                | Search::Locking { .. }
                | Search::Staggering { .. }
                | Search::Pausing { .. } => State::Probing(probing),
            },
            Input::ListFailed { why } => match probing.step {
                Search::Listing { .. } => {
                    self.block(format!("the group's directory cannot be read: {why}"), out);
                    self.pause(now, probing.ahead)
                }
                Search::Connecting { .. }
                | Search::Locking { .. }
                | Search::Staggering { .. }
                | Search::Pausing { .. } => State::Probing(probing),
            },
            Input::LockTested { epoch, lock } => self.lock_tested(now, probing, epoch, lock, out),
            Input::Welcomed { attempt, epoch, owner } => {
                self.welcomed(now, probing, attempt, epoch, owner, out)
            }
            Input::Busy { attempt, retry_ms } => {
                let wait = Duration::from_millis(retry_ms.into()).clamp(BUSY_MIN, BUSY_MAX);
                self.turned_away(probing, attempt, |_, _, ahead, _| pausing(now + wait, ahead), out)
            }
            Input::Refused { attempt, refusal } => {
                let refused = |core: &mut Self, found: Found, ahead, out: &mut Vec<Effect>| {
                    core.refused(now, found.epoch, &refusal, ahead, out)
                };
                self.turned_away(probing, attempt, refused, out)
            }
            Input::ConnectFailed { attempt, failure } => {
                let failed = |core: &mut Self, found: Found, ahead, out: &mut Vec<Effect>| {
                    core.connect_failed(now, found, failure, ahead, out)
                };
                self.turned_away(probing, attempt, failed, out)
            }
            Input::Deadline { .. } => self.search_on(now, probing, out),
            Input::Suspended { ms } => {
                out.push(Effect::Event(Event::Suspended { ms }));
                if let Search::Connecting { until, .. } = &mut probing.step {
                    *until = now + PROBE_TIMEOUT;
                }
                State::Probing(probing)
            }
            Input::Leave => {
                drop_attempt(probing.attempt(), out);
                drop_ahead(probing.ahead, out);
                self.left(out)
            }
            Input::Promote { .. } => {
                out.push(Effect::Event(Event::HandoverAborted { why: "this session does not lead".into() }));
                State::Probing(probing)
            }
            Input::Start
            | Input::Eof { .. }
            | Input::Ping(_)
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
            | Input::OwnerClosed => State::Probing(probing),
        }
    }

    /// Acts on what the files say now.
    pub(super) fn listed(
        &mut self,
        now: Time,
        dead: Option<Dead>,
        ahead: Option<Ahead>,
        listing: Listing,
        out: &mut Vec<Effect>,
    ) -> State {
        self.note_listing(&listing);
        let reader = reader_of(&listing);
        if let Some((schema, min_reader)) = listing.too_new {
            self.report(Event::StoreTooNew { schema, min_reader }, out);
        }
        let Some(claim) = listing.claim else {
            if !self.may_claim(reader) {
                return self.cannot_claim(now, reader, ahead, out);
            }
            drop_ahead(ahead, out);
            let cause = if self.highest == Epoch::NONE { Cause::First } else { Cause::Dead };
            return self.claim(now, cause, None, None, false, out);
        };
        let ClaimSeen { epoch, address, lock, .. } = claim;
        let (ahead, reached) = match ahead {
            Some(ahead) if epoch > ahead.over && address.as_ref() == Some(&ahead.address) => {
                (None, Some(ahead))
            }
            Some(ahead) if epoch > ahead.over => {
                drop_ahead(Some(ahead), out);
                (None, None)
            }
            other => (other, None),
        };
        match (lock, address) {
            (Lock::Free, _) => {
                drop_ahead(reached, out);
                self.found_dead(now, epoch, reader, dead, ahead, out)
            }
            (Lock::Missing, _) => {
                drop_ahead(reached, out);
                self.pause(now, ahead)
            }
            (Lock::Held, None) => {
                let why = "its claim is cut short, so nobody knows where it listens".to_owned();
                self.unreachable(epoch, why, out);
                self.pause(now, ahead)
            }
            (Lock::Held, Some(address)) => {
                let found = Found { epoch, address, reader };
                match reached {
                    Some(Ahead { attempt, .. }) => State::Probing(Probing {
                        step: Search::Connecting { found, attempt, until: now + PROBE_TIMEOUT },
                        ahead,
                    }),
                    None => self.connect(now, found, ahead, out),
                }
            }
        }
    }

    /// What a listing says about the next epoch: 1 + the highest claim or `complete`, whichever is higher.
    pub(super) fn note_listing(&mut self, listing: &Listing) {
        let claim = listing.claim.as_ref().map_or(Epoch::NONE, |claim| claim.epoch);
        self.highest = claim.max(listing.highest_complete);
    }

    /// The owner of `epoch` is dead. A session that knew the group lets better placed ones go first.
    fn found_dead(
        &mut self,
        now: Time,
        epoch: Epoch,
        reader: Reader,
        known: Option<Dead>,
        ahead: Option<Ahead>,
        out: &mut Vec<Effect>,
    ) -> State {
        if !self.may_claim(reader) {
            return self.cannot_claim(now, reader, ahead, out);
        }
        let claim_at = match known {
            Some(dead) if dead.epoch == epoch => dead.claim_at,
            Some(_) | None => now + self.stagger(),
        };
        if now >= claim_at {
            return self.claim(now, Cause::Dead, None, ahead, false, out);
        }
        let (dead, until) = (Dead { epoch, claim_at }, claim_at.min(now + STAGGER_STEP));
        State::Probing(Probing { step: Search::Staggering { dead, until }, ahead })
    }

    fn cannot_claim(
        &mut self,
        now: Time,
        reader: Reader,
        ahead: Option<Ahead>,
        out: &mut Vec<Effect>,
    ) -> State {
        if reader == Reader::Unable && self.config.rank != Rank::Observer {
            let own = self.config.program.speaker();
            self.block(
                format!(
                    "the group's store was written by a newer build, and this one ({own}) cannot read it: it waits for a \
                     session that can; start one, or update this program"
                ),
                out,
            );
        }
        self.pause(now, ahead)
    }

    fn welcomed(
        &mut self,
        now: Time,
        probing: Probing,
        attempt: u64,
        epoch: Epoch,
        owner: SessionId,
        out: &mut Vec<Effect>,
    ) -> State {
        let Probing { step, ahead } = probing;
        match (step, ahead) {
            (Search::Connecting { found, attempt: own, .. }, ahead) if own == attempt => {
                if found.epoch != epoch {
                    // A socket belongs to one claim: this is not the owner that was looked for.
                    drop_attempt(Some(attempt), out);
                    return self.pause(now, ahead);
                }
                drop_ahead(ahead, out);
                self.follow(now, Link::new(attempt, owner, found), out)
            }
            (step, Some(ahead)) if ahead.attempt == attempt => {
                if epoch <= ahead.over {
                    drop_attempt(Some(attempt), out);
                    return State::Probing(Probing { step, ahead: None });
                }
                if let Search::Connecting { attempt, .. } = step {
                    drop_attempt(Some(attempt), out);
                }
                let found = Found { epoch, address: ahead.address, reader: Reader::Unknown };
                self.follow(now, Link::new(attempt, owner, found), out)
            }
            (step, ahead) => State::Probing(Probing { step, ahead }),
        }
    }

    /// An attempt ended without Welcome: `then` decides if it was the main one; the one ahead is just forgotten.
    fn turned_away(
        &mut self,
        probing: Probing,
        attempt: u64,
        then: impl FnOnce(&mut Self, Found, Option<Ahead>, &mut Vec<Effect>) -> State,
        out: &mut Vec<Effect>,
    ) -> State {
        let Probing { step, ahead } = probing;
        match step {
            Search::Connecting { found, attempt: own, .. } if own == attempt => then(self, found, ahead, out),
            step => {
                let ahead = ahead.filter(|ahead| ahead.attempt != attempt);
                State::Probing(Probing { step, ahead })
            }
        }
    }

    pub(super) fn refused(
        &mut self,
        now: Time,
        epoch: Epoch,
        refusal: &Refusal,
        ahead: Option<Ahead>,
        out: &mut Vec<Effect>,
    ) -> State {
        let why = match refusal {
            Refusal::Version { owner, build, pid } => {
                let theirs = Speaker { build: build.clone(), pid: *pid, proto: *owner };
                let misfit = Misfit { ours: self.config.program.speaker(), theirs };
                let why = misfit.to_string();
                self.report(Event::VersionRefused { epoch, misfit: Box::new(misfit) }, out);
                why
            }
            Refusal::Proof => {
                self.turned_down(epoch, "the owner's claim changed while this session connected", out)
            }
            Refusal::Full => self.turned_down(epoch, "the group has as many sessions as it may have", out),
            Refusal::Protocol(why) => {
                self.turned_down(epoch, &format!("the owner refused what this session sent: {why}"), out)
            }
        };
        self.show(Role::Blocked { why }, out);
        self.pause(now, ahead)
    }

    fn turned_down(&mut self, epoch: Epoch, why: &str, out: &mut Vec<Effect>) -> String {
        self.report(Event::JoinRefused { epoch, why: why.to_owned() }, out);
        why.to_owned()
    }

    fn connect_failed(
        &mut self,
        now: Time,
        found: Found,
        failure: ConnectFailure,
        ahead: Option<Ahead>,
        out: &mut Vec<Effect>,
    ) -> State {
        let doubt = match failure {
            ConnectFailure::Silent => {
                drop_ahead(ahead, out);
                return self.suspect(now, found, None, None, out);
            }
            ConnectFailure::Refused | ConnectFailure::Closed => Doubt::NoListener,
            ConnectFailure::Missing => Doubt::Unreachable("its socket is gone".into()),
            ConnectFailure::Forbidden => Doubt::Unreachable("its socket is closed to this user".into()),
            ConnectFailure::Other(why) => Doubt::Unreachable(why),
        };
        self.lock(now, (found.epoch, found.reader), doubt, Duration::ZERO, ahead, out)
    }

    /// Tests the lock of a claim whose owner may be dead, at once or after `wait`; for up to `EOF_LOCK_WAIT` if it may
    /// be dying.
    pub(super) fn lock(
        &mut self,
        now: Time,
        (epoch, reader): (Epoch, Reader),
        doubt: Doubt,
        wait: Duration,
        ahead: Option<Ahead>,
        out: &mut Vec<Effect>,
    ) -> State {
        let asked = wait.is_zero();
        let due = if asked { now + ANSWER_WAIT } else { now + wait };
        let until = match doubt {
            Doubt::LinkLost | Doubt::NoListener => now + EOF_LOCK_WAIT,
            Doubt::Unreachable(_) => now,
        };
        if asked {
            out.push(Effect::TestLock { epoch });
        }
        State::Probing(Probing {
            step: Search::Locking { epoch, reader, doubt, until, tries: 0, asked, due },
            ahead,
        })
    }

    fn lock_tested(
        &mut self,
        now: Time,
        probing: Probing,
        tested: Epoch,
        lock: Lock,
        out: &mut Vec<Effect>,
    ) -> State {
        let (epoch, reader, doubt, until, tries, ahead) = match probing {
            Probing {
                step: Search::Locking { epoch, reader, doubt, until, tries, asked: true, .. },
                ahead,
            } if epoch == tested => (epoch, reader, doubt, until, tries, ahead),
            stale => return State::Probing(stale),
        };
        match lock {
            Lock::Free if doubt == Doubt::LinkLost && self.may_claim(reader) => {
                // The heir: nobody is better placed, or it let the better placed one go first.
                self.claim(now, Cause::Dead, None, ahead, false, out)
            }
            Lock::Free => self.found_dead(now, epoch, reader, None, ahead, out),
            Lock::Missing => self.pause(now, ahead),
            Lock::Held if now < until => {
                let due = (now + doubled(LOCK_STEP_MIN, LOCK_STEP_MAX, tries)).min(until);
                let step =
                    Search::Locking { epoch, reader, doubt, until, tries: tries + 1, asked: false, due };
                State::Probing(Probing { step, ahead })
            }
            Lock::Held => match doubt {
                Doubt::LinkLost => self.list(now, ahead, out),
                Doubt::NoListener => self.pause(now, ahead),
                Doubt::Unreachable(why) => {
                    self.unreachable(epoch, why, out);
                    self.pause(now, ahead)
                }
            },
        }
    }

    pub(super) fn unreachable(&mut self, epoch: Epoch, why: String, out: &mut Vec<Effect>) {
        self.show(
            Role::Blocked { why: format!("the owner of epoch {epoch} lives but cannot be reached: {why}") },
            out,
        );
        self.report(Event::OwnerUnreachable { epoch, why }, out);
    }

    /// Says why this session cannot join, as long as it cannot.
    pub(super) fn block(&mut self, why: String, out: &mut Vec<Effect>) {
        self.show(Role::Blocked { why: why.clone() }, out);
        let epoch = self.highest.next();
        self.report(Event::ClaimFailed { epoch, why }, out);
    }

    fn search_on(&mut self, now: Time, mut probing: Probing, out: &mut Vec<Effect>) -> State {
        if now < probing.due() {
            return State::Probing(probing);
        }
        let ahead = probing.ahead.take();
        match probing.step {
            Search::Listing { dead, .. } => self.list_again(now, dead, ahead, out),
            Search::Pausing { .. } => self.list_again(now, None, ahead, out),
            Search::Staggering { dead, .. } => self.list_again(now, Some(dead), ahead, out),
            Search::Connecting { found, attempt, .. } => {
                drop_ahead(ahead, out);
                // Kept open: an owner that was only late clears the suspicion by its Welcome.
                self.suspect(now, found, None, Some(attempt), out)
            }
            Search::Locking { epoch, reader, doubt, until, tries, .. } => {
                out.push(Effect::TestLock { epoch });
                let due = now + ANSWER_WAIT;
                let step = Search::Locking { epoch, reader, doubt, until, tries, asked: true, due };
                State::Probing(Probing { step, ahead })
            }
        }
    }

    /// Lists without a word about the role: a Blocked session stays shown as blocked until it joins.
    pub(super) fn list_again(
        &mut self,
        now: Time,
        dead: Option<Dead>,
        ahead: Option<Ahead>,
        out: &mut Vec<Effect>,
    ) -> State {
        out.push(Effect::List);
        State::Probing(Probing { step: Search::Listing { until: now + ANSWER_WAIT, dead }, ahead })
    }
}

/// Whether this build may claim over what the listing shows.
pub(super) fn reader_of(listing: &Listing) -> Reader {
    let readable = listing.claim.as_ref().is_none_or(|claim| claim.readable);
    if readable && listing.too_new.is_none() { Reader::Able } else { Reader::Unable }
}

pub(super) fn drop_ahead(ahead: Option<Ahead>, out: &mut Vec<Effect>) {
    drop_attempt(ahead.map(|ahead| ahead.attempt), out);
}

fn pausing(until: Time, ahead: Option<Ahead>) -> State {
    State::Probing(Probing { step: Search::Pausing { until }, ahead })
}
