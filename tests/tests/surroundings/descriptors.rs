//! No descriptors are left.

use std::fs;

use paceline_tests::{Peer, Scratch};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;

use crate::{PEER, refused, says, set_and_seen, stored, submit, text, trio};

fn pid(peer: &Peer) -> Option<Pid> {
    i32::try_from(peer.pid()).ok().and_then(Pid::from_raw)
}

/// Lets a peer open no descriptor more than it has; returns its limit as it was.
fn exhaust(peer: &Peer) -> Rlimit {
    let open = || -> Vec<u64> {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", peer.pid())).expect("its descriptors");
        descriptors.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
    };
    // The lowest number that is free is the next one to be given: everything below the limit must be in use.
    let limit = (0..).find(|number| !open().contains(number));
    // Its own and this process's are the same; nobody may raise it.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let before = prlimit(pid(peer), Resource::Nofile, Rlimit { current: limit, maximum });
    before.expect("limit the descriptors of a child")
}

/// The group goes on, a newcomer hears what is wrong and does not take the primary for dead, and comes in when there are some.
#[test]
fn a_primary_without_descriptors_turns_newcomers_away_with_words_and_goes_on() {
    let scratch = Scratch::new("descriptors");
    let [mut primary, mut heir, mut observer] = trio(&scratch);
    assert!(submit(&mut observer, "before", 0).is_ok());
    let before = exhaust(&primary);

    let words = refused(Peer::start(PEER, &scratch, &[]));
    says(&words, &["join the group", "full", "descriptors"]);
    primary.wait("that it says so", |line| (line["limit"] == json!("RLIMIT_NOFILE")).then_some(()));
    set_and_seen(&mut heir, &[&observer], 2);
    set_and_seen(&mut primary, &[&heir, &observer], 3);
    assert!(submit(&mut observer, "meanwhile", 0).is_ok());

    prlimit(pid(&primary), Resource::Nofile, before).expect("give them back");
    let newcomer = Peer::start(PEER, &scratch, &[]);
    newcomer.joined();
    let (epoch, owner) = paceline_tests::newest_claim(&scratch);
    assert_eq!((epoch, owner), (1, primary.pid()), "nobody took it for dead");
    for peer in [&mut observer, &mut heir, &mut primary] {
        peer.kill();
    }
    assert_eq!(stored(&scratch).into_keys().collect::<Vec<_>>(), ["before", "meanwhile"]);
}

/// A session that cannot even begin says what it lacks, and leaves nothing behind.
#[test]
fn a_session_without_descriptors_does_not_join_and_says_why() {
    let scratch = Scratch::new("few");
    let mut primary = Peer::start(PEER, &scratch, &[]);
    primary.joined();
    let mut command = std::process::Command::new("sh");
    // Four beyond the standard ones: enough to start, not enough to join.
    command.args(["-c", "ulimit -n 7; exec \"$0\" \"$@\"", PEER]);
    let words = refused(Peer::start_by(command, scratch.path(), &[]));
    says(&words, &["join the group", "open files", "ulimit -n"]);
    set_and_seen(&mut primary, &[], 1);
    let sessions = fs::read_dir(scratch.path().join("test/sessions")).expect("sessions").count();
    assert_eq!(sessions, 1, "it left nothing behind");
}

/// An heir that cannot open a descriptor stays a follower and leads when it can.
#[test]
fn an_heir_without_descriptors_follows_and_takes_over_with_the_kit_it_has() {
    let scratch = Scratch::new("heir-descriptors");
    let [mut primary, mut heir, observer] = trio(&scratch);
    assert!(submit(&mut primary, "before", 0).is_ok());
    let before = exhaust(&heir);
    set_and_seen(&mut primary, &[&heir, &observer], 2);
    primary.kill();
    // Whether it leads already depends on what it has open; it says what it lacks, and goes on when it gets it.
    heir.wait("that it tries", |line| {
        let failed = text(line, "why").filter(|why| why.contains("open files"));
        let leads = line["elected"].as_u64().map(|_| String::new());
        failed.or(leads)
    });
    prlimit(pid(&heir), Resource::Nofile, before).expect("give them back");
    heir.above(1);
    assert!(submit(&mut heir, "after", 0).is_ok());
    heir.kill();
    assert_eq!(stored(&scratch).into_keys().collect::<Vec<_>>(), ["after", "before"]);
}
