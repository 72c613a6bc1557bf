//! The example `refresh_herd` itself, as a user runs it.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use paceline_examples::one_wire::child::TempDir;
use serde_json::{Value, json};

/// Runs to the end; nothing of it may be left in the directory for temporary files.
fn run(args: &[&str]) -> Output {
    let dir = TempDir::new("herd-test").unwrap();
    let mut command = Command::new(common::example("refresh_herd"));
    let output = command.args(args).env("TMPDIR", dir.path()).stdin(Stdio::null()).output().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "files were left");
    output
}

#[test]
fn ten_sessions_cost_one_refresh_and_each_alone_ends_the_login_of_all() {
    let output = run(&["--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(document["verdict"], "ok", "{document} {said}");
    assert!(output.status.success());
    let shared = json!({ "processes": 10, "refreshes": 1, "alive": 10, "logged_out": 0 });
    assert_eq!((&document["schema"], &document["with"]), (&json!(1), &shared));
    let alone = json!({ "processes": 10, "refreshes": 10, "alive": 0, "logged_out": 10 });
    assert_eq!(document["without"], alone);
    assert!(said.contains("invalid_grant") && !said.contains("with: "), "{said}");
}

#[test]
fn without_only_that_way_is_run() {
    let output = run(&["--json", "--without", "--processes", "3"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let alone = json!({ "processes": 3, "refreshes": 3, "alive": 0, "logged_out": 3 });
    assert_eq!(document, json!({ "schema": 1, "without": alone, "verdict": "ok" }));
    assert!(output.status.success());
}
