//! Subscriptions: the latest view at once, changes without a backlog, nothing lost by a cancelled wait.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Feed, comes_back, join, poll_once, scratch};
use paceline::{DataStatus, Error, Route, Session, Subscription, key};

fn wait_for(subscription: Subscription<u64>, wanted: u64) -> Subscription<u64> {
    comes_back("the value", move || {
        let mut subscription = subscription;
        while subscription.changed_blocking().unwrap().data() != Some(&wanted) {}
        subscription
    })
}

/// A session that shows 1 for the key `n`.
fn shown() -> (tempfile::TempDir, Session, Subscription<u64>) {
    let dir = scratch();
    let session = join(dir.path());
    let subscription = session.query(key!["n"]).subscribe::<u64>();
    session.set_blocking(key!["n"], &1).unwrap();
    let subscription = wait_for(subscription, 1);
    (dir, session, subscription)
}

#[test]
fn a_view_is_there_without_waiting_and_changed_returns_it_once() {
    let (_dir, session, _held) = shown();
    let mut another = session.query(key!["n"]).subscribe::<u64>();
    assert_eq!(another.current().data(), Some(&1), "the session has it: no wait");
    let first = poll_once(another.changed()).expect("complete at once").unwrap();
    assert_eq!((first.data(), first.status(), first.is_stale()), (Some(&1), DataStatus::Success, false));
    assert!(poll_once(another.changed()).is_none(), "nothing new");
}

#[test]
fn before_the_first_value_there_is_nothing_and_changed_waits() {
    let dir = scratch();
    let session = join(dir.path());
    let mut subscription = session.query(key!["nothing"]).subscribe::<u64>();
    let view = subscription.current();
    assert_eq!((view.data(), view.status(), view.is_stale()), (None, DataStatus::Pending, true));
    assert!(view.error().is_none() && view.raw().is_empty());
    assert!(poll_once(subscription.changed()).is_none());
}

#[test]
fn who_does_not_look_gets_the_latest_and_no_backlog() {
    let (_dir, session, mut slow) = shown();
    let quick = session.query(key!["n"]).subscribe::<u64>();
    for n in 2..=50 {
        session.set_blocking(key!["n"], &n).unwrap();
    }
    drop(wait_for(quick, 50));
    let next = poll_once(slow.changed()).expect("a change is there").unwrap();
    assert_eq!(next.data(), Some(&50));
    assert!(poll_once(slow.changed()).is_none(), "the other 48 are gone");
}

#[test]
fn a_cancelled_wait_loses_nothing() {
    let (_dir, session, mut subscription) = shown();
    let other = session.query(key!["n"]).subscribe::<u64>();
    for _ in 0..3 {
        assert!(poll_once(subscription.changed()).is_none());
    }
    session.set_blocking(key!["n"], &2).unwrap();
    drop(wait_for(other, 2));
    assert_eq!(poll_once(subscription.changed()).unwrap().unwrap().data(), Some(&2));
}

#[test]
fn a_cancelled_wait_for_an_event_loses_none() {
    let feed = Feed::start(&[]);
    let dir = scratch();
    let upstream = feed.upstream().route(Route::event("numbers"));
    let session = common::builder(dir.path()).upstream(upstream).join_blocking().unwrap();
    let mut ours = session.events("numbers").subscribe::<u64>();
    let theirs = session.events("numbers").subscribe::<u64>();
    common::group_is(&session, "a live upstream", |view| {
        view.connections.iter().any(|c| c.state == paceline::ConnectionState::Live)
    });
    for n in 1..=5 {
        feed.send(&n.to_string());
    }
    let all = |mut events: paceline::EventSubscription<u64>| {
        comes_back("five events", move || {
            let mut seen = Vec::new();
            while seen.last() != Some(&5) {
                // A gap at the start says that events before the subscription are not here.
                if let Ok(event) = events.next_blocking() {
                    seen.push(event.data);
                }
            }
            seen
        })
    };
    // Polls and drops the wait until something is there: each of the five is still returned, in order.
    let mut seen = Vec::new();
    let theirs = all(theirs);
    while seen.last() != Some(&5) {
        if let Some(Ok(event)) = poll_once(ours.next()) {
            seen.push(event.data);
        }
    }
    assert_eq!((seen, theirs), (vec![1, 2, 3, 4, 5], vec![1, 2, 3, 4, 5]));
}

#[test]
fn a_value_that_does_not_decode_is_an_error_of_that_view_alone() {
    let (_dir, session, _numbers) = shown();
    let texts = session.query(key!["n"]).subscribe::<String>();
    let numbers = session.query(key!["n"]).subscribe::<u64>();
    let view = texts.current();
    assert_eq!((view.data(), view.raw()), (None, &b"1"[..]));
    assert!(matches!(view.error(), Some(Error::Decode { .. })), "{:?}", view.error());
    assert_eq!(numbers.current().data(), Some(&1));
}

#[test]
fn an_invalidated_value_is_shown_stale_until_it_is_set_again() {
    let (_dir, session, subscription) = shown();
    session.invalidate_blocking(key!["n"]).unwrap();
    let mut subscription = comes_back("the mark", move || {
        let mut subscription = subscription;
        while !subscription.changed_blocking().unwrap().is_stale() {}
        subscription
    });
    assert_eq!(subscription.current().data(), Some(&1), "the value stays");
    session.set_blocking(key!["n"], &2).unwrap();
    comes_back("the new value", move || while subscription.changed_blocking().unwrap().is_stale() {});
}
