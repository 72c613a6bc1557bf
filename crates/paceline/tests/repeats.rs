//! A server that sends again what it sent before: by their ids repetitions are dropped, also by the next session that leads.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use paceline::{EventError, Route, Session, WebSocket, key};
use serde_json::{Value, json};
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

async fn send(wire: &mut WebSocketStream<TcpStream>, ids: &[&str]) {
    for id in ids {
        wire.send(Message::text(json!({ "id": id }).to_string())).await.unwrap();
    }
}

#[tokio::test]
async fn a_message_that_is_sent_again_is_dropped_by_its_id_also_after_a_takeover() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let join = || {
        let feed = WebSocket::new("feed", &url)
            .message_id("$.id")
            .backoff(Duration::from_millis(5), Duration::from_millis(20))
            .route(Route::all().emit("ids", "$.id"));
        Session::builder("test").state_dir(dir.path()).upstream(feed).join()
    };
    let one = join().await.unwrap();
    let two = join().await.unwrap();
    let mut wire = accept(&listener).await;
    let mut ids = two.events("ids").subscribe::<Value>();
    two.set(key!["subscribed"], &true).await.unwrap();
    let mut next = async || match timeout(PATIENCE, ids.next()).await.expect("something comes") {
        Ok(event) => event.data.as_str().unwrap().to_owned(),
        Err(EventError::Gap(_)) => "gap".to_owned(),
        Err(other) => panic!("{other}"),
    };
    send(&mut wire, &["a", "b", "b"]).await;
    assert_eq!([next().await, next().await], ["a", "b"]);
    drop(wire);
    let mut wire = accept(&listener).await;
    send(&mut wire, &["a", "b", "c"]).await;
    assert_eq!([next().await, next().await], ["gap", "c"]);
    let goes_on = async {
        while wire.next().await.is_some_and(|frame| frame.is_ok()) {}
        let mut wire = accept(&listener).await;
        send(&mut wire, &["b", "c", "d"]).await;
        assert_eq!([next().await, next().await], ["gap", "d"]);
        wire
    };
    let (left, _wire) = tokio::join!(one.leave(), goes_on);
    left.unwrap();
    two.leave().await.unwrap();
}
