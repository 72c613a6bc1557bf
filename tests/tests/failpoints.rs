//! A session dies at each step of making a kit, claiming, adopting, committing, folding and handing over; the others go on,
//! and nothing that was acknowledged is lost. A step is anything that writes a file, links, commits, syncs, or tells
//! somebody.

use std::{collections::BTreeMap, thread};

use paceline_tests::{Peer, Scratch};
use serde_json::{Value, json};

const PEER: &str = env!("CARGO_BIN_EXE_peer");

/// Steps of a session that makes a kit.
const PREPARING: [&str; 4] = ["kit_database", "kit_locked", "kit_written", "kit_bound"];
/// Steps of a session that takes over.
const TAKING: [&str; 11] = [
    "claim",
    "linked_twice",
    "linked",
    "confirmed",
    "begin",
    "inherited",
    "synced",
    "complete",
    "adopted",
    "usable",
    "welcome",
];
/// The one step more that it takes in a handover.
const TAKING_POLITELY: [&str; 1] = ["tell_took"];
/// Steps of an owner that hands over.
const GIVING: [&str; 8] = ["drain", "flushed", "drained", "go_sent", "took", "end", "released", "told"];
/// Steps of an owner that stores mutations.
const STORING: [&str; 3] = ["commit", "committed", "acknowledge"];
/// Steps of an owner that copies adopted rows forward and removes what it does not need any more.
const FOLDING: [&str; 2] = ["folded", "removed"];

/// Scenarios that run beside each other: they mostly wait.
const AT_ONCE: usize = 4;

fn at_each(places: &[&'static str], scenario: impl Fn(&'static str) + Sync) {
    for some in places.chunks(AT_ONCE) {
        thread::scope(|scope| {
            for place in some {
                let scenario = &scenario;
                thread::Builder::new()
                    .name((*place).to_owned())
                    .spawn_scoped(scope, move || scenario(place))
                    .expect("start a thread");
            }
        });
    }
}

fn set(peer: &mut Peer, value: u64) -> bool {
    peer.tell(&json!({ "set": ["kept"], "value": value }));
    peer.wait("the answer to set", |line| {
        (line["set"] == json!(value)).then(|| line["volatile"].as_bool()).flatten()
    })
}

/// Sets values until an heir holds the last one, and returns it.
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

fn submit(peer: &mut Peer, payload: &str) {
    peer.tell(&json!({ "submit_once": payload }));
    peer.wait("the acknowledgement", |line| (line["acknowledged"] == json!(payload)).then_some(()));
}

fn stored(scratch: &Scratch) -> BTreeMap<String, u32> {
    let reachable = paceline_store::reachable(&scratch.path().join("test")).expect("the store is readable");
    let mut stored = BTreeMap::new();
    for row in &reachable.rows {
        *stored.entry(String::from_utf8_lossy(&row.payload).into_owned()).or_default() += 1;
    }
    stored
}

fn once(payloads: &[&str]) -> BTreeMap<String, u32> {
    payloads.iter().map(|payload| ((*payload).to_owned(), 1)).collect()
}

fn leads(peer: &Peer) {
    peer.wait("its own reign", |line| line["role"].as_str()?.starts_with("Primary").then_some(()));
}

/// Owner, first heir and second heir, in this order.
fn trio(scratch: &Scratch, owner: Option<&str>, heir: Option<&str>) -> [Peer; 3] {
    let owner = Peer::start_with(PEER, scratch, &[], owner);
    owner.joined();
    let heir = Peer::start_with(PEER, scratch, &[], heir);
    heir.joined();
    let second = Peer::start(PEER, scratch, &[]);
    second.joined();
    owner.wait("two heirs that are ready", |line| (line["ready_heirs"] == json!(2)).then_some(()));
    [owner, heir, second]
}

/// The owner is killed with one mutation stored, and its first heir dies at `place` as its successor. Returns the second
/// heir, and a value that was held before. Which heir links first is the machine's business: where the second was quicker,
/// all begins anew.
fn until_the_first_heir_died(place: &str) -> (Scratch, Peer, u64) {
    for _ in 0..20 {
        let scratch = Scratch::new(place);
        let [mut owner, mut heir, mut second] = trio(&scratch, None, Some(place));
        submit(&mut second, "before");
        let value = set_until_held(&mut second);
        owner.kill();
        let follows = |line: &Value| {
            let follows = line["role"].as_str()?.starts_with("Follower");
            (follows && paceline_tests::epoch_of(line)? > 1).then_some(())
        };
        if heir.ended_or(follows).is_none() {
            return (scratch, second, value);
        }
    }
    panic!("{place}: the first heir never came to the place");
}

/// Whoever is left and somebody new agree on a value, and mutations are taken.
fn goes_on(scratch: &Scratch, old: &mut Peer, value: u64) {
    let mut newcomer = Peer::start(PEER, scratch, &[]);
    newcomer.joined();
    set(&mut newcomer, value);
    shows(&mut newcomer, value);
    shows(old, value);
    submit(&mut newcomer, &format!("with {value}"));
}

#[test]
fn an_heir_that_dies_while_making_its_kit_is_replaced() {
    at_each(&PREPARING, |place| {
        let scratch = Scratch::new(place);
        let owner = Peer::start(PEER, &scratch, &[]);
        owner.joined();
        let mut heir = Peer::start_with(PEER, &scratch, &[], Some(place));
        assert!(heir.ended(), "{place}: the heir came to the place");
        let mut second = Peer::start(PEER, &scratch, &[]);
        second.joined();
        goes_on(&scratch, &mut second, 1);
        drop(owner);
        goes_on(&scratch, &mut second, 2);
        assert_eq!(stored(&scratch), once(&["with 1", "with 2"]), "{place}");
    });
}

#[test]
fn a_first_session_that_dies_on_its_way_to_the_first_claim_leaves_the_way_free() {
    at_each(&PREPARING, |place| {
        let scratch = Scratch::new(place);
        let mut first = Peer::start_with(PEER, &scratch, &[], Some(place));
        assert!(first.ended(), "{place}: it came to the place");
        let mut second = Peer::start(PEER, &scratch, &[]);
        second.joined();
        leads(&second);
        goes_on(&scratch, &mut second, 1);
    });
}

#[test]
fn an_heir_that_dies_while_taking_over_is_replaced() {
    at_each(&TAKING, |place| {
        let (scratch, mut second, value) = until_the_first_heir_died(place);
        leads(&second);
        // The second heir may not have been current yet; what it acknowledges now counts in any case.
        goes_on(&scratch, &mut second, value + 1);
        let after = format!("with {}", value + 1);
        assert_eq!(stored(&scratch), once(&["before", &after]), "{place}");
    });
}

#[test]
fn an_heir_that_dies_while_it_is_handed_to_is_replaced() {
    let places: Vec<_> = TAKING.into_iter().chain(TAKING_POLITELY).collect();
    at_each(&places, |place| {
        let scratch = Scratch::new(place);
        let [mut owner, mut heir, mut second] = trio(&scratch, None, Some(place));
        submit(&mut second, "before");
        let value = set_until_held(&mut second);
        while !heir.has_ended() {
            // Refused while the heir makes its kit, and when it died before it took over.
            second.tell(&json!({ "promote": true }));
            second.wait("the end of the handover", |line| {
                (line["error"].is_string() || line["promoted"] == json!(true)).then_some(())
            });
        }
        set(&mut second, value + 1);
        shows(&mut owner, value + 1);
        goes_on(&scratch, &mut second, value + 2);
        let after = format!("with {}", value + 2);
        assert_eq!(stored(&scratch), once(&["before", &after]), "{place}");
    });
}

#[test]
fn an_owner_that_dies_while_handing_over_is_replaced() {
    at_each(&GIVING, |place| {
        let scratch = Scratch::new(place);
        let [mut owner, mut heir, mut second] = trio(&scratch, Some(place), None);
        submit(&mut second, "before");
        let value = set_until_held(&mut second);
        while !owner.has_ended() {
            second.tell(&json!({ "promote": true }));
            second.wait("the end of the handover", |line| {
                let refused = line["error"].is_string() || line["promoted"] == json!(true);
                (refused || paceline_tests::epoch_of(line)? > 1).then_some(())
            });
        }
        shows(&mut heir, value);
        goes_on(&scratch, &mut heir, value + 1);
        let after = format!("with {}", value + 1);
        assert_eq!(stored(&scratch), once(&["before", &after]), "{place}");
    });
}

#[test]
fn an_owner_that_dies_while_storing_is_asked_again_at_its_successor() {
    at_each(&STORING, |place| {
        let scratch = Scratch::new(place);
        let [mut owner, mut heir, mut second] = trio(&scratch, Some(place), None);
        submit(&mut second, "dies over it");
        assert!(owner.ended(), "{place}: the owner came to the place");
        goes_on(&scratch, &mut heir, 1);
        assert_eq!(stored(&scratch), once(&["dies over it", "with 1"]), "{place}");
    });
}

#[test]
fn an_owner_that_dies_while_folding_loses_no_row_and_doubles_none() {
    at_each(&FOLDING, |place| {
        // The heir adopts a row, and once it is idle it copies it forward and removes the first store.
        let (scratch, mut second, value) = until_the_first_heir_died(place);
        leads(&second);
        goes_on(&scratch, &mut second, value + 1);
        let after = format!("with {}", value + 1);
        assert_eq!(stored(&scratch), once(&["before", &after]), "{place}");
    });
}
