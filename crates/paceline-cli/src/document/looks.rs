//! Documents of what sessions saw: events, counters, traces.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Event, Instant};

/// `events`.
#[derive(Debug, Serialize)]
pub struct Events {
    pub group: String,
    pub events: Vec<Event>,
    /// Sessions that did not answer.
    pub silent: Vec<String>,
}

/// `stats`.
#[derive(Debug, Serialize)]
pub struct Stats {
    pub group: String,
    pub epoch: u64,
    pub offset: u64,
    pub age_ms: u64,
    pub keys: u64,
    pub bytes: u64,
    pub counters: BTreeMap<String, u64>,
    pub sessions: Vec<Counted>,
}

/// How often events happened in a session; null where it did not answer.
#[derive(Debug, Serialize)]
pub struct Counted {
    pub session: String,
    pub label: String,
    pub pid: u32,
    pub events: Option<BTreeMap<String, u64>>,
}

/// `debug`.
#[derive(Debug, Serialize)]
pub struct Debug {
    pub group: String,
    pub sessions: Vec<Debugged>,
}

/// Debug lines of a session.
#[derive(Debug, Serialize)]
pub struct Debugged {
    pub session: String,
    pub before: bool,
    pub now: bool,
}

/// `trace`.
#[derive(Debug, Serialize)]
pub struct Trace {
    pub group: String,
    pub records: Vec<TraceRecord>,
    /// Sessions that did not answer.
    pub silent: Vec<String>,
}

/// A line of `trace`.
#[derive(Debug, Serialize)]
pub struct TraceRecord {
    pub at: Instant,
    pub session: String,
    pub pid: u32,
    pub actor: String,
    pub message: String,
    pub key: Option<String>,
    pub queued_us: f64,
    pub ran_us: f64,
    pub outcome: String,
    pub trace: Option<String>,
    pub span: String,
    pub parent: Option<String>,
}

/// `trace show`.
#[derive(Debug, Serialize)]
pub struct TraceShown {
    pub group: String,
    pub trace: String,
    pub processes: usize,
    pub took_us: f64,
    /// In the order of a walk through the tree.
    pub spans: Vec<Span>,
    /// Sessions that did not answer.
    pub silent: Vec<String>,
}

/// A record in a tree.
#[derive(Debug, Serialize)]
pub struct Span {
    pub depth: usize,
    pub after_us: f64,
    #[serde(flatten)]
    pub record: TraceRecord,
}
