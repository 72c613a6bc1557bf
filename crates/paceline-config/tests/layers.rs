//! Layers: flag > environment > project file > user file > default; tables merge by key, the rest is replaced.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use paceline_config::{
    Capabilities, Config, ConfigError, Draft, Layer, Override, Source, tables::FallbackStep,
};

fn read(sources: Vec<Source>) -> Result<Config, ConfigError> {
    Draft::new(sources)?.validate(&Capabilities::all())
}

fn flag(name: &str, key: &str, text: &str) -> Override {
    Override { name: name.to_owned(), key: key.to_owned(), text: text.to_owned() }
}

#[test]
fn the_stronger_layer_wins_in_whatever_order_they_come() {
    let profiles = "[profiles.a]\n[profiles.b]\n[profiles.c]\n[profiles.d]\n[profiles.e]\n";
    let layers = [
        Source::user("user.toml", format!("[group]\nprofile = \"a\"\n{profiles}")),
        Source::found("paceline.toml", "[group]\nprofile = \"b\"\n"),
        Source::environment(|name| (name == "PACELINE_PROFILE").then(|| "c".to_owned())),
        Source::flags([flag("--profile", "group.profile", "d")]),
    ];
    let shown = [
        ("a", "user.toml:2:11", Layer::User),
        ("b", "paceline.toml:2:11", Layer::Project),
        ("c", "PACELINE_PROFILE", Layer::Environment),
        ("d", "--profile", Layer::Flag),
    ];
    for (n, (value, origin, layer)) in shown.iter().enumerate() {
        let mut sources = layers[..=n].to_vec();
        sources.reverse();
        let config = read(sources).unwrap();
        let profile = config.group().profile().as_ref().unwrap();
        assert_eq!(profile.as_str(), *value);
        assert_eq!(profile.origin().to_string(), *origin);
        assert_eq!(profile.origin().layer(), *layer);
    }
    let config = read(Vec::new()).unwrap();
    assert_eq!(config.group().spawn().origin().layer(), Layer::Default);
}

#[test]
fn tables_merge_by_key_and_lists_are_replaced() {
    let user = "[upstreams.a]\nprotocol = \"sse\"\nurl = \"https://h/\"\nfallback = [\"b\", \"poll\"]\nheaders = { X = \"1\", Y = \"1\" }\n[upstreams.b]\nprotocol = \"sse\"\nurl = \"https://h/b\"\n";
    let project = "[upstreams.a]\nfallback = [\"poll\"]\nheaders = { Y = \"2\" }\n";
    let config = read(vec![Source::user("u", user), Source::named("p", project)]).unwrap();
    let upstream = &config.upstreams()["a"];
    assert_eq!(upstream.fallback().len(), 1);
    assert_eq!(*upstream.fallback()[0].value(), FallbackStep::Poll);
    let entries = config.entries();
    let origin = |key: &str| entries.iter().find(|entry| entry.key == key).unwrap().origin.to_string();
    assert_eq!(origin("upstreams.a.headers.X"), "u:5:17");
    assert_eq!(origin("upstreams.a.headers.Y"), "p:3:17");
    assert_eq!(origin("upstreams.a.url"), "u:3:7");
}

#[test]
fn texts_of_flags_and_variables_take_the_type_of_their_key() {
    let overrides = [
        flag("--a", "group.spawn", "false"),
        flag("--b", "outbox.attempts", "7"),
        flag("--c", "preferences.battery_saver_below", "0.5"),
        flag("--d", "group.idle_exit", "never"),
        flag("--e", "outbox.limits.bytes", "64MiB"),
        flag("--f", "defaults.refetch_on", "[\"focus\"]"),
        flag("--g", "defaults.retry", "{ times = 1 }"),
        // A name of digits stays a name.
        flag("--h", "group.name", "7"),
    ];
    let config = read(vec![Source::flags(overrides)]).unwrap();
    assert!(!config.group().spawn().value());
    assert_eq!(config.outbox().attempts().value().get(), 7);
    assert_eq!(config.defaults().refetch_on().len(), 1);
    assert_eq!(config.defaults().retry().times().origin().to_string(), "--g");
    assert_eq!(config.group().name().as_str(), "7");
}

#[test]
fn mistakes_of_flags_and_variables_name_them() {
    let told = |it: Override| read(vec![Source::flags([it])]).unwrap_err().problems.remove(0).to_string();
    assert!(
        told(flag("--idle-exit", "group.idle_exit", "600"))
            .starts_with("--idle-exit: group.idle_exit: the number 600 has no unit")
    );
    assert!(
        told(flag("--set", "group.nmae", "x"))
            .starts_with("--set: group.nmae: unknown key\n    did you mean `name`?")
    );
    assert!(
        told(flag("--set", "defaults.retry", "{ times = ")).starts_with("--set: defaults.retry: no TOML")
    );
    let spawn = Source::environment(|name| (name == "PACELINE_SPAWN").then(|| "maybe".to_owned()));
    assert!(
        read(vec![spawn])
            .unwrap_err()
            .to_string()
            .contains("PACELINE_SPAWN: group.spawn: does not take the text \"maybe\"")
    );
    let empty = Source::environment(|_| Some(String::new()));
    assert!(read(vec![empty]).is_ok(), "an empty variable is not set");
}

#[test]
fn a_conflict_between_layers_names_both_and_blames_the_stronger() {
    let user = Source::user("u", "[secrets.a]\nenv = \"A\"\n");
    let project = Source::named("p", "[secrets.a]\ncommand = [\"a\"]\n");
    let problem = read(vec![user, project]).unwrap_err().problems.remove(0);
    assert_eq!((problem.key.as_str(), problem.origin.to_string().as_str()), ("secrets.a.command", "p:2:11"));
    assert_eq!(problem.related[0].1.to_string(), "u:2:7");
    let default =
        read(vec![Source::user("u", "[outbox.backoff]\ncap = \"10ms\"\n")]).unwrap_err().problems.remove(0);
    assert_eq!(default.key, "outbox.backoff.cap", "not the default is wrong");
}

#[test]
fn every_mistake_of_every_file_is_told() {
    let error = Draft::new([Source::user("u", "a = \n"), Source::named("p", "b = \n")]).unwrap_err();
    let files: Vec<_> = error.problems.iter().filter_map(|problem| problem.origin.file()).collect();
    assert!(files.contains(&"u") && files.contains(&"p"), "{files:?}");
}
