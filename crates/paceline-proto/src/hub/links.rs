//! All links, who is interested in what, and the fan-out.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Effect, Hub, Part,
    conflate::single,
    link::{Item, Link},
    log::{Atom, To},
};
use crate::{
    event::Event,
    id::{Channel, Key, LinkId, Position, SessionId, Stream},
    message::{Body, Gap, Shared, ToSession},
    program::{Features, ProtoRange},
    time::Time,
};

/// Index of a link; stays the same for its life.
pub(super) type Slot = usize;

/// The highest of all oldest versions and the lowest of all newest ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach {
    least: u16,
    most: u16,
}

impl Reach {
    /// Whether this range has a version in common with each of the others.
    pub(super) fn includes(self, range: ProtoRange) -> bool {
        range.max >= self.least && range.min <= self.most
    }
}

#[derive(Debug, Default)]
pub(super) struct Links {
    slots: Vec<Option<Link>>,
    by_id: BTreeMap<LinkId, Slot>,
    keys: BTreeMap<Key, Vec<Slot>>,
    streams: BTreeMap<Stream, Vec<Slot>>,
    heirs: Vec<Slot>,
    /// Links that are over for this machine and only have last words to write.
    parting: BTreeMap<LinkId, Vec<ToSession>>,
}

impl Links {
    pub(super) fn add(&mut self, link: Link) -> Slot {
        let id = link.id;
        let slot = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(link);
        self.by_id.insert(id, slot);
        slot
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Link> {
        let link = self.slots.get_mut(slot)?.take()?;
        self.by_id.remove(&link.id);
        self.heirs.retain(|heir| *heir != slot);
        for key in &link.keys {
            unindex(&mut self.keys, key, slot);
        }
        for stream in &link.streams {
            unindex(&mut self.streams, stream, slot);
        }
        Some(link)
    }

    pub(super) fn slot(&self, id: LinkId) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn subscribers(&self, key: &Key) -> usize {
        self.keys.get(key).map_or(0, Vec::len)
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Link> {
        self.slots.get(slot)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Link> {
        self.slots.get_mut(slot)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Link)> {
        self.slots.iter().enumerate().filter_map(|(slot, link)| Some((slot, link.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut Link)> {
        self.slots.iter_mut().enumerate().filter_map(|(slot, link)| Some((slot, link.as_mut()?)))
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn subscribe_key(&mut self, slot: Slot, key: &Key) {
        if let Some(link) = self.get_mut(slot)
            && link.keys.insert(key.clone())
        {
            self.keys.entry(key.clone()).or_default().push(slot);
        }
    }

    /// Whether some link subscribes to the key.
    pub(super) fn has_interest(&self, key: &Key) -> bool {
        self.keys.contains_key(key)
    }

    pub(super) fn unsubscribe_key(&mut self, slot: Slot, key: &Key) {
        if self.get_mut(slot).is_some_and(|link| link.keys.remove(key)) {
            unindex(&mut self.keys, key, slot);
        }
    }

    pub(super) fn subscribe_stream(&mut self, slot: Slot, stream: &Stream) {
        if let Some(link) = self.get_mut(slot)
            && link.streams.insert(stream.clone())
        {
            self.streams.entry(stream.clone()).or_default().push(slot);
        }
    }

    pub(super) fn unsubscribe_stream(&mut self, slot: Slot, stream: &Stream) {
        if self.get_mut(slot).is_some_and(|link| link.streams.remove(stream)) {
            unindex(&mut self.streams, stream, slot);
        }
    }

    pub(super) fn set_heir(&mut self, slot: Slot, heir: bool) {
        self.heirs.retain(|other| *other != slot);
        if heir {
            self.heirs.push(slot);
        }
    }

    pub(super) fn heirs(&self) -> impl Iterator<Item = (Slot, &Link)> {
        self.heirs.iter().filter_map(|slot| Some((*slot, self.get(*slot)?)))
    }

    /// What an owner must speak so that everybody here could follow it.
    pub(super) fn reach(&self) -> Reach {
        let all = Reach { least: u16::MIN, most: u16::MAX };
        self.iter().fold(all, |reach, (_, link)| Reach {
            least: reach.least.max(link.speaks.min),
            most: reach.most.min(link.speaks.max),
        })
    }

    /// Streams somebody is subscribed to.
    pub(super) fn subscribed_streams(&self) -> BTreeSet<Stream> {
        self.streams.keys().cloned().collect()
    }

    pub(super) fn part(&mut self, id: LinkId, message: ToSession) {
        self.parting.entry(id).or_default().push(message);
    }

    pub(super) fn forget(&mut self, id: LinkId) {
        self.parting.remove(&id);
    }

    pub(super) fn last_words(&mut self, id: LinkId) -> Option<Vec<Part>> {
        let words = self.parting.remove(&id)?;
        Some(words.into_iter().map(Part::Message).collect())
    }

    /// The links a frame goes to.
    fn targets(&self, shared: &Shared, to: &To) -> Vec<Slot> {
        let frame = &shared.frame;
        let joined = |slot: &Slot| self.get(*slot).is_some_and(Link::is_joined);
        if let To::Behind(channel, position) = to {
            let Body::Event { stream, .. } = &frame.body else { return Vec::new() };
            let behind = |link: &Link| {
                link.is_joined()
                    && link.interest().has(stream)
                    && link
                        .lag
                        .get(channel)
                        .is_some_and(|lag| !lag.stalled && lag.at.covers(position) == Some(false))
            };
            return self.iter().filter(|(_, link)| behind(link)).map(|(slot, _)| slot).collect();
        }
        let empty: &[Slot] = &[];
        let interested = |list: Option<&Vec<Slot>>| {
            let heirs = self.heirs.iter();
            let rest = list.map_or(empty, Vec::as_slice).iter().filter(|slot| !self.heirs.contains(slot));
            heirs.chain(rest).copied().filter(joined).collect::<Vec<Slot>>()
        };
        match &frame.body {
            Body::Value(held) => interested(self.keys.get(&held.key)),
            Body::Reset { key, .. } | Body::Removed { key } | Body::Query { key, .. } => {
                interested(self.keys.get(key))
            }
            Body::Layers(layered) => {
                let mut targets = interested(self.keys.get(&layered.key));
                targets
                    .retain(|slot| self.get(*slot).is_some_and(|link| link.features.has(Features::LAYERS)));
                targets
            }
            Body::Event { stream, .. } => {
                let mut targets = interested(self.streams.get(stream));
                if let Some((channel, _)) = &frame.origin {
                    // Who is behind gets nothing newer before the replay has passed it.
                    targets
                        .retain(|slot| self.get(*slot).is_some_and(|link| !link.lag.contains_key(channel)));
                }
                targets
            }
            Body::Invalidate { .. } | Body::Gap(_) | Body::Connection(_) => {
                self.iter().filter(|(_, link)| link.is_joined()).map(|(slot, _)| slot).collect()
            }
            // An operation without a value of its own goes where the value went.
            Body::Nothing => interested(frame.op.as_ref().and_then(|op| self.keys.get(op.operation.key()))),
        }
    }
}

fn unindex<K: Ord>(index: &mut BTreeMap<K, Vec<Slot>>, key: &K, slot: Slot) {
    if let Some(slots) = index.get_mut(key) {
        slots.retain(|other| *other != slot);
        if slots.is_empty() {
            index.remove(key);
        }
    }
}

impl Hub {
    /// Appends an atom to the log and queues its frames for every link they concern. What the channels' positions say
    /// must include it by now: a queue that overflows is folded up to them.
    pub(super) fn commit(&mut self, atom: Atom, out: &mut Vec<Effect>) {
        let over = self.queue_atom(atom, out);
        self.conflate_all(over, out);
    }

    /// The same without folding: the links whose queues passed their bound.
    pub(super) fn queue_atom(&mut self, mut atom: Atom, out: &mut Vec<Effect>) -> BTreeSet<Slot> {
        self.settle_layers(&mut atom);
        let appended = self.log.append(atom, self.now);
        let end = self.log.end();
        self.stats.frames += appended.len() as u64;
        let mut over = BTreeSet::new();
        for (shared, to) in appended {
            for slot in self.links.targets(&shared, &to) {
                let Some(link) = self.links.get_mut(slot) else { continue };
                self.stats.deliveries += 1;
                if link.push_frame(shared.clone(), end, self.now) {
                    over.insert(slot);
                }
                wake(link, out);
            }
        }
        over
    }

    pub(super) fn conflate_all(&mut self, over: BTreeSet<Slot>, out: &mut Vec<Effect>) {
        for slot in over {
            self.conflate(slot, out);
        }
    }

    /// Queues a gap for one link only.
    pub(super) fn private_gap(&mut self, slot: Slot, gap: Gap, out: &mut Vec<Effect>) {
        let end = self.log.end();
        let Some(link) = self.links.get_mut(slot) else { return };
        link.had_private = true;
        out.push(Effect::Event(Event::GapShown { channel: gap.channel.clone() }));
        let over = link.push_frame(single(end, Body::Gap(gap), None), end, self.now);
        wake(link, out);
        if over {
            self.conflate(slot, out);
        }
    }

    pub(super) fn tell(&mut self, slot: Slot, message: ToSession, out: &mut Vec<Effect>) {
        let end = self.log.end();
        let Some(link) = self.links.get_mut(slot) else { return };
        link.push_message(end, message);
        wake(link, out);
        if link.messages > super::MESSAGES_MAX {
            self.unlink(slot, "it asks without reading the answers", out);
        }
    }

    pub(super) fn tell_session(&mut self, session: SessionId, message: ToSession, out: &mut Vec<Effect>) {
        if let Some(slot) = self.members.link_of(session).and_then(|id| self.links.slot(id)) {
            self.tell(slot, message, out);
        }
    }

    pub(super) fn flush(&mut self, slot: Slot, ack_now: bool, out: &mut Vec<Effect>) {
        let at = self.log.end();
        if let Some(link) = self.links.get_mut(slot) {
            link.queue.push_back(Item::Flush { at, ack_now });
            wake(link, out);
        }
    }

    /// A queue passed its bound: from here on the link gets the latest of each key.
    pub(super) fn conflate(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get_mut(slot) else { return };
        let session = link.session;
        link.stall();
        let Some(link) = self.links.get(slot) else { return };
        let positions = self.positions_for(link);
        let was_heir = link.heir.is_some();
        if was_heir {
            // Before folding: what only an heir gets is left out from here on.
            self.dismiss(slot, out);
        }
        let end = self.log.end();
        let Some(link) = self.links.get_mut(slot) else { return };
        let began = !link.conflated;
        link.conflate(end, &positions);
        let dropped = link.dropped;
        self.stats.conflations += 1;
        if began {
            out.push(Effect::Event(Event::FollowerConflated { session, dropped }));
        }
        if was_heir {
            self.choose_heirs(out);
        }
    }

    /// Where the channels stand for a link: a replay may still be on its way to it.
    pub(super) fn positions_for(&self, link: &Link) -> BTreeMap<Channel, Position> {
        let at = |(channel, state): (&Channel, &super::channels::ChannelState)| {
            let at = link.lag.get(channel).map(|lag| &lag.at).or(state.told())?;
            Some((channel.clone(), at.clone()))
        };
        self.channels.iter().filter_map(at).collect()
    }

    /// Whether some link takes what it is given but is far behind: a moment's pause in a burst of upstream messages
    /// spares it a gap.
    pub fn is_congested(&self) -> bool {
        self.links.iter().any(|(_, link)| link.is_catching_up(self.now))
    }
}

/// Tells the transport, once, that there is something to write.
pub(super) fn wake(link: &mut Link, out: &mut Vec<Effect>) {
    if link.writing.is_none() && !link.woken && link.has_output() {
        link.woken = true;
        out.push(Effect::Wake(link.id));
    }
}

/// Whether a link that takes nothing is over its time.
pub(super) fn is_stuck(link: &Link, now: Time) -> bool {
    link.writing.is_some_and(|since| now.since(since) >= crate::limits::WRITE_TIMEOUT)
}
