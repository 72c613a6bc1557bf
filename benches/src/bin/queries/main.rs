//! The query engine beside TanStack Query in one run: invalidation by prefix, reads, deadlines.
//!
//! `cargo run --release -p paceline-benches --bin queries [-- --json]`. The peer runs on Node and is installed by npm into a
//! directory that goes with the run; without Node or npm it is skipped, and the output says so.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

mod engine;
mod keys;
mod peer;
mod replica;

use std::process::ExitCode;

use paceline_benches::report::{Machine, Report};

/// What stops a run.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("run the session: {0}")]
    Session(#[from] paceline::Error),
    #[error("make a directory or start a thread: {0}")]
    Io(#[from] std::io::Error),
    #[error("write the report: {0}")]
    Json(#[from] serde_json::Error),
}

fn main() -> ExitCode {
    let json = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--json" => true,
        _ => {
            eprintln!("usage: queries [--json]");
            return ExitCode::from(2);
        }
    };
    match run(json) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("failed to {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(json: bool) -> Result<String, Failure> {
    let peer = peer::ask();
    if let Err(why) = &peer {
        eprintln!("skipped: {why}");
    }
    let beside = peer.as_ref().ok();
    let mut rows = keys::rows(beside);
    rows.extend(engine::rows(beside));
    rows.extend(replica::rows(beside)?);
    let report = Report {
        schema: 1,
        bench: "queries",
        machine: Machine::here(),
        peers: beside.map(peer::Peer::name).into_iter().collect(),
        skipped: peer.as_ref().err().cloned().into_iter().collect(),
        rows,
    };
    Ok(if json { serde_json::to_string_pretty(&report)? } else { report.table() })
}
