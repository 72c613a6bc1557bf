//! Fetching on demand: a value as fresh as a caller wants it, whoever fetches it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_proto::{
    fetch::{CascadeLine, Fetched as Answered, RefetchType, Want},
    id::{Key, Trace},
    message::{Answer, Ask},
};
use paceline_query::key::QueryKey;
use serde::de::DeserializeOwned;

use crate::{
    error::Error,
    query::Query,
    session::{Session, block_on, new_trace},
};

/// A fetched value.
#[derive(Debug, Clone)]
pub struct Fetched<T> {
    value: T,
    raw: Bytes,
    /// It is older than asked for: the fetch failed, or took longer than the caller waits.
    pub is_stale: bool,
    /// It was held already: nothing was asked of a server.
    pub is_cached: bool,
    /// When it was found to be right, in nanoseconds of the machine's clock that never goes back.
    updated_at: paceline_proto::time::Time,
}

impl<T> Fetched<T> {
    /// The value.
    pub fn into_inner(self) -> T {
        self.value
    }

    /// The value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Its bytes, JSON.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// When it was found to be right: pushed, set or fetched. For people: the wall clock may jump.
    pub fn updated_at(&self) -> std::time::SystemTime {
        paceline_runtime::wall_of(self.updated_at)
    }
}

/// How fresh a value has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Freshness {
    max_age: Option<Duration>,
    max_wait: Option<Duration>,
}

impl Freshness {
    /// What the rules of the key call fresh.
    pub fn by_rules() -> Self {
        Self::default()
    }

    /// At most this old, whatever the rules say.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// While an older value is held, a younger one is waited for no longer than this; then the older one is taken.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = Some(wait);
        self
    }

    fn want(self) -> Want {
        Want::Fresh {
            max_age_ms: self.max_age.map(milliseconds),
            max_wait_ms: self.max_wait.map(milliseconds),
        }
    }
}

/// What came of [`Session::refetch`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refetched {
    /// Keys with a new value.
    pub ok: u64,
    /// Keys without.
    pub failed: u64,
    /// The first failures, with their keys.
    pub failures: Vec<(QueryKey, Arc<str>)>,
}

/// A line of what an invalidation would reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Steps from what was asked for.
    pub depth: u32,
    /// Why it is reached.
    pub cause: Arc<str>,
    /// The key; `None` for a resource without a key in the cache.
    pub key: Option<QueryKey>,
    /// The resource, if one has rules for the key.
    pub resource: Option<Arc<str>>,
    /// It would be fetched at once.
    pub refetches: bool,
}

impl Query {
    /// A value that is fresh enough: the one that is held, or a new one. All sessions that want the key at the same time
    /// share one fetch; whoever can fetch it does. Survives a change of primary: the next one is asked again.
    ///
    /// # Errors
    /// [`Error::Fetch`]: nothing changed. [`Error::Decode`]: the value is no `T`. [`Error::RuntimeDead`].
    pub async fn fetch<T: DeserializeOwned>(&self, fresh: Freshness) -> Result<Fetched<T>, Error> {
        self.want(fresh.want()).await
    }

    /// A new value, even if the one that is held is fresh.
    ///
    /// # Errors
    /// As [`Query::fetch`].
    pub async fn refetch<T: DeserializeOwned>(&self) -> Result<Fetched<T>, Error> {
        self.want(Want::New).await
    }

    /// Has a value fetched that is about to be needed, unless it is fresh. Does not wait for it.
    ///
    /// # Errors
    /// [`Error::Overloaded`], [`Error::RuntimeDead`].
    pub async fn prefetch(&self) -> Result<(), Error> {
        self.ask_fetch(Want::Prefetch).await.map(drop)
    }

    /// [`Query::fetch`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Query::fetch`].
    pub fn fetch_blocking<T: DeserializeOwned>(&self, fresh: Freshness) -> Result<Fetched<T>, Error> {
        block_on(self.fetch(fresh))
    }

    async fn want<T: DeserializeOwned>(&self, want: Want) -> Result<Fetched<T>, Error> {
        match self.ask_fetch(want).await? {
            Answered::Value { value: raw, updated_at, stale, cached } => {
                let value = serde_json::from_slice(&raw).map_err(|error| Error::decode(&error))?;
                Ok(Fetched { value, raw, is_stale: stale, is_cached: cached, updated_at })
            }
            Answered::Failed(failure) => Err(Error::Fetch(failure)),
            Answered::Begun => Err(Error::unexpected()),
        }
    }

    async fn ask_fetch(&self, want: Want) -> Result<Answered, Error> {
        match self.runtime.ask(Ask::Fetch { key: self.key.clone(), want }, new_trace()).await? {
            Answer::Fetched(fetched) => Ok(fetched),
            Answer::Refused(why) => Err(Error::Refused(why)),
            _ => Err(Error::unexpected()),
        }
    }
}

impl Session {
    /// Fetches again every key at or under `key` that somebody subscribes to; resolves when all are done.
    ///
    /// # Errors
    /// [`Error::Overloaded`], [`Error::RuntimeDead`]; failures of single keys are in the result.
    pub async fn refetch(&self, key: impl Into<QueryKey>) -> Result<Refetched, Error> {
        let key = key.into().to_key();
        let ask = Ask::Refetch { key, exact: false, stale: false, refetch: RefetchType::All };
        match self.runtime().ask(ask, new_trace()).await? {
            Answer::Refetched { ok, failed, failures } => {
                let readable = |(key, why): (Key, Arc<str>)| Some((QueryKey::from_key(&key).ok()?, why));
                Ok(Refetched { ok, failed, failures: failures.into_iter().filter_map(readable).collect() })
            }
            Answer::Refused(why) => Err(Error::Refused(why)),
            _ => Err(Error::unexpected()),
        }
    }

    /// What invalidating `key` would reach, through all declared dependencies. Nothing is changed.
    ///
    /// # Errors
    /// [`Error::Overloaded`], [`Error::RuntimeDead`].
    pub async fn preview(&self, key: impl Into<QueryKey>, exact: bool) -> Result<Vec<Reached>, Error> {
        match self.runtime().ask(Ask::Preview { key: key.into().to_key(), exact }, new_trace()).await? {
            Answer::Cascade(lines) => Ok(lines.into_iter().map(reached).collect()),
            Answer::Refused(why) => Err(Error::Refused(why)),
            _ => Err(Error::unexpected()),
        }
    }

    /// [`Session::preview`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Session::preview`].
    pub fn preview_blocking(&self, key: impl Into<QueryKey>, exact: bool) -> Result<Vec<Reached>, Error> {
        block_on(self.preview(key, exact))
    }

    /// [`Session::refetch`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Session::refetch`].
    pub fn refetch_blocking(&self, key: impl Into<QueryKey>) -> Result<Refetched, Error> {
        block_on(self.refetch(key))
    }

    /// Marks every key of the resources with this tag stale, and what depends on them.
    ///
    /// # Errors
    /// [`Error::Overloaded`], [`Error::RuntimeDead`].
    pub async fn invalidate_tag(&self, tag: &str) -> Result<Trace, Error> {
        let trace = new_trace();
        let ask = Ask::InvalidateTag { tag: tag.into(), refetch: RefetchType::Active };
        self.done(ask, trace).await.map(|()| trace)
    }

    /// The manual switch of the group: while it is off nothing is fetched, and retries wait without being used up.
    ///
    /// # Errors
    /// [`Error::Overloaded`], [`Error::RuntimeDead`].
    pub async fn set_online(&self, online: bool) -> Result<(), Error> {
        self.done(Ask::Online(online), new_trace()).await
    }

    pub(crate) async fn done(&self, ask: Ask, trace: Trace) -> Result<(), Error> {
        match self.runtime().ask(ask, trace).await? {
            Answer::Done => Ok(()),
            Answer::Refused(why) => Err(Error::Refused(why)),
            _ => Err(Error::unexpected()),
        }
    }
}

fn reached(line: CascadeLine) -> Reached {
    let CascadeLine { depth, cause, key, resource, refetches } = line;
    Reached { depth, cause, key: key.and_then(|key| QueryKey::from_key(&key).ok()), resource, refetches }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
