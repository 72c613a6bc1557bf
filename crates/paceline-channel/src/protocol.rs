//! What an upstream protocol is: a pure machine between a transport's frames and the group's changes.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_proto::{hub::Resume, id::Position, time::Time};
use serde_json::Value;

/// What a protocol can do, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// What a reconnect can prove.
    pub resume: Resume,
    /// Positions are numbers without holes.
    pub dense: bool,
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

/// How to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    /// `ws://` or `wss://`.
    pub url: String,
    /// Headers of the handshake.
    pub headers: Vec<(String, Secret)>,
    /// Subprotocols offered.
    pub subprotocols: Vec<String>,
    /// Longest message taken, bytes.
    pub max_message: usize,
}

/// A frame of the transport. Pings are answered by the transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A text message.
    Text(Bytes),
    /// A binary message.
    Binary(Bytes),
    /// Something that only shows that the peer lives.
    Alive,
}

/// A frame to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// A text message.
    Text(String),
    /// A ping of the transport.
    Ping,
}

/// Wishes and findings of a protocol.
#[derive(Debug, Clone, PartialEq)]
pub enum Out {
    /// Send it.
    Send(Outgoing),
    /// A message. `live` = not part of a snapshot sent on connect.
    Message {
        /// Parsed.
        value: Value,
        /// As it came.
        raw: Bytes,
        /// Where it stands.
        position: Option<Position>,
        /// After the snapshot.
        live: bool,
    },
    /// The snapshot sent on connect is over.
    Live,
    /// A message that cannot be used; the connection goes on.
    Unusable(String),
    /// The connection is dead or broken: drop it.
    Drop(String),
}

/// How a connection, or an attempt, ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CloseInfo {
    /// HTTP status of a refused handshake.
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
    /// Back off, at least so long.
    Backoff(Duration),
    /// Give up until somebody acts; the text says what to do.
    Stop(String),
}

/// Channels wanted at an upstream, by the names it knows them by.
pub type Channels = BTreeSet<Arc<str>>;

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
    fn on_open(&mut self, now: Time, out: &mut Vec<Out>);
    /// A frame came.
    fn on_frame(&mut self, now: Time, frame: Frame, out: &mut Vec<Out>);
    /// The channels that are wanted from now on; what differs is joined or left, at once or after the next `on_open`.
    fn set_channels(&mut self, wanted: &Channels, out: &mut Vec<Out>);
    /// When `on_deadline` must be called.
    fn deadline(&self) -> Option<Time>;
    /// The deadline passed.
    fn on_deadline(&mut self, now: Time, out: &mut Vec<Out>);
    /// The transport is closed, or could not be opened.
    fn on_close(&mut self, close: &CloseInfo) -> CloseAction;
}
