//! Resources in code: what data cannot say, above all how to fetch.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_proto::{
    fetch::{Declared, FailureKind, FetchFailure, FetchOutcome},
    id::Version,
};
use paceline_query::{
    key::QueryKey,
    pattern::KeyPattern,
    rules::{
        self, Dependency, Hints, NetworkMode, Poll, PollStep, Retry, RulesError, Source, Staleness, Triggers,
    },
};
use paceline_runtime::fetcher::Fetchers;
use paceline_upstream::fetch::{FetchContext, Fetcher};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::error::Error;

/// What a fetcher is asked: one key, once.
#[derive(Debug, Clone)]
pub struct Fetch {
    context: FetchContext,
}

impl Fetch {
    /// The key.
    pub fn key(&self) -> &QueryKey {
        &self.context.key
    }

    /// What a name in the resource's keys is bound to.
    pub fn bound(&self, name: &str) -> Option<&Value> {
        self.context.bound.get(name)
    }

    /// The segment at a place of the key, from 0.
    ///
    /// # Errors
    /// [`FetchError`] when the key has no such segment, or it is no `T`: the attempt fails and is not repeated.
    pub fn segment<T: DeserializeOwned>(&self, at: usize) -> Result<T, FetchError> {
        let invalid =
            |why: String| FetchError::invalid(format!("the segment {at} of {}: {why}", self.context.key));
        let segment = self.context.key.segments().into_iter().nth(at);
        let segment = segment.ok_or_else(|| invalid("there is none".to_owned()))?;
        serde_json::from_value(segment).map_err(|error| invalid(error.to_string()))
    }

    /// The number at a place of the key, from 0.
    ///
    /// # Errors
    /// As [`Fetch::segment`].
    pub fn segment_u64(&self, at: usize) -> Result<u64, FetchError> {
        self.segment(at)
    }

    /// The text at a place of the key, from 0.
    ///
    /// # Errors
    /// As [`Fetch::segment`].
    pub fn segment_str(&self, at: usize) -> Result<String, FetchError> {
        self.segment(at)
    }

    /// What the server gave with the value that is held, see [`Found::etag`]; empty without one.
    pub fn etag(&self) -> &str {
        &self.context.etag
    }

    /// Nobody waits for it.
    pub fn is_background(&self) -> bool {
        self.context.background
    }

    /// The attempt is given up after so long.
    pub fn deadline(&self) -> Duration {
        self.context.deadline
    }

    /// W3C Trace Context for requests upstream.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-01", self.context.trace.trace, self.context.trace.span)
    }
}

/// Why a fetcher brings no value. Any error becomes one, by `?`: it counts as passing and is retried.
#[derive(Debug, Clone)]
pub struct FetchError(FetchFailure);

impl FetchError {
    /// A failure that may pass: the attempt is repeated as the rules say.
    pub fn passing(why: impl Into<String>) -> Self {
        Self::of(FailureKind::Refused(1), why)
    }

    /// A failure that another attempt would not change.
    pub fn invalid(why: impl Into<String>) -> Self {
        Self::of(FailureKind::Invalid, why)
    }

    /// The server could not be reached.
    pub fn network(why: impl Into<String>) -> Self {
        Self::of(FailureKind::Network, why)
    }

    /// The server answered with this HTTP status. 408, 425, 429 and 5xx are retried, others are not.
    pub fn status(status: u16, why: impl Into<String>) -> Self {
        Self::of(FailureKind::Status(status), why)
    }

    /// A command, or the application, said no with this code.
    pub fn refused(code: i32, why: impl Into<String>) -> Self {
        Self::of(FailureKind::Refused(code), why)
    }

    /// What came in place of a value, for who asked: at most the bytes of a value.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Vec<u8>>) -> Self {
        self.0.detail = Bytes::from(detail.into());
        self
    }

    /// The server asks everybody to wait so long: no session of the group asks it for this resource before that.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after_ms = Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        self
    }

    fn of(kind: FailureKind, why: impl Into<String>) -> Self {
        Self(FetchFailure { kind, why: why.into(), retry_after_ms: None, detail: Bytes::new() })
    }
}

impl<E: std::error::Error> From<E> for FetchError {
    fn from(error: E) -> Self {
        Self::passing(error.to_string())
    }
}

type OfData<T> = Arc<dyn Fn(&Value) -> T + Send + Sync>;

/// What a conditional fetch found.
#[derive(Debug, Clone)]
#[must_use]
pub struct Found<T>(Option<(T, String)>);

impl<T> Found<T> {
    /// A value.
    pub fn value(value: T) -> Self {
        Self(Some((value, String::new())))
    }

    /// The value that is held is still right.
    pub fn unchanged() -> Self {
        Self(None)
    }

    /// The server's validator for the value: what [`Fetch::etag`] gives to the next attempt.
    pub fn etag(self, etag: impl Into<String>) -> Self {
        Self(self.0.map(|(value, _)| (value, etag.into())))
    }
}

/// A resource: named rules for keys, and how to fetch them. Rules belong to the group, those of the first session that
/// declares the name count; a closure stays in the process that registers it, and any session's question may lead to it.
///
/// ```
/// use std::time::Duration;
/// use paceline::{Resource, Session};
///
/// let builder = Session::builder("warehouse").resource(
///     Resource::new("packages")
///         .stale_time(Duration::from_secs(120))
///         .fetch(|cx| async move { Ok(format!("package {}", cx.segment_u64(1)?)) }),
/// );
/// # drop(builder);
/// ```
#[must_use]
pub struct Resource {
    name: String,
    /// It names its keys.
    keyed: bool,
    rules: Result<rules::Resource, RulesError>,
    run: Option<Arc<dyn Fetcher>>,
    stale_of: Option<OfData<Staleness>>,
    poll_of: Option<OfData<PollStep>>,
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource").field("rules", &self.rules).field("fetches", &self.run.is_some()).finish()
    }
}

impl Resource {
    /// A resource for the keys that begin with its name: `packages` for `["packages", ..]`, `rule.search` for
    /// `["rule", "search", ..]`. What it leaves open comes from less specific resources, then from the defaults.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            keyed: false,
            rules: rules::Resource::new(name),
            run: None,
            stale_of: None,
            poll_of: None,
        }
    }

    /// For the keys of this pattern instead: `"{name}"` stands for one segment, `".."` at the end for any more.
    pub fn key(self, segments: &[Value]) -> Self {
        let pattern = KeyPattern::new(segments);
        Self { keyed: true, rules: self.rules.and_then(|rules| Ok(rules.pattern(pattern?))), ..self }
    }

    /// Values are stale at this age. Zero: at once.
    pub fn stale_time(self, age: Duration) -> Self {
        self.stale(if age.is_zero() { Staleness::Always } else { Staleness::After(age) })
    }

    /// When values turn stale.
    pub fn stale(self, stale: Staleness) -> Self {
        self.with(|rules| rules.stale(stale))
    }

    /// When a value turns stale, as a function of it. Asked here, of what this session fetched.
    pub fn stale_of(mut self, stale: impl Fn(&Value) -> Staleness + Send + Sync + 'static) -> Self {
        self.stale_of = Some(Arc::new(stale));
        self
    }

    /// Values that nobody subscribes to are removed after so long; `Duration::MAX`: never.
    pub fn gc_time(self, age: Duration) -> Self {
        self.with(|rules| rules.gc(age))
    }

    /// What refetches a stale value.
    pub fn refetch_on(self, triggers: Triggers) -> Self {
        self.with(|rules| rules.refetch_on(triggers))
    }

    /// Whether requests wait for the network.
    pub fn network(self, mode: NetworkMode) -> Self {
        self.with(|rules| rules.network(mode))
    }

    /// Attempts of a fetch that somebody waits for.
    pub fn retry(self, retry: Retry) -> Self {
        self.with(|rules| rules.retry(retry))
    }

    /// A tag to invalidate it by.
    pub fn tag(self, tag: &str) -> Self {
        self.with(|rules| rules.tag(tag))
    }

    /// It is stale when what lies at or under this key is. `"{name}"` in a segment stands for what its own key binds.
    pub fn depends_on(self, key: &[Value]) -> Self {
        self.with(|rules| rules.depends_on(Dependency::Key(key.to_vec())))
    }

    /// It is stale when this tag is invalidated.
    pub fn depends_on_tag(self, tag: &str) -> Self {
        self.with(|rules| rules.depends_on(Dependency::tag(tag)))
    }

    /// An attempt is given to another session after so long.
    pub fn deadline(self, deadline: Duration) -> Self {
        self.with(|rules| rules.deadline(deadline))
    }

    /// Polled so often while somebody subscribes and some session is visible.
    pub fn poll_every(self, interval: Duration) -> Self {
        self.poll(Poll::every(interval))
    }

    /// How it is polled.
    pub fn poll(self, poll: Poll) -> Self {
        self.with(|rules| rules.poll(poll))
    }

    /// How it is polled, as a function of the value. Asked here, of what this session fetched.
    pub fn poll_of(mut self, poll: impl Fn(&Value) -> PollStep + Send + Sync + 'static) -> Self {
        self.poll_of = Some(Arc::new(poll));
        self
    }

    /// Kept fresh while no session is visible.
    pub fn critical(self) -> Self {
        self.with(rules::Resource::critical)
    }

    /// A fetch is given up when nobody looks at its key any more.
    pub fn cancellable(self) -> Self {
        self.with(rules::Resource::cancellable)
    }

    /// How to fetch. Runs on a thread of its own in this process, whoever of the group asks; dropped when it is given up.
    pub fn fetch<T, F, R>(mut self, fetch: F) -> Self
    where
        T: Serialize,
        R: Future<Output = Result<T, FetchError>> + Send + 'static,
        F: Fn(Fetch) -> R + Send + Sync + 'static,
    {
        self.run = Some(Arc::new(move |context| {
            let fetching = fetch(Fetch { context });
            async move { outcome(fetching.await.map(Found::value)) }
        }));
        self.with(|rules| rules.source(Source::Closure))
    }

    /// How to fetch from a server that can tell whether the value that is held is still right; as [`Resource::fetch`] else.
    ///
    /// ```
    /// # struct Reply { status: u16, body: String, etag: String }
    /// # async fn get(_: &str) -> Result<Reply, std::io::Error> { unimplemented!() }
    /// use paceline::{Found, Resource};
    ///
    /// let resource = Resource::new("packages").fetch_conditional(|cx| async move {
    ///     let reply = get(cx.etag()).await?;
    ///     Ok(match reply.status {
    ///         304 => Found::unchanged(),
    ///         _ => Found::value(reply.body).etag(reply.etag),
    ///     })
    /// });
    /// # drop(resource);
    /// ```
    pub fn fetch_conditional<T, F, R>(mut self, fetch: F) -> Self
    where
        T: Serialize,
        R: Future<Output = Result<Found<T>, FetchError>> + Send + 'static,
        F: Fn(Fetch) -> R + Send + Sync + 'static,
    {
        self.run = Some(Arc::new(move |context| {
            let fetching = fetch(Fetch { context });
            async move { outcome(fetching.await) }
        }));
        self.with(|rules| rules.source(Source::Closure))
    }

    fn with(self, change: impl FnOnce(rules::Resource) -> rules::Resource) -> Self {
        Self { rules: self.rules.map(change), ..self }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What the group is told, and what runs here. What is left open comes from what a configuration declares under the same
    /// name.
    pub(crate) fn build(
        self,
        declared: Option<rules::Resource>,
        fetchers: &mut Fetchers,
    ) -> Result<Declared, Error> {
        let invalid = |error: RulesError| Error::Invalid(error.to_string());
        let mut rules = self.rules.map_err(invalid)?;
        if let Some(declared) = declared {
            rules = over(rules, declared, self.keyed);
        }
        rules.check().map_err(invalid)?;
        let fetcher = self.run.or_else(|| fetchers.get(&rules.name));
        let declared =
            Declared { name: rules.name.clone(), rules: rules.to_bytes().into(), fetches: fetcher.is_some() };
        if let Some(fetcher) = fetcher {
            fetchers.insert(rules.name, rules.pattern, hinting(fetcher, self.stale_of, self.poll_of));
        }
        Ok(declared)
    }
}

/// What the engine is told of a result.
fn outcome<T: Serialize>(found: Result<Found<T>, FetchError>) -> FetchOutcome {
    let (value, etag) = match found {
        Ok(Found(Some(found))) => found,
        Ok(Found(None)) => return FetchOutcome::NotModified,
        Err(FetchError(failure)) => return FetchOutcome::Failed(failure),
    };
    match serde_json::to_vec(&value) {
        Ok(value) => FetchOutcome::Value {
            value: value.into(),
            version: Version::None,
            etag: etag.into(),
            hints: Bytes::new(),
        },
        Err(error) => {
            let why = format!("the fetched value cannot be written as JSON: {error}");
            FetchOutcome::Failed(FetchError::invalid(why).0)
        }
    }
}

/// Rules in code over those of a configuration. `keyed`: the code names the keys.
fn over(coded: rules::Resource, declared: rules::Resource, keyed: bool) -> rules::Resource {
    fn or<T>(coded: Vec<T>, declared: Vec<T>) -> Vec<T> {
        if coded.is_empty() { declared } else { coded }
    }
    // How long a fetch takes, and whether it can be given up, are properties of who fetches.
    let (cancellable, deadline) = match (&coded.source, &declared.source) {
        (None, _) => (coded.cancellable || declared.cancellable, coded.deadline.or(declared.deadline)),
        (Some(_), Some(Source::Closure)) => (coded.cancellable, coded.deadline.or(declared.deadline)),
        (Some(_), None | Some(Source::None | Source::Server(_))) => (coded.cancellable, coded.deadline),
    };
    rules::Resource {
        pattern: if keyed { coded.pattern } else { declared.pattern },
        stale: coded.stale.or(declared.stale),
        gc: coded.gc.or(declared.gc),
        refetch_on: coded.refetch_on.or(declared.refetch_on),
        network: coded.network.or(declared.network),
        retry: coded.retry.or(declared.retry),
        tags: or(coded.tags, declared.tags),
        depends_on: or(coded.depends_on, declared.depends_on),
        source: coded.source.or(declared.source),
        deadline,
        poll: coded.poll.or(declared.poll),
        critical: coded.critical || declared.critical,
        cancellable,
        name: coded.name,
    }
}

/// A fetcher whose values are told along with what the functions say of them.
fn hinting(
    fetcher: Arc<dyn Fetcher>,
    stale_of: Option<OfData<Staleness>>,
    poll_of: Option<OfData<PollStep>>,
) -> Arc<dyn Fetcher> {
    if stale_of.is_none() && poll_of.is_none() {
        return fetcher;
    }
    Arc::new(move |context| {
        let (fetching, stale_of, poll_of) = (fetcher.fetch(context), stale_of.clone(), poll_of.clone());
        async move {
            let mut found = fetching.await;
            if let FetchOutcome::Value { value, hints, .. } = &mut found {
                let data: Value = serde_json::from_slice(value).unwrap_or_default();
                let said = Hints { stale: stale_of.map(|of| of(&data)), poll: poll_of.map(|of| of(&data)) };
                *hints = said.to_bytes().into();
            }
            found
        }
    })
}
