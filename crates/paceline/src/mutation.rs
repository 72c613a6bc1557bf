//! Mutations: requests that are stored before they are acknowledged, and sent by whoever leads.

use std::fmt;

use bytes::Bytes;
use paceline_ipc::clock;
use paceline_proto::{
    id::{MutationId, Trace},
    message::{Answer, Ask, OutboxAsk, OutcomeKind},
};
use paceline_query::outbox::{Body, Delivery, OnConflict, Record, RecordError};
use paceline_runtime::Runtime;
use serde::Serialize;

use crate::{
    error::Error,
    session::{Session, block_on, new_trace},
};

/// A request that changes something at a server.
///
/// Its bytes are fixed when it is handed to [`Session::mutate`]. Credentials do not belong into it: those of the server's
/// `[http]` table in the configuration are added where it is sent, and stored nowhere.
///
/// ```no_run
/// use paceline::{Mutation, Session};
///
/// # async fn run(session: Session) -> Result<(), paceline::Error> {
/// let receipt = session
///     .mutate(
///         Mutation::patch("https://api.example.com/packages/7")
///             .json(&serde_json::json!({ "status": "checked" }))
///             .scope("packages/7"),
///     )
///     .await?; // stored on the disk: from here on it cannot be lost
/// println!("{}", receipt.outcome().await?); // whoever leads by then
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a mutation does nothing until it is handed to `Session::mutate`"]
pub struct Mutation {
    record: Record,
    broken: Option<String>,
}

impl Mutation {
    /// A request with this method.
    pub fn request(method: impl Into<String>, url: impl Into<String>) -> Self {
        let at = clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        Self { record: Record::new(method, url, at), broken: None }
    }

    /// A POST request.
    pub fn post(url: impl Into<String>) -> Self {
        Self::request("POST", url)
    }

    /// A PUT request.
    pub fn put(url: impl Into<String>) -> Self {
        Self::request("PUT", url)
    }

    /// A PATCH request.
    pub fn patch(url: impl Into<String>) -> Self {
        Self::request("PATCH", url)
    }

    /// A DELETE request.
    pub fn delete(url: impl Into<String>) -> Self {
        Self::request("DELETE", url)
    }

    /// Sends this as JSON.
    pub fn json(mut self, value: &impl Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(text) => self.record.body = Body::Json(text),
            Err(error) => self.broken = Some(error.to_string()),
        }
        self
    }

    /// Sends these bytes; their kind is said by a header.
    pub fn body(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.record.body = match std::str::from_utf8(bytes.as_ref()) {
            Ok(text) => Body::Text(text.to_owned()),
            Err(_) => Body::from(bytes.as_ref()),
        };
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.record.headers.insert(name.into(), value.into());
        self
    }

    /// Mutations of one scope are sent one after the other, in the order of their acceptance, whichever session made them.
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.record.scope = Some(scope.into());
        self
    }

    /// Higher ones go first, where 30 s of waiting count as much as one. Zero at first.
    pub fn priority(mut self, priority: i32) -> Self {
        self.record.priority = priority;
        self
    }

    /// One line for people.
    pub fn summary(mut self, summary: impl Into<String>) -> Self {
        self.record.summary = summary.into();
        self
    }

    /// The version (an `ETag`) of the value that it was made from: the server is asked to refuse it if its value is
    /// another one, and `on_conflict` says what follows then.
    pub fn base_version(mut self, version: impl Into<String>, on_conflict: OnConflict) -> Self {
        self.record.base = Some(version.into());
        self.record.on_conflict = on_conflict;
        self
    }

    /// The server does not honour idempotency keys: what may have arrived is never sent again, but parked
    /// ([`OutcomeKind::Parked`]) until [`Session::retry`] or [`Session::discard`] decides.
    pub fn at_most_once(mut self) -> Self {
        self.record.delivery = Delivery::AtMostOnce;
        self
    }

    fn payload(mut self, trace: Trace) -> Result<Bytes, Error> {
        if let Some(why) = self.broken {
            return Err(Error::Encode(why));
        }
        self.record.trace = Some(format!("00-{:032x}-{:016x}-01", trace.trace, trace.span.max(1)));
        self.record.to_payload().map_err(|error: RecordError| Error::Encode(error.to_string()))
    }
}

/// What became of a mutation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended. [`OutcomeKind::Failed`], [`OutcomeKind::Parked`] and [`OutcomeKind::Conflict`] may still change: ask
    /// again with [`Session::outcome`].
    pub kind: OutcomeKind,
    /// Why, where the server did not take it.
    pub error: Option<String>,
    /// Whether it may have been applied all the same.
    pub is_uncertain: bool,
}

impl Outcome {
    /// Whether the server took it.
    pub fn is_done(&self) -> bool {
        self.kind == OutcomeKind::Done
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            OutcomeKind::Done => "done",
            OutcomeKind::Rejected => "rejected",
            OutcomeKind::Failed => "failed",
            OutcomeKind::Conflict => "conflict",
            OutcomeKind::Parked => "parked",
            OutcomeKind::Discarded => "discarded",
        };
        f.write_str(kind)?;
        if let Some(error) = &self.error {
            write!(f, ": {error}")?;
        }
        if self.is_uncertain { f.write_str("; it may have been applied") } else { Ok(()) }
    }
}

/// A mutation that is stored: it is sent, by this primary or a later one, even if this session ends.
#[derive(Debug)]
pub struct MutationReceipt {
    id: MutationId,
    runtime: Runtime,
}

impl MutationReceipt {
    /// Its identity, to be kept: [`Session::outcome`] of any session of the group knows it, now and after a restart.
    pub fn id(&self) -> MutationId {
        self.id
    }

    /// Waits until it has an outcome, whoever leads by then. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::RuntimeDead`] when this session ends before; the mutation goes on.
    pub async fn outcome(&self) -> Result<Outcome, Error> {
        outcome(&self.runtime, self.id).await
    }

    /// [`MutationReceipt::outcome`] for callers without an executor.
    ///
    /// # Errors
    /// As there.
    pub fn outcome_blocking(&self) -> Result<Outcome, Error> {
        block_on(self.outcome())
    }
}

impl Session {
    /// Stores a mutation in the group; resolves when it is on the disk. From then on it is sent under one idempotency key, by
    /// whoever leads, until the server answers for good: no crash of this session, of the primary or of all of them loses it.
    ///
    /// Network errors and 5xx are tried 5 times in all, after 1, 2, 4, 8 s; 408, 425 and 429 as long as the server asks; other
    /// 4xx end it. Without network it waits.
    ///
    /// # Errors
    /// [`Error::Encode`] for what could never be sent; [`Error::NotAcknowledged`] where it is not known to be stored: it
    /// is submitted again while this session lives.
    pub async fn mutate(&self, mutation: Mutation) -> Result<MutationReceipt, Error> {
        let trace = new_trace();
        let seq = self.submit(mutation.payload(trace)?, trace).await?;
        Ok(MutationReceipt { id: MutationId { session: self.id(), seq }, runtime: self.runtime().clone() })
    }

    /// [`Session::mutate`] for callers without an executor.
    ///
    /// # Errors
    /// As there.
    pub fn mutate_blocking(&self, mutation: Mutation) -> Result<MutationReceipt, Error> {
        block_on(self.mutate(mutation))
    }

    /// What became of a mutation of any session, now or earlier; waits until it has an outcome.
    ///
    /// # Errors
    /// [`Error::Refused`] where the group knows of no such mutation; [`Error::RuntimeDead`].
    pub async fn outcome(&self, id: MutationId) -> Result<Outcome, Error> {
        outcome(self.runtime(), id).await
    }

    /// Sends a mutation that failed, was parked or is kept aside once more, with all its attempts. Where it may have been
    /// applied and the server cannot know it again, this may apply it twice: that is for who asks to decide.
    ///
    /// # Errors
    /// [`Error::Refused`] says why not.
    pub async fn retry(&self, id: MutationId) -> Result<(), Error> {
        self.done(Ask::Outbox(OutboxAsk::Retry(id)), new_trace()).await
    }

    /// Gives a mutation up that is not on its way.
    ///
    /// # Errors
    /// [`Error::Refused`] says why not.
    pub async fn discard(&self, id: MutationId) -> Result<(), Error> {
        self.done(Ask::Outbox(OutboxAsk::Discard(id)), new_trace()).await
    }

    /// There are other credentials: mutations that a server refused for want of them (401) are sent again.
    ///
    /// # Errors
    /// [`Error::RuntimeDead`], [`Error::Overloaded`].
    pub async fn authenticated(&self) -> Result<(), Error> {
        self.done(Ask::Outbox(OutboxAsk::Authenticated), new_trace()).await
    }
}

async fn outcome(runtime: &Runtime, id: MutationId) -> Result<Outcome, Error> {
    match runtime.ask(Ask::Outbox(OutboxAsk::Outcome(id)), new_trace()).await? {
        Answer::Outcome { kind, error, uncertain } => Ok(Outcome { kind, error, is_uncertain: uncertain }),
        Answer::Refused(why) => Err(Error::Refused(why)),
        _ => Err(Error::unexpected()),
    }
}
