//! Rules about the workspace itself: who may depend on whom, what may not be called where, and that the limits in the
//! documents are the limits in the code.

mod arrows;
mod bans;
mod documents;
mod failpoints;
mod limits;

use std::{fs, path::PathBuf};

/// The top of the workspace.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Text of a file, named from the top of the workspace.
fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
