//! What a new owner may lack: offers, the values and tails it asks for, and what this session carries into a reign.

use super::{Effect, Follower};
use crate::{
    hub::Carried,
    id::{Channel, Key, Mark, Place, Position, Version},
    limits::{CHUNK_ITEMS, WRITE_MAX},
    message::{ChannelOffer, Held, KeyOffer, ToHub},
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
            spare: self.spare.values().map(|entry| entry.held.clone()).collect(),
            positions: self.covered.iter().map(|(channel, at)| (channel.clone(), at.clone())).collect(),
            streams: self.streams.keys().cloned().collect(),
            kept: self.rings.iter().cloned().collect(),
            rings: self.rings.floors(),
            ops: self.ops.iter().map(|(mark, op)| (mark, op.clone())).collect(),
            applied: self.ops.applied(),
            connections: self.connections.values().cloned().collect(),
        }
    }

    /// Offers, after Welcome: keys changed since `since`, channels, operations.
    pub(super) fn offer(&self, since: Option<Mark>, out: &mut Vec<Effect>) {
        let changed = self
            .held
            .values()
            .chain(self.spare.values())
            .filter(|entry| since.is_none_or(|since| entry.changed > since));
        let keys = changed.map(|entry| {
            let Held { key, place, hash, .. } = &entry.held;
            KeyOffer { key: key.clone(), place: place.clone(), hash: *hash }
        });
        for chunk in chunks(keys.collect(), |offer| offer.key.0.len() + 64) {
            out.push(Effect::Send(ToHub::OfferKeys(chunk)));
        }
        let channels = self.covered.iter().map(|(channel, at)| self.channel_offer(channel, at));
        let rest =
            |channels, ops, applied, end| Effect::Send(ToHub::OfferRest { channels, ops, applied, end });
        for channels in chunks(channels.collect(), |_| 256) {
            out.push(rest(channels, Vec::new(), Vec::new(), false));
        }
        for applied in chunks(self.ops.applied(), |of| 32 + of.runs.len() * 16) {
            out.push(rest(Vec::new(), Vec::new(), applied, false));
        }
        let ops = self.ops.iter().map(|(mark, op)| (mark, op.clone())).collect();
        for ops in chunks(ops, |(_, op)| op.operation.size() + 64) {
            out.push(rest(Vec::new(), ops, Vec::new(), false));
        }
        out.push(rest(Vec::new(), Vec::new(), Vec::new(), true));
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
        // A key dropped since it was offered is answered too, so that the owner does not wait for it.
        let values = keys.into_iter().map(|key| match self.held.get(&key).or_else(|| self.spare.get(&key)) {
            Some(entry) => entry.held.clone(),
            None => {
                let place = Place { reset: Mark::ZERO, version: Version::None, mark: Mark::ZERO };
                Held { key, place, value: Bytes::new(), hash: 0, invalidated: false }
            }
        });
        for values in chunks(values.collect(), |held| held.size() + 64) {
            out.push(Effect::Send(ToHub::Values(values)));
        }
    }

    pub(super) fn give_tail(&self, channel: Channel, after: Option<&Position>, out: &mut Vec<Effect>) {
        let events = self.rings.events_after(&channel, after);
        for events in chunks(events, |event| event.data.len() + 128) {
            out.push(Effect::Send(ToHub::Tail { channel: channel.clone(), events, end: false }));
        }
        out.push(Effect::Send(ToHub::Tail { channel, events: Vec::new(), end: true }));
    }
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
