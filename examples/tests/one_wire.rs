//! The example `one_wire` itself, as a user runs it, with small numbers.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use paceline_examples::one_wire::{
    child::TempDir,
    feed::{Feed, FeedOptions},
};
use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Far more than anything here takes; a test that needs it has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// One run at a time: each of them is many processes.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock()
}

fn example() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| common::example("one_wire"))
}

/// A run whose files are in `dir`.
fn command(dir: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(example());
    command.args(args).env("TMPDIR", dir.path()).stdin(Stdio::null());
    command
}

/// Runs to the end; nothing of it may be left in the directory for temporary files.
fn run(args: &[&str]) -> Output {
    let dir = TempDir::new("run").unwrap();
    let output = command(&dir, args).output().unwrap();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    output
}

/// Runs with `--json`; gives the exit code and the only document.
fn document(args: &[&str]) -> (Option<i32>, Value) {
    let output = run(&[args, &["--json"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code(), serde_json::from_str(&text).unwrap())
}

#[track_caller]
fn kept(code: Option<i32>, document: &Value) {
    assert_eq!(document["verdict"], "ok", "{document}");
    assert_eq!(code, Some(0));
    for fault in ["gaps", "duplicates", "reordered"] {
        assert_eq!(document["updates"][fault], 0, "{document}");
    }
}

#[test]
fn killed_frozen_and_polite_primaries_lose_nothing() {
    let _turn = alone();
    let flags = ["--sessions=4", "--kills=2", "--stops=1", "--handovers=2", "--duration=4s", "--seed=1"];
    let (code, document) = document(&flags);
    kept(code, &document);
    let takeovers = &document["takeover_ms"];
    let n = ["sigkill", "sigstop", "polite"].map(|kind| takeovers[kind]["n"].as_u64().unwrap());
    assert_eq!(n, [2, 1, 2]);
    assert_eq!(document["upstream"]["connections_max"], 1);
    assert_eq!(document["updates"]["gaps_reported"], 0);
    assert_eq!((&document["fenced_returns"], &document["seed"]), (&1.into(), &1.into()));
    assert!(document.get("reasons").is_none());
}

#[test]
fn without_resume_every_loss_is_reported_and_repaired() {
    let _turn = alone();
    let flags = ["--sessions=4", "--kills=2", "--stops=1", "--handovers=1", "--duration=4s", "--no-resume"];
    let (code, document) = document(&flags);
    kept(code, &document);
    // The message of each outage at least is lost, and each loss is told.
    assert!(document["updates"]["gaps_reported"].as_u64().unwrap() > 0, "{document}");
}

#[test]
fn without_a_group_each_session_has_its_own_connection() {
    let _turn = alone();
    let (code, document) = document(&["--without", "--sessions=3", "--duration=1s"]);
    kept(code, &document);
    assert_eq!(document["upstream"]["connections_max"], 3);
    assert_eq!(document["takeover_ms"], Value::Null);
}

/// Runs against a feed that is not the example's own.
fn foreign(flags: &[&str]) -> (Option<i32>, Value) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let feed = Feed::start(FeedOptions::default()).await.unwrap();
        let url = format!("--url=ws://127.0.0.1:{}/", feed.port());
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).chain([url]).collect();
        let run = move || document(&flags.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(run).await.unwrap()
    })
}

const FOREIGN_FAULTS: [&str; 5] =
    ["--sessions=3", "--kills=2", "--stops=1", "--handovers=1", "--duration=3s"];

#[test]
fn another_feed_that_resumes_loses_nothing() {
    let _turn = alone();
    let (code, document) =
        foreign(&[&FOREIGN_FAULTS[..], &["--position-path=$.seq", "--resume-query=since"]].concat());
    kept(code, &document);
    assert_eq!(document["updates"]["gaps_reported"], 0, "{document}");
    assert_eq!(document["upstream"]["connections_max"], Value::Null, "a foreign feed tells nothing");
    assert_eq!(document["takeover_ms"]["sigkill"]["n"], 2);
}

#[test]
fn another_feed_without_positions_loses_nothing_silently() {
    let _turn = alone();
    let (code, document) = foreign(&FOREIGN_FAULTS);
    kept(code, &document);
    assert_eq!(document["fenced_returns"], 1);
}

#[track_caller]
fn caught(inject: &str, count: &str) {
    let _turn = alone();
    let flags =
        ["--sessions=2", "--kills=0", "--stops=0", "--handovers=0", "--duration=1s", "--inject", inject];
    let (code, document) = document(&flags);
    assert_eq!(code, Some(1), "{document}");
    assert_eq!(document["verdict"], "failed");
    assert_eq!(document["reasons"].as_array().unwrap().len(), 1, "{document}");
    let found =
        ["gaps", "duplicates", "reordered"].map(|one| (one, document["updates"][one].as_u64().unwrap()));
    assert_eq!(found, ["gaps", "duplicates", "reordered"].map(|one| (one, u64::from(one == count))));
}

#[test]
fn a_session_that_drops_an_event_is_caught() {
    caught("drop", "gaps");
}

#[test]
fn a_session_that_repeats_an_event_is_caught() {
    caught("repeat", "duplicates");
}

#[test]
fn a_session_that_swaps_events_is_caught() {
    caught("swap", "reordered");
}

#[test]
fn flags_without_meaning_are_a_usage_error() {
    let output = run(&["--sessions", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(run(&["--kils", "1"]).status.code(), Some(2));
}

/// A run that is ended and waited for in any case.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).unwrap();
    }
}

/// Starts a long run and waits until its processes are there; gives their ids.
fn started(dir: &TempDir) -> (Run, Vec<i32>) {
    let flags = ["--sessions=3", "--kills=0", "--stops=0", "--handovers=0", "--duration=5m"];
    let parent = Run(command(dir, &flags).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let start = Instant::now();
    loop {
        let children = children(parent.0.id());
        // The feed and three sessions.
        if children.len() == 4 {
            return (parent, children);
        }
        assert!(start.elapsed() < LIMIT, "the run does not start");
        std::thread::yield_now();
    }
}

/// The part of `/proc/<pid>/stat` after the name: state, parent, …
fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

fn children(parent: u32) -> Vec<i32> {
    let parent = parent.to_string();
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|stat| stat[1] == parent)).collect()
}

/// Waits until none of the processes runs any more.
fn gone(pids: &[i32]) {
    let start = Instant::now();
    while pids.iter().any(|pid| stat(*pid).is_some_and(|stat| stat[0] != "Z" && stat[0] != "X")) {
        assert!(start.elapsed() < LIMIT, "processes are left behind");
        std::thread::yield_now();
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    let _turn = alone();
    let dir = TempDir::new("run").unwrap();
    let (mut parent, children) = started(&dir);
    signal(&parent.0, Signal::INT);
    assert_eq!(parent.0.wait().unwrap().code(), Some(130));
    gone(&children);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn the_processes_of_a_killed_run_end_with_it() {
    let _turn = alone();
    let dir = TempDir::new("run").unwrap();
    let (mut parent, children) = started(&dir);
    // A stopped child cannot end by itself. The feed is past its start-up: sessions start when it listens.
    let is_feed =
        |pid: &&i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("\0feed\0");
    let feed = children.iter().find(is_feed).unwrap();
    kill_process(Pid::from_raw(*feed).unwrap(), Signal::STOP).unwrap();
    parent.0.kill().unwrap();
    parent.0.wait().unwrap();
    gone(&children);
}
