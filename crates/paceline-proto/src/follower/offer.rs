//! What a new owner may lack: offers, the values and tails it asks for, and what this session carries into a reign.

use super::{Effect, Follower};
use crate::{
    hub::{Archive, Carried, stale},
    id::{Channel, Key, Mark, Place, Position},
    limits::{CHUNK_ITEMS, WRITE_MAX},
    message::{Applied, ChannelOffer, Held, KeyOffer, ToHub},
    ring::{Floor, Kept},
};
use bytes::Bytes;

impl Follower {
    /// Everything this session carries into its own reign.
    pub fn carry(&self) -> Carried {
        Carried {
            last: self.last,
            complete: self.complete,
            stable: self.stable,
            held: self.held.values().map(|entry| entry.held.clone()).collect(),
            archive: self.archive.as_ref().filter(|_| !self.complete).map(Archive::stale),
            positions: self.positions(),
            streams: self.streams.keys().cloned().collect(),
            kept: self.rings.iter().cloned().collect(),
            rings: self.rings.floors(),
            ops: self.ops.iter().map(|(mark, op)| (mark, op.clone())).collect(),
            applied: self.ops.applied(),
            layers: self.carry_layers(),
            connections: self.connections.values().cloned().collect(),
        }
    }

    /// Offers, after Welcome: keys changed since `since`, the archive, channels, operations.
    pub(super) fn offer(&self, since: Option<Mark>, out: &mut Vec<Effect>) {
        let changed = self.held.values().filter(|entry| since.is_none_or(|since| entry.changed > since));
        for chunk in chunks(changed.map(|entry| key_offer(&entry.held)).collect(), offer_size) {
            out.push(Effect::Send(ToHub::OfferKeys(chunk)));
        }
        if self.complete {
            self.offer_archive(&Archive::default(), out);
        } else if let Some(archive) = &self.archive {
            self.offer_archive(archive, out);
        }
        let channels = self.covered.iter().map(|(channel, at)| self.channel_offer(channel, at));
        let rest =
            |channels, ops, applied, end| Effect::Send(ToHub::OfferRest { channels, ops, applied, end });
        for channels in chunks(channels.collect(), |_| 256) {
            out.push(rest(channels, Vec::new(), Vec::new(), false));
        }
        for applied in chunks(self.ops.applied(), applied_size) {
            out.push(rest(Vec::new(), Vec::new(), applied, false));
        }
        let ops = self.ops.iter().map(|(mark, op)| (mark, op.clone())).collect();
        for ops in chunks(ops, |(_, op)| op.operation.size() + 64) {
            out.push(rest(Vec::new(), ops, Vec::new(), false));
        }
        self.offer_layers(out);
        out.push(rest(Vec::new(), Vec::new(), Vec::new(), true));
    }

    fn offer_archive(&self, archive: &Archive, out: &mut Vec<Effect>) {
        let part = |channels, applied, keys| Effect::Send(ToHub::OfferArchive { channels, applied, keys });
        // At least one, so that the owner says when the archive is held elsewhere.
        out.push(part(Vec::new(), Vec::new(), Vec::new()));
        for channels in chunks(archive.positions.clone(), |_| 256) {
            out.push(part(channels, Vec::new(), Vec::new()));
        }
        for applied in chunks(archive.applied.clone(), applied_size) {
            out.push(part(Vec::new(), applied, Vec::new()));
        }
        // Of what it is subscribed to it holds something newer.
        let aside = archive.held.values().filter(|held| !self.held.contains_key(&held.key));
        for keys in chunks(aside.map(key_offer).collect(), offer_size) {
            out.push(part(Vec::new(), Vec::new(), keys));
        }
    }

    fn channel_offer(&self, channel: &Channel, covered: &Position) -> ChannelOffer {
        ChannelOffer {
            channel: channel.clone(),
            covered: covered.clone(),
            ring_after: self.ring_after(channel, covered),
            complete: self.complete,
        }
    }

    /// Where the unbroken end of the channel's ring begins: a tail cannot carry a gap.
    fn ring_after(&self, channel: &Channel, covered: &Position) -> Option<Position> {
        let mut after_gap = None;
        for kept in self.rings.of(channel) {
            match (kept, &after_gap) {
                (Kept::Gap { gap, .. }, _) => after_gap = Some(gap.upto.clone()),
                // The gap's end is not known: trust begins with the first event after it.
                (Kept::Event(event), Some(None)) => after_gap = Some(Some(event.origin.1.clone())),
                (Kept::Event(_), None | Some(Some(_))) => {}
            }
        }
        match (after_gap, self.rings.floor(channel)) {
            (Some(at), _) => Some(at.unwrap_or_else(|| covered.clone())),
            (None, Some(Floor::Start)) => None,
            (None, Some(Floor::After(floor))) => Some(floor.clone()),
            (None, None) => Some(covered.clone()),
        }
    }

    pub(super) fn give_values(&self, keys: Vec<Key>, out: &mut Vec<Effect>) {
        let (mut held, mut archived) = (Vec::new(), Vec::new());
        for key in keys {
            let aside = || self.archive.as_ref().and_then(|archive| archive.held.get(&key));
            match (self.held.get(&key), aside()) {
                (Some(entry), _) => held.push(entry.held.clone()),
                (None, Some(aside)) if self.offered_complete => held.push(aside.clone()),
                (None, Some(aside)) => archived.push(stale(aside)),
                // Dropped since it was offered: the owner need not wait for it.
                (None, None) => held.push(Held {
                    key,
                    place: Place::default(),
                    value: Bytes::new(),
                    hash: 0,
                    invalidated: false,
                    updated_at: crate::time::Time::ZERO,
                }),
            }
        }
        let size = |held: &Held| held.size() + 64;
        out.extend(chunks(held, size).into_iter().map(|values| Effect::Send(ToHub::Values(values))));
        let archived = chunks(archived, size).into_iter();
        out.extend(archived.map(|values| Effect::Send(ToHub::ArchivedValues(values))));
    }

    pub(super) fn give_tail(&self, channel: Channel, after: Option<&Position>, out: &mut Vec<Effect>) {
        let events = self.rings.events_after(&channel, after);
        for events in chunks(events, |event| event.data.len() + 128) {
            out.push(Effect::Send(ToHub::Tail { channel: channel.clone(), events, end: false }));
        }
        out.push(Effect::Send(ToHub::Tail { channel, events: Vec::new(), end: true }));
    }
}

fn key_offer(held: &Held) -> KeyOffer {
    KeyOffer { key: held.key.clone(), place: held.place.clone(), hash: held.hash }
}

fn offer_size(offer: &KeyOffer) -> usize {
    offer.key.0.len() + 64
}

fn applied_size(of: &Applied) -> usize {
    32 + of.runs.len() * 16
}

/// Cuts a list into messages of at most `CHUNK_ITEMS` items and about `WRITE_MAX` bytes.
pub(super) fn chunks<T>(items: Vec<T>, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut chunks = Vec::new();
    let mut chunk: Vec<T> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let more = size(&item);
        if !chunk.is_empty() && (chunk.len() >= CHUNK_ITEMS || bytes + more > WRITE_MAX) {
            chunks.push(std::mem::take(&mut chunk));
            bytes = 0;
        }
        bytes += more;
        chunk.push(item);
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_the_bounds_and_everything() {
        let items: Vec<usize> = (0..=CHUNK_ITEMS).collect();
        let cut = chunks(items.clone(), |_| 1);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [CHUNK_ITEMS, 1]);
        assert_eq!(cut.concat(), items);
        assert_eq!(chunks(vec![WRITE_MAX, 1, WRITE_MAX * 3, 2], |n| *n).len(), 4);
        assert_eq!(chunks(vec![WRITE_MAX - 1, 1, 1], |n| *n).len(), 2);
        assert!(chunks(Vec::<usize>::new(), |_| 1).is_empty());
    }
}
