//! What single subscriptions ask for, beyond the rules: alone, together, at run time, and over a change of primary.
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

use common::{comes_back, group_is, has_heir, leads, scratch};
use paceline::{Freshness, QueryOptions, Resource, Session, Subscription, Triggers, key};

const HOUR: Duration = Duration::from_secs(3600);

/// A session whose numbers count the requests for them.
fn counting(dir: &Path, calls: &Arc<AtomicU64>) -> Session {
    let calls = calls.clone();
    let resource = Resource::new("n").stale_time(HOUR).fetch(move |_| {
        let n = calls.fetch_add(1, Ordering::SeqCst) + 1;
        async move { Ok(n) }
    });
    Session::builder("test").state_dir(dir).resource(resource).join_blocking().unwrap()
}

fn subscribe(session: &Session, options: QueryOptions) -> Subscription<u64> {
    session.query(key!["n"]).options(options).subscribe()
}

/// Waits until the subscription shows this number or a later one; hands it back.
fn shows(mut watching: Subscription<u64>, least: u64) -> Subscription<u64> {
    comes_back("the number", move || {
        while watching.current().data().is_none_or(|n| *n < least) {
            watching.changed_blocking().unwrap();
        }
        watching
    })
}

/// Everything that this session told the primary so far was done.
fn settle(session: &Session) {
    common::block_on(session.query(key!["other"]).read::<u64>()).unwrap();
}

#[test]
fn a_subscription_polls_for_itself_and_what_it_asked_for_ends_with_it() {
    let (dir, calls) = (scratch(), Arc::default());
    let (ours, theirs) = (counting(dir.path(), &calls), counting(dir.path(), &calls));
    let plain = shows(subscribe(&ours, QueryOptions::new()), 1);
    assert_eq!(calls.load(Ordering::SeqCst), 1, "by the rules it is fresh for an hour");
    let polling = subscribe(&theirs, QueryOptions::new().poll_every(Duration::from_millis(20)));
    let plain = shows(plain, 4);
    drop(polling);
    settle(&theirs);
    // A poll may be under way; what comes after its answer is nobody's.
    let last = ours.query(key!["n"]).refetch_blocking_number();
    let again = ours.query(key!["n"]).fetch_blocking::<u64>(Freshness::by_rules()).unwrap();
    assert_eq!((*again.value(), again.is_cached), (last, true));
    assert_eq!(*shows(plain, last).current().data().unwrap(), last);
}

trait Refetch {
    fn refetch_blocking_number(&self) -> u64;
}

impl Refetch for paceline::Query {
    fn refetch_blocking_number(&self) -> u64 {
        *common::block_on(self.refetch::<u64>()).unwrap().value()
    }
}

#[test]
fn who_is_not_enabled_shows_what_there_is_and_is_switched_on_at_run_time() {
    let (dir, calls) = (scratch(), Arc::default());
    let ours = counting(dir.path(), &calls);
    let off = QueryOptions::new().enabled(false);
    let watching = subscribe(&ours, off);
    settle(&ours);
    assert_eq!((calls.load(Ordering::SeqCst), watching.current().data()), (0, None));
    watching.set_options(off.enabled(true));
    assert_eq!(watching.options(), off.enabled(true));
    shows(watching, 1);
}

#[test]
fn several_subscriptions_of_a_session_are_each_heard() {
    let (dir, calls) = (scratch(), Arc::default());
    let ours = counting(dir.path(), &calls);
    let first = shows(subscribe(&ours, QueryOptions::new()), 1);
    let quiet = Triggers { subscribe: false, focus: false, reconnect: false };
    let other = subscribe(&ours, QueryOptions::new().stale_time(Duration::ZERO).refetch_on(quiet));
    settle(&ours);
    assert_eq!(calls.load(Ordering::SeqCst), 1, "stale for it, and its triggers are off");
    let first = comes_back("the staleness", move || {
        let mut first = first;
        while !first.current().is_stale() {
            first.changed_blocking().unwrap();
        }
        first
    });
    drop(other);
    comes_back("the end of it", move || {
        let mut first = first;
        while first.current().is_stale() {
            first.changed_blocking().unwrap();
        }
    });
}

#[test]
fn what_a_subscription_asks_for_survives_a_change_of_primary() {
    let (dir, calls) = (scratch(), Arc::default());
    let (ours, theirs) = (counting(dir.path(), &calls), counting(dir.path(), &calls));
    has_heir(&ours);
    let watching = shows(subscribe(&theirs, QueryOptions::new().poll_every(Duration::from_millis(20))), 2);
    let off = theirs.query(key!["n", "off"]).options(QueryOptions::new().enabled(false)).subscribe::<u64>();
    settle(&theirs);
    assert_eq!(off.current().data(), None);
    ours.leave_blocking().unwrap();
    group_is(&theirs, "the lead", leads);
    let seen = calls.load(Ordering::SeqCst);
    shows(watching, seen + 2);
    assert_eq!(off.current().data(), None, "nothing is fetched for who is not enabled, by whoever leads");
}

#[test]
fn as_many_different_wishes_as_may_be_are_told_and_one_more_is_not() {
    let (dir, calls) = (scratch(), Arc::default());
    let ours = counting(dir.path(), &calls);
    let wish = |n: u64| QueryOptions::new().enabled(false).gc_time(Duration::from_secs(n + 1));
    let limits = || ours.group().event_counts().get("limit_reached").copied().unwrap_or(0);
    let mut kept: Vec<_> = (0..12).map(|n| subscribe(&ours, wish(n))).collect();
    kept.push(subscribe(&ours, wish(0)));
    assert_eq!(limits(), 0);
    kept.push(subscribe(&ours, wish(12)));
    assert_eq!(limits(), 1);
}
