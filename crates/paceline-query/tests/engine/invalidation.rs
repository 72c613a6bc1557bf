//! Invalidation: T3, T6, I2, I3, I4.

use paceline_proto::{id::Trace, presence::Presence};
use paceline_query::{
    engine::{Answer, Ask, Input, RefetchType},
    rules::{Dependency, Resource},
};

use crate::world::*;

#[test]
fn t3_what_is_fetched_is_active_inactive_all_or_none() {
    let cases = [
        (RefetchType::Active, vec!["a/1"]),
        (RefetchType::Inactive, vec!["a/2"]),
        (RefetchType::All, vec!["a/1", "a/2"]),
        (RefetchType::None, vec![]),
    ];
    for (refetch, expected) in cases {
        let mut world = World::new([stale_after("a", mins(1))]);
        for name in ["a/1", "a/2", "b"] {
            world.set(name, "0");
        }
        world.observe(A, "a/1");
        world.invalidate_as("a", false, refetch);
        let mut fetched: Vec<_> = world.requests.iter().map(|(_, _, key)| key.clone()).collect();
        fetched.sort();
        assert_eq!(fetched, expected.iter().map(|name| key(name)).collect::<Vec<_>>(), "{refetch:?}");
        assert!(world.is_stale("a/1"));
        world.observe(B, "b");
        world.observe(B, "a/2");
        assert!(world.is_stale("a/2"), "marked, fetched or not");
    }
}

#[test]
fn i2_only_active_members_are_fetched_and_the_others_are_marked() {
    let mut world = World::new([stale_after("a", mins(60))]);
    for n in 0..100 {
        world.set(&format!("a/{n}"), "0");
    }
    for n in [3, 50] {
        world.observe(A, &format!("a/{n}"));
    }
    world.invalidate("a");
    assert_eq!(world.requests.len(), 2);
    world.observe(B, "a/99");
    assert_eq!(world.requests.len(), 3, "its next reader fetches it");
}

#[test]
fn i3_t6_while_somebody_looks_the_first_is_fetched_at_once_and_a_burst_a_window_after_its_last() {
    let mut world = World::new([stale_after("a", mins(60))]);
    world.set("a", "0");
    world.observe(A, "a");
    world.invalidate("a");
    assert_eq!(world.requested("a"), [ms(0)]);
    world.reply(value("1"));
    for at in [20, 60, 90] {
        world.pass_until(ms(at));
        world.invalidate("a");
        assert!(world.is_stale("a"), "marked at once");
    }
    world.pass_until(ms(189));
    assert_eq!(world.requested("a"), [ms(0)]);
    world.pass_until(ms(190));
    assert_eq!(world.requested("a"), [ms(0), ms(190)]);
    world.reply(value("2"));
    assert!(!world.is_stale("a"));
}

#[test]
fn t6_an_endless_burst_is_fetched_after_ten_windows() {
    let mut world = World::new([stale_after("a", mins(60))]);
    world.set("a", "0");
    world.observe(A, "a");
    for at in (0..3000).step_by(10) {
        world.pass_until(ms(at));
        world.invalidate("a");
        if !world.open.is_empty() {
            world.reply(value("1"));
        }
    }
    let requested = world.requested("a");
    assert!(requested.len() <= 5, "{requested:?}");
    assert_eq!(requested[..2], [ms(0), ms(1010)]);
}

#[test]
fn i3_while_nobody_looks_invalidations_are_gathered_and_only_critical_keys_are_fetched() {
    let critical = Resource { critical: true, ..stale_after("c", mins(60)) };
    let mut world = World::new([stale_after("a", mins(60)), critical]);
    for name in ["a", "c"] {
        world.set(name, "0");
        world.observe(A, name);
    }
    let hidden = |presence| Presence { visible: false, ..presence };
    world.presence(A, hidden);
    world.pass(mins(1));
    let from = world.time();
    world.invalidate("a");
    world.invalidate("c");
    world.pass(ms(50));
    world.invalidate("c");
    world.pass(ms(99));
    assert!(world.requests.is_empty());
    world.pass(ms(1));
    assert_eq!((world.requested("c"), world.requested("a")), (vec![from + ms(150)], vec![]));
    assert!(world.is_stale("a"));
}

#[test]
fn i4_an_invalidation_during_a_fetch_is_not_lost() {
    let mut world = World::new([stale_after("a", mins(60))]);
    // Without a value: nothing can be restarted, the response is not believed.
    let ask = world.ask(A, "a", FRESH);
    world.invalidate("a");
    world.reply(value("old"));
    assert_eq!((world.held("a"), world.requests.len()), (None, 2));
    world.reply(value("new"));
    assert_eq!(world.answer(ask), Some(Ok(("new".into(), false, false))));

    // With a value: restarted, and again after the next.
    world.observe(A, "a");
    world.pass(secs(1));
    world.invalidate("a");
    world.pass(secs(1));
    world.invalidate("a");
    assert_eq!((world.requests.len(), world.cancelled.len()), (4, 1));
    world.pass(secs(1));
    world.invalidate("a");
    world.reply(value("3"));
    assert_eq!(world.held("a"), Some("3"));
    assert!(world.is_stale("a"), "the last one came after that attempt began");
    world.reply(value("4"));
    assert!(!world.is_stale("a"));
    assert!(world.open.is_empty());
}

#[test]
fn i4_a_first_value_that_a_second_invalidation_overtook_is_marked_and_fetched_anew() {
    let mut world = World::new([stale_after("a", mins(60))]);
    world.observe(A, "a");
    world.invalidate("a");
    world.reply(value("1"));
    assert_eq!((world.held("a"), world.requests.len()), (None, 2), "asked for once more");
    world.invalidate("a");
    world.reply(value("2"));
    // There was no value to mark when the invalidation came.
    assert_eq!((world.held("a"), world.is_stale("a")), (Some("2"), true));
    assert!(world.values[&key("a")].invalidated, "a successor finds the mark with the value");
    world.pass(ms(100));
    world.reply(value("3"));
    assert_eq!((world.held("a"), world.is_stale("a"), world.requests.len()), (Some("3"), false, 3));
}

#[test]
fn i4_an_unrelated_slow_fetch_delays_nothing() {
    let mut world = World::new([stale_after("a", mins(60)), stale_after("slow", mins(60))]);
    world.set("a", "0");
    world.observe(A, "a");
    for n in 0..20 {
        world.observe(A, &format!("slow/{n}"));
    }
    world.pass(secs(10));
    world.invalidate("a");
    assert_eq!(world.requested("a"), [secs(10)]);
}

fn on(segments: serde_json::Value) -> Dependency {
    Dependency::Key(segments.as_array().expect("a list").clone())
}

#[test]
fn i1_what_depends_on_a_key_or_a_tag_is_marked_with_it_and_fetched_if_somebody_looks() {
    let list =
        Resource { depends_on: vec![on(serde_json::json!(["package"]))], ..stale_after("list", mins(60)) };
    let report =
        Resource { depends_on: vec![on(serde_json::json!(["list"]))], ..stale_after("report", mins(60)) };
    let tagged = Resource { tags: vec!["licence".into()], ..stale_after("tagged", mins(60)) };
    let mut world = World::new([stale_after("package", mins(60)), list, report, tagged]);
    for name in ["package/7", "list/a", "list/b", "report", "tagged"] {
        world.set(name, "0");
    }
    for name in ["list/a", "report", "tagged"] {
        world.observe(A, name);
    }
    let preview = world.ask_for(A, Ask::Preview { key: key("package/7"), exact: true });
    world.invalidate_as("package/7", true, RefetchType::Active);
    let fetched: Vec<_> = world.requests.iter().map(|(_, _, key)| key.clone()).collect();
    assert_eq!(fetched, [key("list/a"), key("report")]);
    assert_eq!(world.marked, [key("list/a"), key("list/b"), key("report")]);

    let Answer::Cascade(lines) = &world.answers[&preview] else { panic!("no preview") };
    let shown: Vec<_> = lines.iter().map(|line| (line.key.clone(), line.depth, line.refetches)).collect();
    let line = |name, depth, refetches| (Some(key(name)), depth, refetches);
    let expected = [
        line("package/7", 0, false),
        line("list/a", 1, true),
        line("list/b", 1, false),
        line("report", 2, true),
    ];
    assert_eq!(shown, expected, "the preview told it before anything happened");

    world.send(Input::TagInvalidated {
        tag: "licence".into(),
        refetch: RefetchType::Active,
        trace: Trace::NONE,
    });
    assert!(world.is_stale("tagged") && world.requested("tagged").len() == 1);
    assert_eq!(world.marked.last(), Some(&key("tagged")));
}

#[test]
fn t3_a_part_of_an_object_matches_what_has_it() {
    let mut world = World::new([stale_after("list", mins(60))]);
    let active = r#"["list",{"page":1,"status":"active"}]"#;
    for name in [active, r#"["list",{"status":"done"}]"#] {
        world.set(name, "0");
        world.observe(A, name);
    }
    world.invalidate(r#"["list",{"status":"active"}]"#);
    assert_eq!(world.requests.iter().map(|(_, _, key)| key.clone()).collect::<Vec<_>>(), [key(active)]);
    assert_eq!(world.marked, [key(active)], "which the hub did not find by its bytes");
}
