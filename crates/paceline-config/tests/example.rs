//! `examples/paceline.toml` is the language by example: every table of it parses and validates.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use paceline_config::{
    Capabilities, Config, ConfigError, Draft, Part, ProblemKind, Source,
    tables::{ConnectWhen, Fetch, PollMode, ResourceKind, Task, Upstream},
    value::Staleness,
};
use paceline_query::key;

const EXAMPLE: &str = include_str!("../../../examples/paceline.toml");

fn read(text: &str, build: &Capabilities) -> Result<Config, ConfigError> {
    Draft::new([Source::named("paceline.toml", text)])?.validate(build)
}

fn example() -> Config {
    read(EXAMPLE, &Capabilities::all()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_table_of_the_example_is_read() {
    let config = example();
    assert_eq!(config.group().name().as_str(), "warehouse");
    assert_eq!(config.secrets().len(), 3);
    let protocols: Vec<String> =
        config.upstreams().values().map(|upstream| upstream.protocol().to_string()).collect();
    assert_eq!(protocols, ["pusher", "websocket", "sse", "websocket"]);
    let Some(Upstream::WebSocket(feed)) = config.upstreams().get("feed").map(|it| it.value()) else {
        panic!("feed is a WebSocket")
    };
    assert_eq!(*feed.connect_when().value(), ConnectWhen::Subscribed);
    assert_eq!(feed.fallback().len(), 2);
    assert_eq!(config.routes().len(), 8);
    assert_eq!(config.http().len(), 1);
    assert_eq!(config.resources().len(), 18);
    assert_eq!(config.profiles().len(), 2);
    assert_eq!(config.tags().len(), 2);
    assert_eq!(config.periodic().len(), 2);
    assert!(
        matches!(config.periodic()["check-updates"].run()[0].value(), Task::Refresh(name) if name.as_str() == "settings")
    );
    let dashboard = &config.resources()["dashboard"];
    assert!(matches!(dashboard.fetch().as_ref().unwrap().value(), Fetch::Closure));
    assert_eq!(*dashboard.poll().as_ref().unwrap().mode().value(), PollMode::Smart);
    assert_eq!(*config.resources()["login"].kind().value(), ResourceKind::Token);
    assert_eq!(config.outbox().endpoints().iter().count(), 1);
    assert!((config.preferences().battery_saver_below().value().get() - 0.2).abs() < f64::EPSILON);
}

#[test]
fn the_staleness_table_holds_with_actions_and_profile() {
    let config = example();
    let seconds = |key| match config.rules_of(&key).stale_time.value() {
        Staleness::After(wait) => wait.get().as_secs(),
        Staleness::Never => u64::MAX,
        Staleness::Static => panic!("nothing is static here"),
    };
    // The profile `prod` is set.
    for (key, expected) in [
        (key!["node", 1], u64::MAX),
        (key!["process", 1], 600),
        (key!["process", "list"], 120),
        (key!["rule", 1], 1800),
        (key!["rule", "search", "x"], 30),
        (key!["office"], 1800),
        (key!["workflow", 1], 900),
        (key!["notification"], 60),
        (key!["settings"], 120),
        (key!["system_health"], 0),
        (key!["workflow_status"], 0),
        (key!["metrc", "packages", "A", "active"], 20),
        (key!["unknown"], 0),
    ] {
        assert_eq!(seconds(key.clone()), expected, "{key}");
    }
    let profile = config.rules_of(&key!["rule", 1]).stale_time.origin().to_string();
    let line = EXAMPLE.lines().position(|line| line.starts_with("[profiles.prod]")).unwrap() + 2;
    assert!(profile.starts_with(&format!("paceline.toml:{line}:")), "{profile}");
}

#[test]
fn a_build_that_lacks_parts_names_each_of_them() {
    let build = Capabilities::of([Part::WebSocket]);
    let error = read(EXAMPLE, &build).unwrap_err();
    assert!(error.problems.iter().all(|problem| problem.kind == ProblemKind::Unbuilt), "{error}");
    let text = error.to_string();
    let unused = [Part::WebSocket, Part::SecretCommands, Part::Keyring, Part::UpstreamTokens];
    let used = Part::ALL.iter().filter(|part| !unused.contains(part));
    for part in used {
        assert!(text.contains(&format!("needs a build with {part}\n")), "{part}: {text}");
    }
    assert!(text.contains("this one has WebSocket upstreams"), "{text}");
    // With one part more, one refusal less.
    let more = read(EXAMPLE, &Capabilities::of([Part::WebSocket, Part::Outbox])).unwrap_err();
    assert_eq!(more.problems.len() + 1, error.problems.len());
}

#[test]
fn the_example_written_anew_is_the_same_configuration() {
    let config = example();
    let again = read(&config.to_toml(), &Capabilities::all()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(again.to_toml(), config.to_toml());
    assert_eq!(again.declared().root(), config.declared().root());
    assert!(config.declared().items().count() > 25);
}

#[test]
fn every_value_has_an_origin() {
    let config = example();
    let entries = config.entries();
    let find = |key: &str| entries.iter().find(|entry| entry.key == key).unwrap_or_else(|| panic!("{key}"));
    assert_eq!(find("group.name").value, "\"warehouse\"");
    assert!(find("group.name").origin.to_string().starts_with("paceline.toml:"));
    assert_eq!(find("upstreams.feed.backoff.cap").value, "\"30s\"");
    assert_eq!(find("upstreams.feed_sse.backoff.cap").origin.to_string(), "default");
    assert_eq!(find("outbox.limits.bytes").value, "\"256MiB\"");
    assert_eq!(find("resources.login.token.grace").value, "\"0s\"");
    assert_eq!(find("upstreams.feed.headers.Authorization").value, "\"Bearer {secret:api}\"");
    for entry in &entries {
        let place = entry.origin.place();
        if let Some((line, _)) = place {
            assert!(line <= EXAMPLE.lines().count(), "{entry:?}");
        }
    }
}
