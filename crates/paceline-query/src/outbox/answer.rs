//! What an answer means (requirement M4).

use std::time::Duration;

use super::{Delivery, Rules};
use crate::limits::RETRY_AFTER_MAX;

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The server answered.
    Response {
        /// Its HTTP status.
        status: u16,
        /// The wait it asks for.
        retry_after: Option<Duration>,
        /// The version that the server names, where it has one.
        version: Option<String>,
        /// A beginning of what it said, for people.
        text: String,
    },
    /// Not a byte of the request was sent.
    NotSent {
        /// Why.
        why: String,
    },
    /// The request may have arrived.
    Lost {
        /// Why.
        why: String,
    },
}

/// What follows from an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    Rejected {
        why: String,
    },
    Conflict {
        why: String,
        theirs: Option<String>,
    },
    /// Credentials are missing or too old: this is nobody's failure, and goes on when there are others.
    Unauthorized {
        why: String,
    },
    /// Another attempt, not before this wait.
    Again {
        counted: bool,
        wait: Option<Duration>,
        why: String,
    },
    /// Whether it was applied cannot be found out by sending it again.
    Unknown {
        why: String,
    },
}

impl Answer {
    /// Whether the attempt is known to be over.
    pub(super) fn is_settled(&self) -> bool {
        !matches!(self, Self::Lost { .. })
    }

    pub(super) fn verdict(&self, delivery: Delivery) -> Verdict {
        let (status, retry_after, version, text) = match self {
            Self::NotSent { why } => return Verdict::Again { counted: true, wait: None, why: why.clone() },
            Self::Lost { why } if delivery == Delivery::AtMostOnce => {
                return Verdict::Unknown { why: why.clone() };
            }
            Self::Lost { why } => return Verdict::Again { counted: true, wait: None, why: why.clone() },
            Self::Response { status, retry_after, version, text } => (*status, *retry_after, version, text),
        };
        let why = if text.is_empty() { format!("HTTP {status}") } else { format!("HTTP {status}: {text}") };
        let wait = retry_after.map(|wait| wait.min(RETRY_AFTER_MAX));
        match status {
            200..=299 => Verdict::Done,
            401 => Verdict::Unauthorized { why },
            408 | 425 | 429 => Verdict::Again { counted: false, wait, why },
            409 | 412 => Verdict::Conflict { why, theirs: version.clone() },
            // 503 says that the request was not worked on; what else fails in a server may have been half done.
            500..=599 if status != 503 && delivery == Delivery::AtMostOnce => Verdict::Unknown { why },
            500..=599 => Verdict::Again { counted: true, wait, why },
            _ => Verdict::Rejected { why },
        }
    }
}

impl Rules {
    /// The delay after the `nth` failure in a row, from 1: min(base·2ⁿ⁻¹, cap).
    pub(super) fn delay(&self, nth: u32) -> Duration {
        let factor = 2_u32.checked_pow(nth.saturating_sub(1)).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.cap)
    }
}
