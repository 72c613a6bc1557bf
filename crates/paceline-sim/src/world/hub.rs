//! The hub actor's shell: the listener, the links' sockets, and what the hub wants from the others.

use paceline_proto::{
    election::Input as ElectionInput,
    hub::{Begin, Effect, Hub, Input, Part},
    id::{Epoch, LinkId},
    limits::WRITE_MAX,
    message::{Hello, KitAddress, ToHub, ToSession},
};

use crate::{
    disk::Pid,
    net::{ConnId, End, Path, size_down},
    process::{
        AfterFence, ElectionMail, FenceCheck, FollowerMail, HubMail, OutboxMail, Owned, Pending, SocketMail,
    },
    world::{World, log},
};

/// The own follower's link.
const LOOPBACK: LinkId = LinkId(0);

impl World {
    pub(super) fn step_hub(&mut self, pid: Pid) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let owned = process.owned.as_ref();
        if owned.and_then(|owned| owned.machine.deadline()).is_some_and(|at| at <= now) {
            self.rebind(pid);
            return self.drive_hub(pid, Input::Deadline);
        }
        if owned.and_then(Owned::deadline).is_some_and(|at| at <= now) {
            return self.engine_due(pid);
        }
        let Some(mail) = process.hub_mail.pop_front() else { return };
        self.take_hub_mail(pid, mail);
        if let Some(process) = self.processes.get_mut(&pid)
            && process.hub_mail.is_empty()
        {
            process.pending.push_back(Pending::WriteLinks);
        }
    }

    fn take_hub_mail(&mut self, pid: Pid, mail: HubMail) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let current = process.owned.as_ref().map(|owned| owned.epoch);
        match mail {
            HubMail::Begin(begin, address) => self.begin_hub(pid, *begin, address),
            HubMail::End { epoch, close } => self.end_hub(pid, epoch, close),
            HubMail::LoopbackHello { epoch, hello } if current == Some(epoch) => {
                if let Some(owned) = &mut process.owned {
                    owned.loopback = true;
                }
                self.drive_hub(pid, Input::Linked { link: LOOPBACK, hello: *hello, remote: false });
            }
            HubMail::Loopback { epoch, message } if current == Some(epoch) => {
                self.note_interest(pid, LOOPBACK, &message);
                self.drive_hub(pid, Input::Message { link: LOOPBACK, message });
            }
            HubMail::Accept { socket } => self.accept(pid, &socket),
            HubMail::Read(conn) => self.read_as_server(pid, conn),
            HubMail::Flush(conn) => self.flush(pid, conn),
            HubMail::In { epoch, input } if current == Some(epoch) => self.drive_hub(pid, *input),
            HubMail::LoopbackHello { .. } | HubMail::Loopback { .. } | HubMail::In { .. } => {}
        }
    }

    /// Drives the machine; links are written when nothing more waits, as the shell does.
    pub(super) fn drive_hub(&mut self, pid: Pid, input: Input) {
        log!(self, "{} hub <- {input:?}", pid.0);
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(owned) = &mut process.owned else { return };
        let mut out = Vec::new();
        owned.machine.handle(now, input, &mut out);
        let epoch = owned.epoch;
        self.take_hub_effects(pid, epoch, out);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.hub_mail.is_empty() || self.random.chance(150) {
            process.pending.push_back(Pending::WriteLinks);
        }
    }

    pub(super) fn hub_effect(&mut self, pid: Pid, epoch: Epoch, effect: Effect) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(owned) = process.owned.as_mut().filter(|owned| owned.epoch == epoch) else { return };
        log!(self, "{} hub -> {effect:?}", pid.0);
        match effect {
            Effect::Wake(link) => {
                owned.awake.insert(link);
            }
            Effect::Unlink { link, why } => {
                log!(self, "{} unlinks {link:?}: {why}", pid.0);
                self.counters.add("unlinked_by_hub");
                self.write_link(pid, link);
                self.unlink(pid, link);
            }
            Effect::OpenChannel { channel, resume } => {
                let resume = self.tamper_resume(&channel, resume);
                self.mail_socket(pid, SocketMail::Open { epoch, channel, resume });
            }
            Effect::Store(submit) => self.mail_outbox(pid, OutboxMail::Store { epoch, submit }),
            Effect::LookAtMember(session) => {
                process.election_mail.push_back(ElectionMail::LookAtMember { epoch, session });
            }
            Effect::Promote { to } => self.mail_election(pid, ElectionInput::Promote { to }),
            Effect::Took { epoch, to } => self.mail_election(pid, ElectionInput::Took { epoch, to }),
            Effect::Drained { last } => self.mail_election(pid, ElectionInput::Drained { last }),
            Effect::Presence { .. } | Effect::Query(_) => {}
            Effect::Event(event) => self.observed(pid, &event),
        }
    }

    fn begin_hub(&mut self, pid: Pid, begin: Begin, address: KitAddress) {
        let now = self.now;
        self.drop_hub_now(pid);
        let epoch = begin.epoch;
        let listed = begin.members.as_ref().map(|list| list.iter().map(|member| member.session).collect());
        let mut out = Vec::new();
        let machine = Hub::new(begin, Box::new(crate::data::Appending), now, &mut out);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        // A reign that was fenced before its hub began has none.
        if process.reign.is_none_or(|(own, _)| own != epoch.0) {
            process.follower_mail.push_back(FollowerMail::LoopbackLost { epoch });
            return;
        }
        let socket = address.socket.clone();
        process.owned = Some(Owned {
            epoch,
            address,
            machine,
            loopback: false,
            links: [].into(),
            awake: [].into(),
            listed,
            promised: [].into(),
            shuffled: [].into(),
            queries: None,
            flights: [].into(),
            interest: [].into(),
        });
        self.take_hub_effects(pid, epoch, out);
        if let Some(process) = self.processes.get_mut(&pid) {
            process.hub_mail.push_back(HubMail::Accept { socket });
        }
    }

    /// Says the last words, then drops everything.
    fn end_hub(&mut self, pid: Pid, epoch: Epoch, close: bool) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(owned) = process.owned.as_mut().filter(|owned| owned.epoch == epoch) else { return };
        if close {
            let mut out = Vec::new();
            owned.machine.handle(now, Input::SendClose, &mut out);
            owned.awake.extend(out.into_iter().filter_map(|effect| match effect {
                Effect::Wake(link) => Some(link),
                _ => None,
            }));
        }
        self.write_links(pid);
        self.drop_hub_now(pid);
    }

    /// The hub of `epoch` is over, without a word.
    pub(super) fn drop_hub(&mut self, pid: Pid, epoch: Epoch) {
        if self.processes.get(&pid).and_then(|p| p.owned.as_ref()).is_some_and(|owned| owned.epoch == epoch) {
            self.drop_hub_now(pid);
        }
    }

    fn drop_hub_now(&mut self, pid: Pid) {
        let Some(owned) = self.processes.get_mut(&pid).and_then(|process| process.owned.take()) else {
            return;
        };
        for conn in owned.links {
            // What was written already goes on in the background; the connection ends after it.
            self.push_down_all(conn);
            self.close_server_end(conn);
        }
        self.close_listener(&owned.address.socket);
        self.mail_follower(pid, FollowerMail::LoopbackLost { epoch: owned.epoch });
    }

    /// Takes the connections that wait, if the hub serves this socket.
    fn accept(&mut self, pid: Pid, socket: &str) {
        let serves = self
            .processes
            .get(&pid)
            .and_then(|process| process.owned.as_ref())
            .is_some_and(|owned| owned.address.socket == socket);
        let Some(listener) = self.net.listeners.get_mut(socket).filter(|_| serves) else { return };
        for conn in std::mem::take(&mut listener.backlog) {
            if let Some(open) = self.net.conns.get_mut(&conn) {
                open.accepted = true;
                open.server_armed = false;
            }
            self.arm(conn, End::Server);
        }
    }

    fn read_as_server(&mut self, pid: Pid, conn: ConnId) {
        let now = self.now;
        let Some(open) = self.net.conns.get_mut(&conn) else { return };
        open.server_armed = false;
        if open.server_closed {
            return;
        }
        let message = open.up.pop(now);
        let (linked, ended) = (open.linked, open.up.ended(now));
        let link = LinkId(conn.0);
        match message {
            Some(ToHub::Hello(hello)) if !linked => self.greeted(pid, conn, hello),
            Some(_) if !linked => self.close_server_end(conn),
            Some(message) => {
                let message = self.tamper_read(pid, link, message);
                self.note_interest(pid, link, &message);
                self.drive_hub(pid, Input::Message { link, message });
                if let Some(open) = self.net.conns.get(&conn)
                    && !open.up_waiting.is_empty()
                {
                    let client = open.client;
                    self.mail_follower(client, FollowerMail::Flush(conn));
                }
            }
            None if ended && linked => self.unlink(pid, link),
            None if ended => self.close_server_end(conn),
            None => {}
        }
        let Some(open) = self.net.conns.get_mut(&conn) else { return };
        if open.server_closed || open.server_armed {
            return;
        }
        match open.up.due() {
            Some(due) if due <= now => {
                open.server_armed = true;
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.hub_mail.push_back(HubMail::Read(conn));
                }
            }
            Some(_) => self.arm(conn, End::Server),
            None => {}
        }
    }

    fn greeted(&mut self, pid: Pid, conn: ConnId, hello: Hello) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(owned) = &process.owned else { return self.close_server_end(conn) };
        let nonce = owned.address.nonce;
        if let Some(refusal) = self.refusal(&hello, nonce) {
            self.send_down(conn, ToSession::Refused(refusal));
            return self.close_server_end(conn);
        }
        if self.phase == super::Phase::Chaos && self.random.chance(self.scenario.point_kill) {
            // As if too many strangers were waiting.
            self.counters.add("busy_answered");
            self.send_down(conn, ToSession::Busy { retry_ms: 50 });
            return self.close_server_end(conn);
        }
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some((epoch, inode)) = process.reign else { return self.close_server_end(conn) };
        let check = FenceCheck::new(epoch, inode);
        let then = AfterFence::Link { conn, hello: Box::new(hello) };
        process.pending.push_back(Pending::Fence { check, then });
    }

    /// The fence was checked: the hub welcomes the session.
    pub(super) fn welcome(&mut self, pid: Pid, conn: ConnId, hello: Hello) {
        let Some(owned) = self.processes.get_mut(&pid).and_then(|process| process.owned.as_mut()) else {
            return self.close_server_end(conn);
        };
        owned.links.insert(conn);
        if let Some(open) = self.net.conns.get_mut(&conn) {
            open.linked = true;
        }
        self.drive_hub(pid, Input::Linked { link: LinkId(conn.0), hello, remote: true });
    }

    /// The connection of a link is gone; the machine learns it.
    fn unlink(&mut self, pid: Pid, link: LinkId) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(owned) = &mut process.owned else { return };
        owned.awake.remove(&link);
        owned.interest.remove(&link);
        if link == LOOPBACK {
            if !std::mem::take(&mut owned.loopback) {
                return;
            }
            let epoch = owned.epoch;
            process.follower_mail.push_back(FollowerMail::LoopbackLost { epoch });
        } else {
            let conn = ConnId(link.0);
            if !owned.links.remove(&conn) {
                return;
            }
            self.close_server_end(conn);
        }
        self.drive_hub(pid, Input::Unlinked { link });
    }

    /// Writes everything that is awake.
    pub(super) fn write_links(&mut self, pid: Pid) {
        while let Some(link) = self
            .processes
            .get_mut(&pid)
            .and_then(|process| process.owned.as_mut())
            .and_then(|owned| owned.awake.pop_first())
        {
            self.write_link(pid, link);
        }
    }

    /// Writes pieces of the link's output until nothing is left or the socket takes no more.
    fn write_link(&mut self, pid: Pid, link: LinkId) {
        loop {
            let now = self.now;
            let Some(owned) = self.processes.get_mut(&pid).and_then(|process| process.owned.as_mut()) else {
                return;
            };
            let epoch = owned.epoch;
            let conn = ConnId(link.0);
            if link == LOOPBACK {
                if !owned.loopback {
                    return;
                }
                let Some(parts) = owned.machine.write(link, WRITE_MAX) else { return };
                let parts = self.tamper_parts(pid, link, parts);
                self.mail_follower(pid, FollowerMail::Loopback { epoch, parts });
            } else {
                if !owned.links.contains(&conn) || self.net.conns.get(&conn).is_none_or(|open| open.writing) {
                    return;
                }
                let Some(parts) = owned.machine.write(link, WRITE_MAX) else { return };
                let parts = self.tamper_parts(pid, link, parts);
                self.send_parts(conn, parts);
                if let Some(open) = self.net.conns.get_mut(&conn)
                    && !open.down_waiting.is_empty()
                {
                    open.writing = true;
                    return;
                }
            }
            self.written(pid, link, now);
        }
    }

    fn written(&mut self, pid: Pid, link: LinkId, now: paceline_proto::time::Time) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(owned) = &mut process.owned else { return };
        let epoch = owned.epoch;
        let mut out = Vec::new();
        owned.machine.handle(now, Input::Written { link }, &mut out);
        self.take_hub_effects(pid, epoch, out);
    }

    fn send_parts(&mut self, conn: ConnId, parts: Vec<Part>) {
        let Some(open) = self.net.conns.get_mut(&conn) else { return };
        for part in parts {
            match part {
                Part::Message(message) => open.down_waiting.push_back(message),
                Part::Batch { header, frames } => {
                    open.down_waiting.push_back(ToSession::Batch(header));
                    open.down_waiting
                        .extend(frames.iter().map(|shared| ToSession::Frame(shared.frame.clone())));
                }
            }
        }
        self.push_down(conn);
    }

    fn send_down(&mut self, conn: ConnId, message: ToSession) {
        if let Some(open) = self.net.conns.get_mut(&conn) {
            open.down_waiting.push_back(message);
        }
        self.push_down(conn);
    }

    /// Moves what the pipe takes.
    fn push_down(&mut self, conn: ConnId) {
        let now = self.now;
        let latency = self.latency();
        let Some(open) = self.net.conns.get_mut(&conn) else { return };
        while let Some(message) = open.down_waiting.front() {
            let size = size_down(message);
            if !open.down.fits(size) {
                break;
            }
            if let Some(message) = open.down_waiting.pop_front() {
                open.down.push(now + latency, size, message);
            }
        }
        self.arm(conn, End::Client);
    }

    /// Last words are finished in the background.
    fn push_down_all(&mut self, conn: ConnId) {
        let now = self.now;
        let latency = self.latency();
        let Some(open) = self.net.conns.get_mut(&conn) else { return };
        while let Some(message) = open.down_waiting.pop_front() {
            let size = size_down(&message);
            open.down.push(now + latency, size, message);
        }
        self.arm(conn, End::Client);
    }

    fn flush(&mut self, pid: Pid, conn: ConnId) {
        self.push_down(conn);
        let Some(open) = self.net.conns.get_mut(&conn) else { return };
        if !open.writing || !open.down_waiting.is_empty() {
            return;
        }
        open.writing = false;
        let link = LinkId(conn.0);
        let now = self.now;
        let Some(owned) = self.processes.get_mut(&pid).and_then(|process| process.owned.as_mut()) else {
            return;
        };
        if owned.links.contains(&conn) {
            owned.awake.insert(link);
            self.written(pid, link, now);
            if let Some(process) = self.processes.get_mut(&pid) {
                process.pending.push_back(Pending::WriteLinks);
            }
        }
    }

    /// The owner drops the connection.
    pub(super) fn close_server_end(&mut self, conn: ConnId) {
        let due = self.now + self.latency();
        let Some(open) = self.net.conns.get_mut(&conn) else { return };
        if open.server_closed {
            return;
        }
        open.server_closed = true;
        open.down_waiting.clear();
        open.down.close(due);
        self.arm(conn, End::Client);
        self.net.sweep(conn);
    }

    /// The listening socket closes; whoever waits in its backlog sees the end.
    pub(super) fn close_listener(&mut self, socket: &str) {
        if let Some(listener) = self.net.listeners.remove(socket) {
            for conn in listener.backlog {
                self.close_server_end(conn);
            }
        }
    }

    /// The owner looks after its socket's path whenever it pings.
    fn rebind(&mut self, pid: Pid) {
        let Some(owned) = self.processes.get(&pid).and_then(|process| process.owned.as_ref()) else { return };
        let socket = owned.address.socket.clone();
        let removed = self.net.listeners.get(&socket).is_some_and(|listener| listener.path == Path::Removed);
        if removed && self.random.chance(500) {
            self.restore_path(&socket);
        }
    }

    pub(super) fn restore_path(&mut self, socket: &str) {
        if let Some(listener) = self.net.listeners.get_mut(socket) {
            listener.path = Path::Present;
        }
    }

    /// What each link asked for, as the hub was told.
    fn note_interest(&mut self, pid: Pid, link: LinkId, message: &ToHub) {
        let Some(owned) = self.processes.get_mut(&pid).and_then(|process| process.owned.as_mut()) else {
            return;
        };
        let (own_keys, own_streams) = owned.interest.entry(link).or_default();
        match message {
            ToHub::Subscribe { keys, streams } => {
                own_keys.extend(keys.iter().cloned());
                own_streams.extend(streams.iter().cloned());
            }
            ToHub::Unsubscribe { keys, streams } => {
                own_keys.retain(|key| !keys.contains(key));
                own_streams.retain(|stream| !streams.contains(stream));
            }
            _ => {}
        }
    }
}
