//! Local sockets: listeners with a backlog, and connections whose two pipes delay, bound and order what is written.
//!
//! Connecting proves nothing: a stopped process's listener takes connections into its backlog and its sockets swallow
//! a buffer's worth. What was written before an end can still be read after it.

use std::collections::{BTreeMap, VecDeque};

use paceline_proto::{
    id::Nonce,
    message::{Layered, ToHub, ToSession},
    time::Time,
};

use crate::disk::Pid;

/// A connection; also the link's number at the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The session that connected.
    Client,
    /// The owner.
    Server,
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Pipe<T> {
    queue: VecDeque<(Time, usize, T)>,
    bytes: usize,
    capacity: usize,
    last: Time,
    end: Option<Time>,
}

impl<T> Pipe<T> {
    fn new(capacity: usize) -> Self {
        Self { queue: VecDeque::new(), bytes: 0, capacity, last: Time::ZERO, end: None }
    }

    /// Whether a message of `size` fits now. One message always fits into an empty pipe.
    pub fn fits(&self, size: usize) -> bool {
        self.end.is_none() && (self.queue.is_empty() || self.bytes + size <= self.capacity)
    }

    /// Puts a message in; it can be read at `due` or when everything before it can, whichever is later.
    pub fn push(&mut self, due: Time, size: usize, message: T) -> Time {
        let due = due.max(self.last);
        self.last = due;
        self.bytes += size;
        self.queue.push_back((due, size, message));
        due
    }

    /// Takes the next message that has arrived.
    pub fn pop(&mut self, now: Time) -> Option<T> {
        if self.queue.front().is_some_and(|(due, ..)| *due <= now) {
            let (_, size, message) = self.queue.pop_front()?;
            self.bytes -= size;
            return Some(message);
        }
        None
    }

    /// Nothing can be written any more; the reader sees the end at `at`, after everything in the pipe.
    pub fn close(&mut self, at: Time) -> Time {
        let at = at.max(self.last);
        if self.end.is_none() {
            self.end = Some(at);
        }
        at
    }

    /// Forgets what was written last, `keep` messages stay: the connection broke.
    pub fn cut(&mut self, keep: usize) {
        self.queue.truncate(keep);
        self.bytes = self.queue.iter().map(|(_, size, _)| *size).sum();
    }

    /// What is in the pipe.
    pub fn messages(&self) -> impl Iterator<Item = &T> {
        self.queue.iter().map(|(_, _, message)| message)
    }

    /// Messages not read yet.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing is in the pipe.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Everything was read and the end arrived.
    pub fn ended(&self, now: Time) -> bool {
        self.queue.is_empty() && self.end.is_some_and(|end| end <= now)
    }

    /// When the next message or the end can be read.
    pub fn due(&self) -> Option<Time> {
        self.queue.front().map(|(due, ..)| *due).or(self.end)
    }
}

/// How far the client's side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Hello is on its way, nothing was said yet.
    Waiting,
    /// The follower's messages come from here.
    Following,
    /// The client dropped it or saw its end.
    Closed,
}

/// One connection.
#[derive(Debug)]
pub struct Conn {
    /// Who connected.
    pub client: Pid,
    /// Whose listener it was.
    pub server: Pid,
    /// The election's token; `None` for the owner's own loopback.
    pub attempt: Option<u64>,
    /// The client's state.
    pub phase: Phase,
    /// The hub knows the link.
    pub linked: bool,
    /// The server accepted it from the backlog.
    pub accepted: bool,
    /// The server dropped it or saw its end.
    pub server_closed: bool,
    /// Session → hub.
    pub up: Pipe<ToHub>,
    /// Hub → session.
    pub down: Pipe<ToSession>,
    /// What the session wrote and the pipe did not take yet.
    pub up_waiting: VecDeque<ToHub>,
    /// What the hub wrote and the pipe did not take yet.
    pub down_waiting: VecDeque<ToSession>,
    /// The hub awaits `Written`.
    pub writing: bool,
    /// The client's reader is scheduled or has mail.
    pub client_armed: bool,
    /// The server's reader is scheduled or has mail.
    pub server_armed: bool,
}

/// What is found at a socket's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The socket.
    Present,
    /// Nothing: somebody removed it.
    Removed,
    /// It cannot be opened.
    Forbidden,
}

/// A listening socket: a kit's, later an owner's.
#[derive(Debug)]
pub struct Listener {
    /// Who listens.
    pub pid: Pid,
    /// What a Hello must prove.
    pub nonce: Nonce,
    /// Its path.
    pub path: Path,
    /// Connections not accepted yet.
    pub backlog: VecDeque<ConnId>,
}

/// Longest backlog; a connection beyond it hears nothing.
pub const BACKLOG: usize = 128;

/// All sockets of the machine.
#[derive(Debug, Default)]
pub struct Net {
    /// By socket name.
    pub listeners: BTreeMap<String, Listener>,
    /// By number.
    pub conns: BTreeMap<ConnId, Conn>,
    next: u64,
}

impl Net {
    /// A connection between two processes.
    pub fn open(&mut self, client: Pid, server: Pid, attempt: Option<u64>, capacity: usize) -> ConnId {
        self.next += 1;
        let id = ConnId(self.next);
        let conn = Conn {
            client,
            server,
            attempt,
            phase: Phase::Waiting,
            linked: false,
            accepted: false,
            server_closed: false,
            up: Pipe::new(capacity),
            down: Pipe::new(capacity),
            up_waiting: VecDeque::new(),
            down_waiting: VecDeque::new(),
            writing: false,
            client_armed: false,
            server_armed: false,
        };
        self.conns.insert(id, conn);
        id
    }

    /// Drops connections that both ends are done with.
    pub fn sweep(&mut self, id: ConnId) {
        if self.conns.get(&id).is_some_and(|conn| conn.phase == Phase::Closed && conn.server_closed) {
            self.conns.remove(&id);
        }
    }
}

/// Estimated encoded size.
pub fn size_up(message: &ToHub) -> usize {
    match message {
        ToHub::Op { op, .. } => 64 + op.operation.size(),
        ToHub::Submit(submit) => 64 + submit.payload.len(),
        ToHub::Values(values) | ToHub::ArchivedValues(values) => {
            16 + values.iter().map(|held| 48 + held.size()).sum::<usize>()
        }
        ToHub::Tail { events, .. } => 32 + events.iter().map(|event| 64 + event.data.len()).sum::<usize>(),
        ToHub::OfferKeys(keys) => 16 + keys.len() * 64,
        ToHub::OfferArchive { channels, applied, keys } => {
            16 + (channels.len() + applied.len() + keys.len()) * 64
        }
        ToHub::OfferRest { channels, ops, .. } => 16 + (channels.len() + ops.len()) * 64,
        ToHub::Subscribe { keys, streams } | ToHub::Unsubscribe { keys, streams } => {
            16 + (keys.len() + streams.len()) * 24
        }
        ToHub::Layers(layered) => 16 + layered.iter().map(Layered::size).sum::<usize>(),
        ToHub::Hello(_) => 160,
        ToHub::Items { items, .. } => 16 + items.len() * 64,
        ToHub::Ack(_)
        | ToHub::TakeBack(_)
        | ToHub::Resync
        | ToHub::Ask { .. }
        | ToHub::Presence(_)
        | ToHub::Kit(_)
        | ToHub::Took(_)
        | ToHub::Seen { .. }
        | ToHub::Declare(_)
        | ToHub::Observe { .. }
        | ToHub::Fetched { .. }
        | ToHub::Close => 32,
    }
}

/// Estimated encoded size.
pub fn size_down(message: &ToSession) -> usize {
    match message {
        ToSession::Frame(frame) => 64 + frame.body.size(),
        ToSession::Snapshot(snapshot) => {
            48 + snapshot.held.iter().map(|held| 48 + held.size()).sum::<usize>() + snapshot.events.len() * 80
        }
        ToSession::Ping(ping) => 48 + ping.members.len() * 40,
        ToSession::Welcome(_) => 96,
        ToSession::Applied(applied) => 16 + applied.len() * 48,
        ToSession::WantKeys(keys) => 16 + keys.len() * 24,
        ToSession::Layers(layered) => 16 + layered.iter().map(Layered::size).sum::<usize>(),
        ToSession::Busy { .. }
        | ToSession::Refused(_)
        | ToSession::Batch(_)
        | ToSession::WantItems
        | ToSession::Conflicts(_)
        | ToSession::WantTail { .. }
        | ToSession::OpDone { .. }
        | ToSession::SubmitDone { .. }
        | ToSession::Answer { .. }
        | ToSession::Appointed
        | ToSession::Dismissed
        | ToSession::Go { .. }
        | ToSession::Moved { .. }
        | ToSession::Look { .. }
        | ToSession::Close
        | ToSession::Fetch(_)
        | ToSession::CancelFetch(_)
        | ToSession::NoRoom(_)
        | ToSession::ArchiveHeld => 48,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_keeps_order_whatever_the_latencies() {
        let mut pipe = Pipe::new(100);
        pipe.push(Time(50), 10, 'a');
        pipe.push(Time(20), 10, 'b');
        assert_eq!(pipe.pop(Time(40)), None);
        assert_eq!((pipe.pop(Time(50)), pipe.pop(Time(50))), (Some('a'), Some('b')));
    }

    #[test]
    fn a_full_pipe_takes_no_more_and_an_empty_one_always_takes_one() {
        let mut pipe = Pipe::new(100);
        assert!(pipe.fits(500));
        pipe.push(Time(1), 90, 'a');
        assert!(pipe.fits(10) && !pipe.fits(11));
    }

    #[test]
    fn the_end_comes_after_everything_written() {
        let mut pipe = Pipe::new(100);
        pipe.push(Time(50), 10, 'a');
        pipe.close(Time(10));
        assert!(!pipe.ended(Time(60)));
        assert_eq!(pipe.pop(Time(60)), Some('a'));
        assert!(pipe.ended(Time(60)));
    }
}
