//! Whole groups behind nginx with nchan, whose ids are opaque and whose buffer forgets without a word.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;

use paceline_tests::{Scratch, nchan::Nchan, numbered::Group};

const PEER: &str = env!("CARGO_BIN_EXE_peer");

const SSE: &str = "protocol = \"sse\"\nurl = \"{base}/sse\"\nposition = { number = \"$.data.n\" }";
const POLL: &str = "protocol = \"poll\"\nurl = \"{base}/poll\"\nlong = true\nposition = { number = \"$.n\" }\nenvelope = { data = \"$\" }";

/// A group whose events come from this server in this way.
fn group(name: &str, server: &Nchan, upstream: &str, data: &str) -> Group {
    let scratch = Scratch::new(name);
    let file: PathBuf = scratch.path().join("paceline.toml");
    let upstream = upstream.replace("{base}", &server.base);
    let text = format!(
        "[upstreams.feed]\n{upstream}\nbackoff = {{ base = \"20ms\", cap = \"50ms\" }}\n\
         [[routes]]\nupstream = \"feed\"\nevent = {{ stream = \"notices\", data = \"{data}\" }}\n"
    );
    std::fs::write(&file, text).unwrap();
    Group::new(PEER, scratch, file)
}

/// Three primaries are killed between messages.
fn primaries_die(name: &str, upstream: &str, data: &str) {
    let Some(mut server) = Nchan::start(10_000) else { return };
    let mut group = group(name, &server, upstream, data);
    (0..4).for_each(|_| group.join());
    group.all_at(1, || server.publish());
    for _ in 0..3 {
        let before = server.publish();
        group.all_at(before, || 0);
        group.kill_primary();
        for _ in 0..5 {
            server.publish();
        }
        group.all_at(before + 10, || server.publish());
        group.join();
        let newcomer = server.publish();
        group.all_at(newcomer, || server.publish());
    }
    let last = server.publish();
    group.all_at(last, || 0);
    group.check();
}

#[test]
fn primaries_that_die_between_events_cost_no_gap_and_no_repetition() {
    primaries_die("nchan-sse", SSE, "$.data.n");
}

#[test]
fn primaries_that_die_between_long_polls_cost_no_gap_and_no_repetition() {
    primaries_die("nchan-poll", POLL, "$.n");
}

#[test]
fn what_the_server_forgot_while_nobody_led_is_a_gap_and_never_silence() {
    for (name, upstream, data) in [("nchan-sse-gap", SSE, "$.data.n"), ("nchan-poll-gap", POLL, "$.n")] {
        let Some(mut server) = Nchan::start(5) else { return };
        let mut group = group(name, &server, upstream, data);
        group.join();
        group.join_with(&["--observer"]);
        group.all_at(1, || server.publish());
        let before = server.publish();
        group.all_at(before, || 0);
        group.kill_primary();
        for _ in 0..20 {
            server.publish();
        }
        group.join();
        let last = server.publish();
        group.all_at(last, || 0);
        let (pid, log) = group.logs().find(|(_, log)| log.contains(&before)).unwrap();
        let kept: Vec<u64> = (last - 4..=last).collect();
        let after = log.iter().position(|n| *n == before).unwrap() + 1;
        assert_eq!(log[after], 0, "{upstream}: peer {pid}: {log:?}");
        assert!(log[after + 1..].ends_with(&kept[1..]) && log.len() < after + 8, "{upstream}: {log:?}");
    }
}
