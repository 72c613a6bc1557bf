//! From the tables of upstreams to what the machines take.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use paceline_channel::{
    poll::{Cursor, PollSpec},
    protocol::{Adapter, Secret},
    pusher::{AuthSpec, PusherSpec},
    sse::{Shape, SseSpec},
    template::NoSecrets,
    websocket::{PositionSpec, WebSocketSpec},
};
use paceline_config::{Capabilities, Config, Draft, LiveUpstream, Source};
use paceline_proto::hub::Resume;

fn read(text: &str) -> Result<Config, String> {
    let draft = Draft::new([Source::named("f", text)]).map_err(|error| error.to_string())?;
    draft.validate(&Capabilities::all()).map_err(|error| error.to_string())
}

fn live(text: &str) -> Vec<LiveUpstream> {
    read(text).unwrap_or_else(|error| panic!("{error}")).live_upstreams(&NoSecrets).unwrap()
}

/// Adapters are compared as they are shown.
fn check(upstream: &LiveUpstream, expected: &[&dyn Adapter]) {
    let shown: Vec<String> = upstream.adapters.iter().map(|it| format!("{it:?}")).collect();
    let expected: Vec<String> = expected.iter().map(|it| format!("{it:?}")).collect();
    assert_eq!(shown, expected);
}

#[test]
fn every_key_of_an_event_stream_is_taken_over() {
    let made = live(
        r#"
[upstreams.s]
protocol = "sse"
url = "https://h/events"
headers = { X-Key = "k" }
read_timeout = "20s"
retry_clamp = ["2s", "3s"]
max_message = "1KiB"
position = { last_event_id = true, continuity = "proven", dense = true, number = "$.data.n" }
backoff = { base = "2s" }
"#,
    );
    let second = Duration::from_secs(1);
    assert_eq!(made[0].backoff.base, 2 * second);
    let expected = SseSpec {
        headers: vec![("X-Key".into(), Secret::new("k"))],
        read_timeout: 20 * second,
        retry_clamp: (2 * second, 3 * second),
        max_message: 1024,
        resume: Resume::Proven,
        dense: true,
        number: Some("$.data.n".parse().unwrap()),
        ..SseSpec::new("https://h/events")
    };
    check(&made[0], &[&expected]);
}

#[test]
fn every_key_of_a_pusher_is_taken_over() {
    let made = live(
        r#"
[upstreams.a]
protocol = "pusher"
key = "k"
cluster = "eu"
[upstreams.b]
protocol = "pusher"
key = "k"
host = "h"
port = 6001
force_tls = false
auth = { endpoint = "https://app/auth", headers = { X-Key = "k" }, parallel = 2 }
"#,
    );
    check(&made[0], &[&PusherSpec::cluster("k", "eu")]);
    let auth = AuthSpec {
        endpoint: "https://app/auth".into(),
        headers: vec![("X-Key".into(), Secret::new("k"))],
        parallel: 2,
    };
    check(
        &made[1],
        &[&PusherSpec { port: Some(6001), tls: false, auth: Some(auth), ..PusherSpec::new("k", "h") }],
    );
}

#[test]
fn every_key_of_a_poll_is_taken_over() {
    let made = live(
        r#"
[upstreams.a]
protocol = "poll"
url = "https://h/list"
headers = { X-Key = "k" }
every = "5s"
timeout = "7s"
max_message = "1KiB"
items = "$.items"
envelope = { id = "$.id" }
position = { offset = "$.seq", epoch = "$.of", resume_query = "since", continuity = "unproven", dense = true }
[upstreams.b]
protocol = "poll"
url = "https://h/whole"
long = true
position = { cursor = "$.next", resume_query = "after", continuity = "proven", number = "$.n" }
"#,
    );
    let second = Duration::from_secs(1);
    let list = PollSpec {
        headers: vec![("X-Key".into(), Secret::new("k"))],
        every: 5 * second,
        timeout: 7 * second,
        max_message: 1024,
        items: Some("$.items".parse().unwrap()),
        message_id: Some("$.id".parse().unwrap()),
        position: Some(PositionSpec {
            offset: "$.seq".parse().unwrap(),
            epoch: Some("$.of".parse().unwrap()),
            resume_query: Some("since".into()),
            resume: Resume::Unproven,
            dense: true,
        }),
        resume: Resume::Unproven,
        ..PollSpec::new("https://h/list")
    };
    check(&made[0], &[&list]);
    let whole = PollSpec {
        every: Duration::ZERO,
        cursor: Some(Cursor { at: "$.next".parse().unwrap(), query: "after".into() }),
        resume: Resume::Proven,
        number: Some("$.n".parse().unwrap()),
        ..PollSpec::new("https://h/whole")
    };
    check(&made[1], &[&whole]);
}

#[test]
fn what_an_upstream_falls_back_to_is_a_way_of_it_and_no_upstream_of_its_own() {
    let text = |first: &str| {
        format!(
            "[upstreams.feed]\n{first}\nfallback = [\"s\", \"poll\"]\n\
             [upstreams.s]\nprotocol = \"sse\"\nurl = \"https://h/s\"\nfallback = [\"p\"]\n\
             [upstreams.p]\nprotocol = \"poll\"\nurl = \"https://h/p\"\n"
        )
    };
    let made = live(&text("protocol = \"websocket\"\nurl = \"wss://h/\""));
    assert_eq!(made.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["feed"]);
    // A stream that stands in for a WebSocket carries that one's messages.
    let stream = SseSpec { shape: Shape::Data, ..SseSpec::new("https://h/s") };
    check(&made[0], &[&WebSocketSpec::new("wss://h/"), &stream, &PollSpec::new("https://h/p")]);
    let made = live(&text("protocol = \"sse\"\nurl = \"https://h/first\""));
    let (first, stream) = (SseSpec::new("https://h/first"), SseSpec::new("https://h/s"));
    check(&made[0], &[&first, &stream, &PollSpec::new("https://h/p")]);
}

#[test]
fn a_poll_that_does_not_add_up_is_refused() {
    for (keys, what) in [
        ("position = { offset = \"$.n\" }", "the key `items` is missing, which `position.offset` needs"),
        ("items = \"$\"\nposition = { cursor = \"$.n\" }", "has a position of its own"),
        ("items = \"$\"\nposition = { dense = true }", "the key `offset` is missing, which `dense` needs"),
        ("position = { epoch = \"$.e\" }", "the key `offset` is missing, which `epoch` needs"),
        (
            "position = { cursor = \"$.n\", continuity = \"proven\" }",
            "the key `resume_query` is missing, which `cursor` needs",
        ),
        ("items = \"$\"\nposition = { number = \"$.n\" }", "has a position of its own"),
        ("every = \"0s\"", "upstreams.p.every"),
        ("evry = \"1s\"", "did you mean `every`?"),
    ] {
        let error =
            read(&format!("[upstreams.p]\nprotocol = \"poll\"\nurl = \"https://h/\"\n{keys}\n")).unwrap_err();
        assert!(error.contains(what), "{keys}: {error}");
    }
}
