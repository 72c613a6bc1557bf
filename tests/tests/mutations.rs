//! Mutations of real processes under SIGKILL and SIGSTOP: what was acknowledged is applied once, in the order of its scope.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::print_stdout, reason = "the seed and the counts are findings")]

#[path = "../../crates/paceline-upstream/tests/server/mod.rs"]
mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use paceline_tests::{PATIENCE, Peer, Scratch, newest_claim};
use parking_lot::Mutex;
use serde_json::{Value, json};
use server::{Server, answer};

const PEER: &str = env!("CARGO_BIN_EXE_peer");

/// Rounds of faults; `PACELINE_ROUNDS` asks for more.
fn rounds() -> u64 {
    std::env::var("PACELINE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(12)
}

/// A server that honours keys: what it applied, in order, and how often each key came.
#[derive(Default)]
struct Applied {
    seen: BTreeMap<String, u32>,
    by_key: BTreeMap<String, String>,
    order: Vec<String>,
    refused: u64,
}

impl Applied {
    /// Every thirteenth request is turned away without being looked at.
    fn serve(&mut self, line: &str, key: &str) -> bool {
        let path = line.trim_start_matches("POST ").to_owned();
        let seen = self.seen.entry(key.to_owned()).or_default();
        *seen += 1;
        let first = *seen == 1;
        if first && self.seen.len().is_multiple_of(13) {
            self.refused += 1;
            return false;
        }
        let known = self.by_key.entry(key.to_owned()).or_insert_with(|| {
            self.order.push(path.clone());
            path.clone()
        });
        assert_eq!(*known, path, "two mutations under one key");
        true
    }
}

struct Torture {
    scratch: Scratch,
    base: String,
    peers: Vec<Peer>,
    started: u64,
    acknowledged: BTreeSet<String>,
    outcomes: u64,
    adopted_rows: u64,
    returns: u64,
}

impl Torture {
    fn start_peer(&mut self) {
        self.started += 1;
        let mut peer = Peer::start(PEER, &self.scratch, &[]);
        peer.joined();
        peer.tell(&json!({ "mutate": self.base, "scope": format!("p{}", self.started) }));
        self.peers.push(peer);
    }

    fn note(&mut self, lines: Vec<Value>) {
        for line in lines {
            if let Some(path) = line["acknowledged"].as_str() {
                assert!(self.acknowledged.insert(path.to_owned()), "{path} was acknowledged twice");
            }
            if let Some(outcome) = line["outcome"].as_str() {
                assert_eq!(outcome, "done");
                self.outcomes += 1;
            }
            self.adopted_rows += line["rows"].as_u64().unwrap_or(0);
        }
    }

    /// Waits until every process was told an outcome.
    fn wait_for_progress(&mut self) {
        for at in 0..self.peers.len() {
            let lines = self.peers[at].drain();
            self.note(lines);
            let outcome = self.peers[at].wait("an outcome", |line| line.get("outcome").cloned());
            self.note(vec![json!({ "outcome": outcome })]);
        }
    }

    fn kill(&mut self, victim: usize) {
        let mut peer = self.peers.remove(victim);
        peer.kill();
        let last_words = peer.drain();
        self.note(last_words);
    }

    /// The owner of `epoch` is stopped until somebody else owns a later one, and then goes on.
    fn stop(&mut self, victim: usize, epoch: u64) {
        self.peers[victim].stop();
        for peer in (0..self.peers.len()).filter(|&peer| peer != victim) {
            self.peers[peer].above(epoch);
        }
        self.peers[victim].resume();
        self.peers[victim].above(epoch);
        self.returns += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_mutation_is_applied_once_in_the_order_of_its_scope() {
    let applied = Arc::new(Mutex::new(Applied::default()));
    let at_server = applied.clone();
    let mut server = Server::start(move |asked| {
        let took = at_server.lock().serve(&asked.line, &asked.headers["idempotency-key"]);
        if took { answer("200 OK", &[], "") } else { answer("503 Service Unavailable", &[], "") }
    })
    .await;
    let mut torture = Torture {
        scratch: Scratch::new("mutations"),
        base: server.base.clone(),
        peers: Vec::new(),
        started: 0,
        acknowledged: BTreeSet::new(),
        outcomes: 0,
        adopted_rows: 0,
        returns: 0,
    };
    (0..3).for_each(|_| torture.start_peer());
    for round in 0..rounds() {
        torture.wait_for_progress();
        let (epoch, pid) = newest_claim(&torture.scratch);
        let Some(owner) = torture.peers.iter().position(|peer| peer.pid() == pid) else { continue };
        if round % 3 == 2 {
            torture.stop(owner, epoch);
        } else {
            torture.kill(owner);
            torture.start_peer();
        }
    }
    torture.wait_for_progress();
    while !torture.peers.is_empty() {
        torture.kill(0);
    }
    // Whoever comes last sends the rest.
    let last = Peer::start(PEER, &torture.scratch, &[]);
    last.joined();
    let missing = |applied: &Applied| {
        let done: BTreeSet<_> = applied.order.iter().collect();
        torture.acknowledged.iter().filter(|path| !done.contains(path)).cloned().collect::<Vec<_>>()
    };
    while !missing(&applied.lock()).is_empty() {
        let came = tokio::time::timeout(PATIENCE, server.asked.recv()).await;
        assert!(came.is_ok(), "acknowledged and never applied: {:?}", missing(&applied.lock()));
    }
    let applied = applied.lock();
    let sent_again = applied.seen.values().filter(|seen| **seen > 1).count();
    println!(
        "rounds {}, acknowledged {}, applied {}, outcomes told {}, keys seen again {sent_again}, turned away {}, \
         returns of stopped owners {}, adopted rows {}",
        rounds(),
        torture.acknowledged.len(),
        applied.order.len(),
        torture.outcomes,
        applied.refused,
        torture.returns,
        torture.adopted_rows,
    );
    let distinct: BTreeSet<_> = applied.order.iter().collect();
    assert_eq!(distinct.len(), applied.order.len(), "applied twice, under two keys");
    let mut places: BTreeMap<&str, u64> = BTreeMap::new();
    for path in &applied.order {
        let (scope, n) = path.rsplit_once('/').unwrap();
        let n: u64 = n.parse().unwrap();
        let before = places.insert(scope, n).unwrap_or(0);
        assert_eq!(n, before + 1, "{path} is applied after {scope}/{before}");
    }
    assert!(sent_again > 0 && torture.returns > 0 && torture.adopted_rows > 0 && torture.outcomes > 0);
}
