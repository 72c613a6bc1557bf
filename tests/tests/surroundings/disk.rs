//! A file system that is full, and one that is read-only.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Command,
};

use paceline_tests::{Peer, Scratch};
use serde_json::json;

use crate::{PEER, in_own_mounts, mount, mount_small, refused, says, set_and_seen, stored, submit, trio};

/// Writes until the file system takes no more.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("a file to fill the disk with");
    for size in [64 << 10, 1 << 10, 1] {
        let block = vec![1; size];
        while file.write_all(&block).is_ok() {}
    }
}

/// Submits until one is refused; returns the words.
fn submit_until_refused(peer: &mut Peer, prefix: &str, acknowledged: &mut Vec<String>) -> String {
    for n in 0.. {
        let payload = format!("{prefix}-{n}");
        match submit(peer, &payload, 16 << 10) {
            Ok(()) => acknowledged.push(payload),
            Err(why) => return why,
        }
    }
    unreachable!("the numbers do not end")
}

#[test]
fn a_full_disk_refuses_mutations_only_and_recovers_when_there_is_room() {
    in_own_mounts("disk::a_full_disk_refuses_mutations_only_and_recovers_when_there_is_room", || {
        let outer = tempfile::tempdir().expect("a directory");
        mount_small(outer.path(), 16 << 10);
        let scratch = Scratch::at(outer.path());
        let [mut primary, mut heir, mut observer] = trio(&scratch);
        let mut acknowledged = Vec::new();
        let filler = outer.path().join("filler");
        fill(&filler);

        let why = submit_until_refused(&mut observer, "full", &mut acknowledged);
        says(&why, &["full", outer.path().to_str().expect("UTF-8")]);

        // Reads, sets and the broadcast need no room.
        set_and_seen(&mut heir, &[&observer], 2);
        set_and_seen(&mut primary, &[&heir, &observer], 3);
        observer.tell(&json!({ "subscribe": ["k"] }));
        observer.wait("a read", |line| (line["view"] == json!(3)).then_some(()));

        fs::remove_file(&filler).expect("make room");
        let again = (0..).find(|n| {
            let payload = format!("room-{n}");
            let taken = submit(&mut observer, &payload, 0);
            if taken.is_err() {
                observer.wait("the next try", |_| Some(()));
            }
            taken.is_ok().then(|| acknowledged.push(payload)).is_some()
        });
        assert!(again.is_some());
        for peer in [&mut observer, &mut heir, &mut primary] {
            peer.kill();
        }
        let stored = stored(&scratch);
        for payload in &acknowledged {
            assert_eq!(stored.get(payload), Some(&1), "{payload}");
        }
    });
}

/// Where there is no room for the first claim, the join says so, and leaves the way free for when there is.
#[test]
fn a_full_disk_at_the_claim_refuses_the_join_and_the_next_one_succeeds() {
    in_own_mounts("disk::a_full_disk_at_the_claim_refuses_the_join_and_the_next_one_succeeds", || {
        let outer = tempfile::tempdir().expect("a directory");
        mount_small(outer.path(), 16 << 10);
        let scratch = Scratch::at(outer.path());
        let path = outer.path().to_str().expect("UTF-8");
        // Directories are there: it is the claim that finds no room.
        let mut first = Peer::start(PEER, &scratch, &[]);
        first.joined();
        assert!(submit(&mut first, "before", 0).is_ok());
        first.kill();
        let filler = outer.path().join("filler");
        fill(&filler);
        let words = refused(Peer::start(PEER, &scratch, &[]));
        says(&words, &["join the group", path, "full", "free"]);
        fs::remove_file(&filler).expect("make room");
        let mut next = Peer::start(PEER, &scratch, &[]);
        next.joined();
        assert!(submit(&mut next, "after", 0).is_ok());
        next.kill();
        assert_eq!(stored(&scratch).into_keys().collect::<Vec<_>>(), ["after", "before"]);
    });
}

/// An heir that cannot make its kit stays a follower; who needs it gets it when there is room.
#[test]
fn an_heir_without_room_for_its_kit_follows_and_makes_it_when_there_is_room() {
    in_own_mounts("disk::an_heir_without_room_for_its_kit_follows_and_makes_it_when_there_is_room", || {
        let outer = tempfile::tempdir().expect("a directory");
        mount_small(outer.path(), 16 << 10);
        let scratch = Scratch::at(outer.path());
        let mut primary = Peer::start(PEER, &scratch, &[]);
        primary.joined();
        assert!(submit(&mut primary, "before", 0).is_ok());
        // Room for the file of a session, and not for a kit.
        let filler = outer.path().join("filler");
        let mut file = File::create(&filler).expect("a file");
        while free_of(outer.path()) > 256 << 10 {
            file.write_all(&vec![1; 64 << 10]).expect("there is room");
        }
        drop(file);
        let mut heir = Peer::start(PEER, &scratch, &[]);
        heir.joined();
        heir.tell(&json!({ "subscribe": ["k"] }));
        let why = heir.wait("that it has no kit", text_of_claim);
        says(&why, &[outer.path().to_str().expect("UTF-8"), "full"]);
        set_and_seen(&mut primary, &[&heir], 2);
        fs::remove_file(&filler).expect("make room");
        primary.wait("the kit", |line| (line["ready_heirs"] == json!(1)).then_some(()));
        primary.kill();
        heir.above(1);
        assert!(submit(&mut heir, "after", 0).is_ok());
        heir.kill();
        assert_eq!(stored(&scratch).into_keys().collect::<Vec<_>>(), ["after", "before"]);
    });
}

fn text_of_claim(line: &serde_json::Value) -> Option<String> {
    line["claim_failed"].as_u64().and_then(|_| crate::text(line, "why"))
}

fn free_of(path: &Path) -> u64 {
    let found = rustix::fs::statvfs(path).expect("a file system");
    found.f_bavail * found.f_frsize
}

/// What can be read is not enough to join, nor to lead. Those that were there go on with what they have open, and what was
/// acknowledged is there for who leads when the file system can be written again.
#[test]
fn a_read_only_file_system_refuses_joins_and_claims_with_words_and_keeps_what_was_acknowledged() {
    in_own_mounts(
        "disk::a_read_only_file_system_refuses_joins_and_claims_with_words_and_keeps_what_was_acknowledged",
        || {
            let outer = tempfile::tempdir().expect("a directory");
            mount_small(outer.path(), 16 << 10);
            let scratch = Scratch::at(outer.path());
            let path = outer.path().to_str().expect("UTF-8").to_owned();
            let [mut primary, mut heir, mut observer] = trio(&scratch);
            assert!(submit(&mut observer, "before", 0).is_ok());
            // The super block refuses while files are open for writing; the mount does not.
            mount(&["--bind", &path], outer.path());
            mount(&["-o", "remount,bind,ro"], outer.path());

            says(
                &refused(Peer::start(PEER, &scratch, &[])),
                &["join the group", &path, "Read-only", "state directory"],
            );
            set_and_seen(&mut heir, &[&observer], 2);
            set_and_seen(&mut primary, &[&heir, &observer], 3);
            assert!(submit(&mut observer, "meanwhile", 0).is_ok(), "its store was open");
            primary.kill();
            says(&heir.wait("that it cannot lead", text_of_claim), &[&path, "Read-only"]);

            let done = Command::new("umount").arg(outer.path()).status().expect("run umount");
            assert!(done.success());
            heir.above(1);
            set_and_seen(&mut heir, &[&observer], 4);
            assert!(submit(&mut observer, "after", 0).is_ok());
            for peer in [&mut observer, &mut heir] {
                peer.kill();
            }
            assert_eq!(stored(&scratch).into_keys().collect::<Vec<_>>(), ["after", "before", "meanwhile"]);
        },
    );
}
