//! `trace` and `events`: what all sessions saw, merged.

mod common;

use common::{Running, Scratch, check, until};
use rustix::process::Signal;
use serde_json::Value;

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// The processes in which there is such a record, ascending.
fn processes(spans: &[Value], message: &str) -> Vec<u32> {
    let fitting = spans.iter().filter(|span| span["message"] == message);
    let pid = |span: &Value| u32::try_from(span["pid"].as_u64().expect("a pid")).expect("a pid");
    let mut pids: Vec<u32> = fitting.map(pid).collect();
    pids.sort_unstable();
    pids
}

#[test]
fn a_trace_names_every_process_that_applied_an_update_with_times_that_add_up() {
    let scratch = Scratch::new();
    let coordinator = scratch.coordinator();
    let heir = scratch.coordinator();
    let watches = [(); 2].map(|()| Running::start(scratch.command(&["watch", "packages/7"])));
    until("an heir", || scratch.json(&["set", "packages/7", "0"])["volatile"] == false);
    watches.iter().for_each(|watch| assert_eq!(watch.line(), "0"));
    let set = scratch.json(&["set", "packages/7", "1"]);
    watches.iter().for_each(|watch| assert_eq!(watch.line(), "1"));
    let id = set["trace"].as_str().expect("an id");
    let mut applied = vec![heir.pid(), watches[0].pid(), watches[1].pid()];
    applied.sort_unstable();
    let mut shown = Value::Null;
    until("everybody who applied it", || {
        shown = scratch.json(&["trace", "show", &id[20..]]);
        processes(shown["spans"].as_array().expect("spans"), "apply") == applied
    });
    check("trace-show", &shown);
    assert_eq!(shown["trace"], id);
    let spans = shown["spans"].as_array().expect("spans");
    assert_eq!(processes(spans, "op"), [coordinator.pid()], "where it was decided");
    let root = &spans[0];
    assert_eq!(root["message"], "op");
    for span in &spans[1..] {
        assert_eq!(span["parent"], root["span"], "the operation caused it");
        assert!(number(&span["after_us"]) > number(&root["after_us"]), "an effect follows its cause");
        let end = number(&span["after_us"]) + number(&span["queued_us"]) + number(&span["ran_us"]);
        assert!(end <= number(&shown["took_us"]) + 0.01, "{span} ends within the whole");
    }
    let text = scratch.run(&["trace", "show", id]).out;
    assert!(text.contains("├─ follower apply") && text.contains("└─ follower apply"), "{text}");
}

#[test]
fn a_trace_is_filtered() {
    let scratch = Scratch::new();
    let _first = scratch.coordinator();
    let _second = scratch.coordinator();
    until("an heir", || scratch.json(&["set", "a/1", "0"])["volatile"] == false);
    scratch.run(&["set", "b/1", "0"]);
    let count = |filter: &[&str]| {
        let trace = scratch.json(&[&["trace"], filter].concat());
        trace["records"].as_array().expect("records").len()
    };
    let all = count(&[]);
    assert!(count(&["--key", "a"]) < all && count(&["--key", "b/1"]) > 0);
    assert!(count(&["--actor", "hub"]) < all && count(&["--actor", "hub"]) > 0);
    assert_eq!(count(&["--min", "1h"]), 0);
    assert!(count(&["--all"]) > all);
    assert_eq!(scratch.run(&["trace", "show", "feedfeed"]).code, 1);
}

#[test]
fn a_followed_list_goes_on_with_what_happens() {
    let scratch = Scratch::new();
    let _coordinator = scratch.coordinator();
    let events = Running::start(scratch.command(&["events", "--follow", "--json"]));
    let trace = Running::start(scratch.command(&["trace", "--follow", "--json", "--key", "a"]));
    events.wait("what was", |line| {
        check("run", line);
        (line["kind"] == "primary_elected").then_some(())
    });
    let _late = scratch.coordinator();
    events.wait("a newcomer", |line| (line["kind"] == "following").then_some(()));
    scratch.run(&["set", "a", "1"]);
    trace.wait("the operation", |line| (line["message"] == "op" && line["key"] == "a").then_some(()));
}

#[test]
fn a_session_that_does_not_answer_is_named_and_left_out() {
    let scratch = Scratch::new();
    let _coordinator = scratch.coordinator();
    let watch = Running::start(scratch.command(&["watch", "a"]));
    until("the watch", || scratch.json(&["status"])["sessions"] == 2);
    watch.signal(Signal::STOP);
    let ended = scratch.run(&["trace"]);
    watch.signal(Signal::CONT);
    assert_eq!(ended.code, 0);
    assert!(ended.err.contains(&format!("process {}, did not answer", watch.pid())), "{}", ended.err);
}
