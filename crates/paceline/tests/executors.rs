//! The client works from any executor and from none, for many sessions in one process.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;

use common::{block_on, builder, comes_back, scratch};
use paceline::{Error, Session, key};

fn travels<T: Send + Sync + Clone + 'static>(_: &T) {}

/// Everything that a caller awaits.
async fn everything(dir: &Path) -> Result<(), Error> {
    let session = builder(dir).join().await?;
    travels(&session);
    let other = builder(dir).join().await?;
    let mut view = other.query(key!["k"]).subscribe::<u64>();
    session.set(key!["k"], &1).await?;
    session.update::<u64>(key!["k"], |old| old.unwrap_or(0) + 1).await?;
    while view.changed().await?.data() != Some(&2) {}
    session.invalidate(key!["k"]).await?;
    while !view.changed().await?.is_stale() {}
    session.submit_raw("a mutation").await?;
    let mut watch = other.group().watch();
    watch.changed().await?;
    session.leave().await?;
    other.leave().await
}

#[test]
fn from_a_runtime_of_tokio_without_its_drivers() {
    comes_back("everything", || {
        let dir = scratch();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(everything(dir.path())).unwrap();
    });
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the host's runtime is the subject")]
fn from_a_runtime_of_tokio_with_many_threads() {
    comes_back("everything", || {
        let dir = scratch();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let path = dir.path().to_owned();
        runtime
            .block_on(async move { tokio::spawn(async move { everything(&path).await }).await.unwrap() })
            .unwrap();
    });
}

#[test]
fn from_an_executor_that_knows_nothing_of_tokio() {
    comes_back("everything", || {
        let dir = scratch();
        block_on(everything(dir.path())).unwrap();
    });
}

#[test]
fn without_any_executor() {
    comes_back("everything", || {
        let dir = scratch();
        let session = builder(dir.path()).join_blocking().unwrap();
        let mut view = session.query(key!["k"]).subscribe::<u64>();
        session.set_blocking(key!["k"], &1).unwrap();
        session.update_blocking::<u64>(key!["k"], |old| old.unwrap_or(0) + 1).unwrap();
        while view.changed_blocking().unwrap().data() != Some(&2) {}
        session.group().watch().changed_blocking().unwrap();
        session.leave_blocking().unwrap();
    });
}

/// A blocking call inside an executor's task stands still with it, but its end does not depend on that executor.
#[test]
fn a_blocking_call_inside_a_task_comes_back() {
    comes_back("the value", || {
        let dir = scratch();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let session = builder(dir.path()).join_blocking().unwrap();
            session.set_blocking(key!["k"], &1).unwrap();
        });
    });
}

#[test]
fn groups_in_one_process_do_not_know_of_each_other() {
    let dir = scratch();
    let in_group = |name: &str| Session::builder(name).state_dir(dir.path()).join_blocking().unwrap();
    let (one, two) = (in_group("one"), in_group("two"));
    one.set_blocking(key!["k"], &1).unwrap();
    let alone = two.query(key!["k"]).subscribe::<u64>();
    two.set_blocking(key!["other"], &2).unwrap();
    assert_eq!(alone.current().data(), None);
    common::group_is(&one, "one leads", common::leads);
    common::group_is(&two, "two leads", common::leads);
}

#[test]
fn the_last_handle_that_is_dropped_lets_the_session_leave() {
    let dir = scratch();
    let first = builder(dir.path()).join_blocking().unwrap();
    let second = builder(dir.path()).join_blocking().unwrap();
    let clone = first.clone();
    common::has_heir(&first);
    drop(first);
    common::has_heir(&clone);
    drop(clone);
    common::group_is(&second, "the lead", |view| common::leads(view) && view.members.len() == 1);
}
