//! One link: who is at its end, what it wants, where it stands, and what is queued for it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::{
    cache::{AppliedOps, Basis},
    conflate::Round,
    declared::Declaration,
    snapshot::Job,
};
use crate::{
    id::{Channel, Key, LinkId, Mark, Offset, OpId, Position, SessionId, Stream},
    limits::{LINK_PATIENCE, LINK_PAUSE, LINK_QUEUE_BURST, LINK_QUEUE_BYTES, LINK_QUEUE_FRAMES},
    message::{ChannelOffer, Hello, KitAddress, Rank, Shared, ToSession},
    program::{Features, ProtoRange, Release},
    ring::Streams,
    time::Time,
};

/// A replay may overflow a link's queue so often before the rest of it is given up and shown as a gap.
const STALLS_MAX: u32 = 16;

/// How far a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Welcomed; its interest and offers are coming in.
    Offering,
    /// Its snapshot or delta is queued; it gets every frame of its interest.
    Joined,
}

/// Something queued for a link, in the order it is sent.
#[expect(
    clippy::large_enum_variant,
    reason = "frames, of which there are many, take the place of the few messages among them"
)]
#[derive(Debug)]
pub(super) enum Item {
    Message {
        at: Offset,
        message: ToSession,
    },
    Frame {
        shared: Arc<Shared>,
        atom_end: Offset,
    },
    Job(Box<Job>),
    Round(Box<Round>),
    /// An empty batch up to `at`, so that position and acknowledgement of an uninterested link move on.
    Flush {
        at: Offset,
        ack_now: bool,
    },
}

impl Item {
    /// Where the batch before it ends; `None` for frames, which belong to that batch.
    pub(super) fn at(&self) -> Option<Offset> {
        match self {
            Self::Message { at, .. } | Self::Flush { at, .. } => Some(*at),
            Self::Job(job) => Some(job.at),
            Self::Round(round) => Some(round.upto),
            Self::Frame { .. } => None,
        }
    }
}

/// A channel in which a link waits for the upstream to repeat what it missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lag {
    /// Where it stands.
    pub(super) at: Position,
    /// The replay was more than its queue takes: it goes on from `at` once the queue is written.
    pub(super) stalled: bool,
}

/// Heirship of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heirship {
    /// The first frame after its full snapshot: who acknowledged it has all shared state.
    pub(super) counted_at: Offset,
    pub(super) current: bool,
}

/// What a former heir offered of its archive.
#[derive(Debug, Default)]
pub(super) struct OfferedArchive {
    pub(super) basis: Basis,
    pub(super) applied: Arc<AppliedOps>,
    /// Everything of it that was wanted is in the frames up to here.
    pub(super) taken_at: Option<Offset>,
}

/// What the two ends of a connection agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) proto: u16,
    pub(super) features: Features,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) session: SessionId,
    pub(super) label: String,
    pub(super) pid: u32,
    pub(super) build: String,
    /// Versions that it speaks, and the one of this connection.
    pub(super) speaks: ProtoRange,
    pub(super) proto: u16,
    /// What both ends can do.
    pub(super) features: Features,
    pub(super) release: Release,
    /// Stores that need a reader of more than this it cannot read.
    pub(super) schema: u32,
    pub(super) since: Time,
    pub(super) rank: Rank,
    pub(super) remote: bool,
    /// Order of arrival: the longest joined becomes heir first.
    pub(super) arrival: u64,
    /// What Hello said.
    pub(super) last: Mark,
    pub(super) phase: Phase,
    pub(super) heir: Option<Heirship>,
    pub(super) kit: Option<KitAddress>,
    pub(super) keys: BTreeSet<Key>,
    pub(super) streams: BTreeSet<Stream>,
    pub(super) queue: VecDeque<Item>,
    pub(super) frames: usize,
    pub(super) bytes: usize,
    /// Messages queued; a peer that asks without reading is bounded by this.
    pub(super) messages: usize,
    /// End of the last batch or snapshot handed to the transport.
    pub(super) sent: Offset,
    pub(super) acked: Option<Offset>,
    pub(super) offer: BTreeMap<Channel, ChannelOffer>,
    /// Channels whose events it gets from a replay.
    pub(super) lag: BTreeMap<Channel, Lag>,
    /// Channels of which the queue still holds a replay, and how often that overflowed.
    pub(super) replayed: BTreeMap<Channel, u32>,
    /// Channels whose position it must be told although they did not move.
    pub(super) forced: BTreeSet<Channel>,
    /// Where it was told that the channels stand.
    pub(super) told: BTreeMap<Channel, Position>,
    /// It was queued a gap of its own, which a delta from the log would lack.
    pub(super) had_private: bool,
    pub(super) conflated: bool,
    pub(super) caught_up: bool,
    /// Frames left out so far.
    pub(super) dropped: u64,
    pub(super) writing: Option<Time>,
    pub(super) woken: bool,
    /// Requests that wait here, unanswered: count and bytes.
    pub(super) waiting: (usize, usize),
    /// Operations whose effect is in the values it offered.
    pub(super) applied: Arc<AppliedOps>,
    pub(super) archive: Option<OfferedArchive>,
    /// Open layers of its own that it named while it offers.
    pub(super) laid: BTreeSet<u64>,
    /// Resources declared.
    pub(super) declared: usize,
    pub(super) declaration: Declaration,
    /// Keys with options that it does not subscribe to yet.
    pub(super) options_ahead: BTreeSet<Key>,
    /// Those of them that it still keeps and offered.
    pub(super) ops_offered: BTreeSet<OpId>,
    /// Keys wanted from its offer.
    pub(super) wanted: usize,
    /// Version of the member list it was told last.
    pub(super) members_told: u64,
}

impl Link {
    pub(super) fn new(
        id: LinkId,
        hello: &Hello,
        terms: Terms,
        remote: bool,
        arrival: u64,
        now: Time,
    ) -> Self {
        Self {
            id,
            session: hello.session,
            label: hello.label.clone(),
            pid: hello.pid,
            build: hello.build.clone(),
            speaks: hello.proto,
            proto: terms.proto,
            features: terms.features,
            release: hello.release,
            schema: hello.schema,
            since: now,
            rank: hello.rank,
            remote,
            arrival,
            last: hello.last,
            phase: Phase::Offering,
            heir: None,
            kit: None,
            keys: BTreeSet::new(),
            streams: BTreeSet::new(),
            queue: VecDeque::new(),
            frames: 0,
            bytes: 0,
            messages: 0,
            sent: Offset::ZERO,
            acked: None,
            offer: BTreeMap::new(),
            lag: BTreeMap::new(),
            replayed: BTreeMap::new(),
            forced: BTreeSet::new(),
            told: BTreeMap::new(),
            had_private: false,
            conflated: false,
            caught_up: false,
            dropped: 0,
            writing: None,
            woken: false,
            waiting: (0, 0),
            applied: Arc::default(),
            archive: None,
            laid: BTreeSet::new(),
            declared: 0,
            declaration: Declaration::new(hello.declared),
            options_ahead: BTreeSet::new(),
            ops_offered: BTreeSet::new(),
            wanted: 0,
            members_told: 0,
        }
    }

    pub(super) fn is_joined(&self) -> bool {
        self.phase == Phase::Joined
    }

    pub(super) fn is_current_heir(&self) -> bool {
        self.heir.is_some_and(|heir| heir.current)
    }

    /// Which events it gets.
    pub(super) fn interest(&self) -> Streams<'_> {
        if self.heir.is_some() { Streams::All } else { Streams::Only(&self.streams) }
    }

    pub(super) fn has_output(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Queues a frame. True when the queue passed its bound.
    pub(super) fn push_frame(&mut self, shared: Arc<Shared>, atom_end: Offset, now: Time) -> bool {
        self.frames += 1;
        self.bytes += shared.size;
        self.queue.push_back(Item::Frame { shared, atom_end });
        self.is_over(now)
    }

    /// Whether the queue passed its bound: a higher one while the reader takes what it is given.
    pub(super) fn is_over(&self, now: Time) -> bool {
        let takes = self.writing.is_none_or(|since| now.since(since) < LINK_PATIENCE);
        let times = if takes { LINK_QUEUE_BURST } else { 1 };
        self.frames > times * LINK_QUEUE_FRAMES || self.bytes > times * LINK_QUEUE_BYTES
    }

    /// Whether it takes what it is given, but more came than it took so far.
    pub(super) fn is_catching_up(&self, now: Time) -> bool {
        self.is_half_full() && self.writing.is_some_and(|since| now.since(since) < LINK_PAUSE)
    }

    pub(super) fn push_message(&mut self, at: Offset, message: ToSession) {
        self.messages += 1;
        self.queue.push_back(Item::Message { at, message });
    }

    /// Whether a replay should wait until more of the queue is written.
    pub(super) fn is_half_full(&self) -> bool {
        self.frames > LINK_QUEUE_FRAMES / 2 || self.bytes > LINK_QUEUE_BYTES / 2
    }

    /// Puts channels with a replay in the queue back to where the session was told that it stands. Nothing of them is
    /// lost then, only repeated once more.
    pub(super) fn stall(&mut self) {
        if self.has_round() {
            return;
        }
        for (channel, stalls) in &mut self.replayed {
            let Some(at) = self.told.get(channel).cloned() else { continue };
            *stalls += 1;
            if *stalls <= STALLS_MAX {
                self.lag.insert(channel.clone(), Lag { at, stalled: true });
            }
        }
    }

    pub(super) fn is_stalled(&self, channel: &Channel) -> bool {
        self.lag.get(channel).is_some_and(|lag| lag.stalled)
    }

    pub(super) fn has_round(&self) -> bool {
        self.queue.iter().any(|item| matches!(item, Item::Round(_)))
    }
}
