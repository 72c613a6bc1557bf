//! Digests are of the meaning: not of order, spelling or defaults.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use paceline_config::{Capabilities, Config, Declared, Draft, Source};

fn read(file: &str, text: &str) -> Config {
    let draft = Draft::new([Source::named(file, text)]).unwrap();
    draft.validate(&Capabilities::all()).unwrap_or_else(|error| panic!("{error}"))
}

fn declared(text: &str) -> Declared {
    read("f", text).declared()
}

const BASE: &str = r#"
[upstreams.feed]
protocol = "websocket"
url = "wss://h/ws"
heartbeat = { every = "20s", dead_after = "1m" }
[[routes]]
upstream = "feed"
when = '$.type == "A" and len($.n) > 3'
set = [{ key = ["a", "$.id"], value = "$.data" }]
[[routes]]
upstream = "feed"
event = { stream = "s" }
[resources.process]
stale_time = "5m"
"#;

#[test]
fn order_spelling_and_defaults_make_no_difference() {
    let other = r#"
# The same.
group = { name = "another group" , spawn = false }
preferences.periodic_sync = false
resources = { process = { stale_time = "300s", kind = "data" } }
[upstreams.feed]
heartbeat.dead_after = "60s"
heartbeat.every = "20000ms"
url = 'wss://h/ws'
max_message = "1024KiB"
exclusive = true
envelope = { type = "$.type" }
protocol = "websocket"
[[routes]]
set = [{ value = "$.data", key = ["a", "$.id"] }]
when = '$.type=="A"  and len( $.n )>3'
upstream = "feed"
[[routes]]
event.stream = "s"
upstream = "feed"
"#;
    let other = other.replace("\"another group\"", "\"another\"");
    assert_eq!(declared(BASE).root(), declared(&other).root());
}

#[test]
fn every_difference_of_meaning_is_one() {
    let base = declared(BASE);
    for (from, to, item) in [
        ("5m", "6m", "resources.process"),
        ("resources.process", "resources.proces2", "resources.process"),
        ("wss://h/ws", "wss://h/wz", "upstreams.feed"),
        ("\"20s\"", "\"21s\"", "upstreams.feed"),
        ("> 3", ">= 3", "routes.feed"),
        ("\"$.id\"", "\"$$.id\"", "routes.feed"),
    ] {
        let other = declared(&BASE.replace(from, to));
        assert_ne!(base.root(), other.root(), "{from} {to}");
        let comparison = base.compare(&other);
        if from == "resources.process" {
            assert_eq!(
                (comparison.only_ours, comparison.only_theirs),
                (vec![item.to_owned()], vec!["resources.proces2".to_owned()])
            );
        } else {
            let items: Vec<&str> =
                comparison.conflicts.iter().map(|conflict| conflict.item.as_str()).collect();
            assert_eq!(items, [item], "{from} {to}");
        }
    }
    // Routes apply in order: another order is another meaning.
    let (first, rest) = BASE.split_once("[[routes]]").unwrap();
    let (one, rest) = rest.split_once("[[routes]]").unwrap();
    let (two, last) = rest.split_once("[resources").unwrap();
    let swapped = format!("{first}[[routes]]{two}[[routes]]{one}[resources{last}");
    assert_ne!(base.root(), declared(&swapped).root());
}

#[test]
fn a_conflict_names_both_files_and_what_a_peer_sends_is_enough() {
    let ours = read("a/paceline.toml", BASE).declared();
    let theirs = read("b/paceline.toml", &BASE.replace("5m", "6m")).declared();
    let sent = Declared::from_items(theirs.items().map(|(name, item)| (name.to_owned(), item.clone())));
    assert_eq!(sent, theirs);
    let comparison = ours.compare(&sent);
    assert_eq!(comparison.conflicts.len(), 1);
    let told = comparison.conflicts[0].to_string();
    assert_eq!(
        told,
        "config_conflict: resources.process is declared differently at a/paceline.toml:13:1 and at b/paceline.toml:13:1"
    );
    assert_eq!(ours.compare(&ours), paceline_config::Comparison::default());
}

#[test]
fn the_profile_that_is_set_counts_and_others_do_not() {
    let with = |group: &str, minutes: u32| {
        declared(&format!(
            "{BASE}[group]\n{group}\n[profiles.dev]\nresources = {{ process = {{ stale_time = \"{minutes}m\" }} }}\n"
        ))
    };
    assert_eq!(with("", 1).root(), with("", 2).root());
    let set = "profile = \"dev\"";
    assert_ne!(with(set, 1).root(), with(set, 2).root());
    assert_eq!(with(set, 1).compare(&with(set, 2)).conflicts[0].item, "profile");
}

/// Digests go over the wire between builds: these bytes stay.
#[test]
fn digests_are_the_same_in_every_build() {
    assert_eq!(declared("").root().to_string(), GOLDEN_EMPTY);
    assert_eq!(declared(BASE).root().to_string(), GOLDEN_BASE);
    assert_eq!(format!("{:016x}", declared(BASE).root().short()), GOLDEN_BASE[..16]);
}

const GOLDEN_EMPTY: &str = "8592f4b2575347fe79e9c1f62c19f6da7fab08d5879288d81299d86f8ea2a2bb";
const GOLDEN_BASE: &str = "be1df16d409eb35a0097af4b71667158990c225771881a8772dec83b3cd6a08a";
