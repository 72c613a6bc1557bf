//! The one periodic duty: pings, and everything that may wait for one.

use std::time::Duration;

use super::{
    Effect, Hub, link,
    links::{self, Slot},
    log::To,
};
use crate::{
    id::Trace,
    limits::PING_INTERVAL,
    message::{Body, Member, Ping, ToSession},
};

/// Who leads next is told so soon after it changed: heirs and kits come in pairs, and one ping tells of all.
const HEIRS_TOLD_AFTER: Duration = Duration::from_millis(1);

impl Hub {
    /// The heirs changed, or what they are good for: a follower that does not know whom to wait for when the owner dies
    /// looks around for as long as several takeovers take.
    pub(super) fn heirs_changed(&mut self) {
        self.next_ping = self.next_ping.min(self.now + HEIRS_TOLD_AFTER);
    }

    pub(super) fn due(&mut self, out: &mut Vec<Effect>) {
        self.offers_moved(out);
        self.collect_all(out);
        if self.now >= self.next_ping {
            self.next_ping = self.now + PING_INTERVAL;
            self.tick(out);
        }
    }

    /// The one periodic duty: pings, and everything that may wait for one.
    pub(super) fn tick(&mut self, out: &mut Vec<Effect>) {
        self.drop_stuck(out);
        let silent = self.members.expire(self.now);
        silent.iter().for_each(|session| self.layers_orphaned(*session, out));
        self.expire_layers(out);
        if !silent.is_empty() {
            self.offers_moved(out);
            self.collect_all(out);
        }
        self.members.awaited().for_each(|awaited| out.push(Effect::LookAtMember(awaited)));
        self.log.expire(self.now);
        self.rings.expire(self.now);
        if let Some(upto) = self.members.acknowledged_by_all() {
            let upto = self.settle_answers(upto);
            self.members.settle(upto);
            self.ops.settle(self.members.stable());
        }
        if self.channels.values().any(|state| state.position.is_some() && state.moved_at > self.log.end())
            && !self.is_drained()
        {
            // Messages without a change moved a channel: a frame tells it.
            let mut atom = self.log.atom(Trace::NONE);
            atom.push(Body::Nothing, None, None, To::All);
            self.commit(atom, out);
        }
        let end = self.log.end();
        let idle = |(slot, link): (Slot, &link::Link)| {
            let behind = link.sent < end || !link.forced.is_empty();
            (link.is_joined() && link.queue.is_empty() && behind).then_some(slot)
        };
        let idle: Vec<Slot> = self.links.iter().filter_map(idle).collect();
        idle.into_iter().for_each(|slot| self.flush(slot, false, out));
        self.settle_archives(out);
        self.ping(out);
        self.drained(out);
    }

    pub(super) fn ping(&mut self, out: &mut Vec<Effect>) {
        let slots: Vec<Slot> = self.links.iter().map(|(slot, _)| slot).collect();
        let (members, ping) = (self.members.list(), self.ping_without_members());
        for slot in slots {
            self.ping_link(slot, ping.clone(), &members, out);
        }
    }

    pub(super) fn ping_without_members(&self) -> Ping {
        Ping {
            heirs: self.heirs(),
            stable: self.members.stable(),
            members: Vec::new(),
            adopting: !self.adopted,
            unlisted: !self.members.is_known(),
        }
    }

    /// Queues a ping, with the list of members where it changed since the link's last one.
    pub(super) fn ping_link(
        &mut self,
        slot: Slot,
        mut ping: Ping,
        members: &[Member],
        out: &mut Vec<Effect>,
    ) {
        let (at, version) = (self.log.end(), self.members.version);
        let Some(link) = self.links.get_mut(slot) else { return };
        let queued =
            |item: &link::Item| matches!(item, link::Item::Message { message: ToSession::Ping(_), .. });
        if link.queue.iter().any(queued) {
            return;
        }
        if link.members_told != version {
            link.members_told = version;
            ping.members = members.to_vec();
        }
        link.push_message(at, ToSession::Ping(ping));
        links::wake(link, out);
    }
}
