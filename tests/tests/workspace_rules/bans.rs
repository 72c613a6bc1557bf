//! Each ban of each clippy.toml is shown to fire, so that a misspelt path cannot pass for a rule.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{root, text};

const WORKSPACE: &str = "clippy.toml";
const EXAMPLES: &str = "examples/clippy.toml";
const PURE: [&str; 3] = [
    "crates/paceline-proto/clippy.toml",
    "crates/paceline-query/clippy.toml",
    "crates/paceline-channel/clippy.toml",
];

/// What the offences below need.
const PREAMBLE: &str = "#![allow(unused, clippy::all)]
#![warn(clippy::disallowed_methods, clippy::disallowed_types)]
use actix::{ActorFutureExt as _, AsyncContext as _, WrapFuture as _};
pub struct A;
impl actix::Actor for A { type Context = actix::Context<A>; }
pub struct M;
impl actix::Message for M { type Result = (); }
impl actix::Handler<M> for A { type Result = (); fn handle(&mut self, _: M, _: &mut actix::Context<A>) {} }
";

/// One line of code that breaks the ban of each path.
const OFFENCES: &[(&str, &str)] = &[
    ("std::sync::Mutex", "pub type T = std::sync::Mutex<()>;"),
    ("std::sync::RwLock", "pub type T = std::sync::RwLock<()>;"),
    ("std::sync::Condvar", "pub type T = std::sync::Condvar;"),
    ("actix::AtomicResponse", "pub type T = actix::AtomicResponse<crate::A, ()>;"),
    ("actix::Supervisor", "pub type T = actix::Supervisor<crate::A>;"),
    ("actix::SyncArbiter", "pub type T = actix::SyncArbiter<crate::A>;"),
    ("actix::Registry", "pub type T = actix::Registry;"),
    ("actix::SystemRegistry", "pub type T = actix::SystemRegistry;"),
    ("actix::utils::IntervalFunc", "pub type T = actix::utils::IntervalFunc<crate::A>;"),
    ("std::thread::sleep", "pub fn f() { std::thread::sleep(std::time::Duration::ZERO) }"),
    ("std::time::Instant::now", "pub fn f() { let _ = std::time::Instant::now(); }"),
    ("std::time::SystemTime::now", "pub fn f() { let _ = std::time::SystemTime::now(); }"),
    ("actix::Addr::do_send", "pub fn f(a: actix::Addr<crate::A>) { a.do_send(crate::M) }"),
    ("actix::Recipient::do_send", "pub fn f(a: actix::Recipient<crate::M>) { a.do_send(crate::M) }"),
    (
        "actix::AsyncContext::run_interval",
        "pub fn f(c: &mut actix::Context<crate::A>) { actix::AsyncContext::run_interval(c, std::time::Duration::ZERO, |_, _| ()); }",
    ),
    (
        "actix::AsyncContext::run_interval_at",
        "pub fn f(c: &mut actix::Context<crate::A>) { actix::AsyncContext::run_interval_at(c, tokio::time::Instant::now(), std::time::Duration::ZERO, |_, _| ()); }",
    ),
    (
        "actix::AsyncContext::wait",
        "pub fn f(c: &mut actix::Context<crate::A>) { c.wait(actix::fut::ready(())) }",
    ),
    (
        "actix::dev::ContextFutureSpawner::wait",
        "pub fn f(c: &mut actix::Context<crate::A>) { actix::dev::ContextFutureSpawner::<crate::A>::wait(actix::fut::ready(()), c) }",
    ),
    (
        "actix::SystemService::from_registry",
        "pub fn f<S: actix::SystemService>() { let _ = S::from_registry(); }",
    ),
    (
        "actix::ArbiterService::from_registry",
        "pub fn f<S: actix::ArbiterService>() { let _ = S::from_registry(); }",
    ),
    ("tokio::spawn", "pub fn f() { tokio::spawn(async {}); }"),
    ("std::time::Instant", "pub type T = std::time::Instant;"),
    ("std::time::SystemTime", "pub type T = std::time::SystemTime;"),
    ("std::collections::HashMap", "pub type T = std::collections::HashMap<(), ()>;"),
    ("std::collections::HashSet", "pub type T = std::collections::HashSet<()>;"),
    ("std::hash::RandomState", "pub type T = std::hash::RandomState;"),
    ("std::hash::DefaultHasher", "pub type T = std::hash::DefaultHasher;"),
    ("std::fs::File", "pub type T = std::fs::File;"),
    ("std::fs::OpenOptions", "pub type T = std::fs::OpenOptions;"),
    ("std::net::TcpStream", "pub type T = std::net::TcpStream;"),
    ("std::net::TcpListener", "pub type T = std::net::TcpListener;"),
    ("std::net::UdpSocket", "pub type T = std::net::UdpSocket;"),
    ("std::net::ToSocketAddrs", "pub fn f<T: std::net::ToSocketAddrs>(_: T) {}"),
    ("std::os::unix::net::UnixStream", "pub type T = std::os::unix::net::UnixStream;"),
    ("std::os::unix::net::UnixListener", "pub type T = std::os::unix::net::UnixListener;"),
    ("std::process::Command", "pub type T = std::process::Command;"),
    ("std::io::Stdin", "pub type T = std::io::Stdin;"),
    ("std::io::Stdout", "pub type T = std::io::Stdout;"),
    ("std::io::Stderr", "pub type T = std::io::Stderr;"),
    ("std::thread::JoinHandle", "pub type T = std::thread::JoinHandle<()>;"),
    ("std::thread::Builder", "pub type T = std::thread::Builder;"),
    ("std::thread::LocalKey", "pub type T = std::thread::LocalKey<()>;"),
    ("std::sync::mpsc::Sender", "pub type T = std::sync::mpsc::Sender<()>;"),
    ("std::sync::mpsc::Receiver", "pub type T = std::sync::mpsc::Receiver<()>;"),
    ("std::sync::LazyLock", "pub static S: std::sync::LazyLock<()> = std::sync::LazyLock::new(|| ());"),
    ("std::thread::spawn", "pub fn f() { std::thread::spawn(|| ()); }"),
    ("std::thread::scope", "pub fn f() { std::thread::scope(|_| ()) }"),
    ("std::thread::current", "pub fn f() { let _ = std::thread::current(); }"),
    ("std::thread::park", "pub fn f() { std::thread::park() }"),
    ("std::thread::yield_now", "pub fn f() { std::thread::yield_now() }"),
    ("std::env::var", "pub fn f() { let _ = std::env::var(\"X\"); }"),
    ("std::env::var_os", "pub fn f() { let _ = std::env::var_os(\"X\"); }"),
    ("std::env::vars", "pub fn f() { let _ = std::env::vars(); }"),
    ("std::env::vars_os", "pub fn f() { let _ = std::env::vars_os(); }"),
    ("std::env::args", "pub fn f() { let _ = std::env::args(); }"),
    ("std::env::args_os", "pub fn f() { let _ = std::env::args_os(); }"),
    ("std::env::current_dir", "pub fn f() { let _ = std::env::current_dir(); }"),
    ("std::env::current_exe", "pub fn f() { let _ = std::env::current_exe(); }"),
    ("std::env::temp_dir", "pub fn f() { let _ = std::env::temp_dir(); }"),
    ("std::env::home_dir", "pub fn f() { let _ = std::env::home_dir(); }"),
    ("std::fs::read", "pub fn f() { let _ = std::fs::read(\"x\"); }"),
    ("std::fs::read_to_string", "pub fn f() { let _ = std::fs::read_to_string(\"x\"); }"),
    ("std::fs::read_dir", "pub fn f() { let _ = std::fs::read_dir(\"x\"); }"),
    ("std::fs::write", "pub fn f() { let _ = std::fs::write(\"x\", []); }"),
    ("std::fs::rename", "pub fn f() { let _ = std::fs::rename(\"x\", \"y\"); }"),
    ("std::fs::hard_link", "pub fn f() { let _ = std::fs::hard_link(\"x\", \"y\"); }"),
    ("std::fs::remove_file", "pub fn f() { let _ = std::fs::remove_file(\"x\"); }"),
    ("std::fs::remove_dir_all", "pub fn f() { let _ = std::fs::remove_dir_all(\"x\"); }"),
    ("std::fs::create_dir", "pub fn f() { let _ = std::fs::create_dir(\"x\"); }"),
    ("std::fs::create_dir_all", "pub fn f() { let _ = std::fs::create_dir_all(\"x\"); }"),
    ("std::fs::metadata", "pub fn f() { let _ = std::fs::metadata(\"x\"); }"),
    ("std::fs::symlink_metadata", "pub fn f() { let _ = std::fs::symlink_metadata(\"x\"); }"),
    ("std::fs::canonicalize", "pub fn f() { let _ = std::fs::canonicalize(\"x\"); }"),
    ("std::fs::copy", "pub fn f() { let _ = std::fs::copy(\"x\", \"y\"); }"),
    ("std::fs::exists", "pub fn f() { let _ = std::fs::exists(\"x\"); }"),
    ("std::process::id", "pub fn f() { let _ = std::process::id(); }"),
    ("std::process::exit", "pub fn f() { std::process::exit(0) }"),
    ("std::path::Path::exists", "pub fn f(p: &std::path::Path) { let _ = p.exists(); }"),
    ("std::path::Path::metadata", "pub fn f(p: &std::path::Path) { let _ = p.metadata(); }"),
    ("std::io::stdin", "pub fn f() { let _ = std::io::stdin(); }"),
    ("std::io::stdout", "pub fn f() { let _ = std::io::stdout(); }"),
    ("std::io::stderr", "pub fn f() { let _ = std::io::stderr(); }"),
];

#[test]
fn every_ban_has_a_reason_and_fires() {
    if !clippy_is_installed() {
        return;
    }
    let offences: BTreeMap<&str, &str> = OFFENCES.iter().copied().collect();
    let configs = [("all", WORKSPACE), ("examples", EXAMPLES), ("pure", PURE[0])];
    let place = lay_out(&configs, &offences);
    let reports = run_clippy(&place);

    let mut silent = Vec::new();
    for (package, config) in configs {
        for (index, (path, reason)) in bans(config).iter().enumerate() {
            assert!(!reason.is_empty(), "{config}: {path} has no reason");
            let line = first_line() + index;
            let fired = reports.iter().any(|report| {
                report.package == package
                    && report.line == line
                    && report.message.contains(&format!("`{path}`"))
            });
            if !fired {
                silent.push(format!("{config}: {path}"));
            }
        }
    }
    assert!(silent.is_empty(), "bans that do not fire: {silent:#?}\nclippy said: {reports:#?}");
}

#[test]
fn the_pure_crates_share_one_list_that_holds_the_workspaces() {
    for other in &PURE[1..] {
        assert_eq!(text(PURE[0]), text(other), "{} and {other} differ", PURE[0]);
    }
    let everywhere = bans(WORKSPACE);
    for (config, larger) in [(PURE[0], bans(PURE[0])), (WORKSPACE, bans(EXAMPLES))] {
        let (small, large) =
            if config == WORKSPACE { (&larger, &everywhere) } else { (&everywhere, &larger) };
        let missing: Vec<_> = small.difference(large).collect();
        assert!(missing.is_empty(), "{config} lacks {missing:?}");
    }
}

#[test]
fn no_other_package_has_bans_of_its_own() {
    let known: BTreeSet<PathBuf> =
        PURE.iter().chain([&WORKSPACE, &EXAMPLES]).map(|config| root().join(config)).collect();
    let mut found = BTreeSet::new();
    let crates = fs::read_dir(root().join("crates")).expect("crates");
    let folders = crates.map(|entry| entry.expect("entry").path());
    for folder in
        folders.chain([root(), root().join("tests"), root().join("examples"), root().join("benches")])
    {
        for name in ["clippy.toml", ".clippy.toml"] {
            found.extend([folder.join(name)].into_iter().filter(|config| config.exists()));
        }
    }
    assert_eq!(found, known, "clippy reads the nearest file only, so one more of them lifts bans unseen");
}

/// One warning of clippy.
#[derive(Debug)]
struct Report {
    package: String,
    line: usize,
    message: String,
}

/// Makes a workspace with a package for each configuration, which commits each offence that it bans.
fn lay_out(configs: &[(&str, &str)], offences: &BTreeMap<&str, &str>) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bans");
    let manifest = text("Cargo.toml");
    let dependency = |name: &str| {
        let start = format!("{name} = ");
        let line = manifest.lines().find(|line| line.starts_with(&start));
        line.unwrap_or_else(|| panic!("Cargo.toml has no line for {name}")).to_owned()
    };
    let dependencies = format!("{}\n{}\n", dependency("actix"), dependency("tokio"));
    let members: Vec<&str> = configs.iter().map(|(package, _)| *package).collect();
    for (package, config) in configs {
        let folder = place.join(package);
        fs::create_dir_all(folder.join("src")).expect("folder");
        fs::copy(root().join(config), folder.join("clippy.toml")).expect("configuration");
        let manifest = format!(
            "[package]\nname = \"{package}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n{dependencies}"
        );
        fs::write(folder.join("Cargo.toml"), manifest).expect("manifest");
        let mut code = PREAMBLE.to_owned();
        for (index, (path, _)) in bans(config).iter().enumerate() {
            let offence = offences.get(path.as_str());
            let offence = offence.unwrap_or_else(|| panic!("{config} bans {path}, which no line here calls"));
            writeln!(code, "pub mod m{index} {{ use crate::*; {offence} }}").expect("text");
        }
        fs::write(folder.join("src/lib.rs"), code).expect("code");
    }
    let workspace = format!("[workspace]\nresolver = \"3\"\nmembers = {members:?}\n");
    fs::write(place.join("Cargo.toml"), workspace).expect("workspace");
    fs::copy(root().join("Cargo.lock"), place.join("Cargo.lock")).expect("lock file");
    place
}

fn run_clippy(place: &Path) -> Vec<Report> {
    let output = Command::new(env!("CARGO"))
        .args(["clippy", "--offline", "--workspace", "--message-format=json", "--target-dir"])
        .arg(place.join("target"))
        .current_dir(place)
        .env_remove("CLIPPY_CONF_DIR")
        .env_remove("RUSTFLAGS")
        .output()
        .expect("cargo runs");
    let messages = String::from_utf8_lossy(&output.stdout);
    let reports: Vec<Value> = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let errors: String = reports
        .iter()
        .filter(|report| report["message"]["level"] == "error")
        .filter_map(|report| report["message"]["rendered"].as_str())
        .collect();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the offences do not compile:\n{errors}\n{stderr}");
    reports.iter().filter_map(read_report).collect()
}

fn read_report(report: &Value) -> Option<Report> {
    let message = &report["message"];
    let code = message["code"]["code"].as_str()?;
    if !matches!(code, "clippy::disallowed_methods" | "clippy::disallowed_types") {
        return None;
    }
    Some(Report {
        package: report["target"]["name"].as_str()?.to_owned(),
        line: usize::try_from(message["spans"][0]["line_start"].as_u64()?).ok()?,
        message: message["message"].as_str()?.to_owned(),
    })
}

/// The bans of a configuration as (path, reason); they stand one a line.
fn bans(config: &str) -> BTreeSet<(String, String)> {
    let field = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("{name} = \""))?;
        rest.split_once('"').map(|(value, _)| value.to_owned())
    };
    let text = text(config);
    let lines = text.lines().filter(|line| line.trim_start().starts_with('{'));
    let bans: BTreeSet<_> = lines
        .map(|line| {
            let path = field(line, "path").unwrap_or_else(|| panic!("{config}: no path in {line}"));
            (path, field(line, "reason").unwrap_or_default())
        })
        .collect();
    assert!(!bans.is_empty(), "{config} bans nothing");
    bans
}

/// The line of the first offence.
fn first_line() -> usize {
    PREAMBLE.lines().count() + 1
}

#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
fn clippy_is_installed() -> bool {
    let installed = Command::new(env!("CARGO"))
        .args(["clippy", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !installed {
        eprintln!("skipped: clippy is not installed, so no ban was shown to fire");
    }
    installed
}
