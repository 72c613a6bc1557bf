//! The configuration as the program finds it: layers, mistakes, trust, and what a coordinator does with it.

mod common;

use std::{fs, io::Write, path::PathBuf};

use common::{Ended, Running, Scratch, check, signal, until};
use rustix::process::Signal;
use serde_json::Value;

const FEED: &str = "[upstreams.feed]\nprotocol = \"websocket\"\nurl = \"ws://127.0.0.1:9/\"\n";

/// A project's file in the working directory.
fn project(scratch: &Scratch, text: &str) -> PathBuf {
    let path = scratch.path().join("paceline.toml");
    fs::write(&path, text).expect("write a file");
    path
}

fn user(scratch: &Scratch, text: &str) {
    let directory = scratch.path().join("config/paceline");
    fs::create_dir_all(&directory).expect("a directory");
    fs::write(directory.join("paceline.toml"), text).expect("write a file");
}

fn entry(shown: &Value, key: &str) -> (String, String) {
    let entries = shown["entries"].as_array().expect("entries");
    let entry =
        entries.iter().find(|entry| entry["key"] == key).unwrap_or_else(|| panic!("no {key}: {shown}"));
    let text = |name: &str| entry[name].as_str().expect("a text").to_owned();
    (text("value"), text("origin"))
}

#[test]
fn every_value_is_shown_with_its_origin() {
    let scratch = Scratch::new();
    user(&scratch, "[group]\nidle_exit = \"3m\"\n");
    let file = project(&scratch, "[group]\nname = \"warehouse\"\n");
    let mut command = scratch.command(&["config", "show", "--origin", "--json"]);
    command.env_remove("PACELINE_IDLE_EXIT").env("PACELINE_SPAWN", "false");
    let shown: Value = serde_json::from_slice(&command.output().expect("run").stdout).expect("a document");
    check("config-show", &shown);
    let name = fs::canonicalize(&file).expect("the file").display().to_string();
    assert_eq!(entry(&shown, "group.name"), ("\"warehouse\"".to_owned(), format!("{name}:2:8")));
    assert!(entry(&shown, "group.idle_exit").1.ends_with("config/paceline/paceline.toml:2:13"));
    assert_eq!(entry(&shown, "group.spawn"), ("false".to_owned(), "PACELINE_SPAWN".to_owned()));
    let ended = scratch.run(&["config", "show", "group", "--origin", "-g", "other"]);
    assert!(ended.out.contains("--group") && !ended.out.contains("outbox"), "{}", ended.out);
}

#[test]
fn the_nearest_file_above_counts_and_a_named_one_before_it() {
    let scratch = Scratch::new();
    project(&scratch, "[group]\nname = \"above\"\n");
    let deep = scratch.path().join("a/b");
    fs::create_dir_all(&deep).expect("directories");
    let group = |arguments: &[&str]| {
        let mut command = scratch.command(&[&["config", "show", "group.name", "--json"], arguments].concat());
        let output = command.current_dir(&deep).output().expect("run");
        entry(&serde_json::from_slice(&output.stdout).expect("a document"), "group.name").0
    };
    assert_eq!(group(&[]), "\"above\"");
    fs::write(deep.join("other.toml"), "[group]\nname = \"named\"\n").expect("write");
    assert_eq!(group(&["--config", "other.toml"]), "\"named\"");
}

#[test]
fn mistakes_are_told_all_at_once_with_place_and_nearest_key() {
    let scratch = Scratch::new();
    project(&scratch, "[group]\nnmae = \"warehouse\"\nspawn = 1\n");
    let ended = scratch.run(&["config", "check"]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    for part in ["paceline.toml:2:1", "`name`", "paceline.toml:3:9", "group.spawn"] {
        assert!(ended.err.contains(part), "{part}: {}", ended.err);
    }
    let ended = scratch.run(&["config", "check", "--json"]);
    let checked: Value = serde_json::from_str(&ended.out).expect("a document");
    check("config-check", &checked);
    assert_eq!((ended.code, &checked["problems"][0]["nearest"]), (1, &"name".into()));
    assert_eq!(scratch.run(&["status"]).code, 2, "no command passes over it");
}

#[test]
fn parts_that_this_build_lacks_are_refused_by_name_where_they_would_be_used() {
    let scratch = Scratch::new();
    let file = project(&scratch, "[group]\nname = \"g\"\n[outbox]\nattempts = 3\n");
    let ended = scratch.run(&["config", "check"]);
    assert!(ended.code == 1 && ended.err.contains("the outbox"), "{}", ended.err);
    let ended = scratch.run(&["run", "--config", file.to_str().expect("UTF-8")]);
    assert!(ended.code == 2 && ended.err.contains("the outbox"), "{}", ended.err);
    let ended = scratch.run(&["set", "a", "1"]);
    assert!(ended.code == 2 && ended.err.contains("the outbox"), "told where somebody reads: {}", ended.err);
    let ended = scratch.run(&["status"]);
    assert_eq!(ended.code, 3, "an observer needs none of it: {}", ended.err);
}

#[test]
fn a_found_file_is_not_led_by_until_it_is_trusted_and_not_after_it_changed() {
    let scratch = Scratch::new();
    project(&scratch, FEED);
    let ended = scratch.run(&["set", "a", "1"]);
    assert_eq!(ended.code, 6, "{}", ended.err);
    assert!(
        ended.err.contains("paceline trust") && ended.err.contains("upstreams.feed.url"),
        "{}",
        ended.err
    );
    let listed = scratch.json(&["trust", "--list"]);
    check("trust", &listed);
    assert_eq!(
        (&listed["trusted"], &listed["asks"][0]["key"]),
        (&false.into(), &"upstreams.feed.url".into())
    );
    assert_eq!(scratch.run(&["set", "a", "1"]).code, 6, "listing trusts nothing");
    assert_eq!(scratch.json(&["trust"])["trusted"], true);
    assert_eq!(scratch.run(&["set", "a", "1"]).code, 0);
    let status = scratch.json(&["status"]);
    check("status", &status);
    assert_eq!(status["connection"]["upstream"], "feed", "the coordinator declares what the file says");

    scratch.processes().into_iter().for_each(|pid| signal(pid, Signal::KILL));
    until("its end", || scratch.run(&["status"]).code == 3);
    let mut file =
        fs::OpenOptions::new().append(true).open(scratch.path().join("paceline.toml")).expect("open");
    file.write_all(b"subprotocols = [\"v2\"]\n").expect("write");
    assert_eq!(scratch.run(&["set", "a", "1"]).code, 0, "what needs no trust may change");
    scratch.processes().into_iter().for_each(|pid| signal(pid, Signal::KILL));
    until("its end", || scratch.run(&["status"]).code == 3);
    project(&scratch, &FEED.replace("127.0.0.1:9", "127.0.0.2:9"));
    assert_eq!(scratch.run(&["set", "a", "1"]).code, 6, "another server is another question");
}

#[test]
fn a_coordinator_tells_every_session_the_state_of_its_upstream() {
    let scratch = Scratch::new();
    let file = project(&scratch, FEED);
    let running = Running::start(scratch.command(&[
        "run",
        "--json",
        "--idle-exit",
        "never",
        "--config",
        file.to_str().expect("UTF-8"),
    ]));
    running.wait("the coordinator", |line| (line["kind"] == "ready").then_some(()));
    until("an offline upstream", || {
        let status = scratch.json(&["status"]);
        status["connection"]["state"] == "offline" && status["connection"]["attempts"].as_u64() >= Some(1)
    });
    let ended: Ended = scratch.run(&["doctor", "--json"]);
    let report: Value = serde_json::from_str(&ended.out).expect("a document");
    assert_eq!((ended.code, &report["findings"][0]["kind"]), (10, &"upstream".into()), "{report}");
}

/// A coordinator with a file of its own that declares a feed at this port.
fn coordinator(scratch: &Scratch, name: &str, port: u16) -> Running {
    let file = scratch.path().join(name);
    fs::write(&file, FEED.replace(":9/", &format!(":{port}/"))).expect("write a file");
    let file = file.to_str().expect("UTF-8");
    let running =
        Running::start(scratch.command(&["run", "--json", "--idle-exit", "never", "--config", file]));
    running.wait("the coordinator", |line| (line["kind"] == "ready").then_some(()));
    running
}

/// The conflict that is shown, when there is one with these processes.
fn conflict(scratch: &Scratch, ignored: &Running, counts: &Running) {
    let status = scratch.json(&["status"]);
    check("status", &status);
    let conflict = &status["conflicts"][0];
    assert_eq!(conflict["item"], "upstreams.feed", "{status}");
    assert_eq!(conflict["ignored"]["pid"], ignored.pid(), "{status}");
    assert_eq!(conflict["counts"]["pid"], counts.pid(), "{status}");
}

#[test]
fn two_files_that_differ_are_told_by_item_until_one_of_them_is_gone() {
    let scratch = Scratch::new();
    let first = coordinator(&scratch, "first.toml", 9);
    assert_eq!(scratch.json(&["status"])["conflicts"], serde_json::json!([]));
    let second = coordinator(&scratch, "second.toml", 19);
    // Both say so as it happens, and neither says what stands there.
    for coordinator in [&first, &second] {
        let text = coordinator.wait("the conflict", |line| {
            (line["kind"] == "config_conflict").then(|| line["text"].as_str().map(str::to_owned)).flatten()
        });
        for part in ["upstreams.feed", "first.toml:1:1), which counts", "second.toml:1:1) is not that of"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("127.0.0.1"), "{text}");
    }
    conflict(&scratch, &second, &first);
    let (plain, doctor) = (scratch.run(&["status"]), scratch.run(&["doctor"]));
    assert_eq!((plain.code, doctor.code), (0, 10), "{}", doctor.out);
    let (one, two) = (first.pid().to_string(), second.pid().to_string());
    for out in [&plain.out, &doctor.out] {
        for part in ["upstreams.feed", "first.toml", "second.toml", &one, &two] {
            assert!(out.contains(part), "{part} is not in {out}");
        }
    }
    assert!(doctor.out.contains("make both say the same"), "{}", doctor.out);
    let report: Value = serde_json::from_str(&scratch.run(&["doctor", "--json"]).out).expect("a document");
    check("doctor", &report);
    assert_eq!(report["findings"][0]["kind"], "config_conflict");

    // The second takes over: now its file counts, for a third that says what the first did.
    signal(first.pid(), Signal::KILL);
    second.wait("its reign", |line| (line["kind"] == "primary_elected").then_some(()));
    until("the end of the conflict", || scratch.json(&["status"])["conflicts"] == serde_json::json!([]));
    let third = coordinator(&scratch, "third.toml", 9);
    third.wait("the conflict", |line| (line["kind"] == "config_conflict").then_some(()));
    conflict(&scratch, &third, &second);
    signal(third.pid(), Signal::TERM);
    until("the end of the conflict", || scratch.json(&["status"])["conflicts"] == serde_json::json!([]));
}
