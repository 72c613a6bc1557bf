//! Fetcher actor: runs what this session can fetch, for whoever leads. Each attempt has a deadline, can be given up, and
//! hurts nobody when it panics.
//!
//! Fetchers are code of applications, so they run on a thread of their own: one that blocks holds up other fetches of its
//! session, and never the session's heartbeat.

use std::{collections::BTreeMap, fmt, io, sync::Arc, thread, time::Duration};

use bytes::Bytes;
use paceline_proto::{
    event::Event,
    fetch::{FailureKind, FetchFailure, FetchId, FetchOutcome, FetchRequest},
    id::{Epoch, Key, Trace},
    limits::{FETCH_TEXT_MAX, FETCHES_MAX, FETCHES_RUNNING, VALUE_MAX},
    time::Time,
};
use paceline_query::{key::QueryKey, pattern::KeyPattern};
use paceline_upstream::fetch::{FetchContext, Fetcher, failure};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, oneshot},
    task::JoinHandle,
};

use crate::{
    observe::Observer,
    shell::{Begun, Business, Describe, Io},
};

/// What a session can fetch, by resource.
#[derive(Clone, Default)]
pub struct Fetchers(BTreeMap<Arc<str>, Registered>);

#[derive(Clone)]
struct Registered {
    pattern: KeyPattern,
    fetcher: Arc<dyn Fetcher>,
}

impl Fetchers {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the fetcher of the resource `name`, whose keys are those of `pattern`. One of the same name is replaced.
    pub fn insert(&mut self, name: impl Into<Arc<str>>, pattern: KeyPattern, fetcher: Arc<dyn Fetcher>) {
        self.0.insert(name.into(), Registered { pattern, fetcher });
    }

    /// The fetcher of the resource.
    pub fn get(&self, name: &str) -> Option<Arc<dyn Fetcher>> {
        self.0.get(name).map(|registered| registered.fetcher.clone())
    }

    /// Whether there is one for the resource.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

impl fmt::Debug for Fetchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Messages of the fetcher actor.
pub(crate) enum FetcherIn {
    /// The owner of the reign asks for a fetch.
    Fetch { epoch: Epoch, request: FetchRequest },
    /// Nobody wants it any more: it is given up and not answered.
    Cancel { epoch: Epoch, id: FetchId },
    /// The link to the owner ended: everything is given up and nothing is answered.
    GiveUp,
    /// An attempt ended; `None` = it was given up.
    Ended { epoch: Epoch, id: FetchId, key: Key, outcome: Option<FetchOutcome> },
}

impl Describe for FetcherIn {
    fn kind(&self) -> &'static str {
        match self {
            Self::Fetch { .. } => "fetch",
            Self::Cancel { .. } => "cancel",
            Self::GiveUp => "give_up",
            Self::Ended { .. } => "ended",
        }
    }

    fn key(&self) -> Option<&Key> {
        match self {
            Self::Fetch { request, .. } => Some(&request.key),
            Self::Ended { key, .. } => Some(key),
            Self::Cancel { .. } | Self::GiveUp => None,
        }
    }
}

/// Takes the outcome of an attempt for the owner of the reign.
pub(crate) type Answer = Box<dyn Fn(Epoch, FetchId, FetchOutcome, Trace)>;

pub(crate) struct FetcherBusiness {
    fetchers: Fetchers,
    observer: Observer,
    answer: Answer,
    thread: Option<FetchThread>,
    turns: Arc<Semaphore>,
    attempts: BTreeMap<(Epoch, FetchId), Attempt>,
}

/// An attempt that runs or waits for its turn. Dropped, it is given up.
struct Attempt {
    begun: Begun,
    _kept: oneshot::Sender<()>,
}

impl FetcherBusiness {
    pub(crate) fn new(fetchers: Fetchers, observer: Observer, answer: Answer) -> Self {
        let turns = Arc::new(Semaphore::new(FETCHES_RUNNING));
        Self { fetchers, observer, answer, thread: None, turns, attempts: BTreeMap::new() }
    }

    fn fetch(&mut self, epoch: Epoch, request: FetchRequest, io: &mut Io<'_, FetcherIn>) {
        let cause = if request.trace.trace == 0 { io.cause() } else { request.trace };
        let begun = io.begin(cause);
        let (id, key) = (request.id, request.key.clone());
        let attempt = match self.attempt(epoch, request, begun.own) {
            Ok(attempt) => attempt,
            Err(failed) => {
                io.note("fetched", Some(&key), begun);
                return (self.answer)(epoch, id, FetchOutcome::Failed(failed), begun.own);
            }
        };
        let (kept, dropped) = oneshot::channel::<()>();
        self.attempts.insert((epoch, id), Attempt { begun, _kept: kept });
        io.complete(async move {
            let outcome = tokio::select! {
                biased;
                _ = dropped => None,
                outcome = attempt => Some(bounded(outcome)),
            };
            FetcherIn::Ended { epoch, id, key, outcome }
        });
    }

    /// The whole life of an attempt: its turn, its run, its deadline.
    fn attempt(
        &mut self,
        epoch: Epoch,
        request: FetchRequest,
        trace: Trace,
    ) -> Result<impl Future<Output = FetchOutcome> + use<>, FetchFailure> {
        let FetchRequest { resource, key, deadline_ms, background, etag, .. } = request;
        if self.attempts.len() >= FETCHES_MAX {
            self.observer.event(Event::LimitReached { limit: "FETCHES_MAX" });
            let why = format!("fetch {resource:?}: this session holds {FETCHES_MAX} fetches already");
            return Err(failure(FailureKind::Cancelled, why));
        }
        let missing = |why: &str| failure(FailureKind::NoFetcher, format!("fetch {resource:?}: {why}"));
        let Some(registered) = self.fetchers.0.get(&resource) else {
            return Err(missing("this session has no fetcher for it"));
        };
        let key = QueryKey::from_key(&key).map_err(|error| missing(&error.to_string()))?;
        let Some(bound) = registered.pattern.bind(&key) else {
            return Err(missing(&format!("{key} is none of its keys, which are {}", registered.pattern)));
        };
        let deadline = Duration::from_millis(deadline_ms);
        let context = FetchContext { key, bound, etag, deadline, background, trace, epoch };
        let thread = match &self.thread {
            Some(thread) => thread.handle.clone(),
            None => {
                let thread = FetchThread::start()
                    .map_err(|error| missing(&format!("its thread could not be started: {error}")))?;
                self.thread.insert(thread).handle.clone()
            }
        };
        let fetcher = registered.fetcher.clone();
        let turns = self.turns.clone();
        let running = async move {
            let _turn = turns.acquire_owned().await;
            Running(thread.spawn(async move { fetcher.fetch(context).await })).outcome().await
        };
        Ok(async move {
            tokio::time::timeout(deadline, running).await.unwrap_or_else(|_| {
                let why = format!("fetch {resource:?}: no answer within {deadline_ms} ms");
                FetchOutcome::Failed(failure(FailureKind::Timeout, why))
            })
        })
    }
}

impl Business for FetcherBusiness {
    const NAME: &'static str = "fetcher";
    type Input = FetcherIn;

    fn handle(&mut self, input: FetcherIn, io: &mut Io<'_, FetcherIn>) {
        match input {
            FetcherIn::Fetch { epoch, request } => self.fetch(epoch, request, io),
            FetcherIn::Cancel { epoch, id } => drop(self.attempts.remove(&(epoch, id))),
            FetcherIn::GiveUp => self.attempts.clear(),
            FetcherIn::Ended { epoch, id, key, outcome } => {
                let Some(Attempt { begun, .. }) = self.attempts.remove(&(epoch, id)) else { return };
                io.note("fetched", Some(&key), begun);
                if let Some(outcome) = outcome {
                    (self.answer)(epoch, id, outcome, begun.own);
                }
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn due(&mut self, _: &mut Io<'_, FetcherIn>) {}
}

/// A task on the fetchers' thread; it ends when this is dropped.
struct Running(JoinHandle<FetchOutcome>);

impl Running {
    async fn outcome(mut self) -> FetchOutcome {
        let failed = match (&mut self.0).await {
            Ok(outcome) => return outcome,
            Err(failed) => failed,
        };
        let (kind, why) = match failed.try_into_panic() {
            Ok(panic) => {
                let text = panic
                    .downcast_ref::<&str>()
                    .map(|text| (*text).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned());
                let text = text.unwrap_or_else(|| "without a text".to_owned());
                (FailureKind::Refused(PANICKED), format!("the fetcher panicked: {text}"))
            }
            Err(_) => (FailureKind::Cancelled, "the session left".to_owned()),
        };
        FetchOutcome::Failed(failure(kind, why))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a process that panicked ends with.
const PANICKED: i32 = 101;

/// The thread that fetchers run on, started by the first fetch.
struct FetchThread {
    handle: Handle,
    _kept: oneshot::Sender<()>,
}

impl FetchThread {
    fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_keep_alive(Duration::from_secs(2))
            .build()?;
        let handle = runtime.handle().clone();
        let (kept, dropped) = oneshot::channel::<()>();
        thread::Builder::new().name("paceline-fetch".to_owned()).spawn(move || {
            // The sender is never used: this waits for its end.
            drop(runtime.block_on(dropped));
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _kept: kept })
    }
}

/// What goes over a link fits into a frame.
fn bounded(outcome: FetchOutcome) -> FetchOutcome {
    match outcome {
        FetchOutcome::Value { value, .. } if value.len() > VALUE_MAX => {
            let why = format!("the value has {} bytes, at most {VALUE_MAX} are allowed", value.len());
            FetchOutcome::Failed(failure(FailureKind::Invalid, why))
        }
        FetchOutcome::Value { value, version, etag, hints } => FetchOutcome::Value {
            value,
            version,
            // Without a validator the next answer is a whole one, without hints the rules decide.
            etag: if etag.len() > FETCH_TEXT_MAX { "".into() } else { etag },
            hints: if hints.len() > FETCH_TEXT_MAX { Bytes::new() } else { hints },
        },
        FetchOutcome::NotModified => FetchOutcome::NotModified,
        FetchOutcome::Failed(mut failed) => {
            let end = (0..=FETCH_TEXT_MAX).rev().find(|at| failed.why.is_char_boundary(*at));
            failed.why.truncate(end.unwrap_or_default());
            failed.detail.truncate(VALUE_MAX);
            FetchOutcome::Failed(failed)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use paceline_proto::id::Version;
    use paceline_query::key;
    use serde_json::json;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::{
        death::{Death, End},
        shell::{Mail, Shell},
        trace::Ring,
    };

    const REIGN: Epoch = Epoch(3);

    /// An actor with one fetcher, and what it answers.
    struct Bench {
        mail: Mail<FetcherIn>,
        answers: UnboundedReceiver<(Epoch, FetchId, FetchOutcome, Trace)>,
        ring: Ring,
        death: Death,
        observer: Observer,
    }

    impl Bench {
        fn start(fetcher: impl Fetcher + 'static) -> Self {
            let (ring, death, observer) = (Ring::default(), Death::default(), Observer::default());
            let pattern = KeyPattern::new(&[json!("packages"), json!("{id}")]).unwrap();
            let mut fetchers = Fetchers::new();
            fetchers.insert("packages", pattern, Arc::new(fetcher));
            let (told, answers) = unbounded_channel();
            let answer: Answer = Box::new(move |epoch, id, outcome, trace| {
                told.send((epoch, id, outcome, trace)).unwrap();
            });
            let business = FetcherBusiness::new(fetchers, observer.clone(), answer);
            let mail = Shell::start(business, ring.clone(), death.clone(), observer.clone());
            Self { mail, answers, ring, death, observer }
        }

        fn fetch(&self, request: FetchRequest) {
            let trace = request.trace;
            self.mail.tell(FetcherIn::Fetch { epoch: REIGN, request }, trace);
        }

        async fn answer(&mut self) -> (FetchId, FetchOutcome) {
            let (epoch, id, outcome, _) = self.answers.recv().await.unwrap();
            assert_eq!(epoch, REIGN);
            (id, outcome)
        }

        async fn failure(&mut self) -> (FetchId, FailureKind, String) {
            match self.answer().await {
                (id, FetchOutcome::Failed(failed)) => (id, failed.kind, failed.why),
                other => panic!("{other:?}"),
            }
        }
    }

    fn request(id: u64) -> FetchRequest {
        FetchRequest {
            id: FetchId(id),
            resource: "packages".into(),
            key: key!["packages", id].to_key(),
            deadline_ms: 60_000,
            background: false,
            etag: "".into(),
            trace: Trace { trace: 9, span: 4 },
        }
    }

    fn value(value: impl Into<Bytes>) -> FetchOutcome {
        FetchOutcome::Value {
            value: value.into(),
            version: Version::None,
            etag: "".into(),
            hints: Bytes::new(),
        }
    }

    fn run(test: impl Future<Output = ()>) {
        actix::System::new().block_on(test);
    }

    /// Says when it is dropped.
    struct Dropped(tokio::sync::mpsc::UnboundedSender<&'static str>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            // The test may have ended.
            let _ = self.0.send("dropped");
        }
    }

    /// A fetcher that says when it begins and when it is given up, and never ends.
    fn endless() -> (impl Fetcher + 'static, UnboundedReceiver<&'static str>) {
        let (says, said) = unbounded_channel();
        let fetcher = move |_: FetchContext| {
            let says = says.clone();
            async move {
                let _dropped = Dropped(says.clone());
                says.send("begun").unwrap();
                std::future::pending().await
            }
        };
        (fetcher, said)
    }

    #[test]
    fn a_fetcher_is_told_what_is_asked_and_its_outcome_goes_back_with_its_span() {
        run(async {
            let (saw, mut seen) = unbounded_channel();
            let mut bench = Bench::start(move |context: FetchContext| {
                saw.send(context).unwrap();
                std::future::ready(value("{}"))
            });
            bench.fetch(FetchRequest { background: true, etag: "v1".into(), ..request(7) });
            let (_, id, outcome, trace) = bench.answers.recv().await.unwrap();
            assert_eq!((id, outcome), (FetchId(7), value("{}")));
            let context = seen.recv().await.unwrap();
            assert_eq!(context.key, key!["packages", 7]);
            assert_eq!(json!(context.bound), json!({ "id": 7 }));
            assert_eq!((&*context.etag, context.background), ("v1", true));
            assert_eq!((context.deadline, context.trace), (Duration::from_secs(60), trace));
            let (records, _) = bench.ring.read();
            let fetched = records.iter().find(|record| record.kind == "fetched").unwrap();
            assert_eq!((fetched.trace, fetched.parent, trace.trace), (trace, 4, 9));
        });
    }

    #[test]
    fn what_cannot_be_fetched_here_is_answered_at_once() {
        run(async {
            let mut bench = Bench::start(|_: FetchContext| std::future::ready(value("1")));
            for (request, words) in [
                (FetchRequest { resource: "other".into(), ..request(1) }, "no fetcher for it"),
                (FetchRequest { key: key!["packages"].to_key(), ..request(1) }, "none of its keys"),
                (FetchRequest { key: Key::copy_from(b"?"), ..request(1) }, "not those of a key"),
            ] {
                bench.fetch(request);
                let (id, kind, why) = bench.failure().await;
                assert_eq!((id, kind), (FetchId(1), FailureKind::NoFetcher));
                assert!(why.contains(words), "{why}");
            }
        });
    }

    #[test]
    fn an_attempt_past_its_deadline_fails_and_is_given_up() {
        run(async {
            let (fetcher, mut said) = endless();
            let mut bench = Bench::start(fetcher);
            bench.fetch(FetchRequest { deadline_ms: 20, ..request(1) });
            let (_, kind, why) = bench.failure().await;
            assert_eq!(kind, FailureKind::Timeout);
            assert_eq!(why, "fetch \"packages\": no answer within 20 ms");
            assert_eq!((said.recv().await, said.recv().await), (Some("begun"), Some("dropped")));
        });
    }

    #[test]
    fn what_nobody_wants_any_more_is_given_up_without_an_answer() {
        run(async {
            let (fetcher, mut said) = endless();
            let mut bench = Bench::start(fetcher);
            for n in 1..=3 {
                bench.fetch(request(n));
                assert_eq!(said.recv().await, Some("begun"));
            }
            bench.mail.tell(FetcherIn::Cancel { epoch: Epoch(2), id: FetchId(1) }, Trace::NONE);
            bench.mail.tell(FetcherIn::Cancel { epoch: REIGN, id: FetchId(1) }, Trace::NONE);
            assert_eq!(said.recv().await, Some("dropped"));
            bench.fetch(FetchRequest { resource: "other".into(), ..request(4) });
            assert_eq!(bench.failure().await.0, FetchId(4), "the cancelled one says nothing");
            assert!(said.try_recv().is_err(), "only the one of this reign was given up");
            bench.mail.tell(FetcherIn::GiveUp, Trace::NONE);
            assert_eq!((said.recv().await, said.recv().await), (Some("dropped"), Some("dropped")));
            bench.fetch(FetchRequest { resource: "other".into(), ..request(5) });
            assert_eq!(bench.failure().await.0, FetchId(5));
        });
    }

    #[test]
    fn the_end_of_the_session_gives_everything_up() {
        run(async {
            let (fetcher, mut said) = endless();
            let bench = Bench::start(fetcher);
            bench.fetch(request(1));
            assert_eq!(said.recv().await, Some("begun"));
            bench.death.declare(End::Left);
            bench.mail.tell(FetcherIn::GiveUp, Trace::NONE);
            assert_eq!(said.recv().await, Some("dropped"));
        });
    }

    #[test]
    fn a_panic_fails_its_own_attempt_and_no_other() {
        run(async {
            let mut bench = Bench::start(|context: FetchContext| {
                assert_ne!(context.bound["id"], 1, "at once");
                async move {
                    assert_ne!(context.bound["id"], 2, "later");
                    value("1")
                }
            });
            for (id, words) in [(1, "at once"), (2, "later")] {
                bench.fetch(request(id));
                let (_, kind, why) = bench.failure().await;
                assert_eq!(kind, FailureKind::Refused(PANICKED));
                assert!(why.starts_with("the fetcher panicked") && why.contains(words), "{why}");
            }
            bench.fetch(request(3));
            assert_eq!(bench.answer().await.1, value("1"));
            assert_eq!(bench.death.get(), None);
        });
    }

    #[test]
    fn a_fetcher_that_blocks_holds_up_neither_the_actor_nor_a_deadline() {
        run(async {
            let (go, wait) = mpsc::channel::<()>();
            let wait = Arc::new(parking_lot::Mutex::new(wait));
            let mut bench = Bench::start(move |_: FetchContext| {
                let _ = wait.lock().recv();
                std::future::ready(value("1"))
            });
            bench.fetch(FetchRequest { deadline_ms: 20, ..request(1) });
            bench.fetch(FetchRequest { resource: "other".into(), ..request(2) });
            assert_eq!(bench.failure().await.0, FetchId(2));
            assert_eq!(bench.failure().await.1, FailureKind::Timeout);
            drop(go);
            bench.fetch(request(3));
            assert_eq!(bench.answer().await, (FetchId(3), value("1")));
        });
    }

    #[test]
    fn as_many_run_as_may_and_one_more_waits_for_its_turn() {
        run(async {
            let (fetcher, mut said) = endless();
            let mut bench = Bench::start(fetcher);
            for n in 0..FETCHES_RUNNING as u64 {
                bench.fetch(request(n));
                assert_eq!(said.recv().await, Some("begun"));
            }
            bench.fetch(request(1000));
            bench.fetch(FetchRequest { resource: "other".into(), ..request(2000) });
            assert_eq!(bench.failure().await.0, FetchId(2000));
            assert!(said.try_recv().is_err(), "it waits");
            bench.mail.tell(FetcherIn::Cancel { epoch: REIGN, id: FetchId(0) }, Trace::NONE);
            let mut both = [said.recv().await, said.recv().await];
            both.sort();
            assert_eq!(both, [Some("begun"), Some("dropped")]);
        });
    }

    #[test]
    fn as_many_are_held_as_may_be_and_one_more_is_refused_with_an_event() {
        run(async {
            let (fetcher, mut said) = endless();
            let mut bench = Bench::start(fetcher);
            bench.fetch(request(0));
            assert_eq!(said.recv().await, Some("begun"));
            for n in 1..FETCHES_MAX as u64 {
                bench.fetch(request(n));
            }
            bench.fetch(request(FETCHES_MAX as u64));
            let (id, kind, _) = bench.failure().await;
            assert_eq!((id, kind), (FetchId(FETCHES_MAX as u64), FailureKind::Cancelled));
            assert_eq!(bench.observer.counts().get("limit_reached"), Some(&1));
            assert!(bench.answers.try_recv().is_err(), "the others are held");
        });
    }

    #[test]
    fn what_fits_into_a_frame_is_kept_and_one_byte_more_is_not() {
        let with = |len: usize, text: usize| FetchOutcome::Value {
            value: vec![b' '; len].into(),
            version: Version::None,
            etag: "e".repeat(text).into(),
            hints: vec![b'h'; text].into(),
        };
        let fits = with(VALUE_MAX, FETCH_TEXT_MAX);
        assert_eq!(bounded(fits.clone()), fits);
        assert_eq!(bounded(with(1, FETCH_TEXT_MAX + 1)), with(1, 0));
        let FetchOutcome::Failed(failed) = bounded(with(VALUE_MAX + 1, 0)) else { panic!("too long") };
        assert_eq!(failed.kind, FailureKind::Invalid);
        let why = |why: String| match bounded(FetchOutcome::Failed(failure(FailureKind::Network, why))) {
            FetchOutcome::Failed(failed) => failed.why.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!(why("x".repeat(FETCH_TEXT_MAX)), FETCH_TEXT_MAX);
        assert_eq!(why("x".repeat(FETCH_TEXT_MAX + 1)), FETCH_TEXT_MAX);
        assert_eq!(why("ß".repeat(FETCH_TEXT_MAX)), FETCH_TEXT_MAX, "no half a character");
        assert_eq!(why(format!("x{}", "ß".repeat(FETCH_TEXT_MAX))), FETCH_TEXT_MAX - 1);
    }
}
