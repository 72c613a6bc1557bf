//! Dependency arrows point down, and the pure crates stay pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::root;

/// What each crate stands on directly; it may also use everything below that.
const STANDS_ON: &[(&str, &[&str])] = &[
    ("paceline-proto", &[]),
    ("paceline-query", &["paceline-proto"]),
    ("paceline-channel", &["paceline-query"]),
    ("paceline-config", &["paceline-channel"]),
    ("paceline-ipc", &["paceline-proto"]),
    ("paceline-store", &["paceline-query"]),
    ("paceline-upstream", &["paceline-channel"]),
    ("paceline-runtime", &["paceline-config", "paceline-ipc", "paceline-store", "paceline-upstream"]),
    ("paceline", &["paceline-runtime"]),
    ("paceline-sim", &["paceline-channel"]),
    ("paceline-cli", &["paceline", "paceline-sim"]),
    ("paceline-tests", &["paceline", "paceline-sim"]),
    ("paceline-examples", &["paceline", "paceline-sim"]),
    ("paceline-benches", &["paceline"]),
];

const PURE: [&str; 3] = ["paceline-proto", "paceline-query", "paceline-channel"];

/// Everything that may end up below a pure crate: data structures, serialization, derive macros, arithmetic on bytes.
const BELOW_PURE: &[&str] = &[
    "base64",
    "block-buffer",
    "bytes",
    "cfg-if",
    "cipher",
    "cmov",
    "cpufeatures",
    "crypto-common",
    "ctutils",
    "hybrid-array",
    "inout",
    "itoa",
    "memchr",
    "poly1305",
    "proc-macro2",
    "quote",
    "ryu",
    "salsa20",
    "serde",
    "serde_core",
    "serde_derive",
    "serde_json",
    "subtle",
    "syn",
    "thiserror",
    "thiserror-impl",
    "twox-hash",
    "typenum",
    "unicode-ident",
    "universal-hash",
    "zmij",
];

/// Crates that one crate of the workspace keeps to itself, and where there is one, the one file that names it.
const KEPT: &[(&str, &str, Option<&str>)] = &[
    ("actix", "paceline-runtime", None),
    ("actix-rt", "paceline-runtime", None),
    ("bincode", "paceline-ipc", Some("codec.rs")),
    ("interprocess", "paceline-ipc", Some("socket.rs")),
    ("reqwest", "paceline-upstream", Some("http.rs")),
    ("rusqlite", "paceline-store", None),
    ("rustls", "paceline-upstream", None),
];

#[test]
fn dependency_arrows_point_down() {
    let mut wrong = Vec::new();
    for (name, dependencies) in packages() {
        let allowed = below(&name);
        for dependency in dependencies.iter().filter(|dependency| dependency.starts_with("paceline")) {
            if *dependency != name && !allowed.contains(dependency.as_str()) {
                wrong.push(format!("{name} -> {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that do not point down: {wrong:?}");
}

#[test]
fn pure_crates_stand_on_pure_crates_only() {
    let metadata = metadata(&["--filter-platform", &host()]);
    let graph = normal_edges(&metadata);
    for name in PURE {
        let mut seen = BTreeSet::new();
        let mut open = vec![name.to_owned()];
        while let Some(next) = open.pop() {
            if seen.insert(next.clone()) {
                open.extend(graph.get(&next).cloned().unwrap_or_default());
            }
        }
        let foreign: Vec<&String> = seen
            .iter()
            .filter(|found| !PURE.contains(&found.as_str()) && !BELOW_PURE.contains(&found.as_str()))
            .collect();
        assert!(
            foreign.is_empty(),
            "{name} stands on {foreign:?}; add to BELOW_PURE only what is pure itself"
        );
    }
}

#[test]
fn actors_codec_sockets_and_databases_each_live_in_one_crate() {
    for (name, dependencies) in packages() {
        for (kept, keeper, _) in KEPT {
            let theirs = name == *keeper
                || !name.starts_with("paceline")
                || matches!(name.as_str(), "paceline-tests" | "paceline-examples");
            assert!(theirs || !dependencies.contains(*kept), "{name} depends on {kept}, which is {keeper}'s");
        }
    }
}

#[test]
fn bincode_and_interprocess_are_each_known_to_one_file() {
    let mut files = Vec::new();
    rust_files(&root().join("crates"), &mut files);
    for (kept, keeper, file) in KEPT {
        let Some(file) = file else { continue };
        let home = root().join("crates").join(keeper).join("src").join(file);
        for path in files.iter().filter(|path| **path != home) {
            let code = fs::read_to_string(path).expect("source");
            let named = code.lines().any(|line| {
                let code = line.split("//").next().unwrap_or_default();
                code.contains(&format!("{kept}::")) || code.trim_start().starts_with(&format!("use {kept}"))
            });
            assert!(!named, "{} names {kept}; only {keeper}'s {file} may", path.display());
        }
    }
}

#[test]
fn every_package_takes_version_lints_and_licence_from_the_workspace() {
    let metadata = metadata(&["--no-deps"]);
    for package in array(&metadata["packages"]) {
        let manifest = package["manifest_path"].as_str().expect("path");
        let text = fs::read_to_string(manifest).expect("manifest");
        for line in [
            "[lints]\nworkspace = true",
            "version.workspace = true",
            "license.workspace = true",
            "rust-version.workspace = true",
        ] {
            assert!(text.contains(line), "{manifest} lacks {line:?}");
        }
        assert!(package["description"].is_string(), "{manifest} says nothing of what it is for");
    }
}

/// Everything that a crate may use of the workspace.
fn below(name: &str) -> BTreeSet<&'static str> {
    let (_, direct) = STANDS_ON
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("{name} has no place in the order of crates; see docs/ARCHITECTURE.md"));
    let mut all: BTreeSet<&'static str> = direct.iter().copied().collect();
    for dependency in *direct {
        all.extend(below(dependency));
    }
    all
}

/// The packages of the workspace with the names of everything they depend on, for tests and builds too.
fn packages() -> Vec<(String, BTreeSet<String>)> {
    let metadata = metadata(&["--no-deps"]);
    let names = |package: &Value| {
        array(&package["dependencies"]).iter().map(|dependency| string(&dependency["name"])).collect()
    };
    array(&metadata["packages"]).iter().map(|package| (string(&package["name"]), names(package))).collect()
}

/// Name → names of what it is built with on this platform, tests left out.
fn normal_edges(metadata: &Value) -> BTreeMap<String, Vec<String>> {
    let names: BTreeMap<&str, String> = array(&metadata["packages"])
        .iter()
        .map(|package| (package["id"].as_str().expect("id"), string(&package["name"])))
        .collect();
    let mut graph: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in array(&metadata["resolve"]["nodes"]) {
        let from = names[node["id"].as_str().expect("id")].clone();
        let normal = array(&node["deps"])
            .iter()
            .filter(|dependency| array(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev"));
        let to = normal.map(|dependency| names[dependency["pkg"].as_str().expect("id")].clone());
        graph.entry(from).or_default().extend(to);
    }
    graph
}

fn metadata(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline"])
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("metadata is JSON")
}

fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    line.expect("rustc names its host").to_owned()
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().expect("a list")
}

fn string(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
