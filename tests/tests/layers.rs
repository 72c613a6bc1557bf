//! Optimistic layers in whole groups of real processes: the primary is killed with layers open, and several processes take
//! theirs back at once.

use paceline_tests::{Peer, Scratch};
use serde_json::{Value, json};

const PEER: &str = env!("CARGO_BIN_EXE_peer");

fn key() -> Value {
    json!(["packages", 7])
}

/// Peers that all show the base; the first one leads.
fn group(scratch: &Scratch, count: usize) -> Vec<Peer> {
    let mut peers = Vec::new();
    for _ in 0..count {
        let mut peer = Peer::start(PEER, scratch, &[]);
        peer.joined();
        peer.tell(&json!({ "subscribe": key() }));
        peers.push(peer);
    }
    peers[0].tell(&json!({ "set": key(), "value": { "base": 1 } }));
    peers.iter().for_each(|peer| shows(peer, &json!({ "base": 1 })));
    peers
}

fn shows(peer: &Peer, value: &Value) {
    peer.wait(&format!("the view {value}"), |line| (line["view"] == *value).then_some(()));
}

/// Lays a layer that adds a member; the own session shows it before any other does.
fn lay(peer: &mut Peer, name: &str) {
    peer.tell(&json!({ "lay": name, "key": key(), "patch": { name: 1 } }));
    peer.wait("the layer", |line| (line["laid"] == *name).then_some(()));
}

#[test]
fn a_killed_primary_takes_its_own_layers_along_and_no_others() {
    let scratch = Scratch::new("layers-kill");
    let mut peers = group(&scratch, 4);
    for (peer, name) in peers.iter_mut().zip(["a", "b", "c", "d"]) {
        lay(peer, name);
    }
    for peer in &peers {
        shows(peer, &json!({ "base": 1, "a": 1, "b": 1, "c": 1, "d": 1 }));
        peer.drain();
    }
    peers.remove(0).kill();
    for peer in &peers {
        // Whatever it shows until the dead session's layer is gone, the layers of the living are in it.
        peer.wait("the layers of the living alone", |line| {
            let view = line.get("view")?;
            assert_eq!((&view["b"], &view["c"], &view["d"]), (&json!(1), &json!(1), &json!(1)), "{view}");
            (*view == json!({ "base": 1, "b": 1, "c": 1, "d": 1 })).then_some(())
        });
    }
    peers[0].tell(&json!({ "commit": "b" }));
    peers[0].wait("the commit", |line| (line["committed"] == "b").then_some(()));
    peers[1].tell(&json!({ "roll_back": "c" }));
    for peer in &peers {
        shows(peer, &json!({ "base": 1, "b": 1, "d": 1 }));
    }
    // What was committed is in the value, what was not goes with its session.
    peers.remove(2).kill();
    for peer in &peers {
        shows(peer, &json!({ "base": 1, "b": 1 }));
    }
}

#[test]
fn three_processes_take_theirs_back_at_once_and_what_the_fourth_showed_stays() {
    let scratch = Scratch::new("layers-back");
    let mut peers = group(&scratch, 4);
    lay(&mut peers[3], "kept");
    for round in 0..10 {
        for (peer, name) in peers.iter_mut().zip(["a", "b", "c"]) {
            lay(peer, name);
        }
        for peer in &peers {
            shows(peer, &json!({ "base": 1, "kept": 1, "a": 1, "b": 1, "c": 1 }));
        }
        // The order differs from round to round, and nobody waits for anybody.
        for n in 0..3 {
            let n = (n + round) % 3;
            let name = ["a", "b", "c"][n];
            peers[n].tell(&json!({ "roll_back": name }));
        }
        for peer in &peers {
            shows(peer, &json!({ "base": 1, "kept": 1 }));
        }
    }
    peers[3].tell(&json!({ "commit": "kept", "with": { "base": 2, "kept": "by the server" } }));
    for peer in &peers {
        shows(peer, &json!({ "base": 2, "kept": "by the server" }));
    }
}
