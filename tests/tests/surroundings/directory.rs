//! The state directory is removed, or made anew, under a running group.

use std::{fs, path::Path};

use paceline_tests::{Peer, Scratch};
use serde_json::json;

use crate::{PEER, says, set_and_seen, stored, submit, text, trio};

/// What a session says when it cannot go on.
fn last_words(peer: &Peer) -> String {
    peer.wait("its last words", |line| line["dead"].as_bool().and_then(|_| text(line, "why")))
}

/// Newcomers make a group of their own in the new directory: the old sessions say so and end, and there are not two wires.
#[test]
fn a_removed_directory_ends_its_sessions_with_words_and_newcomers_are_alone() {
    let scratch = Scratch::new("removed");
    let group = scratch.path().join("test");
    let [mut primary, heir, observer] = trio(&scratch);
    assert!(submit(&mut primary, "before", 0).is_ok());
    fs::remove_dir_all(&group).expect("remove the group's directory");
    let mut newcomer = Peer::start(PEER, &scratch, &[]);
    newcomer.joined();
    for peer in [&primary, &heir, &observer] {
        says(&last_words(peer), &["removed or replaced", group.to_str().expect("UTF-8"), "join again"]);
    }
    newcomer.tell(&json!({ "subscribe": ["k"] }));
    set_and_seen(&mut newcomer, &[], 7);
    assert!(submit(&mut newcomer, "after", 0).is_ok());
    let claims = fs::read_dir(group.join("claims")).expect("claims").count();
    assert_eq!(claims, 1, "nobody of the old group meddles with the new one");
}

/// Nothing is acknowledged into a store that nobody finds.
#[test]
fn a_mutation_after_the_removal_is_not_acknowledged() {
    let scratch = Scratch::new("unfound");
    let mut primary = Peer::start(PEER, &scratch, &[]);
    primary.joined();
    assert!(submit(&mut primary, "before", 0).is_ok());
    fs::remove_dir_all(scratch.path().join("test")).expect("remove the group's directory");
    let why = submit(&mut primary, "after", 0).expect_err("it was acknowledged");
    says(&why, &["removed or replaced", scratch.path().to_str().expect("UTF-8")]);
}

fn remove(group: &Path, part: &str) {
    let path = group.join(part);
    if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.expect(part);
}

/// Somebody removes one part while the group works: what can be made anew is, the group goes on, and who leads next has all
/// that was acknowledged.
#[test]
fn each_part_of_the_directory_can_be_removed_and_nothing_acknowledged_is_lost() {
    for part in ["claims", "s", "sessions", "kits", "start.lock", "blobs", "drafts", "cache"] {
        let scratch = Scratch::new("part");
        let group = scratch.path().join("test");
        let [mut primary, mut heir, mut observer] = trio(&scratch);
        assert!(submit(&mut observer, "before", 0).is_ok());
        let there = group.join(part).exists();
        assert!(there || part == "start.lock", "{part}");
        if there {
            remove(&group, part);
        }
        // Whoever leads now, a newcomer finds the group, and a mutation that is acknowledged can be found.
        let mut newcomer = Peer::start(PEER, &scratch, &["--observer"]);
        newcomer.joined();
        set_and_seen(&mut heir, &[&observer], 2);
        assert!(submit(&mut newcomer, "meanwhile", 0).is_ok(), "{part}");
        primary.kill();
        set_and_seen(&mut heir, &[&observer], 3);
        assert!(submit(&mut observer, "after", 0).is_ok(), "{part}");
        for peer in [&mut newcomer, &mut observer, &mut heir] {
            peer.kill();
        }
        let stored = stored(&scratch);
        assert_eq!(stored.keys().collect::<Vec<_>>(), ["after", "before", "meanwhile"], "{part}");
        assert!(stored.values().all(|times| *times == 1), "{part}: {stored:?}");
    }
}
