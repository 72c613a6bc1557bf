//! Optimistic layers as a program uses them: shown at once, committed in one step, taken back however they get lost.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{block_on, comes_back, join, poll_once, scratch};
use paceline::{Error, Patch, QueryKey, Session, Subscription, View, key};
use serde_json::{Value, json};

fn package() -> QueryKey {
    key!["packages", 7]
}

fn checked() -> Patch {
    Patch::merge(json!({ "status": "checked" }))
}

/// Two sessions of one group, in which the package has a value, and what each shows.
struct Two {
    _dir: tempfile::TempDir,
    ours: Session,
    theirs: Session,
    here: Subscription<Value>,
    there: Subscription<Value>,
}

fn two() -> Two {
    let dir = scratch();
    let (ours, theirs) = (join(dir.path()), join(dir.path()));
    let (here, there) = (ours.query(package()).subscribe(), theirs.query(package()).subscribe());
    ours.set_blocking(package(), &json!({ "status": "new" })).unwrap();
    let mut two = Two { _dir: dir, ours, theirs, here, there };
    two.both_show(json!({ "status": "new" }));
    two
}

impl Two {
    fn both_show(&mut self, value: Value) {
        wait(&mut self.here, &value);
        wait(&mut self.there, &value);
    }
}

/// The first view with this value.
fn wait(subscription: &mut Subscription<Value>, value: &Value) {
    let waited = async {
        while subscription.current().data() != Some(value) {
            subscription.changed().await.unwrap();
        }
    };
    block_on(waited);
}

#[test]
fn a_layer_is_shown_here_when_it_is_laid_and_there_soon() {
    let mut two = two();
    let layer = block_on(two.theirs.optimistic(package(), checked())).unwrap();
    let view = two.there.current();
    assert_eq!((view.data(), view.pending()), (Some(&json!({ "status": "checked" })), 1), "no round trip");
    two.both_show(json!({ "status": "checked" }));
    layer.roll_back();
    two.both_show(json!({ "status": "new" }));
    assert_eq!(two.here.current().pending(), 0);
}

#[test]
fn a_commit_makes_it_the_value_and_no_view_in_between_lacks_it() {
    let mut two = two();
    let layer = block_on(two.theirs.optimistic(package(), Patch::append("/log", "checked"))).unwrap();
    wait(&mut two.here, &json!({ "status": "new", "log": ["checked"] }));
    let (seen, mut here) = (std::sync::mpsc::channel(), two.here);
    let watcher = common::spawn(move || {
        loop {
            let view = here.current();
            seen.0.send(view.data().cloned()).unwrap();
            if view.pending() == 0 {
                return here;
            }
            here.changed_blocking().unwrap();
        }
    });
    block_on(layer.commit()).unwrap();
    let here = watcher.end("the commit here");
    let expected = json!({ "status": "new", "log": ["checked"] });
    assert!(seen.1.try_iter().all(|value| value.as_ref() == Some(&expected)), "neither none nor two");
    assert_eq!(here.current().data(), Some(&expected));
}

#[test]
fn what_the_server_answered_is_the_value_under_the_layers_of_others() {
    let mut two = two();
    let ours = two.ours.optimistic_blocking(package(), checked()).unwrap();
    let theirs = two.theirs.optimistic_blocking(package(), Patch::merge(json!({ "by": "them" }))).unwrap();
    two.both_show(json!({ "status": "checked", "by": "them" }));
    ours.commit_with_blocking(&json!({ "status": "checked", "at": 9 })).unwrap();
    two.both_show(json!({ "status": "checked", "at": 9, "by": "them" }));
    drop(theirs);
    two.both_show(json!({ "status": "checked", "at": 9 }));
}

#[test]
fn a_layer_that_gets_lost_is_taken_back() {
    let mut two = two();
    drop(two.theirs.optimistic_blocking(package(), checked()).unwrap());
    two.both_show(json!({ "status": "new" }));
    // A caller that gives up while it is laid, and one that had the answer and did not look.
    assert!(poll_once(two.theirs.optimistic(package(), checked())).is_none());
    two.theirs.set_blocking(key!["after"], &1).unwrap();
    two.both_show(json!({ "status": "new" }));
    assert_eq!(block_on(two.theirs.group().layers()).unwrap(), []);
    // Its session leaves.
    let layer = two.theirs.optimistic_blocking(package(), checked()).unwrap();
    wait(&mut two.here, &json!({ "status": "checked" }));
    two.theirs.leave_blocking().unwrap();
    wait(&mut two.here, &json!({ "status": "new" }));
    assert!(matches!(layer.commit_blocking(), Err(Error::RuntimeDead(_))));
}

#[test]
fn an_abandoned_commit_is_carried_out_and_not_taken_back() {
    let mut two = two();
    let layer = two.theirs.optimistic_blocking(package(), checked()).unwrap();
    assert!(poll_once(layer.commit()).is_none(), "asked for, and nobody waits");
    let mut here = two.here;
    let here = comes_back("the commit", move || {
        while here.current().data() != Some(&json!({ "status": "checked" })) || here.current().pending() > 0 {
            here.changed_blocking().unwrap();
        }
        here
    });
    assert_eq!(block_on(two.ours.query(package()).read::<Value>()).unwrap().data(), here.current().data());
    assert_eq!(two.there.current().pending(), 0);
    two.there = two.theirs.query(package()).subscribe();
}

#[test]
fn a_commit_that_does_not_fit_is_told_and_takes_the_layer_back() {
    let mut two = two();
    let layer = two.theirs.optimistic_blocking(package(), Patch::append("/status", "x")).unwrap();
    assert_eq!(two.there.current().pending(), 0, "a patch that does not fit shows nothing");
    assert!(matches!(layer.commit_blocking(), Err(Error::Rejected(_))));
    two.both_show(json!({ "status": "new" }));
}

#[test]
fn an_update_works_on_the_value_and_not_on_what_may_be_taken_back() {
    let mut two = two();
    let layer = two.theirs.optimistic_blocking(package(), Patch::merge(json!({ "maybe": true }))).unwrap();
    two.both_show(json!({ "status": "new", "maybe": true }));
    let count = |old: Option<Value>| {
        let mut value = old.unwrap();
        value["count"] = json!(1);
        value
    };
    block_on(two.ours.update(package(), count)).unwrap();
    two.both_show(json!({ "status": "new", "count": 1, "maybe": true }));
    layer.roll_back();
    two.both_show(json!({ "status": "new", "count": 1 }));
}

#[test]
fn a_value_by_function_of_what_is_shown_is_a_layer_too_and_a_key_may_have_no_value() {
    let two = two();
    let mut counter = two.theirs.query(key!["counter"]).subscribe::<u64>();
    let next = |view: &View<u64>| Patch::replace(view.data().map_or(1, |old| old + 1));
    let first = two.ours.optimistic_blocking(key!["counter"], next(&counter.current())).unwrap();
    comes_back("the first", move || while counter.changed_blocking().unwrap().data() != Some(&1) {});
    let counter = two.theirs.query(key!["counter"]).subscribe::<u64>();
    block_on(two.theirs.query(key!["counter"]).read::<u64>()).unwrap();
    let view = counter.current();
    assert_eq!(
        (view.data(), view.pending(), view.is_stale()),
        (Some(&1), 1, true),
        "nothing is known for certain"
    );
    let second = two.theirs.optimistic_blocking(key!["counter"], next(&view)).unwrap();
    assert_eq!(counter.current().data(), Some(&2));
    first.roll_back();
    second.commit_blocking().unwrap();
    assert_eq!(block_on(two.ours.query(key!["counter"]).read::<u64>()).unwrap().data(), Some(&2));
}

#[test]
fn a_base_that_shows_the_same_is_not_told() {
    let mut two = two();
    let layer = two.ours.optimistic_blocking(package(), checked()).unwrap();
    two.both_show(json!({ "status": "checked" }));
    while poll_once(two.there.changed()).is_some() {}
    // The fold hides the difference.
    two.ours.set_blocking(package(), &json!({ "status": "seen" })).unwrap();
    block_on(two.theirs.query(package()).read::<Value>()).unwrap();
    assert!(poll_once(two.there.changed()).is_none());
    layer.roll_back();
    two.both_show(json!({ "status": "seen" }));
}
