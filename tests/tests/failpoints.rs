//! A session dies at each step of claim, adoption and handover; the others go on, and nothing held by an heir is lost.

use paceline_tests::{Peer, Scratch};
use serde_json::json;

const PEER: &str = env!("CARGO_BIN_EXE_peer");

/// Steps of a session that takes over.
const TAKING: [&str; 7] = ["claim", "linked", "begin", "inherited", "synced", "complete", "adopted"];
/// Steps of an owner that hands over.
const GIVING: [&str; 4] = ["drain", "drained", "took", "end"];

fn set(peer: &mut Peer, value: u64) -> bool {
    peer.tell(&json!({ "set": ["kept"], "value": value }));
    peer.wait("the answer to set", |line| {
        (line["set"] == json!(value)).then(|| line["volatile"].as_bool()).flatten()
    })
}

/// Sets values until two heirs can be expected to hold the last one, and returns it.
fn set_until_held(peer: &mut Peer) -> u64 {
    let mut n = 1;
    while set(peer, n) {
        n += 1;
    }
    n
}

fn shows(peer: &mut Peer, value: u64) {
    peer.tell(&json!({ "subscribe": ["kept"] }));
    peer.wait(&format!("the value {value}"), |line| (line["view"] == json!(value)).then_some(()));
}

/// Owner, first heir and second heir, in this order; the two heirs have their kits when this returns.
fn trio(scratch: &Scratch, owner: Option<&str>, heir: Option<&str>) -> [Peer; 3] {
    let owner = Peer::start_with(PEER, scratch, &[], owner);
    owner.joined();
    let heir = Peer::start_with(PEER, scratch, &[], heir);
    heir.joined();
    let second = Peer::start(PEER, scratch, &[]);
    second.joined();
    owner.wait("three members", |line| (line["members"] == json!(3)).then_some(()));
    [owner, heir, second]
}

#[test]
fn an_heir_that_dies_while_taking_over_is_replaced() {
    for place in TAKING {
        let scratch = Scratch::new(place);
        let [mut owner, mut heir, mut second] = trio(&scratch, None, Some(place));
        let value = set_until_held(&mut second);
        owner.kill();
        assert!(heir.ended(), "{place}: the heir came to the place");
        second.wait("its own reign", |line| line["role"].as_str()?.starts_with("Primary").then_some(()));
        let mut newcomer = Peer::start(PEER, &scratch, &[]);
        newcomer.joined();
        // The second heir may not have been current yet; what it acknowledges now counts in any case.
        let value = value.max(1) + 1;
        set(&mut newcomer, value);
        shows(&mut newcomer, value);
        shows(&mut second, value);
    }
}

#[test]
fn an_owner_that_dies_while_handing_over_is_replaced() {
    for place in GIVING {
        let scratch = Scratch::new(place);
        let [mut owner, mut heir, mut second] = trio(&scratch, Some(place), None);
        let value = set_until_held(&mut second);
        promote_until_dead(&mut owner, &mut second);
        shows(&mut heir, value);
        set(&mut second, value + 1);
        shows(&mut second, value + 1);
        heir.wait("the next value", |line| (line["view"] == json!(value + 1)).then_some(()));
    }
}

/// Asks for handovers until one was not refused (an heir may still be making its kit) and the owner died in it.
fn promote_until_dead(owner: &mut Peer, asking: &mut Peer) {
    loop {
        asking.tell(&json!({ "promote": true }));
        let refused = asking.wait("the end of the handover", |line| {
            if line["error"].is_string() {
                return Some(true);
            }
            let role = line["role"].as_str()?;
            (!role.contains("Epoch(1)") && !role.starts_with("Joining")).then_some(false)
        });
        if !refused {
            break;
        }
    }
    assert!(owner.ended(), "the owner came to the place");
}
