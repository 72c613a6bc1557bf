//! State of an upstream connection as the whole group sees it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One upstream connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Name of the upstream.
    pub upstream: Arc<str>,
    /// What it is doing.
    pub state: ConnectionState,
    /// `websocket`, `sse`, `pusher` or `poll`; empty before the first attempt.
    pub transport: Arc<str>,
    /// Attempts since it was last stable.
    pub attempts: u32,
    /// Milliseconds until the next attempt, counted from when this state was published.
    pub backoff_ms: Option<u32>,
}

/// What a connection is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionState {
    /// An attempt is under way.
    Connecting,
    /// Connected and caught up.
    Live,
    /// Connected, but something is not proven yet (events missing, verification under way).
    Degraded,
    /// Waiting for the next attempt.
    Offline,
    /// Nobody needs it.
    Paused,
    /// Given up until somebody acts; the text says why and what to do.
    Stopped(String),
}
