//! Leaving when alone: never before others, never with something queued, and whoever comes meanwhile is not lost.

#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::time::Duration;

use paceline::{Builder, Session, key};

/// A wait that takes longer is a hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn session(scratch: &tempfile::TempDir) -> Builder {
    Session::builder("alone").state_dir(scratch.path())
}

async fn join(builder: Builder) -> Session {
    tokio::time::timeout(PATIENCE, builder.join()).await.expect("it joins").unwrap()
}

#[tokio::test]
async fn a_session_that_is_alone_leaves_and_one_that_is_not_stays() {
    let scratch = tempfile::tempdir().unwrap();
    let first = join(session(&scratch)).await;
    let second = join(session(&scratch).observer()).await;
    assert!(!first.leave_if_alone().await, "somebody is here");
    assert!(!second.leave_if_alone().await, "a follower is not alone");
    second.set(key!["a"], &1).await.unwrap();
    second.leave().await.unwrap();
    // Its goodbye may still be on the way.
    let alone = async { while !first.leave_if_alone().await {} };
    tokio::time::timeout(PATIENCE, alone).await.expect("the last one leaves");
    let sockets = std::fs::read_dir(scratch.path().join("alone/s")).unwrap().count();
    assert_eq!(sockets, 0, "nobody listens any more");
}

#[tokio::test]
async fn a_session_with_something_queued_stays_and_welcomes_who_comes_meanwhile() {
    let scratch = tempfile::tempdir().unwrap();
    let first = join(session(&scratch)).await;
    first.submit_raw("mutation").await.unwrap();
    for _ in 0..20 {
        let (left, newcomer) = tokio::join!(first.leave_if_alone(), join(session(&scratch).observer()));
        assert!(!left, "a mutation is queued");
        newcomer.set(key!["a"], &1).await.unwrap();
        newcomer.leave().await.unwrap();
    }
    first.leave().await.unwrap();
}
