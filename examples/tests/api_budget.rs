//! The example `api_budget` itself, as a user runs it.

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
    let dir = TempDir::new("budget-test").unwrap();
    let mut command = Command::new(common::example("api_budget"));
    let output = command.args(args).env("TMPDIR", dir.path()).stdin(Stdio::null()).output().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "files were left");
    output
}

#[test]
fn twenty_processes_cost_one_call_and_each_alone_runs_into_the_quota() {
    let output = run(&["--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["verdict"], "ok", "{document} {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    let shared = json!({ "processes": 20, "calls": 1, "hits": 19, "http_429": 0, "failed": 0 });
    assert_eq!((&document["schema"], &document["with"]), (&json!(1), &shared));
    assert!(document["without"]["calls"].as_u64().unwrap() > 20, "{document}");
    assert!(document["without"]["http_429"].as_u64().unwrap() > 0, "{document}");
}

#[test]
fn without_only_that_way_is_run_and_a_quota_for_all_is_no_trouble() {
    let output = run(&["--json", "--without", "--processes", "3", "--quota", "3"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let calm = json!({ "processes": 3, "calls": 3, "hits": 0, "http_429": 0, "failed": 0 });
    assert_eq!(document, json!({ "schema": 1, "without": calm, "verdict": "failed" }));
    assert_eq!(output.status.code(), Some(1), "there was nothing to be shown");
}
