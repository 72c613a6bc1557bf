//! The upstream actor's shell and the feeds at the other end of its connections.

use std::time::Duration;

use bytes::Bytes;
use paceline_proto::{
    connection::{Connection, ConnectionState},
    hub::Input,
    id::{Channel, Epoch, Place, Position, Trace, Version},
};

use crate::{
    disk::Pid,
    feed::{Consumer, Down},
    process::{OutboxMail, Run, SocketMail, Upstream},
    world::{Event, Phase, World, log},
};

/// A feed drops a consumer that was silent for so long.
const SILENCE: Duration = Duration::from_secs(1);
/// First wait after a refusal; doubles up to the longest.
const RETRY_MS: u64 = 5;
const RETRY_MAX_MS: u64 = 500;

impl World {
    pub(super) fn step_socket(&mut self, pid: Pid) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(mail) = process.socket_mail.pop_front() else { return };
        match mail {
            SocketMail::Open { epoch, channel, resume } => {
                // The hub may ask after the election ended or drained its reign.
                if process.socket_closed.is_none_or(|closed| closed < epoch) {
                    process.socket_epoch = epoch;
                    self.open_channel(pid, &channel, resume);
                }
            }
            SocketMail::Drain { epoch, to } => {
                self.close_upstreams(pid, epoch);
                self.mail_outbox(pid, OutboxMail::Drain { epoch, to });
            }
            SocketMail::Resume { epoch } => {
                process.socket_closed.take_if(|closed| *closed == epoch);
            }
            SocketMail::Close { epoch } => self.close_upstreams(pid, epoch),
            SocketMail::Connect { channel, token } => self.connect_upstream(pid, channel, token),
            SocketMail::Read { channel, conn } => self.read_upstream(pid, channel, conn),
        }
    }

    fn open_channel(&mut self, pid: Pid, channel: &Channel, resume: Option<Position>) {
        let Some(feed) = self.feeds.iter().position(|feed| feed.channel == *channel) else { return };
        self.hang_up(pid, feed);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let upstream = process.upstreams.entry(feed).or_insert_with(Upstream::new);
        upstream.wanted = true;
        upstream.resume = resume;
        upstream.attempts = 0;
        upstream.token += 1;
        let token = upstream.token;
        let delay = self.random.micros(100, 1500);
        self.after(delay, Event::UpstreamConnect(pid, feed, token));
    }

    pub(super) fn close_upstreams(&mut self, pid: Pid, epoch: Epoch) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.socket_closed = process.socket_closed.max(Some(epoch));
        if process.socket_epoch > epoch {
            return;
        }
        let feeds: Vec<usize> = process.upstreams.keys().copied().collect();
        for feed in feeds {
            if let Some(upstream) =
                self.processes.get_mut(&pid).and_then(|process| process.upstreams.get_mut(&feed))
            {
                upstream.wanted = false;
                upstream.token += 1;
            }
            self.hang_up(pid, feed);
        }
    }

    /// Drops the connection; the feed notices a little later.
    fn hang_up(&mut self, pid: Pid, feed: usize) {
        let delay = self.random.micros(50, 1500);
        let Some(upstream) =
            self.processes.get_mut(&pid).and_then(|process| process.upstreams.get_mut(&feed))
        else {
            return;
        };
        upstream.pipe.clear();
        if let Some(conn) = upstream.conn.take() {
            self.after(delay, Event::FeedDrop(feed, conn));
        }
    }

    pub(super) fn upstream_connect_due(&mut self, pid: Pid, feed: usize, token: u64) {
        self.mail_socket(pid, SocketMail::Connect { channel: feed, token });
    }

    fn connect_upstream(&mut self, pid: Pid, feed: usize, token: u64) {
        let now = self.now;
        let conn = self.next_conn();
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(upstream) = process.upstreams.get_mut(&feed) else { return };
        if !upstream.wanted || upstream.token != token || upstream.conn.is_some() {
            return;
        }
        let resume = upstream.resume.clone();
        log!(self, "{} connects to feed {feed} at {resume:?}", pid.0);
        match self.feeds[feed].admit(Consumer { pid, conn, heard: now }, resume.as_ref()) {
            None => {
                self.counters.add("upstream_conflict");
                self.retry_upstream(pid, feed, token);
            }
            Some(downs) => {
                if let Some(upstream) = self.processes.get_mut(&pid).and_then(|p| p.upstreams.get_mut(&feed))
                {
                    upstream.conn = Some(conn);
                    upstream.attempts = 0;
                }
                for down in downs {
                    self.feed_sends(pid, feed, Some(down));
                }
            }
        }
    }

    fn retry_upstream(&mut self, pid: Pid, feed: usize, token: u64) {
        let Some(upstream) =
            self.processes.get_mut(&pid).and_then(|process| process.upstreams.get_mut(&feed))
        else {
            return;
        };
        let wait = (RETRY_MS << upstream.attempts.min(10)).min(RETRY_MAX_MS);
        upstream.attempts += 1;
        self.after(Duration::from_millis(wait), Event::UpstreamConnect(pid, feed, token));
    }

    /// Puts a message (`None` = the end) on its way to the consumer.
    fn feed_sends(&mut self, pid: Pid, feed: usize, down: Option<Down>) {
        let latency = self.random.micros(200, 3000);
        let now = self.now;
        let Some(upstream) =
            self.processes.get_mut(&pid).and_then(|process| process.upstreams.get_mut(&feed))
        else {
            return;
        };
        let last = upstream.pipe.back().map_or(now, |(due, _)| *due);
        upstream.pipe.push_back(((now + latency).max(last), down));
        self.arm_upstream(pid, feed);
    }

    fn arm_upstream(&mut self, pid: Pid, feed: usize) {
        let now = self.now;
        let Some(upstream) =
            self.processes.get_mut(&pid).and_then(|process| process.upstreams.get_mut(&feed))
        else {
            return;
        };
        let Some(due) = upstream.pipe.front().map(|(due, _)| *due).filter(|_| !upstream.armed) else {
            return;
        };
        upstream.armed = true;
        self.at(due.max(now), Event::UpstreamReadable(pid, feed));
    }

    pub(super) fn upstream_readable(&mut self, pid: Pid, feed: usize) {
        let Some(upstream) =
            self.processes.get_mut(&pid).and_then(|process| process.upstreams.get_mut(&feed))
        else {
            return;
        };
        match upstream.conn {
            Some(conn) => self.mail_socket(pid, SocketMail::Read { channel: feed, conn }),
            None => upstream.armed = false,
        }
    }

    fn read_upstream(&mut self, pid: Pid, feed: usize, conn: u64) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let epoch = process.socket_epoch;
        let Some(upstream) = process.upstreams.get_mut(&feed) else { return };
        upstream.armed = false;
        if upstream.conn == Some(conn) && upstream.pipe.front().is_some_and(|(due, _)| *due <= now) {
            match upstream.pipe.pop_front().and_then(|(_, down)| down) {
                Some(Down::Opened { resumed }) => {
                    let channel = self.feeds[feed].channel.clone();
                    self.mail_hub(pid, Some(epoch), Input::ChannelOpened { channel, resumed });
                    self.tell_connection(pid, feed, ConnectionState::Live);
                }
                Some(Down::Changes { position, live, changes }) => {
                    if live && position.is_some() {
                        upstream.resume.clone_from(&position);
                    }
                    let channel = self.feeds[feed].channel.clone();
                    let publish = Input::Publish { channel, position, live, changes, trace: Trace::NONE };
                    self.mail_hub(pid, Some(epoch), publish);
                }
                Some(Down::Fetched { key, found, base }) => self.fetched(pid, feed, key, found, base),
                None => {
                    upstream.conn = None;
                    upstream.pipe.clear();
                    let token = upstream.token;
                    self.tell_connection(pid, feed, ConnectionState::Offline);
                    self.retry_upstream(pid, feed, token);
                }
            }
        }
        self.arm_upstream(pid, feed);
    }

    fn tell_connection(&mut self, pid: Pid, feed: usize, state: ConnectionState) {
        let Some(process) = self.processes.get(&pid) else { return };
        let epoch = process.socket_epoch;
        let upstream = self.feeds[feed].channel.0.clone();
        let connection =
            Connection { upstream, state, transport: "sim".into(), attempts: 0, backoff_ms: None };
        self.mail_hub(pid, Some(epoch), Input::Connection(connection));
    }

    pub(super) fn feed_tick(&mut self, feed: usize) {
        if self.phase != Phase::Chaos {
            return;
        }
        self.publish(feed);
        let next = self.random.micros(100, self.scenario.publish_ms * 2000);
        self.after(next, Event::FeedTick(feed));
    }

    pub(super) fn publish(&mut self, feed: usize) {
        let message = self.feeds[feed].publish(&mut self.random).clone();
        let down = self.feeds[feed].down(&message);
        self.mail_consumer(feed, down);
    }

    /// One message for every stream, and one that sets every key.
    pub(super) fn publish_everything(&mut self, feed: usize) {
        let (streams, keys) = (self.feeds[feed].streams.len(), self.feeds[feed].keys.len());
        for n in 0..streams.max(keys) {
            let message =
                self.feeds[feed].publish_exactly(&mut self.random, n % streams, Some(n % keys)).clone();
            let down = self.feeds[feed].down(&message);
            self.mail_consumer(feed, down);
        }
    }

    fn mail_consumer(&mut self, feed: usize, down: Down) {
        let Some(consumer) = self.feeds[feed].consumer else { return };
        let connected = self
            .processes
            .get(&consumer.pid)
            .and_then(|process| process.upstreams.get(&feed))
            .is_some_and(|upstream| upstream.conn == Some(consumer.conn));
        if connected {
            self.feed_sends(consumer.pid, feed, Some(down));
        }
    }

    pub(super) fn feed_ping(&mut self, feed: usize) {
        self.after(Duration::from_millis(250), Event::FeedPing(feed));
        let now = self.now;
        let suspended = self.suspended_until > now;
        let Some(consumer) = &mut self.feeds[feed].consumer else { return };
        if self.processes.get(&consumer.pid).is_some_and(|process| process.run == Run::Running && !suspended)
        {
            consumer.heard = now;
        } else if now.since(consumer.heard) > SILENCE {
            self.counters.add("consumer_silent");
            self.feed_hangs_up(feed);
        }
    }

    /// The feed drops its consumer.
    pub(super) fn feed_hangs_up(&mut self, feed: usize) {
        let Some(consumer) = self.feeds[feed].consumer.take() else { return };
        let connected = self
            .processes
            .get(&consumer.pid)
            .and_then(|process| process.upstreams.get(&feed))
            .is_some_and(|upstream| upstream.conn == Some(consumer.conn));
        if connected {
            self.feed_sends(consumer.pid, feed, None);
        }
    }

    /// The owner fetches a key, to see whether it went back.
    pub(super) fn fetch(&mut self, feed: usize, key: usize) {
        let Some(pid) = self.owner() else { return };
        let Some(owned) = self.processes.get(&pid).and_then(|process| process.owned.as_ref()) else { return };
        let base = owned.machine.get(&self.feeds[feed].keys[key]).map(|held| held.place.clone());
        let Some(base) = base else { return };
        let latency = self.random.millis(1, 60);
        self.after(latency, Event::FetchAnswered(feed, key, base));
    }

    pub(super) fn fetch_answered(&mut self, feed: usize, key: usize, base: Place) {
        let found = (self.feeds[feed].value(key), Version::Number(self.feeds[feed].versions[key]));
        self.mail_consumer(feed, Down::Fetched { key, found, base });
    }

    fn fetched(&mut self, pid: Pid, feed: usize, key: usize, found: (Bytes, Version), base: Place) {
        let Some(process) = self.processes.get(&pid) else { return };
        let epoch = process.socket_epoch;
        if base.version <= found.1 {
            return;
        }
        self.counters.add("reset_found");
        let key = self.feeds[feed].keys[key].clone();
        let why = "the server was set back".to_owned();
        let reset = Input::Reset { key, value: Some(found), base: Some(base), why, trace: Trace::NONE };
        self.mail_hub(pid, Some(epoch), reset);
    }

    pub(super) fn feed_drop(&mut self, feed: usize, conn: u64) {
        if self.feeds[feed].consumer.is_some_and(|consumer| consumer.conn == conn) {
            self.feeds[feed].consumer = None;
        }
    }
}
