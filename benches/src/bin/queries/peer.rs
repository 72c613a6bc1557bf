//! TanStack Query on Node.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

use serde::Deserialize;

const SCRIPT: &str = include_str!("../../../peers/query-core.mjs");
const PACKAGE: &str = "@tanstack/query-core@5.108.0";
/// More queries take the peer minutes to set up, and more than a gigabyte.
const SIZES: [&str; 2] = ["1000", "100000"];

/// What it measured, in nanoseconds by the number of queries.
#[derive(Debug, Deserialize)]
pub struct Peer {
    version: String,
    node: String,
    invalidate: BTreeMap<usize, f64>,
    subtree: BTreeMap<usize, f64>,
    read: BTreeMap<usize, f64>,
}

impl Peer {
    pub fn name(&self) -> String {
        format!("@tanstack/query-core {} on node {}", self.version, self.node)
    }

    /// `invalidateQueries` of a prefix with ten matches.
    pub fn invalidate(&self, queries: usize) -> Option<f64> {
        self.invalidate.get(&queries).copied()
    }

    /// `invalidateQueries` of a prefix that all queries have.
    pub fn subtree(&self, queries: usize) -> Option<f64> {
        self.subtree.get(&queries).copied()
    }

    /// `getQueryData`.
    pub fn read(&self, queries: usize) -> Option<f64> {
        self.read.get(&queries).copied()
    }
}

/// Installs the peer into a directory of its own and runs it; why not, if not.
pub fn ask() -> Result<Peer, String> {
    let dir = tempfile::tempdir().map_err(|error| format!("no directory for {PACKAGE}: {error}"))?;
    let script = dir.path().join("query-core.mjs");
    std::fs::write(&script, SCRIPT).map_err(|error| format!("no script for {PACKAGE}: {error}"))?;
    let quiet = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"];
    output(Command::new("npm").args(quiet).arg("--prefix").arg(dir.path()).arg(PACKAGE))?;
    let found = output(Command::new("node").arg(&script).arg(dir.path()).args(SIZES))?;
    serde_json::from_slice(&found).map_err(|error| format!("{PACKAGE} answered something else: {error}"))
}

fn output(command: &mut Command) -> Result<Vec<u8>, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("{PACKAGE}: {name}: {error}"))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(format!("{PACKAGE}: {name} ended with {}: {why}", output.status))
    }
}
