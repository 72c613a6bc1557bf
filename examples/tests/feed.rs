//! The feed server of `one_wire`, seen by a plain WebSocket client.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use futures_util::StreamExt;
use paceline_examples::one_wire::{
    child::TempDir,
    control::{Counters, FeedLine},
    feed::{Feed, FeedOptions},
    log::{Record, read_log},
    message::{Message, OUTAGE_KEY, all_keys},
};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Error},
};

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Far more than anything here takes; a test that needs it has failed.
const LIMIT: Duration = Duration::from_secs(20);

async fn try_connect(feed: &Feed, query: &str) -> Result<Client, Error> {
    connect_async(format!("ws://127.0.0.1:{}/metrics{query}", feed.port())).await.map(|(client, _)| client)
}

async fn connect(feed: &Feed, query: &str) -> Client {
    try_connect(feed, query).await.unwrap()
}

/// The next JSON message; pings are answered by reading on.
async fn next(client: &mut Client) -> Value {
    let read = async {
        loop {
            if let tungstenite::Message::Text(text) = client.next().await.unwrap().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    };
    tokio::time::timeout(LIMIT, read).await.unwrap()
}

async fn next_metric(client: &mut Client) -> Message {
    serde_json::from_value(next(client).await).unwrap()
}

/// The messages before `{"type":"live"}`.
async fn snapshot(client: &mut Client) -> Vec<Value> {
    let mut values = Vec::new();
    loop {
        let message = next(client).await;
        if message["type"] == "live" {
            return values;
        }
        assert_eq!(message["type"], "snapshot");
        values.push(message);
    }
}

/// Waits until the feed has seen what a client did; bounded by [`LIMIT`].
async fn until(feed: &Feed, done: impl Fn(Counters) -> bool) {
    let wait = async {
        while !done(feed.counters()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap();
}

async fn disconnect(feed: &Feed, client: Client) {
    drop(client);
    until(feed, |counters| counters.connections == 0).await;
}

#[tokio::test]
async fn a_consumer_resumes_after_its_position_without_loss_or_repetition() {
    let dir = TempDir::new("feed").unwrap();
    let log = dir.path().join("feed.log");
    let feed = Feed::start(FeedOptions { log: Some(log.clone()), ..FeedOptions::default() }).await.unwrap();
    let mut client = connect(&feed, "").await;
    snapshot(&mut client).await;
    let mut got = vec![next_metric(&mut client).await];
    for _ in 0..5 {
        let last = got.last().unwrap().seq;
        disconnect(&feed, client).await;
        client = connect(&feed, &format!("?since={last}")).await;
        assert_eq!(snapshot(&mut client).await, [] as [Value; 0]);
        for _ in 0..50 {
            got.push(next_metric(&mut client).await);
        }
    }
    let FeedLine::Paused { seq, values, counters } = feed.pause() else { panic!("another line") };
    while got.last().unwrap().seq < seq {
        got.push(next_metric(&mut client).await);
    }
    assert!(got.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1 && pair[1].stream == pair[0].stream));
    assert_eq!((counters.connections_total, counters.connections_max, counters.refused), (6, 1, 0));
    // Once in each outage, and at the start.
    assert_eq!(got.iter().filter(|message| message.key == OUTAGE_KEY).count(), 5);
    assert_eq!(values[OUTAGE_KEY].version, 6);
    let published: Vec<(u64, u64)> = read_log(&log)
        .unwrap()
        .into_iter()
        .map(|record| match record {
            Record::Event { number, hash, .. } => (number, hash),
            Record::Gap { .. } => panic!("the feed loses nothing"),
        })
        .filter(|(number, _)| *number >= got[0].seq)
        .collect();
    let delivered: Vec<(u64, u64)> = got.iter().map(|message| (message.seq, message.fingerprint())).collect();
    assert_eq!(delivered, published);
}

#[tokio::test]
async fn a_second_consumer_is_refused_while_one_is_connected() {
    let feed = Feed::start(FeedOptions::default()).await.unwrap();
    let mut first = connect(&feed, "").await;
    next(&mut first).await;
    match try_connect(&feed, "").await {
        Err(Error::Http(response)) => assert_eq!(response.status(), 409),
        other => panic!("not refused: {other:?}"),
    }
    disconnect(&feed, first).await;
    let mut second = connect(&feed, "").await;
    next(&mut second).await;
    let counters = feed.counters();
    assert_eq!((counters.connections_total, counters.connections_max, counters.refused), (2, 1, 1));
}

#[tokio::test]
async fn many_consumers_are_admitted_when_asked_to() {
    let feed = Feed::start(FeedOptions { admit_all: true, ..FeedOptions::default() }).await.unwrap();
    let mut clients = [connect(&feed, "").await, connect(&feed, "").await, connect(&feed, "").await];
    for client in &mut clients {
        next(client).await;
    }
    let counters = feed.counters();
    assert_eq!((counters.connections_total, counters.connections_max, counters.refused), (3, 3, 0));
}

#[tokio::test]
async fn a_silent_consumer_is_dropped() {
    let feed = Feed::start(FeedOptions::default()).await.unwrap();
    // Connected, but never read from: pings stay unanswered and what is sent piles up.
    let silent = connect(&feed, "").await;
    until(&feed, |counters| counters.silent == 1 && counters.connections == 0).await;
    drop(silent);
    // One that answers pings stays, well past the same time.
    let mut client = connect(&feed, "").await;
    let start = tokio::time::Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        next(&mut client).await;
    }
    assert_eq!(feed.counters().silent, 1);
}

#[tokio::test]
async fn without_resume_the_position_is_ignored_and_a_whole_snapshot_comes_first() {
    let feed = Feed::start(FeedOptions { resume: false, ..FeedOptions::default() }).await.unwrap();
    let mut client = connect(&feed, "").await;
    snapshot(&mut client).await;
    let last = next_metric(&mut client).await.seq;
    disconnect(&feed, client).await;
    let mut client = connect(&feed, &format!("?since={last}")).await;
    let values = snapshot(&mut client).await;
    let keys: Vec<&str> = values.iter().map(|value| value["key"].as_str().unwrap()).collect();
    let mut expected: Vec<&str> = all_keys().collect();
    expected.sort_unstable();
    assert_eq!(keys, expected);
    let outage = values.iter().find(|value| value["key"] == OUTAGE_KEY).unwrap();
    assert_eq!(outage["version"], 2, "it changed once, while nobody was connected");
    let live = next_metric(&mut client).await;
    // The message of the outage at least was lost.
    assert!(live.seq > last + 1);
    let held = values.iter().find(|value| value["key"] == live.key.as_str()).unwrap();
    assert_eq!(live.version, held["version"].as_u64().unwrap() + 1, "the snapshot joins what follows");
}

#[tokio::test]
async fn a_position_past_the_kept_history_shows_as_a_hole_and_a_foreign_one_as_a_snapshot() {
    let feed = Feed::start(FeedOptions { history: 10, ..FeedOptions::default() }).await.unwrap();
    let mut client = connect(&feed, "").await;
    snapshot(&mut client).await;
    while next_metric(&mut client).await.seq < 50 {}
    disconnect(&feed, client).await;
    let mut client = connect(&feed, "?since=3").await;
    assert_eq!(snapshot(&mut client).await, [] as [Value; 0]);
    assert!(next_metric(&mut client).await.seq > 4);
    disconnect(&feed, client).await;
    let mut client = connect(&feed, "?since=999999999").await;
    assert_eq!(snapshot(&mut client).await.len(), all_keys().count());
}

#[tokio::test]
async fn a_long_replay_has_no_seams() {
    let feed = Feed::start(FeedOptions { rate: 20_000, ..FeedOptions::default() }).await.unwrap();
    let mut client = connect(&feed, "").await;
    snapshot(&mut client).await;
    while next_metric(&mut client).await.seq < 5000 {}
    disconnect(&feed, client).await;
    let mut client = connect(&feed, "?since=10").await;
    snapshot(&mut client).await;
    for expected in 11..=5000 {
        assert_eq!(next_metric(&mut client).await.seq, expected);
    }
}
