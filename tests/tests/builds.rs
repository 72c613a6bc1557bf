//! Groups of processes of different builds: one wire where they understand each other, a refusal that names both where they
//! do not, and no old build over a newer store.

use paceline_store::SCHEMA;
use paceline_tests::{Peer, Scratch, epoch_of, newest_claim};
use serde_json::{Value, json};

const PEER: &str = env!("CARGO_BIN_EXE_peer");

fn build(scratch: &Scratch, other: &Value) -> Peer {
    Peer::start(PEER, scratch, &["--stand-for", &other.to_string()])
}

fn role<'a>(line: &'a Value, wanted: &str) -> Option<&'a str> {
    line["role"].as_str().filter(|role| role.starts_with(wanted))
}

fn leads(peer: &Peer) -> u64 {
    peer.wait("the primary role with a store", |line| {
        role(line, "Primary").filter(|role| role.contains("adopted: true"))?;
        epoch_of(line)
    })
}

fn follows(peer: &Peer, epoch: u64) {
    peer.wait(&format!("following epoch {epoch}"), |line| {
        role(line, "Follower")?;
        (epoch_of(line)? == epoch).then_some(())
    });
}

fn protocols(peer: &mut Peer) -> Value {
    peer.tell(&json!({ "sessions": true }));
    peer.wait("the sessions", |line| line.get("protocols").cloned())
}

/// A value that `from` sets is shown by `to`.
fn crosses(from: &mut Peer, to: &mut Peer, value: &str) {
    let key = json!(["crossing", value]);
    to.tell(&json!({ "subscribe": key }));
    from.tell(&json!({ "set": key, "value": value }));
    from.wait("the answer", |line| (line["set"] == value).then_some(()));
    to.wait("the value", |line| (line["view"] == value).then_some(()));
}

#[test]
fn builds_that_overlap_share_one_wire_in_the_highest_version_of_each_connection() {
    let scratch = Scratch::new("overlap");
    let mut primary = build(&scratch, &json!({ "build": "app 2", "proto": [1, 3] }));
    primary.joined();
    assert_eq!(leads(&primary), 1);
    let mut old = build(&scratch, &json!({ "build": "app 1", "proto": [1, 2] }));
    let mut same = build(&scratch, &json!({ "build": "app 2", "proto": [1, 3] }));
    let mut late = build(&scratch, &json!({ "build": "app 3", "proto": [3, 7] }));
    for peer in [&old, &same, &late] {
        peer.joined();
        follows(peer, 1);
    }
    let spoken = protocols(&mut old);
    let version = |peer: &Peer| spoken[peer.pid().to_string()].as_u64();
    assert_eq!(
        [version(&primary), version(&old), version(&same), version(&late)],
        [Some(3), Some(2), Some(3), Some(3)]
    );
    crosses(&mut primary, &mut old, "down");
    crosses(&mut old, &mut late, "across");
    crosses(&mut late, &mut primary, "up");
    crosses(&mut same, &mut old, "sideways");
    assert_eq!(newest_claim(&scratch), (1, primary.pid()), "nobody else led");
}

#[test]
fn a_newcomer_without_a_common_version_is_told_both_builds_and_what_to_do() {
    let scratch = Scratch::new("apart");
    let mut primary = build(&scratch, &json!({ "build": "app 9", "proto": [4, 5] }));
    primary.joined();
    leads(&primary);
    for (proto, advice) in [
        ([1, 3], "update the program of process OWN"),
        ([6, 6], "update the program of process PRIMARY and end that process"),
    ] {
        let mut newcomer = build(&scratch, &json!({ "build": "app 1", "proto": proto }));
        let why = newcomer.wait("the refusal", |line| line["failed"].as_str().map(str::to_owned));
        let advice =
            advice.replace("OWN", &newcomer.pid().to_string()).replace("PRIMARY", &primary.pid().to_string());
        for part in [
            "\"app 9\"",
            "\"app 1\"",
            &format!("process {}", primary.pid()),
            &format!("process {}", newcomer.pid()),
            "protocols 4 to 5",
            &advice,
        ] {
            assert!(why.contains(part), "{part} is not in: {why}");
        }
        assert!(!newcomer.status().success());
    }
    primary.tell(&json!({ "counts": true }));
    let refused = primary.wait("the counts", |line| line["counts"]["peer_refused"].as_u64());
    assert_eq!(refused, 2, "the primary knows of each once");
    assert_eq!(newest_claim(&scratch), (1, primary.pid()));
}

#[test]
fn an_old_build_never_claims_over_a_newer_store() {
    let scratch = Scratch::new("newer-store");
    let newer = json!({ "build": "app 2", "schema": SCHEMA + 1, "min_reader": SCHEMA + 1 });
    let mut primary = build(&scratch, &newer);
    primary.joined();
    assert_eq!(leads(&primary), 1);
    primary.tell(&json!({ "submit_once": "kept" }));
    primary.wait("the acknowledgement", |line| (line["acknowledged"] == "kept").then_some(()));
    // It may follow.
    let mut old = build(&scratch, &json!({ "build": "app 1" }));
    old.joined();
    follows(&old, 1);
    crosses(&mut primary, &mut old, "before");
    primary.kill();
    let blocked =
        |peer: &Peer| peer.wait("the reason why it waits", |line| role(line, "Blocked").map(str::to_owned));
    let why = blocked(&old);
    assert!(why.contains("written by a newer build") && why.contains("app 1"), "{why}");
    assert!(why.contains(&format!("process {}", old.pid())) && why.contains("update this program"), "{why}");
    // Another one that comes now is told at once.
    let mut newcomer = build(&scratch, &json!({ "build": "app 1" }));
    let why = newcomer.wait("the refusal", |line| line["failed"].as_str().map(str::to_owned));
    assert!(why.contains(&format!("schema {}", SCHEMA + 1)), "{why}");
    assert!(why.contains(&format!("reads up to {SCHEMA}")) && why.contains("app 1"), "{why}");
    assert!(!newcomer.status().success());
    assert_eq!(newest_claim(&scratch), (1, primary.pid()), "nobody claimed");
    // A build that reads it takes over, with what was acknowledged; the old one follows again.
    let mut successor = build(&scratch, &newer);
    successor.joined();
    let adopted = successor
        .wait("the adoption", |line| (line["adopted"] == 2).then(|| line["rows"].as_u64()).flatten());
    assert_eq!(adopted, 1);
    follows(&old, 2);
    crosses(&mut old, &mut successor, "after");
}

#[test]
fn a_newer_build_is_handed_the_wire_and_an_older_one_never() {
    let scratch = Scratch::new("upgrade");
    let program = |release: u32| json!({ "build": format!("app {release}"), "release": release, "proto": [1, release] });
    let mut first = build(&scratch, &program(5));
    first.joined();
    assert_eq!(leads(&first), 1);
    // An older coordinator is preferred, but not over a newer build.
    let old = program(4).to_string();
    let old = Peer::start(PEER, &scratch, &["--preferred", "--stand-for", &old]);
    old.joined();
    first.wait("a ready heir", |line| (line["ready_heirs"] == 1).then_some(()));
    let mut newer = build(&scratch, &program(6));
    newer.joined();
    assert_eq!(leads(&newer), 2, "after one handover: the older coordinator was not handed the wire before");
    first.wait("the handover", |line| line.get("hands_over").map(|_| ()));
    follows(&first, 2);
    crosses(&mut first, &mut newer, "handed over");
    let elected = newer.wait("its election", |line| (line["elected"] == 2).then(|| line["over"].clone()));
    assert_eq!(elected, "HandedOver");
}
