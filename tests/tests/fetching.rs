//! Fetches of whole groups of real processes, counted by the server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../crates/paceline-upstream/tests/server/mod.rs"]
mod server;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use paceline_tests::{Peer, Scratch};
use serde_json::{Value, json};
use server::{Server, answer, silence};

const PEER: &str = env!("CARGO_BIN_EXE_peer");

/// A configuration whose packages come from this server.
fn config(scratch: &Scratch, base: &str) -> PathBuf {
    let file = scratch.path().join("paceline.toml");
    let text = format!(
        "[http.main]\nbase = \"{base}\"\n[resources.packages]\nkey = [\"packages\", \"{{id}}\"]\nstale_time = \"1h\"\n\
         fetch = {{ http = \"main\", path = \"/packages/{{id}}\" }}\n"
    );
    std::fs::write(&file, text).unwrap();
    file
}

fn peers(scratch: &Scratch, file: &Path, count: usize) -> Vec<Peer> {
    let peers: Vec<Peer> =
        (0..count).map(|_| Peer::start(PEER, scratch, &["--config", file.to_str().unwrap()])).collect();
    peers.iter().for_each(|peer| drop(peer.joined()));
    peers
}

/// Waits for what a caller of this peer got; whether it was held already.
fn fetched(peer: &Peer, value: &Value) -> bool {
    peer.wait("a fetched value", |line| {
        assert!(line.get("error").is_none(), "{line}");
        (line["fetched"] == *value).then(|| line["cached"].as_bool()).flatten()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_fetches_of_one_key_from_eight_processes_are_one_request_and_a_newcomer_needs_none() {
    let mut server = Server::start(|_| answer("200 OK", &[], "{\"id\":7}")).await;
    let scratch = Scratch::new("fifty");
    let file = config(&scratch, &server.base);
    let mut peers = peers(&scratch, &file, 8);
    for (n, peer) in peers.iter_mut().enumerate() {
        let callers = if n < 2 { 7 } else { 6 };
        peer.tell(&json!({ "fetch": ["packages", 7], "callers": callers }));
    }
    for (n, peer) in peers.iter().enumerate() {
        for _ in 0..if n < 2 { 7 } else { 6 } {
            fetched(peer, &json!({ "id": 7 }));
        }
    }
    let mut newcomer = Peer::start(PEER, &scratch, &["--config", file.to_str().unwrap()]);
    newcomer.joined();
    newcomer.tell(&json!({ "fetch": ["packages", 7] }));
    assert!(fetched(&newcomer, &json!({ "id": 7 })), "from the cache");
    server.asked.recv().await.unwrap();
    assert!(server.asked.try_recv().is_err(), "one request in all");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_get_the_value_when_the_primary_dies_while_it_is_fetched() {
    let count = AtomicUsize::new(0);
    // The first request is never answered.
    let mut server = Server::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => silence(),
        _ => answer("200 OK", &[], "{\"id\":7}"),
    })
    .await;
    let scratch = Scratch::new("dies");
    let file = config(&scratch, &server.base);
    let mut primary = peers(&scratch, &file, 1).remove(0);
    let mut others = peers(&scratch, &file, 3);
    for peer in &mut others {
        peer.tell(&json!({ "fetch": ["packages", 7], "callers": 3 }));
    }
    server.asked.recv().await.unwrap();
    primary.kill();
    for peer in &others {
        for _ in 0..3 {
            fetched(peer, &json!({ "id": 7 }));
        }
    }
    server.asked.recv().await.unwrap();
    assert!(server.asked.try_recv().is_err(), "one more request");
}
