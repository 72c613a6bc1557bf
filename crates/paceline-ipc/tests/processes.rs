//! What only real processes can show: locks that end with their holder, claims that race, stopped owners.
//!
//! Each child is this test binary again, told by an environment variable what to do. It speaks in lines that begin
//! with `@`, and does each next step when it gets a line.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use paceline_ipc::{
    claim::{ClaimBody, Claimant, collect_claims, inspect_claim, list_claims},
    dirs::StateDir,
    fence::{FencedBy, OwnedClaim},
    kit::{Kit, LinkError, collect_kits},
    lock::LockState,
    member::{SessionLock, collect_sessions, session_alive},
    process::{ProcessMark, is_stopped},
    socket::{AcceptError, Bound, ConnectError, connect},
};
use paceline_proto::{
    id::{Epoch, Nonce, SessionId},
    program::PROTO,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

const ROLE: &str = "PACELINE_IPC_TEST_ROLE";
const BASE: &str = "PACELINE_IPC_TEST_BASE";
const NUMBER: &str = "PACELINE_IPC_TEST_NUMBER";

fn open(base: &Path) -> StateDir {
    StateDir::open(&"g".parse().unwrap(), None, Some(base)).unwrap()
}

fn body(number: u64) -> ClaimBody {
    let claimant = Claimant {
        session: SessionId(u128::from(number)),
        label: "test".to_owned(),
        build: "0".to_owned(),
        proto: PROTO,
        schema: 1,
        min_reader: 1,
    };
    ClaimBody::new(Nonce(u128::from(number)), claimant)
}

fn claim(dir: &StateDir, epoch: u64) -> (OwnedClaim, Bound) {
    Kit::make(dir, body(epoch)).unwrap().link(Epoch(epoch)).unwrap()
}

/// A child of this test binary. Killed and reaped when dropped.
struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(role: &str, base: &Path, number: u64) -> Self {
        Self::start_as(role, base, number, None)
    }

    fn start_as(role: &str, base: &Path, number: u64, uid: Option<u32>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "child", "--nocapture"])
            .env(ROLE, role)
            .env(BASE, base)
            .env(NUMBER, number.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid);
        }
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, stdin, stdout: BufReader::new(stdout) }
    }

    /// The next line it says.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the child ended");
            // The harness may have begun the line with the test's name.
            if let Some((_, said)) = line.split_once('@') {
                return said.trim_end().to_owned();
            }
        }
    }

    fn go(&mut self) {
        self.stdin.write_all(b"\n").unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Returns when it is stopped.
    fn stop(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
    }

    fn resume(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a child does; a test that does nothing in the parent.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let base = std::env::var(BASE).unwrap();
    let number: u64 = std::env::var(NUMBER).unwrap().parse().unwrap();
    let say = |line: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "@{line}").unwrap();
        out.flush().unwrap();
    };
    let wait = || {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
    };
    match role.as_str() {
        // Makes a kit, and races for epoch 1 when told.
        "racer" => {
            let kit = Kit::make(&open(Path::new(&base)), body(number)).unwrap();
            say("ready");
            wait();
            let linked = kit.link(Epoch(1));
            say(match &linked {
                Ok((owner, _)) if owner.confirm().is_ok() => "won",
                Ok(_) => "not confirmed",
                Err(LinkError::Exists(_)) => "lost",
                Err(LinkError::Io { .. }) => "failed",
            });
            wait();
        }
        // Claims, and tells at each step whether it is fenced.
        "owner" => {
            let (owner, _bound) = claim(&open(Path::new(&base)), number);
            let fence = owner.fence();
            say("claimed");
            loop {
                wait();
                say(&fence
                    .unfenced()
                    .map_or_else(|fenced| format!("{:?}", fenced.why), |()| "unfenced".to_owned()));
            }
        }
        "kit" => {
            let _kit = Kit::make(&open(Path::new(&base)), body(number)).unwrap();
            say("ready");
            wait();
        }
        "session" => {
            let _held = SessionLock::hold(&open(Path::new(&base)), SessionId(u128::from(number))).unwrap();
            say("ready");
            wait();
        }
        // Connects to a socket of another user.
        "stranger" => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let path = Path::new(&base).join("open.sock");
            let got = runtime.block_on(connect(&path, Duration::from_secs(10)));
            say(&match got {
                Err(ConnectError::OtherUid { uid }) => format!("other {uid}"),
                other => format!("{other:?}"),
            });
        }
        other => panic!("no role {other}"),
    }
}

#[test]
fn sixteen_processes_race_for_one_epoch_and_one_wins() {
    let base = tempfile::tempdir().unwrap();
    let mut racers: Vec<Process> =
        (1..=16).map(|number| Process::start("racer", base.path(), number)).collect();
    for racer in &mut racers {
        assert_eq!(racer.hear(), "ready");
    }
    for racer in &mut racers {
        racer.go();
    }
    let ends: Vec<String> = racers.iter_mut().map(Process::hear).collect();
    let winners: Vec<usize> = (0..16).filter(|&i| ends[i] == "won").collect();
    assert_eq!(winners.len(), 1, "{ends:?}");
    assert_eq!(ends.iter().filter(|end| *end == "lost").count(), 15, "{ends:?}");

    let dir = open(base.path());
    assert_eq!(list_claims(&dir).unwrap(), [Epoch(1)]);
    let seen = inspect_claim(&dir, Epoch(1));
    assert_eq!(seen.body.unwrap().nonce, Nonce(winners[0] as u128 + 1));
    assert_eq!(seen.lock, LockState::Held);
}

#[test]
fn a_killed_owner_frees_its_lock_and_keeps_its_claim() {
    let base = tempfile::tempdir().unwrap();
    let dir = open(base.path());
    let mut owner = Process::start("owner", base.path(), 1);
    assert_eq!(owner.hear(), "claimed");
    assert_eq!(inspect_claim(&dir, Epoch(1)).lock, LockState::Held);
    owner.kill();
    let seen = inspect_claim(&dir, Epoch(1));
    assert_eq!(seen.lock, LockState::Free);
    assert_eq!(seen.body.unwrap().process.pid, owner.child.id());
}

#[test]
fn a_stopped_owner_keeps_its_lock_and_is_seen_stopped() {
    let base = tempfile::tempdir().unwrap();
    let dir = open(base.path());
    let mut owner = Process::start("owner", base.path(), 1);
    assert_eq!(owner.hear(), "claimed");
    let mark: ProcessMark = inspect_claim(&dir, Epoch(1)).body.unwrap().process;
    assert_eq!(is_stopped(&mark), Some(false));
    owner.stop();
    assert_eq!(inspect_claim(&dir, Epoch(1)).lock, LockState::Held);
    assert_eq!(is_stopped(&mark), Some(true));
    owner.resume();
    owner.go();
    assert_eq!(owner.hear(), "unfenced");
    assert_eq!(is_stopped(&mark), Some(false));
    owner.kill();
    assert_eq!(is_stopped(&mark), None, "a process that is gone is not stopped");
}

/// Owner 41 stops between commit and check; 42 and 43 reign; a newcomer claims 44 and collects old claims; 41 wakes.
#[test]
fn a_frozen_owner_past_collected_claims_is_fenced_when_it_wakes() {
    let base = tempfile::tempdir().unwrap();
    let dir = open(base.path());
    let mut sleeper = Process::start("owner", base.path(), 41);
    assert_eq!(sleeper.hear(), "claimed");
    sleeper.go();
    assert_eq!(sleeper.hear(), "unfenced");
    sleeper.stop();
    // Told to check: it will, when it wakes.
    sleeper.go();
    for epoch in [42, 43] {
        drop(claim(&dir, epoch));
    }
    let (newcomer, _bound) = claim(&dir, 44);
    // The rule keeps sixteen; so many more reigns pass.
    for epoch in 45..=60 {
        drop(claim(&dir, epoch));
    }
    assert_eq!(collect_claims(&dir, None).unwrap(), [41, 42, 43, 44].map(Epoch));
    assert!(!dir.claim(Epoch(42)).exists(), "the first half of the fence sees nothing");
    sleeper.resume();
    assert_eq!(sleeper.hear(), format!("{:?}", FencedBy::ClaimGone));
    assert_eq!(newcomer.fence().unfenced().unwrap_err().why, FencedBy::Successor);
}

#[test]
fn a_frozen_owner_that_was_succeeded_is_fenced_when_it_wakes() {
    let base = tempfile::tempdir().unwrap();
    let dir = open(base.path());
    let mut sleeper = Process::start("owner", base.path(), 41);
    assert_eq!(sleeper.hear(), "claimed");
    sleeper.stop();
    sleeper.go();
    let (successor, _bound) = claim(&dir, 42);
    sleeper.resume();
    assert_eq!(sleeper.hear(), format!("{:?}", FencedBy::Successor));
    assert_eq!(successor.fence().unfenced(), Ok(()));
}

#[test]
fn a_killed_kit_is_collected_and_a_stopped_one_stays() {
    let base = tempfile::tempdir().unwrap();
    let dir = open(base.path());
    let mut killed = Process::start("kit", base.path(), 1);
    let mut stopped = Process::start("kit", base.path(), 2);
    assert_eq!((killed.hear(), stopped.hear()), ("ready".to_owned(), "ready".to_owned()));
    stopped.stop();
    assert!(collect_kits(&dir, |_| true).unwrap().is_empty());
    killed.kill();
    assert_eq!(collect_kits(&dir, |_| true).unwrap(), [Nonce(1).to_string().as_str()]);
    assert!(dir.kit(Nonce(2)).exists());
    assert!(dir.socket("00000002.sock").exists() && !dir.socket("00000001.sock").exists());
}

#[test]
fn a_session_is_alive_until_its_process_ends() {
    let base = tempfile::tempdir().unwrap();
    let dir = open(base.path());
    let mut session = Process::start("session", base.path(), 7);
    assert_eq!(session.hear(), "ready");
    session.stop();
    assert!(session_alive(&dir, SessionId(7)));
    assert!(collect_sessions(&dir).unwrap().is_empty());
    session.kill();
    assert!(!session_alive(&dir, SessionId(7)));
    assert_eq!(collect_sessions(&dir).unwrap(), [SessionId(7)]);
}

#[test]
fn another_user_is_turned_away_at_both_ends() {
    const STRANGER: u32 = 54321;
    if !rustix::process::geteuid().is_root() {
        eprintln_skip("another_user_is_turned_away_at_both_ends");
        return;
    }
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let path = base.path().join("open.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = Bound::bind(&path).unwrap().into_listener().unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let mut stranger = Process::start_as("stranger", base.path(), 0, Some(STRANGER));
        assert_eq!(stranger.hear(), "other 0");
        match listener.accept().await {
            Err(AcceptError::OtherUid { uid }) => assert_eq!(uid, STRANGER),
            other => panic!("{other:?}"),
        }
    });
}

#[expect(clippy::print_stderr, reason = "a skipped test is to be seen")]
fn eprintln_skip(test: &str) {
    eprintln!("SKIPPED {test}: needs root to become another user");
}
