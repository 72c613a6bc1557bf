//! What sessions ask of the owner: messages of a link, mutations on their way to the store, questions, the handover.

use std::collections::{BTreeMap, VecDeque};

use super::{Effect, Hub, QueryFact, links::Slot};
use crate::{
    event::Event,
    id::{Epoch, LinkId, Mark, MutationId, SessionId, Trace},
    limits::{CHUNK_ITEMS, PENDING_BYTES, PENDING_MAX, VALUE_MAX},
    message::{Answer, Ask, KitAddress, Rank, Submit, SubmitOutcome, ToHub, ToSession},
};

/// Mutations between a session and the store.
#[derive(Debug, Default)]
pub(super) struct Submits {
    /// Taken before adoption, or while draining.
    waiting: VecDeque<(LinkId, Submit)>,
    /// With the store.
    storing: BTreeMap<MutationId, usize>,
    /// Count and bytes of both, per session.
    load: BTreeMap<SessionId, (usize, usize)>,
    /// Answers that came while draining: told only if the reign goes on.
    withheld: Vec<(MutationId, SubmitOutcome)>,
}

impl Submits {
    fn add(&mut self, session: SessionId, size: usize) -> bool {
        let (count, bytes) = self.load.entry(session).or_default();
        if *count >= PENDING_MAX || *bytes + size > PENDING_BYTES {
            return false;
        }
        *count += 1;
        *bytes += size;
        true
    }

    fn subtract(&mut self, session: SessionId, size: usize) {
        if let Some((count, bytes)) = self.load.get_mut(&session) {
            *count -= 1;
            *bytes -= size;
            if *count == 0 {
                self.load.remove(&session);
            }
        }
    }

    /// Nothing waits or is with the store.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.storing.is_empty()
    }

    pub(super) fn drop_link(&mut self, link: LinkId) {
        let (gone, kept): (VecDeque<_>, VecDeque<_>) =
            self.waiting.drain(..).partition(|(waiting, _)| *waiting == link);
        self.waiting = kept;
        for (_, submit) in gone {
            self.subtract(submit.id.session, submit.payload.len());
        }
    }
}

/// The handover under way.
#[derive(Debug)]
pub(super) struct Drain {
    to: SessionId,
    /// Quiet, and said so: nothing changes any more.
    pub(super) done: bool,
    /// The heir was asked to acknowledge the end.
    pressed: bool,
}

impl Hub {
    pub(super) fn message(&mut self, id: LinkId, message: ToHub, out: &mut Vec<Effect>) {
        let Some(slot) = self.links.slot(id) else { return };
        if let Err(why) = self.take_message(slot, message, out) {
            self.violation(slot, why, out);
        }
    }

    fn take_message(
        &mut self,
        slot: Slot,
        message: ToHub,
        out: &mut Vec<Effect>,
    ) -> Result<(), &'static str> {
        let Some(link) = self.links.get(slot) else { return Ok(()) };
        let (id, session, joined) = (link.id, link.session, link.is_joined());
        match message {
            ToHub::Hello(_) => return Err("a second Hello"),
            ToHub::Subscribe { keys, streams } => {
                within_chunk(keys.len() + streams.len())?;
                self.subscribe(slot, keys, streams, out)?;
            }
            ToHub::Unsubscribe { keys, streams } => {
                within_chunk(keys.len() + streams.len())?;
                self.unsubscribe(slot, &keys, &streams, out);
            }
            ToHub::OfferKeys(_) | ToHub::OfferArchive { .. } | ToHub::OfferRest { .. } if joined => {
                return Err("an offer without a Welcome");
            }
            ToHub::OfferKeys(offers) => {
                within_chunk(offers.len())?;
                self.keys_offered(slot, offers, out)?;
            }
            ToHub::OfferArchive { channels, applied, keys } => {
                within_chunk(channels.len() + applied.len() + keys.len())?;
                self.archive_offered(slot, channels, &applied)?;
                self.keys_offered(slot, keys, out)?;
            }
            ToHub::OfferRest { channels, ops, applied, end } => {
                within_chunk(channels.len() + ops.len() + applied.len())?;
                self.channels_offered(slot, channels)?;
                self.applied_offered(slot, &applied)?;
                self.ops_offered(slot, ops, out)?;
                if end {
                    self.offered(slot, out);
                }
            }
            ToHub::Values(values) => {
                within_chunk(values.len())?;
                self.values_came(slot, values, false, out)?;
            }
            ToHub::ArchivedValues(values) => {
                within_chunk(values.len())?;
                self.values_came(slot, values, true, out)?;
            }
            ToHub::Tail { channel, events, end } => {
                within_chunk(events.len())?;
                self.tail_came(id, &channel, events, end, out)?;
            }
            ToHub::Ack(offset) => self.ack(slot, offset, out)?,
            ToHub::Resync if !joined => return Err("a resync before the snapshot"),
            ToHub::Resync => self.resync(slot, out),
            ToHub::Op { op, .. } if op.id.session != session => {
                return Err("an operation of another session");
            }
            ToHub::Op { op, trace } => self.op_came(slot, op, trace, out),
            ToHub::Submit(submit) if submit.id.session != session => {
                return Err("a mutation of another session");
            }
            ToHub::Submit(submit) => self.submit_came(slot, submit, out),
            ToHub::Ask { id: ask_id, ask, trace } => self.asked(slot, ask_id, ask, trace, out),
            ToHub::Presence(presence) => {
                out.push(Effect::Presence { session, presence: Some(presence) });
                self.tell_engine(QueryFact::Presence { session, presence: Some(presence) }, out);
            }
            ToHub::Declare(resources) => self.declared(slot, resources, out)?,
            ToHub::Items { items, end } => {
                within_chunk(items.len())?;
                self.items_came(slot, items, end, out)?;
            }
            ToHub::Observe { key, options } => self.options(slot, key, options, out)?,
            ToHub::Fetched { id, outcome } => self.fetched(slot, id, outcome, out)?,
            ToHub::Kit(kit) => self.kit_ready(slot, kit)?,
            ToHub::Took(epoch) => self.took(slot, epoch, out),
            ToHub::Close => self.leave(slot, out),
            ToHub::Layers(layered) => self.layers_came(slot, layered, out)?,
            ToHub::TakeBack(layers) => self.take_back(slot, layers, out)?,
            ToHub::Seen { asker, id, seen } => self.seen(asker, id, seen, out),
        }
        Ok(())
    }

    fn kit_ready(&mut self, slot: Slot, kit: KitAddress) -> Result<(), &'static str> {
        if kit.socket.len() > NAME_MAX {
            return Err("a socket name that is too long");
        }
        if let Some(link) = self.links.get_mut(slot) {
            link.kit = Some(kit);
            self.heirs_changed();
        }
        Ok(())
    }

    fn took(&mut self, slot: Slot, epoch: Epoch, out: &mut Vec<Effect>) {
        if let Some(link) = self.links.get(slot) {
            out.push(Effect::Took { epoch, to: link.kit.clone() });
        }
    }

    /// Makes room for a request that waits here. False: too many do, and the link is over.
    pub(super) fn reserve(&mut self, slot: Slot, size: usize, out: &mut Vec<Effect>) -> bool {
        let Some(link) = self.links.get_mut(slot) else { return false };
        let (count, bytes) = &mut link.waiting;
        if *count >= PENDING_MAX || *bytes + size > PENDING_BYTES {
            out.push(Effect::Event(Event::LimitReached { limit: "PENDING_MAX" }));
            self.violation(slot, "more unanswered requests than a session may have", out);
            return false;
        }
        *count += 1;
        *bytes += size;
        true
    }

    pub(super) fn release(&mut self, slot: Slot, size: usize) {
        if let Some(link) = self.links.get_mut(slot) {
            link.waiting.0 -= 1;
            link.waiting.1 -= size;
        }
    }

    fn submit_came(&mut self, slot: Slot, submit: Submit, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get(slot).map(|link| link.id) else { return };
        if submit.payload.len() > VALUE_MAX {
            return self.violation(slot, "a mutation past the bounds", out);
        }
        if self.submits.storing.contains_key(&submit.id) {
            // Sent again over a new link: the answer under way is for both.
            return;
        }
        if !self.submits.add(submit.id.session, submit.payload.len()) {
            out.push(Effect::Event(Event::LimitReached { limit: "PENDING_MAX" }));
            let outcome = SubmitOutcome::Busy;
            return self.tell(slot, ToSession::SubmitDone { id: submit.id, outcome }, out);
        }
        if self.adopted && self.drain.is_none() {
            self.store(submit, out);
        } else {
            self.submits.waiting.push_back((link, submit));
        }
    }

    fn store(&mut self, submit: Submit, out: &mut Vec<Effect>) {
        self.submits.storing.insert(submit.id, submit.payload.len());
        out.push(Effect::Store(submit));
    }

    fn store_waiting(&mut self, out: &mut Vec<Effect>) {
        for (_, submit) in std::mem::take(&mut self.submits.waiting) {
            if self.submits.storing.contains_key(&submit.id) {
                self.submits.subtract(submit.id.session, submit.payload.len());
            } else {
                self.store(submit, out);
            }
        }
    }

    pub(super) fn adopted(&mut self, out: &mut Vec<Effect>) {
        self.adopted = true;
        if self.drain.is_none() {
            self.store_waiting(out);
        }
    }

    pub(super) fn stored(&mut self, outcomes: Vec<(MutationId, SubmitOutcome)>, out: &mut Vec<Effect>) {
        for (id, outcome) in outcomes {
            if let Some(size) = self.submits.storing.remove(&id) {
                self.submits.subtract(id.session, size);
            }
            if self.drain.is_some() {
                self.submits.withheld.push((id, outcome));
            } else {
                self.tell_session(id.session, ToSession::SubmitDone { id, outcome }, out);
            }
        }
    }

    fn asked(&mut self, slot: Slot, id: u64, ask: Ask, trace: Trace, out: &mut Vec<Effect>) {
        let answer = match ask {
            Ask::Sync => Answer::Done,
            Ask::Members => Answer::Members(self.members.list()),
            Ask::Sessions => Answer::Sessions(self.sessions()),
            Ask::Conflicts => Answer::Conflicts(self.conflicts()),
            Ask::Keys { after } => self.keys_after(after.as_ref()),
            Ask::Stats => Answer::Stats(self.reign_stats()),
            Ask::Layers { after } => self.layered_after(after.as_ref()),
            Ask::Look { at, look } => match self.look(slot, id, at, look, out) {
                Some(refused) => refused,
                None => return,
            },
            Ask::Fetch { .. }
            | Ask::Refetch { .. }
            | Ask::Preview { .. }
            | Ask::InvalidateTag { .. }
            | Ask::Online(_)
            | Ask::Outbox(_) => return self.ask_engine(slot, id, ask, trace, out),
            Ask::Promote(to) => match self.promote(to) {
                Ok(()) if to == Some(self.owner) => Answer::Done,
                Ok(()) => {
                    let Some(link) = self.links.get(slot).map(|link| link.id) else { return };
                    if self.promotes.len() >= PENDING_MAX {
                        return self.violation(slot, "more handovers asked for than make sense", out);
                    }
                    self.promotes.push((link, id));
                    out.push(Effect::Promote { to });
                    return;
                }
                Err(why) => Answer::Refused(why),
            },
        };
        self.tell(slot, ToSession::Answer { id, answer }, out);
    }

    /// Whether the group can be handed over to this session, or to anybody.
    fn promote(&self, to: Option<SessionId>) -> Result<(), String> {
        let Some(to) = to else {
            let any = self.links.heirs().next().is_some();
            return any.then_some(()).ok_or_else(|| "no other session can lead".to_owned());
        };
        if to == self.owner {
            return Ok(());
        }
        let link = self.members.link_of(to).and_then(|id| self.links.get(self.links.slot(id)?));
        match link {
            None => Err(format!("session {} is not connected", to.short())),
            Some(link) if link.rank == Rank::Observer => Err(format!("session {} never leads", to.short())),
            Some(_) => Ok(()),
        }
    }

    pub(super) fn answer_promotes(&mut self, answer: &Answer, out: &mut Vec<Effect>) {
        for (link, id) in std::mem::take(&mut self.promotes) {
            if let Some(slot) = self.links.slot(link) {
                self.tell(slot, ToSession::Answer { id, answer: answer.clone() }, out);
            }
        }
    }

    pub(super) fn begin_drain(&mut self, to: SessionId, out: &mut Vec<Effect>) {
        self.drain = Some(Drain { to, done: false, pressed: false });
        self.drained(out);
    }

    pub(super) fn is_drained(&self) -> bool {
        self.drain.as_ref().is_some_and(|drain| drain.done)
    }

    /// Says so once the heir has everything.
    pub(super) fn drained(&mut self, out: &mut Vec<Effect>) {
        let Some(drain) = &mut self.drain else { return };
        if drain.done {
            return;
        }
        let Some(slot) = self.members.link_of(drain.to).and_then(|id| self.links.slot(id)) else { return };
        let Some(link) = self.links.get(slot) else { return };
        let last = self.log.mark();
        let holds_all = link.is_joined()
            && link.acked == Some(last.offset)
            && link.is_current_heir()
            && link.queue.is_empty()
            && link.writing.is_none();
        if holds_all {
            drain.done = true;
            out.push(Effect::Drained { last });
        } else if !drain.pressed && link.is_joined() {
            drain.pressed = true;
            self.flush(slot, true, out);
        } else if link.queue.is_empty() && link.writing.is_none() && link.sent < last.offset {
            // Something came after the last flush.
            self.flush(slot, true, out);
        }
    }

    pub(super) fn resume(&mut self, out: &mut Vec<Effect>) {
        let refused = Answer::Refused("the handover did not happen; nothing changed".to_owned());
        self.answer_promotes(&refused, out);
        if self.drain.take().is_none() {
            return;
        }
        let channels: Vec<_> = self.channels.keys().cloned().collect();
        for channel in channels {
            self.reopen(&channel, out);
        }
        if self.adopted {
            self.store_waiting(out);
        }
        let withheld = std::mem::take(&mut self.submits.withheld);
        for (id, outcome) in withheld {
            self.tell_session(id.session, ToSession::SubmitDone { id, outcome }, out);
        }
        self.take_held_back(out);
        self.resume_queries(out);
        self.resume_layers(out);
        self.answer_waiting_ops(out);
        self.choose_heirs(out);
    }

    pub(super) fn send_go(&mut self, to: SessionId, last: Mark, out: &mut Vec<Effect>) {
        self.tell_session(to, ToSession::Go { last }, out);
    }

    pub(super) fn send_moved(&mut self, epoch: Epoch, to: &KitAddress, out: &mut Vec<Effect>) {
        self.answer_promotes(&Answer::Done, out);
        self.tell_all(&ToSession::Moved { epoch, to: to.clone() }, out);
    }

    pub(super) fn tell_all(&mut self, message: &ToSession, out: &mut Vec<Effect>) {
        let slots: Vec<Slot> = self.links.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.tell(slot, message.clone(), out);
        }
    }
}

/// Bytes of a socket's file name.
const NAME_MAX: usize = 255;

pub(super) fn within_chunk(items: usize) -> Result<(), &'static str> {
    if items > CHUNK_ITEMS { Err("more items in a message than a chunk may have") } else { Ok(()) }
}
