//! Groups whose sessions write down the numbers they get, to be compared with what was published.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use crate::{Peer, Scratch, newest_claim};

/// Sessions in processes of their own, which follow the stream `notices` of numbers.
#[derive(Debug)]
pub struct Group {
    binary: &'static str,
    scratch: Scratch,
    config: PathBuf,
    peers: BTreeMap<u32, (Peer, Log)>,
}

/// The numbers a session got, in order; a gap is a 0.
pub type Log = Vec<u64>;

impl Group {
    /// Nobody. `binary` is `env!("CARGO_BIN_EXE_peer")`.
    pub const fn new(binary: &'static str, scratch: Scratch, config: PathBuf) -> Self {
        Self { binary, scratch, config, peers: BTreeMap::new() }
    }

    /// One more session.
    pub fn join(&mut self) {
        self.join_with(&[]);
    }

    /// One more session with these arguments.
    ///
    /// # Panics
    /// When it does not join.
    pub fn join_with(&mut self, arguments: &[&str]) {
        let config = self.config.to_str().expect("a plain path");
        let arguments = [&["--config", config], arguments].concat();
        let mut peer = Peer::start(self.binary, &self.scratch, &arguments);
        peer.joined();
        peer.tell(&json!({ "events": "notices" }));
        self.peers.insert(peer.pid(), (peer, Log::new()));
    }

    /// SIGKILL for the session that leads.
    ///
    /// # Panics
    /// When none does.
    pub fn kill_primary(&mut self) {
        let (_, pid) = newest_claim(&self.scratch);
        let (mut primary, _) = self.peers.remove(&pid).expect("a session of the group leads");
        primary.kill();
    }

    /// Reads until every session has got something at or after `n`. `publish` keeps what they wait for coming.
    ///
    /// # Panics
    /// When it does not come.
    pub fn all_at(&mut self, n: u64, mut publish: impl FnMut() -> u64) {
        for (peer, log) in self.peers.values_mut() {
            let mut looks = 0;
            while log.last().is_none_or(|last| *last < n) {
                publish();
                let mut read = |line: &Value| {
                    log.extend(line["event"].as_u64());
                    log.extend(line.get("gap").map(|_| 0));
                };
                peer.listen(LOOK).iter().for_each(&mut read);
                looks += 1;
                assert!(looks < LOOKS_MAX, "peer {} waits for {n}; it said:\n{}", peer.pid(), peer.facts());
            }
        }
    }

    /// What each session got, by process.
    pub fn logs(&self) -> impl Iterator<Item = (u32, &Log)> {
        self.peers.iter().map(|(pid, (_, log))| (*pid, log))
    }

    /// Checks that every session got every number since its first, once and in order, and was shown no gap.
    ///
    /// # Panics
    /// When one did not.
    pub fn check(&self) {
        for (pid, log) in self.logs() {
            let expected: Log = (log[0]..).take(log.len()).collect();
            assert_eq!(*log, expected, "peer {pid}");
        }
    }
}

/// One look at what a session says.
const LOOK: Duration = Duration::from_millis(2);
/// More is a hang.
const LOOKS_MAX: u32 = 30_000;
