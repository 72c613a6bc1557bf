//! Acknowledged submits of real processes under SIGKILL and SIGSTOP: all are in the last store, none twice.

#![expect(clippy::print_stdout, reason = "the seed and the counts are findings")]

use std::collections::{BTreeMap, BTreeSet};

use paceline_store::limits::SEGMENTS_SOFT;
use paceline_tests::{Peer, Scratch, newest_claim, wait_any};
use serde_json::{Value, json};

const PEER: &str = env!("CARGO_BIN_EXE_peer");

/// Rounds of faults; `PACELINE_ROUNDS` asks for more.
fn rounds() -> u64 {
    std::env::var("PACELINE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20)
}

/// SplitMix64: the schedule follows from the printed seed, its interleaving from the machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// Where an owner is stopped.
#[derive(Debug, Clone, Copy)]
enum Stop {
    /// Wherever it is.
    Anywhere,
    /// It took mutations and has not committed them: nobody will adopt its rows.
    BeforeCommit,
    /// It committed mutations and has not looked at the fence: its successor adopts its rows.
    BeforeFence,
}

struct Torture {
    scratch: Scratch,
    peers: Vec<Peer>,
    started: u64,
    acknowledged: BTreeSet<String>,
    refused: u64,
    fenced_returns: u64,
    /// Mutations that stopped owners had taken, and answered `moved` when they went on.
    moved: u64,
    adoptions: u64,
    adopted_rows: u64,
}

impl Drop for Torture {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for peer in &self.peers {
                println!("--- {}\n{}", peer.pid(), peer.facts());
            }
        }
    }
}

impl Torture {
    fn start_peer(&mut self) {
        self.started += 1;
        let mut peer = Peer::start(PEER, &self.scratch, &[]);
        peer.joined();
        peer.tell(&json!({ "submit": format!("p{}", self.started), "callers": 2 }));
        self.peers.push(peer);
    }

    fn note(&mut self, lines: Vec<Value>) {
        for line in lines {
            if let Some(payload) = line["acknowledged"].as_str() {
                let new = self.acknowledged.insert(payload.to_owned());
                assert!(new, "{payload} was acknowledged twice to its caller");
            }
            if let Some(rows) = line["rows"].as_u64() {
                self.adoptions += 1;
                self.adopted_rows += rows;
            }
            self.moved += line["moved"].as_u64().unwrap_or(0);
            self.refused += u64::from(line.get("refused").is_some());
            assert!(line.get("lost_events").is_none(), "the counts are not whole: {line}");
        }
    }

    /// Waits until the group acknowledges again.
    fn wait_for_progress(&mut self) {
        for at in 0..self.peers.len() {
            let lines = self.peers[at].drain();
            self.note(lines);
            let payload = self.peers[at]
                .wait("an acknowledgement", |line| line["acknowledged"].as_str().map(str::to_owned));
            self.note(vec![json!({ "acknowledged": payload })]);
        }
    }

    fn kill(&mut self, victim: usize) {
        let mut peer = self.peers.remove(victim);
        peer.kill();
        let last_words = peer.drain();
        self.note(last_words);
        self.start_peer();
    }

    /// The owner of `epoch` is stopped until somebody else owns a later one, and then goes on.
    fn stop(&mut self, victim: usize, epoch: u64, at: Stop) {
        match at {
            Stop::Anywhere => self.peers[victim].stop(),
            Stop::BeforeCommit => self.peers[victim].arm("commit", "stop"),
            Stop::BeforeFence => self.peers[victim].arm("committed", "stop"),
        }
        for peer in (0..self.peers.len()).filter(|&peer| peer != victim) {
            self.peers[peer].above(epoch);
        }
        let lines = self.peers[victim].drain();
        self.note(lines);
        self.peers[victim].resume();
        self.peers[victim].wait("its fence", |line| (line["fenced"] == json!(epoch)).then_some(()));
        self.peers[victim].above(epoch);
        self.fenced_returns += 1;
        if !matches!(at, Stop::Anywhere) {
            let moved = |line: &Value| line["moved"].as_u64().filter(|_| line["epoch"] == json!(epoch));
            let moved = self.peers[victim].wait("what it does not acknowledge", moved);
            assert!(moved > 0, "{at:?}: it was stopped with mutations in its hands");
            self.note(vec![json!({ "moved": moved })]);
        }
    }
}

#[test]
fn every_acknowledged_submit_is_in_the_last_store_once() {
    let seed = std::env::var("PACELINE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut torture = Torture {
        scratch: Scratch::new("queue"),
        peers: Vec::new(),
        started: 0,
        acknowledged: BTreeSet::new(),
        refused: 0,
        fenced_returns: 0,
        moved: 0,
        adoptions: 0,
        adopted_rows: 0,
    };
    for _ in 0..4 {
        torture.start_peer();
    }
    let mut places = [Stop::BeforeFence, Stop::BeforeCommit, Stop::Anywhere].into_iter().cycle();
    // Every block of four rounds has one stop, at a place that goes round; which of the four is random.
    let mut stop_in = random.below(4);
    for round in 0..rounds() {
        torture.wait_for_progress();
        let (epoch, pid) = newest_claim(&torture.scratch);
        let Some(owner) = torture.peers.iter().position(|peer| peer.pid() == pid) else { continue };
        if round % 4 == stop_in {
            torture.stop(owner, epoch, places.next().expect("a cycle does not end"));
        } else {
            torture.kill(owner);
        }
        if round % 4 == 3 {
            stop_in = random.below(4);
        }
    }
    torture.wait_for_progress();
    for at in 0..torture.peers.len() {
        torture.peers[at].kill();
        let last_words = torture.peers[at].drain();
        torture.note(last_words);
    }
    judge(&torture);
}

fn judge(torture: &Torture) {
    let (epoch, stored) = stored(&torture.scratch);
    println!(
        "rounds {}, acknowledged {}, stored {}, refused {}, returns of stopped owners {}, NACKs of resumed owners {}, \
         adoptions {}, adopted rows {}, epoch {epoch}",
        rounds(),
        torture.acknowledged.len(),
        stored.len(),
        torture.refused,
        torture.fenced_returns,
        torture.moved,
        torture.adoptions,
        torture.adopted_rows,
    );
    let lost: Vec<&String> =
        torture.acknowledged.iter().filter(|payload| !stored.contains_key(*payload)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let twice: Vec<_> = stored.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "stored twice: {twice:?}");
    assert!(torture.acknowledged.len() as u64 > rounds());
    let segments = segments(&torture.scratch, epoch);
    println!("adopted stores still named: {segments}");
    // Each reign adds one, and while the sessions submit without end no owner is ever idle.
    assert!(segments <= 2 * SEGMENTS_SOFT, "{segments} adopted stores wait to be folded");
    assert!(torture.fenced_returns >= rounds() / 4, "every fourth round stops an owner");
    assert!(torture.moved > 0, "no resumed owner answered `moved`");
    assert!(torture.adopted_rows > 0, "no row was adopted");
}

/// How many adopted stores the one of `epoch` names.
fn segments(scratch: &Scratch, epoch: u64) -> usize {
    let files = std::fs::read_dir(scratch.path().join("test")).expect("the directory is there");
    files
        .flatten()
        .filter_map(|file| paceline_store::inspect(&file.path()).ok())
        .find(|found| found.complete.is_some_and(|complete| complete.0 == epoch))
        .map_or(0, |found| found.segments.len())
}

/// The highest complete epoch, and how often each payload is reachable from it.
fn stored(scratch: &Scratch) -> (u64, BTreeMap<String, u32>) {
    let reachable = paceline_store::reachable(&scratch.path().join("test")).expect("the store is readable");
    let mut stored: BTreeMap<String, u32> = BTreeMap::new();
    for row in &reachable.rows {
        *stored.entry(String::from_utf8_lossy(&row.payload).into_owned()).or_default() += 1;
    }
    (reachable.epoch.0, stored)
}

/// An owner with one mutation in its hands stops at `place`, is replaced, and goes on. Returns how many rows its
/// successor adopted.
fn stopped_with_one_mutation(place: &str) -> u64 {
    let scratch = Scratch::new(place);
    let mut owner = Peer::start(PEER, &scratch, &[]);
    owner.joined();
    let mut heir = Peer::start(PEER, &scratch, &[]);
    heir.joined();
    let second = Peer::start(PEER, &scratch, &[]);
    second.joined();
    owner.arm(place, "stop");
    owner.wait("that it is armed", |line| (line["armed"] == json!(place)).then_some(()));

    heir.tell(&json!({ "submit_once": "the mutation" }));
    let rows = wait_any(&[&heir, &second], "the adoption", |line| {
        line["rows"].as_u64().filter(|_| line["adopted"] == json!(2))
    });
    heir.wait("the acknowledgement", |line| (line["acknowledged"] == json!("the mutation")).then_some(()));

    owner.resume();
    owner.wait("its NACK", |line| (line["moved"] == json!(1) && line["epoch"] == json!(1)).then_some(()));
    owner.wait("its fence", |line| (line["fenced"] == json!(1)).then_some(()));
    owner.above(1);
    assert_eq!(stored(&scratch), (2, BTreeMap::from([("the mutation".to_owned(), 1)])), "{place}");
    rows
}

/// Its store is given up, not written again: the owner claims over itself, into the store of a kit.
#[test]
fn an_owner_whose_store_fails_claims_over_itself_and_goes_on() {
    let scratch = Scratch::new("renewed");
    let owner = Peer::start(PEER, &scratch, &[]);
    owner.joined();
    let mut other = Peer::start(PEER, &scratch, &["--observer"]);
    other.joined();
    owner.wait("its store", |line| (line["adopted"] == json!(1)).then_some(()));
    for file in std::fs::read_dir(scratch.path().join("test")).expect("the directory is there").flatten() {
        let complete = paceline_store::inspect(&file.path()).ok().and_then(|found| found.complete);
        if complete.is_some() {
            std::fs::remove_file(file.path()).expect("remove the store");
        }
    }
    other.tell(&json!({ "submit_once": "the mutation" }));
    owner.wait("that it was given up", |line| (line["adoption_failed"] == json!(1)).then_some(()));
    let over = owner.wait("its second reign", |line| {
        (line["elected"] == json!(2)).then(|| line["over"].as_str().map(str::to_owned)).flatten()
    });
    assert_eq!(over, "Own");
    other.wait("the acknowledgement", |line| (line["acknowledged"] == json!("the mutation")).then_some(()));
    other.above(1);
    assert_eq!(stored(&scratch), (2, BTreeMap::from([("the mutation".to_owned(), 1)])));
}

/// The store is on its thread when the handover begins, and nothing else comes that would wake the outbox.
#[test]
fn a_handover_waits_for_the_commit_that_is_under_way() {
    let scratch = Scratch::new("handover");
    let mut owner = Peer::start(PEER, &scratch, &[]);
    owner.joined();
    let mut heir = Peer::start(PEER, &scratch, &[]);
    heir.joined();
    owner.wait("an heir that is ready", |line| (line["ready_heirs"] == json!(1)).then_some(()));
    owner.arm("committed", "hold");
    owner.wait("that it is armed", |line| line.get("armed").map(drop));
    heir.tell(&json!({ "submit_once": "the mutation" }));
    owner.wait("that it commits", |line| (line["held"] == json!("committed")).then_some(()));
    heir.tell(&json!({ "promote": true }));
    owner.wait("the handover", |line| line["role"].as_str()?.starts_with("Draining").then_some(()));
    owner.tell(&json!({ "release": "committed" }));
    let over =
        heir.wait("its election", |line| line.get("elected").and(line["over"].as_str()).map(str::to_owned));
    assert_eq!(over, "HandedOver");
    heir.wait("the acknowledgement", |line| (line["acknowledged"] == json!("the mutation")).then_some(()));
    heir.wait("its adoption", |line| (line["adopted"] == json!(2)).then_some(()));
    owner.above(1);
    assert_eq!(stored(&scratch), (2, BTreeMap::from([("the mutation".to_owned(), 1)])));
}

#[test]
fn a_row_committed_before_the_stop_is_adopted_and_its_owner_acknowledges_nothing() {
    assert_eq!(stopped_with_one_mutation("committed"), 1);
}

#[test]
fn a_row_committed_after_the_stop_is_never_seen_and_the_mutation_is_stored_once() {
    assert_eq!(stopped_with_one_mutation("commit"), 0);
}
