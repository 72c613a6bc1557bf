//! What belongs to the host stays the host's: signals, the panic hook, the tracing subscriber, the environment.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    fs, panic,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use common::{builder, scratch};
use paceline::{Session, key};

/// Handled and ignored signals of this process, as the kernel says.
fn signals() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let masks = ["SigCgt:", "SigIgn:"];
    status.lines().filter(|line| masks.iter().any(|mask| line.starts_with(mask))).map(str::to_owned).collect()
}

static PANICS: AtomicU64 = AtomicU64::new(0);

#[test]
fn a_whole_life_of_a_session_leaves_the_hosts_things_alone() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        usual(info);
    }));
    let before = signals();
    let dir = scratch();
    let session = builder(dir.path()).join_blocking().unwrap();
    let other = builder(dir.path()).join_blocking().unwrap();
    session.set_blocking(key!["k"], &1).unwrap();
    assert_eq!(signals(), before, "while sessions live");
    session.leave_blocking().unwrap();
    other.leave_blocking().unwrap();
    assert_eq!(signals(), before, "afterwards");
    assert!(!tracing::dispatcher::has_been_set(), "a tracing subscriber was installed");
    assert!(thread::spawn(|| panic!("the host's own")).join().is_err());
    assert_eq!(PANICS.load(Ordering::Relaxed), 1, "the host's hook is in place");
}

const CHILD: &str = "PACELINE_TEST_CHILD";

/// The environment can only be set for a child.
#[test]
fn the_environment_is_read_when_asked_and_a_directory_that_is_named_counts_else() {
    let (from_env, named) = (scratch(), scratch());
    if let Ok(named) = std::env::var(CHILD) {
        Session::builder("asked").from_env().join_blocking().unwrap().leave_blocking().unwrap();
        Session::builder("unasked").state_dir(named).join_blocking().unwrap().leave_blocking().unwrap();
        return;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_environment_is_read_when_asked_and_a_directory_that_is_named_counts_else"])
        .env(CHILD, named.path())
        .env("PACELINE_STATE_DIR", from_env.path())
        .status()
        .unwrap();
    assert!(status.success());
    let groups = |dir: &tempfile::TempDir| -> Vec<String> {
        fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    assert_eq!((groups(&from_env), groups(&named)), (vec!["asked".to_owned()], vec!["unasked".to_owned()]));
}
