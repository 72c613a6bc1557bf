//! Queries: cached values of keys, read from the session's replica.

use std::{
    marker::PhantomData,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use paceline_proto::{
    fetch::FetchStatus,
    id::{Key, Trace, Version},
    message::Ask,
};
use paceline_query::rules::Options as QueryOptions;
use paceline_runtime::{
    Runtime,
    replica::{Cell, Snapshot},
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// A key of a session, to be subscribed to.
#[derive(Debug, Clone)]
pub struct Query {
    pub(crate) runtime: Runtime,
    pub(crate) key: Key,
    pub(crate) options: QueryOptions,
}

impl Query {
    /// What subscriptions made from here on ask for beyond the rules of the key's resource. Each asks for itself: of all
    /// that look at a key the shortest interval, the strictest staleness and the longest life count, and what one asked for
    /// ends with it.
    ///
    /// ```no_run
    /// # fn run(session: paceline::Session) {
    /// use std::time::Duration;
    /// use paceline::{QueryOptions, key};
    ///
    /// let options = QueryOptions::new().stale_time(Duration::from_secs(5)).poll_every(Duration::from_secs(2));
    /// let stock = session.query(key!["stock", 7]).options(options).subscribe::<u64>();
    /// stock.set_options(options.enabled(false)); // at run time: it shows what there is, and has nothing fetched
    /// # }
    /// ```
    #[must_use]
    pub fn options(self, options: QueryOptions) -> Self {
        Self { options, ..self }
    }

    /// Subscribes. Synchronous: the returned handle is the subscription, dropping it unsubscribes. A value that the
    /// session already holds is shown within a turn of its runtime, any other when the owner's snapshot arrives.
    pub fn subscribe<T: DeserializeOwned>(&self) -> Subscription<T> {
        let options = self.options;
        let cell = self.runtime.subscribe(&self.key, options);
        let watch = cell.watch();
        let shown = Mutex::new(Arc::new(View::new(cell.load())));
        let options = Mutex::new(options);
        let interest = Interest { runtime: self.runtime.clone(), key: self.key.clone(), options };
        Subscription { cell, watch, seen: 0, shown, interest }
    }
}

impl Query {
    /// The value as the primary has it now, for callers that do not want to follow it.
    ///
    /// # Errors
    /// [`Error::Overloaded`], [`Error::RuntimeDead`]. Waits as long as no session leads.
    pub async fn read<T: DeserializeOwned>(&self) -> Result<Arc<View<T>>, Error> {
        let subscription = self.subscribe();
        // Everything the owner did before a Sync is in the replica when that is answered.
        self.runtime.ask(Ask::Sync, Trace::NONE).await?;
        Ok(subscription.current())
    }
}

/// Ends the interest when dropped.
#[derive(Debug)]
struct Interest {
    runtime: Runtime,
    key: Key,
    options: Mutex<QueryOptions>,
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.runtime.unsubscribe(&self.key, self.options.get_mut());
    }
}

/// A subscription to one key. `T` is decoded once per version, on the reader's side, when it is first looked at.
#[derive(Debug)]
pub struct Subscription<T> {
    cell: Arc<Cell>,
    watch: tokio_watch::Receiver,
    seen: u64,
    shown: Mutex<Arc<View<T>>>,
    interest: Interest,
}

/// The one place that names the watch type.
mod tokio_watch {
    pub(super) type Receiver = paceline_runtime::replica::Watch;
}

impl<T> Subscription<T> {
    /// What it asks for.
    pub fn options(&self) -> QueryOptions {
        *self.interest.options.lock()
    }

    /// Asks for something else from here on: at run time, as a user's preference or a window's state wants it.
    pub fn set_options(&self, options: QueryOptions) {
        let Interest { runtime, key, options: current } = &self.interest;
        let mut current = current.lock();
        runtime.change_options(key, &current, options);
        *current = options;
    }
}

impl<T: DeserializeOwned> Subscription<T> {
    /// The latest view. Never blocks and never fails; after the runtime's death it is the last view.
    pub fn current(&self) -> Arc<View<T>> {
        let snapshot = self.cell.load();
        let mut shown = self.shown.lock();
        if !Arc::ptr_eq(&shown.snapshot, &snapshot) {
            *shown = Arc::new(View::new(snapshot));
        }
        shown.clone()
    }

    /// Waits for a view that this subscription has not returned yet; completes at once on the first call if a value is
    /// there. Always the latest, never a backlog. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::RuntimeDead`] when the runtime ended.
    pub async fn changed(&mut self) -> Result<Arc<View<T>>, Error> {
        loop {
            let generation = *self.watch.borrow_and_update();
            if generation != self.seen {
                self.seen = generation;
                return Ok(self.current());
            }
            let death = self.interest.runtime.death();
            paceline_runtime::replica::changed_or_dead(&mut self.watch, death)
                .await
                .map_err(|end| Error::dead(&end))?;
        }
    }

    /// [`Subscription::changed`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Subscription::changed`].
    pub fn changed_blocking(&mut self) -> Result<Arc<View<T>>, Error> {
        crate::session::block_on(self.changed())
    }
}

/// State of the data of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataStatus {
    /// No value yet.
    Pending,
    /// A value is there.
    Success,
    /// The last fetch failed. A value may be there all the same.
    Error,
}

/// One atomic snapshot of a query.
#[derive(Debug)]
pub struct View<T> {
    snapshot: Arc<Snapshot>,
    decoded: OnceLock<Result<T, Error>>,
    of: PhantomData<T>,
}

impl<T> View<T> {
    fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot, decoded: OnceLock::new(), of: PhantomData }
    }

    /// The bytes of the value, JSON, with the layers over it; empty before the first value.
    pub fn raw(&self) -> &[u8] {
        self.snapshot.value.as_deref().unwrap_or_default()
    }

    /// Whether a value is there.
    pub fn status(&self) -> DataStatus {
        match &self.snapshot {
            snapshot if snapshot.state.error.is_some() => DataStatus::Error,
            snapshot if snapshot.value.is_some() => DataStatus::Success,
            _ => DataStatus::Pending,
        }
    }

    /// No value yet, marked stale by an invalidation since the value was installed, or stale by the rules of the key.
    /// Changes of it are told like changes of the value.
    pub fn is_stale(&self) -> bool {
        self.snapshot.base.is_none() || self.snapshot.invalidated || self.snapshot.state.stale
    }

    /// Optimistic layers in the value: changes that are shown and not done. See
    /// [`Session::optimistic`](crate::Session::optimistic).
    pub fn pending(&self) -> usize {
        self.snapshot.pending
    }

    /// Whether a fetch of the key is under way in the group, and what it waits for.
    pub fn fetch_status(&self) -> FetchStatus {
        self.snapshot.state.fetch
    }

    /// Whether nobody waits for the fetch under way.
    pub fn is_background(&self) -> bool {
        self.snapshot.state.background
    }

    /// Failed attempts since the last value.
    pub fn failures(&self) -> u32 {
        self.snapshot.state.failures
    }

    /// Why the last fetch that somebody waited for failed. A failure in the background is not shown here.
    pub fn fetch_error(&self) -> Option<&str> {
        self.snapshot.state.error.as_deref()
    }

    /// When the value below all layers was found to be right: pushed, set or fetched.
    pub fn updated_at(&self) -> Option<SystemTime> {
        self.snapshot.updated_at
    }

    /// The server's version of the value below all layers, where it gives one.
    pub fn version(&self) -> Option<&Version> {
        self.snapshot.place.as_ref().map(|place| &place.version)
    }
}

impl<T: DeserializeOwned> View<T> {
    /// The value. `None` before the first one, and when it does not decode as `T`: see [`View::error`].
    pub fn data(&self) -> Option<&T> {
        self.decoded()?.as_ref().ok()
    }

    /// Why the value does not decode as `T`. Other subscribers, with other types, are untouched.
    pub fn error(&self) -> Option<&Error> {
        self.decoded()?.as_ref().err()
    }

    fn decoded(&self) -> Option<&Result<T, Error>> {
        let value = self.snapshot.value.as_ref()?;
        Some(
            self.decoded.get_or_init(|| serde_json::from_slice(value).map_err(|error| Error::decode(&error))),
        )
    }
}
