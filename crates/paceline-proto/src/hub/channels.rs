//! Channels: upstream messages become frames, in order, once, or a Gap says that they may not have.

use std::collections::VecDeque;

use super::{ChannelSpec, Effect, Hub, Resume, log::To, tails::Collect, values::refused};
use crate::{
    event::Event,
    id::{Channel, Key, Offset, Position, Trace},
    limits::{KEY_MAX, RING_BYTES, RING_FRAMES, VALUE_MAX},
    message::{Body, Change, Gap, GapCause, HeldEvent},
    ring::{Floor, Kept},
};

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
    /// The upstream reconnected before it and may have lost what lay between.
    reconnected: bool,
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
    /// `position` went back: what the connection before the one asked for still sends does not join on.
    pub(super) stepped_back: bool,
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
    /// The upstream reconnected after the last buffered message.
    reconnected: bool,
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
            stepped_back: false,
            replaying: None,
            broken: false,
            local: 0,
            applied_from: None,
            applied_upto: None,
            horizon: None,
            collect: None,
            buffer: VecDeque::new(),
            reconnected: false,
            buffered: 0,
        }
    }

    /// Somebody stands at `at`.
    pub(super) fn raise_horizon(&mut self, at: Option<&Position>) {
        let Some(at) = at.filter(|at| !matches!(at, Position::Opaque(_)) && **at != Position::START) else {
            return;
        };
        if self.horizon.as_ref().is_none_or(|horizon| at.covers(horizon) == Some(true)) {
            self.horizon = Some(at.clone());
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
        let reconnected = std::mem::take(&mut state.reconnected);
        state.buffer.push_back(Buffered { reconnected, position, changes, trace, size });
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
            if message.reconnected {
                self.lose_continuity(channel, out);
            }
            self.publish_now(channel, message.position, message.changes, message.trace, out);
        }
        if self.channels.get_mut(channel).is_some_and(|state| std::mem::take(&mut state.reconnected)) {
            self.lose_continuity(channel, out);
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
        if state.stepped_back {
            // It is repeated.
            return;
        }
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
        if state.position.is_none()
            && self.rings.floor(channel).is_none()
            && let Some(before) = at.previous()
        {
            self.rings.set_floor(channel.clone(), Floor::After(before));
        }
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
        if self.heirs_wait {
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
        state.stepped_back = false;
        let asked = state.opening.take().flatten();
        if state.mode != Mode::Flowing {
            state.reconnected |= !resumed && !state.buffer.is_empty();
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
}

fn change_size(change: &Change) -> usize {
    match change {
        Change::Set { key, value, .. } => key.0.len() + value.len(),
        Change::Merge { key, patch } => key.0.len() + patch.len(),
        Change::Invalidate { key, .. } => key.0.len(),
        Change::Event { stream, data } => stream.0.len() + data.len(),
    }
}
