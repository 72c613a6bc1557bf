//! Channels: upstream messages become frames, in order, once, or a Gap says that they may not have.

use std::collections::VecDeque;

use super::{
    ChannelSpec, Effect, Hub, Resume,
    cache::Entry,
    collect::Collect,
    links::Slot,
    log::{Atom, To},
};
use crate::{
    event::Event,
    id::{Channel, Key, Mark, Offset, Place, Position, Trace, Version},
    limits::{KEY_MAX, RING_BYTES, RING_FRAMES, VALUE_MAX},
    message::{Body, Change, Gap, GapCause, Held, HeldEvent},
    ring::Kept,
};
use bytes::Bytes;

/// What a channel does with messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Not opened: where to resume depends on offers that may still come.
    Waiting,
    /// Messages are held back until the tails of survivors are in.
    Collecting,
    /// Messages are published as they come.
    Flowing,
}

/// A message that waits.
#[derive(Debug)]
pub(super) struct Buffered {
    position: Option<Position>,
    changes: Vec<Change>,
    trace: Trace,
    size: usize,
}

#[derive(Debug)]
pub(super) struct ChannelState {
    pub(super) spec: ChannelSpec,
    pub(super) mode: Mode,
    /// Events up to here are published.
    pub(super) position: Option<Position>,
    /// The frame with which `position` moved last.
    pub(super) moved_at: Offset,
    /// An upstream answered in this reign.
    pub(super) opened: bool,
    /// Asked for and not answered: messages still come from an older connection.
    pub(super) opening: Option<Option<Position>>,
    /// How far the replay under way has come.
    pub(super) replaying: Option<Position>,
    /// A gap was declared and nothing published since.
    pub(super) broken: bool,
    /// Counts messages that came without a position.
    pub(super) local: u64,
    /// Values of messages in (from, upto] were applied in this reign.
    pub(super) applied_from: Option<Position>,
    pub(super) applied_upto: Option<Position>,
    /// Nobody who offered stands beyond this.
    pub(super) horizon: Option<Position>,
    pub(super) collect: Option<Collect>,
    pub(super) buffer: VecDeque<Buffered>,
    pub(super) buffered: usize,
}

/// How a message relates to what is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    New,
    /// Published before.
    Replay,
    /// Of another history, not comparable.
    Elsewhere,
}

impl ChannelState {
    pub(super) fn new(spec: ChannelSpec, mode: Mode) -> Self {
        Self {
            spec,
            mode,
            position: None,
            moved_at: Offset::ZERO,
            opened: false,
            opening: None,
            replaying: None,
            broken: false,
            local: 0,
            applied_from: None,
            applied_upto: None,
            horizon: None,
            collect: None,
            buffer: VecDeque::new(),
            buffered: 0,
        }
    }

    /// Whether a message that waits changes the key.
    pub(super) fn will_change(&self, key: &Key) -> bool {
        let changes = self.buffer.iter().flat_map(|message| &message.changes);
        changes.into_iter().any(|change| match change {
            Change::Set { key: changed, .. } | Change::Merge { key: changed, .. } => changed == key,
            Change::Invalidate { .. } | Change::Event { .. } => false,
        })
    }

    /// Where the links are told that the channel stands.
    pub(super) fn told(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// Whether the upstream can continue after `at`.
    pub(super) fn resumes_at(&self, at: &Position) -> bool {
        self.spec.resume != Resume::None && !matches!(at, Position::Local { .. })
    }
}

impl Hub {
    /// An upstream message.
    pub(super) fn publish(
        &mut self,
        channel: Channel,
        position: Option<Position>,
        live: bool,
        changes: Vec<Change>,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        if self.is_drained() {
            return;
        }
        if !live {
            self.publish_loose(&channel, changes, false, trace, out);
            return;
        }
        let state = self.channels.entry(channel.clone()).or_insert_with(|| {
            let spec = ChannelSpec { channel: channel.clone(), resume: Resume::None, dense: false };
            ChannelState::new(spec, Mode::Flowing)
        });
        if state.mode == Mode::Flowing {
            self.publish_now(&channel, position, changes, trace, out);
            return;
        }
        let size = 64 + changes.iter().map(change_size).sum::<usize>();
        state.buffered += size;
        state.buffer.push_back(Buffered { position, changes, trace, size });
        if state.buffer.len() > RING_FRAMES || state.buffered > RING_BYTES {
            out.push(Effect::Event(Event::LimitReached { limit: "RING_FRAMES" }));
            self.finish_collecting(&channel, out);
        }
    }

    pub(super) fn publish_buffered(&mut self, channel: &Channel, out: &mut Vec<Effect>) {
        while let Some(state) = self.channels.get_mut(channel)
            && let Some(message) = state.buffer.pop_front()
        {
            state.buffered -= message.size;
            self.publish_now(channel, message.position, message.changes, message.trace, out);
        }
    }

    fn publish_now(
        &mut self,
        channel: &Channel,
        position: Option<Position>,
        changes: Vec<Change>,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        let Some(state) = self.channels.get_mut(channel) else { return };
        let counted = state.position.as_ref().is_none_or(|at| matches!(at, Position::Local { .. }));
        let at = match position {
            Some(at) => at,
            None if counted => {
                state.local += 1;
                Position::Local { epoch: self.epoch, n: state.local }
            }
            // An upstream that numbers its messages sent one without a number.
            None => return self.publish_loose(channel, changes, true, trace, out),
        };
        match self.relation(channel, &at) {
            Relation::Replay => self.publish_again(channel, &at, changes, trace, out),
            relation => self.publish_new(channel, at, relation, changes, trace, out),
        }
    }

    fn relation(&self, channel: &Channel, at: &Position) -> Relation {
        let Some(published) = self.channels.get(channel).and_then(|state| state.position.as_ref()) else {
            return Relation::New;
        };
        match (published.covers(at), published, at) {
            (Some(true), ..) => Relation::Replay,
            (Some(false), ..) => Relation::New,
            (None, Position::Opaque(_), Position::Opaque(_)) => {
                if self.rings.holds(channel, at) {
                    Relation::Replay
                } else {
                    Relation::New
                }
            }
            (None, ..) => Relation::Elsewhere,
        }
    }

    fn publish_new(
        &mut self,
        channel: &Channel,
        at: Position,
        relation: Relation,
        changes: Vec<Change>,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        self.notice_hole(channel, &at, relation, out);
        self.give_up_replay(channel, out);
        let Some(state) = self.channels.get_mut(channel) else { return };
        let checked = state.horizon.as_ref().is_some_and(|horizon| horizon.covers(&at) == Some(true));
        if state.applied_from.is_none() {
            state.applied_from = state.position.clone().or_else(|| at.previous());
        }
        state.applied_upto = Some(at.clone());
        state.position = Some(at.clone());
        if std::mem::take(&mut state.broken)
            && let Some(upto) = at.previous()
        {
            self.rings.close_gap(channel, upto);
        }
        let origin = (channel.clone(), at);
        let mut atom = self.log.atom(trace);
        for change in changes {
            if let Change::Event { stream, data } = change {
                if stream.0.len() > KEY_MAX || data.len() > VALUE_MAX {
                    refused(channel, "an event past the bounds", out);
                    continue;
                }
                let event = HeldEvent {
                    mark: atom.mark(),
                    origin: origin.clone(),
                    stream: stream.clone(),
                    data: data.clone(),
                };
                self.rings.push(Kept::Event(event), self.now);
                atom.push(Body::Event { stream, data }, Some(origin.clone()), None, To::All);
            } else if !checked || !self.includes(&change, &origin) {
                self.apply(&mut atom, change, Some(&origin), out);
            }
        }
        if let Some(state) = self.channels.get_mut(channel) {
            // Without a frame of its own the move is told with the next one.
            state.moved_at = atom.frames.last().map_or(self.log.end().next(), |(frame, _)| frame.offset);
        }
        self.commit(atom, out);
        if self.heirs_ahead {
            self.choose_heirs(out);
        }
    }

    /// A message at or before the published position: its events go to those who wait for the replay, its values where
    /// they are not included yet.
    fn publish_again(
        &mut self,
        channel: &Channel,
        at: &Position,
        changes: Vec<Change>,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        self.stats.replayed += 1;
        let Some(state) = self.channels.get_mut(channel) else { return };
        let stale = state.opening.is_some();
        let covers = |a: &Option<Position>, b: &Position| a.as_ref().and_then(|a| a.covers(b)) == Some(true);
        let in_reign = covers(&state.applied_upto, at) && !covers(&state.applied_from, at);
        let old = covers(&state.applied_from, at) || state.applied_upto.is_none();
        let skip_values = in_reign || (old && self.complete);
        if !stale && state.replaying.is_some() {
            state.replaying = Some(at.clone());
        }
        let reached = at.covers(state.position.as_ref().unwrap_or(at)) == Some(true);
        if !in_reign && !old {
            state.applied_upto = Some(at.clone());
        }
        if !stale {
            self.hold_replay(channel);
        }
        let origin = (channel.clone(), at.clone());
        let mut atom = self.log.atom(trace);
        for change in changes {
            match change {
                Change::Event { stream, data } => {
                    let awaited = self.links.iter().any(|(_, link)| link.lag.contains_key(channel));
                    if !stale && awaited && stream.0.len() <= KEY_MAX && data.len() <= VALUE_MAX {
                        let to = To::Behind(channel.clone(), at.clone());
                        atom.push(Body::Event { stream, data }, Some(origin.clone()), None, to);
                    }
                }
                change if skip_values || self.includes(&change, &origin) => {}
                change => self.apply(&mut atom, change, Some(&origin), out),
            }
        }
        let over = self.queue_atom(atom, out);
        if !stale {
            self.advance_replay(channel, at, reached, out);
        }
        self.conflate_all(over, out);
    }

    /// A replay comes as fast as the upstream sends it: who has enough of it queued gets the rest later.
    fn hold_replay(&mut self, channel: &Channel) {
        for (_, link) in self.links.iter_mut().filter(|(_, link)| link.is_half_full()) {
            if let Some(lag) = link.lag.get_mut(channel) {
                lag.stalled = true;
            }
        }
    }

    /// The replay has passed `at` for everybody who waits for it.
    fn advance_replay(&mut self, channel: &Channel, at: &Position, reached: bool, out: &mut Vec<Effect>) {
        let mut done = false;
        for (_, link) in self.links.iter_mut() {
            let Some(lag) = link.lag.get_mut(channel).filter(|lag| !lag.stalled) else { continue };
            if lag.at.covers(at) == Some(false) {
                lag.at = at.clone();
                link.forced.insert(channel.clone());
            }
            if reached {
                link.lag.remove(channel);
                link.forced.insert(channel.clone());
                done = true;
            }
        }
        if reached && let Some(state) = self.channels.get_mut(channel) {
            state.replaying = None;
        }
        if done {
            self.choose_heirs(out);
        }
    }

    /// A newer message came although somebody waits for a replay: the upstream will not send it any more.
    fn give_up_replay(&mut self, channel: &Channel, out: &mut Vec<Effect>) {
        if self.channels.get(channel).is_some_and(|state| state.opening.is_some()) {
            // It came from the connection before the one that replays.
            return;
        }
        self.stop_waiting(channel, false, out);
    }

    fn stop_waiting(&mut self, channel: &Channel, stalled_too: bool, out: &mut Vec<Effect>) {
        let behind: Vec<Slot> = self
            .links
            .iter()
            .filter(|(_, link)| link.lag.get(channel).is_some_and(|lag| stalled_too || !lag.stalled))
            .map(|(slot, _)| slot)
            .collect();
        let Some(state) = self.channels.get_mut(channel) else { return };
        state.replaying = None;
        let upto = state.position.clone();
        for slot in &behind {
            let Some(link) = self.links.get_mut(*slot) else { continue };
            let after = link.lag.remove(channel).map(|lag| lag.at);
            link.forced.insert(channel.clone());
            let gap = Gap { channel: channel.clone(), after, upto: upto.clone(), why: GapCause::Resync };
            self.private_gap(*slot, gap, out);
        }
        if !behind.is_empty() {
            self.choose_heirs(out);
        }
    }

    /// A dense channel numbers without holes, so a hole is a loss; another history cannot prove that none happened.
    fn notice_hole(&mut self, channel: &Channel, at: &Position, relation: Relation, out: &mut Vec<Effect>) {
        let Some(state) = self.channels.get(channel) else { return };
        let Some(published) = &state.position else { return };
        let hole = match (published, at) {
            (Position::Seq { offset: last, .. }, Position::Seq { offset, .. })
                if relation == Relation::New =>
            {
                state.spec.dense && *offset > last + 1
            }
            _ => relation == Relation::Elsewhere,
        };
        if hole && !state.broken {
            self.declare_gap(channel, at.previous(), out);
        }
    }

    /// Everybody is shown that events after the published position may be missing.
    pub(super) fn declare_gap(&mut self, channel: &Channel, upto: Option<Position>, out: &mut Vec<Effect>) {
        let Some(state) = self.channels.get_mut(channel) else { return };
        state.broken = true;
        let gap =
            Gap { channel: channel.clone(), after: state.position.clone(), upto, why: GapCause::Upstream };
        let mut atom = self.log.atom(Trace::NONE);
        self.rings.push(Kept::Gap { mark: atom.mark(), gap: gap.clone() }, self.now);
        out.push(Effect::Event(Event::GapShown { channel: channel.clone() }));
        atom.push(Body::Gap(gap), None, None, To::All);
        self.commit(atom, out);
    }

    /// The upstream does not continue where the channel stands.
    pub(super) fn lose_continuity(&mut self, channel: &Channel, out: &mut Vec<Effect>) {
        let Some(state) = self.channels.get_mut(channel) else { return };
        let upto = match &state.position {
            None => return,
            // The first message will tell whether anything is missing.
            Some(Position::Seq { .. }) if state.spec.dense => return,
            Some(Position::Local { epoch, .. }) => {
                if *epoch == self.epoch {
                    // A number nobody has, so that nobody counts the gap as behind them.
                    state.local += 1;
                }
                Some(Position::Local { epoch: self.epoch, n: state.local })
            }
            Some(Position::Seq { .. } | Position::Opaque(_)) => None,
        };
        if !state.broken {
            self.declare_gap(channel, upto, out);
        }
    }

    /// An upstream (re)connected.
    pub(super) fn channel_opened(&mut self, channel: &Channel, resumed: bool, out: &mut Vec<Effect>) {
        let Some(state) = self.channels.get_mut(channel) else { return };
        state.opened = true;
        let asked = state.opening.take().flatten();
        if state.mode != Mode::Flowing {
            return;
        }
        if resumed {
            let behind = |asked: &Position| state.position.as_ref().is_some_and(|at| at != asked);
            state.replaying = asked.filter(behind);
            state.collect = None;
            return;
        }
        if state.position.is_some() && state.collect.is_some() {
            // The survivors' tails are all there is.
            state.mode = Mode::Collecting;
            self.collect(channel, out);
            return;
        }
        self.stop_waiting(channel, true, out);
        self.lose_continuity(channel, out);
    }

    /// Opens the channel after the published position.
    pub(super) fn open(&mut self, channel: &Channel, out: &mut Vec<Effect>) {
        let Some(state) = self.channels.get_mut(channel) else { return };
        let resume = state.position.clone().filter(|at| state.resumes_at(at));
        state.opening = Some(resume.clone());
        state.replaying = None;
        out.push(Effect::OpenChannel { channel: channel.clone(), resume });
    }

    /// Opens the channel again so that everything after `at` comes once more, unless that is under way.
    pub(super) fn rewind(&mut self, channel: &Channel, at: &Position, out: &mut Vec<Effect>) {
        let Some(state) = self.channels.get_mut(channel) else { return };
        let under_way = match (&state.opening, &state.replaying) {
            (Some(asked), _) => asked.as_ref(),
            (None, replaying) => replaying.as_ref(),
        };
        if under_way.is_some_and(|from| at.covers(from) == Some(true)) {
            return;
        }
        state.opening = Some(Some(at.clone()));
        state.replaying = None;
        self.stats.rewinds += 1;
        out.push(Effect::OpenChannel { channel: channel.clone(), resume: Some(at.clone()) });
        out.push(Effect::Event(Event::ChannelRewound { channel: channel.clone(), at: at.clone() }));
    }

    /// A link whose queue overflowed with a replay has written it: the rest is asked for.
    pub(super) fn replay_again(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get_mut(slot) else { return };
        let mut again = Vec::new();
        for (channel, lag) in link.lag.iter_mut().filter(|(_, lag)| lag.stalled) {
            lag.stalled = false;
            again.push((channel.clone(), lag.at.clone()));
        }
        again.into_iter().for_each(|(channel, at)| self.rewind(&channel, &at, out));
    }

    /// A message without a place in the channel: values only, or (`events`) events that nobody can resume at.
    fn publish_loose(
        &mut self,
        channel: &Channel,
        changes: Vec<Change>,
        events: bool,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        let mut atom = self.log.atom(trace);
        for change in changes {
            match change {
                Change::Event { stream, data } if events && data.len() <= VALUE_MAX => {
                    let at = Position::Local { epoch: self.epoch, n: atom.mark().offset.0 };
                    atom.push(Body::Event { stream, data }, Some((channel.clone(), at)), None, To::All);
                }
                Change::Event { .. } => {}
                change => self.apply(&mut atom, change, None, out),
            }
        }
        self.commit(atom, out);
    }

    /// Whether the value a change aims at has it already.
    fn includes(&self, change: &Change, origin: &(Channel, Position)) -> bool {
        match change {
            Change::Set { key, .. } | Change::Merge { key, .. } => {
                self.cache.get(key).is_some_and(|entry| entry.includes(&origin.0, &origin.1))
            }
            Change::Invalidate { .. } | Change::Event { .. } => false,
        }
    }

    fn apply(
        &mut self,
        atom: &mut Atom,
        change: Change,
        origin: Option<&(Channel, Position)>,
        out: &mut Vec<Effect>,
    ) {
        let name = origin.map_or("", |(channel, _)| &channel.0);
        match change {
            Change::Set { key, value, version } => {
                if key.0.len() > KEY_MAX || value.len() > VALUE_MAX || value.is_empty() {
                    return refused_by(name, "a value past the bounds", out);
                }
                self.set(atom, key, value, version, origin, out);
            }
            Change::Merge { key, patch } => {
                let old = self.cache.get(&key).filter(|entry| entry.has_value());
                let folded = self.fold.fold(old.map(|entry| entry.held.value.as_ref()), &patch);
                match folded {
                    Ok(value) if value.len() <= VALUE_MAX && key.0.len() <= KEY_MAX && !value.is_empty() => {
                        let version = self.version_of(&key);
                        self.install(atom, key, value, version, origin, None, true);
                    }
                    Ok(_) => refused_by(name, "a value past the bounds", out),
                    Err(why) => refused_by(name, &why, out),
                }
            }
            Change::Invalidate { key, exact } => {
                if key.0.len() <= KEY_MAX {
                    self.cache.invalidate(&key, exact);
                    atom.push(Body::Invalidate { key, exact }, origin.cloned(), None, To::All);
                }
            }
            Change::Event { .. } => {}
        }
    }

    /// A value from an upstream: a lower version is old news; an equal one with other content is a conflict that only a
    /// fetch can settle, so the held value stays and is marked stale.
    fn set(
        &mut self,
        atom: &mut Atom,
        key: Key,
        value: Bytes,
        version: Version,
        origin: Option<&(Channel, Position)>,
        out: &mut Vec<Effect>,
    ) {
        let held = self.cache.get(&key).filter(|entry| entry.has_value()).map(|entry| &entry.held);
        let Some(held) = held.filter(|_| version != Version::None) else {
            let version = if version == Version::None { self.version_of(&key) } else { version };
            self.install(atom, key, value, version, origin, None, false);
            return;
        };
        if version < held.place.version {
            self.stats.old_versions += 1;
            return;
        }
        if version == held.place.version {
            if self.fold.hash(&value) != held.hash {
                out.push(Effect::Event(Event::VersionClash { mark: held.place.mark }));
                self.cache.invalidate(&key, true);
                atom.push(Body::Invalidate { key, exact: true }, origin.cloned(), None, To::All);
                return;
            }
            if !held.invalidated {
                self.stats.old_versions += 1;
                return;
            }
        }
        self.install(atom, key, value, version, origin, None, false);
    }

    fn version_of(&self, key: &Key) -> Version {
        self.cache.get(key).map_or(Version::None, |entry| entry.held.place.version.clone())
    }

    /// Puts a value in the cache at the atom's next place and queues its frame.
    #[expect(clippy::too_many_arguments, reason = "one value and where it comes from")]
    pub(super) fn install(
        &mut self,
        atom: &mut Atom,
        key: Key,
        value: Bytes,
        version: Version,
        origin: Option<&(Channel, Position)>,
        op: Option<crate::message::HeldOp>,
        folded: bool,
    ) {
        let mark = atom.mark();
        let old = self.cache.get(&key);
        let place = Place { reset: old.map_or(Mark::ZERO, |entry| entry.held.place.reset), version, mark };
        let hash = self.fold.hash(&value);
        let held = Held { key, place, value, hash, invalidated: false };
        let set_at = old.filter(|_| folded).map_or(mark, |entry| entry.set_at);
        let written = origin.cloned().or_else(|| old.and_then(|entry| entry.written.clone()));
        let basis = old.and_then(|entry| entry.basis.clone());
        let ops = old.and_then(|entry| entry.ops.clone());
        let orphan = match old {
            Some(old) => old.orphan && (folded || op.is_some()),
            None => op.is_some() && !self.complete && !self.members.all_offered(),
        };
        self.cache.insert(Entry { held: held.clone(), set_at, written, basis, ops, orphan });
        atom.push(Body::Value(held), origin.cloned(), op, To::All);
    }
}

fn change_size(change: &Change) -> usize {
    match change {
        Change::Set { key, value, .. } => key.0.len() + value.len(),
        Change::Merge { key, patch } => key.0.len() + patch.len(),
        Change::Invalidate { key, .. } => key.0.len(),
        Change::Event { stream, data } => stream.0.len() + data.len(),
    }
}

fn refused(channel: &Channel, why: &str, out: &mut Vec<Effect>) {
    refused_by(&channel.0, why, out);
}

fn refused_by(upstream: &str, why: &str, out: &mut Vec<Effect>) {
    let (upstream, why) = (upstream.to_owned(), why.to_owned());
    out.push(Effect::Event(Event::UpstreamMessageRefused { upstream, why }));
}
