//! Support for the scenario tests: real session processes that a test starts, steers, stops and kills.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
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
        std::os::unix::fs::chown(&path, None, None).expect("own it");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .expect("close it");
        Self(path)
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
        let mut child = Command::new(binary)
            .envs(failpoint.map(|place| ("PACELINE_FAILPOINT", place)))
            .arg(scratch.path())
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
    pub fn wait<T>(&self, what: &str, mut pick: impl FnMut(&Value) -> Option<T>) -> T {
        let mut kept = self.kept.lock();
        if let Some((at, found)) = kept.iter().enumerate().find_map(|(at, value)| Some((at, pick(value)?))) {
            kept.remove(at);
            return found;
        }
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(value) => match pick(&value) {
                    Some(found) => return found,
                    None => kept.push_back(value),
                },
                Err(error) => {
                    panic!(
                        "peer {}: waiting for {what}: {error}; it said:\n{}",
                        self.pid(),
                        self.said.lock().join("\n")
                    )
                }
            }
        }
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

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
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

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}
