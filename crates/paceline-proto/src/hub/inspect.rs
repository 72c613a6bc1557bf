//! What an owner tells of its reign: sessions, keys, counters; and looks passed on to a session and back.

use super::{Effect, Hub, link::Link, links::Slot};
use crate::{
    id::{Key, SessionId},
    limits::{CHUNK_ITEMS, VALUE_MAX},
    look::{KeyInfo, Look, ReignStats, Seen, SessionInfo, Standing},
    message::{Answer, Rank, ToSession},
    time::Time,
};

impl Hub {
    /// Nobody but the owner itself is here or awaited, and nothing of it is under way.
    pub fn is_alone(&self) -> bool {
        self.links.iter().all(|(_, link)| !link.remote)
            && self.members.iter().all(|(session, _)| session == self.owner)
            && self.members.is_known()
            && self.submits.is_empty()
    }

    pub(super) fn sessions(&self) -> Vec<SessionInfo> {
        let mut sessions: Vec<SessionInfo> = self
            .members
            .iter()
            .map(|(session, state)| {
                let link = state.link.and_then(|link| self.links.get(self.links.slot(link)?));
                let since = link.map_or(state.silent_since, |link| link.since);
                let member = state.as_member(session);
                let awaited = SessionInfo {
                    member,
                    build: String::new(),
                    rank: Rank::Observer,
                    standing: Standing::Awaited,
                    since_ms: millis(self.now, since),
                    keys: 0,
                    streams: 0,
                    queued: 0,
                    acked: None,
                    conflated: false,
                    dropped: 0,
                    proto: 0,
                };
                link.map_or(awaited.clone(), |link| self.describe(link, awaited))
            })
            .collect();
        sessions.sort_by_key(|info| info.standing != Standing::Primary);
        sessions
    }

    fn describe(&self, link: &Link, awaited: SessionInfo) -> SessionInfo {
        let standing = match link.heir {
            _ if link.session == self.owner => Standing::Primary,
            Some(heir) => Standing::Heir { current: heir.current },
            None if link.is_joined() => Standing::Follower,
            None => Standing::Joining,
        };
        SessionInfo {
            build: link.build.clone(),
            rank: link.rank,
            standing,
            keys: link.keys.len() as u64,
            streams: link.streams.len() as u64,
            queued: link.frames as u64,
            acked: link.acked,
            conflated: link.conflated,
            dropped: link.dropped,
            proto: link.proto,
            ..awaited
        }
    }

    pub(super) fn keys_after(&self, after: Option<&Key>) -> Answer {
        let (mut keys, mut bytes, mut more) = (Vec::new(), 0, false);
        for entry in self.cache.after(after).filter(|entry| entry.has_value()) {
            let key = &entry.held.key;
            if keys.len() == CHUNK_ITEMS || bytes + key.0.len() > VALUE_MAX / 2 {
                more = true;
                break;
            }
            bytes += key.0.len();
            keys.push(KeyInfo {
                key: key.clone(),
                place: entry.held.place.clone(),
                bytes: entry.held.value.len() as u64,
                invalidated: entry.held.invalidated,
                subscribers: self.links.subscribers(key) as u64,
            });
        }
        Answer::Keys { keys, more }
    }

    pub(super) fn reign_stats(&self) -> ReignStats {
        let stats = self.stats;
        let counters = [
            ("frames", stats.frames),
            ("deliveries", stats.deliveries),
            ("replayed", stats.replayed),
            ("old_versions", stats.old_versions),
            ("tails", stats.tails),
            ("rewinds", stats.rewinds),
            ("conflations", stats.conflations),
            ("snapshots", stats.snapshots),
            ("deltas", stats.deltas),
            ("resyncs", stats.resyncs),
            ("refused_peers", stats.refused_peers),
        ];
        let values = || self.cache.iter().filter(|entry| entry.has_value());
        ReignStats {
            last: self.log.mark(),
            age_ms: millis(self.now, self.began),
            keys: values().count() as u64,
            bytes: values().map(|entry| entry.held.value.len() as u64).sum(),
            counters: counters.map(|(name, count)| (name.to_owned(), count)).into(),
        }
    }

    /// Passes a look on; says why not if that is not possible.
    pub(super) fn look(
        &mut self,
        from: Slot,
        id: u64,
        at: SessionId,
        look: Look,
        out: &mut Vec<Effect>,
    ) -> Option<Answer> {
        let asker = self.links.get(from)?.session;
        let Some(slot) = self.members.link_of(at).and_then(|link| self.links.slot(link)) else {
            return Some(Answer::Refused(format!("session {} is not connected", at.short())));
        };
        self.tell(slot, ToSession::Look { asker, id, look }, out);
        None
    }

    /// Passes the answer back; nobody may be there any more.
    pub(super) fn seen(&mut self, asker: SessionId, id: u64, seen: Seen, out: &mut Vec<Effect>) {
        self.tell_session(asker, ToSession::Answer { id, answer: Answer::Seen(seen) }, out);
    }
}

fn millis(now: Time, since: Time) -> u64 {
    u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX)
}
