//! Upstreams of whole groups of real processes: the wire is lost with the session that held it, with the server, or with
//! both, and what every session got is compared with what was published.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;

use paceline_tests::{
    Scratch,
    event_source::EventSource,
    faults::{Fault, Proxy},
    numbered::Group,
};

const PEER: &str = env!("CARGO_BIN_EXE_peer");

/// A configuration whose events of the stream `notices` come from this server.
fn config(scratch: &Scratch, url: &str, position: &str) -> PathBuf {
    let file = scratch.path().join("paceline.toml");
    let text = format!(
        "[upstreams.feed]\nprotocol = \"sse\"\nurl = \"{url}\"\nposition = {position}\n\
         backoff = {{ base = \"20ms\", cap = \"50ms\" }}\n\
         [[routes]]\nupstream = \"feed\"\nevent = {{ stream = \"notices\", data = \"$.data.n\" }}\n"
    );
    std::fs::write(&file, text).unwrap();
    file
}

/// Three primaries are killed while messages are on their way.
fn primaries_die(prefix: &'static str, position: &str) {
    let source = EventSource::start(prefix);
    let scratch = Scratch::new("upstream");
    let file = config(&scratch, &source.url, position);
    let mut group = Group::new(PEER, scratch, file);
    (0..4).for_each(|_| group.join());
    group.all_at(1, || source.publish());
    for _ in 0..3 {
        let before = source.publish();
        group.kill_primary();
        for _ in 0..5 {
            source.publish();
        }
        // Some of the next are published before the heir is connected, some after.
        group.all_at(before + 20, || source.publish());
        group.join();
        let newcomer = source.publish();
        group.all_at(newcomer, || source.publish());
    }
    let last = source.publish();
    group.all_at(last, || 0);
    group.check();
    let asked = source.asked();
    assert_eq!(asked[0], None, "{asked:?}");
    assert!(asked.len() >= 4 && asked[1..].iter().all(Option::is_some), "{asked:?}");
}

#[test]
fn primaries_that_die_between_numbered_events_cost_no_gap_and_no_repetition() {
    primaries_die("", "{ dense = true }");
}

#[test]
fn primaries_that_die_between_events_of_a_server_that_keeps_all_cost_no_gap_and_no_repetition() {
    primaries_die("x-", "{ continuity = \"proven\" }");
}

#[test]
fn a_server_that_was_away_goes_on_where_it_was_and_what_it_lost_is_a_gap() {
    let source = EventSource::start("");
    let scratch = Scratch::new("away");
    let file = config(&scratch, &source.url, "{ dense = true }");
    let mut group = Group::new(PEER, scratch, file);
    (0..3).for_each(|_| group.join());
    group.all_at(1, || source.publish());
    source.down();
    for _ in 0..5 {
        source.publish();
    }
    source.up();
    let kept = source.publish();
    group.all_at(kept, || 0);
    group.check();

    source.down();
    let lost = source.publish();
    source.evict(lost);
    source.up();
    let next = source.publish();
    group.all_at(next, || 0);
    for (pid, log) in group.logs() {
        let tail = &log[log.len() - 3..];
        assert_eq!(tail, [kept, 0, next], "peer {}: {log:?}", pid);
    }
}

#[test]
fn a_reconnect_without_proof_is_a_gap_although_the_server_resumes() {
    let source = EventSource::start("x-");
    let scratch = Scratch::new("unproven");
    let file = config(&scratch, &source.url, "{ continuity = \"unproven\" }");
    let mut group = Group::new(PEER, scratch, file);
    (0..2).for_each(|_| group.join());
    group.all_at(1, || source.publish());
    let before = source.publish();
    group.all_at(before, || 0);
    source.down();
    source.up();
    let after = source.publish();
    group.all_at(after, || 0);
    for (pid, log) in group.logs() {
        assert!(log.ends_with(&[before, 0, after]), "peer {}: {log:?}", pid);
    }
    assert_eq!(source.asked(), [None, Some(before)]);
}

#[test]
fn another_transport_of_the_same_messages_takes_over_without_a_gap_and_gives_back() {
    let source = EventSource::start("");
    let scratch = Scratch::new("fallback");
    let file = scratch.path().join("paceline.toml");
    let url = &source.url;
    let text = format!(
        r#"
[upstreams.feed]
protocol = "sse"
url = "{url}"
position = {{ dense = true }}
backoff = {{ base = "20ms", cap = "50ms" }}
fallback = ["lists"]
[upstreams.lists]
protocol = "poll"
url = "{url}poll"
every = "10ms"
items = "$"
position = {{ offset = "$.n", dense = true, resume_query = "since", continuity = "unproven" }}
[[routes]]
upstream = "feed"
event = {{ stream = "notices", data = "$.data.n" }}
"#
    );
    std::fs::write(&file, text).unwrap();
    let mut group = Group::new(PEER, scratch, file);
    (0..3).for_each(|_| group.join());
    group.all_at(1, || source.publish());
    for lists_only in [true, false, true] {
        source.lists_only(lists_only);
        let before = source.publish();
        group.all_at(before + 3, || source.publish());
        group.kill_primary();
        let before = source.publish();
        group.all_at(before + 3, || source.publish());
        group.join();
        let newcomer = source.publish();
        group.all_at(newcomer, || source.publish());
    }
    let last = source.publish();
    group.all_at(last, || 0);
    group.check();
    assert!(
        source.asked().iter().skip(1).all(|after| after.is_some_and(|after| after > 0)),
        "{:?}",
        source.asked()
    );
}

/// `PACELINE_OUTAGES` is how many outages there are, `PACELINE_SEED` draws them.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn outages_of_every_kind_lose_nothing_double_nothing_and_hide_no_loss() {
    let (outages, seed) = (setting("PACELINE_OUTAGES", 40), setting("PACELINE_SEED", 1));
    let source = EventSource::start("");
    let proxy = Proxy::start(source.address(), seed);
    let scratch = Scratch::new("outages");
    let file = scratch.path().join("paceline.toml");
    let text = format!(
        "[upstreams.feed]\nprotocol = \"sse\"\nurl = \"http://{}/\"\nread_timeout = \"150ms\"\n\
         retry_clamp = [\"1ms\", \"1ms\"]\nposition = {{ dense = true }}\nbackoff = {{ base = \"5ms\", cap = \"20ms\" }}\n\
         [[routes]]\nupstream = \"feed\"\nevent = {{ stream = \"notices\", data = \"$.data.n\" }}\n",
        proxy.address
    );
    std::fs::write(&file, text).unwrap();
    let mut group = Group::new(PEER, scratch, file);
    (0..3).for_each(|_| group.join());
    group.all_at(1, || source.publish());
    let mut evicted = 0;
    while proxy.met().values().sum::<u64>() < outages {
        for _ in 0..5 {
            (0..10).for_each(|_| {
                source.publish();
            });
            group.all_at(source.published(), || 0);
        }
        // Now and then the server forgets what a session may not have yet.
        source.down();
        let lost = source.publish();
        source.evict(lost);
        source.up();
        evicted += 1;
        let next = source.publish();
        group.all_at(next, || 0);
    }
    let met = proxy.met();
    assert!(Fault::ALL.iter().all(|fault| met.contains_key(fault)), "seed {seed}: {met:?}");
    let resumed = source.asked().iter().flatten().count();
    assert!(resumed > 0 && evicted > 0);
    for (pid, log) in group.logs() {
        let mut gaps = 0;
        for pair in log.windows(2) {
            let [before, after] = *pair else { unreachable!() };
            assert!(
                before == 0 || after == 0 || after == before + 1,
                "seed {seed}: peer {pid}: {before}, {after}"
            );
            gaps += u64::from(after == 0);
        }
        let numbers: Vec<u64> = log.iter().copied().filter(|n| *n > 0).collect();
        assert!(numbers.is_sorted_by(|one, two| one < two), "seed {seed}: peer {pid} got something twice");
        let missing = numbers[numbers.len() - 1] - numbers[0] + 1 - numbers.len() as u64;
        assert_eq!((gaps, missing), (evicted, evicted), "seed {seed}: peer {pid}: one gap for each loss");
    }
}
