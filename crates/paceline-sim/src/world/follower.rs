//! The follower actor's shell: attempts, the link to the owner (local or remote), and what the caller is shown.

use std::time::Duration;

use bytes::Bytes;
use paceline_proto::{
    election::{ConnectFailure, Input as ElectionInput, Target},
    follower::{Effect, Input},
    hub::{Begin, Part},
    id::Epoch,
    limits::HELLO_TIMEOUT,
    message::{Hello, KitAddress, Member, Refusal, ToHub, ToSession, Welcome},
    presence::Presence,
};

use crate::{
    disk::Pid,
    fact::Fact,
    net::{BACKLOG, ConnId, End, Path, Phase, size_up},
    process::{FollowerMail, HubMail, Link, Pending, Run},
    world::{Event, World, log},
};

impl World {
    pub(super) fn step_follower(&mut self, pid: Pid) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.follower.deadline().is_some_and(|at| at <= now) {
            return self.drive_follower(pid, Input::Deadline);
        }
        let Some(mail) = process.follower_mail.pop_front() else { return };
        match mail {
            FollowerMail::Connect { attempt, target } => self.connect(pid, attempt, &target),
            FollowerMail::Disconnect { attempt } => self.disconnect(pid, attempt),
            FollowerMail::Failed { attempt, failure } => self.attempt_failed(pid, attempt, failure),
            FollowerMail::Read(conn) => self.read_as_client(pid, conn),
            FollowerMail::Flush(conn) => self.push_up(conn),
            FollowerMail::Begin { epoch, address, members, polite } => {
                self.begin_loopback(pid, epoch, address, members, polite);
            }
            FollowerMail::Loopback { epoch, parts } => self.loopback(pid, epoch, parts),
            FollowerMail::LoopbackLost { epoch } => {
                if matches!(process.link, Link::Loopback { epoch: own } if own == epoch) {
                    process.link = Link::None;
                    self.drive_follower(pid, Input::LinkLost);
                }
            }
            FollowerMail::Took(epoch) => {
                if let Some((_, conn)) = process.parting {
                    self.send_up(conn, ToHub::Took(epoch));
                }
            }
            FollowerMail::In(input) => self.drive_follower(pid, *input),
        }
    }

    pub(super) fn drive_follower(&mut self, pid: Pid, input: Input) {
        log!(self, "{} follower <- {input:?}", pid.0);
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.note_subscriptions(&input);
        if input == Input::LinkLost {
            // Nobody wants what its owner asked for.
            process.caller.fetching.clear();
        }
        let dropped = self.tamper_dedupe(pid, &input);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let mut out = Vec::new();
        process.follower.handle(now, input, &mut out);
        let (session, last) = (process.session, process.follower.hello_last());
        out.extend(dropped.map(Effect::Deliver));
        self.tell(&Fact::Followed { session, last });
        if let Some(process) = self.processes.get_mut(&pid) {
            process.pending.extend(out.into_iter().map(Pending::Follower));
        }
    }

    pub(super) fn follower_effect(&mut self, pid: Pid, effect: Effect) {
        log!(self, "{} follower -> {effect:?}", pid.0);
        match effect {
            Effect::Send(message) => self.send_from_follower(pid, message),
            Effect::Show(_)
            | Effect::Clear(_)
            | Effect::ShowLayered { .. }
            | Effect::Laid { .. }
            | Effect::Touch(_)
            | Effect::ShowState(..)
            | Effect::Fetch { .. }
            | Effect::CancelFetch { .. }
            | Effect::Deliver(_)
            | Effect::ShowGap(_)
            | Effect::Connection(_)
            | Effect::Synced { .. }
            | Effect::OpDone { .. }
            | Effect::SubmitDone { .. }
            | Effect::Answered { .. }
            | Effect::Overloaded { .. } => self.show(pid, effect),
            Effect::Ping(ping) => self.mail_election(pid, ElectionInput::Ping(ping)),
            Effect::Heir(heir) => self.mail_election(pid, ElectionInput::Heir(heir)),
            Effect::Go { last } => self.mail_election(pid, ElectionInput::Go { last }),
            Effect::Moved { epoch, to } => self.mail_election(pid, ElectionInput::Moved { epoch, to }),
            // Looks are the shell's; no caller of this world asks for one.
            Effect::Look { .. } => {}
            Effect::OwnerClosed => self.mail_election(pid, ElectionInput::OwnerClosed),
            Effect::Break(why) => {
                log!(self, "{} breaks its link: {why}", pid.0);
                self.counters.add("link_broken_by_follower");
                self.lose_link(pid);
            }
            Effect::Event(event) => self.observed(pid, &event),
        }
    }

    fn connect(&mut self, pid: Pid, attempt: u64, target: &Target) {
        let failure = match self.net.listeners.get(&target.address.socket) {
            None => {
                Some(if self.random.chance(500) { ConnectFailure::Missing } else { ConnectFailure::Refused })
            }
            Some(listener) => match listener.path {
                Path::Present => None,
                Path::Removed => Some(ConnectFailure::Missing),
                Path::Forbidden => Some(ConnectFailure::Forbidden),
            },
        };
        if let Some(failure) = failure {
            return self.mail_election(pid, ElectionInput::ConnectFailed { attempt, failure });
        }
        let hello = self.hello(pid, &target.address);
        let capacity = self.scenario.pipe_bytes;
        let Some(listener) = self.net.listeners.get_mut(&target.address.socket) else { return };
        let (server, full) = (listener.pid, listener.backlog.len() >= BACKLOG);
        let conn = self.net.open(pid, server, Some(attempt), capacity);
        if let Some(listener) = self.net.listeners.get_mut(&target.address.socket)
            && !full
        {
            listener.backlog.push_back(conn);
        }
        if let Some(process) = self.processes.get_mut(&pid) {
            process.attempts.insert(attempt, conn);
        }
        self.send_up(conn, ToHub::Hello(hello));
        // A connection to a kit that is not claimed yet waits in its backlog for as long as it is wanted.
        if target.epoch.is_some() {
            self.after(HELLO_TIMEOUT, Event::AttemptTimeout(pid, attempt));
        }
        if let Some(process) = self.live(server)
            && process.owned.as_ref().is_some_and(|owned| owned.address.socket == target.address.socket)
        {
            process.hub_mail.push_back(HubMail::Accept { socket: target.address.socket.clone() });
            self.wake(server);
        }
    }

    fn hello(&self, pid: Pid, target: &KitAddress) -> Hello {
        let process = &self.processes[&pid];
        Hello {
            proof: target.nonce,
            proto: process.program.proto,
            session: process.session,
            label: format!("s{}", pid.0),
            build: process.program.build.clone(),
            pid: pid.0,
            rank: process.rank,
            last: process.follower.hello_last(),
            declared: 0,
            presence: Presence::default(),
            release: process.program.release,
            features: process.program.features,
            schema: process.program.schema,
            more: Bytes::new(),
        }
    }

    pub(super) fn attempt_timed_out(&mut self, pid: Pid, attempt: u64) {
        if self.processes.get(&pid).is_some_and(|process| process.attempts.contains_key(&attempt)) {
            self.mail_follower(pid, FollowerMail::Failed { attempt, failure: ConnectFailure::Silent });
        }
    }

    /// The attempt was given up, unless it was welcomed meanwhile.
    fn attempt_failed(&mut self, pid: Pid, attempt: u64, failure: ConnectFailure) {
        let Some(conn) = self.processes.get_mut(&pid).and_then(|process| process.attempts.remove(&attempt))
        else {
            return;
        };
        self.close_client_end(conn);
        self.mail_election(pid, ElectionInput::ConnectFailed { attempt, failure });
    }

    fn disconnect(&mut self, pid: Pid, attempt: u64) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if let Some(conn) = process.attempts.remove(&attempt) {
            return self.close_client_end(conn);
        }
        if let Some((_, conn)) = process.parting.filter(|(parting, _)| *parting == attempt) {
            process.parting = None;
            return self.close_client_end(conn);
        }
        if let Link::Remote { attempt: own, conn, .. } = process.link
            && own == attempt
        {
            process.link = Link::None;
            self.close_client_end(conn);
            self.drive_follower(pid, Input::LinkLost);
        }
    }

    fn send_from_follower(&mut self, pid: Pid, message: ToHub) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        match process.link {
            Link::None => {}
            Link::Loopback { epoch } => process.hub_mail.push_back(HubMail::Loopback { epoch, message }),
            Link::Remote { conn, .. } => {
                for message in self.tamper_up(message) {
                    self.send_up(conn, message);
                }
            }
        }
    }

    /// Writes as the client.
    fn send_up(&mut self, conn: ConnId, message: ToHub) {
        if let Some(open) = self.net.conns.get_mut(&conn) {
            open.up_waiting.push_back(message);
        }
        self.push_up(conn);
    }

    /// Moves what the pipe takes.
    pub(super) fn push_up(&mut self, conn: ConnId) {
        let now = self.now;
        let latency = self.latency();
        let Some(open) = self.net.conns.get_mut(&conn) else { return };
        while let Some(message) = open.up_waiting.front() {
            let size = size_up(message);
            if !open.up.fits(size) {
                break;
            }
            if let Some(message) = open.up_waiting.pop_front() {
                open.up.push(now + latency, size, message);
            }
        }
        self.arm(conn, End::Server);
    }

    /// Local sockets are fast, and now and then a reader is scheduled late.
    pub(super) fn latency(&mut self) -> Duration {
        if self.random.chance(30) { self.random.micros(100, 5000) } else { self.random.micros(5, 100) }
    }

    /// Schedules the reader of `end`, once.
    pub(super) fn arm(&mut self, conn: ConnId, end: End) {
        let now = self.now;
        let Some(open) = self.net.conns.get_mut(&conn) else { return };
        let (due, armed) = match end {
            End::Client => (open.down.due(), &mut open.client_armed),
            End::Server => (open.up.due(), &mut open.server_armed),
        };
        let Some(due) = due.filter(|_| !*armed) else { return };
        *armed = true;
        self.at(due.max(now), Event::Readable(conn, end));
    }

    pub(super) fn readable(&mut self, conn: ConnId, end: End) {
        let Some(open) = self.net.conns.get(&conn) else { return };
        match end {
            End::Client => {
                let pid = open.client;
                self.mail_follower(pid, FollowerMail::Read(conn));
            }
            End::Server => {
                // A backlog is read only once it is accepted.
                if open.accepted
                    && let server = open.server
                    && let Some(process) = self.live(server)
                {
                    process.hub_mail.push_back(HubMail::Read(conn));
                    self.wake(server);
                }
            }
        }
    }

    /// Reads one message as the client, and comes back for more.
    fn read_as_client(&mut self, pid: Pid, conn: ConnId) {
        let now = self.now;
        let Some(open) = self.net.conns.get_mut(&conn) else { return };
        open.client_armed = false;
        let message = open.down.pop(now);
        let (phase, ended) = (open.phase, open.down.ended(now));
        let attempt = open.attempt;
        if phase == Phase::Closed {
            return;
        }
        let read = message.is_some();
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if read {
            process.heard = now;
        }
        let current = matches!(process.link, Link::Remote { conn: own, .. } if own == conn);
        let parting = process.parting.is_some_and(|(_, own)| own == conn);
        match message {
            Some(message) if phase == Phase::Waiting => {
                self.first_answer(pid, conn, attempt.unwrap_or(0), message)
            }
            Some(message) if current => self.message_from_owner(pid, message),
            Some(_) => {}
            None if !ended => {}
            None if phase == Phase::Waiting => {
                self.attempt_failed(pid, attempt.unwrap_or(0), ConnectFailure::Closed);
            }
            None if current => self.lose_link(pid),
            None if parting => {
                self.close_client_end(conn);
                let gone = self.processes.get_mut(&pid).and_then(|process| process.parting.take());
                if let Some((attempt, _)) = gone {
                    self.mail_election(pid, ElectionInput::Eof { attempt });
                }
            }
            None => self.close_client_end(conn),
        }
        if read {
            self.unblock_server(conn);
        }
        self.read_again(pid, conn);
    }

    /// A slow reader takes its time.
    fn read_again(&mut self, pid: Pid, conn: ConnId) {
        let now = self.now;
        let pause = self.random.millis(1, 12);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let slow = process.slow_until > now;
        let Some(open) = self.net.conns.get_mut(&conn) else { return };
        if open.phase == Phase::Closed || open.client_armed {
            return;
        }
        match open.down.due() {
            Some(due) if slow => {
                open.client_armed = true;
                self.at(due.max(now + pause), Event::Readable(conn, End::Client));
            }
            Some(due) if due <= now => {
                open.client_armed = true;
                process.follower_mail.push_back(FollowerMail::Read(conn));
            }
            Some(_) => self.arm(conn, End::Client),
            None => {}
        }
    }

    fn first_answer(&mut self, pid: Pid, conn: ConnId, attempt: u64, message: ToSession) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.attempts.remove(&attempt).is_none() {
            return self.close_client_end(conn);
        }
        let answer = match message {
            ToSession::Welcome(welcome) => return self.welcomed(pid, conn, attempt, welcome),
            ToSession::Busy { retry_ms } => ElectionInput::Busy { attempt, retry_ms },
            ToSession::Refused(refusal) => ElectionInput::Refused { attempt, refusal },
            _ => {
                let failure = ConnectFailure::Other("the first message was not Welcome".to_owned());
                ElectionInput::ConnectFailed { attempt, failure }
            }
        };
        self.close_client_end(conn);
        self.mail_election(pid, answer);
    }

    fn welcomed(&mut self, pid: Pid, conn: ConnId, attempt: u64, welcome: Welcome) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let epoch = welcome.epoch;
        let newer = match process.link {
            Link::None => true,
            Link::Remote { epoch: own, .. } | Link::Loopback { epoch: own } => epoch > own,
        };
        if !newer || process.reign.is_some_and(|(own, _)| own >= epoch.0) {
            self.close_client_end(conn);
            let failure = ConnectFailure::Closed;
            return self.mail_election(pid, ElectionInput::ConnectFailed { attempt, failure });
        }
        if let Link::Remote { conn: old, .. } = process.link {
            self.close_client_end(old);
        }
        if let Some(process) = self.processes.get_mut(&pid) {
            process.link = Link::Remote { attempt, epoch, conn };
            process.synced = false;
        }
        if let Some(open) = self.net.conns.get_mut(&conn) {
            open.phase = Phase::Following;
        }
        self.mail_election(pid, ElectionInput::Welcomed { attempt, epoch, owner: welcome.owner });
        self.drive_follower(pid, Input::Linked(welcome));
        self.echo_stale_frames(pid, epoch);
    }

    fn message_from_owner(&mut self, pid: Pid, message: ToSession) {
        self.note_frame(pid, &message);
        self.drive_follower(pid, Input::Message(message));
    }

    /// The current remote link is gone.
    pub(super) fn lose_link(&mut self, pid: Pid) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Link::Remote { attempt, conn, .. } = process.link else { return };
        process.link = Link::None;
        self.close_client_end(conn);
        self.drive_follower(pid, Input::LinkLost);
        self.mail_election(pid, ElectionInput::Eof { attempt });
    }

    /// The session becomes the owner: its state goes to the hub, its link to the loopback.
    fn begin_loopback(
        &mut self,
        pid: Pid,
        epoch: Epoch,
        address: KitAddress,
        members: Option<Vec<Member>>,
        polite: bool,
    ) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if let Link::Remote { attempt, conn, .. } = std::mem::replace(&mut process.link, Link::None) {
            if polite {
                process.parting = Some((attempt, conn));
            } else {
                self.close_client_end(conn);
            }
        }
        self.drive_follower(pid, Input::LinkLost);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let attempts = std::mem::take(&mut process.attempts);
        let carried = process.follower.carry();
        process.link = Link::Loopback { epoch };
        process.synced = false;
        let (session, program) = (process.session, process.program.clone());
        for conn in attempts.into_values() {
            self.close_client_end(conn);
        }
        let channels = self.feeds.iter().map(crate::feed::Feed::spec).collect();
        let carried = self.tamper_carried(carried);
        let hello = Box::new(self.hello(pid, &address));
        let begin = Begin { epoch, session, program, carried, members, channels };
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.hub_mail.push_back(HubMail::Begin(Box::new(begin), address));
        process.hub_mail.push_back(HubMail::LoopbackHello { epoch, hello });
    }

    fn loopback(&mut self, pid: Pid, epoch: Epoch, parts: Vec<Part>) {
        for part in parts {
            let current = self.processes.get(&pid).map(|process| process.link);
            if current != Some(Link::Loopback { epoch }) {
                return;
            }
            match part {
                Part::Message(ToSession::Welcome(welcome)) => {
                    self.drive_follower(pid, Input::Linked(welcome))
                }
                Part::Message(message) => self.message_from_owner(pid, message),
                Part::Batch { header, frames } => {
                    self.message_from_owner(pid, ToSession::Batch(header));
                    for shared in frames {
                        self.message_from_owner(pid, ToSession::Frame(shared.frame.clone()));
                    }
                }
            }
        }
    }

    /// The session drops the connection.
    pub(super) fn close_client_end(&mut self, conn: ConnId) {
        let due = self.now + self.latency();
        let Some(open) = self.net.conns.get_mut(&conn) else { return };
        if open.phase == Phase::Closed {
            return;
        }
        open.phase = Phase::Closed;
        open.up_waiting.clear();
        open.up.close(due);
        self.arm(conn, End::Server);
        self.net.sweep(conn);
    }

    /// Room in the pipe: the owner's writer goes on.
    fn unblock_server(&mut self, conn: ConnId) {
        let Some(open) = self.net.conns.get(&conn) else { return };
        if open.down_waiting.is_empty() {
            return;
        }
        let server = open.server;
        if let Some(process) = self.live(server) {
            process.hub_mail.push_back(HubMail::Flush(conn));
            self.wake(server);
        }
    }

    /// Frames of an old reign that come late change nothing.
    fn echo_stale_frames(&mut self, pid: Pid, epoch: Epoch) {
        let now = self.now;
        let echo = self.random.chance(100);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let old = std::mem::take(&mut process.stale);
        let stale = matches!(old.first(), Some(ToSession::Batch(header)) if header.epoch < epoch);
        if !echo || !stale || process.run != Run::Running {
            return;
        }
        let before = process.follower.hello_last();
        let mut effects = Vec::new();
        for message in old {
            process.follower.handle(now, Input::Message(message), &mut effects);
        }
        let moved = process.follower.hello_last() != before;
        let session = process.session;
        // A break is a fair answer; it is carried out. Anything else would be a change.
        let (breaks, others): (Vec<_>, Vec<_>) =
            effects.into_iter().partition(|effect| matches!(effect, Effect::Break(_) | Effect::Event(_)));
        self.counters.add("stale_frames_echoed");
        self.tell(&Fact::StaleFrame { session, effects: others, moved });
        if let Some(process) = self.processes.get_mut(&pid) {
            process.pending.extend(breaks.into_iter().map(Pending::Follower));
        }
    }

    /// The last whole batch of the link is remembered for that.
    fn note_frame(&mut self, pid: Pid, message: &ToSession) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        match message {
            ToSession::Batch(header) if header.count > 0 && header.count <= 8 => {
                process.stale = vec![message.clone()];
            }
            ToSession::Batch(_) => process.stale.clear(),
            ToSession::Frame(_) if !process.stale.is_empty() => process.stale.push(message.clone()),
            _ => {}
        }
    }

    /// Turned away for a reason that cannot pass in the simulator.
    pub(super) fn refusal(&self, hello: &Hello, proof: paceline_proto::id::Nonce) -> Option<Refusal> {
        (hello.proof != proof).then_some(Refusal::Proof)
    }
}
