//! Documents of the configuration.

use serde::Serialize;

/// `config check`.
#[derive(Debug, Serialize)]
pub struct Checked {
    pub ok: bool,
    pub files: Vec<String>,
    pub problems: Vec<Problem>,
}

/// Something that is wrong with the configuration.
#[derive(Debug, Serialize)]
pub struct Problem {
    pub kind: &'static str,
    pub key: String,
    pub origin: String,
    pub what: String,
    pub nearest: Option<String>,
    pub allowed: Option<String>,
    #[serde(rename = "do")]
    pub fix: Option<String>,
}

/// `config show`.
#[derive(Debug, Serialize)]
pub struct Shown {
    pub entries: Vec<Entry>,
}

/// A value that holds.
#[derive(Debug, Serialize)]
pub struct Entry {
    pub key: String,
    /// As it is written in TOML.
    pub value: String,
    pub origin: String,
    pub layer: String,
}

/// `trust`.
#[derive(Debug, Serialize)]
pub struct Trusts {
    pub file: String,
    pub trusted: bool,
    pub asks: Vec<Asks>,
}

/// Something that needs trust.
#[derive(Debug, Serialize)]
pub struct Asks {
    pub key: String,
    pub why: String,
    pub value: String,
    pub origin: String,
}
