//! Messages that were published before: an upstream repeats them for those who are behind every ring.
//!
//! **Invariant:** who waits for a replay gets nothing newer of the channel before the replay has passed it.

use super::{Effect, Hub, links::Slot, log::To};
use crate::{
    event::Event,
    id::{Channel, Position, Trace},
    limits::{KEY_MAX, VALUE_MAX},
    message::{Body, Change, Gap, GapCause},
};

impl Hub {
    /// A message at or before the published position: its events go to those who wait for the replay, its values where
    /// they are not included yet.
    pub(super) fn publish_again(
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
    pub(super) fn hold_replay(&mut self, channel: &Channel) {
        for (_, link) in self.links.iter_mut().filter(|(_, link)| link.is_half_full()) {
            if let Some(lag) = link.lag.get_mut(channel) {
                lag.stalled = true;
            }
        }
    }

    /// The replay has passed `at` for everybody who waits for it.
    pub(super) fn advance_replay(
        &mut self,
        channel: &Channel,
        at: &Position,
        reached: bool,
        out: &mut Vec<Effect>,
    ) {
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
    pub(super) fn give_up_replay(&mut self, channel: &Channel, out: &mut Vec<Effect>) {
        if self.channels.get(channel).is_some_and(|state| state.opening.is_some()) {
            // It came from the connection before the one that replays.
            return;
        }
        self.stop_waiting(channel, false, out);
    }

    pub(super) fn stop_waiting(&mut self, channel: &Channel, stalled_too: bool, out: &mut Vec<Effect>) {
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
}
