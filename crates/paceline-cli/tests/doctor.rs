//! `doctor`: each thing that can be wrong is found, named, and told with what to do.

mod common;

use std::{
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixStream},
};

use common::{Ended, Running, Scratch, check, until};
use paceline_proto::limits::UNAUTHENTICATED_MAX;
use rustix::process::Signal;
use serde_json::Value;

/// What the doctor reports, and its exit code.
fn doctor(scratch: &Scratch) -> (i32, Value) {
    report(scratch.run(&["doctor", "--json"]))
}

fn report(ended: Ended) -> (i32, Value) {
    let report = serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {}", ended.err));
    check("doctor", &report);
    (ended.code, report)
}

/// The finding of a kind: what and what to do.
fn finding(report: &Value, kind: &str) -> Option<(String, String)> {
    let found = report["findings"].as_array().expect("findings").iter().find(|one| one["kind"] == kind)?;
    let text = |name: &str| found[name].as_str().expect("a text").to_owned();
    Some((text("what"), text("do")))
}

fn found(report: &Value, kind: &str) -> (String, String) {
    finding(report, kind).unwrap_or_else(|| panic!("no {kind}: {report}"))
}

fn processes_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn stop(running: &Running) {
    running.signal(Signal::STOP);
    until("the stop", || processes_state(running.pid()) == Some('T'));
}

#[test]
fn a_healthy_group_has_no_findings() {
    let scratch = Scratch::new();
    let first = scratch.coordinator();
    let _second = scratch.coordinator();
    let (code, report) = doctor(&scratch);
    assert_eq!((code, &report["findings"]), (0, &serde_json::json!([])));
    assert_eq!(report["holder"]["pid"], first.pid());
    assert_eq!((&report["holder"]["answers"], &report["holder"]["stopped"]), (&true.into(), &false.into()));
    assert_eq!(report["sessions"].as_array().expect("sessions").len(), 2, "the doctor is not counted");
    assert_eq!(report["elections"][0]["cause"], "there was no primary");
    assert!(report["elections"][0]["ready_ms"].is_number(), "{report}");
    assert!(report["directory"]["why"].as_str().expect("why").contains("PACELINE_STATE_DIR"));
}

#[test]
fn where_no_group_runs_that_is_said() {
    let scratch = Scratch::new();
    assert_eq!(doctor(&scratch).0, 3);
    assert!(!scratch.group().exists(), "nothing was made");
}

#[test]
fn a_frozen_primary_is_named_with_why_it_stays() {
    let scratch = Scratch::new();
    let coordinator = scratch.coordinator();
    let _watch = Running::start(scratch.command(&["watch", "a"]));
    until("the watch", || scratch.json(&["status"])["sessions"] == 2);
    stop(&coordinator);
    let (code, report) = doctor(&scratch);
    coordinator.signal(Signal::CONT);
    let pid = coordinator.pid();
    let (what, fix) = found(&report, "frozen");
    assert_eq!(code, 10);
    assert!(what.contains(&format!("process {pid}")) && what.contains("observers never do"), "{what}");
    assert!(fix.contains(&format!("kill -CONT {pid}")), "{fix}");
    assert_eq!(report["holder"]["stopped"], true);
}

#[test]
fn a_primary_without_a_socket_is_unreachable_and_named() {
    let scratch = Scratch::new();
    let coordinator = scratch.coordinator();
    stop(&coordinator);
    let socket =
        std::fs::read_dir(scratch.group().join("s")).expect("sockets").next().expect("one").expect("entry");
    std::fs::remove_file(socket.path()).expect("remove it");
    let (code, report) = doctor(&scratch);
    coordinator.signal(Signal::CONT);
    let (what, _) = found(&report, "socket");
    assert_eq!(code, 10);
    assert!(what.contains(&format!("process {}", coordinator.pid())), "{what}");
    assert!(what.contains(socket.path().to_str().expect("UTF-8")), "{what}");
}

#[test]
fn a_group_whose_leaders_died_is_told_from_the_files() {
    let scratch = Scratch::new();
    let mut coordinator = scratch.coordinator();
    let _watch = Running::start(scratch.command(&["watch", "a", "--no-spawn"]));
    until("the watch", || scratch.json(&["status"])["sessions"] == 2);
    coordinator.signal(Signal::KILL);
    coordinator.end();
    let (code, report) = doctor(&scratch);
    let (what, fix) = found(&report, "leaderless");
    assert_eq!(code, 10);
    assert!(what.contains("epoch 1") && fix.contains("paceline run"), "{what}: {fix}");
    assert!(report["holder"].is_null());
    assert_eq!(report["sessions"][0]["leads"], false, "its file says so");
}

#[test]
fn a_stranger_at_the_socket_is_reported_and_disturbs_nobody() {
    let scratch = Scratch::new();
    let _coordinator = scratch.coordinator();
    let socket =
        std::fs::read_dir(scratch.group().join("s")).expect("sockets").next().expect("one").expect("entry");
    let mut stranger = UnixStream::connect(socket.path()).expect("connect");
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("write");
    until("the report", || finding(&doctor(&scratch).1, "peer_refused").is_some());
    let (code, report) = doctor(&scratch);
    let (what, fix) = found(&report, "peer_refused");
    assert_eq!(code, 10);
    // Who, what, and what to do.
    for part in
        [&format!("process {}", std::process::id()), "take a frame of 542393671 bytes", "at most 4096"]
    {
        assert!(what.contains(part), "{part} is not in {what}");
    }
    assert!(fix.contains("ps -p PID") && fix.contains("end or update it"), "{fix}");

    // So many that say nothing that the door is full.
    until("a full door", || {
        let connect = |_| UnixStream::connect(socket.path()).expect("connect");
        let _silent: Vec<UnixStream> = (0..=UNAUTHENTICATED_MAX).map(connect).collect();
        finding(&doctor(&scratch).1, "limit_reached").is_some()
    });
    let (what, fix) = found(&doctor(&scratch).1, "limit_reached");
    assert!(what.contains("UNAUTHENTICATED_MAX") && fix.contains("ss -xp"), "{what}: {fix}");
    assert_eq!(scratch.run(&["set", "a", "1"]).code, 0);
}

#[test]
fn a_session_that_is_stopped_is_named() {
    let scratch = Scratch::new();
    let _coordinator = scratch.coordinator();
    let watch = Running::start(scratch.command(&["watch", "a"]));
    until("the watch", || scratch.json(&["status"])["sessions"] == 2);
    stop(&watch);
    let (code, report) = doctor(&scratch);
    watch.signal(Signal::CONT);
    let (what, fix) = found(&report, "unanswering");
    assert_eq!(code, 10);
    assert!(what.contains(&watch.pid().to_string()) && fix.contains("kill -CONT"), "{what}: {fix}");
}

#[test]
fn a_group_of_the_same_name_elsewhere_is_found() {
    let (here, there) = (Scratch::new(), Scratch::new());
    let _first = here.coordinator();
    let second = there.coordinator();
    let there_path = there.path().to_str().expect("UTF-8");
    let mut command = here.command(&["doctor", "--json", "--state-dir"]);
    command.arg(here.path()).env("PACELINE_STATE_DIR", there.path());
    let (code, report) = report(Ended::new(command.output().expect("run")));
    let (what, fix) = found(&report, "split");
    assert_eq!(code, 10);
    assert!(what.contains(there_path) && what.contains(&second.pid().to_string()), "{what}");
    assert!(fix.contains("PACELINE_STATE_DIR"), "{fix}");
}

#[test]
fn a_primary_that_changes_all_the_time_is_a_finding() {
    let scratch = Scratch::new();
    let _first = scratch.coordinator();
    let _second = scratch.coordinator();
    let mut changes = 0;
    until("three handovers", || {
        changes += usize::from(scratch.run(&["promote"]).code == 0);
        changes == 3
    });
    let (code, report) = doctor(&scratch);
    assert_eq!(code, 10);
    assert!(found(&report, "flapping").0.contains("times within the last minute"), "{report}");
    assert_eq!(report["elections"][0]["cause"], "it was handed over");
}

#[test]
fn a_directory_that_is_open_to_others_is_refused_with_what_to_do() {
    let scratch = Scratch::new();
    drop(scratch.coordinator());
    std::fs::set_permissions(scratch.group(), PermissionsExt::from_mode(0o755)).expect("open it");
    let (code, report) = doctor(&scratch);
    assert_eq!(code, 10);
    assert!(found(&report, "directory").0.contains("chmod"), "{report}");
}

#[test]
fn files_that_nobody_collected_are_found() {
    let scratch = Scratch::new();
    let _coordinator = scratch.coordinator();
    let dead = scratch.group().join("sessions").join("0".repeat(31) + "7");
    let file = std::fs::File::create(&dead).expect("a file");
    assert!(finding(&doctor(&scratch).1, "stuck").is_none(), "not yet old");
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    file.set_modified(old).expect("make it old");
    let (what, fix) = found(&doctor(&scratch).1, "stuck");
    assert!(what.contains(dead.to_str().expect("UTF-8")) && fix.contains("deleted"), "{what}: {fix}");
}
