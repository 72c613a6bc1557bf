//! `get KEY -- CMD`: one run for all who ask, in the directory of whoever asked first, bytes as they are, failures for
//! those who wait.

mod common;

use std::{
    path::PathBuf,
    process::{Child, Output},
};

use common::{Scratch, until};
use rustix::process::Signal;
use serde_json::json;

/// A directory in which a command notes each of its runs, and waits for its gate.
struct Runs {
    scratch: Scratch,
    dir: PathBuf,
}

impl Runs {
    fn new() -> Self {
        let scratch = Scratch::new();
        let dir = scratch.path().join("work");
        std::fs::create_dir(&dir).expect("a directory");
        Self { scratch, dir }
    }

    /// A shell command that notes its run, waits for the gate, and goes on.
    fn gated(then: &str) -> String {
        format!("echo run >> runs; until [ -e gate ]; do sleep 0.01; done; {then}")
    }

    fn open(&self) {
        std::fs::write(self.dir.join("gate"), "").expect("the gate");
    }

    fn count(&self) -> usize {
        std::fs::read_to_string(self.dir.join("runs")).unwrap_or_default().lines().count()
    }

    fn get(&self, max_age: &str, shell: &str) -> std::process::Command {
        let mut command =
            self.scratch.command(&["get", "status", "--max-age", max_age, "--", "sh", "-c", shell]);
        command.current_dir(&self.dir);
        command
    }

    fn start(&self, max_age: &str, shell: &str) -> Child {
        self.get(max_age, shell).spawn().expect("start paceline")
    }

    fn output(&self, max_age: &str, shell: &str) -> Output {
        self.get(max_age, shell).output().expect("run paceline")
    }
}

#[test]
fn twelve_who_ask_at_once_share_one_run_and_get_its_bytes() {
    let runs = Runs::new();
    // No text, no line end, every byte.
    let bytes: Vec<u8> = (0..=255).collect();
    std::fs::write(runs.dir.join("data"), &bytes).expect("data");
    let shell = Runs::gated("cat data");
    let asking: Vec<Child> = (0..12).map(|_| runs.start("1h", &shell)).collect();
    until("the first run", || runs.count() > 0);
    runs.open();
    for child in asking {
        let output = child.wait_with_output().expect("its end");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, bytes);
    }
    assert_eq!(runs.count(), 1);
    assert_eq!(runs.output("1h", &shell).stdout, bytes, "from the cache");
    assert_eq!(runs.count(), 1);
    assert_eq!(runs.output("0s", &shell).stdout, bytes);
    assert_eq!(runs.count(), 2, "nothing is young enough");
    runs.output("1h", &format!("{shell} # other words"));
    assert_eq!(runs.count(), 3);
}

#[test]
fn a_failure_reaches_each_who_waits_with_status_and_stderr_and_is_not_cached() {
    let runs = Runs::new();
    let shell = Runs::gated("[ -e good ] && { echo better; exit; }; echo half; echo no luck >&2; exit 3");
    let asking: Vec<Child> = (0..4).map(|_| runs.start("1h", &shell)).collect();
    until("the first run", || runs.count() > 0);
    runs.open();
    for child in asking {
        let output = child.wait_with_output().expect("its end");
        assert_eq!(output.status.code(), Some(3));
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        // Whoever started the coordinator says so first.
        assert!(said.ends_with("no luck\n"), "{said}");
        assert_eq!(output.stdout, b"");
    }
    assert!(runs.count() <= 4, "no run is repeated for one asker");
    std::fs::write(runs.dir.join("good"), "").expect("good");
    assert_eq!(runs.output("1h", &shell).stdout, b"better\n");
}

#[test]
fn the_next_asker_runs_it_when_the_first_one_dies() {
    let runs = Runs::new();
    let shell = Runs::gated("echo done");
    let first = runs.start("1h", &shell);
    until("the first run", || runs.count() == 1);
    let second = runs.start("1h", &shell);
    until("the second asker", || {
        let sessions = runs.scratch.json(&["sessions"]);
        sessions["sessions"].as_array().is_some_and(|sessions| sessions.len() == 3)
    });
    common::signal(first.id(), Signal::KILL);
    until("the second run", || runs.count() == 2);
    runs.open();
    let output = second.wait_with_output().expect("its end");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"done\n"[..]));
    assert_eq!(runs.count(), 2);
    drop(first.wait_with_output());
}

#[test]
fn a_command_runs_where_it_was_asked_for_and_ends_as_it_would_without_a_cache() {
    let runs = Runs::new();
    let output = runs.output("1h", "pwd; echo $MARK; echo words >&2");
    let here = runs.dir.canonicalize().expect("a path");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().next(), here.to_str());
    assert!(String::from_utf8_lossy(&output.stderr).ends_with("words\n"), "{output:?}");
    let mut marked = runs.get("0s", "pwd; echo $MARK; echo words >&2");
    let output = marked.env("MARK", "mine").output().expect("run paceline");
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("mine\n"), "{output:?}");
    assert_eq!(runs.output("0s", "kill -9 $$").status.code(), Some(128 + 9));
    let missing = runs.scratch.run(&["get", "x", "--", "./no-such-program"]);
    assert_eq!((missing.code, missing.out.as_str()), (127, ""));
    assert!(missing.err.contains("./no-such-program"), "{}", missing.err);
    let written = runs.scratch.run(&["get", "--json", "x", "--max-age", "1m", "--", "printf", "a\\n"]);
    let document = serde_json::from_str(&written.out).expect("a document");
    common::check("get", &document);
    assert_eq!((&document["value"], &document["key"][0]), (&json!("a\n"), &json!("x")));
    let quiet = runs.scratch.run(&["get", "x", "--", "false"]);
    assert_eq!((quiet.code, quiet.out.as_str(), quiet.err.as_str()), (1, "", ""));
}

#[test]
fn more_than_a_value_may_have_is_refused_and_the_command_is_ended() {
    let runs = Runs::new();
    let output = runs.scratch.run(&["get", "x", "--", "sh", "-c", "exec yes"]);
    assert_ne!(output.code, 0);
    assert!(output.err.contains("1048576 bytes"), "{}", output.err);
    let braces = runs.scratch.run(&["get", r#"["{id}"]"#, "--", "true"]);
    assert_eq!(braces.code, 2, "{}", braces.err);
    assert!(braces.err.contains("braces"), "{}", braces.err);
}
