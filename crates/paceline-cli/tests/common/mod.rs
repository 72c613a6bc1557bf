//! Runs the program as a user would, each test with a state directory of its own, and finds what it leaves behind.

#![allow(dead_code, reason = "each file of tests uses its part")]

mod schema;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A wait that takes longer is a hang.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a fact that nobody tells.
const STEP: Duration = Duration::from_millis(10);

/// A private state directory. Whatever still runs in it is killed at the end.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("paceline-cli-").tempdir().expect("a directory"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The directory of the default group.
    pub fn group(&self) -> PathBuf {
        self.path().join("default")
    }

    /// The program, with this state directory and nothing of the tester's environment that it reads.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paceline"));
        for name in ["PACELINE_GROUP", "PACELINE_PRINCIPAL", "PACELINE_SPAWN", "NO_COLOR"] {
            command.env_remove(name);
        }
        // No file of the tester's counts.
        command.env("XDG_CONFIG_HOME", self.path().join("config")).current_dir(self.path());
        command.env("PACELINE_STATE_DIR", self.path()).env("PACELINE_IDLE_EXIT", "500ms");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        Ended::new(self.command(arguments).output().expect("run paceline"))
    }

    /// Runs a command that must succeed, and reads its document.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let ended = self.run(&[arguments, &["--json"]].concat());
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.err);
        assert!(ended.out.starts_with("{\"schema\":1,"), "{}", ended.out);
        serde_json::from_str(&ended.out).expect("a document")
    }

    /// Starts a coordinator and waits until it is ready.
    pub fn coordinator(&self) -> Running {
        let running = Running::start(self.command(&["run", "--json", "--idle-exit", "never"]));
        running.wait("the coordinator", |line| (line["kind"] == "ready").then_some(()));
        running
    }

    /// Processes whose command line names this directory.
    pub fn processes(&self) -> Vec<u32> {
        let wanted = self.path().to_str().expect("a path in UTF-8");
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(wanted)
        })
        .collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.processes().into_iter().for_each(|pid| signal(pid, Signal::KILL));
    }
}

/// A command that ended.
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ended {
    pub fn new(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let code = output.status.code().expect("ended by itself");
        Self { code, out: text(output.stdout), err: text(output.stderr) }
    }
}

/// A command that goes on; its lines are read as they come.
pub struct Running {
    pub child: Child,
    lines: mpsc::Receiver<String>,
    errors: mpsc::Receiver<String>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("start paceline");
        let lines = read(child.stdout.take().expect("piped"));
        let errors = read(child.stderr.take().expect("piped"));
        Self { child, lines, errors }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of text.
    pub fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    /// The next line that fits; others are passed over.
    pub fn wait<T>(&self, what: &str, mut pick: impl FnMut(&Value) -> Option<T>) -> T {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{what}: {error}"));
            let value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
            if let Some(found) = pick(&value) {
                return found;
            }
        }
    }

    pub fn signal(&self, what: Signal) {
        signal(self.pid(), what);
    }

    /// Waits for its end; returns its exit code and everything it said on stderr.
    pub fn end(&mut self) -> (Option<i32>, String) {
        let status = self.child.wait().expect("its end");
        (status.code(), self.errors.iter().collect::<Vec<_>>().join("\n"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails where the test waited for its end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(stream: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (tell, lines) = mpsc::channel();
    std::thread::spawn(move || {
        BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
    });
    lines
}

pub fn signal(pid: u32, what: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    // It may have ended meanwhile.
    let _ = kill_process(pid, what);
}

/// Waits for a fact that nobody tells.
pub fn until(what: &str, mut fact: impl FnMut() -> bool) {
    let steps = PATIENCE.as_millis() / STEP.as_millis();
    for _ in 0..steps {
        if fact() {
            return;
        }
        std::thread::park_timeout(STEP);
    }
    panic!("{what}: not within {PATIENCE:?}");
}

/// Checks a document against `docs/schemas/<name>.schema.json`.
pub fn check(name: &str, document: &Value) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schemas");
    let text = std::fs::read_to_string(root.join(format!("{name}.schema.json"))).expect("a schema");
    let errors = schema::errors(&serde_json::from_str(&text).expect("JSON"), document);
    assert!(errors.is_empty(), "{name}: {document}\n{errors:#?}");
}
