//! A joined session.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use bytes::Bytes;
use paceline_proto::{
    id::{Key, SessionId, Stream, Trace},
    limits::VALUE_MAX,
    message::{OpOutcome, Operation, SubmitOutcome},
    presence::Presence,
};
use paceline_query::{key::QueryKey, patch::Patch, rules::Options as QueryOptions};
use paceline_runtime::{End, JoinState, Runtime};
use serde::{Serialize, de::DeserializeOwned};

use crate::{builder::Builder, error::Error, events::Events, group::Group, layer::Layer, query::Query};

/// How often `update` is rerun on a conflict.
const UPDATE_ATTEMPTS: usize = 8;

/// What becomes of a mutation that is not stored yet.
const KEPT: &str = "this session keeps it and submits it again; it is lost if the session ends before";

/// A session of a group. Cheap to clone, `Send + Sync`, usable from any executor. Dropping the last clone lets the
/// session leave in the background; [`Session::leave`] waits for it.
#[derive(Debug, Clone)]
pub struct Session {
    runtime: Runtime,
}

/// How a volatile operation was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// No heir holds the operation: the primary's death alone would lose it.
    pub volatile: bool,
    /// The cause that its effects are traced by, in every process.
    pub trace: Trace,
}

impl Session {
    /// Begins a session of the group `name` (`[a-z0-9][a-z0-9._-]{0,63}`).
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    pub(crate) async fn joined(runtime: Runtime) -> Result<Self, Error> {
        let mut join = runtime.observer().join();
        loop {
            let state = join.borrow_and_update().clone();
            match state {
                JoinState::Joined(_) => return Ok(Self { runtime }),
                JoinState::Blocked(why) => {
                    runtime.leave().await;
                    return Err(Error::blocked(why));
                }
                JoinState::Joining => {}
            }
            paceline_runtime::replica::changed_or_dead(&mut join, runtime.death())
                .await
                .map_err(|end| if end == End::Left { Error::ToldToLeave } else { Error::dead(&end) })?;
        }
    }

    /// This session's id.
    pub fn id(&self) -> SessionId {
        self.runtime.session()
    }

    /// The query of a key.
    pub fn query(&self, key: impl Into<QueryKey>) -> Query {
        let options = QueryOptions::default();
        Query { runtime: self.runtime.clone(), key: key.into().to_key(), options }
    }

    /// The ordered stream of a name.
    pub fn events(&self, stream: &str) -> Events {
        Events { runtime: self.runtime.clone(), stream: Stream::from(stream) }
    }

    /// The group.
    pub fn group(&self) -> Group {
        Group { runtime: self.runtime.clone() }
    }

    /// Sets the value of a key for the whole group. Not durable: it lives as long as one current heir or the primary
    /// does; the receipt says whether an heir holds it. Survives one change of primary unanswered: it is re-issued.
    ///
    /// # Errors
    /// [`Error::Encode`], [`Error::Rejected`], [`Error::Overloaded`]: nothing changed. [`Error::RuntimeDead`]: unknown.
    pub async fn set(&self, key: impl Into<QueryKey>, value: &impl Serialize) -> Result<Receipt, Error> {
        let operation = Operation::Set { key: key.into().to_key(), value: encode(value)? };
        self.operate(operation).await
    }

    /// Folds a patch onto the value of a key, at the primary, so that two sessions' patches both apply.
    ///
    /// # Errors
    /// As [`Session::set`]; [`Error::Rejected`] also when the patch does not fit the value.
    pub async fn merge(&self, key: impl Into<QueryKey>, patch: Patch) -> Result<Receipt, Error> {
        let operation = Operation::Merge { key: key.into().to_key(), patch: Bytes::from(patch.to_bytes()) };
        self.operate(operation).await
    }

    /// Computes the value from the one there is. `f` runs here, on the value as this session knows it, without layers, which
    /// would otherwise become part of it for good; if another session changed it meanwhile, `f` is run again on the newer
    /// one, at most eight times.
    ///
    /// # Errors
    /// [`Error::Contended`] after eight conflicts, [`Error::Decode`] when the value is no `T`; else as
    /// [`Session::set`].
    pub async fn update<T: Serialize + DeserializeOwned>(
        &self,
        key: impl Into<QueryKey>,
        f: impl Fn(Option<T>) -> T,
    ) -> Result<Receipt, Error> {
        let key = key.into().to_key();
        let interest = Held::new(&self.runtime, &key).await?;
        for _ in 0..UPDATE_ATTEMPTS {
            let seen = interest.cell.load();
            let old = seen
                .base
                .as_deref()
                .map(|bytes| serde_json::from_slice(bytes).map_err(|error| Error::decode(&error)))
                .transpose()?;
            let value = encode(&f(old))?;
            let operation = Operation::CompareSet { key: key.clone(), base: seen.place.clone(), value };
            let trace = new_trace();
            match self.runtime.op(operation, trace).await? {
                OpOutcome::Applied { volatile, .. } => return Ok(Receipt { volatile, trace }),
                OpOutcome::Rejected(why) => return Err(Error::Rejected(why)),
                // Whatever won is in the replica after everything before a Sync arrived.
                OpOutcome::Conflict => interest.sync().await?,
            }
        }
        Err(Error::Contended)
    }

    /// Shows in all sessions what a change that is under way would make of a key, before it is done; this session shows it
    /// when this returns. The value itself stays what it is until [`Layer::commit`]; [`Layer::roll_back`], or dropping the
    /// layer, shows it again, without regard to layers that others laid before or after.
    ///
    /// Layers survive the death of the primary. Those of a session that leaves or dies are taken back.
    ///
    /// ```no_run
    /// use paceline::{Patch, Session, key};
    ///
    /// # async fn put(_: &str, _: &serde_json::Value) -> Result<serde_json::Value, std::io::Error> { unimplemented!() }
    /// async fn check(session: &Session) -> Result<(), Box<dyn std::error::Error>> {
    ///     let change = serde_json::json!({ "status": "checked" });
    ///     let layer = session.optimistic(key!["packages", 7], Patch::merge(&change)).await?;
    ///     match put("https://api.example.com/packages/7", &change).await {
    ///         Ok(package) => drop(layer.commit_with(&package).await?), // what the server made of it
    ///         Err(_) => layer.roll_back(),
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`Error::Rejected`] where a frame could not carry it, [`Error::Overloaded`]: nothing changed.
    /// [`Error::RuntimeDead`].
    pub async fn optimistic(&self, key: impl Into<QueryKey>, patch: Patch) -> Result<Layer, Error> {
        Layer::lay(&self.runtime, key.into().to_key(), Bytes::from(patch.to_bytes())).await
    }

    /// [`Session::optimistic`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Session::optimistic`].
    pub fn optimistic_blocking(&self, key: impl Into<QueryKey>, patch: Patch) -> Result<Layer, Error> {
        block_on(self.optimistic(key, patch))
    }

    /// Marks every key at or under `key` stale.
    ///
    /// # Errors
    /// As [`Session::set`].
    pub async fn invalidate(&self, key: impl Into<QueryKey>) -> Result<Receipt, Error> {
        self.operate(Operation::Invalidate { key: key.into().to_key(), exact: false }).await
    }

    /// Marks exactly `key` stale.
    ///
    /// # Errors
    /// As [`Session::set`].
    pub async fn invalidate_exact(&self, key: impl Into<QueryKey>) -> Result<Receipt, Error> {
        self.operate(Operation::Invalidate { key: key.into().to_key(), exact: true }).await
    }

    /// [`Session::set`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Session::set`].
    pub fn set_blocking(&self, key: impl Into<QueryKey>, value: &impl Serialize) -> Result<Receipt, Error> {
        block_on(self.set(key, value))
    }

    /// [`Session::merge`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Session::merge`].
    pub fn merge_blocking(&self, key: impl Into<QueryKey>, patch: Patch) -> Result<Receipt, Error> {
        block_on(self.merge(key, patch))
    }

    /// [`Session::update`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Session::update`].
    pub fn update_blocking<T: Serialize + DeserializeOwned>(
        &self,
        key: impl Into<QueryKey>,
        f: impl Fn(Option<T>) -> T,
    ) -> Result<Receipt, Error> {
        block_on(self.update(key, f))
    }

    /// [`Session::invalidate`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Session::invalidate`].
    pub fn invalidate_blocking(&self, key: impl Into<QueryKey>) -> Result<Receipt, Error> {
        block_on(self.invalidate(key))
    }

    /// Tells the group what this session shows to its user.
    pub fn presence(&self, presence: Presence) {
        self.runtime.presence(presence);
    }

    /// Leaves politely: a primary hands over first, nothing is refused meanwhile. Resolves when everything is released.
    ///
    /// # Errors
    /// [`Error::RuntimeDead`] when the runtime had ended for another reason.
    pub async fn leave(self) -> Result<(), Error> {
        match self.runtime.leave().await {
            End::Left => Ok(()),
            end @ (End::Panicked(_) | End::Failed(_)) => Err(Error::dead(&end)),
        }
    }

    /// Leaves if this session leads, nobody else is in the group, and its queue holds nothing: first nobody is welcomed
    /// any more, then it is looked whether that is so. False: the session stays as it was.
    pub async fn leave_if_alone(&self) -> bool {
        self.runtime.leave_if_alone().await
    }

    /// [`Session::leave`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Session::leave`].
    pub fn leave_blocking(self) -> Result<(), Error> {
        block_on(self.leave())
    }

    /// Stores bytes in the group's queue database; resolves when they are durable. The base of the outbox, kept for
    /// tests of it.
    #[doc(hidden)]
    pub async fn submit_raw(&self, payload: impl Into<Bytes>) -> Result<u64, Error> {
        let payload = payload.into();
        if payload.len() > VALUE_MAX {
            return Err(Error::Encode(format!(
                "{} bytes are more than the {VALUE_MAX} allowed",
                payload.len()
            )));
        }
        self.submit(payload, new_trace()).await
    }

    /// Stores a mutation; resolves with its number when it is durable.
    pub(crate) async fn submit(&self, payload: Bytes, trace: Trace) -> Result<u64, Error> {
        let (seq, outcome) = self.runtime.submit(payload, trace).await?;
        let refuse = |state_unknown, why| Err(Error::NotAcknowledged { seq, state_unknown, why });
        match outcome {
            SubmitOutcome::Acknowledged => Ok(seq),
            SubmitOutcome::HashMismatch => refuse(false, "another payload is stored under its id".to_owned()),
            SubmitOutcome::Hole { expected } => refuse(false, format!("mutation {expected} is missing")),
            SubmitOutcome::Moved => refuse(true, "the primary was replaced".to_owned()),
            SubmitOutcome::Unknown(why) => refuse(true, format!("{why}; {KEPT}")),
            SubmitOutcome::Busy => {
                refuse(true, format!("the queue is full, and sends nothing or too little; {KEPT}"))
            }
        }
    }

    /// The runtime, for tools that look inside.
    #[doc(hidden)]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    async fn operate(&self, operation: Operation) -> Result<Receipt, Error> {
        let trace = new_trace();
        received(self.runtime.op(operation, trace).await?, trace)
    }
}

pub(crate) fn received(outcome: OpOutcome, trace: Trace) -> Result<Receipt, Error> {
    match outcome {
        OpOutcome::Applied { volatile, .. } => Ok(Receipt { volatile, trace }),
        OpOutcome::Rejected(why) => Err(Error::Rejected(why)),
        OpOutcome::Conflict => Err(Error::Contended),
    }
}

/// A key held subscribed during an `update`.
struct Held<'a> {
    runtime: &'a Runtime,
    key: &'a Key,
    cell: Arc<paceline_runtime::replica::Cell>,
}

impl<'a> Held<'a> {
    async fn new(runtime: &'a Runtime, key: &'a Key) -> Result<Self, Error> {
        let held = Self { runtime, key, cell: runtime.subscribe(key, QueryOptions::default()) };
        held.sync().await?;
        Ok(held)
    }

    /// Waits until everything the owner did before now is in the replica.
    async fn sync(&self) -> Result<(), Error> {
        self.runtime.ask(paceline_proto::message::Ask::Sync, Trace::NONE).await?;
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.runtime.unsubscribe(self.key, &QueryOptions::default());
    }
}

pub(crate) fn encode(value: &impl Serialize) -> Result<Bytes, Error> {
    let bytes = serde_json::to_vec(value).map_err(|error| Error::Encode(error.to_string()))?;
    if bytes.len() > VALUE_MAX {
        return Err(Error::Encode(format!("{} bytes are more than the {VALUE_MAX} allowed", bytes.len())));
    }
    Ok(Bytes::from(bytes))
}

/// A cause of its own for a caller's request.
pub(crate) fn new_trace() -> Trace {
    Trace { trace: paceline_runtime::unique(), span: 0 }
}

/// Runs a future on the calling thread.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
