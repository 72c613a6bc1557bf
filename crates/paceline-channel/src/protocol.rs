//! What an upstream protocol is: a pure machine between a transport's frames and the group's changes.
//!
//! Protocols share three transports: a WebSocket, the body of an HTTP answer as it comes, and calls, which are HTTP
//! requests with a whole answer each. A machine may make calls beside whatever transport it has: that is how a channel
//! is authorised, and all that polling is.
//!
//! An upstream with a protocol of its own implements [`Protocol`], and [`Adapter`] for what makes the machine. Here is one
//! that reads numbers, one a line, from an answer that never ends:
//!
//! ```
//! use bytes::Bytes;
//! use paceline_channel::protocol::*;
//! use paceline_proto::{hub::Resume, id::Position, time::Time};
//!
//! #[derive(Debug)]
//! struct Numbers(String);
//!
//! impl Adapter for Numbers {
//!     fn machine(&self) -> Box<dyn Protocol> {
//!         Box::new(Machine { url: self.0.clone(), line: Vec::new() })
//!     }
//! }
//!
//! #[derive(Debug)]
//! struct Machine {
//!     url: String,
//!     line: Vec<u8>,
//! }
//!
//! impl Protocol for Machine {
//!     fn caps(&self) -> Caps {
//!         Caps::of(Resume::None)
//!     }
//!     fn transport(&self) -> &'static str {
//!         "numbers"
//!     }
//!     fn request(&mut self, _: Option<&Position>) -> ConnectRequest {
//!         self.line.clear();
//!         ConnectRequest::new(Transport::Stream, &self.url)
//!     }
//!     fn on_open(&mut self, _: Time, _: &Head, out: &mut Vec<Out>) {
//!         out.extend([Out::Joined { resumed: false }, Out::Live]);
//!     }
//!     fn on_frame(&mut self, _: Time, frame: Frame, out: &mut Vec<Out>) {
//!         let Frame::Chunk(chunk) = frame else { return };
//!         for byte in chunk {
//!             match byte {
//!                 b'\n' => {
//!                     let raw = Bytes::from(std::mem::take(&mut self.line));
//!                     match serde_json::from_slice(&raw) {
//!                         Ok(value) => out.push(Out::Message { value, raw, position: None, live: true }),
//!                         Err(error) => out.push(Out::Unusable(error.to_string())),
//!                     }
//!                 }
//!                 _ if self.line.len() == 20 => {
//!                     return out.push(Out::Drop(CloseInfo::because("a line without end")));
//!                 }
//!                 _ => self.line.push(byte),
//!             }
//!         }
//!     }
//!     fn on_close(&mut self, close: &CloseInfo) -> CloseAction {
//!         close.action()
//!     }
//! }
//!
//! let mut machine = Numbers("http://127.0.0.1:1/".into()).machine();
//! let mut out = Vec::new();
//! machine.on_frame(Time::ZERO, Frame::Chunk(Bytes::from("4")), &mut out);
//! machine.on_frame(Time::ZERO, Frame::Chunk(Bytes::from("2\n")), &mut out);
//! assert!(matches!(out.as_slice(), [Out::Message { value, .. }] if *value == 42));
//! ```

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_proto::{hub::Resume, id::Position, limits::VALUE_MAX, time::Time};
use serde_json::Value;

/// Channels joined on one connection. More would not fit the transport's queue after a reconnect.
pub const CHANNELS_MAX: usize = 512;
/// A server that closes with a complaint, or asks to come later, is left alone for so long.
pub(crate) const COMPLAINT_FLOOR: Duration = Duration::from_secs(1);
/// A server that asks for more than this is not waited for; the backoff's own cap decides.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15 * 60);
/// Close code of RFC 6455 for a message over the bound, whoever noticed it and whatever the transport.
pub const TOO_LONG: u16 = 1009;

/// What a protocol can do, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// What a reconnect can prove.
    pub resume: Resume,
    /// Positions are numbers without holes.
    pub dense: bool,
    /// It joins channels by name.
    pub joins: bool,
    /// It takes events of sessions.
    pub publishes: bool,
}

impl Caps {
    /// This continuity, and nothing besides.
    pub const fn of(resume: Resume) -> Self {
        Self { resume, dense: false, joins: false, publishes: false }
    }
}

/// A text that must not be shown: its `Debug` says nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What carries the frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A WebSocket, with the subprotocols to offer. Frames are [`Frame::Text`], [`Frame::Binary`] and [`Frame::Alive`].
    WebSocket(Vec<String>),
    /// The body of the answer to a GET, in [`Frame::Chunk`]s of any size. Nothing can be sent.
    Stream,
    /// Nothing is opened: the protocol makes calls.
    Calls,
}

/// How to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    /// What to open.
    pub transport: Transport,
    /// `ws://` or `wss://` for a WebSocket, `http://` or `https://` otherwise.
    pub url: String,
    /// Headers of the request.
    pub headers: Vec<(String, Secret)>,
    /// Longest message of a WebSocket, bytes.
    pub max_message: usize,
}

impl ConnectRequest {
    /// Without headers.
    pub fn new(transport: Transport, url: impl Into<String>) -> Self {
        Self { transport, url: url.into(), headers: Vec::new(), max_message: VALUE_MAX }
    }
}

/// What an answer of HTTP begins with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// Its status; 101 of a WebSocket, 0 where nothing was opened.
    pub status: u16,
    /// Its headers, names in lower case. Those whose value is no text are left out.
    pub headers: Vec<(String, String)>,
    /// Its `Retry-After`.
    pub retry_after: Option<Duration>,
}

impl Head {
    /// The first header of this name, which is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// A request with a whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Names the answer; unique within the connection.
    pub id: u64,
    /// Where to.
    pub url: String,
    /// Headers.
    pub headers: Vec<(String, Secret)>,
    /// A body to POST; `None` = a GET.
    pub body: Option<Secret>,
    /// The answer must be there by then.
    pub timeout: Duration,
    /// Longest body taken, bytes.
    pub max_body: usize,
}

/// The answer to a [`Call`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Of which call.
    pub call: u64,
    /// What came, whatever its status; or why nothing did.
    pub result: Result<Reply, String>,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Status and headers.
    pub head: Head,
    /// The body.
    pub body: Bytes,
}

/// A frame of the transport. Pings are answered by the transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A text message.
    Text(Bytes),
    /// A binary message.
    Binary(Bytes),
    /// Bytes of a stream.
    Chunk(Bytes),
    /// Something that only shows that the peer lives.
    Alive,
    /// The answer to a call.
    Answer(Answer),
}

/// A frame to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// A text message.
    Text(String),
    /// A text message with a credential in it.
    Hidden(Secret),
    /// A ping of the transport.
    Ping,
}

/// Wishes and findings of a protocol.
#[derive(Debug, Clone, PartialEq)]
pub enum Out {
    /// Send it.
    Send(Outgoing),
    /// Make a call. Forgotten when the connection ends.
    Call(Call),
    /// Messages follow; `resumed` = nothing is missing after the position asked for. Said once per connection before its
    /// first message, and again, with `resumed: false`, when the upstream tells of a loss.
    Joined {
        /// Nothing is missing.
        resumed: bool,
    },
    /// A message. `live` = not part of a snapshot sent on connect.
    Message {
        /// Parsed.
        value: Value,
        /// As it came, or as `value` is written.
        raw: Bytes,
        /// Where it stands.
        position: Option<Position>,
        /// After the snapshot.
        live: bool,
    },
    /// The channel stands here now, without a message.
    Moved(Position),
    /// The connection is up to date: the snapshot sent on connect, if there is one, is over.
    Live,
    /// A message that cannot be used; the connection goes on.
    Unusable(String),
    /// The connection is dead or broken: drop it. Answered by [`Protocol::on_close`] with the same.
    Drop(CloseInfo),
}

/// How a connection, or an attempt, ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CloseInfo {
    /// HTTP status of a refusal.
    pub status: Option<u16>,
    /// The server's `Retry-After`.
    pub retry_after: Option<Duration>,
    /// Close code of the protocol.
    pub code: Option<u16>,
    /// In words.
    pub reason: String,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseAction {
    /// Another consumer is connected: its end is near.
    Occupied,
    /// Back off, at least so long. After the first loss since the connection was stable that is all the delay there is.
    Backoff(Duration),
    /// This way cannot be gone until somebody acts; the text says what to do. The next transport is tried, if there is one.
    Stop(String),
}

impl CloseInfo {
    /// An end with nothing but words.
    pub fn because(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..Self::default() }
    }

    /// What a refusal by HTTP, or a close by RFC 6455, means where the protocol says nothing else.
    pub fn action(&self) -> CloseAction {
        let hint = self.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        match (self.status, self.code) {
            (Some(409), _) => CloseAction::Occupied,
            (Some(408 | 425 | 429 | 500..=599) | None, None) => CloseAction::Backoff(hint),
            (Some(status @ (401 | 403)), _) => CloseAction::Stop(format!(
                "the server refused the credentials (status {status}); check the headers"
            )),
            (Some(status @ 300..=399), _) => {
                CloseAction::Stop(format!("the server redirects (status {status}); use the final address"))
            }
            (Some(status), _) => CloseAction::Stop(format!("the server refused with status {status}")),
            // RFC 6455, 7.4.1: protocol error, kind of data, text, policy, size, extension; 1012 and 1013 ask for later.
            (None, Some(1002 | 1003 | 1007..=1010 | 1012 | 1013)) => {
                CloseAction::Backoff(hint.max(COMPLAINT_FLOOR))
            }
            (None, Some(_)) => CloseAction::Backoff(hint),
        }
    }
}

/// Channels wanted at an upstream, by the names it knows them by.
pub type Channels = BTreeSet<Arc<str>>;

/// An event that a session sends through the shared connection.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientEvent {
    /// The channel.
    pub channel: Arc<str>,
    /// Its name, without what the protocol puts before names.
    pub name: String,
    /// Its data.
    pub data: Value,
}

/// A client event is not sent. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The protocol has no events of clients.
    #[error("the protocol takes no events of clients")]
    Unsupported,
    /// The channel takes none.
    #[error("the channel {0:?} takes no events of clients: only private and presence channels do")]
    Channel(Arc<str>),
    /// The channel is not joined, or not yet. A retry helps when it is.
    #[error("the channel {0:?} is not joined")]
    NotJoined(Arc<str>),
}

/// What makes the machine of a protocol: a declaration, cheap to keep, shared by all sessions of a process.
pub trait Adapter: fmt::Debug + Send + Sync {
    /// A machine that is not connected. Its names and capabilities are always the same.
    fn machine(&self) -> Box<dyn Protocol>;
}

/// An upstream protocol. Pure: no socket, no clock.
///
/// The life of a transport: `request` → `on_open` → `on_frame`*, `on_deadline`* → `on_close`, or `request` → `on_close`
/// where it could not be opened. One transport at a time.
pub trait Protocol: fmt::Debug {
    /// What it can do.
    fn caps(&self) -> Caps;
    /// The transport's name, for people.
    fn transport(&self) -> &'static str;
    /// How to connect so that messages continue after `position`.
    fn request(&mut self, position: Option<&Position>) -> ConnectRequest;
    /// The transport is open.
    fn on_open(&mut self, now: Time, head: &Head, out: &mut Vec<Out>);
    /// A frame came.
    fn on_frame(&mut self, now: Time, frame: Frame, out: &mut Vec<Out>);
    /// The channels that are wanted from now on; what differs is joined or left, at once or after the next `on_open`.
    fn set_channels(&mut self, _wanted: &Channels, _out: &mut Vec<Out>) {}
    /// Sends an event of a session.
    ///
    /// # Errors
    /// Why not; the caller is told.
    fn publish(&mut self, _event: ClientEvent, _out: &mut Vec<Out>) -> Result<(), PublishError> {
        Err(PublishError::Unsupported)
    }
    /// When `on_deadline` must be called.
    fn deadline(&self) -> Option<Time> {
        None
    }
    /// The deadline passed.
    fn on_deadline(&mut self, _now: Time, _out: &mut Vec<Out>) {}
    /// The transport is closed, or could not be opened.
    fn on_close(&mut self, close: &CloseInfo) -> CloseAction;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_connection_decides_what_follows() {
        let close = |status, code, retry_after| {
            CloseInfo { status, code, retry_after, reason: String::new() }.action()
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(close(Some(409), None, None), CloseAction::Occupied);
        assert_eq!(close(Some(503), None, second), CloseAction::Backoff(Duration::from_secs(1)));
        assert_eq!(close(Some(503), None, Some(Duration::MAX)), CloseAction::Backoff(RETRY_AFTER_MAX));
        assert_eq!(close(None, Some(1006), None), CloseAction::Backoff(Duration::ZERO));
        assert_eq!(close(None, Some(1009), None), CloseAction::Backoff(COMPLAINT_FLOOR));
        assert_eq!(close(None, None, None), CloseAction::Backoff(Duration::ZERO));
        for status in [400, 401, 403, 404, 301] {
            assert!(matches!(close(Some(status), None, None), CloseAction::Stop(_)), "{status}");
        }
    }
}
