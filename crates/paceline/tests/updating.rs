//! `set`, `merge`, `update`: what two sessions do to one key.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::cell::{Cell, RefCell};

use common::{comes_back, join, scratch, spawn};
use paceline::{Error, Patch, Session, key};
use serde_json::json;

fn value(session: &Session) -> u64 {
    let mut subscription = session.query(key!["n"]).subscribe::<u64>();
    comes_back("the value", move || *subscription.changed_blocking().unwrap().data().unwrap())
}

#[test]
fn an_update_is_run_again_on_the_value_that_won() {
    let dir = scratch();
    let (ours, theirs) = (join(dir.path()), join(dir.path()));
    ours.set_blocking(key!["n"], &1).unwrap();
    let seen = RefCell::new(Vec::new());
    ours.update_blocking::<u64>(key!["n"], |old| {
        seen.borrow_mut().push(old);
        if seen.borrow().len() == 1 {
            theirs.set_blocking(key!["n"], &10).unwrap();
        }
        old.unwrap() + 1
    })
    .unwrap();
    assert_eq!(*seen.borrow(), [Some(1), Some(10)]);
    assert_eq!(value(&theirs), 11);
}

#[test]
fn the_eighth_attempt_may_win() {
    let dir = scratch();
    let (ours, theirs) = (join(dir.path()), join(dir.path()));
    let runs = Cell::new(0_u64);
    ours.update_blocking::<u64>(key!["n"], |old| {
        runs.set(runs.get() + 1);
        if runs.get() < 8 {
            theirs.set_blocking(key!["n"], &(100 * runs.get())).unwrap();
        }
        old.unwrap_or(0) + 1
    })
    .unwrap();
    assert_eq!((runs.get(), value(&theirs)), (8, 701));
}

#[test]
fn after_eight_conflicts_an_update_gives_up_and_changes_nothing() {
    let dir = scratch();
    let (ours, theirs) = (join(dir.path()), join(dir.path()));
    let runs = Cell::new(0_u64);
    let lost = ours.update_blocking::<u64>(key!["n"], |_| {
        runs.set(runs.get() + 1);
        theirs.set_blocking(key!["n"], &runs.get()).unwrap();
        1000
    });
    assert!(matches!(lost, Err(Error::Contended)), "{lost:?}");
    assert_eq!((runs.get(), value(&theirs)), (8, 8));
}

#[test]
fn updates_of_all_sessions_count() {
    let dir = scratch();
    let sessions = [join(dir.path()), join(dir.path()), join(dir.path())];
    let runs: Vec<_> = sessions
        .iter()
        .cloned()
        .map(|session| {
            spawn(move || {
                for _ in 0..5 {
                    // A conflict lost eight times in a row changed nothing: the same call again is right.
                    while let Err(error) =
                        session.update_blocking::<u64>(key!["n"], |old| old.unwrap_or(0) + 1)
                    {
                        assert!(matches!(error, Error::Contended), "{error}");
                    }
                }
            })
        })
        .collect();
    for run in runs {
        run.end("the updates");
    }
    assert_eq!(value(&sessions[0]), 15);
}

#[test]
fn patches_of_two_sessions_both_apply() {
    let dir = scratch();
    let (ours, theirs) = (join(dir.path()), join(dir.path()));
    ours.merge_blocking(key!["doc"], Patch::merge(json!({ "a": 1 }))).unwrap();
    theirs.merge_blocking(key!["doc"], Patch::merge(json!({ "b": 2 }))).unwrap();
    let mut doc = ours.query(key!["doc"]).subscribe::<serde_json::Value>();
    comes_back(
        "both",
        move || while doc.changed_blocking().unwrap().data() != Some(&json!({ "a": 1, "b": 2 })) {},
    );
}

#[test]
fn a_value_of_another_type_is_told_and_left() {
    let dir = scratch();
    let session = join(dir.path());
    session.set_blocking(key!["n"], &"a text").unwrap();
    let wrong =
        session.update_blocking::<u64>(key!["n"], |_| unreachable!("there is no number to start from"));
    assert!(matches!(wrong, Err(Error::Decode { .. })), "{wrong:?}");
}

#[test]
fn a_value_at_the_bound_is_taken_and_one_byte_more_is_refused() {
    const VALUE_MAX: usize = 1 << 20;
    let dir = scratch();
    let session = join(dir.path());
    // Two quotes make a text JSON.
    session.set_blocking(key!["n"], &"x".repeat(VALUE_MAX - 2)).unwrap();
    let refused = session.set_blocking(key!["n"], &"x".repeat(VALUE_MAX - 1));
    assert!(matches!(refused, Err(Error::Encode(_))), "{refused:?}");
    assert!(common::block_on(session.submit_raw(vec![0; VALUE_MAX])).is_ok());
    let refused = common::block_on(session.submit_raw(vec![0; VALUE_MAX + 1]));
    assert!(matches!(refused, Err(Error::Encode(_))), "{refused:?}");
}
