//! Fetching one value: what a fetcher is given, and what it hands back.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use paceline_proto::{
    fetch::{FailureKind, FetchFailure, FetchOutcome},
    id::{Epoch, Trace},
};
use paceline_query::{condition::Bindings, key::QueryKey};

/// What one attempt is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct FetchContext {
    /// What to fetch.
    pub key: QueryKey,
    /// What the names in the resource's keys are bound to.
    pub bound: Bindings,
    /// What the server gave with the value that is held; empty without one.
    pub etag: Arc<str>,
    /// The attempt is given up after so long.
    pub deadline: Duration,
    /// Nobody waits for it.
    pub background: bool,
    /// The span of the attempt; a request upstream carries it.
    pub trace: Trace,
    /// The reign whose owner asks.
    pub epoch: Epoch,
}

/// A fetch under way. Dropped, it is given up.
pub type Fetching = Pin<Box<dyn Future<Output = FetchOutcome> + Send>>;

/// Fetches the values of one resource.
pub trait Fetcher: Send + Sync {
    /// Makes one attempt. Runs where a panic ends this attempt alone.
    fn fetch(&self, context: FetchContext) -> Fetching;
}

impl fmt::Debug for dyn Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dyn Fetcher")
    }
}

impl<F, T> Fetcher for F
where
    F: Fn(FetchContext) -> T + Send + Sync,
    T: Future<Output = FetchOutcome> + Send + 'static,
{
    fn fetch(&self, context: FetchContext) -> Fetching {
        Box::pin(self(context))
    }
}

/// A failure with nothing but its kind and words.
pub fn failure(kind: FailureKind, why: impl Into<String>) -> FetchFailure {
    FetchFailure { kind, why: why.into(), retry_after_ms: None, detail: bytes::Bytes::new() }
}
