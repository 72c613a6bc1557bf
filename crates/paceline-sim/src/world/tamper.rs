//! Mutants whose rule lives inside a pure machine: they change what passes between the machines instead.

use std::sync::Arc;

use paceline_proto::{
    follower,
    hub::{Carried, Input, Kept, Part},
    id::{Channel, LinkId, Mark, Offset, Position},
    message::{Body, Frame, HeldEvent, Shared, ToHub, ToSession},
};

use crate::{disk::Pid, mutant::Mutant, process::HubMail, world::World};

impl World {
    /// What a session sends.
    pub(super) fn tamper_up(&mut self, mut message: ToHub) -> Vec<ToHub> {
        if self.is(Mutant::FramesDroppedAtOnce) {
            match &mut message {
                ToHub::Tail { events, .. } => events.clear(),
                ToHub::OfferRest { channels, .. } => {
                    for offer in channels {
                        offer.ring_after = Some(offer.covered.clone());
                    }
                }
                _ => {}
            }
        }
        if self.is(Mutant::ResetNotRemembered) {
            match &mut message {
                ToHub::OfferKeys(offers) | ToHub::OfferArchive { keys: offers, .. } => {
                    for offer in offers {
                        offer.place.reset = Mark::ZERO;
                    }
                }
                ToHub::Values(values) | ToHub::ArchivedValues(values) => {
                    for held in values {
                        held.place.reset = Mark::ZERO;
                    }
                }
                _ => {}
            }
        }
        if self.is(Mutant::LayersNotToldAnew)
            && let ToHub::Layers(layered) = &mut message
        {
            // A layer that has a place was told before.
            layered.retain(|of| of.layers.iter().all(|layer| layer.at == Mark::ZERO));
        }
        vec![message]
    }

    /// What a session takes into its reign.
    pub(super) fn tamper_carried(&mut self, mut carried: Carried) -> Carried {
        if self.is(Mutant::FramesDroppedAtOnce) {
            carried.kept.clear();
            for (channel, floor) in &mut carried.rings {
                let stands = carried.positions.iter().find(|(own, _)| own == channel);
                *floor = stands.map(|(_, position)| position.clone());
            }
        }
        if self.is(Mutant::NoGap) {
            carried.kept.retain(|kept| matches!(kept, Kept::Event(_)));
        }
        if self.is(Mutant::ResetNotRemembered) {
            let archived = carried.archive.iter_mut().flat_map(|archive| archive.held.values_mut());
            for held in carried.held.iter_mut().chain(archived) {
                held.place.reset = Mark::ZERO;
            }
        }
        carried
    }

    /// Where a channel is resumed.
    pub(super) fn tamper_resume(&mut self, channel: &Channel, resume: Option<Position>) -> Option<Position> {
        if !self.is(Mutant::ResumeAtBestPosition) {
            return resume;
        }
        let Some(feed) = self.feeds.iter().find(|feed| feed.channel == *channel) else { return resume };
        let known = self.processes.values().filter(|process| process.alive()).flat_map(|process| {
            let positions = process.follower.carry().positions;
            positions.into_iter().filter(|(own, _)| own == channel).map(|(_, position)| position)
        });
        known.chain(resume).max_by_key(|position| feed.number_at(position))
    }

    /// What a hub writes to a link.
    pub(super) fn tamper_parts(&mut self, pid: Pid, link: LinkId, parts: Vec<Part>) -> Vec<Part> {
        match self.mutant {
            Some(Mutant::NoGap) => parts.into_iter().map(without_gaps).collect(),
            Some(Mutant::LayersStay) => parts.into_iter().map(without_last_layers).collect(),
            Some(Mutant::ConflationDropsOperationIds) => {
                parts.into_iter().map(without_operation_ids).collect()
            }
            Some(Mutant::NewerEventsBeforeTail) => {
                parts.into_iter().map(|part| self.newest_first(pid, link, part)).collect()
            }
            Some(Mutant::VolatileAcknowledgedWhenWritten) => {
                for part in &parts {
                    if let Part::Batch { header, .. } = part
                        && header.ack_now
                        && link != LinkId(0)
                    {
                        self.promise(pid, link, header.upto);
                        self.inject(pid, link, ToHub::Ack(header.upto));
                    }
                }
                parts
            }
            _ => parts,
        }
    }

    /// In the first batch of a reign with several events of a channel (the tail, then what is new) the newest comes
    /// first.
    fn newest_first(&mut self, pid: Pid, link: LinkId, part: Part) -> Part {
        let Part::Batch { header, mut frames } = part else { return part };
        let channel = |shared: &Arc<Shared>| match (&shared.frame.body, &shared.frame.origin) {
            (Body::Event { .. }, Some((channel, _))) => Some(channel.clone()),
            _ => None,
        };
        let events: Vec<usize> = (0..frames.len()).filter(|n| channel(&frames[*n]).is_some()).collect();
        let owned = self.processes.get_mut(&pid).and_then(|process| process.owned.as_mut());
        if let (Some(&first), Some(&last), Some(owned)) = (events.first(), events.last(), owned)
            && first != last
            && channel(&frames[first]) == channel(&frames[last])
            && owned.shuffled.insert(link)
        {
            let (old, new) = (frames[first].frame.clone(), frames[last].frame.clone());
            frames[first] = Shared::new(Frame { body: new.body, origin: new.origin, ..old.clone() });
            frames[last] = Shared::new(Frame { body: old.body, origin: old.origin, ..new });
        }
        Part::Batch { header, frames }
    }

    /// From here on the session's own acknowledgements do not fall behind the one made for it.
    fn promise(&mut self, pid: Pid, link: LinkId, upto: Offset) {
        if let Some(owned) = self.processes.get_mut(&pid).and_then(|process| process.owned.as_mut()) {
            owned.promised.insert(link, upto);
        }
    }

    /// What a hub reads from a link.
    pub(super) fn tamper_read(&self, pid: Pid, link: LinkId, message: ToHub) -> ToHub {
        let owned = self.processes.get(&pid).and_then(|process| process.owned.as_ref());
        match (message, owned.and_then(|owned| owned.promised.get(&link))) {
            (ToHub::Ack(upto), Some(promised)) => ToHub::Ack(upto.max(*promised)),
            (message, _) => message,
        }
    }

    /// A message the session never sent.
    fn inject(&mut self, pid: Pid, link: LinkId, message: ToHub) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(epoch) = process.owned.as_ref().map(|owned| owned.epoch) else { return };
        process.hub_mail.push_back(HubMail::In { epoch, input: Box::new(Input::Message { link, message }) });
    }

    /// The event in the input that the follower is about to drop as old, for a follower that delivers whatever comes.
    pub(super) fn tamper_dedupe(&self, pid: Pid, input: &follower::Input) -> Option<HeldEvent> {
        let follower::Input::Message(ToSession::Frame(frame)) = input else { return None };
        if !self.is(Mutant::NoDedupeByPosition) {
            return None;
        }
        let (Body::Event { stream, data }, Some((channel, position))) = (&frame.body, &frame.origin) else {
            return None;
        };
        let process = self.processes.get(&pid)?;
        let (_, covered) = process.follower.covered().find(|(own, _)| *own == channel)?;
        let old = covered.covers(position) == Some(true) && process.caller.streams.contains(stream);
        old.then(|| HeldEvent {
            mark: Mark::new(process.follower.hello_last().epoch, frame.offset),
            origin: (channel.clone(), position.clone()),
            stream: stream.clone(),
            data: data.clone(),
        })
    }
}

fn without_gaps(part: Part) -> Part {
    match part {
        Part::Message(ToSession::Snapshot(mut snapshot)) => {
            snapshot.gaps.clear();
            Part::Message(ToSession::Snapshot(snapshot))
        }
        Part::Batch { header, frames } => {
            let frames = frames
                .into_iter()
                .map(|shared| match &shared.frame.body {
                    Body::Gap(_) => Shared::new(Frame { body: Body::Nothing, ..shared.frame.clone() }),
                    _ => shared,
                })
                .collect();
            Part::Batch { header, frames }
        }
        Part::Message(_) => part,
    }
}

fn without_last_layers(part: Part) -> Part {
    let Part::Batch { header, frames } = part else { return part };
    let kept = |shared: Arc<Shared>| match &shared.frame.body {
        Body::Layers(layered) if layered.layers.is_empty() => {
            Shared::new(Frame { body: Body::Nothing, ..shared.frame.clone() })
        }
        _ => shared,
    };
    Part::Batch { header, frames: frames.into_iter().map(kept).collect() }
}

fn without_operation_ids(part: Part) -> Part {
    let strip = |shared: Arc<Shared>| Shared::new(Frame { op: None, ..shared.frame.clone() });
    match part {
        Part::Message(ToSession::Snapshot(mut snapshot)) => {
            snapshot.ops.clear();
            if let Some(end) = &mut snapshot.end {
                end.applied.clear();
            }
            Part::Message(ToSession::Snapshot(snapshot))
        }
        Part::Batch { header, frames } if header.conflated => {
            Part::Batch { header, frames: frames.into_iter().map(strip).collect() }
        }
        Part::Batch { .. } | Part::Message(_) => part,
    }
}
