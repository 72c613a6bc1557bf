//! The end of a session's runtime, by leaving or by a panic, is told to every handle, also to those that wait.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Feed, Started, block_on, builder, comes_back, group_is, join, leads, scratch, spawn};
use paceline::{Error, EventError, Patch, Route, Session, key};
use serde_json::json;

fn is_dead<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::RuntimeDead(_)))
}

/// One call after the other on handles of a runtime that ended.
fn every_call_says_so(session: &Session) {
    assert!(is_dead(session.set_blocking(key!["k"], &1)), "set");
    assert!(is_dead(session.merge_blocking(key!["k"], Patch::merge(json!({})))), "merge");
    assert!(is_dead(session.update_blocking::<u64>(key!["k"], |_| 1)), "update");
    assert!(is_dead(session.invalidate_blocking(key!["k"])), "invalidate");
    assert!(is_dead(block_on(session.submit_raw("m"))), "submit");
    assert!(is_dead(block_on(session.group().promote(None))), "promote");
    let mut late = session.query(key!["another"]).subscribe::<u64>();
    assert!(is_dead(late.changed_blocking()), "a subscription made afterwards");
    let mut events = session.events("s").subscribe::<u64>();
    assert!(matches!(events.next_blocking(), Err(EventError::RuntimeDead(_))), "events");
    // Nothing to answer, and no panic.
    session.presence(paceline::Presence::default());
}

/// Threads that wait on each kind of handle; each says whether it was told of the end.
fn waiters(session: &Session) -> Vec<(&'static str, Started<bool>)> {
    let mut view = session.query(key!["k"]).subscribe::<u64>();
    let mut events = session.events("never").subscribe::<u64>();
    let mut watch = session.group().watch();
    vec![
        (
            "changed",
            spawn(move || {
                loop {
                    if let Err(error) = view.changed_blocking() {
                        return is_dead::<()>(Err(error));
                    }
                }
            }),
        ),
        (
            "next",
            spawn(move || {
                loop {
                    match events.next_blocking() {
                        Err(EventError::RuntimeDead(_)) => return true,
                        Err(EventError::Gap(_)) => {}
                        _ => return false,
                    }
                }
            }),
        ),
        (
            "watch",
            spawn(move || {
                loop {
                    if let Err(error) = watch.changed_blocking() {
                        return is_dead::<()>(Err(error));
                    }
                }
            }),
        ),
    ]
}

fn all_told(waiters: Vec<(&'static str, Started<bool>)>) {
    for (what, waiter) in waiters {
        assert!(waiter.end(what), "{what} was not told that the runtime ended");
    }
}

#[test]
fn after_leaving_every_handle_says_so_and_the_last_view_stays() {
    let dir = scratch();
    let session = join(dir.path());
    session.set_blocking(key!["k"], &7).unwrap();
    let view = comes_back("the value", {
        let mut view = session.query(key!["k"]).subscribe::<u64>();
        move || {
            view.changed_blocking().unwrap();
            view
        }
    });
    let waiting = waiters(&session);
    let left = session.clone();
    comes_back("the leave", move || left.leave_blocking().unwrap());
    all_told(waiting);
    assert_eq!(view.current().data(), Some(&7));
    comes_back("all calls", move || every_call_says_so(&session));
}

#[test]
fn a_panic_in_the_runtime_is_told_to_every_handle_and_the_group_goes_on() {
    let feed = Feed::start(&[]);
    let dir = scratch();
    let upstream = feed.upstream().route_with(|_| panic!("a route that panics"));
    let doomed = builder(dir.path()).upstream(upstream).join_blocking().unwrap();
    let survivor = builder(dir.path()).upstream(feed.upstream().route(Route::all())).join_blocking().unwrap();
    common::has_heir(&doomed);
    survivor.set_blocking(key!["k"], &7).unwrap();
    let waiting = waiters(&doomed);
    group_is(&doomed, "a live upstream", |view| {
        view.connections.iter().any(|c| c.state == paceline::ConnectionState::Live)
    });

    feed.send("1");
    all_told(waiting);
    let text = comes_back("all calls", {
        let doomed = doomed.clone();
        move || {
            every_call_says_so(&doomed);
            doomed.set_blocking(key!["k"], &1).unwrap_err().to_string()
        }
    });
    assert!(text.contains("a route that panics"), "the end says why: {text}");
    let left = comes_back("the leave", move || doomed.leave_blocking());
    assert!(is_dead(left));
    // Its lock is released with it: the other one leads, and has what was acknowledged.
    group_is(&survivor, "the lead", leads);
    let mut view = survivor.query(key!["k"]).subscribe::<u64>();
    assert_eq!(comes_back("the value", move || view.changed_blocking().unwrap().data().copied()), Some(7));
}

#[test]
fn a_join_that_cannot_be_says_why_and_leaves_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = builder(file.path()).join_blocking().unwrap_err();
    let Error::Directory { path, why, fix } = error else { panic!("{error}") };
    assert!(path == file.path() && !why.is_empty() && !fix.is_empty());
    let error = Session::builder("Not A Name").join_blocking().unwrap_err();
    assert!(matches!(error, Error::Name(_)), "{error}");
}
