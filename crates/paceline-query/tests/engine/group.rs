//! The group as a whole: strategy (X3), takeover, and what an idle engine costs.

use std::time::Duration;

use paceline_proto::{
    fetch::{FailureKind, FetchStatus},
    presence::Presence,
    time::Time,
};
use paceline_query::{
    engine::{Counts, Inherited, Note, RefetchType, Start},
    rules::{Defaults, Resource},
};

use crate::world::*;

fn hidden(presence: Presence) -> Presence {
    Presence { visible: false, ..presence }
}

#[test]
fn x3_the_group_is_active_while_any_session_is_visible_and_a_grace_time_longer() {
    let mut world = World::new([]);
    world.presence(A, |presence| presence);
    world.presence(B, |presence| presence);
    world.presence(A, hidden);
    world.pass(mins(1));
    assert!(world.notes.is_empty(), "one is enough");
    world.presence(B, hidden);
    world.pass(secs(4));
    world.presence(A, |presence| presence);
    world.presence(A, hidden);
    world.pass(secs(5) - ms(1));
    assert!(world.notes.is_empty(), "who switches windows changes nothing");
    world.pass(ms(1));
    world.presence(B, |presence| presence);
    let strategies: Vec<_> = world.notes.iter().map(|(_, note)| note.clone()).collect();
    assert_eq!(strategies, [Note::Strategy { active: false }, Note::Strategy { active: true }]);
    world.leave(A);
    world.leave(B);
    world.pass(mins(10));
    assert_eq!(world.engine.deadline(), None);
}

/// A world that a successor begins with what it inherited, a minute after the values were right.
fn taken_over(values: &[(&str, Duration)]) -> World {
    let values = values.iter().map(|(name, age)| Inherited {
        key: key(name),
        value: bytes("inherited"),
        at: START - *age,
        invalidated: false,
    });
    let start = Start { own: OWN, seed: 1, takeover: true, online: true, values: values.collect() };
    World::begun(Defaults::default(), START, start)
}

#[test]
fn nothing_fresh_is_fetched_again_because_of_a_takeover() {
    let mut world = taken_over(&[("a/fresh", secs(59)), ("a/stale", secs(61))]);
    for session in [A, B] {
        world.presence(session, |presence| presence);
        for name in ["a/fresh", "a/stale"] {
            world.observe(session, name);
        }
        world.declare(session, stale_after("a", mins(1)));
    }
    world.pass(ms(0));
    assert_eq!(world.requested("a/fresh"), []);
    assert_eq!(world.requested("a/stale").len(), 1, "once for both");
    assert!(!world.is_stale("a/fresh"));
    world.pass(secs(1));
    assert!(world.is_stale("a/fresh"), "at its instant, as if nothing had happened");
}

#[test]
fn what_is_stale_after_a_takeover_is_refreshed_in_turn() {
    let names: Vec<String> = (0..100).map(|n| format!("a/{n}")).collect();
    let values: Vec<_> = names.iter().map(|name| (name.as_str(), mins(2))).collect();
    let mut world = taken_over(&values);
    world.declare(A, stale_after("a", mins(1)));
    for name in &names {
        world.observe(A, name);
    }
    world.pass(ms(0));
    let mut answered = 0;
    while !world.open.is_empty() {
        assert!(world.open.len() <= 3);
        world.reply(value("1"));
        world.pass(ms(0));
        answered += 1;
    }
    assert_eq!(answered, 100);
}

#[test]
fn a_question_repeated_to_the_successor_waits_for_sessions_that_are_on_their_way_back() {
    let mut world = taken_over(&[]);
    let ask = world.ask(B, "a", FRESH);
    world.observe(B, "a");
    assert_eq!(world.fetch_status("a"), FetchStatus::Paused);
    world.pass(secs(2));
    assert_eq!(world.answer(ask), None);
    world.declare(A, stale_after("a", mins(1)));
    world.reply(value("1"));
    assert_eq!(world.answer(ask), Some(Ok(("1".into(), false, false))));

    let lost = world.ask(B, "nobody/can", FRESH);
    world.pass_until(secs(5) - ms(1));
    assert_eq!(world.answer(lost), None);
    world.pass_until(secs(5));
    assert_eq!(
        world.answer(lost).map(|answer| answer.map_err(|e| e.kind)),
        Some(Err(FailureKind::NoFetcher))
    );
}

#[test]
fn an_inherited_value_that_nobody_comes_back_for_is_removed_after_its_gc_time() {
    let mut world = taken_over(&[("a", mins(1)), ("set", mins(1))]);
    world.declare(A, resource("a"));
    world.pass(mins(5) - ms(1));
    assert_eq!(world.held("a"), Some("inherited"));
    world.pass(ms(1));
    assert_eq!((world.held("a"), world.engine.deadline()), (None, None));
    assert_eq!(world.held("set"), Some("inherited"), "nobody could fetch it again");
}

#[test]
fn rules_that_come_after_the_values_hold_for_those_that_nobody_looks_at() {
    let mut world = taken_over(&[("a", mins(1)), ("b", mins(1))]);
    world.declare(A, Resource { gc: Some(mins(30)), ..resource("a") });
    world.declare(A, resource("b"));
    world.pass(mins(30) - ms(1));
    assert_eq!((world.held("a"), world.held("b")), (Some("inherited"), None));
    world.pass(ms(1));
    assert_eq!((world.held("a"), world.engine.deadline()), (None, None));
}

#[test]
fn every_key_is_counted_once_and_listed_with_its_state() {
    let mut world = World::new([stale_after("a", mins(1))]);
    for name in ["a/fresh", "a/stale", "a/unseen/1", "a/fetching"] {
        world.observe(A, name);
    }
    for name in ["a/fresh", "a/stale", "a/unseen/1"] {
        world.reply_to(name, value("12"));
    }
    world.unobserve(A, "a/unseen/1");
    world.invalidate_as("a/stale", true, RefetchType::None);
    world.invalidate_as("a/unseen", false, RefetchType::None);
    world.online(false);
    world.observe(A, "a/paused");
    let counts = world.engine.counts(world.now);
    assert_eq!(counts, Counts { fresh: 1, fetching: 1, paused: 1, stale: 1, inactive: 1 });
    assert_eq!(world.engine.active(), 4);
    let listed: Vec<_> = world
        .engine
        .list(world.now)
        .map(|listed| (listed.key.clone(), listed.state.stale, listed.observers, listed.size))
        .collect();
    let line = |name, stale, observers, size| (key(name), stale, observers, size);
    let expected = [
        line("a/fetching", true, 1, 0),
        line("a/fresh", false, 1, 2),
        line("a/paused", true, 1, 0),
        line("a/stale", true, 1, 2),
        line("a/unseen/1", true, 0, 2),
    ];
    let sorted: std::collections::BTreeMap<_, _> =
        expected.into_iter().map(|(key, stale, observers, size)| (key, (stale, observers, size))).collect();
    let listed: std::collections::BTreeMap<_, _> =
        listed.into_iter().map(|(key, stale, observers, size)| (key, (stale, observers, size))).collect();
    assert_eq!(listed, sorted);
}

#[test]
fn an_engine_with_nothing_due_has_no_deadline() {
    let never = Resource { stale: Some(paceline_query::rules::Staleness::Never), ..resource("a") };
    let mut world = World::new([never]);
    for n in 0..100 {
        world.observe(A, &format!("a/{n}"));
        world.reply(value("1"));
    }
    assert_eq!(world.engine.deadline(), None);
    assert_ne!(world.now, Time::ZERO);
}
