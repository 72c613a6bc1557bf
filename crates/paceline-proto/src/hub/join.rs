//! How a link begins, changes its interest, and ends.

use bytes::Bytes;

use super::{
    Effect, Hub, QueryFact, Refusal,
    channels::Mode,
    link::{Item, Lag, Link, Phase, Terms},
    links::{Slot, is_stuck, wake},
    snapshot::{Job, Keys},
    tails::Collect,
};
use crate::{
    event::Event,
    id::{Channel, Key, LinkId, Mark, Offset, Position, Stream},
    limits::{INTEREST_MAX, KEY_MAX, SESSIONS_MAX},
    message::{Gap, GapCause, Hello, ToSession, Welcome},
    program::{Features, Speaker},
    ring::Kept,
};

impl Hub {
    pub(super) fn linked(&mut self, id: LinkId, hello: Hello, remote: bool, out: &mut Vec<Effect>) {
        let known = self.members.link_of(hello.session);
        if let Some(old) = known.and_then(|old| self.links.slot(old)) {
            self.unlink(old, "the session has a newer connection", out);
        }
        let terms = match self.terms(&hello, out) {
            Ok(terms) => terms,
            Err(refusal) => {
                self.links.part(id, ToSession::Refused(refusal));
                out.push(Effect::Wake(id));
                out.push(Effect::Unlink { link: id, why: "turned away".to_owned() });
                return;
            }
        };
        self.arrivals += 1;
        let link = Link::new(id, &hello, terms, remote, self.arrivals, self.now);
        self.members.joined(hello.session, &hello.label, hello.pid, id, self.now);
        let slot = self.links.add(link);
        out.push(Effect::Event(Event::Joined { link: id, session: hello.session }));
        let (session, presence) = (hello.session, Some(hello.presence));
        out.push(Effect::Presence { session, presence });
        self.tell_engine(QueryFact::Presence { session, presence }, out);
        self.welcome(slot, out);
        self.want_items(out);
    }

    /// What is agreed on with a newcomer, or why it cannot be.
    fn terms(&mut self, hello: &Hello, out: &mut Vec<Effect>) -> Result<Terms, Refusal> {
        let program = &self.program;
        let Some(proto) = program.proto.common(hello.proto) else {
            let theirs = Speaker { build: hello.build.clone(), pid: hello.pid, proto: hello.proto };
            let why = format!("{theirs} speaks {}, this primary {}", hello.proto, program.proto);
            self.stats.refused_peers += 1;
            out.push(Effect::Event(Event::PeerRefused { why }));
            let (owner, build, pid) = (program.proto, program.build.clone(), program.pid);
            return Err(Refusal::Version { owner, build, pid });
        };
        if self.links.len() >= SESSIONS_MAX {
            out.push(Effect::Event(Event::LimitReached { limit: "SESSIONS_MAX" }));
            return Err(Refusal::Full);
        }
        if hello.last.epoch > self.epoch {
            let why = format!("it followed epoch {}, this is {}", hello.last.epoch, self.epoch);
            return Err(Refusal::Protocol(why));
        }
        Ok(Terms { proto, features: program.features.common(hello.features) })
    }

    fn welcome(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get(slot) else { return };
        let welcome = Welcome {
            epoch: self.epoch,
            proto: link.proto,
            owner: self.owner,
            adopting: !self.adopted,
            offer_since: self.offer_since(link),
            positions: self
                .channels
                .iter()
                .filter_map(|(channel, state)| Some((channel.clone(), state.told()?.clone())))
                .collect(),
            features: link.features,
            more: Bytes::new(),
        };
        self.tell(slot, ToSession::Welcome(welcome), out);
        // At once, so that even a session that has just come knows who counts and what is stable.
        let (ping, members) = (self.ping_without_members(), self.members.list());
        self.ping_link(slot, ping, &members, out);
    }

    /// What a session changed since this place may be unknown here.
    fn offer_since(&self, link: &Link) -> Option<Mark> {
        let offered = self.members.get(link.session).is_some_and(|member| member.offered);
        if link.last.epoch == self.epoch && offered {
            return Some(link.last);
        }
        // Two followers of one owner differ only in what came after the stable place.
        let same_owner = self.complete && link.last.epoch == self.carried_last.epoch;
        let stable = self.carried_stable;
        let offset = if stable.epoch == self.carried_last.epoch { stable.offset } else { Offset::ZERO };
        same_owner.then(|| Mark::new(self.carried_last.epoch, offset))
    }

    /// The session saw a hole: everything begins anew on the same link.
    pub(super) fn resync(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        self.dismiss(slot, out);
        let Some(link) = self.links.get_mut(slot) else { return };
        let keys: Vec<Key> = link.keys.iter().cloned().collect();
        let streams: Vec<Stream> = link.streams.iter().cloned().collect();
        link.queue.retain(|item| matches!(item, Item::Message { .. }));
        link.messages = link.queue.len();
        (link.frames, link.bytes) = (0, 0);
        link.phase = Phase::Offering;
        link.conflated = false;
        link.lag.clear();
        link.replayed.clear();
        link.offer.clear();
        link.applied = std::sync::Arc::default();
        link.archive = None;
        link.laid.clear();
        link.declared = 0;
        link.options_ahead.clear();
        // Not `last`: a delta is not to be trusted after a hole.
        link.had_private = true;
        let session = link.session;
        self.unsubscribe(slot, &keys, &streams, out);
        if let Some(member) = self.members.get_mut(session) {
            member.clean = false;
        }
        self.stats.resyncs += 1;
        self.welcome(slot, out);
        self.choose_heirs(out);
    }

    pub(super) fn subscribe(
        &mut self,
        slot: Slot,
        keys: Vec<Key>,
        streams: Vec<Stream>,
        out: &mut Vec<Effect>,
    ) -> Result<(), &'static str> {
        if keys.iter().any(|key| key.0.len() > KEY_MAX) || streams.iter().any(|s| s.0.len() > KEY_MAX) {
            return Err("a key or stream name that is too long");
        }
        keys.iter().for_each(|key| self.links.subscribe_key(slot, key));
        streams.iter().for_each(|stream| self.links.subscribe_stream(slot, stream));
        let at = self.log.end();
        let Some(link) = self.links.get_mut(slot) else { return Ok(()) };
        for key in &keys {
            link.options_ahead.remove(key);
        }
        if link.keys.len() > INTEREST_MAX || link.streams.len() > INTEREST_MAX {
            return Err("more subscriptions than a session may have");
        }
        if link.is_joined() {
            // In line with the batches: what is queued already comes before it, everything newer after it.
            let states = self.queries.states(keys.iter());
            let job = Job { keys: Keys::List(keys.clone().into()), states, asked: true, ..Job::empty(at) };
            link.queue.push_back(Item::Job(Box::new(job)));
            link.messages += 1;
            if link.messages > super::MESSAGES_MAX {
                return Err("it asks without reading the answers");
            }
            wake(link, out);
            let session = link.session;
            keys.into_iter().for_each(|key| self.tell_engine(QueryFact::Observed { session, key }, out));
        }
        Ok(())
    }

    pub(super) fn unsubscribe(
        &mut self,
        slot: Slot,
        keys: &[Key],
        streams: &[Stream],
        out: &mut Vec<Effect>,
    ) {
        let Some(session) = self.links.get(slot).map(|link| link.session) else { return };
        for key in keys {
            self.links.unsubscribe_key(slot, key);
            self.tell_engine(QueryFact::Unobserved { session, key: key.clone() }, out);
        }
        streams.iter().for_each(|stream| self.links.unsubscribe_stream(slot, stream));
    }

    /// Interest and offers of a link are in: from here on it gets every frame of its interest.
    pub(super) fn offered(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get(slot) else { return };
        let session = link.session;
        let clean = self.members.get(session).is_some_and(|member| member.clean);
        let delta = clean
            && !link.had_private
            && link.last.epoch == self.epoch
            && self.log.since(link.last.offset).is_some();
        if let Some(member) = self.members.get_mut(session) {
            member.offered = true;
            member.stood.clear();
        }
        self.take_settled_ids(slot, out);
        self.layers_offered(slot, out);
        if delta {
            self.send_delta(slot, out);
        } else {
            self.send_snapshot(slot, out);
        }
        self.tell_interest(slot, out);
        self.choose_heirs(out);
        self.offers_moved(out);
        self.collect_all(out);
    }

    fn send_delta(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get(slot) else { return };
        let after = link.last.offset;
        let wanted = |frame: &crate::message::Frame| match &frame.body {
            crate::message::Body::Value(held) => link.keys.contains(&held.key),
            crate::message::Body::Reset { key, .. } | crate::message::Body::Removed { key } => {
                link.keys.contains(key)
            }
            crate::message::Body::Layers(layered) => {
                link.features.has(Features::LAYERS) && link.keys.contains(&layered.key)
            }
            crate::message::Body::Event { stream, .. } => link.streams.contains(stream),
            crate::message::Body::Invalidate { .. }
            | crate::message::Body::Gap(_)
            | crate::message::Body::Connection(_) => true,
            // The states come in whole.
            crate::message::Body::Query { .. } | crate::message::Body::Nothing => false,
        };
        let missed = self.log.since(after).into_iter().flatten();
        let missed: Vec<_> = missed
            .filter(|logged| !logged.replayed && wanted(&logged.shared.frame))
            .map(|logged| (logged.shared.clone(), logged.atom_end))
            .collect();
        let at = self.log.end();
        let Some(link) = self.links.get_mut(slot) else { return };
        link.phase = Phase::Joined;
        link.sent = after;
        link.told =
            link.offer.iter().map(|(channel, offer)| (channel.clone(), offer.covered.clone())).collect();
        let states = self.queries.states(link.keys.iter());
        link.queue.push_back(Item::Job(Box::new(Job { states, ..Job::empty(after) })));
        let mut over = false;
        for (shared, atom_end) in missed {
            over |= link.push_frame(shared, atom_end, self.now);
        }
        link.queue.push_back(Item::Flush { at, ack_now: false });
        wake(link, out);
        self.stats.deltas += 1;
        if over {
            self.conflate(slot, out);
        }
    }

    fn send_snapshot(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let channels: Vec<Channel> = self.channels.keys().cloned().collect();
        let mut kept = Vec::new();
        for channel in &channels {
            kept.extend(self.tail_for(slot, channel, out));
        }
        let at = self.log.end();
        let Some(link) = self.links.get(slot) else { return };
        let mut positions = self.positions_for(link);
        for (channel, state) in &self.channels {
            if state.broken && !link.offer.contains_key(channel) {
                // Between this position and the next message lies a gap: a newcomer begins after it.
                positions.remove(channel);
            }
            // A newcomer begins where this owner stands, even while the channel may begin further back for others.
            let own = state.collect.as_ref().and_then(Collect::own);
            if let Some(own) = own.filter(|_| !link.offer.contains_key(channel)) {
                positions.entry(channel.clone()).or_insert_with(|| own.clone());
            }
        }
        let flowing = |mode: Mode| mode == Mode::Flowing;
        // An owner that does not know who was there before it cannot say that a channel has not begun.
        let known = self.members.is_known();
        let unbegun = self
            .channels
            .iter()
            .filter(|(_, state)| known && state.position.is_none() && flowing(state.mode));
        let job = Job {
            keys: Keys::Interest,
            states: self.queries.states(link.keys.iter()),
            kept: kept.into(),
            ops: self.ops.invalidations().map(|(mark, op)| (mark, op.clone())).collect(),
            connections: self.connections.values().cloned().collect(),
            positions: positions.clone().into_iter().collect(),
            rings: unbegun.map(|(channel, _)| (channel.clone(), None)).collect(),
            applied: self.ops.settled(),
            ..Job::empty(at)
        };
        let Some(link) = self.links.get_mut(slot) else { return };
        link.phase = Phase::Joined;
        link.sent = at;
        link.told = positions;
        link.queue.push_back(Item::Job(Box::new(job)));
        wake(link, out);
        self.stats.snapshots += 1;
    }

    /// Events and gaps of a channel that a joining link lacks. Where the ring does not reach back far enough the upstream
    /// is asked to repeat, or the link is shown a gap.
    fn tail_for(&mut self, slot: Slot, channel: &Channel, out: &mut Vec<Effect>) -> Vec<Kept> {
        let (Some(link), Some(state)) = (self.links.get(slot), self.channels.get(channel)) else {
            return Vec::new();
        };
        let covered = link.offer.get(channel).map(|offer| offer.covered.clone());
        let Some(position) = state.position.clone() else {
            let resumable = covered.as_ref().filter(|at| state.resumes_at(at));
            match (resumable, state.mode) {
                // It began at "now" and nothing came yet: whoever followed it before knows better.
                (Some(at), Mode::Flowing) => {
                    self.rewind_to_first(channel, at.clone(), out);
                    return Vec::new();
                }
                // It is opened there, or further back, once the offers are in: the upstream repeats what is behind.
                (Some(_), Mode::Waiting) => return Vec::new(),
                (Some(_), Mode::Collecting) | (None, _) => {}
            }
            let gaps = self.unseen_gaps(channel, link.last);
            let waited = covered.as_ref().is_some_and(|at| *at == Position::START);
            let elsewhere = covered.is_some() && (!waited || link.last.epoch != self.epoch);
            let unserved = elsewhere && state.mode == Mode::Flowing;
            if unserved && gaps.is_empty() && !link.streams.is_empty() {
                return vec![self.resync_gap(channel, covered, None, out)];
            }
            return gaps;
        };
        let can_rewind = |at: &Position| {
            state.mode == Mode::Flowing && state.resumes_at(at) && position.covers(at) == Some(true)
        };
        if link.streams.is_empty() {
            let lacks = |at: &&Position| {
                !self.complete
                    && state.applied_from.as_ref().is_some_and(|from| at.covers(from) == Some(false))
            };
            if let Some(at) = covered.as_ref().filter(lacks).filter(|at| can_rewind(at)).cloned() {
                // This owner may never have had the values in between.
                self.rewind(channel, &at, out);
            }
            return Vec::new();
        }
        let Some(at) = covered else { return Vec::new() };
        if at == Position::START {
            let tail = self.rings.tail(channel, None, link.last, link.interest());
            return tail.unwrap_or_else(|| self.resync_from(slot, channel, None, position, out));
        }
        if let Some(tail) = self.rings.tail(channel, Some(&at), link.last, link.interest()) {
            return tail;
        }
        if at.covers(&position) == Some(true) {
            return self.unseen_gaps(channel, link.last);
        }
        if can_rewind(&at) {
            if let Some(link) = self.links.get_mut(slot) {
                link.lag.insert(channel.clone(), Lag { at: at.clone(), stalled: false });
                link.replayed.insert(channel.clone(), 0);
            }
            self.rewind(channel, &at, out);
            return Vec::new();
        }
        self.resync_from(slot, channel, Some(at), position, out)
    }

    fn unseen_gaps(&self, channel: &Channel, last: Mark) -> Vec<Kept> {
        let unseen = |kept: &&Kept| matches!(kept, Kept::Gap { mark, .. } if *mark > last);
        self.rings.of(channel).filter(unseen).cloned().collect()
    }

    /// The link goes on from where the channel stands; a gap that lies there is still ahead of it.
    fn resync_from(
        &self,
        slot: Slot,
        channel: &Channel,
        after: Option<Position>,
        position: Position,
        out: &mut Vec<Effect>,
    ) -> Vec<Kept> {
        let mut kept = vec![self.resync_gap(channel, after, Some(position), out)];
        if self.channels.get(channel).is_some_and(|state| state.broken)
            && let Some(link) = self.links.get(slot)
        {
            kept.extend(self.unseen_gaps(channel, link.last).pop());
        }
        kept
    }

    fn resync_gap(
        &self,
        channel: &Channel,
        after: Option<Position>,
        upto: Option<Position>,
        out: &mut Vec<Effect>,
    ) -> Kept {
        out.push(Effect::Event(Event::GapShown { channel: channel.clone() }));
        let after = after.filter(|at| *at != Position::START);
        let gap = Gap { channel: channel.clone(), after, upto, why: GapCause::Resync };
        Kept::Gap { mark: self.log.mark(), gap }
    }

    fn rewind_to_first(&mut self, channel: &Channel, at: Position, out: &mut Vec<Effect>) {
        if let Some(state) = self.channels.get_mut(channel) {
            state.position = Some(at.clone());
            state.stepped_back = state.opened;
            state.broken = false;
            state.applied_from = Some(at.clone());
            state.applied_upto = Some(at.clone());
            state.moved_at = self.log.end().next();
            self.rings.set_floor(channel.clone(), crate::ring::Floor::After(at.clone()));
            // What those missed who waited for the first message ends here; nobody who stands here missed anything.
            self.rings.close_gap(channel, at.clone());
        }
        self.rewind(channel, &at, out);
    }

    pub(super) fn ack(
        &mut self,
        slot: Slot,
        offset: Offset,
        out: &mut Vec<Effect>,
    ) -> Result<(), &'static str> {
        let Some(link) = self.links.get_mut(slot) else { return Ok(()) };
        if offset > link.sent {
            return Err("an acknowledgement of what it was not sent");
        }
        if link.acked.is_some_and(|acked| offset < acked) {
            return Err("an acknowledgement that goes back");
        }
        link.acked = Some(offset);
        let session = link.session;
        self.members.acked(session, offset);
        self.heir_acked(slot, offset, out);
        self.drained(out);
        Ok(())
    }

    /// Drops a link from this side; its last words may still be written.
    pub(super) fn unlink(&mut self, slot: Slot, why: &str, out: &mut Vec<Effect>) {
        let Some(id) = self.links.get(slot).map(|link| link.id) else { return };
        out.push(Effect::Unlink { link: id, why: why.to_owned() });
        self.gone(slot, why, out);
    }

    /// A peer broke a rule: only its own link suffers.
    pub(super) fn violation(&mut self, slot: Slot, why: &str, out: &mut Vec<Effect>) {
        if let Some(link) = self.links.get(slot) {
            let why = format!("{} ({}), process {}: {why}", link.label, link.session.short(), link.pid);
            out.push(Effect::Event(Event::PeerRefused { why }));
        }
        self.stats.refused_peers += 1;
        self.unlink(slot, why, out);
    }

    /// The link is over.
    pub(super) fn gone(&mut self, slot: Slot, why: &str, out: &mut Vec<Effect>) {
        let Some(link) = self.links.remove(slot) else { return };
        let (id, session) = (link.id, link.session);
        let flowing = self.channels.values().all(|state| state.mode == Mode::Flowing);
        let clean = link.is_joined() && link.lag.is_empty() && !link.had_private && flowing;
        self.members.lost(session, id, clean, self.now);
        if let Some(member) = self.members.get_mut(session) {
            member.stood.clone_from(&link.offer);
            if self.wants.asks(id) && !self.complete {
                // What was wanted of its offer did not come: nobody can be up to date before it comes back.
                member.offered = false;
                self.leveled = false;
                self.dismiss_all(out);
            }
        }
        self.held_back.retain(|held| held.link != id);
        self.submits.drop_link(id);
        self.promotes.retain(|(asker, _)| *asker != id);
        out.push(Effect::Event(Event::Unlinked { link: id, session, why: why.to_owned() }));
        out.push(Effect::Presence { session, presence: None });
        self.tell_gone(session, id, out);
        self.find_conflicts(out);
        if link.heir.is_some() {
            out.push(Effect::Event(Event::HeirDismissed { session }));
            self.answer_waiting_ops(out);
        }
        if self.members.get(session).is_some_and(|member| member.link.is_none()) {
            out.push(Effect::LookAtMember(session));
        }
        self.values_lost(id, out);
        self.tail_lost(id, out);
        self.choose_heirs(out);
    }

    /// The session is gone for good: it does not count any more.
    pub(super) fn leave(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        if let Some(session) = self.links.get(slot).map(|link| link.session) {
            self.members.remove(session);
            self.unlink(slot, "it left", out);
            self.layers_orphaned(session, out);
            self.offers_moved(out);
            self.collect_all(out);
        }
    }

    /// Disconnects links that take nothing.
    pub(super) fn drop_stuck(&mut self, out: &mut Vec<Effect>) {
        let now = self.now;
        let stuck: Vec<Slot> =
            self.links.iter().filter(|(_, link)| is_stuck(link, now)).map(|(slot, _)| slot).collect();
        for slot in stuck {
            self.unlink(slot, "it took nothing for too long", out);
        }
    }
}
