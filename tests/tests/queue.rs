//! Acknowledged submits of real processes under SIGKILL and SIGSTOP: all are in the last store, none twice.

#![expect(clippy::print_stdout, reason = "the seed and the counts are findings")]

use std::collections::{BTreeMap, BTreeSet};

use paceline_tests::{Peer, Scratch};
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

struct Torture {
    scratch: Scratch,
    peers: Vec<Peer>,
    started: u64,
    acknowledged: BTreeSet<String>,
    refused: u64,
    fenced_returns: u64,
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
            self.refused += u64::from(line.get("refused").is_some());
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

    fn primary(&self) -> usize {
        // The newest claim names its owner's process.
        let claims = self.scratch.path().join("test").join("claims");
        let newest = std::fs::read_dir(claims)
            .expect("claims are there")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .max()
            .expect("a claim is there");
        let body = std::fs::read_to_string(newest).expect("the claim is readable");
        let pid =
            body.lines().find_map(|line| line.strip_prefix("pid=")).expect("the claim names its process");
        self.peers.iter().position(|peer| peer.pid().to_string() == pid).unwrap_or(0)
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
    };
    for _ in 0..4 {
        torture.start_peer();
    }
    for _ in 0..rounds() {
        torture.wait_for_progress();
        let victim = torture.primary();
        if random.below(4) == 0 {
            torture.peers[victim].stop();
            let others: Vec<usize> = (0..torture.peers.len()).filter(|&at| at != victim).collect();
            for at in others {
                torture.peers[at].wait("a new owner", |line| {
                    line["role"]
                        .as_str()
                        .filter(|role| role.starts_with("Primary") || role.starts_with("Follower"))
                        .map(|_| ())
                });
            }
            torture.peers[victim].resume();
            torture.peers[victim].wait("its return", |line| {
                line["role"].as_str().filter(|role| role.starts_with("Follower")).map(|_| ())
            });
            torture.fenced_returns += 1;
        } else {
            let mut peer = torture.peers.remove(victim);
            peer.kill();
            let last_words = peer.drain();
            torture.note(last_words);
            torture.start_peer();
        }
    }
    torture.wait_for_progress();
    for at in 0..torture.peers.len() {
        torture.peers[at].kill();
        let last_words = torture.peers[at].drain();
        torture.note(last_words);
    }
    let reachable =
        paceline_store::reachable(&torture.scratch.path().join("test")).expect("the store is readable");
    let mut stored: BTreeMap<String, u32> = BTreeMap::new();
    for row in &reachable.rows {
        *stored.entry(String::from_utf8_lossy(&row.payload).into_owned()).or_default() += 1;
    }
    println!(
        "acknowledged {}, stored {}, refused {}, returns of stopped owners {}, epoch {}",
        torture.acknowledged.len(),
        stored.len(),
        torture.refused,
        torture.fenced_returns,
        reachable.epoch,
    );
    let lost: Vec<&String> =
        torture.acknowledged.iter().filter(|payload| !stored.contains_key(*payload)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let twice: Vec<_> = stored.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "stored twice: {twice:?}");
    assert!(torture.acknowledged.len() as u64 > rounds());
}
