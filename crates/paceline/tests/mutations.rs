//! Mutations of real sessions: stored, sent by whoever leads, and known to all.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "../../paceline-upstream/tests/server/mod.rs"]
mod server;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::scratch;
use paceline::{Error, Mutation, MutationId, OnConflict, OutcomeKind, Session};
use serde_json::json;
use server::{Asked, Say, Server, answer, silence};

async fn join(dir: &std::path::Path) -> Session {
    Session::builder("test").state_dir(dir).join().await.unwrap()
}

async fn serving(answers: impl Fn(&Asked) -> Say + Send + Sync + 'static) -> Server {
    Server::start(answers).await
}

fn ok() -> Say {
    answer("200 OK", &[], "{}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mutation_is_sent_as_it_was_made_and_its_outcome_known_to_every_session() {
    let mut server = serving(|_| ok()).await;
    let dir = scratch();
    let (first, second) = (join(dir.path()).await, join(dir.path()).await);
    let mutation = Mutation::patch(format!("{}/packages/7?x=1", server.base))
        .json(&json!({ "status": "checked" }))
        .header("x-tenant", "7")
        .base_version("\"v1\"", OnConflict::ServerWins);
    let receipt = second.mutate(mutation).await.unwrap();
    assert!(receipt.outcome().await.unwrap().is_done());
    let asked = server.asked.recv().await.unwrap();
    assert_eq!(
        (asked.line.as_str(), asked.body.as_str()),
        ("PATCH /packages/7?x=1", "{\"status\":\"checked\"}")
    );
    assert_eq!(asked.headers["content-type"], "application/json");
    assert_eq!(asked.headers["x-tenant"], "7");
    assert_eq!(asked.headers["if-match"], "\"v1\"");
    assert!(asked.headers["traceparent"].starts_with("00-"));
    let MutationId { session, seq } = receipt.id();
    assert_eq!(asked.headers["idempotency-key"], format!("{:032x}-{seq}", session.0));
    // Asked again, by another session, when the outbox has it in its store only.
    assert!(first.outcome(receipt.id()).await.unwrap().is_done());
    let unknown = MutationId { session, seq: seq + 1 };
    let refused = first.outcome(unknown).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused(why) if why.contains("no such mutation")), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_carries_the_words_of_the_server_and_a_scope_keeps_its_order() {
    let mut server = serving(|asked| match asked.line.as_str() {
        "POST /bad" => answer("422 Unprocessable Entity", &[], "the name is taken"),
        "POST /elsewhere" => answer("302 Found", &["location: /ok"], ""),
        _ => ok(),
    })
    .await;
    let dir = scratch();
    let session = join(dir.path()).await;
    let mut receipts = Vec::new();
    for path in ["one", "bad", "two", "elsewhere", "three"] {
        let mutation = Mutation::post(format!("{}/{path}", server.base)).scope("s");
        receipts.push(session.mutate(mutation).await.unwrap());
    }
    let mut outcomes = Vec::new();
    for receipt in &receipts {
        outcomes.push(receipt.outcome().await.unwrap());
    }
    let kinds: Vec<_> = outcomes.iter().map(|outcome| outcome.kind).collect();
    use OutcomeKind::{Done, Rejected};
    assert_eq!(kinds, [Done, Rejected, Done, Rejected, Done]);
    assert_eq!(outcomes[1].to_string(), "rejected: HTTP 422: the name is taken");
    assert!(outcomes[3].to_string().contains("send it to where it leads"), "{}", outcomes[3]);
    for path in ["one", "bad", "two", "elsewhere", "three"] {
        assert_eq!(server.asked.recv().await.unwrap().line, format!("POST /{path}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_sent_again_under_the_same_key() {
    let calls = AtomicUsize::new(0);
    let mut server = serving(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => answer("503 Service Unavailable", &["retry-after: 1"], ""),
        _ => ok(),
    })
    .await;
    let dir = scratch();
    let session = join(dir.path()).await;
    let receipt = session.mutate(Mutation::post(&server.base)).await.unwrap();
    assert!(receipt.outcome().await.unwrap().is_done());
    let keys: Vec<_> = [server.asked.recv().await.unwrap(), server.asked.recv().await.unwrap()]
        .map(|asked| asked.headers["idempotency-key"].clone())
        .into();
    assert_eq!(keys[0], keys[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_may_have_arrived_at_a_server_without_keys_is_asked_about() {
    let calls = AtomicUsize::new(0);
    let mut server = serving(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => answer("500 Internal Server Error", &[], "half done"),
        _ => ok(),
    })
    .await;
    let dir = scratch();
    let session = join(dir.path()).await;
    let receipt = session.mutate(Mutation::post(&server.base).at_most_once()).await.unwrap();
    let outcome = receipt.outcome().await.unwrap();
    assert_eq!((outcome.kind, outcome.is_uncertain), (OutcomeKind::Parked, true));
    assert_eq!(outcome.to_string(), "parked: HTTP 500: half done; it may have been applied");
    session.retry(receipt.id()).await.unwrap();
    assert!(receipt.outcome().await.unwrap().is_done());
    assert_eq!(server.asked.recv().await.unwrap().line, "POST /");
    let again = session.retry(receipt.id()).await.unwrap_err();
    assert!(again.to_string().contains("no such mutation"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_credentials_hold_a_scope_until_somebody_has_others() {
    let calls = AtomicUsize::new(0);
    let mut server = serving(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => answer("401 Unauthorized", &[], ""),
        _ => ok(),
    })
    .await;
    let dir = scratch();
    let session = join(dir.path()).await;
    let held = session.mutate(Mutation::post(format!("{}/a", server.base)).scope("a")).await.unwrap();
    assert_eq!(server.asked.recv().await.unwrap().line, "POST /a");
    let free = session.mutate(Mutation::post(format!("{}/b", server.base)).scope("b")).await.unwrap();
    assert!(free.outcome().await.unwrap().is_done());
    assert_eq!(server.asked.recv().await.unwrap().line, "POST /b");
    assert!(server.asked.try_recv().is_err(), "nothing is sent without them");
    assert!(!session.leave_if_alone().await, "a mutation waits");
    session.authenticated().await.unwrap();
    assert!(held.outcome().await.unwrap().is_done());
    assert!(session.leave_if_alone().await, "nothing waits any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_leaves_hands_over_what_is_under_way_and_the_receipt_resolves() {
    let calls = AtomicUsize::new(0);
    let mut server = serving(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => silence(),
        _ => ok(),
    })
    .await;
    let dir = scratch();
    let first = join(dir.path()).await;
    let second = join(dir.path()).await;
    let receipt = second.mutate(Mutation::post(&server.base).scope("s")).await.unwrap();
    let later = second.mutate(Mutation::post(format!("{}/later", server.base)).scope("s")).await.unwrap();
    let sent = server.asked.recv().await.unwrap();
    first.leave().await.unwrap();
    assert!(receipt.outcome().await.unwrap().is_done());
    assert!(later.outcome().await.unwrap().is_done());
    let again = server.asked.recv().await.unwrap();
    assert_eq!(sent.headers["idempotency-key"], again.headers["idempotency-key"]);
    assert_eq!(server.asked.recv().await.unwrap().line, "POST /later");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_sent_by_a_group_that_comes_later() {
    let mut server = serving(|_| ok()).await;
    let dir = scratch();
    let before = join(dir.path()).await;
    // A server that is not there: nothing can be sent.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let id = before.mutate(Mutation::post(format!("http://{address}/gone"))).await.unwrap().id();
    let done = before.mutate(Mutation::post(&server.base)).await.unwrap();
    assert!(done.outcome().await.unwrap().is_done());
    before.leave().await.unwrap();
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let session = join(dir.path()).await;
    let (sending, _) = listener.accept().await.unwrap();
    assert!(session.outcome(done.id()).await.unwrap().is_done());
    let refused = session.discard(id).await.unwrap_err();
    assert!(refused.to_string().contains("being sent"), "{refused}");
    drop(sending);
    assert_eq!(server.asked.recv().await.unwrap().line, "POST /");
    assert!(server.asked.try_recv().is_err(), "what was done is not sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_never_be_sent_is_refused_before_it_is_stored() {
    let dir = scratch();
    let session = join(dir.path()).await;
    let unfit = Mutation::request("GET /", "http://127.0.0.1:9/");
    assert!(
        matches!(session.mutate(unfit).await, Err(Error::Encode(why)) if why.contains("no request method"))
    );
    let large = Mutation::post("http://127.0.0.1:9/").body(vec![b'x'; 2 << 20]);
    assert!(matches!(session.mutate(large).await, Err(Error::Encode(why)) if why.contains("at most")));
    let nowhere = session.mutate(Mutation::post("mailto:a@example.com")).await.unwrap();
    let outcome = nowhere.outcome().await.unwrap();
    assert!(outcome.kind == OutcomeKind::Rejected && outcome.to_string().contains("https://"), "{outcome}");
}
