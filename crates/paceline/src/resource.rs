//! Resources in code: what data cannot say, above all how to fetch.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_proto::fetch::{Declared, FailureKind, FetchFailure, FetchOutcome};
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

type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a fetcher makes of a key.
type Run = Arc<dyn Fn(FetchContext) -> Pending<Result<Bytes, FetchFailure>> + Send + Sync>;

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
    rules: Result<rules::Resource, RulesError>,
    run: Option<Run>,
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
        Self { rules: rules::Resource::new(name), run: None, stale_of: None, poll_of: None }
    }

    /// For the keys of this pattern instead: `"{name}"` stands for one segment, `".."` at the end for any more.
    pub fn key(self, segments: &[Value]) -> Self {
        let pattern = KeyPattern::new(segments);
        Self { rules: self.rules.and_then(|rules| Ok(rules.pattern(pattern?))), ..self }
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
            Box::pin(async move {
                let value = fetching.await.map_err(|FetchError(failure)| failure)?;
                let bytes = serde_json::to_vec(&value);
                bytes.map(Bytes::from).map_err(|error| {
                    FetchError::invalid(format!("the fetched value cannot be written as JSON: {error}")).0
                })
            })
        }));
        self.with(|rules| rules.source(Source::Closure))
    }

    fn with(self, change: impl FnOnce(rules::Resource) -> rules::Resource) -> Self {
        Self { rules: self.rules.map(change), ..self }
    }

    /// What the group is told, and what runs here.
    pub(crate) fn build(self, fetchers: &mut Fetchers) -> Result<Declared, Error> {
        let invalid = |error: RulesError| Error::Invalid(error.to_string());
        let rules = self.rules.map_err(invalid)?;
        rules.check().map_err(invalid)?;
        let declared = Declared {
            name: rules.name.clone(),
            rules: rules.to_bytes().into(),
            fetches: self.run.is_some(),
        };
        if let Some(run) = self.run {
            let fetcher: Arc<dyn Fetcher> = Arc::new(closure(run, self.stale_of, self.poll_of));
            fetchers.insert(rules.name, rules.pattern, fetcher);
        }
        Ok(declared)
    }
}

/// A closure as a fetcher: what its functions say of the value goes along with it.
fn closure(
    run: Run,
    stale_of: Option<OfData<Staleness>>,
    poll_of: Option<OfData<PollStep>>,
) -> impl Fn(FetchContext) -> Pending<FetchOutcome> + Send + Sync {
    move |context| {
        let (running, stale_of, poll_of) = (run(context), stale_of.clone(), poll_of.clone());
        Box::pin(async move {
            let value = match running.await {
                Ok(value) => value,
                Err(failure) => return FetchOutcome::Failed(failure),
            };
            let hints = if stale_of.is_some() || poll_of.is_some() {
                let data: Value = serde_json::from_slice(&value).unwrap_or_default();
                let hints = Hints { stale: stale_of.map(|of| of(&data)), poll: poll_of.map(|of| of(&data)) };
                hints.to_bytes().into()
            } else {
                Bytes::new()
            };
            FetchOutcome::Value { value, version: paceline_proto::id::Version::None, etag: "".into(), hints }
        })
    }
}
