//! Sixty-four real sessions that start at one instant: one leads, nobody else may act as owner, and nothing is lost.

#![expect(clippy::print_stdout, reason = "the number of epochs used is a finding")]

use std::collections::{BTreeMap, BTreeSet};

use paceline_tests::{Peer, Scratch, newest_claim};
use serde_json::{Value, json};

const PEER: &str = env!("CARGO_BIN_EXE_peer");

/// The number of sessions is the point: all race for the first claim.
const SESSIONS: usize = 64;

/// How often; `PACELINE_CROWDS` asks for more.
fn crowds() -> u64 {
    std::env::var("PACELINE_CROWDS").ok().and_then(|crowds| crowds.parse().ok()).unwrap_or(1)
}

#[test]
fn sixty_four_sessions_started_at_one_instant_agree_on_one_primary() {
    for crowd in 1..=crowds() {
        let epochs = start_together();
        println!("crowd {crowd}: {SESSIONS} sessions, epochs used: {epochs}");
    }
}

/// Starts them, lets each store one mutation, waits until all are at rest; returns how many epochs that took.
fn start_together() -> u64 {
    let scratch = Scratch::new("crowd");
    let mut peers: Vec<Peer> = (0..SESSIONS).map(|_| Peer::start(PEER, &scratch, &["--at-go"])).collect();
    for peer in &peers {
        peer.wait("that it is ready", |line| line.get("ready").map(drop));
    }
    for peer in &mut peers {
        peer.tell(&json!({ "go": true }));
    }
    for (n, peer) in peers.iter_mut().enumerate() {
        peer.joined();
        peer.tell(&json!({ "submit_once": format!("of {n}") }));
    }
    for (n, peer) in peers.iter().enumerate() {
        let own = json!(format!("of {n}"));
        peer.wait("the acknowledgement", |line| (line["acknowledged"] == own).then_some(()));
    }
    let (epochs, owner) = newest_claim(&scratch);
    for peer in &peers {
        peer.above(epochs - 1);
    }
    one_owner_per_epoch(&peers, epochs, owner);
    let stored = paceline_store::reachable(&scratch.path().join("test")).expect("the store is readable");
    let payloads: BTreeSet<_> = stored.rows.iter().map(|row| row.payload.clone()).collect();
    assert_eq!((payloads.len(), stored.rows.len()), (SESSIONS, SESSIONS), "each mutation is stored once");
    epochs
}

/// Each epoch has one owner, each owner but the last knows that it is none any more, and the last is the primary at rest.
fn one_owner_per_epoch(peers: &[Peer], epochs: u64, owner: u32) {
    let mut elected: BTreeMap<u64, u32> = BTreeMap::new();
    for peer in peers {
        let lines = peer.drain();
        let dead = lines.iter().find(|line| line["elected"].is_u64() && line["over"] == json!("Dead"));
        assert_eq!(dead, None, "nobody died");
        let ended = |line: &Value, epoch: u64| {
            (line["fenced"] == json!(epoch) || line["stepped_down"] == json!(epoch)).then_some(())
        };
        for epoch in lines.iter().filter_map(|line| line["elected"].as_u64()) {
            let other = elected.insert(epoch, peer.pid());
            assert_eq!(other, None, "epoch {epoch} has a second owner");
            if epoch < epochs && !lines.iter().any(|line| ended(line, epoch).is_some()) {
                peer.wait("the end of its reign", |line| ended(line, epoch));
            }
        }
    }
    assert_eq!(elected.keys().copied().collect::<Vec<_>>(), (1..=epochs).collect::<Vec<_>>());
    assert_eq!(elected[&epochs], owner, "the newest claim names the primary");
}
