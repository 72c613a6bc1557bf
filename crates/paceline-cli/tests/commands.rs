//! Each command: its document fits its schema, its exit code is the one promised, its text is data only.

mod common;

use common::{Running, Scratch, check, until};
use rustix::process::Signal;

#[test]
fn every_document_fits_its_schema() {
    let scratch = Scratch::new();
    let _first = scratch.coordinator();
    let _second = scratch.coordinator();
    for (name, arguments) in [
        ("set", vec!["set", "packages/7", r#"{"status":"new"}"#]),
        ("invalidate", vec!["invalidate", "packages"]),
        ("get", vec!["get", "packages/7"]),
        ("status", vec!["status"]),
        ("sessions", vec!["sessions"]),
        ("queries", vec!["queries"]),
        ("events", vec!["events"]),
        ("events", vec!["events", "--level", "debug"]),
        ("stats", vec!["stats"]),
        ("doctor", vec!["doctor"]),
        ("trace", vec!["trace"]),
        ("trace", vec!["trace", "--all"]),
        ("debug", vec!["debug", "on"]),
    ] {
        check(name, &scratch.json(&arguments));
    }
    until("a handover", || {
        let ended = scratch.run(&["promote", "--json"]);
        if ended.code == 0 {
            check("promote", &serde_json::from_str(&ended.out).expect("a document"));
        }
        ended.code == 0
    });
}

#[test]
fn a_value_set_by_one_command_is_read_by_another() {
    let scratch = Scratch::new();
    let _coordinator = scratch.coordinator();
    scratch.run(&["set", "packages/7", r#"{"status":"new"}"#]);
    let got = scratch.run(&["get", r#"["packages",7]"#]);
    assert_eq!((got.out.as_str(), got.err.as_str()), ("{\"status\":\"new\"}\n", ""));
    assert_eq!(scratch.json(&["get", "packages/7"])["stale"], false);
    scratch.run(&["invalidate", "packages"]);
    assert_eq!(scratch.json(&["get", "packages/7"])["stale"], true);
    let queries = scratch.json(&["queries"]);
    assert_eq!(queries["queries"][0]["key"], serde_json::json!(["packages", 7]));
    assert_eq!(queries["queries"][0]["stale"], true);
}

#[test]
fn debug_lines_are_switched_at_run_time() {
    let scratch = Scratch::new();
    let coordinator = scratch.coordinator();
    let switched = scratch.json(&["debug", "on"]);
    assert_eq!(switched["sessions"][0]["before"], false);
    scratch.run(&["get", "a"]);
    coordinator.wait("a debug line", |line| (line["level"] == "debug").then_some(()));
    assert_eq!(scratch.json(&["debug", "off"])["sessions"][0]["before"], true);
}

#[test]
fn stats_count_what_the_primary_did() {
    let scratch = Scratch::new();
    let _coordinator = scratch.coordinator();
    scratch.run(&["set", "a", "12345"]);
    let stats = scratch.json(&["stats"]);
    assert_eq!((stats["keys"].as_u64(), stats["bytes"].as_u64()), (Some(1), Some(5)));
    assert!(stats["counters"]["frames"].as_u64() >= Some(1), "{stats}");
    assert_eq!(stats["sessions"][0]["events"]["primary_elected"], 1);
}

#[test]
fn an_exact_invalidation_leaves_what_is_under_the_key() {
    let scratch = Scratch::new();
    let _coordinator = scratch.coordinator();
    scratch.run(&["set", "packages/7", "1"]);
    scratch.run(&["invalidate", "packages", "--exact"]);
    assert_eq!(scratch.json(&["get", "packages/7"])["stale"], false);
}

#[test]
fn status_names_who_leads() {
    let scratch = Scratch::new();
    let coordinator = scratch.coordinator();
    let status = scratch.json(&["status"]);
    assert_eq!(status["primary"]["pid"], coordinator.pid());
    assert_eq!(status["sessions"], 1, "the one that asks is not counted");
    assert!(status["queries"].is_null() && status["outbox"].is_null(), "what is not built is null");
}

#[test]
fn a_named_session_is_promoted() {
    let scratch = Scratch::new();
    let first = scratch.coordinator();
    let second = scratch.coordinator();
    let sessions = scratch.json(&["sessions"]);
    let sessions = sessions["sessions"].as_array().expect("a list");
    let other = sessions.iter().find(|session| session["pid"] == second.pid()).expect("the second");
    let id = other["session"].as_str().expect("an id");
    until("the handover", || scratch.run(&["promote", &id[24..]]).code == 0);
    assert_eq!(scratch.json(&["status"])["primary"]["pid"], second.pid());
    drop(first);
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    let scratch = Scratch::new();
    assert_eq!(scratch.run(&["frobnicate"]).code, 2);
    assert_eq!(scratch.run(&["status", "-g", "Not A Name"]).code, 2);
    for command in [
        &["status"][..],
        &["sessions"],
        &["promote"],
        &["invalidate", "a"],
        &["refetch", "a"],
        &["get", "a", "--no-spawn"],
    ] {
        let ended = scratch.run(command);
        assert_eq!(ended.code, 3, "{command:?}: {}", ended.err);
        assert!(ended.err.contains("paceline run"), "it says what to do: {}", ended.err);
    }
    let ended = scratch.command(&["set", "a", "1"]).env("PACELINE_SPAWN", "false").output().expect("run");
    assert_eq!(ended.status.code(), Some(3));
    assert!(!scratch.group().exists(), "nothing was made");

    let coordinator = scratch.coordinator();
    assert_eq!(scratch.run(&["get", "no/value"]).code, 1);
    assert_eq!(scratch.run(&["promote"]).code, 6, "nobody to hand over to");
    assert_eq!(scratch.run(&["promote", "feedfeed"]).code, 6);
    coordinator.signal(Signal::STOP);
    let ended = scratch.run(&["status", "--timeout", "300ms"]);
    coordinator.signal(Signal::CONT);
    assert_eq!(ended.code, 5, "{}", ended.err);
    assert!(ended.err.contains(&coordinator.pid().to_string()), "it names the holder: {}", ended.err);
}

#[test]
fn a_primary_of_another_protocol_is_named() {
    let scratch = Scratch::new();
    let coordinator = scratch.coordinator();
    let claim = scratch.group().join("claims/00000001");
    let text = std::fs::read_to_string(&claim).expect("the claim");
    let text = text.replace("proto_min=1", "proto_min=8").replace("proto_max=1", "proto_max=9");
    std::fs::write(&claim, text).expect("change the claim");
    let ended = scratch.run(&["status"]);
    assert_eq!(ended.code, 4, "{}", ended.err);
    assert!(ended.err.contains(&format!("process {}", coordinator.pid())), "{}", ended.err);
    assert!(ended.err.contains("8 to 9"), "{}", ended.err);
}

#[test]
fn a_pipe_gets_data_without_colours_and_notes() {
    let scratch = Scratch::new();
    let _coordinator = scratch.coordinator();
    for command in [&["set", "a", "1"][..], &["status"], &["sessions"], &["queries"]] {
        let ended = scratch.run(command);
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{command:?}");
        assert!(!ended.out.contains('\u{1b}'), "{command:?}: {}", ended.out);
    }
    assert_eq!(scratch.run(&["set", "a", "2"]).out, "", "there is no data");
    let colored = scratch.run(&["sessions", "--color", "always"]);
    assert!(colored.out.contains("\u{1b}[1m"), "{}", colored.out);
    let plain = scratch.command(&["sessions"]).env("NO_COLOR", "1").output().expect("run");
    assert!(!plain.stdout.contains(&0x1b));
}

#[test]
fn a_reader_that_goes_away_ends_a_watch_quietly() {
    let scratch = Scratch::new();
    let _coordinator = scratch.coordinator();
    scratch.run(&["set", "a", "1"]);
    let mut command = scratch.command(&["watch", "a"]);
    let mut child = command.spawn().expect("start");
    drop(child.stdout.take());
    until("its end", || {
        scratch.run(&["set", "a", "2"]);
        scratch.run(&["set", "a", "3"]);
        child.try_wait().expect("look").is_some()
    });
    assert!(child.wait().expect("its end").success());
}

#[test]
fn an_interrupted_watch_says_so() {
    let scratch = Scratch::new();
    let _coordinator = scratch.coordinator();
    scratch.run(&["set", "a", "1"]);
    let mut watch = Running::start(scratch.command(&["watch", "a"]));
    assert_eq!(watch.line(), "1");
    watch.signal(Signal::INT);
    assert_eq!(watch.end(), (Some(130), String::new()));
}

#[test]
fn help_names_what_is_built_and_nothing_else() {
    let scratch = Scratch::new();
    let help = scratch.run(&["--help"]).out;
    for built in [
        "run",
        "status",
        "sessions",
        "get",
        "watch",
        "set",
        "invalidate",
        "refetch",
        "promote",
        "completions",
    ] {
        assert!(help.contains(&format!("\n  {built} ")), "{built}: {help}");
    }
    for unbuilt in ["mutate", "outbox", "storage", "inspect", "simulate", "background"] {
        assert!(!help.contains(&format!("\n  {unbuilt} ")), "{unbuilt}: {help}");
    }
    assert!(scratch.run(&["completions", "bash"]).out.contains("_paceline()"));
}
