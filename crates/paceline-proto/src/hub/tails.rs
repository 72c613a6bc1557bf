//! What survivors bring of a channel, and from where everybody must be served.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use crate::{
    id::{LinkId, Position, SessionId, Stream},
    message::{ChannelOffer, HeldEvent},
    ring::{Floor, Kept},
};

/// Events of one upstream message, by stream.
pub(super) type Message = BTreeMap<Stream, Vec<HeldEvent>>;

/// From where everybody must be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Base {
    /// Nobody has followed the channel.
    Unknown,
    /// Somebody followed it before its first message.
    Start,
    At(Position),
}

impl Base {
    pub(super) fn of(covered: &Position) -> Self {
        if *covered == Position::START { Self::Start } else { Self::At(covered.clone()) }
    }

    pub(super) fn position(&self) -> Option<&Position> {
        match self {
            Self::At(at) => Some(at),
            Self::Unknown | Self::Start => None,
        }
    }
}

/// A stretch of events that came from one session.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// It followed the channel since its first message.
    pub(super) from_start: bool,
    /// It holds everything after this …
    pub(super) from: Option<Position>,
    /// … up to here …
    pub(super) covered: Position,
    /// … of these streams (`None` = all).
    pub(super) streams: Option<BTreeSet<Stream>>,
}

impl Source {
    /// What `events` are, asked for after `after` from a session whose ring begins at `ring_after`.
    pub(super) fn new(
        ring_after: Option<Position>,
        after: Option<Position>,
        covered: Position,
        streams: Option<BTreeSet<Stream>>,
        events: &[HeldEvent],
    ) -> Self {
        let from_start = ring_after.is_none();
        let from = match (ring_after, after) {
            (Some(ring), Some(after)) if after.covers(&ring) == Some(true) => Some(after),
            (Some(ring), _) => Some(ring),
            // Its first message may not have been the channel's first.
            (None, _) => events.first().and_then(|event| event.origin.1.previous()),
        };
        Self { from_start, from, covered, streams }
    }

    pub(super) fn reaches(&self, base: &Base) -> bool {
        match base.position() {
            None => self.from_start,
            Some(at) => self.from.as_ref().is_some_and(|from| at.covers(from) == Some(true)),
        }
    }
}

/// Which streams are whole between base and goal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whole {
    All,
    Only(BTreeSet<Stream>),
}

#[derive(Debug)]
pub(super) struct Pull {
    pub(super) link: LinkId,
    pub(super) session: SessionId,
    pub(super) offer: ChannelOffer,
    pub(super) after: Option<Position>,
    pub(super) streams: Option<BTreeSet<Stream>>,
    pub(super) events: Vec<HeldEvent>,
    pub(super) bytes: usize,
}

/// What was collected for a channel.
#[derive(Debug, Default)]
pub(super) struct Collect {
    /// Where the owner itself stands, if it must be served like everybody else.
    pub(super) own: Option<Position>,
    pub(super) messages: BTreeMap<u64, Message>,
    pub(super) sources: Vec<Source>,
    /// Whom was asked, and from where on.
    pub(super) asked: BTreeMap<LinkId, Option<Position>>,
    pub(super) pull: Option<Pull>,
}

impl Collect {
    /// What an owner brings that was no up-to-date heir: one source among others.
    pub(super) fn with_own(
        own: Option<Position>,
        ring: Option<Floor>,
        streams: BTreeSet<Stream>,
        kept: Vec<Kept>,
    ) -> Self {
        let mut collect = Self { own: own.clone(), ..Self::default() };
        let Some(covered) = own else { return collect };
        let mut ring_after = ring.map_or_else(|| Some(covered.clone()), |floor| floor.to_wire());
        let mut events = Vec::new();
        for kept in kept {
            match kept {
                Kept::Event(event) => events.push(event),
                Kept::Gap { gap, .. } => ring_after = gap.upto.or_else(|| Some(covered.clone())),
            }
        }
        collect.sources.push(Source::new(ring_after, None, covered, Some(streams), &events));
        collect.add(events);
        collect
    }

    /// Where the owner itself stands.
    pub(super) fn own(&self) -> Option<&Position> {
        self.own.as_ref()
    }

    /// Takes the events of one session. Of a message and stream that another one brought already it has the same.
    pub(super) fn add(&mut self, events: Vec<HeldEvent>) -> u64 {
        let mut brought: BTreeMap<u64, Message> = BTreeMap::new();
        for event in events {
            if let Some(number) = number(&event.origin.1) {
                let streams = brought.entry(number).or_default();
                streams.entry(event.stream.clone()).or_default().push(event);
            }
        }
        let mut news = 0;
        for (number, streams) in brought {
            let message = self.messages.entry(number).or_default();
            for (stream, events) in streams {
                if let Entry::Vacant(vacant) = message.entry(stream) {
                    news += events.len() as u64;
                    vacant.insert(events);
                }
            }
        }
        news
    }
}

impl Source {
    pub(super) fn covers(&self, goal: &Position) -> bool {
        self.covered.covers(goal) == Some(true)
    }
}

/// The lower of two claims; of two that do not compare the first.
pub(super) fn lower(a: Base, b: Base) -> Base {
    match (a, b) {
        (Base::Unknown, other) | (other, Base::Unknown) => other,
        (Base::Start, _) | (_, Base::Start) => Base::Start,
        (Base::At(a), Base::At(b)) => {
            if b.covers(&a) == Some(false) {
                Base::At(b)
            } else {
                Base::At(a)
            }
        }
    }
}

/// Order of positions within one history.
pub(super) fn number(at: &Position) -> Option<u64> {
    match at {
        Position::Seq { offset, .. } => Some(*offset),
        Position::Local { n, .. } => Some(*n),
        Position::Opaque(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u64) -> Base {
        Base::At(Position::Seq { epoch: "a".into(), offset })
    }

    #[test]
    fn the_lowest_claim_wins_and_the_start_is_lowest() {
        assert_eq!(lower(at(5), at(3)), at(3));
        assert_eq!(lower(at(3), at(5)), at(3));
        assert_eq!(lower(Base::Unknown, at(5)), at(5));
        assert_eq!(lower(at(5), Base::Start), Base::Start);
        let elsewhere = Base::At(Position::Opaque("x".into()));
        assert_eq!(lower(at(5), elsewhere), at(5));
    }

    #[test]
    fn a_source_reaches_back_only_to_where_its_ring_begins() {
        let seq = |offset| Position::Seq { epoch: "a".into(), offset };
        let source = |from: Option<Position>| Source {
            from_start: from.is_none(),
            from,
            covered: seq(9),
            streams: None,
        };
        assert!(source(Some(seq(4))).reaches(&at(4)));
        assert!(!source(Some(seq(5))).reaches(&at(4)));
        assert!(!source(Some(seq(1))).reaches(&Base::Start));
        assert!(source(None).reaches(&Base::Start));
    }
}
