//! The doctor's document.

use serde::Serialize;

use super::Instant;

/// `doctor`.
#[derive(Debug, Serialize)]
pub struct Doctor {
    pub group: String,
    pub directory: Directory,
    pub holder: Option<Holder>,
    /// Sessions that live, as their files say.
    pub sessions: Vec<LiveSession>,
    /// The newest first.
    pub elections: Vec<Election>,
    /// Groups of the same name elsewhere.
    pub others: Vec<OtherGroup>,
    pub findings: Vec<Finding>,
}

impl Doctor {
    /// Before anything was looked at.
    pub fn new(group: String, directory: Directory) -> Self {
        Self {
            group,
            directory,
            holder: None,
            sessions: Vec::new(),
            elections: Vec::new(),
            others: Vec::new(),
            findings: Vec::new(),
        }
    }
}

/// Where a group lies and why there.
#[derive(Debug, Serialize)]
pub struct Directory {
    pub path: Option<String>,
    pub why: String,
}

/// Who holds the newest claim.
#[derive(Debug, Serialize)]
pub struct Holder {
    pub epoch: u64,
    pub session: String,
    pub pid: u32,
    pub label: String,
    pub build: String,
    pub since: Option<Instant>,
    pub age_ms: Option<u64>,
    /// Null where the system does not tell.
    pub stopped: Option<bool>,
    /// Null where it was not asked.
    pub answers: Option<bool>,
    /// Lowest and highest version.
    pub protocol: (u16, u16),
    /// Schema and the lowest reader it needs.
    pub store: (u32, u32),
}

/// A session that lives.
#[derive(Debug, Serialize)]
pub struct LiveSession {
    pub session: String,
    pub pid: Option<u32>,
    pub label: Option<String>,
    pub build: Option<String>,
    /// Whether it may lead.
    pub leads: Option<bool>,
    pub stopped: Option<bool>,
}

/// A reign.
#[derive(Debug, Serialize)]
pub struct Election {
    pub epoch: u64,
    pub since: Option<Instant>,
    pub reigned_ms: Option<u64>,
    pub session: Option<String>,
    pub pid: Option<u32>,
    pub label: Option<String>,
    pub build: Option<String>,
    /// Null where the session that led is gone.
    pub cause: Option<String>,
    /// From the election to the adopted store.
    pub ready_ms: Option<f64>,
}

/// A group of the same name elsewhere.
#[derive(Debug, Serialize)]
pub struct OtherGroup {
    pub path: String,
    pub runs: bool,
    pub epoch: Option<u64>,
    pub pid: Option<u32>,
}

/// Something that is wrong.
#[derive(Debug, Serialize)]
pub struct Finding {
    pub kind: &'static str,
    pub what: String,
    /// What to do.
    #[serde(rename = "do")]
    pub fix: String,
}

impl Finding {
    /// What is wrong and what to do.
    pub fn new(kind: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { kind, what: what.into(), fix: fix.into() }
    }
}
