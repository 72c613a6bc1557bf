//! A server outside the machine: numbered events and versioned keys on one channel, admitted to one consumer.

use std::collections::BTreeSet;

use bytes::Bytes;
use paceline_proto::{
    hub::{ChannelSpec, Resume},
    id::{Channel, Key, Place, Position, Stream, Version},
    message::Change,
    time::Time,
};

use crate::{disk::Pid, random::Random};

/// What a server can do after a reconnect, and what it calls a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FeedKind {
    /// Numbered without holes, replays everything after a number.
    Resumes,
    /// Numbered with holes, replays everything after a number.
    ResumesSparse,
    /// Opaque positions, replays everything after one.
    ResumesOpaque,
    /// Numbered without holes; a reconnect starts with a snapshot of the keys, then now.
    Forgets,
    /// Numbered with holes; otherwise as `Forgets`.
    ForgetsSparse,
    /// No positions at all; otherwise as `Forgets`.
    Bare,
}

impl FeedKind {
    /// Whether it replays.
    pub const fn resumes(self) -> bool {
        matches!(self, Self::Resumes | Self::ResumesSparse | Self::ResumesOpaque)
    }

    /// Whether its positions can be ordered in every reign.
    pub const fn ordered(self) -> bool {
        matches!(self, Self::Resumes | Self::ResumesSparse | Self::Forgets | Self::ForgetsSparse)
    }
}

/// One message of the feed.
#[derive(Debug, Clone)]
pub struct FeedMessage {
    /// Counts from 1 without holes, whatever the positions look like.
    pub number: u64,
    /// The server's offset.
    pub offset: u64,
    /// Stream of the event it carries.
    pub stream: usize,
    /// Key, generation and version it sets.
    pub key: Option<(usize, u64, u64)>,
}

/// Something on its way to the consumer.
#[derive(Debug, Clone)]
pub enum Down {
    /// Accepted; whether it continues after the position asked for.
    Opened {
        /// Nothing is missing.
        resumed: bool,
    },
    /// A message, or the snapshot that stands for all before it.
    Changes {
        /// Its position, where it has one.
        position: Option<Position>,
        /// False for a snapshot.
        live: bool,
        /// What it changes.
        changes: Vec<Change>,
    },
    /// Answer to a fetch; in order with the messages, as a server that answers on the same connection gives it.
    Fetched {
        /// The key.
        key: usize,
        /// Its value and version when the server answered.
        found: (Bytes, Version),
        /// Where it stood at the owner when the fetch began.
        base: Place,
    },
}

/// The consumer admitted.
#[derive(Debug, Clone, Copy)]
pub struct Consumer {
    /// The process.
    pub pid: Pid,
    /// Its connection, numbered by the process.
    pub conn: u64,
    /// When it answered a ping last.
    pub heard: Time,
}

/// The server.
#[derive(Debug)]
pub struct Feed {
    /// The channel it serves.
    pub channel: Channel,
    /// What it can do.
    pub kind: FeedKind,
    /// Its event streams.
    pub streams: Vec<Stream>,
    /// Its keys.
    pub keys: Vec<Key>,
    /// Everything published.
    pub log: Vec<FeedMessage>,
    /// Version of each key, 0 before the first.
    pub versions: Vec<u64>,
    /// How often each key was set back.
    pub generations: Vec<u64>,
    /// Every (key, generation, version) there ever was.
    history: BTreeSet<(usize, u64, u64)>,
    /// Who is admitted.
    pub consumer: Option<Consumer>,
    /// Connections turned away because another was admitted.
    pub conflicts: u64,
}

impl Feed {
    /// The `index`th feed of a world.
    pub fn new(index: usize, kind: FeedKind, streams: usize, keys: usize) -> Self {
        let channel = format!("feed{index}");
        Self {
            channel: channel.as_str().into(),
            kind,
            streams: (0..streams).map(|n| format!("{channel}-s{n}").as_str().into()).collect(),
            keys: (0..keys).map(|n| Key::copy_from(format!("{channel}/k{n}").as_bytes())).collect(),
            log: Vec::new(),
            versions: vec![0; keys],
            generations: vec![0; keys],
            history: BTreeSet::new(),
            consumer: None,
            conflicts: 0,
        }
    }

    /// How the owner's configuration declares it.
    pub fn spec(&self) -> ChannelSpec {
        let resume = if self.kind.resumes() { Resume::Proven } else { Resume::None };
        let dense = matches!(self.kind, FeedKind::Resumes | FeedKind::Forgets);
        ChannelSpec { channel: self.channel.clone(), resume, dense }
    }

    /// Publishes the next message: an event, often with a key.
    pub fn publish(&mut self, random: &mut Random) -> &FeedMessage {
        let stream = random.below(self.streams.len() as u64) as usize;
        let key = random.chance(700).then(|| random.below(self.keys.len() as u64) as usize);
        self.publish_exactly(random, stream, key)
    }

    /// Publishes the next message with the stream and key given.
    pub fn publish_exactly(
        &mut self,
        random: &mut Random,
        stream: usize,
        key: Option<usize>,
    ) -> &FeedMessage {
        let number = self.log.len() as u64 + 1;
        let hole = match self.kind {
            FeedKind::ResumesSparse | FeedKind::ForgetsSparse => random.below(3),
            FeedKind::Resumes | FeedKind::ResumesOpaque | FeedKind::Forgets | FeedKind::Bare => 0,
        };
        let offset = self.log.last().map_or(0, |last| last.offset) + 1 + hole;
        let key = key.map(|key| {
            self.versions[key] += 1;
            self.history.insert((key, self.generations[key], self.versions[key]));
            (key, self.generations[key], self.versions[key])
        });
        self.log.push(FeedMessage { number, offset, stream, key });
        &self.log[self.log.len() - 1]
    }

    /// Admits a consumer and gives what it is sent at once; `None` if another is admitted.
    pub fn admit(&mut self, consumer: Consumer, resume: Option<&Position>) -> Option<Vec<Down>> {
        if self.consumer.is_some() {
            self.conflicts += 1;
            return None;
        }
        self.consumer = Some(consumer);
        let after = resume.filter(|_| self.kind.resumes()).and_then(|position| self.find(position));
        let mut down = vec![Down::Opened { resumed: after.is_some() }];
        match after {
            Some(after) => down.extend(self.log[after..].iter().map(|message| self.down(message))),
            None => down.extend(self.snapshot()),
        }
        Some(down)
    }

    /// The message as sent.
    pub fn down(&self, message: &FeedMessage) -> Down {
        let mut changes = vec![Change::Event {
            stream: self.streams[message.stream].clone(),
            data: Bytes::copy_from_slice(&message.number.to_be_bytes()),
        }];
        if let Some((key, generation, version)) = message.key {
            changes.push(self.set(key, generation, version));
        }
        Down::Changes { position: self.position(message), live: true, changes }
    }

    /// The number of the event, from its data.
    pub fn number_of(data: &[u8]) -> Option<u64> {
        data.try_into().ok().map(u64::from_be_bytes)
    }

    /// Sets a key back to an earlier version with a new value, as a server restored from a backup does. Nothing is
    /// sent: a fetch must find it. False if the key is too young.
    pub fn set_back(&mut self, key: usize, by: u64) -> bool {
        if self.versions[key] <= by {
            return false;
        }
        self.versions[key] -= by;
        self.generations[key] += 1;
        self.history.insert((key, self.generations[key], self.versions[key]));
        true
    }

    /// The value of a key now.
    pub fn value(&self, key: usize) -> Bytes {
        Self::value_at(&self.keys[key], self.generations[key], self.versions[key])
    }

    /// The generation of a value, if the feed ever gave it to the key with this version.
    pub fn published(&self, key: &Key, version: &Version, value: &[u8]) -> Option<u64> {
        let (index, Version::Number(version)) = (self.key_index(key)?, version) else { return None };
        let text = std::str::from_utf8(value.strip_prefix(&key.0[..])?.strip_prefix(b"@")?).ok()?;
        let (generation, shown) = text.split_once('.')?;
        let (generation, shown): (u64, u64) = (generation.parse().ok()?, shown.parse().ok()?);
        (shown == *version && self.history.contains(&(index, generation, shown))).then_some(generation)
    }

    /// Which key it is, if it is one of this feed's.
    pub fn key_index(&self, key: &Key) -> Option<usize> {
        self.keys.iter().position(|own| own == key)
    }

    /// Which stream it is, if it is one of this feed's.
    pub fn stream_index(&self, stream: &Stream) -> Option<usize> {
        self.streams.iter().position(|own| own == stream)
    }

    /// The number of the last message at or before the position; `None` if the position is not one of this feed's.
    pub fn number_at(&self, position: &Position) -> Option<u64> {
        self.find(position).map(|n| n as u64)
    }

    fn set(&self, key: usize, generation: u64, version: u64) -> Change {
        let value = Self::value_at(&self.keys[key], generation, version);
        Change::Set { key: self.keys[key].clone(), value, version: Version::Number(version) }
    }

    fn value_at(key: &Key, generation: u64, version: u64) -> Bytes {
        let mut value = key.0.to_vec();
        value.extend_from_slice(format!("@{generation}.{version}").as_bytes());
        value.into()
    }

    fn snapshot(&self) -> Option<Down> {
        let changes: Vec<Change> = (0..self.keys.len())
            .filter(|key| self.versions[*key] > 0)
            .map(|key| self.set(key, self.generations[key], self.versions[key]))
            .collect();
        (!changes.is_empty()).then_some(Down::Changes { position: None, live: false, changes })
    }

    fn position(&self, message: &FeedMessage) -> Option<Position> {
        match self.kind {
            FeedKind::Bare => None,
            FeedKind::ResumesOpaque => Some(Position::Opaque(format!("o{}", message.number).as_str().into())),
            FeedKind::Resumes | FeedKind::ResumesSparse | FeedKind::Forgets | FeedKind::ForgetsSparse => {
                Some(Position::Seq { epoch: "".into(), offset: message.offset })
            }
        }
    }

    /// How many messages lie at or before the position.
    fn find(&self, position: &Position) -> Option<usize> {
        match position {
            Position::Seq { offset, .. } => {
                Some(self.log.partition_point(|message| message.offset <= *offset))
            }
            Position::Opaque(name) => name.strip_prefix('o')?.parse().ok(),
            Position::Local { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSUMER: Consumer = Consumer { pid: Pid(1), conn: 1, heard: Time::ZERO };

    fn numbers(down: &[Down]) -> Vec<u64> {
        let events = down.iter().filter_map(|down| match down {
            Down::Changes { live: true, changes, .. } => Some(changes),
            Down::Changes { .. } | Down::Opened { .. } | Down::Fetched { .. } => None,
        });
        events
            .flatten()
            .filter_map(|change| match change {
                Change::Event { data, .. } => Feed::number_of(data),
                Change::Set { .. } | Change::Merge { .. } | Change::Invalidate { .. } => None,
            })
            .collect()
    }

    #[test]
    fn a_resuming_feed_replays_what_follows_a_position() {
        for kind in [FeedKind::Resumes, FeedKind::ResumesSparse, FeedKind::ResumesOpaque] {
            let mut random = Random::new(3);
            let mut feed = Feed::new(0, kind, 2, 2);
            for _ in 0..5 {
                feed.publish(&mut random);
            }
            let third = feed.position(&feed.log[2]);
            let down = feed.admit(CONSUMER, third.as_ref()).expect("free");
            assert!(matches!(down[0], Down::Opened { resumed: true }));
            assert_eq!(numbers(&down), [4, 5]);
        }
    }

    #[test]
    fn a_forgetting_feed_sends_a_snapshot_and_admits_one() {
        let mut random = Random::new(3);
        let mut feed = Feed::new(0, FeedKind::Forgets, 1, 1);
        feed.publish_exactly(&mut random, 0, Some(0));
        let last = feed.position(&feed.log[0]);
        let down = feed.admit(CONSUMER, last.as_ref()).expect("free");
        assert!(matches!(down[0], Down::Opened { resumed: false }));
        assert!(matches!(down[1], Down::Changes { live: false, .. }));
        assert!(feed.admit(CONSUMER, None).is_none());
        assert_eq!(feed.conflicts, 1);
    }
}
