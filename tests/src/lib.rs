//! Support for the scenario tests: real session processes that a test starts, steers, stops and kills.

pub mod event_source;
pub mod faults;
pub mod nchan;
pub mod numbered;

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A wait that takes longer is a hang: far above anything a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A private state directory, removed at the end.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one.
    pub fn new(name: &str) -> Self {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let path = std::env::temp_dir().join(format!("paceline-test-{name}-{}", &unique[..8]));
        std::fs::create_dir_all(&path).expect("make a scratch directory");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .expect("close it");
        Self(path)
    }

    /// An empty directory that a test prepared, on a file system of its own for example.
    pub fn at(path: &Path) -> Self {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .expect("close it");
        Self(path.to_owned())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A session in a process of its own (`src/bin/peer.rs`), steered by lines of JSON.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<Value>,
    kept: Mutex<VecDeque<Value>>,
    /// Everything it said, for messages of failed assertions.
    said: Arc<Mutex<Vec<String>>>,
}

impl Peer {
    /// Starts one. `binary` is `env!("CARGO_BIN_EXE_peer")`.
    pub fn start(binary: &str, scratch: &Scratch, arguments: &[&str]) -> Self {
        Self::start_with(binary, scratch, arguments, None)
    }

    /// Starts one that dies when it comes to the place `failpoint`.
    pub fn start_with(binary: &str, scratch: &Scratch, arguments: &[&str], failpoint: Option<&str>) -> Self {
        let mut command = Command::new(binary);
        command.envs(failpoint.map(|place| ("PACELINE_FAILPOINT", place)));
        Self::start_by(command, scratch.path(), arguments)
    }

    /// Starts one by a command that takes the arguments of a peer: another program that runs it, another environment.
    pub fn start_by(mut command: Command, state_dir: &Path, arguments: &[&str]) -> Self {
        let mut child = command
            .arg(state_dir)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a peer");
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("stdout is piped");
        let (tell, lines) = mpsc::channel();
        let said = Arc::new(Mutex::new(Vec::new()));
        let record = said.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                record.lock().push(line.clone());
                let Ok(value) = serde_json::from_str(&line) else { continue };
                if tell.send(value).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, lines, kept: Mutex::default(), said }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command.
    pub fn tell(&mut self, command: &Value) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        // A peer that was killed cannot be told anything; the test learns it from what is missing.
        let _ = writeln!(stdin, "{command}");
    }

    /// Waits for a line that `pick` accepts; other lines are kept for later waits.
    ///
    /// # Panics
    /// When nothing fits within [`PATIENCE`].
    #[expect(clippy::disallowed_methods, reason = "how long to listen is the test's own affair")]
    pub fn wait<T>(&self, what: &str, mut pick: impl FnMut(&Value) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut kept = self.kept.lock();
        if let Some((at, found)) = kept.iter().enumerate().find_map(|(at, value)| Some((at, pick(value)?))) {
            kept.remove(at);
            return found;
        }
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(value) => match pick(&value) {
                    Some(found) => return found,
                    None => kept.push_back(value),
                },
                Err(error) => {
                    panic!(
                        "peer {}: waiting for {what}: {error}; it said:\n{}",
                        self.pid(),
                        self.last_words()
                    )
                }
            }
        }
    }

    /// Waits until it leads or follows in an epoch above `epoch`.
    pub fn above(&self, epoch: u64) {
        self.wait(&format!("an epoch above {epoch}"), |line| (epoch_of(line)? > epoch).then_some(()));
    }

    /// Lets it do `action` (`kill`, `stop`, `panic`) when it next comes to the failpoint `place`.
    pub fn arm(&mut self, place: &str, action: &str) {
        // Not answered for: a process that stops at the place may stop before it said anything.
        self.tell(&serde_json::json!({ "arm": place, "action": action }));
    }

    /// Whether it ended on its own, or was killed by itself, within [`PATIENCE`].
    pub fn ended(&mut self) -> bool {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.kept.lock().push_back(line),
                // Its output ends with it.
                Err(mpsc::RecvTimeoutError::Disconnected) => return self.child.wait().is_ok(),
                Err(mpsc::RecvTimeoutError::Timeout) => return false,
            }
        }
    }

    /// Waits for its end, `None`, or for a line that `pick` accepts before that.
    ///
    /// # Panics
    /// When neither comes within [`PATIENCE`].
    pub fn ended_or<T>(&mut self, mut pick: impl FnMut(&Value) -> Option<T>) -> Option<T> {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => match pick(&line) {
                    Some(found) => return Some(found),
                    None => self.kept.lock().push_back(line),
                },
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let _ = self.child.wait();
                    return None;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!("peer {} neither ends nor goes on; it said:\n{}", self.pid(), self.last_words())
                }
            }
        }
    }

    /// Whether it has ended by now.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// What it says within `time`.
    #[expect(clippy::disallowed_methods, reason = "how long to listen is the test's own affair")]
    pub fn listen(&self, time: Duration) -> Vec<Value> {
        let end = Instant::now() + time;
        let mut all = self.drain();
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            all.push(line);
        }
        all
    }

    /// The end of what it said beside answers to calls.
    pub fn facts(&self) -> String {
        let said = self.said.lock();
        let facts: Vec<&str> =
            said.iter().map(String::as_str).filter(|line| !line.contains("acknowledged")).collect();
        facts[facts.len().saturating_sub(30)..].join("\n")
    }

    /// The end of what it said.
    fn last_words(&self) -> String {
        let said = self.said.lock();
        said[said.len().saturating_sub(200)..].join("\n")
    }

    /// Everything that was said and not waited for, now.
    pub fn drain(&self) -> Vec<Value> {
        let mut kept = self.kept.lock();
        kept.extend(self.lines.try_iter());
        kept.drain(..).collect()
    }

    /// Waits until it joined; returns its session id.
    pub fn joined(&self) -> String {
        self.wait("the join", |value| value["joined"].as_str().map(str::to_owned))
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGSTOP.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Waits until the process is stopped, as the kernel says.
    ///
    /// # Panics
    /// When it is not within [`PATIENCE`].
    #[expect(clippy::disallowed_methods, reason = "how long to look is the test's own affair")]
    pub fn wait_until_stopped(&self) {
        let end = Instant::now() + PATIENCE;
        let stat = format!("/proc/{}/stat", self.pid());
        let stopped = || {
            let text = std::fs::read_to_string(&stat).unwrap_or_default();
            text.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
        };
        while !stopped() {
            assert!(
                Instant::now() < end,
                "peer {} is not stopped; it said:\n{}",
                self.pid(),
                self.last_words()
            );
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Another signal.
    pub fn send(&self, signal: Signal) {
        self.signal(signal);
    }

    /// How it ended; waits for that.
    ///
    /// # Panics
    /// When it does not end.
    pub fn status(&mut self) -> ExitStatus {
        assert!(self.ended(), "peer {} does not end", self.pid());
        self.child.wait().expect("it was waited for before")
    }

    /// Asks it to leave and waits for its end; returns whether it ended well.
    pub fn leave(&mut self) -> bool {
        self.tell(&serde_json::json!({ "leave": true }));
        self.child.wait().is_ok_and(|status| status.success())
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("signal a living child");
    }
}

/// The epoch of a role in which a session is at rest.
pub fn epoch_of(line: &Value) -> Option<u64> {
    let role = line["role"].as_str()?;
    if !role.starts_with("Primary") && !role.starts_with("Follower") {
        return None;
    }
    role.split_once("Epoch(")?.1.split_once(')')?.0.parse().ok()
}

/// Waits until one of `peers` says a line that `pick` accepts.
///
/// # Panics
/// When nothing fits within [`PATIENCE`].
#[expect(clippy::disallowed_methods, reason = "how long to listen is the test's own affair")]
pub fn wait_any<T>(peers: &[&Peer], what: &str, mut pick: impl FnMut(&Value) -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        for peer in peers {
            let mut kept = peer.kept.lock();
            kept.extend(peer.lines.try_iter());
            if let Some((at, found)) =
                kept.iter().enumerate().find_map(|(at, value)| Some((at, pick(value)?)))
            {
                kept.remove(at);
                return found;
            }
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let said: Vec<String> = peers.iter().map(|peer| peer.last_words()).collect();
    panic!("waiting for {what}; they said:\n{}", said.join("\n---\n"))
}

/// The newest claim of the group: its epoch and its owner's process.
///
/// # Panics
/// When there is none.
pub fn newest_claim(scratch: &Scratch) -> (u64, u32) {
    let claims = scratch.path().join("test").join("claims");
    let newest = std::fs::read_dir(claims)
        .expect("claims are there")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .max()
        .expect("a claim is there");
    let body = std::fs::read_to_string(&newest).expect("the claim is readable");
    let pid = body.lines().find_map(|line| line.strip_prefix("pid=")).expect("the claim names its process");
    let epoch = newest.file_name().and_then(|name| name.to_str()).expect("claims have plain names");
    (epoch.parse().expect("named by its epoch"), pid.parse().expect("a process id"))
}

impl Drop for Peer {
    #[expect(clippy::print_stderr, reason = "what the others saw is a finding when a test fails")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("peer {} said at last:\n{}", self.pid(), self.facts());
        }
        self.kill();
    }
}
