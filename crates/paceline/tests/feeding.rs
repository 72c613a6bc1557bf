//! A resource that an upstream feeds: polled while that is not live, and silent while it is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../paceline-upstream/tests/server/mod.rs"]
mod server;

use std::time::Duration;

use futures_util::SinkExt;
use paceline::{ConnectionState, Session, key};
use serde_json::{Value, json};
use server::{Server, answer};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, accept_async, tungstenite::Message};

/// A wait that takes longer is a hang.
const PATIENCE: Duration = Duration::from_secs(60);

async fn accept(listener: &TcpListener) -> WebSocketStream<TcpStream> {
    let (stream, _) = timeout(PATIENCE, listener.accept()).await.expect("a session connects").unwrap();
    accept_async(stream).await.unwrap()
}

async fn until_live(session: &Session) {
    let mut watch = session.group().watch();
    let live = async {
        let is_live = |session: &Session| {
            session.group().current().connections.iter().any(|it| it.state == ConnectionState::Live)
        };
        while !is_live(session) {
            watch.changed().await.unwrap();
        }
    };
    timeout(PATIENCE, live).await.expect("the wire is live");
}

async fn shows(subscription: &mut paceline::Subscription<Value>, wanted: &Value) {
    let shown = async {
        while subscription.current().data() != Some(wanted) {
            subscription.changed().await.unwrap();
        }
    };
    timeout(PATIENCE, shown).await.unwrap_or_else(|_| panic!("{wanted} is not shown"));
}

#[tokio::test]
async fn a_fallback_polls_at_once_when_the_wire_is_lost_and_is_silent_when_it_is_back() {
    let mut http = Server::start(|_| answer("200 OK", &[], "{\"by\":\"poll\"}")).await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("paceline.toml");
    let text = format!(
        r#"
[http.main]
base = "{base}"
[upstreams.feed]
protocol = "websocket"
url = "ws://127.0.0.1:{port}/"
backoff = {{ base = "20ms", cap = "50ms" }}
fallback = ["poll"]
[[routes]]
upstream = "feed"
set = [{{ key = ["labels", "$.org"], value = "$.labels" }}]
[resources.labels]
key = ["labels", "{{org}}"]
stale_time = "never"
fetch = {{ http = "main", path = "/labels/{{org}}" }}
poll = {{ mode = "fallback", otherwise = "10ms", background = "10ms" }}
"#,
        base = http.base,
        port = listener.local_addr().unwrap().port()
    );
    std::fs::write(&file, text).unwrap();
    let session =
        Session::builder("test").state_dir(dir.path().join("state")).config_file(&file).join().await.unwrap();
    let mut wire = accept(&listener).await;
    until_live(&session).await;
    let mut labels = session.query(key!["labels", 7]).subscribe::<Value>();
    // Without a value it is fetched, whatever the wire does.
    timeout(PATIENCE, http.asked.recv()).await.unwrap().unwrap();
    shows(&mut labels, &json!({ "by": "poll" })).await;

    // While the wire is live nothing is polled, however often there would be time for it.
    for n in 0..20 {
        wire.send(Message::text(json!({ "org": 7, "labels": { "n": n } }).to_string())).await.unwrap();
        shows(&mut labels, &json!({ "n": n })).await;
        session.set(key!["other"], &n).await.unwrap();
    }
    assert!(http.asked.try_recv().is_err(), "polled although the wire is live");

    // The wire is lost, and nobody listens: polls, one after the other.
    drop(wire);
    for _ in 0..3 {
        timeout(PATIENCE, http.asked.recv()).await.expect("it is polled").unwrap();
    }
    shows(&mut labels, &json!({ "by": "poll" })).await;

    // It is back: silent again.
    let _wire = accept(&listener).await;
    until_live(&session).await;
    // A request that was given up may still come; polls would never end.
    let mut is_silent = false;
    for _ in 0..5 {
        session.query(key!["labels", 7]).refetch::<Value>().await.unwrap();
        while http.asked.try_recv().is_ok() {}
        for n in 0..200 {
            session.set(key!["other"], &n).await.unwrap();
        }
        is_silent |= http.asked.try_recv().is_err();
    }
    assert!(is_silent, "polled although the wire is back");
    session.leave().await.unwrap();
}
