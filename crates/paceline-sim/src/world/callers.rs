//! The programs that use the sessions: what they ask for, and what they are shown.

use std::collections::BTreeSet;

use bytes::Bytes;
use paceline_proto::{
    follower::{Effect, Input},
    id::{Position, SessionId, Trace},
    message::{Ask, Gap, GapCause, HeldEvent, OpOutcome, Operation, SubmitOutcome},
};

use crate::{
    data,
    disk::Pid,
    fact::Fact,
    feed::Feed,
    process::{FollowerMail, Link, Process, Run, Waiting},
    store::Hash,
    world::{Event, Phase, World, log},
};

impl World {
    /// A session subscribes to some of everything from the start.
    pub(super) fn subscribe_at_start(&mut self, pid: Pid) {
        let keys: Vec<_> = self.feeds.iter().flat_map(|feed| feed.keys.clone()).collect();
        let streams: Vec<_> = self.feeds.iter().flat_map(|feed| feed.streams.clone()).collect();
        for key in keys {
            if self.random.chance(600) {
                self.subscribe(pid, key);
            }
        }
        for stream in streams {
            if self.random.chance(700) {
                self.subscribe_stream(pid, stream);
            }
        }
        if self.scenario.operations {
            for key in
                (0..data::MERGE_KEYS).map(data::merge_key).chain((0..data::SET_KEYS).map(data::set_key))
            {
                if self.random.chance(400) {
                    self.subscribe(pid, key);
                }
            }
        }
    }

    pub(super) fn subscribe(&mut self, pid: Pid, key: paceline_proto::id::Key) {
        let Some(process) = self.live(pid) else { return };
        let session = process.session;
        process.caller.keys.insert(key.clone());
        self.tell(&Fact::Subscribed { session, key: key.clone() });
        self.mail_follower(pid, FollowerMail::In(Box::new(Input::Subscribe(key))));
    }

    pub(super) fn unsubscribe(&mut self, pid: Pid, key: paceline_proto::id::Key) {
        let Some(process) = self.live(pid) else { return };
        let session = process.session;
        process.caller.keys.remove(&key);
        process.caller.shown.remove(&key);
        process.caller.held.remove(&key);
        self.tell(&Fact::Unsubscribed { session, key: key.clone() });
        self.mail_follower(pid, FollowerMail::In(Box::new(Input::Unsubscribe(key))));
    }

    fn subscribe_stream(&mut self, pid: Pid, stream: paceline_proto::id::Stream) {
        let Some(process) = self.live(pid) else { return };
        let session = process.session;
        process.caller.streams.insert(stream.clone());
        self.tell(&Fact::StreamSubscribed { session, stream: stream.clone() });
        self.mail_follower(pid, FollowerMail::In(Box::new(Input::SubscribeStream(stream))));
    }

    fn unsubscribe_stream(&mut self, pid: Pid, stream: paceline_proto::id::Stream) {
        let Some(process) = self.live(pid) else { return };
        let session = process.session;
        process.caller.streams.remove(&stream);
        process.caller.events.remove(&stream);
        self.tell(&Fact::StreamUnsubscribed { session, stream: stream.clone() });
        self.mail_follower(pid, FollowerMail::In(Box::new(Input::UnsubscribeStream(stream))));
    }

    pub(super) fn caller_tick(&mut self) {
        if self.phase != Phase::Chaos {
            return;
        }
        let next = self.random.micros(100, self.scenario.work_ms * 2000);
        self.after(next, Event::CallerTick);
        let Some(pid) = self.somebody() else { return };
        let drawn = self.random.below(100);
        match drawn {
            0..90 if self.scenario.queries => self.use_queries(pid),
            0..50 if self.scenario.layers => self.layer(pid),
            0..40 if self.scenario.submits => self.submit(pid),
            40..80 if self.scenario.operations => self.operate(pid),
            80..95 if self.scenario.resubscribe => self.resubscribe(pid),
            95.. => self.ask(pid),
            _ if self.scenario.operations => self.operate(pid),
            _ if self.scenario.submits => self.submit(pid),
            _ => {}
        }
    }

    pub(super) fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn submit(&mut self, pid: Pid) {
        let token = self.token();
        let payload = Bytes::copy_from_slice(&token.to_be_bytes());
        let mut hash: Hash = [7; 16];
        hash[8..].copy_from_slice(&payload);
        let Some(process) = self.live(pid) else { return };
        process.caller.waiting.insert(token, Waiting::Submit { hash });
        self.counters.add("submitted");
        self.mail_follower(pid, FollowerMail::In(Box::new(Input::Submit { token, hash, payload })));
    }

    fn operate(&mut self, pid: Pid) {
        let token = self.token();
        let bytes = Bytes::copy_from_slice(&token.to_be_bytes());
        let (set_key, merge_key) = (
            data::set_key(self.random.below(data::SET_KEYS)),
            data::merge_key(self.random.below(data::MERGE_KEYS)),
        );
        let (operation, mark) = match self.random.below(100) {
            0..55 => (Operation::Merge { key: merge_key, patch: bytes }, Some(token)),
            55..70 => (Operation::Set { key: data::once_key(token), value: bytes }, Some(token)),
            70..85 => (Operation::Set { key: set_key, value: bytes }, None),
            85..95 => (Operation::CompareSet { key: set_key, base: None, value: bytes }, None),
            _ => (Operation::Invalidate { key: set_key, exact: self.random.chance(500) }, None),
        };
        let Some(process) = self.live(pid) else { return };
        process.caller.waiting.insert(token, Waiting::Operation { mark });
        self.counters.add("operated");
        self.mail_follower(
            pid,
            FollowerMail::In(Box::new(Input::Op { token, operation, trace: Trace::NONE })),
        );
    }

    /// Ends the oldest layer of the session, or lays another.
    fn layer(&mut self, pid: Pid) {
        let (token, drawn) = (self.token(), self.random.below(100));
        let key = data::merge_key(self.random.below(data::MERGE_KEYS));
        let Some(process) = self.live(pid) else { return };
        let patch = |token: u64| Bytes::copy_from_slice(&token.to_be_bytes());
        let input = match process.caller.layers.first_entry().filter(|_| drawn < 60) {
            Some(open) => {
                let (layer, (mark, key)) = open.remove_entry();
                if drawn < 30 {
                    process.caller.waiting.insert(token, Waiting::Operation { mark: Some(mark) });
                    let operation = Operation::Merge { key, patch: patch(mark) };
                    self.counters.add("layer_committed");
                    Input::Commit { token, layer, operation, trace: Trace::NONE }
                } else {
                    self.counters.add("layer_taken_back");
                    Input::TakeBack(layer)
                }
            }
            None => {
                process.caller.laying.insert(token, key.clone());
                self.counters.add("layer_laid");
                Input::Lay { token, key, patch: patch(token) }
            }
        };
        self.mail_follower(pid, FollowerMail::In(Box::new(input)));
    }

    fn resubscribe(&mut self, pid: Pid) {
        let keys: Vec<_> = self.feeds.iter().flat_map(|feed| feed.keys.clone()).collect();
        let streams: Vec<_> = self.feeds.iter().flat_map(|feed| feed.streams.clone()).collect();
        let key = self.random.pick(&keys).cloned();
        let stream = self.random.pick(&streams).cloned().filter(|_| self.random.chance(400));
        let Some(process) = self.processes.get(&pid) else { return };
        if let Some(stream) = stream {
            if process.caller.streams.contains(&stream) {
                self.unsubscribe_stream(pid, stream);
            } else {
                self.subscribe_stream(pid, stream);
            }
        } else if let Some(key) = key {
            if process.caller.keys.contains(&key) {
                self.unsubscribe(pid, key);
            } else {
                self.subscribe(pid, key);
            }
        }
    }

    fn ask(&mut self, pid: Pid) {
        let token = self.token();
        let ask = if self.random.chance(500) { Ask::Sync } else { Ask::Members };
        let Some(process) = self.live(pid) else { return };
        process.caller.waiting.insert(token, Waiting::Ask);
        self.mail_follower(pid, FollowerMail::In(Box::new(Input::Ask { token, ask, trace: Trace::NONE })));
    }

    /// What the follower shows or answers.
    pub(super) fn show(&mut self, pid: Pid, effect: Effect) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let session = process.session;
        match effect {
            Effect::Show(held) => {
                if process.caller.keys.contains(&held.key) {
                    process.caller.shown.insert(held.key.clone(), held.value.clone());
                    process.caller.held.insert(held.key.clone(), held.clone());
                }
                self.tell(&Fact::Shown { session, held });
            }
            Effect::ShowLayered { key, held, layers } => {
                let base = held.as_ref().map(|held| &*held.value);
                let patches = layers.iter().map(|layer| &*layer.patch);
                let value = Bytes::from(base.into_iter().chain(patches).collect::<Vec<_>>().concat());
                let caller = &mut process.caller;
                if (base.is_none() && layers.is_empty()) || !caller.keys.contains(&key) {
                    caller.shown.remove(&key);
                } else {
                    caller.shown.insert(key.clone(), value.clone());
                }
                self.tell(&match held {
                    Some(held) => Fact::Shown { session, held },
                    None => Fact::Cleared { session, key: key.clone() },
                });
                self.tell(&Fact::Layered { session, key, value });
            }
            Effect::Laid { token, layer } => {
                if let Some(key) = process.caller.laying.remove(&token) {
                    process.caller.layers.insert(layer, (token, key));
                }
            }
            Effect::Clear(key) => {
                process.caller.shown.remove(&key);
                process.caller.held.remove(&key);
                self.tell(&Fact::Cleared { session, key });
            }
            Effect::Deliver(event) => self.delivered(pid, session, event),
            Effect::ShowGap(gap) => self.gap_shown(pid, session, gap),
            Effect::Synced { .. } => self.synced(pid, session),
            Effect::OpDone { token, outcome } => self.operation_done(pid, token, outcome),
            Effect::SubmitDone { token, seq, outcome } => self.submit_done(pid, token, seq, &outcome),
            Effect::Answered { token, .. } | Effect::Overloaded { token } => {
                process.caller.waiting.remove(&token);
                process.caller.laying.remove(&token);
            }
            Effect::Touch(held) => {
                if process.caller.keys.contains(&held.key) {
                    process.caller.held.insert(held.key.clone(), held);
                }
            }
            Effect::Fetch { epoch, request } => self.fetch_asked(pid, epoch, &request),
            Effect::CancelFetch { epoch, id } => {
                process.caller.fetching.remove(&(epoch, id));
            }
            Effect::ShowState(..)
            | Effect::Connection(_)
            | Effect::Send(_)
            | Effect::Ping(_)
            | Effect::Heir(_)
            | Effect::Go { .. }
            | Effect::Moved { .. }
            | Effect::OwnerClosed
            | Effect::Look { .. }
            | Effect::Break(_)
            | Effect::Event(_) => {}
        }
    }

    pub(super) fn delivered(&mut self, pid: Pid, session: SessionId, event: HeldEvent) {
        let feed = self.feeds.iter().position(|feed| feed.channel == event.origin.0);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if !process.caller.streams.contains(&event.stream) {
            // Unsubscribed while it was on its way.
            return;
        }
        if let (Some(feed), Some(number)) = (feed, Feed::number_of(&event.data)) {
            let last = process.caller.events.entry(event.stream.clone()).or_default();
            *last = (*last).max(number);
            // Who was told that it may be missing learned of it from the owner whose gap this is about.
            let told = |(who, after, upto): &(SessionId, u64, u64)| {
                *who == session && *after < number && number <= *upto
            };
            if !self.gaps[feed].iter().any(told) {
                self.seen[feed].entry(number).or_default().insert(session);
            }
        }
        self.counters.add("delivered");
        self.tell(&Fact::Delivered { session, event });
    }

    fn gap_shown(&mut self, pid: Pid, session: SessionId, gap: Gap) {
        self.counters.add(match gap.why {
            GapCause::Upstream => "gap_shown_upstream",
            GapCause::SlowReader => "gap_shown_slow_reader",
            GapCause::Resync => "gap_shown_resync",
        });
        // Promised to members of the list that the owner's reign began with.
        let owner = self.owner_of(pid).and_then(|owner| self.processes.get(&owner)?.owned.as_ref());
        let listed =
            owner.is_none_or(|owned| owned.listed.as_ref().is_none_or(|list| list.contains(&session)));
        let avoidable = listed && gap.why != GapCause::SlowReader && self.avoidable(pid, &gap);
        log!(self, "{session:?} sees {gap:?}, avoidable: {avoidable}");
        if let Some(feed) = self.feeds.iter().position(|feed| feed.channel == gap.channel) {
            let number = |position: &Position| self.feeds[feed].number_at(position);
            let after = gap.after.as_ref().and_then(number).unwrap_or(0);
            let upto = gap.upto.as_ref().and_then(number).unwrap_or(u64::MAX);
            self.gaps[feed].push((session, after, upto));
        }
        self.tell(&Fact::GapShown { session, gap, avoidable });
    }

    /// The upstream could have replayed it, or everything in it was delivered to somebody who is there and follows at
    /// least the same streams: who follows fewer cannot vouch for the others, and an owner does not know which streams a
    /// channel carries.
    fn avoidable(&self, pid: Pid, gap: &Gap) -> bool {
        let Some(index) = self.feeds.iter().position(|feed| feed.channel == gap.channel) else {
            return false;
        };
        let feed = &self.feeds[index];
        if !feed.kind.ordered() {
            // Positions that cannot be ordered tell an owner nothing about a follower whose place its ring lacks.
            return false;
        }
        if feed.kind.resumes() {
            return true;
        }
        let Some(own) = self.processes.get(&pid).filter(|_| self.scenario.strict_gaps) else { return false };
        let wanted = |n: usize| own.caller.streams.contains(&feed.streams[n]);
        let streams: Vec<usize> = (0..feed.streams.len()).filter(|n| wanted(*n)).collect();
        let number = |position: &Position| feed.number_at(position);
        let after = gap.after.as_ref().and_then(number).unwrap_or(0);
        let upto = gap.upto.as_ref().and_then(number).unwrap_or(feed.log.len() as u64);
        let running = self.processes.values().filter(|process| process.run == Run::Running);
        let all: BTreeSet<SessionId> = running.clone().map(|process| process.session).collect();
        let follows = |process: &Process| own.caller.streams.is_subset(&process.caller.streams);
        let vouching: BTreeSet<SessionId> =
            running.filter(|process| follows(process)).map(|process| process.session).collect();
        let mut missed = feed.log.iter().skip(after as usize).take_while(|message| message.number <= upto);
        !streams.is_empty()
            && missed.all(|message| {
                let able = if streams.contains(&message.stream) { &vouching } else { &all };
                self.seen[index].get(&message.number).is_some_and(|saw| !saw.is_disjoint(able))
            })
    }

    fn synced(&mut self, pid: Pid, session: SessionId) {
        self.counters.add("synced");
        if let Some(process) = self.processes.get_mut(&pid) {
            process.synced = true;
        }
        let (fenced, lacking) = self.subscriptions_lacking(pid);
        self.tell(&Fact::Synced { session, fenced, lacking });
    }

    fn operation_done(&mut self, pid: Pid, token: u64, outcome: OpOutcome) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let mark = match process.caller.waiting.remove(&token) {
            Some(Waiting::Operation { mark }) => mark,
            Some(Waiting::Change { n, number }) => {
                if let OpOutcome::Applied { mark, volatile: false } = outcome {
                    self.change_held(n, number, mark);
                }
                return;
            }
            Some(Waiting::Submit { .. } | Waiting::Ask) | None => {
                return self.violated("liveness", format!("operation {token} was answered twice"));
            }
        };
        let held = matches!(outcome, OpOutcome::Applied { volatile: false, .. });
        self.counters.add(match &outcome {
            OpOutcome::Applied { volatile: false, .. } => "operation_held_by_heir",
            OpOutcome::Applied { volatile: true, .. } => "operation_volatile",
            OpOutcome::Conflict => "operation_conflict",
            OpOutcome::Rejected(_) => "operation_rejected",
        });
        if let Some(mark) = mark.filter(|_| held) {
            let running: Vec<Pid> = self.processes.values().filter(|p| p.alive()).map(|p| p.pid).collect();
            let owner = self.owner_of(pid);
            let holders: Vec<Pid> = running
                .into_iter()
                .filter(|pid| Some(*pid) != owner && self.tokens_held(*pid).contains(&mark))
                .collect();
            let died = self.dead_tokens.contains(&mark);
            let holders = holders.into_iter().map(|pid| self.processes[&pid].session).collect();
            self.owed_tokens.insert(mark);
            self.tell(&Fact::OperationHeld { token: mark, holders, died });
            self.excuse_tokens();
        }
    }

    /// Whose hub the session's link ends at.
    fn owner_of(&self, pid: Pid) -> Option<Pid> {
        match self.processes.get(&pid)?.link {
            Link::None => None,
            Link::Loopback { .. } => Some(pid),
            Link::Remote { conn, .. } => self.net.conns.get(&conn).map(|open| open.server),
        }
    }

    fn submit_done(&mut self, pid: Pid, token: u64, seq: u64, outcome: &SubmitOutcome) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let session = process.session;
        let Some(Waiting::Submit { hash }) = process.caller.waiting.remove(&token) else {
            return self.violated("liveness", format!("submit {token} was answered twice"));
        };
        match outcome {
            SubmitOutcome::Acknowledged => {
                let id = paceline_proto::id::MutationId { session, seq };
                self.tell(&Fact::AcknowledgementSeen { id, hash });
            }
            SubmitOutcome::HashMismatch | SubmitOutcome::Hole { .. } => {
                self.violated("liveness", format!("{session:?} submit {seq} ended as {outcome:?}"));
            }
            SubmitOutcome::Moved | SubmitOutcome::Unknown(_) | SubmitOutcome::Busy => {
                self.counters.add("submit_given_up");
            }
        }
    }
}
