//! What a slow link gets instead of its queue: the latest value of each key that changed, gaps for its events.
//!
//! **Invariant:** a value travels with every operation whose effect is in it, in one batch; otherwise a session that
//! takes over between the two would apply the operation again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::{
    Context,
    link::{Item, Link},
};
use crate::{
    id::{Channel, Key, Offset, Position, Trace},
    message::{Batch, Body, Frame, Gap, GapCause, HeldOp, Layered, Operation, Shared},
    program::Features,
};

/// A stretch of the log in conflated form: (after, upto], in one or more batches of which only the last moves.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) upto: Offset,
    keys: BTreeSet<Key>,
    /// Those whose layers changed.
    layered: BTreeSet<Key>,
    gaps: BTreeMap<Channel, Gap>,
    /// Operations without a value of their own.
    ops: BTreeMap<Offset, HeldOp>,
    connections: BTreeSet<Arc<str>>,
    /// Queries whose state changed.
    states: BTreeSet<Key>,
    positions: BTreeMap<Channel, Position>,
    /// A batch of it was handed out.
    started: bool,
}

impl Round {
    fn fold(&mut self, frame: &Frame, link: &Link) {
        match &frame.body {
            Body::Value(held) => self.key(&held.key, link),
            Body::Reset { key, .. } | Body::Removed { key } => self.key(key, link),
            Body::Layers(layered) => {
                self.key(&layered.key, link);
                self.layered.insert(layered.key.clone());
            }
            Body::Query { key, .. } => {
                if link.keys.contains(key) {
                    self.states.insert(key.clone());
                }
            }
            Body::Invalidate { key, .. } => {
                let under = link.keys.range(key.clone()..).take_while(|other| key.is_prefix_of(other));
                self.keys.extend(under.cloned());
            }
            Body::Event { stream, .. } => {
                if let Some((channel, _)) = frame
                    .origin
                    .as_ref()
                    .filter(|(channel, _)| link.streams.contains(stream) && !link.is_stalled(channel))
                {
                    let told = link.told.get(channel).filter(|at| **at != Position::START);
                    self.lose(channel, told.cloned());
                }
            }
            Body::Gap(gap) => self.upstream_gap(gap),
            Body::Connection(connection) => drop(self.connections.insert(connection.upstream.clone())),
            Body::Nothing => {}
        }
        let alone = frame.op.as_ref().filter(|op| {
            matches!(frame.body, Body::Nothing) || matches!(op.operation, Operation::Invalidate { .. })
        });
        if let Some(op) = alone {
            self.ops.insert(frame.offset, op.clone());
        }
    }

    fn key(&mut self, key: &Key, link: &Link) {
        if link.keys.contains(key) {
            self.keys.insert(key.clone());
        }
    }

    /// An event is left out.
    fn lose(&mut self, channel: &Channel, after: Option<Position>) {
        let gap = Gap { channel: channel.clone(), after, upto: None, why: GapCause::SlowReader };
        // After a gap that was there before, the end of both is not known.
        self.gaps.entry(channel.clone()).or_insert(gap).upto = None;
    }

    fn upstream_gap(&mut self, gap: &Gap) {
        match self.gaps.get_mut(&gap.channel) {
            Some(known) => *known = Gap { after: known.after.clone(), ..gap.clone() },
            None => drop(self.gaps.insert(gap.channel.clone(), gap.clone())),
        }
    }

    /// Gaps of a stretch before this one; their places come with the events that are missing behind them.
    fn precede(&mut self, earlier: BTreeMap<Channel, Gap>) {
        for (channel, gap) in earlier {
            match self.gaps.get_mut(&channel) {
                Some(later) => later.after = gap.after,
                None => drop(self.gaps.insert(channel, gap)),
            }
        }
    }

    /// No event is queued behind this round: the channels stand at `positions` after it.
    fn reach(&mut self, positions: BTreeMap<Channel, Position>) {
        for (channel, gap) in self.gaps.iter_mut().filter(|(_, gap)| gap.why == GapCause::SlowReader) {
            gap.upto = positions.get(channel).cloned();
        }
        self.positions = positions;
    }
}

impl Link {
    /// Folds every queued frame into rounds, one for each stretch between snapshots. `positions` = where the channels
    /// stand for this link at the end of the log. Returns the number of frames left out.
    pub(super) fn conflate(&mut self, end: Offset, positions: &BTreeMap<Channel, Position>) -> u64 {
        let queue = std::mem::take(&mut self.queue);
        let mut folded = 0;
        let mut kept = VecDeque::with_capacity(queue.len());
        // Where in `kept` the open round of this stretch is, and those that can still be changed.
        let mut open: Option<usize> = None;
        let mut rounds: Vec<usize> = Vec::new();
        for item in queue {
            match item {
                Item::Frame { shared, .. } => {
                    folded += 1;
                    let at = *open.get_or_insert_with(|| {
                        rounds.push(kept.len());
                        kept.push_back(Item::Round(Box::default()));
                        kept.len() - 1
                    });
                    if let Some(round) = round_at(&mut kept, at) {
                        round.fold(&shared.frame, self);
                    }
                }
                Item::Job(job) => {
                    if let Some(round) = open.take().and_then(|at| round_at(&mut kept, at)) {
                        round.upto = job.at;
                    }
                    kept.push_back(Item::Job(job));
                }
                Item::Round(round) => {
                    if !round.started {
                        open = Some(kept.len());
                        rounds.push(kept.len());
                    }
                    kept.push_back(Item::Round(round));
                }
                Item::Message { .. } => kept.push_back(item),
                Item::Flush { .. } => {}
            }
        }
        if let Some(round) = open.and_then(|at| round_at(&mut kept, at)) {
            round.upto = end;
        }
        // Events are left out up to the end of the queue, so that only its last round can say where the channels stand.
        let last = rounds.pop();
        let mut gaps = Vec::new();
        for round in rounds {
            let Some(round) = round_at(&mut kept, round) else { continue };
            round.positions.clear();
            gaps.push(std::mem::take(&mut round.gaps));
        }
        if let Some(round) = last.and_then(|at| round_at(&mut kept, at)) {
            gaps.into_iter().rev().for_each(|earlier| round.precede(earlier));
            round.reach(positions.clone());
        }
        self.queue = kept;
        self.frames = 0;
        self.bytes = 0;
        self.conflated = true;
        self.dropped += folded;
        folded
    }
}

fn round_at(kept: &mut VecDeque<Item>, at: usize) -> Option<&mut Round> {
    match kept.get_mut(at)? {
        Item::Round(round) => Some(round),
        Item::Message { .. } | Item::Frame { .. } | Item::Job(_) | Item::Flush { .. } => None,
    }
}

/// The next batch of a round; the second is true when it was the last.
pub(super) fn next_batch(
    round: &mut Round,
    link: &Link,
    budget: usize,
    context: &Context<'_>,
) -> (Batch, Vec<Arc<Shared>>, bool) {
    round.started = true;
    let mut frames = Vec::new();
    let mut bytes = 0;
    while bytes < budget
        && let Some(key) = round.keys.pop_first()
    {
        let layered =
            link.features.has(Features::LAYERS) && (round.layered.remove(&key) || context.layers.has(&key));
        for frame in latest(&key, link.sent, round.upto, layered, context) {
            bytes += frame.size;
            frames.push(frame);
        }
    }
    let last = round.keys.is_empty();
    if last {
        let connections = std::mem::take(&mut round.connections);
        let connections = connections.iter().filter_map(|name| context.connections.get(name));
        let bodies = connections.map(|c| Body::Connection(c.clone()));
        let states = std::mem::take(&mut round.states).into_iter().map(|key| {
            let state = context.queries.state(&key);
            Body::Query { key, state }
        });
        let gaps = std::mem::take(&mut round.gaps).into_values().map(Body::Gap);
        frames.extend(bodies.chain(states).chain(gaps).map(|body| single(round.upto, body, None)));
        let ops = std::mem::take(&mut round.ops);
        frames.extend(ops.into_iter().map(|(offset, op)| single(offset, Body::Nothing, Some(op))));
    }
    let header = Batch {
        epoch: context.epoch,
        after: link.sent,
        upto: if last { round.upto } else { link.sent },
        positions: if last { std::mem::take(&mut round.positions).into_iter().collect() } else { Vec::new() },
        count: u32::try_from(frames.len()).unwrap_or(u32::MAX),
        ack_now: false,
        conflated: true,
    };
    (header, frames, last)
}

/// The value of a key as it is now, after the operations that made it.
fn latest(key: &Key, sent: Offset, upto: Offset, layered: bool, context: &Context<'_>) -> Vec<Arc<Shared>> {
    let layers = || {
        let layers = context.layers.of(key).to_vec();
        single(upto, Body::Layers(Layered { key: key.clone(), layers }), None)
    };
    let Some(entry) = context.cache.get(key) else { return layered.then(layers).into_iter().collect() };
    let news = context.ops.of_key(key).filter(|(mark, _)| mark.epoch == context.epoch && mark.offset > sent);
    let mut frames: Vec<_> =
        news.map(|(mark, op)| single(mark.offset, Body::Nothing, Some(op.clone()))).collect();
    frames.push(single(upto, Body::Value(entry.held.clone()), None));
    frames.extend(layered.then(layers));
    frames
}

/// A frame for one link only.
pub(super) fn single(offset: Offset, body: Body, op: Option<HeldOp>) -> Arc<Shared> {
    Shared::new(Frame { offset, trace: Trace::NONE, origin: None, op, ends_atom: true, body })
}
