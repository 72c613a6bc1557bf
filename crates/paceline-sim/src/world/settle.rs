//! The heal phase: faults stop, everybody continues, and the group must come to rest with everything answered.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use paceline_proto::{
    election::Role,
    hub::Hub,
    id::{Key, LinkId, OpId, Stream},
    message::{Rank, ToHub},
};

use crate::{
    data,
    disk::Pid,
    fact::Fact,
    net::ConnId,
    process::{HubMail, Interest, Link, Process, Run},
    world::{Event, Phase, World, log},
};

/// How often it is looked whether the group is at rest.
const LOOK: Duration = Duration::from_millis(250);
/// The last words of the feeds are repeated when they did not settle things for so long.
const REPEAT: Duration = Duration::from_secs(3);

/// What everybody should see of a key.
fn with_layers(hub: &Hub, key: &Key) -> Option<Bytes> {
    let over = hub.layers().find(|(of, _)| *of == key).map_or(&[][..], |(_, layers)| layers);
    let held = hub.get(key).map(|held| held.value.clone());
    if over.is_empty() {
        return held;
    }
    let mut value = held.unwrap_or_default().to_vec();
    over.iter().for_each(|layer| value.extend_from_slice(&layer.patch));
    Some(value.into())
}

impl World {
    pub(super) fn heal(&mut self) {
        log!(self, "heals");
        self.phase = Phase::Healing;
        self.disk.full = false;
        let now = self.now;
        for process in self.processes.values_mut() {
            process.slow_until = now;
            process.write_error = false;
            if self.scenario.busy_us == 0 {
                process.starved_until = now;
            }
        }
        for listener in self.net.listeners.values_mut() {
            listener.path = crate::net::Path::Present;
        }
        let stopped: Vec<Pid> = self
            .processes
            .values()
            .filter(|process| process.run == Run::Stopped)
            .map(|process| process.pid)
            .collect();
        for pid in stopped {
            self.continue_process(pid);
        }
        if self.scenario.releases > 1 {
            // Somebody who reads every store.
            self.start_session(Rank::Candidate);
        }
        self.heal_until = self.now + Duration::from_millis(self.scenario.heal_ms);
        self.after(LOOK * 4, Event::HealCheck);
    }

    pub(super) fn heal_check(&mut self) {
        let resting = self.unrest_of_roles();
        let spoken = self.spoke_last;
        let unrest = match (&resting, spoken) {
            (Some(unrest), _) => Some(unrest.clone()),
            (None, None) => {
                self.speak_last();
                Some("the feeds' last words were just spoken".to_owned())
            }
            (None, Some(_)) => self.unrest_of_data().or_else(|| self.unrest_of_queries()),
        };
        let Some(unrest) = unrest else {
            log!(self, "at rest");
            self.phase = Phase::Done;
            return self.settle();
        };
        if resting.is_none() && spoken.is_some_and(|at| self.now.since(at) > REPEAT) {
            self.speak_last();
        }
        if self.now > self.heal_until {
            return self.violated("liveness", format!("not at rest after the heal phase: {unrest}"));
        }
        self.after(LOOK, Event::HealCheck);
    }

    fn speak_last(&mut self) {
        self.spoke_last = Some(self.now);
        for feed in 0..self.feeds.len() {
            self.publish_everything(feed);
            for key in 0..self.feeds[feed].keys.len() {
                self.fetch(feed, key);
            }
        }
        if self.scenario.queries
            && let Some(owner) = self.settled_owner().map(|owner| owner.pid)
        {
            self.change_last(owner);
        }
    }

    fn living(&self) -> impl Iterator<Item = &Process> {
        self.processes.values().filter(|process| process.alive())
    }

    fn settled_owner(&self) -> Option<&Process> {
        self.living().find(|process| matches!(process.role, Role::Primary { adopted: true, .. }))
    }

    /// Who is not where it should be.
    fn unrest_of_roles(&self) -> Option<String> {
        if !self.powered || self.living().next().is_none() {
            return Some("nobody is there".to_owned());
        }
        let Some(owner) = self.settled_owner() else { return Some("there is no adopted primary".to_owned()) };
        let Role::Primary { epoch, .. } = owner.role else { return None };
        for process in self.living() {
            let fits = match &process.role {
                Role::Primary { epoch: own, .. } => {
                    process.pid == owner.pid && *own == epoch && process.synced
                }
                Role::Follower { epoch: followed, .. } => *followed == epoch && process.synced,
                Role::Joining
                | Role::Candidate { .. }
                | Role::Draining { .. }
                | Role::Blocked { .. }
                | Role::Left => false,
            };
            if !fits {
                return Some(format!(
                    "{} is {:?} while {} owns {epoch} (synced: {})",
                    process.pid.0, process.role, owner.pid.0, process.synced
                ));
            }
            if let Some((token, waiting)) = process.caller.waiting.first_key_value() {
                return Some(format!("{} still waits for {token}: {waiting:?}", process.pid.0));
            }
        }
        for feed in &self.feeds {
            if feed.consumer.is_none_or(|consumer| consumer.pid != owner.pid) {
                return Some(format!(
                    "{} is consumed by {:?}, the primary is {}",
                    feed.channel.0, feed.consumer, owner.pid.0
                ));
            }
        }
        None
    }

    /// Who does not show what it should.
    fn unrest_of_data(&self) -> Option<String> {
        let owner = self.settled_owner()?;
        let hub = &owner.owned.as_ref()?.machine;
        let known: BTreeSet<OpId> =
            hub.layers().flat_map(|(_, layers)| layers).map(|layer| layer.id).collect();
        let open: BTreeSet<OpId> =
            self.living().flat_map(|process| process.follower.open_layers()).map(|(id, _)| id).collect();
        if known != open {
            return Some(format!("the hub knows the layers {known:?}, the living have {open:?} open"));
        }
        for process in self.living() {
            for key in &process.caller.keys {
                let (shown, held) = (process.caller.shown.get(key), with_layers(hub, key));
                if shown != held.as_ref() {
                    return Some(format!(
                        "{} shows {key:?} as {shown:?}, the hub holds {held:?}",
                        process.pid.0
                    ));
                }
                if let Some((feed, n)) =
                    self.feeds.iter().find_map(|feed| feed.key_index(key).map(|n| (feed, n)))
                    && shown != Some(&feed.value(n))
                {
                    let latest = feed.versions[n];
                    return Some(format!(
                        "{} shows {key:?} as {shown:?}, its version is {latest}",
                        process.pid.0
                    ));
                }
            }
            for stream in &process.caller.streams {
                let feed = self.feeds.iter().find_map(|feed| feed.stream_index(stream).map(|n| (feed, n)));
                let last =
                    feed.and_then(|(feed, n)| feed.log.iter().rev().find(|message| message.stream == n));
                let delivered = process.caller.events.get(stream).copied();
                if last.is_some_and(|last| delivered != Some(last.number)) {
                    return Some(format!(
                        "{} got {stream:?} up to {delivered:?}, the last one is {:?}",
                        process.pid.0, last
                    ));
                }
            }
            let (_, lacking) = self.subscriptions_lacking(process.pid);
            if !lacking.is_empty() {
                return Some(format!("{}'s link lacks {lacking:?}", process.pid.0));
            }
        }
        None
    }

    /// What the session subscribes to and the owner's link does not have; and whether that owner is fenced.
    pub(super) fn subscriptions_lacking(&self, pid: Pid) -> (bool, Vec<String>) {
        let Some(process) = self.processes.get(&pid) else { return (true, Vec::new()) };
        let (owner, link) = match process.link {
            Link::None => return (true, Vec::new()),
            Link::Loopback { .. } => (Some(pid), LinkId(0)),
            Link::Remote { conn, .. } => (
                self.net.conns.get(&conn).filter(|open| !open.server_closed).map(|open| open.server),
                LinkId(conn.0),
            ),
        };
        let Some(owner) = owner.and_then(|owner| self.processes.get(&owner)).filter(|owner| owner.alive())
        else {
            return (true, Vec::new());
        };
        let Some(owned) = &owner.owned else { return (true, Vec::new()) };
        let fenced = owner.reign.is_none_or(|(epoch, inode)| {
            !(self.disk.successor_absent(epoch) && self.disk.own_claim_stands(epoch, inode))
        });
        let empty = Interest::default();
        let told = owned.interest.get(&link).unwrap_or(&empty);
        let (mut keys, mut streams) = told.clone();
        self.subscriptions_in_transit(owner, link, &mut keys, &mut streams);
        let (own_keys, own_streams) = &process.linked_with;
        let lacking_keys = own_keys.difference(&keys).map(|key| format!("{key:?}"));
        let lacking_streams = own_streams.difference(&streams).map(|stream| format!("{stream:?}"));
        let mut lacking: Vec<String> = lacking_keys.chain(lacking_streams).collect();
        // What it was told it must know.
        if let Some(info) = owned.machine.links().find(|info| info.link == link)
            && (info.keys, info.streams) != (told.0.len(), told.1.len())
        {
            lacking.push(format!(
                "{:?}, of which it knows {} keys and {} streams",
                told, info.keys, info.streams
            ));
        }
        (fenced, lacking)
    }

    /// Words that are on their way cannot get lost without the link.
    fn subscriptions_in_transit(
        &self,
        owner: &Process,
        link: LinkId,
        keys: &mut BTreeSet<Key>,
        streams: &mut BTreeSet<Stream>,
    ) {
        let mut add = |message: &ToHub| {
            if let ToHub::Subscribe { keys: more, streams: more_streams } = message {
                keys.extend(more.iter().cloned());
                streams.extend(more_streams.iter().cloned());
            }
        };
        for mail in &owner.hub_mail {
            if let HubMail::Loopback { message, .. } = mail
                && link == LinkId(0)
            {
                add(message);
            }
        }
        if let Some(open) = self.net.conns.get(&ConnId(link.0)) {
            open.up.messages().chain(&open.up_waiting).for_each(&mut add);
        }
    }

    /// The last look, at what only a group at rest can show.
    fn settle(&mut self) {
        if self.scenario.operations
            && let Some(owner) = self.settled_owner()
            && let Some(owned) = &owner.owned
        {
            let found = data::token_keys(self.next_token)
                .filter_map(|key| owned.machine.get(&key).map(|held| (key, held.value.clone())))
                .flat_map(|(key, value)| data::tokens(&key, &value).collect::<Vec<_>>())
                .collect();
            let owed = self.owed_tokens.clone();
            self.tell(&Fact::OperationsSettled { owed, found });
        }
        self.counters.add_many("epochs", self.disk.highest_claim());
    }
}
