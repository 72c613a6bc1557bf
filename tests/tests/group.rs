//! Whole groups of real processes: election, takeover by kill and by freeze, polite handover, volatile operations.

use paceline_tests::{Peer, Scratch};
use serde_json::{Value, json};

const PEER: &str = env!("CARGO_BIN_EXE_peer");

fn role(value: &Value) -> Option<String> {
    value["role"].as_str().map(str::to_owned)
}

fn is_primary(value: &Value) -> Option<()> {
    role(value)?.starts_with("Primary").then_some(())
}

fn follows(value: &Value) -> Option<String> {
    role(value).filter(|role| role.starts_with("Follower"))
}

/// Starts a primary and then `followers` others, each joined before the next starts.
fn group(scratch: &Scratch, followers: usize) -> (Peer, Vec<Peer>) {
    let primary = Peer::start(PEER, scratch, &[]);
    primary.joined();
    primary.wait("the primary role", is_primary);
    let others = (0..followers)
        .map(|_| {
            let peer = Peer::start(PEER, scratch, &[]);
            peer.joined();
            peer
        })
        .collect();
    (primary, others)
}

fn set(peer: &mut Peer, key: &Value, value: &Value) -> bool {
    peer.tell(&json!({ "set": key, "value": value }));
    peer.wait("the answer to set", |line| {
        (line["set"] == *value).then(|| line["volatile"].as_bool()).flatten()
    })
}

fn shows(peer: &Peer, value: &Value) {
    peer.wait(&format!("the view {value}"), |line| (line["view"] == *value).then_some(()));
}

#[test]
fn a_value_set_by_one_session_is_shown_by_all() {
    let scratch = Scratch::new("set");
    let (mut primary, mut others) = group(&scratch, 2);
    let key = json!(["stock", 7]);
    for peer in std::iter::once(&mut primary).chain(&mut others) {
        peer.tell(&json!({ "subscribe": key }));
    }
    set(&mut others[0], &key, &json!({ "count": 41 }));
    for peer in std::iter::once(&primary).chain(&others) {
        shows(peer, &json!({ "count": 41 }));
    }
}

#[test]
fn updates_of_many_sessions_all_count() {
    let scratch = Scratch::new("update");
    let (mut primary, mut others) = group(&scratch, 3);
    let key = json!(["counter"]);
    primary.tell(&json!({ "subscribe": key }));
    for peer in &mut others {
        for _ in 0..2 {
            peer.tell(&json!({ "increment": key }));
        }
    }
    for peer in &others {
        for _ in 0..2 {
            peer.wait("the increment", |line| line.get("incremented").map(|_| ()));
        }
    }
    shows(&primary, &json!(6));
}

#[test]
fn a_value_acknowledged_by_an_heir_survives_the_kill_of_the_primary() {
    let scratch = Scratch::new("kill");
    let (mut primary, mut others) = group(&scratch, 2);
    let key = json!(["draft"]);
    // The first answers may still be volatile: an heir counts once it acknowledged all shared state.
    let mut n = 0;
    while {
        n += 1;
        set(&mut others[0], &key, &json!(n))
    } {}
    primary.kill();
    let mut newcomer = Peer::start(PEER, &scratch, &[]);
    newcomer.joined();
    newcomer.tell(&json!({ "subscribe": key }));
    shows(&newcomer, &json!(n));
}

#[test]
fn a_stopped_primary_is_replaced_and_comes_back_as_a_follower() {
    let scratch = Scratch::new("stop");
    let (primary, others) = group(&scratch, 2);
    primary.stop();
    let owner = others
        .iter()
        .map(|peer| peer.wait("a new role", |line| is_primary(line).or(follows_epoch(line, 2))))
        .count();
    assert_eq!(owner, 2);
    primary.resume();
    primary.wait("its return as a follower", |line| follows(line).map(|_| ()));
}

fn follows_epoch(line: &Value, epoch: u64) -> Option<()> {
    follows(line)?.contains(&format!("epoch: Epoch({epoch})")).then_some(())
}

#[test]
fn a_leaving_primary_hands_over() {
    let scratch = Scratch::new("leave");
    let (mut primary, mut others) = group(&scratch, 2);
    let key = json!(["kept"]);
    while set(&mut others[0], &key, &json!("v")) {}
    assert!(primary.leave(), "the primary left well");
    let mut newcomer = Peer::start(PEER, &scratch, &[]);
    newcomer.joined();
    newcomer.tell(&json!({ "subscribe": key }));
    shows(&newcomer, &json!("v"));
}

#[test]
fn an_observer_alone_never_leads() {
    let scratch = Scratch::new("observer");
    let observer = Peer::start(PEER, &scratch, &["--observer"]);
    let primary = Peer::start(PEER, &scratch, &[]);
    primary.joined();
    observer.joined();
    primary.wait("the primary role", is_primary);
    observer.wait("the follower role", follows);
}

#[test]
fn a_removed_socket_is_bound_again_while_its_owner_lives() {
    let scratch = Scratch::new("rebind");
    let (primary, others) = group(&scratch, 1);
    let sockets = scratch.path().join("test").join("s");
    for entry in std::fs::read_dir(sockets).expect("sockets are there").flatten() {
        std::fs::remove_file(entry.path()).expect("remove a socket");
    }
    let newcomer = Peer::start(PEER, &scratch, &[]);
    newcomer.joined();
    newcomer.wait("the follower role in the first reign", |line| follows_epoch(line, 1));
    drop((primary, others));
}
