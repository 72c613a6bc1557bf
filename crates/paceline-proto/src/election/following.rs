//! Following: watch the owner through its frames, and be ready when it ends.

use std::time::Duration;

use crate::{
    election::{
        Effect, Input,
        machine::{Core, drop_attempt},
        probing::reader_of,
        state::{Doubt, Following, Found, Link, Probing, Reader, Search, State},
        timing::{ANSWER_WAIT, HEIR_STAGGER, PREPARE_AFTER, RETRY_MAX, RETRY_MIN, doubled},
    },
    event::{Cause, Event},
    id::Epoch,
    limits::{EOF_FOLLOWER_WAIT, SUSPICION_AFTER},
    message::{KitAddress, Rank},
    time::Time,
};

impl Following {
    pub(super) fn due(&self) -> Time {
        let quiet = self.quiet_due();
        self.link.prepare_at.map_or(quiet, |at| at.min(quiet))
    }

    fn quiet_due(&self) -> Time {
        self.quiet_since + SUSPICION_AFTER
    }
}

impl Core {
    pub(super) fn following(
        &mut self,
        now: Time,
        mut following: Following,
        input: Input,
        out: &mut Vec<Effect>,
    ) -> State {
        match input {
            Input::Ping(ping) => {
                following.quiet_since = now;
                following.link.pinged = true;
                self.retries = 0;
                self.note_ping(ping);
                let heir = self.place().is_some();
                self.appointed(now, &mut following.link, heir, out);
                State::Following(following)
            }
            Input::Heir(heir) => {
                following.quiet_since = now;
                self.appointed(now, &mut following.link, heir, out);
                State::Following(following)
            }
            Input::Deadline { heard } => {
                following.quiet_since = following.quiet_since.max(heard.min(now));
                if following.link.prepare_at.is_some_and(|at| at <= now) {
                    self.prepare(now, &mut following.link, out);
                }
                if now < following.quiet_due() {
                    return State::Following(following);
                }
                let found = following.link.found.clone();
                self.suspect(now, found, Some(following.link), None, out)
            }
            Input::Suspended { ms } => {
                out.push(Effect::Event(Event::Suspended { ms }));
                following.quiet_since = now;
                State::Following(following)
            }
            Input::Eof { attempt } if attempt == following.link.attempt => {
                self.lost_owner(now, following.link, out)
            }
            Input::OwnerClosed => {
                drop_attempt(Some(following.link.attempt), out);
                self.lost_owner(now, following.link, out)
            }
            Input::Moved { epoch, to } => self.moved(now, following, epoch, to, out),
            Input::Go { .. } => {
                following.quiet_since = now;
                if !self.may_claim(following.link.found.reader) {
                    // The owner resumes when its time is up.
                    return State::Following(following);
                }
                self.claim(now, Cause::HandedOver, Some(following.link), None, false, out)
            }
            Input::Listed(listing) => {
                if listing.claim.as_ref().is_some_and(|claim| claim.epoch == following.link.found.epoch) {
                    following.link.found.reader = reader_of(&listing);
                    self.note_listing(&listing);
                    if following.link.heir {
                        self.prepare(now, &mut following.link, out);
                    }
                }
                State::Following(following)
            }
            Input::Welcomed { attempt, epoch, .. } => self.displaced(now, following, attempt, epoch, out),
            Input::Leave => self.left(out),
            Input::Promote { .. } => {
                out.push(Effect::Event(Event::HandoverAborted { why: "this session does not lead".into() }));
                State::Following(following)
            }
            Input::Start
            | Input::ListFailed { .. }
            | Input::LockTested { .. }
            | Input::Busy { .. }
            | Input::Refused { .. }
            | Input::ConnectFailed { .. }
            | Input::Eof { .. }
            | Input::KitMade(_)
            | Input::Claimed { .. }
            | Input::Adopted { .. }
            | Input::Fenced { .. }
            | Input::StoreFailed { .. }
            | Input::OwnerStopped(_)
            | Input::Drained { .. }
            | Input::Took { .. } => State::Following(following),
        }
    }

    /// The owner says whether this session is an heir.
    fn appointed(&mut self, now: Time, link: &mut Link, heir: bool, out: &mut Vec<Effect>) {
        if !heir {
            (link.heir, link.prepare_at) = (false, None);
            return self.spare_kit(now, out);
        }
        if !std::mem::replace(&mut link.heir, true) {
            link.prepare_at = Some(now + PREPARE_AFTER);
        } else if link.prepare_at.is_none() {
            self.prepare(now, link, out);
        }
    }

    /// An heir looks at the owner's claim, to know whether it may claim over it, and then makes a kit, which tells the
    /// owner that it may. All others look when they have to.
    fn prepare(&mut self, now: Time, link: &mut Link, out: &mut Vec<Effect>) {
        link.prepare_at = None;
        match link.found.reader {
            Reader::Unknown if self.config.rank != Rank::Observer => {
                out.push(Effect::List);
                // If nothing is answered, it is asked again.
                link.prepare_at = Some(now + ANSWER_WAIT);
            }
            Reader::Able => {
                let own = self.config.session;
                let known = self.heirs.iter().any(|heir| heir.session == own && heir.kit.is_some());
                self.want_kit(now, known, out);
            }
            Reader::Unknown | Reader::Unable => self.spare_kit(now, out),
        }
    }

    /// The link ended, or its owner said that it ends: the first heir claims as soon as the lock is free; the others
    /// wait in its backlog, and look themselves a little later.
    pub(super) fn lost_owner(&mut self, now: Time, link: Link, out: &mut Vec<Effect>) -> State {
        self.show(super::Role::Joining, out);
        let Found { epoch, reader, .. } = link.found;
        let ahead = self.look_ahead(epoch, out);
        match self.place() {
            Some(place @ (0 | 1)) if reader == Reader::Able => {
                let wait = if place == 0 { Duration::ZERO } else { HEIR_STAGGER };
                self.lock(now, (epoch, reader), Doubt::LinkLost, wait, ahead, out)
            }
            // The claim was never looked at: the listing does that.
            Some(0 | 1) if reader == Reader::Unknown => self.list(now, ahead, out),
            Some(_) | None => {
                // An owner that accepts and ends at once, again and again, is asked less and less often.
                let backoff =
                    if link.pinged { Duration::ZERO } else { doubled(RETRY_MIN, RETRY_MAX, self.retries) };
                self.retries = if link.pinged { 0 } else { self.retries.saturating_add(1) };
                let until = now + EOF_FOLLOWER_WAIT.max(backoff);
                State::Probing(Probing { step: Search::Pausing { until }, ahead })
            }
        }
    }

    fn moved(
        &mut self,
        now: Time,
        following: Following,
        epoch: Epoch,
        to: KitAddress,
        out: &mut Vec<Effect>,
    ) -> State {
        if epoch <= following.link.found.epoch {
            return State::Following(following);
        }
        drop_attempt(Some(following.link.attempt), out);
        self.show(super::Role::Joining, out);
        self.connect(now, Found { epoch, address: to, reader: Reader::Unknown }, None, out)
    }

    /// A dropped attempt was welcomed by a newer owner before the shell heard that it was dropped: the shell may have
    /// moved the link there and back to nowhere, so begin again.
    fn displaced(
        &mut self,
        now: Time,
        following: Following,
        attempt: u64,
        epoch: Epoch,
        out: &mut Vec<Effect>,
    ) -> State {
        if attempt == following.link.attempt || epoch <= following.link.found.epoch {
            return State::Following(following);
        }
        drop_attempt(Some(attempt), out);
        drop_attempt(Some(following.link.attempt), out);
        self.list(now, None, out)
    }
}
