//! Hostile and broken surroundings: what a user is told, that other sessions go on, and that nothing that was
//! acknowledged is lost. `docs/SURROUNDINGS.md` lists them.

mod clock;
mod descriptors;
mod directory;
mod disk;
mod network;
mod peers;
mod users;

use std::{collections::BTreeMap, path::Path, process::Command};

use paceline_tests::{Peer, Scratch};
use serde_json::{Value, json};

const PEER: &str = env!("CARGO_BIN_EXE_peer");

/// Set in the process that runs a test among mounts of its own.
const OWN_MOUNTS: &str = "PACELINE_TEST_OWN_MOUNTS";

/// Runs `body` in a process whose mounts nobody else sees and that end with it. `test` is the test's full name.
fn in_own_mounts(test: &str, body: impl FnOnce()) {
    if std::env::var_os(OWN_MOUNTS).is_some() {
        return body();
    }
    let is_root = rustix::process::geteuid().is_root();
    let own: &[&str] = if is_root { &["-m"] } else { &["-U", "-r", "-m"] };
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(own).args(["--propagation", "private"]);
        command
    };
    let possible = unshare()
        .args(["sh", "-c", "mount -t tmpfs tmpfs /mnt"])
        .output()
        .is_ok_and(|tried| tried.status.success());
    if !possible {
        return skip(test, "needs mounts of its own (root, or user namespaces)");
    }
    let this = std::env::current_exe().expect("the test's own program");
    let run = unshare()
        .arg(this)
        .args(["--exact", test, "--nocapture"])
        .env(OWN_MOUNTS, "1")
        .output()
        .expect("run the test among its own mounts");
    let said = [run.stdout, run.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
}

/// A file system in memory of so many KiB, mounted for a test that runs among its own mounts.
fn mount_small(path: &Path, kib: u64) {
    mount(&["-t", "tmpfs", "-o", &format!("size={kib}k,mode=700"), "tmpfs"], path);
}

fn mount(arguments: &[&str], path: &Path) {
    let done = Command::new("mount").args(arguments).arg(path).output().expect("run mount");
    assert!(done.status.success(), "mount {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[expect(clippy::print_stderr, reason = "a skipped test is to be seen")]
fn skip(test: &str, why: &str) {
    eprintln!("skipped: {test} {why}");
}

/// A primary, an heir and an observer. Both followers show the key `k`; a value of it is held by the heir.
fn trio(scratch: &Scratch) -> [Peer; 3] {
    let mut primary = Peer::start(PEER, scratch, &[]);
    primary.joined();
    let mut heir = Peer::start(PEER, scratch, &[]);
    heir.joined();
    let mut observer = Peer::start(PEER, scratch, &["--observer"]);
    observer.joined();
    primary.wait("an heir that is ready", |line| (line["ready_heirs"] == json!(1)).then_some(()));
    for peer in [&mut heir, &mut observer] {
        peer.tell(&json!({ "subscribe": ["k"] }));
    }
    set_and_seen(&mut primary, &[&heir, &observer], 1);
    [primary, heir, observer]
}

/// A value set by one is acknowledged and shown by the others: they are undisturbed.
fn set_and_seen(by: &mut Peer, seen_by: &[&Peer], value: u64) {
    by.tell(&json!({ "set": ["k"], "value": value }));
    by.wait("the answer to set", |line| (line["set"] == json!(value)).then_some(()));
    for peer in seen_by {
        peer.wait("the value", |line| (line["view"] == json!(value)).then_some(()));
    }
}

/// Submits a payload with so much padding; the answer as it comes.
fn submit(peer: &mut Peer, payload: &str, padding: usize) -> Result<(), String> {
    peer.tell(&json!({ "submit_once": payload, "padding": padding }));
    peer.wait("the answer to a submit", |line| {
        let refused = || Some(Err(line["why"].as_str()?.to_owned()));
        match (line["acknowledged"] == json!(payload), line["refused"] == json!(payload)) {
            (true, _) => Some(Ok(())),
            (_, true) => refused(),
            _ => None,
        }
    })
}

/// How often each payload is in the group's stores.
fn stored(scratch: &Scratch) -> BTreeMap<String, u32> {
    stored_in(scratch.path())
}

/// As [`stored`], in this state directory.
fn stored_in(state_dir: &Path) -> BTreeMap<String, u32> {
    let reachable = paceline_store::reachable(&state_dir.join("test")).expect("the store is readable");
    let mut stored = BTreeMap::new();
    for row in &reachable.rows {
        let payload = String::from_utf8_lossy(&row.payload);
        *stored.entry(payload.trim_end_matches('#').to_owned()).or_default() += 1;
    }
    stored
}

/// What a peer that cannot join says, and how it ends.
fn refused(mut peer: Peer) -> String {
    let said = peer.ended_or(|line| line["failed"].as_str().map(str::to_owned));
    let said = said.unwrap_or_else(|| panic!("it ended without a word: {}", peer.facts()));
    assert!(!peer.status().success());
    said
}

/// The words name what was wanted, where, and what to do.
fn says(words: &str, parts: &[&str]) {
    for part in parts {
        assert!(words.contains(part), "{words:?} lacks {part:?}");
    }
}

fn text(line: &Value, field: &str) -> Option<String> {
    line[field].as_str().map(str::to_owned)
}
