//! On a machine that others keep busy, a living primary stays.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use paceline_tests::{Peer, Scratch};

const PEER: &str = env!("CARGO_BIN_EXE_peer");
const WATCHED: Duration = Duration::from_secs(60);

/// A process that takes all the time it gets.
struct Spinner(Child);

impl Spinner {
    fn start() -> Self {
        let child = Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn();
        Self(child.expect("start a shell"))
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn no_takeover_happens_in_a_busy_minute() {
    let scratch = Scratch::new("busy");
    let peers: Vec<Peer> = (0..4)
        .map(|_| {
            let peer = Peer::start(PEER, &scratch, &[]);
            peer.joined();
            peer
        })
        .collect();
    let _spinners = [Spinner::start(), Spinner::start()];
    peers[0].listen(WATCHED);
    let claims =
        std::fs::read_dir(scratch.path().join("test").join("claims")).expect("claims are there").count();
    assert_eq!(claims, 1, "a claim over a living primary");
}
