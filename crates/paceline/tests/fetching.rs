//! Resources in code: who fetches, how often, and what others see of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use common::{comes_back, scratch};
use paceline::{
    DataStatus, Error, FailureKind, FetchError, FetchStatus, Freshness, Resource, Retry, Session, key,
};
use serde_json::json;

/// A session that fetches packages; the counter is the server's.
fn fetching(dir: &Path, calls: &Arc<AtomicU64>, stale: Duration) -> Session {
    let calls = calls.clone();
    let resource = Resource::new("packages").stale_time(stale).fetch(move |cx| {
        let n = calls.fetch_add(1, Ordering::SeqCst) + 1;
        async move { Ok(json!({ "id": cx.segment_u64(1)?, "call": n })) }
    });
    Session::builder("test").state_dir(dir).resource(resource).join_blocking().unwrap()
}

fn call_of(session: &Session, fresh: Freshness) -> (u64, bool) {
    let fetched = session.query(key!["packages", 7]).fetch_blocking::<serde_json::Value>(fresh).unwrap();
    assert_eq!(fetched.value()["id"], 7);
    (fetched.value()["call"].as_u64().unwrap(), fetched.is_cached)
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_value_is_fetched_once_and_served_from_the_cache_to_everybody() {
    let (dir, calls) = (scratch(), Arc::default());
    let ours = fetching(dir.path(), &calls, HOUR);
    let theirs = fetching(dir.path(), &calls, HOUR);
    assert_eq!(call_of(&ours, Freshness::by_rules()), (1, false));
    assert_eq!(call_of(&theirs, Freshness::by_rules()), (1, true));
    assert_eq!(call_of(&theirs, Freshness::by_rules().max_age(Duration::ZERO)), (2, false));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[test]
fn a_subscription_fetches_what_is_missing_and_shows_it_while_it_is_under_way() {
    let (dir, calls) = (scratch(), Arc::default());
    let ours = fetching(dir.path(), &calls, HOUR);
    let mut watching = ours.query(key!["packages", 7]).subscribe::<serde_json::Value>();
    assert_eq!(watching.current().status(), DataStatus::Pending);
    let view = comes_back("the value", move || {
        loop {
            let view = watching.changed_blocking().unwrap();
            if view.data().is_some() && view.fetch_status() == FetchStatus::Idle {
                return view;
            }
        }
    });
    assert_eq!(view.data().unwrap()["call"], 1);
    assert!(!view.is_stale());
}

#[test]
fn a_session_without_a_fetcher_gets_what_another_fetches() {
    let (dir, calls) = (scratch(), Arc::default());
    let plain = Session::builder("test").state_dir(dir.path()).join_blocking().unwrap();
    let fetching = fetching(dir.path(), &calls, HOUR);
    assert_eq!(call_of(&plain, Freshness::by_rules()), (1, false));
    assert_eq!(call_of(&fetching, Freshness::by_rules()), (1, true));
}

#[test]
fn a_static_value_is_fresh_to_everybody_whatever_is_invalidated() {
    let (dir, calls) = (scratch(), Arc::<AtomicU64>::default());
    let counted = calls.clone();
    let fixed = Resource::new("fixed").stale(paceline::Staleness::Static).fetch(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok(1) }
    });
    let ours = Session::builder("test").state_dir(dir.path()).resource(fixed).join_blocking().unwrap();
    let theirs = common::join(dir.path());
    ours.query(key!["fixed"]).fetch_blocking::<u64>(Freshness::by_rules()).unwrap();
    let watching = [&ours, &theirs].map(|session| session.query(key!["fixed"]).subscribe::<u64>());
    for session in [&ours, &theirs] {
        session.invalidate_blocking(key!["fixed"]).unwrap();
        for reader in [&ours, &theirs] {
            let view = common::block_on(reader.query(key!["fixed"]).read::<u64>()).unwrap();
            assert_eq!((view.data(), view.is_stale()), (Some(&1), false));
        }
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    drop(watching);
}

#[test]
fn an_invalidation_fetches_again_what_somebody_looks_at() {
    let (dir, calls) = (scratch(), Arc::default());
    let ours = fetching(dir.path(), &calls, HOUR);
    let mut watching = ours.query(key!["packages", 7]).subscribe::<serde_json::Value>();
    let seen = |call: u64| {
        move |watching: &mut paceline::Subscription<serde_json::Value>| loop {
            let view = watching.changed_blocking().unwrap();
            if view.data().is_some_and(|data| data["call"] == call) {
                return;
            }
        }
    };
    seen(1)(&mut watching);
    ours.invalidate_blocking(key!["packages"]).unwrap();
    comes_back("the second value", move || seen(2)(&mut watching));
}

#[test]
fn a_failure_reaches_who_waits_with_its_words_and_is_shown() {
    let dir = scratch();
    let no_retry =
        Retry { times: 0, base: Duration::from_secs(1), cap: Duration::from_secs(1), jitter: false };
    let resource = Resource::new("packages")
        .retry(no_retry)
        .fetch(|_| async { Err::<(), _>(FetchError::status(503, "ask the server: it is down; try later")) });
    let session = Session::builder("test").state_dir(dir.path()).resource(resource).join_blocking().unwrap();
    let query = session.query(key!["packages", 7]);
    let mut watching = query.subscribe::<serde_json::Value>();
    match query.fetch_blocking::<serde_json::Value>(Freshness::by_rules()) {
        Err(Error::Fetch(failure)) => {
            assert_eq!(failure.kind, FailureKind::Status(503));
            assert_eq!(failure.why, "ask the server: it is down; try later");
        }
        other => panic!("{other:?}"),
    }
    let view = comes_back("the failure", move || {
        loop {
            let view = watching.changed_blocking().unwrap();
            if view.status() == DataStatus::Error {
                return view;
            }
        }
    });
    assert_eq!(view.fetch_error(), Some("ask the server: it is down; try later"));
}

#[test]
fn a_key_that_nobody_can_fetch_says_so() {
    let dir = scratch();
    let session = Session::builder("test").state_dir(dir.path()).join_blocking().unwrap();
    match session.query(key!["nothing"]).fetch_blocking::<u64>(Freshness::by_rules()) {
        Err(Error::Fetch(failure)) => assert_eq!(failure.kind, FailureKind::NoFetcher),
        other => panic!("{other:?}"),
    }
}
