//! Output of a link: what is queued becomes batches, cut where messages end, and snapshots, chunk by chunk.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Context, Effect, Hub, Part,
    conflate::next_batch,
    link::{Item, Link},
    links::wake,
};
use crate::{
    event::Event,
    id::{Channel, LinkId, Offset, Position},
    message::{Batch, Body, ItemConflict, Shared, ToSession},
};

impl Hub {
    /// The next piece of output for a link, at most about `max_bytes` (one item may be larger). `None`: nothing is
    /// queued, or the last piece is still being written ([`super::Input::Written`] ends that).
    pub fn write(&mut self, id: LinkId, max_bytes: usize) -> Option<Vec<Part>> {
        let Some(slot) = self.links.slot(id) else { return self.links.last_words(id) };
        let context = Context {
            now: self.now,
            epoch: self.epoch,
            end: self.log.end(),
            cache: &self.cache,
            ops: &self.ops,
            connections: &self.connections,
            channels: &self.channels,
            queries: &self.queries,
            layers: &self.layers,
        };
        let link = self.links.get_mut(slot)?;
        if link.writing.is_some() {
            return None;
        }
        link.woken = false;
        let mut parts = Vec::new();
        let mut left = max_bytes;
        while left > 0 && !link.queue.is_empty() {
            let (part, bytes) = link.next_part(left, &context);
            if let Some(Part::Message(ToSession::OpDone { id, .. })) = &part {
                self.answers.handed_out(*id, link.sent);
            }
            parts.extend(part);
            left = left.saturating_sub(bytes);
        }
        if link.queue.is_empty() {
            link.replayed.retain(|channel, _| link.lag.contains_key(channel));
        }
        if parts.is_empty() {
            return None;
        }
        link.writing = Some(self.now);
        Some(parts)
    }

    /// The transport took the last piece.
    pub(super) fn written(&mut self, id: LinkId, out: &mut Vec<Effect>) {
        let Some(slot) = self.links.slot(id) else { return };
        let Some(link) = self.links.get_mut(slot) else { return };
        link.writing = None;
        wake(link, out);
        if std::mem::take(&mut link.caught_up) && !link.conflated {
            out.push(Effect::Event(Event::FollowerCaughtUp { session: link.session }));
            self.choose_heirs(out);
        }
        let done = |link: &Link| link.queue.is_empty() && link.lag.values().any(|lag| lag.stalled);
        if self.links.get(slot).is_some_and(done) {
            self.replay_again(slot, out);
        }
        self.drained(out);
    }
}

impl Link {
    /// Takes the next item off the queue, or the next piece of it.
    fn next_part(&mut self, budget: usize, context: &Context<'_>) -> (Option<Part>, usize) {
        let Some(item) = self.queue.pop_front() else { return (None, 0) };
        match item {
            Item::Message { message, .. } => {
                self.messages -= 1;
                let bytes = 64 + message_size(&message);
                (Some(Part::Message(message)), bytes)
            }
            Item::Frame { shared, atom_end } => self.cut(shared, atom_end, budget, context),
            Item::Flush { at, ack_now } => {
                if at <= self.sent && !ack_now {
                    return (None, 0);
                }
                (Some(self.batch(at.max(self.sent), Vec::new(), ack_now, context)), 64)
            }
            Item::Job(mut job) => {
                if self.sent < job.at {
                    let at = job.at;
                    self.queue.push_front(Item::Job(job));
                    return (Some(self.batch(at, Vec::new(), false, context)), 64);
                }
                if let Some((layers, bytes)) = job.take_layers() {
                    self.queue.push_front(Item::Job(job));
                    return (Some(Part::Message(ToSession::Layers(layers))), bytes);
                }
                let (chunk, bytes) = job.next_chunk(self, budget, context);
                if chunk.end.is_none() {
                    self.queue.push_front(Item::Job(job));
                } else if job.asked {
                    self.messages -= 1;
                }
                (Some(Part::Message(ToSession::Snapshot(chunk))), bytes)
            }
            Item::Round(mut round) => {
                let (header, frames, last) = next_batch(&mut round, self, budget, context);
                if last {
                    self.sent = round.upto;
                    self.told.extend(header.positions.iter().cloned());
                    self.conflated = self.has_round() || self.is_over(context.now);
                    self.caught_up = !self.conflated;
                } else {
                    self.queue.push_front(Item::Round(round));
                }
                let bytes = 64 + frames.iter().map(|frame| frame.size).sum::<usize>();
                (Some(Part::Batch { header, frames }), bytes)
            }
        }
    }

    /// A batch of queued frames, cut at the end of an atom.
    fn cut(
        &mut self,
        first: Arc<Shared>,
        atom_end: Offset,
        budget: usize,
        context: &Context<'_>,
    ) -> (Option<Part>, usize) {
        let mut bytes = first.size;
        let mut frames = vec![first];
        let mut end = atom_end;
        while let Some(Item::Frame { shared, atom_end }) = self.queue.front()
            && (bytes + shared.size <= budget || *atom_end == end)
        {
            bytes += shared.size;
            end = *atom_end;
            frames.push(shared.clone());
            self.queue.pop_front();
        }
        self.frames -= frames.len();
        self.bytes -= bytes;
        let upto = match self.queue.front() {
            None => context.end,
            Some(item) => item.at().unwrap_or(end),
        };
        let awaited = |shared: &Arc<Shared>| {
            self.heir.is_some_and(|heir| {
                shared.frame.op.is_some() || (!heir.current && shared.frame.offset == heir.counted_at)
            })
        };
        let ack_now = frames.iter().any(awaited);
        (Some(self.batch(upto, frames, ack_now, context)), bytes + 64)
    }

    fn batch(
        &mut self,
        upto: Offset,
        frames: Vec<Arc<Shared>>,
        ack_now: bool,
        context: &Context<'_>,
    ) -> Part {
        let private = self.queue.iter().any(|item| matches!(item, Item::Frame { .. }));
        let positions = if upto == context.end && !private {
            self.moved(context)
        } else {
            if upto == context.end {
                // A gap of its own comes behind everything, and would be taken for known to who was told the position.
                let later = self.moved(context);
                self.forced.extend(later.into_iter().map(|(channel, _)| channel));
            }
            // In the middle of the queue: where its own events stand, which may be less than the channels did then.
            let events = frames.iter().filter(|shared| matches!(shared.frame.body, Body::Event { .. }));
            let at: BTreeMap<_, _> = events.filter_map(|shared| shared.frame.origin.clone()).collect();
            at.into_iter().collect()
        };
        self.told.extend(positions.iter().cloned());
        let header = Batch {
            epoch: context.epoch,
            after: self.sent,
            upto,
            positions,
            count: u32::try_from(frames.len()).unwrap_or(u32::MAX),
            ack_now,
            conflated: false,
        };
        self.sent = upto;
        Part::Batch { header, frames }
    }

    /// Positions that moved since the last batch.
    fn moved(&mut self, context: &Context<'_>) -> Vec<(Channel, Position)> {
        let forced = std::mem::take(&mut self.forced);
        let moved = context
            .channels
            .iter()
            .filter(|(channel, state)| state.moved_at > self.sent || forced.contains(*channel));
        let at = moved.filter_map(|(channel, state)| {
            let at = self.lag.get(channel).map(|lag| &lag.at).or(state.told())?;
            Some((channel.clone(), at.clone()))
        });
        at.collect()
    }
}

/// An estimate, for the budget of a write.
fn message_size(message: &ToSession) -> usize {
    match message {
        ToSession::Ping(ping) => ping.members.len() * 64,
        ToSession::Applied(applied) => applied.iter().map(|of| 32 + of.runs.len() * 16).sum(),
        ToSession::WantKeys(keys) => keys.iter().map(|key| key.0.len() + 8).sum(),
        ToSession::Answer { answer: crate::message::Answer::Members(members), .. } => members.len() * 64,
        ToSession::Answer { answer: crate::message::Answer::Seen(seen), .. } => seen.size(),
        ToSession::Answer { answer: crate::message::Answer::Fetched(fetched), .. } => fetched.size(),
        ToSession::Layers(layered) => layered.iter().map(crate::message::Layered::size).sum(),
        ToSession::Fetch(request) => 64 + request.key.0.len(),
        ToSession::Conflicts(conflicts)
        | ToSession::Answer { answer: crate::message::Answer::Conflicts(conflicts), .. } => {
            conflicts.iter().map(ItemConflict::size).sum()
        }
        ToSession::Welcome(_)
        | ToSession::Busy { .. }
        | ToSession::Refused(_)
        | ToSession::Batch(_)
        | ToSession::Frame(_)
        | ToSession::Snapshot(_)
        | ToSession::WantTail { .. }
        | ToSession::OpDone { .. }
        | ToSession::SubmitDone { .. }
        | ToSession::Answer { .. }
        | ToSession::Appointed
        | ToSession::Dismissed
        | ToSession::Go { .. }
        | ToSession::Moved { .. }
        | ToSession::Close
        | ToSession::CancelFetch(_)
        | ToSession::WantItems
        | ToSession::Look { .. }
        | ToSession::NoRoom(_)
        | ToSession::ArchiveHeld => 64,
    }
}
