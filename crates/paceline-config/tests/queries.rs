//! What the query engine is told of a configuration.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use paceline_config::{Capabilities, Config, Draft, Source};
use paceline_query::{
    key,
    rules::{
        self, Defaults, Dependency, NetworkMode, Poll, PollMode, PollStep, Refresh, Resource, Retry,
        Staleness, Triggers,
    },
};
use serde_json::json;

fn config(text: &str) -> Config {
    let read = Draft::new([Source::named("f", text)]).and_then(|draft| draft.validate(&Capabilities::all()));
    read.unwrap_or_else(|error| panic!("{error}"))
}

fn resources(text: &str) -> Vec<Resource> {
    config(text).query_resources().unwrap()
}

fn resource(text: &str) -> Resource {
    let mut made = resources(text);
    assert_eq!(made.len(), 1);
    made.remove(0)
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn without_a_word_everything_is_as_the_engine_has_it() {
    assert_eq!(config("").query_defaults(), Defaults::default());
    assert_eq!(resources(""), []);
    assert_eq!(resource("[resources.\"process.list\"]\n"), Resource::new("process.list").unwrap());
}

#[test]
fn every_default_is_taken_over() {
    let text = r#"[defaults]
stale_time = "1s"
gc_time = "never"
refetch_on = ["focus"]
network_mode = "offline-first"
retry = { times = 7, base = "2s", cap = "9s", jitter = "none" }
refresh = { check_interval = "3s", concurrent = 4, batch = 6, retry_interval = "8s", max_retries = 2 }
debounce = "0s"
batch_window = "10ms"
"#;
    let expected = Defaults {
        stale: Staleness::After(seconds(1)),
        gc: Duration::MAX,
        refetch_on: Triggers { subscribe: false, focus: true, reconnect: false },
        network: NetworkMode::OfflineFirst,
        retry: Retry { times: 7, base: seconds(2), cap: seconds(9), jitter: false },
        refresh: Refresh {
            check_interval: seconds(3),
            concurrent: 4,
            batch: 6,
            retry_interval: seconds(8),
            max_retries: 2,
        },
        debounce: Duration::ZERO,
        batch_window: Duration::from_millis(10),
        // What the language has no key for.
        ..Defaults::default()
    };
    assert_eq!(config(text).query_defaults(), expected);
}

#[test]
fn every_rule_of_a_resource_is_taken_over() {
    let text = r#"[resources.a]
key = ["x", "{id}", "{part}", ".."]
stale_time = "static"
gc_time = "1h"
refetch_on = []
network_mode = "always"
retry = { times = 0 }
tags = ["one", "two"]
depends_on = [{ key = ["b", "{id}", "$$x", { y = "$$z" }] }, { tag = "one" }]
fetch = "closure"
fetch_deadline = "10s"
critical = true
[resources.a.poll]
mode = "smart"
rules = [
  { when = 'key.part == "x" and error', backoff = true },
  { when = 'empty($)', stop = true },
  { when = 'len($) > 10', every = "10s" },
]
otherwise = "30s"
background = "1m"
idle_after = "2m"
low_battery = "3m"
"#;
    let made = resource(text);
    let pattern = made.pattern.to_value();
    assert_eq!(pattern, json!(["x", "{id}", "{part}", ".."]));
    let poll = Poll::otherwise(PollStep::Every(seconds(30)))
        .mode(PollMode::Smart)
        .when("key.part == \"x\" and error".parse().unwrap(), PollStep::BackOff)
        .when("empty($)".parse().unwrap(), PollStep::Stop)
        .when("len($) > 10".parse().unwrap(), PollStep::Every(seconds(10)))
        .background(seconds(60))
        .idle_after(seconds(120))
        .low_battery(seconds(180));
    let expected = Resource::new("a")
        .unwrap()
        .pattern(made.pattern.clone())
        .stale(Staleness::Static)
        .gc(seconds(3600))
        .refetch_on(Triggers { subscribe: false, focus: false, reconnect: false })
        .network(NetworkMode::Always)
        .retry(Retry { times: 0, base: seconds(1), cap: seconds(30), jitter: true })
        .tag("one")
        .tag("two")
        .depends_on(Dependency::Key(vec![json!("b"), json!("{id}"), json!("$x"), json!({ "y": "$z" })]))
        .depends_on(Dependency::tag("one"))
        .source(rules::Source::Closure)
        .deadline(seconds(10))
        .critical()
        .poll(poll);
    assert_eq!(made, expected);
}

#[test]
fn a_declared_request_names_its_server_and_has_its_time() {
    let text = r#"[http.main]
base = "https://API.example.com:443/v1/"
timeout = "40s"
[resources.a]
fetch = { http = "main", path = "/a" }
[resources.b]
fetch = { http = "main", method = "POST", path = "/b" }
"#;
    for (made, reads) in resources(text).into_iter().zip([true, false]) {
        assert_eq!(made.source, Some(rules::Source::Server("https://api.example.com".into())));
        assert!(made.deadline.unwrap() > seconds(40), "the server has its time");
        assert_eq!(made.cancellable, reads);
    }
}

#[test]
fn the_profile_that_is_set_has_the_last_word_also_where_the_environment_sets_it() {
    let text = r#"[resources.process]
stale_time = "5m"
gc_time = "1m"
[resources.rule]
stale_time = "10m"
[profiles.dev]
resources = { process = { stale_time = "1m", retry = { times = 1 } } }
[profiles.prod]
resources = { process = { stale_time = "10m", gc_time = "never" } }
"#;
    let stale_and_gc = |profile: Option<&str>| {
        let variable = |name: &str| profile.filter(|_| name == "PACELINE_PROFILE").map(str::to_owned);
        let draft = Draft::new([Source::named("f", text), Source::environment(variable)]).unwrap();
        let made = draft.validate(&Capabilities::all()).unwrap().query_resources().unwrap();
        (made[0].stale, made[0].gc, made[0].retry.map(|retry| retry.times), made[1].stale)
    };
    let after = |minutes: u64| Some(Staleness::After(seconds(60 * minutes)));
    assert_eq!(stale_and_gc(None), (after(5), Some(seconds(60)), None, after(10)));
    assert_eq!(stale_and_gc(Some("dev")), (after(1), Some(seconds(60)), Some(1), after(10)));
    assert_eq!(stale_and_gc(Some("prod")), (after(10), Some(Duration::MAX), None, after(10)));
}

#[test]
fn every_resource_of_the_example_is_one_that_a_group_takes() {
    let example = config(include_str!("../../../examples/paceline.toml"));
    let made = example.query_resources().unwrap();
    assert_eq!(made.len(), example.resources().len());
    let of = |key| example.resources_of(&key)[0].to_string();
    let named = |name: &str| made.iter().find(|resource| *resource.name == *name).unwrap();
    assert_eq!(named("node").stale, Some(Staleness::Never));
    assert_eq!(named("system_health").stale, Some(Staleness::Always));
    assert_eq!(named(&of(key!["process", "list", 1])).stale, Some(Staleness::After(seconds(120))));
    // The profile `prod` is set.
    assert_eq!(named("notification").stale, Some(Staleness::After(seconds(60))));
    for resource in &made {
        assert_eq!(Resource::from_bytes(&resource.to_bytes()).as_ref(), Ok(resource));
    }
}

#[test]
fn rules_longer_than_a_group_takes_are_told_with_their_place() {
    let rules: Vec<String> =
        (0..1000).map(|n| format!("{{ when = '$.{} == {n}', stop = true }}", "x".repeat(60))).collect();
    let text = format!("[resources.a]\npoll = {{ otherwise = \"1s\", rules = [{}] }}\n", rules.join(", "));
    let told = config(&text).query_resources().unwrap_err().to_string();
    assert!(told.starts_with("f:1:") && told.contains("make the rules of a: "), "{told}");
}
