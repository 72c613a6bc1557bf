//! Recent events and gaps of all channels, kept so that somebody who is behind can be served by position.
//!
//! **Invariant:** for each channel with a floor the ring holds every event after the floor that its holder was entitled
//! to (an owner and an heir: of all streams; a follower: of its own), in order, with the gaps that lie between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    id::{Channel, Mark, Position, Stream},
    limits::{RING_AGE, RING_BYTES, RING_FRAMES},
    message::{Gap, HeldEvent},
    time::Time,
};

/// What a ring holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// An event.
    Event(HeldEvent),
    /// Events are missing here.
    Gap {
        /// The frame that carried the gap.
        mark: Mark,
        /// What is missing.
        gap: Gap,
    },
}

impl Kept {
    /// The channel it belongs to.
    pub fn channel(&self) -> &Channel {
        match self {
            Self::Event(event) => &event.origin.0,
            Self::Gap { gap, .. } => &gap.channel,
        }
    }

    pub(crate) fn mark(&self) -> Mark {
        match self {
            Self::Event(event) => event.mark,
            Self::Gap { mark, .. } => *mark,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Event(event) => 96 + event.data.len(),
            Self::Gap { .. } => 96,
        }
    }

    /// Whether somebody who stands at `at` has it behind them, as far as positions can tell.
    fn is_behind(&self, at: &Position) -> bool {
        match self {
            Self::Event(event) => at.covers(&event.origin.1) == Some(true),
            Self::Gap { gap: Gap { upto: Some(upto), .. }, .. } => at.covers(upto) == Some(true),
            // Where it ends is not known, so nobody is known to be past it.
            Self::Gap { gap: Gap { upto: None, .. }, .. } => false,
        }
    }
}

/// Which streams somebody is interested in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Streams<'a> {
    All,
    Only(&'a BTreeSet<Stream>),
}

impl Streams<'_> {
    pub(crate) fn has(self, stream: &Stream) -> bool {
        match self {
            Self::All => true,
            Self::Only(set) => set.contains(stream),
        }
    }

    fn within(self, held: &BTreeSet<Stream>) -> bool {
        match self {
            Self::All => false,
            Self::Only(set) => set.is_subset(held),
        }
    }
}

/// Where a channel's part of the ring begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Floor {
    /// Everything since the channel began.
    Start,
    /// Everything after this position.
    After(Position),
}

impl Floor {
    pub(crate) fn from_wire(ring: Option<Position>) -> Self {
        ring.map_or(Self::Start, Self::After)
    }

    pub(crate) fn to_wire(&self) -> Option<Position> {
        match self {
            Self::Start => None,
            Self::After(position) => Some(position.clone()),
        }
    }
}

/// A stretch of a channel of which only some streams are held.
#[derive(Debug, Clone)]
struct Thin {
    channel: Channel,
    upto: Position,
    streams: BTreeSet<Stream>,
}

#[derive(Debug, Default)]
pub(crate) struct Rings {
    items: VecDeque<(Time, Kept)>,
    bytes: usize,
    floors: BTreeMap<Channel, Floor>,
    thin: Vec<Thin>,
}

impl Rings {
    pub(crate) fn push(&mut self, kept: Kept, now: Time) {
        self.bytes += kept.size();
        self.items.push_back((now, kept));
        while self.items.len() > RING_FRAMES || self.bytes > RING_BYTES {
            self.drop_oldest();
        }
    }

    /// Drops what is older than `RING_AGE`.
    pub(crate) fn expire(&mut self, now: Time) {
        while self.items.front().is_some_and(|(at, _)| now.since(*at) > RING_AGE) {
            self.drop_oldest();
        }
    }

    /// Drops what every counted member has.
    pub(crate) fn settle(&mut self, stable: Mark) {
        while self.items.front().is_some_and(|(_, kept)| kept.mark() <= stable) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some((_, kept)) = self.items.pop_front() else { return };
        self.bytes -= kept.size();
        let floor = match kept {
            Kept::Event(event) => Some((event.origin.0, Some(event.origin.1))),
            Kept::Gap { gap, .. } => Some((gap.channel, gap.upto)),
        };
        match floor {
            Some((channel, Some(at))) => {
                self.thin.retain(|thin| thin.channel != channel || at.covers(&thin.upto) != Some(true));
                self.floors.insert(channel, Floor::After(at));
            }
            // Behind a gap whose end is not known nobody can be placed.
            Some((channel, None)) => drop(self.floors.remove(&channel)),
            None => {}
        }
    }

    pub(crate) fn floor(&self, channel: &Channel) -> Option<&Floor> {
        self.floors.get(channel)
    }

    pub(crate) fn set_floor(&mut self, channel: Channel, floor: Floor) {
        self.floors.insert(channel, floor);
    }

    /// Up to `upto` only `streams` of the channel are held.
    pub(crate) fn add_thin(&mut self, channel: Channel, upto: Position, streams: BTreeSet<Stream>) {
        self.thin.push(Thin { channel, upto, streams });
    }

    /// The end of the channel's last gap is known now.
    pub(crate) fn close_gap(&mut self, channel: &Channel, end: Position) {
        let gap = self.items.iter_mut().rev().find_map(|(_, kept)| match kept {
            Kept::Gap { gap, .. } if gap.channel == *channel => Some(gap),
            Kept::Gap { .. } | Kept::Event(_) => None,
        });
        if let Some(gap) = gap.filter(|gap| gap.upto.is_none()) {
            gap.upto = Some(end);
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes everything of a channel out, gaps included; its floor becomes unknown.
    pub(crate) fn take(&mut self, channel: &Channel) -> Vec<Kept> {
        self.floors.remove(channel);
        self.thin.retain(|thin| thin.channel != *channel);
        let (taken, rest): (Vec<_>, Vec<_>) =
            self.items.drain(..).partition(|(_, kept)| kept.channel() == channel);
        self.items = rest.into();
        self.bytes = self.items.iter().map(|(_, kept)| kept.size()).sum();
        taken.into_iter().map(|(_, kept)| kept).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Kept> {
        self.items.iter().map(|(_, kept)| kept)
    }

    pub(crate) fn of<'a>(&'a self, channel: &'a Channel) -> impl DoubleEndedIterator<Item = &'a Kept> {
        self.items.iter().map(|(_, kept)| kept).filter(move |kept| kept.channel() == channel)
    }

    /// Whether an event at this position is kept.
    pub(crate) fn holds(&self, channel: &Channel, at: &Position) -> bool {
        self.of(channel).any(|kept| matches!(kept, Kept::Event(event) if event.origin.1 == *at))
    }

    /// What somebody lacks who stands at `covered` (`None`: where the channel began) and has followed up to `last`;
    /// `None` where the ring does not reach back so far.
    pub(crate) fn tail(
        &self,
        channel: &Channel,
        covered: Option<&Position>,
        last: Mark,
        streams: Streams<'_>,
    ) -> Option<Vec<Kept>> {
        let mine: Vec<&Kept> = self.of(channel).collect();
        let floor = self.floors.get(channel);
        let start = match covered {
            None => (floor == Some(&Floor::Start)).then_some(0),
            Some(at) => match (mine.iter().rposition(|kept| kept.is_behind(at)), floor) {
                (Some(seen), _) => Some(seen + 1),
                (None, Some(Floor::After(floor))) => (at.covers(floor) == Some(true)).then_some(0),
                // The ring goes back to where its holder began, which may be after `at`.
                (None, Some(Floor::Start)) => {
                    mine.first().is_some_and(|first| adjoins(at, first)).then_some(0)
                }
                (None, None) => None,
            },
        }?;
        let whole = self.thin.iter().filter(|thin| thin.channel == *channel).all(|thin| {
            covered.is_some_and(|at| at.covers(&thin.upto) == Some(true)) || streams.within(&thin.streams)
        });
        whole.then(|| {
            let wanted = mine[start..].iter().filter(|kept| match kept {
                Kept::Event(event) => streams.has(&event.stream),
                Kept::Gap { mark, .. } => *mark > last && !covered.is_some_and(|at| kept.is_behind(at)),
            });
            wanted.map(|kept| (*kept).clone()).collect()
        })
    }

    /// Events after `after` (`None` = all), for an owner that lacks them. Nothing where `after` cannot be placed.
    pub(crate) fn events_after(&self, channel: &Channel, after: Option<&Position>) -> Vec<HeldEvent> {
        let events = self.of(channel).filter_map(|kept| match kept {
            Kept::Event(event) => Some(event),
            Kept::Gap { .. } => None,
        });
        match after {
            None => events.cloned().collect(),
            Some(after) => {
                events.filter(|event| after.covers(&event.origin.1) == Some(false)).cloned().collect()
            }
        }
    }

    /// What heirs keep: everything above the stable place, and where that begins for each channel.
    pub(crate) fn above(&self, stable: Mark) -> (Vec<Kept>, Vec<(Channel, Option<Position>)>) {
        let mut floors = self.floors.clone();
        for thin in &self.thin {
            floors.insert(thin.channel.clone(), Floor::After(thin.upto.clone()));
        }
        // Below its floor a ring holds nothing by which anybody could be placed.
        let is_thin = |kept: &Kept| {
            self.thin.iter().any(|thin| thin.channel == *kept.channel() && kept.is_behind(&thin.upto))
        };
        let mut above = Vec::new();
        for kept in self.iter().filter(|kept| !is_thin(kept)) {
            match kept {
                kept if kept.mark() > stable => above.push(kept.clone()),
                Kept::Event(event) => {
                    floors.insert(event.origin.0.clone(), Floor::After(event.origin.1.clone()));
                }
                Kept::Gap { .. } => {}
            }
        }
        (above, floors.iter().map(|(channel, floor)| (channel.clone(), floor.to_wire())).collect())
    }

    /// Where each channel's part begins, as told to others.
    pub(crate) fn floors(&self) -> Vec<(Channel, Option<Position>)> {
        self.floors.iter().map(|(channel, floor)| (channel.clone(), floor.to_wire())).collect()
    }
}

/// Whether nothing can lie between `at` and `first`.
fn adjoins(at: &Position, first: &Kept) -> bool {
    match first {
        Kept::Event(event) => {
            event.origin.1.previous().is_some_and(|before| at.covers(&before) == Some(true))
        }
        Kept::Gap { gap, .. } => gap.after.as_ref() == Some(at),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::{
        id::{Epoch, Offset},
        message::GapCause,
    };

    fn channel() -> Channel {
        "feed".into()
    }

    fn seq(offset: u64) -> Position {
        Position::Seq { epoch: "f".into(), offset }
    }

    fn mark(offset: u64) -> Mark {
        Mark::new(Epoch(1), Offset(offset))
    }

    fn event(n: u64) -> Kept {
        Kept::Event(HeldEvent {
            mark: mark(n),
            origin: (channel(), seq(n)),
            stream: "s".into(),
            data: Bytes::new(),
        })
    }

    fn gap(after: u64, upto: Option<u64>, at: u64) -> Kept {
        let (after, upto) = (Some(seq(after)), upto.map(seq));
        Kept::Gap { mark: mark(at), gap: Gap { channel: channel(), after, upto, why: GapCause::Upstream } }
    }

    /// Everything after 2: events 3 and 4, a gap, events 8 and 9.
    fn rings() -> Rings {
        let mut rings = Rings::default();
        rings.set_floor(channel(), Floor::After(seq(2)));
        for kept in [event(3), event(4), gap(4, Some(7), 5), event(8), event(9)] {
            rings.push(kept, Time(0));
        }
        rings
    }

    fn tail(rings: &Rings, at: u64, last: u64) -> Option<String> {
        let tail = rings.tail(&channel(), Some(&seq(at)), mark(last), Streams::All)?;
        let name = |kept: &Kept| match kept {
            Kept::Event(event) => event.mark.offset.to_string(),
            Kept::Gap { .. } => "gap".to_owned(),
        };
        Some(tail.iter().map(name).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_tail_begins_where_its_reader_stands() {
        let rings = rings();
        assert_eq!(tail(&rings, 2, 0).as_deref(), Some("3 4 gap 8 9"));
        assert_eq!(tail(&rings, 4, 0).as_deref(), Some("gap 8 9"));
        assert_eq!(tail(&rings, 4, 5).as_deref(), Some("8 9"), "the gap was shown to it before");
        assert_eq!(tail(&rings, 8, 0).as_deref(), Some("9"));
        assert_eq!(tail(&rings, 12, 0).as_deref(), Some(""));
        assert_eq!(tail(&rings, 1, 0), None);
    }

    #[test]
    fn a_gap_without_an_end_is_behind_nobody_until_it_is_closed() {
        let mut rings = Rings::default();
        rings.set_floor(channel(), Floor::After(seq(1)));
        rings.push(gap(1, None, 2), Time(0));
        assert_eq!(tail(&rings, 2, 0).as_deref(), Some("gap"));
        rings.close_gap(&channel(), seq(3));
        rings.push(event(4), Time(0));
        assert_eq!(tail(&rings, 2, 0).as_deref(), Some("gap 4"));
        assert_eq!(tail(&rings, 3, 0).as_deref(), Some("4"));
    }

    #[test]
    fn what_was_dropped_raises_the_floor() {
        let mut rings = rings();
        rings.settle(mark(3));
        assert_eq!(rings.floor(&channel()), Some(&Floor::After(seq(3))));
        assert_eq!(tail(&rings, 2, 0), None);
        assert_eq!(tail(&rings, 3, 0).as_deref(), Some("4 gap 8 9"));
        rings.expire(Time(0) + RING_AGE);
        assert_eq!(tail(&rings, 3, 0).as_deref(), Some("4 gap 8 9"));
        rings.expire(Time(0) + RING_AGE + Duration::from_nanos(1));
        assert_eq!(rings.floor(&channel()), Some(&Floor::After(seq(9))));
    }

    #[test]
    fn one_event_more_than_the_bound_drops_the_oldest() {
        let mut rings = Rings::default();
        rings.set_floor(channel(), Floor::After(seq(0)));
        let all = RING_FRAMES as u64;
        (1..=all).for_each(|n| rings.push(event(n), Time(0)));
        assert!(tail(&rings, 0, 0).is_some());
        rings.push(event(all + 1), Time(0));
        assert_eq!(tail(&rings, 0, 0), None);
        assert!(tail(&rings, 1, 0).is_some());
    }

    #[test]
    fn a_stretch_of_some_streams_serves_only_those() {
        let mut rings = rings();
        rings.add_thin(channel(), seq(8), ["s".into()].into());
        let only = |stream: &str, at| {
            let streams = [stream.into()].into();
            rings.tail(&channel(), Some(&seq(at)), mark(0), Streams::Only(&streams)).is_some()
        };
        assert!(only("s", 4));
        assert!(!only("other", 4));
        assert!(only("other", 8));
        assert_eq!(tail(&rings, 4, 0), None);
    }

    #[test]
    fn an_heir_gets_nothing_of_a_stretch_of_some_streams() {
        let mut rings = rings();
        rings.add_thin(channel(), seq(8), ["s".into()].into());
        let (kept, floors) = rings.above(mark(0));
        assert_eq!(kept, [event(9)]);
        assert_eq!(floors, [(channel(), Some(seq(8)))]);
    }

    #[test]
    fn a_ring_from_the_start_serves_the_start_and_whoever_adjoins_it() {
        let mut rings = Rings::default();
        rings.set_floor(channel(), Floor::Start);
        rings.push(event(5), Time(0));
        assert!(rings.tail(&channel(), None, mark(0), Streams::All).is_some());
        assert_eq!(tail(&rings, 4, 0).as_deref(), Some("5"));
        assert_eq!(tail(&rings, 3, 0), None);
    }
}
