//! Snapshots: values are read from the cache when the link takes the next chunk, so a snapshot in progress costs no copy
//! of the cache. A value may then be newer than the snapshot's end; the frame that follows changes nothing again.

use std::collections::VecDeque;

use super::{Context, link::Link};
use crate::{
    connection::Connection,
    fetch::QueryState,
    id::{Channel, Key, Mark, Offset, Position},
    limits::CHUNK_ITEMS,
    message::{Applied, HeldOp, Layered, Snapshot, SnapshotEnd},
    program::Features,
    ring::Kept,
};

/// Which values a snapshot has.
#[derive(Debug)]
pub(super) enum Keys {
    /// None, or none any more.
    None,
    /// The link's interest.
    Interest,
    /// All.
    All,
    /// These.
    List(VecDeque<Key>),
}

/// A snapshot on its way out.
#[derive(Debug)]
pub(super) struct Job {
    /// The link's batches continue after this offset.
    pub(super) at: Offset,
    pub(super) complete: bool,
    /// It answers a Subscribe, and is counted among the link's messages.
    pub(super) asked: bool,
    pub(super) keys: Keys,
    pub(super) cursor: Option<Key>,
    pub(super) kept: VecDeque<Kept>,
    /// Operations whose effect is in what was already sent, and those without a value.
    pub(super) ops: VecDeque<(Mark, HeldOp)>,
    pub(super) connections: Vec<Connection>,
    pub(super) states: Vec<(Key, QueryState)>,
    pub(super) positions: Vec<(Channel, Position)>,
    pub(super) rings: Vec<(Channel, Option<Position>)>,
    pub(super) applied: Vec<Applied>,
    /// Layers over the keys of the last chunk, which are sent next.
    pub(super) layers: Vec<Layered>,
}

impl Job {
    /// A snapshot that only says where the link's batches continue.
    pub(super) fn empty(at: Offset) -> Self {
        Self {
            at,
            complete: false,
            asked: false,
            keys: Keys::None,
            cursor: None,
            kept: VecDeque::new(),
            ops: VecDeque::new(),
            connections: Vec::new(),
            states: Vec::new(),
            positions: Vec::new(),
            rings: Vec::new(),
            applied: Vec::new(),
            layers: Vec::new(),
        }
    }

    /// Layers that go with the values of the chunk before, and their size.
    pub(super) fn take_layers(&mut self) -> Option<(Vec<Layered>, usize)> {
        let layers = std::mem::take(&mut self.layers);
        let bytes = layers.iter().map(Layered::size).sum();
        (!layers.is_empty()).then_some((layers, bytes))
    }

    /// The next chunk and its size; its `end` is set in the last one.
    pub(super) fn next_chunk(
        &mut self,
        link: &Link,
        budget: usize,
        context: &Context<'_>,
    ) -> (Snapshot, usize) {
        let mut chunk =
            Snapshot { connections: std::mem::take(&mut self.connections), ..Snapshot::default() };
        let mut bytes = 64;
        let mut items = 0;
        let mut take = |size: usize| {
            let fits = items == 0 || (items < CHUNK_ITEMS && bytes + size <= budget);
            if fits {
                items += 1;
                bytes += size;
            }
            fits
        };
        let layered = link.features.has(Features::LAYERS);
        while let Some(key) = self.next_key(link, context) {
            let entry = context.cache.get(&key);
            // Read with the value: a layer and the effect of its operation never go out together.
            let layers = if layered { context.layers.of(&key) } else { &[] };
            let layers = (!layers.is_empty()).then(|| Layered { key: key.clone(), layers: layers.to_vec() });
            let size = entry.map_or(0, |entry| 64 + entry.held.size());
            if !take(size + layers.as_ref().map_or(0, Layered::size)) {
                return (chunk, bytes);
            }
            if let Keys::List(keys) = &mut self.keys {
                keys.pop_front();
            }
            chunk.held.extend(entry.map(|entry| entry.held.clone()));
            self.layers.extend(layers);
            self.ops.extend(context.ops.of_key(&key).map(|(mark, op)| (mark, op.clone())));
            self.cursor = Some(key);
        }
        self.keys = Keys::None;
        while let Some(kept) = self.kept.front() {
            // The gaps of a chunk come before its events.
            let new_chunk = matches!(kept, Kept::Gap { .. }) && !chunk.events.is_empty();
            let size = if let Kept::Event(event) = kept { 128 + event.data.len() } else { 128 };
            if new_chunk || !take(size) {
                return (chunk, bytes);
            }
            match self.kept.pop_front() {
                Some(Kept::Event(event)) => chunk.events.push(event),
                Some(Kept::Gap { mark, gap }) => chunk.gaps.push((mark, gap)),
                None => {}
            }
        }
        while let Some((_, op)) = self.ops.front() {
            if !take(64 + op.operation.size()) {
                return (chunk, bytes);
            }
            chunk.ops.extend(self.ops.pop_front());
        }
        while let Some((key, state)) = self.states.last() {
            if !take(64 + key.0.len() + state.error.as_ref().map_or(0, |why| why.len())) {
                return (chunk, bytes);
            }
            chunk.states.extend(self.states.pop());
        }
        if !self.layers.is_empty() || (items > 0 && !self.applied.is_empty()) {
            // The numbers of all applied operations may be long: they get a chunk of their own.
            return (chunk, bytes);
        }
        chunk.end = Some(SnapshotEnd {
            upto: self.at,
            positions: std::mem::take(&mut self.positions),
            complete: self.complete,
            rings: std::mem::take(&mut self.rings),
            applied: std::mem::take(&mut self.applied),
        });
        (chunk, bytes)
    }

    /// The next key with a value or with layers.
    fn next_key(&mut self, link: &Link, context: &Context<'_>) -> Option<Key> {
        let known = |key: &Key| context.cache.get(key).is_some() || context.layers.has(key);
        match &mut self.keys {
            Keys::None => None,
            Keys::All => {
                let value = context.cache.next(self.cursor.as_ref()).map(|entry| &entry.held.key);
                value.into_iter().chain(context.layers.next(self.cursor.as_ref())).min().cloned()
            }
            Keys::Interest => {
                use std::ops::Bound;
                let lower = self.cursor.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
                let mut rest = link.keys.range::<Key, _>((lower, Bound::Unbounded));
                rest.find(|key| known(key)).cloned()
            }
            Keys::List(keys) => loop {
                let key = keys.front()?;
                if known(key) {
                    return Some(key.clone());
                }
                keys.pop_front();
            },
        }
    }
}
