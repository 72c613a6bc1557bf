//! Heirs: the links that hold everything and may claim first.

use std::cmp::Ordering;

use super::{
    Effect, Hub,
    channels::ChannelState,
    link::{Heirship, Item, Link},
    links::{Reach, Slot, wake},
    log::To,
    snapshot::{Job, Keys},
};
use crate::{
    event::Event,
    id::{Offset, Trace},
    limits::HEIRS,
    message::{Body, Heir, Rank, ToSession},
    program::Age,
};

impl Hub {
    /// Appoints and dismisses so that the best `HEIRS` links are heirs: preferred ones, then newer builds, then those that
    /// are heirs already, then the longest joined.
    pub(super) fn choose_heirs(&mut self, out: &mut Vec<Effect>) {
        if self.drain.is_some() {
            return;
        }
        let level = self.is_level();
        let eligible = |link: &Link| {
            link.remote
                && link.is_joined()
                && link.rank > Rank::Observer
                // It could not adopt what this owner stores.
                && link.schema >= self.program.min_reader
                && !link.conflated
                && link.lag.is_empty()
                && (level || link.heir.is_some())
        };
        self.heirs_wait = !level;
        self.leveled |= level;
        let mut ranked: Vec<_> = self.links.iter().filter(|(_, link)| eligible(link)).collect();
        let reach = self.links.reach();
        let best = |link: &Link| (link.rank, self.age(link, reach) == Age::Newer, link.heir.is_some());
        ranked.sort_by_key(|(_, link)| (std::cmp::Reverse(best(link)), link.arrival));
        let chosen: Vec<Slot> = ranked.into_iter().take(HEIRS).map(|(slot, _)| slot).collect();
        let heirs: Vec<Slot> = self.links.heirs().map(|(slot, _)| slot).collect();
        for slot in heirs.iter().filter(|slot| !chosen.contains(slot)) {
            self.dismiss(*slot, out);
        }
        for slot in chosen.iter().filter(|slot| !heirs.contains(slot)) {
            self.appoint(*slot, out);
        }
    }

    /// Whether this owner has everything that those who offered have seen. Before, nobody could be an up-to-date heir of
    /// it: values may be ahead of the positions, and what a session keeps of a channel must not give way to less.
    fn is_level(&self) -> bool {
        let knows_all = self.complete
            || (self.offers_done && (self.members.all_offered() || !self.members.is_known() || self.leveled));
        let behind = |state: &ChannelState| match (&state.position, &state.horizon) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(at), Some(horizon)) => at.covers(horizon) == Some(false),
        };
        knows_all && self.wants.is_empty() && !self.channels.values().any(behind)
    }

    fn appoint(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let at = self.log.end();
        let (kept, rings) = self.rings.above(self.members.stable());
        let Some(link) = self.links.get(slot) else { return };
        let job = Job {
            complete: true,
            keys: Keys::All,
            kept: kept.into(),
            ops: self.ops.invalidations().map(|(mark, op)| (mark, op.clone())).collect(),
            connections: self.connections.values().cloned().collect(),
            positions: self.positions_for(link).into_iter().collect(),
            rings,
            applied: self.ops.applied(),
            ..Job::empty(at)
        };
        let Some(link) = self.links.get_mut(slot) else { return };
        link.heir = Some(Heirship { counted_at: at.next(), current: false });
        link.push_message(at, ToSession::Appointed);
        link.queue.push_back(Item::Job(Box::new(job)));
        let session = link.session;
        wake(link, out);
        self.links.set_heir(slot, true);
        out.push(Effect::Event(Event::HeirAppointed { session }));
        // A frame of its own, so that an acknowledgement of it can only follow the snapshot.
        let mut atom = self.log.atom(Trace::NONE);
        atom.push(Body::Nothing, None, None, To::All);
        self.commit(atom, out);
    }

    pub(super) fn dismiss(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        self.links.set_heir(slot, false);
        let at = self.log.end();
        let Some(link) = self.links.get_mut(slot) else { return };
        if link.heir.take().is_none() {
            return;
        }
        // What it was still to get as an heir is of no use now.
        let appointed = |item: &Item| matches!(item, Item::Message { message: ToSession::Appointed, .. });
        link.messages -= link.queue.iter().filter(|item| appointed(item)).count();
        link.queue.retain(|item| !appointed(item) && !matches!(item, Item::Job(job) if job.complete));
        link.push_message(at, ToSession::Dismissed);
        let session = link.session;
        wake(link, out);
        out.push(Effect::Event(Event::HeirDismissed { session }));
        self.answer_waiting_ops(out);
    }

    pub(super) fn dismiss_all(&mut self, out: &mut Vec<Effect>) {
        let heirs: Vec<Slot> = self.links.heirs().map(|(slot, _)| slot).collect();
        heirs.into_iter().for_each(|heir| self.dismiss(heir, out));
    }

    /// An heir acknowledged.
    pub(super) fn heir_acked(&mut self, slot: Slot, offset: Offset, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get_mut(slot) else { return };
        let Some(heir) = &mut link.heir else { return };
        if !heir.current && offset >= heir.counted_at {
            heir.current = true;
            let session = link.session;
            out.push(Effect::Event(Event::HeirCurrent { session }));
            self.heirs_changed();
        }
        self.answer_waiting_ops(out);
        self.settle_archives(out);
    }

    /// The furthest acknowledgement of a current heir.
    pub(super) fn heirs_hold(&self) -> Option<Offset> {
        self.links
            .heirs()
            .filter(|(_, link)| link.is_current_heir())
            .map(|(_, link)| link.acked)
            .max()
            .flatten()
    }

    /// How the build of a link stands to the own one.
    fn age(&self, link: &Link, reach: Reach) -> Age {
        match link.release.cmp(&self.program.release) {
            Ordering::Less => Age::Older,
            Ordering::Equal => Age::Same,
            Ordering::Greater if reach.includes(link.speaks) => Age::Newer,
            Ordering::Greater => Age::Apart,
        }
    }

    /// The heirs as told in pings, first in line first.
    pub fn heirs(&self) -> Vec<Heir> {
        let reach = self.links.reach();
        let mut heirs: Vec<_> = self.links.heirs().map(|(_, link)| link).collect();
        heirs.sort_by_key(|link| (std::cmp::Reverse((link.is_current_heir(), link.rank)), link.arrival));
        let heir = |link: &Link| Heir {
            session: link.session,
            kit: link.kit.clone(),
            current: link.is_current_heir(),
            rank: link.rank,
            age: self.age(link, reach),
        };
        heirs.into_iter().map(heir).collect()
    }
}
