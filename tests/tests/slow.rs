//! A session that stops reading is conflated, delays nobody, and catches up.

use paceline_tests::{Peer, Scratch};
use serde_json::json;

const PEER: &str = env!("CARGO_BIN_EXE_peer");

/// 64 MiB in all, far past the bound of a link: 4 MiB, or 32 MiB when they come within a second.
const SETS: u64 = 4000;
const BYTES: u64 = 16 << 10;

#[test]
fn a_session_that_stops_reading_delays_nobody_and_catches_up() {
    let scratch = Scratch::new("slow");
    let mut owner = Peer::start(PEER, &scratch, &[]);
    owner.joined();
    let mut slow = Peer::start(PEER, &scratch, &["--observer"]);
    slow.joined();
    let mut quick = Peer::start(PEER, &scratch, &[]);
    quick.joined();
    for peer in [&mut slow, &mut quick] {
        peer.tell(&json!({ "subscribe": ["k"] }));
    }
    quick.tell(&json!({ "flood": ["k"], "count": 1, "bytes": 1 }));
    quick.wait("the first value", |line| line.get("flooded").map(drop));
    slow.wait("the first value", |line| (line["view"] == json!(1)).then_some(()));

    slow.stop();
    quick.tell(&json!({ "flood": ["k"], "count": SETS, "bytes": BYTES }));
    quick.wait("all answers while one session reads nothing", |line| {
        (line["flooded"] == json!(SETS)).then_some(())
    });
    quick.wait("the last value", |line| (line["view"] == json!(SETS)).then_some(()));
    slow.resume();
    slow.wait("the last value, after its pause", |line| (line["view"] == json!(SETS)).then_some(()));

    owner.tell(&json!({ "counts": true }));
    let counts = owner.wait("the event counts", |line| line.get("counts").cloned());
    assert!(counts["follower_conflated"].as_u64() >= Some(1), "{counts}");
    assert!(counts["follower_caught_up"].as_u64() >= Some(1), "{counts}");
}
