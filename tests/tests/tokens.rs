//! A token that rotates, refreshed by groups of real processes at a server that ends the account when a refresh token comes
//! twice. Sessions die or stop at each step of a refresh.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../crates/paceline-upstream/tests/server/mod.rs"]
mod server;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use paceline_tests::{Peer, Scratch};
use parking_lot::Mutex;
use serde_json::{Value, json};
use server::{Asked, Say, Server, answer};

const PEER: &str = env!("CARGO_BIN_EXE_peer");
/// In every secret that the server gives or takes.
const CANARY: &str = "c4n4ry";

/// Steps of a refresh before the server has seen anything.
const BEFORE: [&str; 2] = ["token_begun", "token_intended"];
/// Steps after it answered.
const ANSWERED: [&str; 1] = ["token_answered"];
/// Steps after the new pair is stored.
const STORED: [&str; 3] = ["token_stored", "token_unlocked", "token_published"];

/// An account with tokens that rotate.
#[derive(Debug, Default)]
struct Account {
    /// Refresh tokens as they were used, in order.
    used: Vec<String>,
    /// The one that is good.
    current: u64,
    /// A refresh token was used after it was replaced.
    revoked: bool,
    /// A refresh token that was replaced by the last rotation is taken again.
    forgives: bool,
    /// Access tokens live for so many seconds.
    life: u64,
    /// Access tokens up to this one are not taken.
    ended: u64,
}

impl Account {
    fn answer(&mut self, asked: &Asked) -> Say {
        if asked.line.starts_with("POST /token") {
            return self.refresh(asked);
        }
        let shown = &asked.headers["authorization"];
        let number = shown.strip_prefix(&format!("Bearer {CANARY}-access-")).unwrap();
        match number.parse::<u64>().unwrap() {
            n if n > self.ended => answer("200 OK", &[], "\"me\""),
            _ => answer("401 Unauthorized", &[], "null"),
        }
    }

    fn refresh(&mut self, asked: &Asked) -> Say {
        let used = asked.body.rsplit('=').next().unwrap().to_owned();
        let number: u64 = used.rsplit('-').next().unwrap().parse().unwrap();
        self.used.push(used);
        let again = self.forgives && number + 1 == self.current;
        if number != self.current && !again {
            self.revoked = true;
        }
        if self.revoked {
            return answer("400 Bad Request", &[], "{\"error\":\"invalid_grant\"}");
        }
        self.current = number + 1;
        let body = json!({
            "access_token": format!("{CANARY}-access-{}", self.current),
            "refresh_token": format!("{CANARY}-refresh-{}", self.current),
            "expires_in": self.life,
        });
        answer("200 OK", &[], body.to_string())
    }
}

struct World {
    scratch: Scratch,
    account: Arc<Mutex<Account>>,
    file: PathBuf,
    _server: Server,
}

impl World {
    async fn new(name: &str, grace: &str, account: Account) -> Self {
        let account = Arc::new(Mutex::new(account));
        let of = account.clone();
        let server = Server::start(move |asked| of.lock().answer(asked)).await;
        let scratch = Scratch::new(name);
        let file = scratch.path().join("paceline.toml");
        let text = format!(
            "[secrets.refresh]\nenv = \"SEED\"\n[http.main]\nbase = \"{}\"\ntimeout = \"5s\"\n[resources.login]\n\
             kind = \"token\"\nfetch = {{ http = \"main\", method = \"POST\", path = \"/token\", \
             form = {{ refresh_token = \"{{token.refresh}}\" }} }}\n\
             token = {{ seed = \"{{secret:refresh}}\", grace = \"{grace}\" }}\n\
             [resources.me]\nstale_time = \"always\"\nfetch = {{ http = \"main\", path = \"/me\", \
             headers = {{ Authorization = \"Bearer {{token.access}}\" }} }}\n",
            server.base
        );
        std::fs::write(&file, text).unwrap();
        Self { scratch, account, file, _server: server }
    }

    fn peer(&self, failpoint: Option<&str>) -> Peer {
        self.peer_of("0", failpoint)
    }

    /// One with the seed of this number.
    fn peer_of(&self, seed: &str, failpoint: Option<&str>) -> Peer {
        let mut command = Command::new(PEER);
        command.env("SEED", format!("{CANARY}-refresh-{seed}"));
        command.envs(failpoint.map(|place| ("PACELINE_FAILPOINT", place)));
        let file = self.file.to_str().unwrap();
        let peer = Peer::start_by(command, self.scratch.path(), &["--env", "--config", file]);
        peer.joined();
        peer
    }

    /// So many sessions; the first one leads.
    fn peers(&self, count: usize, failpoint: Option<&str>) -> Vec<Peer> {
        (0..count).map(|n| self.peer(failpoint.filter(|_| n == 0))).collect()
    }

    /// No refresh token was used twice, but where the server forgives it.
    fn used(&self) -> usize {
        let account = self.account.lock();
        assert!(!account.revoked, "{account:?}");
        account.used.len()
    }

    /// No file but the token's own holds a secret, nor does anything that a session shows of itself.
    fn nothing_is_shown(&self, peers: &mut [Peer]) {
        for peer in peers {
            peer.tell(&json!({ "ring": true }));
            let ring = peer.wait("its ring", |line| line["ring"].as_str().map(str::to_owned));
            assert!(!ring.contains(CANARY), "{ring}");
            assert!(!peer.drain().iter().any(|line| line.to_string().contains(CANARY)));
        }
        let mut files = Vec::new();
        files_in(self.scratch.path(), &mut files);
        assert!(files.iter().any(|file| file.ends_with("tokens/login")));
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            let shown = bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
            assert_eq!(shown, file.ends_with("tokens/login"), "{}", file.display());
        }
    }
}

fn files_in(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
        if kind.is_dir() {
            files_in(&path, files);
        } else if kind.is_file() {
            files.push(path);
        }
    }
}

fn ask(peer: &mut Peer) {
    peer.tell(&json!({ "token": "login" }));
}

/// Waits for a token; its generation, and the number that the server gave it.
fn got(peer: &Peer) -> (u64, String) {
    peer.wait("a token", |line| {
        assert!(line.get("error").is_none() && line.get("needs_auth").is_none(), "{line}");
        Some((line["token"].as_u64()?, line["ends"].as_str()?.to_owned()))
    })
}

fn needs_auth(peer: &Peer) -> String {
    peer.wait("a sign-in to be wanted", |line: &Value| {
        assert!(line.get("error").is_none() && line.get("token").is_none(), "{line}");
        line["needs_auth"].as_str().map(str::to_owned)
    })
}

fn nth(n: u64) -> (u64, String) {
    (n, n.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_want_a_token_at_once_share_one_refresh_and_so_do_all_who_had_it_rejected() {
    let world = World::new("herd", "0s", Account { life: 3600, ..Account::default() }).await;
    let mut peers = world.peers(5, None);
    for (times, rejected) in [(1, false), (2, true)] {
        for peer in &mut peers {
            peer.tell(&json!({ "token": "login", "callers": 4, "rejected": rejected }));
        }
        for peer in &peers {
            for _ in 0..4 {
                // Whoever asks late had the token of this time rejected already and has a younger one.
                assert!(got(peer).0 >= times);
            }
        }
        if !rejected {
            assert_eq!(world.used(), 1);
        }
    }
    world.used();
    world.nothing_is_shown(&mut peers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_dies_before_the_server_saw_the_use_leaves_it_unknown_and_never_used_again() {
    for place in BEFORE {
        let world = World::new(place, "0s", Account { life: 3600, ..Account::default() }).await;
        let mut peers = world.peers(3, Some(place));
        ask(&mut peers[0]);
        assert!(peers[0].ended(), "{place}");
        for peer in &mut peers[1..] {
            ask(peer);
        }
        match place {
            "token_begun" => {
                assert_eq!((got(&peers[1]), got(&peers[2])), (nth(1), nth(1)));
                assert_eq!(world.used(), 1);
            }
            _ => {
                for peer in &peers[1..] {
                    assert!(needs_auth(peer).contains("without an answer"));
                }
                assert_eq!(world.used(), 0, "what may have been a use is none a second time");
                // Somebody signs in.
                world.account.lock().current = 100;
                let mut new = world.peer_of("100", None);
                ask(&mut new);
                assert_eq!(got(&new), (1, "101".to_owned()), "{place}");
                ask(&mut peers[1]);
                assert_eq!(got(&peers[1]), (1, "101".to_owned()));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_dies_with_the_answer_in_hand_costs_a_sign_in_or_what_the_server_forgives() {
    for place in ANSWERED {
        for (grace, forgives) in [("0s", false), ("10m", true)] {
            let account = Account { life: 3600, forgives, ..Account::default() };
            let world = World::new(place, grace, account).await;
            let mut peers = world.peers(3, Some(place));
            ask(&mut peers[0]);
            assert!(peers[0].ended(), "{place}");
            for peer in &mut peers[1..] {
                ask(peer);
            }
            for peer in &peers[1..] {
                if forgives {
                    assert_eq!(got(peer), nth(1), "the second pair of one use");
                } else {
                    needs_auth(peer);
                }
            }
            assert_eq!(world.used(), if forgives { 2 } else { 1 });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_dies_once_the_pair_is_stored_costs_nothing() {
    for place in STORED {
        let world = World::new(place, "0s", Account { life: 3600, ..Account::default() }).await;
        let mut peers = world.peers(3, Some(place));
        for peer in &mut peers[1..] {
            ask(peer);
        }
        assert!(peers[0].ended(), "{place}");
        assert_eq!((got(&peers[1]), got(&peers[2])), (nth(1), nth(1)), "{place}");
        assert_eq!(world.used(), 1, "{place}");
        world.nothing_is_shown(&mut peers[1..]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_session_is_waited_for_and_a_valid_token_is_read_meanwhile() {
    for place in ["token_intended", "token_answered"] {
        let world = World::new(place, "0s", Account { life: 3600, ..Account::default() }).await;
        let mut peers = world.peers(3, None);
        ask(&mut peers[0]);
        assert_eq!(got(&peers[0]), nth(1));
        // It stops in the middle of the next refresh, and is replaced.
        peers[0].arm(place, "stop");
        peers[0].tell(&json!({ "token": "login", "rejected": true }));
        peers[0].wait_until_stopped();
        for peer in &mut peers[1..] {
            ask(peer);
            assert_eq!(got(peer), nth(1), "a token that is valid is there for all");
            peer.tell(&json!({ "token": "login", "rejected": true }));
        }
        paceline_tests::wait_any(&[&peers[1], &peers[2]], "a successor", |line| {
            line["role"].as_str()?.starts_with("Primary").then_some(())
        });
        peers[0].resume();
        for peer in &peers {
            assert_eq!(got(peer), nth(2), "{place}");
        }
        assert_eq!(world.used(), 2, "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_session_that_is_ended_is_waited_for_no_longer() {
    let world = World::new("ended", "0s", Account { life: 3600, ..Account::default() }).await;
    let mut peers = world.peers(2, None);
    peers[0].arm("token_answered", "stop");
    ask(&mut peers[0]);
    peers[0].wait_until_stopped();
    ask(&mut peers[1]);
    peers[0].kill();
    needs_auth(&peers[1]);
    assert_eq!(world.used(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_leaves_in_the_middle_of_a_refresh_ends_it_first() {
    let world = World::new("leaves", "0s", Account { life: 3600, ..Account::default() }).await;
    let mut peers = world.peers(2, None);
    peers[0].arm("token_answered", "hold");
    ask(&mut peers[0]);
    peers[0].wait("the hold", |line| (line["held"] == json!("token_answered")).then_some(()));
    peers[0].tell(&json!({ "release_after_leave": "token_answered" }));
    assert!(peers[0].leave());
    ask(&mut peers[1]);
    assert_eq!(got(&peers[1]), nth(1));
    assert_eq!(world.used(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_carry_the_token_and_one_that_was_rejected_is_refreshed_once() {
    let world = World::new("carry", "0s", Account { life: 3600, ..Account::default() }).await;
    let mut peers = world.peers(3, None);
    for ended in 0..3 {
        world.account.lock().ended = ended;
        for peer in &mut peers {
            peer.tell(&json!({ "fetch": ["me"], "callers": 3 }));
        }
        for peer in &peers {
            for _ in 0..3 {
                peer.wait("its answer", |line| {
                    assert!(line.get("error").is_none(), "{line}");
                    (line["fetched"] == json!("me")).then_some(())
                });
            }
        }
        assert_eq!(world.used() as u64, ended + 1);
    }
    world.nothing_is_shown(&mut peers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_outlives_its_group() {
    let world = World::new("outlives", "0s", Account { life: 3600, ..Account::default() }).await;
    for _ in 0..3 {
        let mut peer = world.peer(None);
        ask(&mut peer);
        assert_eq!(got(&peer), nth(1));
        peer.kill();
    }
    assert_eq!(world.used(), 1);
}
