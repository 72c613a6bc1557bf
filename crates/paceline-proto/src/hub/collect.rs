//! A new owner collects what survivors saw before it publishes anything newer, and decides where to resume.

use std::collections::BTreeSet;

use super::{
    Effect, Hub,
    channels::{ChannelState, Mode},
    links::Slot,
    log::To,
    tails::{Base, Collect, Pull, Source, Whole, lower, number},
};
use crate::{
    event::Event,
    id::{Channel, LinkId, Mark, Position, Stream, Trace},
    limits::{KEY_MAX, RING_BYTES, RING_FRAMES, VALUE_MAX},
    message::{Body, ChannelOffer, Gap, GapCause, HeldEvent, ToSession},
    ring::{Floor, Kept},
};

impl Hub {
    /// Goes on with a channel's collection: asks the next survivor, or finishes.
    pub(super) fn collect(&mut self, channel: &Channel, out: &mut Vec<Effect>) {
        let Some(state) = self.channels.get(channel) else { return };
        let Some(collect) = &state.collect else { return };
        let late = self.now >= self.tail_deadline;
        if collect.pull.is_some() && !late {
            return;
        }
        if !late && let Some((slot, after)) = self.next_source(channel) {
            self.ask_for_tail(channel, slot, after, out);
            return;
        }
        if self.offers_done {
            self.finish_collecting(channel, out);
        }
    }

    pub(super) fn collect_all(&mut self, out: &mut Vec<Effect>) {
        let channels: Vec<Channel> = self.channels.keys().cloned().collect();
        for channel in channels {
            self.collect(&channel, out);
        }
    }

    /// The lowest place from which somebody must be served.
    fn base(&self, channel: &Channel) -> Base {
        let Some(state) = self.channels.get(channel) else { return Base::Unknown };
        if let Some(at) = &state.position {
            return Base::At(at.clone());
        }
        let own = self.carried_basis.get(channel);
        let mut base = own.map_or(Base::Unknown, Base::of);
        let joined = self.links.iter().filter_map(|(_, link)| link.offer.get(channel));
        for offer in joined.chain(self.members.stood(channel)) {
            base = lower(base, Base::of(&offer.covered));
        }
        let followed = |last: Mark| last != Mark::ZERO && last.epoch != self.epoch;
        let waited = followed(self.carried_last) && !self.own_streams.is_empty()
            || self.links.iter().any(|(_, link)| followed(link.last) && !link.streams.is_empty());
        match base {
            // Somebody followed an owner that could not say where the channel stood.
            Base::Unknown if waited => Base::Start,
            base => base,
        }
    }

    /// The furthest place anybody reached, as far as it compares with the base.
    fn goal(&self, channel: &Channel, base: &Base) -> Option<Position> {
        let own = self.channels.get(channel).and_then(|state| state.collect.as_ref()?.own.as_ref());
        let offers = self.links.iter().filter_map(|(_, link)| Some(&link.offer.get(channel)?.covered));
        let mut goal: Option<&Position> = base.position();
        for at in own.into_iter().chain(offers) {
            let further = goal.is_none_or(|goal| at.covers(goal) == Some(true));
            if further && *at != Position::START && number(at).is_some() {
                goal = Some(at);
            }
        }
        goal.cloned()
    }

    /// Which streams the sources so far hold without a hole.
    fn whole(&self, sources: &[Source], base: &Base, goal: &Position) -> (Whole, bool) {
        let good: Vec<&Source> =
            sources.iter().filter(|source| source.covers(goal) && source.reaches(base)).collect();
        if good.iter().any(|source| source.streams.is_none()) {
            return (Whole::All, true);
        }
        let held: BTreeSet<Stream> =
            good.iter().flat_map(|source| source.streams.iter().flatten()).cloned().collect();
        let mut wanted = self.links.subscribed_streams();
        wanted.extend(self.own_streams.iter().cloned());
        let enough = wanted.is_subset(&held);
        (Whole::Only(held), enough)
    }

    /// The next survivor worth asking: the most advanced first, up-to-date heirs before others.
    fn next_source(&self, channel: &Channel) -> Option<(Slot, Option<Position>)> {
        let state = self.channels.get(channel)?;
        let collect = state.collect.as_ref()?;
        let base = self.base(channel);
        if state.mode == Mode::Waiting && base != Base::Start {
            // The upstream repeats everything after the base.
            return None;
        }
        let goal = self.goal(channel, &base)?;
        if base == Base::Unknown || base.position() == Some(&goal) {
            return None;
        }
        if self.whole(&collect.sources, &base, &goal).1 {
            return None;
        }
        let mut best: Option<(Slot, &ChannelOffer)> = None;
        for (slot, link) in self.links.iter() {
            let Some(offer) = link.offer.get(channel).filter(|_| link.is_joined()) else { continue };
            let ahead = match base.position() {
                Some(at) => at.covers(&offer.covered) == Some(false),
                None => offer.covered != Position::START,
            };
            let asked = collect.asked.get(&link.id).is_some_and(|from| match (from, base.position()) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(from), Some(at)) => at.covers(from) == Some(true),
            });
            let better = best.is_none_or(|(_, other)| {
                let further = offer.covered.covers(&other.covered) == Some(true);
                let equal = other.covered.covers(&offer.covered) == Some(true);
                further && (!equal || (offer.complete && !other.complete))
            });
            if ahead && !asked && better {
                best = Some((slot, offer));
            }
        }
        let (slot, offer) = best?;
        // Of a ring from the start everything is wanted: its first event tells where it really begins.
        let after = base.position().filter(|_| offer.ring_after.is_some()).cloned();
        Some((slot, after))
    }

    fn ask_for_tail(
        &mut self,
        channel: &Channel,
        slot: Slot,
        after: Option<Position>,
        out: &mut Vec<Effect>,
    ) {
        let Some(link) = self.links.get(slot) else { return };
        let (id, session) = (link.id, link.session);
        let Some(offer) = link.offer.get(channel).cloned() else { return };
        let streams = (!offer.complete).then(|| link.streams.clone());
        let Some(collect) = self.channels.get_mut(channel).and_then(|state| state.collect.as_mut()) else {
            return;
        };
        collect.asked.insert(id, after.clone());
        let after_asked = after.clone();
        collect.pull = Some(Pull {
            link: id,
            session,
            offer,
            after: after_asked,
            streams,
            events: Vec::new(),
            bytes: 0,
        });
        self.tell(slot, ToSession::WantTail { channel: channel.clone(), after }, out);
    }

    /// A piece of a tail. The text says what is wrong with it.
    pub(super) fn tail_came(
        &mut self,
        link: LinkId,
        channel: &Channel,
        events: Vec<HeldEvent>,
        end: bool,
        out: &mut Vec<Effect>,
    ) -> Result<(), &'static str> {
        let collect = self.channels.get_mut(channel).and_then(|state| state.collect.as_mut());
        let Some(collect) =
            collect.filter(|collect| collect.pull.as_ref().is_some_and(|pull| pull.link == link))
        else {
            // It came too late to be of use.
            return Ok(());
        };
        let Some(pull) = &mut collect.pull else { return Ok(()) };
        for event in events {
            let fits = event.stream.0.len() <= KEY_MAX && event.data.len() <= VALUE_MAX;
            if !fits || event.origin.0 != *channel {
                return Err("an event that does not belong in the tail");
            }
            pull.bytes += 96 + event.data.len();
            pull.events.push(event);
        }
        if pull.events.len() > RING_FRAMES || pull.bytes > RING_BYTES + VALUE_MAX {
            return Err("a tail longer than a ring");
        }
        if end && let Some(pull) = collect.pull.take() {
            let Pull { offer, after, streams, events, session, .. } = pull;
            let source = Source::new(offer.ring_after, after, offer.covered, streams, &events);
            let news = collect.add(events);
            collect.sources.push(source);
            self.stats.tails += 1;
            out.push(Effect::Event(Event::TailPulled {
                channel: channel.clone(),
                from: session,
                events: news,
            }));
            self.collect(channel, out);
        }
        Ok(())
    }

    /// The survivor asked is gone: the next one is asked.
    pub(super) fn tail_lost(&mut self, link: LinkId, out: &mut Vec<Effect>) {
        let asked = |state: &ChannelState| {
            state
                .collect
                .as_ref()
                .and_then(|collect| collect.pull.as_ref())
                .is_some_and(|pull| pull.link == link)
        };
        let channels: Vec<Channel> = self
            .channels
            .iter()
            .filter(|(_, state)| asked(state))
            .map(|(channel, _)| channel.clone())
            .collect();
        for channel in channels {
            if let Some(collect) = self.channels.get_mut(&channel).and_then(|state| state.collect.as_mut()) {
                collect.pull = None;
            }
            self.collect(&channel, out);
        }
    }

    /// Publishes what was collected and goes over to the upstream.
    pub(super) fn finish_collecting(&mut self, channel: &Channel, out: &mut Vec<Effect>) {
        let base = self.base(channel);
        let goal = self.goal(channel, &base);
        let hopeless = self.nobody_awaited();
        // An owner that does not know who was there before it cannot say that a channel has not begun.
        let known = self.members.is_known();
        let Some(state) = self.channels.get_mut(channel) else { return };
        let Some(collect) = state.collect.take() else { return };
        let mode = state.mode;
        if mode == Mode::Waiting && goal.is_none() && !hopeless {
            // Only an offer can tell where the channel stands.
            state.collect = Some(collect);
            return;
        }
        if state.position.is_none() {
            state.position = base.position().cloned();
            match base.position() {
                Some(at) => self.rings.set_floor(channel.clone(), Floor::After(at.clone())),
                None if known => self.rings.set_floor(channel.clone(), Floor::Start),
                None => {}
            }
            state.applied_from.clone_from(&state.position);
            state.applied_upto.clone_from(&state.position);
            state.moved_at = self.log.end().next();
        }
        state.raise_horizon(goal.as_ref());
        if let Some(goal) = goal.filter(|goal| base != Base::Unknown && base.position() != Some(goal)) {
            let (whole, enough) = self.whole(&collect.sources, &base, &goal);
            let wanted = match mode {
                Mode::Collecting => true,
                // The upstream repeats everything after the base, for those too who lack values.
                Mode::Waiting => base == Base::Start,
                Mode::Flowing => enough,
            };
            if wanted {
                self.publish_collected(channel, collect, &base, goal, whole, out);
            }
        }
        self.show_incomparable(channel, out);
        let Some(state) = self.channels.get_mut(channel) else { return };
        if base == Base::Start && state.position.is_none() && mode != Mode::Flowing {
            // Somebody waited for its first message, and nobody knows whether it came meanwhile.
            self.declare_gap(channel, None, out);
        }
        let Some(state) = self.channels.get_mut(channel) else { return };
        state.mode = Mode::Flowing;
        match mode {
            Mode::Waiting => {
                if state.position.as_ref().is_some_and(|at| !state.resumes_at(at)) {
                    self.lose_continuity(channel, out);
                }
                self.open(channel, out);
            }
            Mode::Collecting => self.lose_continuity(channel, out),
            Mode::Flowing => {}
        }
        self.publish_buffered(channel, out);
        self.choose_heirs(out);
    }

    /// Who stands somewhere that does not compare with where the channel goes on can only go on from there as well.
    fn show_incomparable(&mut self, channel: &Channel, out: &mut Vec<Effect>) {
        let Some(position) = self.channels.get(channel).and_then(|state| state.position.clone()) else {
            return;
        };
        let lost = |offer: &ChannelOffer| {
            offer.covered != Position::START && offer.covered.covers(&position).is_none()
        };
        let lost: Vec<(Slot, Position)> = self
            .links
            .iter()
            .filter(|(_, link)| link.is_joined() && !link.streams.is_empty())
            .filter_map(|(slot, link)| Some((slot, link.offer.get(channel).filter(|offer| lost(offer))?)))
            .filter(|(slot, _)| self.links.get(*slot).is_some_and(|link| !link.told.contains_key(channel)))
            .map(|(slot, offer)| (slot, offer.covered.clone()))
            .collect();
        for (slot, after) in lost {
            let upto = Some(position.clone());
            let gap = Gap { channel: channel.clone(), after: Some(after), upto, why: GapCause::Resync };
            self.private_gap(slot, gap, out);
        }
    }

    /// Publishes collected events after the base, in order; links that miss streams of them are shown a gap first.
    fn publish_collected(
        &mut self,
        channel: &Channel,
        collect: Collect,
        base: &Base,
        goal: Position,
        whole: Whole,
        out: &mut Vec<Effect>,
    ) {
        if let Whole::Only(streams) = &whole {
            let lacking: Vec<Slot> = self
                .links
                .iter()
                .filter(|(_, link)| link.is_joined() && !link.streams.is_subset(streams))
                .filter(|(_, link)| {
                    link.offer.get(channel).is_none_or(|offer| offer.covered.covers(&goal) != Some(true))
                })
                .map(|(slot, _)| slot)
                .collect();
            for slot in lacking {
                let gap = Gap {
                    channel: channel.clone(),
                    after: base.position().cloned(),
                    upto: Some(goal.clone()),
                    why: GapCause::Upstream,
                };
                self.private_gap(slot, gap, out);
            }
        }
        let first = base.position().and_then(number);
        let news =
            collect.messages.into_iter().filter(|(number, _)| first.is_none_or(|first| *number > first));
        for (_, message) in news {
            let mut events: Vec<HeldEvent> = message.into_values().flatten().collect();
            events.sort_by_key(|event| event.mark);
            let mut atom = self.log.atom(Trace::NONE);
            for event in events {
                let HeldEvent { origin, stream, data, .. } = event;
                let kept = HeldEvent {
                    mark: atom.mark(),
                    origin: origin.clone(),
                    stream: stream.clone(),
                    data: data.clone(),
                };
                self.rings.push(Kept::Event(kept), self.now);
                if let Some(state) = self.channels.get_mut(channel) {
                    state.position = Some(origin.1.clone());
                    state.moved_at = atom.mark().offset;
                }
                atom.push(Body::Event { stream, data }, Some(origin), None, To::All);
            }
            self.commit(atom, out);
        }
        if let Whole::Only(streams) = whole {
            self.rings.add_thin(channel.clone(), goal.clone(), streams);
        }
        if let Some(state) = self.channels.get_mut(channel) {
            state.position = Some(goal);
            state.moved_at = self.log.end().next();
        }
    }

    /// Whether nobody is left on the list from whom an offer could come.
    fn nobody_awaited(&self) -> bool {
        self.members.all_offered() || (!self.members.is_known() && self.offers_done)
    }
}
