//! Sessions that take over the signals of their process leave, hand over and come back; others touch none.

use std::{fs, os::unix::process::ExitStatusExt};

use paceline_tests::{Peer, Scratch};
use rustix::process::Signal;
use serde_json::json;

const PEER: &str = env!("CARGO_BIN_EXE_peer");

/// A primary and an heir that is ready to lead.
fn pair(scratch: &Scratch, arguments: &[&str]) -> (Peer, Peer) {
    let primary = Peer::start(PEER, scratch, arguments);
    primary.joined();
    let heir = Peer::start(PEER, scratch, arguments);
    heir.joined();
    primary.wait("an heir that is ready", |line| (line["ready_heirs"] == json!(1)).then_some(()));
    (primary, heir)
}

/// Waits until `heir` leads because it was handed to.
fn was_handed_to(heir: &Peer) {
    let over = heir.wait("its election", |line| {
        line["elected"]
            .as_u64()
            .filter(|epoch| *epoch == 2)
            .and_then(|_| line["over"].as_str().map(str::to_owned))
    });
    assert_eq!(over, "HandedOver", "{}", heir.facts());
}

/// The signals a process has handlers for, as the kernel says.
fn caught(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask of signals");
    u64::from_str_radix(mask.trim(), 16).expect("a mask of signals")
}

fn catches(pid: u32, signal: Signal) -> bool {
    caught(pid) & (1 << (signal.as_raw() - 1)) != 0
}

const TAKEN: [Signal; 5] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::TSTP, Signal::CONT];

#[test]
fn a_primary_that_is_told_to_end_hands_over_and_ends() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let scratch = Scratch::new("end");
        let (mut primary, heir) = pair(&scratch, &["--handle-signals"]);
        primary.send(signal);
        was_handed_to(&heir);
        assert_eq!(primary.status().code(), Some(code));
        heir.wait("that it is alone", |line| (line["members"] == json!(1)).then_some(()));
    }
}

#[test]
fn a_follower_that_is_told_to_end_leaves() {
    let scratch = Scratch::new("follower-end");
    let (primary, mut heir) = pair(&scratch, &["--handle-signals"]);
    heir.send(Signal::INT);
    assert_eq!(heir.status().code(), Some(130));
    primary.wait("that it is alone", |line| (line["members"] == json!(1)).then_some(()));
}

#[test]
fn a_primary_that_is_suspended_hands_over_first_and_comes_back_as_a_follower() {
    let scratch = Scratch::new("suspend");
    let (mut primary, heir) = pair(&scratch, &["--handle-signals"]);
    primary.send(Signal::TSTP);
    primary.wait_until_stopped();
    was_handed_to(&heir);
    primary.resume();
    primary.above(1);
    primary.tell(&json!({ "set": ["k"], "value": "back" }));
    primary.wait("the answer to set", |line| (line["set"] == json!("back")).then_some(()));
}

#[test]
fn a_primary_without_an_heir_is_suspended_all_the_same_and_goes_on() {
    let scratch = Scratch::new("suspend-alone");
    let mut primary = Peer::start(PEER, &scratch, &["--handle-signals"]);
    primary.joined();
    primary.send(Signal::TSTP);
    primary.wait_until_stopped();
    primary.resume();
    primary.tell(&json!({ "set": ["k"], "value": 1 }));
    primary.wait("the answer to set", |line| (line["set"] == json!(1)).then_some(()));
}

#[test]
fn a_primary_that_was_replaced_while_it_was_stopped_looks_at_its_fence_when_it_goes_on() {
    let scratch = Scratch::new("cont");
    let (primary, heir) = pair(&scratch, &["--handle-signals"]);
    primary.stop();
    heir.above(1);
    primary.resume();
    primary.wait("its fence", |line| (line["fenced"] == json!(1)).then_some(()));
    primary.above(1);
}

#[test]
fn a_session_touches_no_signal_unless_asked() {
    let scratch = Scratch::new("untouched");
    let (mut primary, heir) = pair(&scratch, &[]);
    for signal in TAKEN {
        assert!(!catches(primary.pid(), signal), "{signal:?} is taken over");
    }
    primary.send(Signal::TERM);
    assert_eq!(primary.status().signal(), Some(Signal::TERM.as_raw()), "the default action");
    heir.above(1);

    let asked = Peer::start(PEER, &scratch, &["--handle-signals"]);
    asked.joined();
    for signal in TAKEN {
        assert!(catches(asked.pid(), signal), "{signal:?} is not taken over");
    }
}
