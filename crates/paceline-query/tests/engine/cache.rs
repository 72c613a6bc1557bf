//! Staleness and cache lifetime: Q1, Q2, Q3, Q7, Q8, Q9.

use paceline_proto::fetch::{FailureKind, FetchStatus, Want};
use paceline_query::{
    engine::{Input, Note, RefetchType},
    rules::{Options, Resource, Staleness},
};

use crate::world::*;

fn kept(name: &str, stale: std::time::Duration, gc: std::time::Duration) -> Resource {
    Resource { gc: Some(gc), ..stale_after(name, stale) }
}

#[test]
fn q1_fresh_is_served_stale_is_served_and_refreshed_unused_is_removed() {
    let mut world = World::new([stale_after("a", mins(1))]);
    let first = world.ask(A, "a", FRESH);
    assert_eq!(world.answer(first), None);
    world.reply(value("1"));
    assert_eq!(world.answer(first), Some(Ok(("1".into(), false, false))));

    world.pass(mins(1) - ms(1));
    let fresh = world.ask(B, "a", FRESH);
    assert_eq!(world.answer(fresh), Some(Ok(("1".into(), false, true))));
    assert_eq!(world.requests.len(), 1);

    world.pass(ms(1));
    world.observe(B, "a");
    assert_eq!((world.is_stale("a"), world.fetch_status("a")), (true, FetchStatus::Fetching));
    assert!(world.state("a").background && world.held("a") == Some("1"), "what is held is shown meanwhile");
    world.reply(value("2"));
    assert_eq!((world.is_stale("a"), world.fetch_status("a")), (false, FetchStatus::Idle));

    world.unobserve(B, "a");
    let unused = world.time();
    world.pass(mins(6));
    assert_eq!(world.removed, [(unused + mins(5), key("a"))]);
    assert_eq!(world.engine.deadline(), None);
}

#[test]
fn q1_what_was_kept_for_want_of_a_fetcher_is_removed_unused_once_there_is_one() {
    let mut world = World::new([]);
    world.set("a", "1");
    world.pass(mins(60));
    assert_eq!(world.held("a"), Some("1"), "nobody could fetch it again");
    world.declare(A, stale_after("a", mins(1)));
    world.pass(mins(5) - ms(1));
    assert_eq!(world.held("a"), Some("1"));
    world.pass(ms(1));
    assert_eq!(world.held("a"), None);
}

#[test]
fn q2_the_timeline_holds_to_the_millisecond() {
    let mut world = World::new([kept("a", mins(2), mins(10))]);
    world.observe(A, "a");
    world.reply(value("1"));
    world.pass(mins(2) - ms(1));
    assert!(!world.is_stale("a"));
    world.pass(ms(1));
    assert!(world.is_stale("a"));
    let stale: Vec<_> =
        world.notes.iter().filter(|(_, note)| matches!(note, Note::TurnedStale { .. })).collect();
    assert_eq!(stale.len(), 1);
    assert_eq!(stale[0].0, mins(2));

    // Unused from the start: fresh until 2, stale until 10, then gone.
    let mut world = World::new([kept("a", mins(2), mins(10))]);
    world.ask(A, "a", FRESH);
    world.reply(value("1"));
    world.pass_until(mins(10) - ms(1));
    assert_eq!(world.held("a"), Some("1"));
    world.pass_until(mins(10));
    assert_eq!(world.held("a"), None);
    assert_eq!(world.removed, [(mins(10), key("a"))]);
}

#[test]
fn q2_a_stale_time_of_zero_refetches_on_every_trigger() {
    let mut world = World::new([stale_after("a", ms(0))]);
    world.observe(A, "a");
    world.reply(value("1"));
    for session in [B, OWN] {
        world.observe(session, "a");
        assert_eq!(world.open.len(), 1);
        world.reply(value("1"));
    }
    assert_eq!(world.requests.len(), 3);
}

#[test]
fn q2_a_key_that_is_observed_again_before_its_gc_is_served_at_once() {
    let mut world = World::new([kept("a", mins(60), mins(10))]);
    world.observe(A, "a");
    world.reply(value("1"));
    world.unobserve(A, "a");
    world.pass(mins(10) - ms(1));
    world.observe(B, "a");
    world.pass(mins(30));
    assert_eq!((world.held("a"), world.requests.len()), (Some("1"), 1));
    assert!(!world.is_stale("a"));
}

#[test]
fn q3_never_always_and_static_hold() {
    let rule = |name, stale| Resource { stale: Some(stale), ..resource(name) };
    let rules = [
        rule("never", Staleness::Never),
        rule("always", Staleness::Always),
        rule("static", Staleness::Static),
    ];
    let mut world = World::new(rules);
    for name in ["never", "always", "static"] {
        world.set(name, "1");
        world.observe(A, name);
    }
    assert_eq!(world.requested("always"), [ms(0)]);
    world.reply(value("2"));
    assert!(world.is_stale("always"));

    for name in ["never", "static"] {
        world.invalidate(name);
    }
    assert_eq!((world.requested("never").len(), world.requested("static").len()), (1, 0));
    assert_eq!((world.is_stale("never"), world.is_stale("static")), (true, false));
}

#[test]
fn q7_a_session_asks_for_more_or_less_than_the_rules() {
    let mut world = World::new([stale_after("a", mins(10))]);
    world.set("a", "1");
    let own = |stale| Options { stale: Some(stale), ..Options::default() };
    world.observe_with(A, "a", own(Staleness::Never));
    world.pass(mins(11));
    assert!(!world.is_stale("a"), "the only one who looks does not mind");
    world.observe_with(B, "a", own(Staleness::After(mins(12))));
    assert!(!world.is_stale("a") && world.requests.is_empty());
    world.pass(mins(1));
    assert!(world.is_stale("a"), "the strictest counts");
    world.unobserve(B, "a");
    assert!(!world.is_stale("a"));
}

#[test]
fn q8_a_maximum_age_is_asked_per_read_and_an_old_value_after_the_longest_wait() {
    let mut world = World::new([stale_after("a", mins(10))]);
    world.set("a", "1");
    world.pass(secs(30));
    let aged = |max_age, max_wait| Want::Fresh { max_age_ms: Some(max_age), max_wait_ms: max_wait };
    let young_enough = world.ask(A, "a", aged(30_001, None));
    assert_eq!(world.answer(young_enough), Some(Ok(("1".into(), false, true))));

    let too_old = world.ask(A, "a", aged(30_000, Some(200)));
    world.pass(ms(199));
    assert_eq!(world.answer(too_old), None);
    world.pass(ms(1));
    assert_eq!(world.answer(too_old), Some(Ok(("1".into(), true, true))));

    let patient = world.ask(B, "a", aged(10, Some(60_000)));
    world.reply(value("2"));
    assert_eq!(world.answer(patient), Some(Ok(("2".into(), false, false))));
    assert_eq!(world.requests.len(), 1);
}

#[test]
fn q9_the_two_axes_of_the_state_move_apart() {
    let mut world = World::new([stale_after("a", mins(1))]);
    world.observe(A, "a");
    let state = world.state("a");
    assert_eq!((state.fetch, state.stale, state.background), (FetchStatus::Fetching, true, false));
    world.reply(failed(FailureKind::Invalid));
    let state = world.state("a").clone();
    assert_eq!((state.fetch, state.error.as_deref()), (FetchStatus::Idle, Some("Invalid")));
    world.set("a", "1");
    assert!(!world.is_stale("a"));
    world.online(false);
    world.ask(A, "a", Want::New);
    assert_eq!((world.fetch_status("a"), world.is_stale("a")), (FetchStatus::Paused, false));
    world.online(true);
    assert_eq!(world.fetch_status("a"), FetchStatus::Fetching);
    world.reply(value("2"));
    assert_eq!((world.fetch_status("a"), world.state("a").error.clone()), (FetchStatus::Idle, None));
}

#[test]
fn q9_a_state_is_shown_again_to_a_session_that_comes_back() {
    let mut world = World::new([stale_after("a", mins(1))]);
    world.set("a", "1");
    world.observe(A, "a");
    let shows = world.shows[&key("a")];
    world.observe(A, "a");
    assert_eq!(world.shows[&key("a")], shows + 1);
    world.send(Input::Deadline);
    assert_eq!(world.shows[&key("a")], shows + 1, "nothing changed");
    assert!(world.requests.is_empty());
}

#[test]
fn q1_the_longest_gc_time_of_those_who_looked_counts() {
    let own = |minutes| Options { gc: Some(mins(minutes)), ..Options::default() };
    let mut world = World::new([stale_after("a", mins(1))]);
    world.set("a", "1");
    world.observe_with(A, "a", own(30));
    world.observe_with(B, "a", own(1));
    world.unobserve(A, "a");
    world.pass(mins(10));
    world.unobserve(B, "a");
    world.pass(mins(20) - ms(1));
    assert!(world.held("a").is_some(), "what one drops is not removed from under another");
    world.pass(ms(1));
    assert_eq!(world.held("a"), None);
}

#[test]
fn q9_what_was_stale_before_it_had_a_value_is_said_again_with_the_value() {
    let always = Resource { stale: Some(Staleness::Always), ..resource("a") };
    let mut world = World::new([always]);
    world.online(false);
    world.observe(A, "a");
    let said = |world: &World| world.shows[&key("a")];
    let before = said(&world);
    // The state is the same; who shows it takes staleness for that of a value, and there was none.
    world.set("a", "1");
    assert_eq!((said(&world), world.is_stale("a")), (before + 1, true));
}

#[test]
fn t1_who_is_not_enabled_sees_what_there_is_and_has_nothing_fetched() {
    let off = Options { enabled: Some(false), poll: Some(Some(secs(1))), ..Options::default() };
    let mut world = World::new([stale_after("a", secs(10))]);
    world.observe_with(B, "a", off);
    world.observe_with(B, "b", off);
    world.declare(A, stale_after("b", secs(10)));
    world.pass(secs(60));
    world.online(false);
    world.online(true);
    world.invalidate("a");
    world.pass(secs(60));
    assert_eq!(world.requests.len(), 0, "neither a subscription, time, the network nor an invalidation");
    let asked = world.ask(B, "a", FRESH);
    world.reply(value("1"));
    assert_eq!(world.answer(asked), Some(Ok(("1".into(), false, false))));
    world.pass(mins(10));
    assert_eq!((world.held("a"), world.is_stale("a")), (Some("1"), true), "it is kept, and shown as it is");
    assert_eq!(world.requests.len(), 1);
    world.observe_with(B, "a", Options::default());
    assert_eq!(world.requests.len(), 2, "switched on, it is as if it came");
}

#[test]
fn p4_a_session_that_looks_in_several_places_asks_for_the_most_of_them() {
    let mut world = World::new([stale_after("a", mins(10))]);
    let every = |seconds| Options { poll: Some(Some(secs(seconds))), ..Options::default() };
    let observe = |world: &mut World, options: Vec<Options>| {
        world.send(Input::Observed { session: B, key: key("a"), options });
    };
    observe(&mut world, vec![every(60), every(20), Options { enabled: Some(false), ..every(1) }]);
    world.reply(value("1"));
    world.pass(secs(20));
    assert_eq!(world.requests.len(), 2, "the shortest interval of those that are enabled");
    world.reply(value("2"));
    observe(&mut world, vec![every(60)]);
    world.pass(secs(59));
    assert_eq!(world.requests.len(), 2);
    world.pass(secs(1));
    assert_eq!(world.requests.len(), 3);
}

#[test]
fn q3_a_static_value_is_not_left_marked_and_one_that_somebody_wants_marked_is() {
    let fixed = Resource { stale: Some(Staleness::Static), ..resource("a") };
    let mut world = World::new([fixed]);
    world.observe(B, "a");
    world.reply(value("1"));
    world.invalidate("a");
    assert!(!world.values[&key("a")].invalidated && !world.is_stale("a"));
    let strict = Options { stale: Some(Staleness::Never), ..Options::default() };
    world.observe_with(A, "a", strict);
    world.invalidate_as("a", false, RefetchType::None);
    assert!(world.values[&key("a")].invalidated && world.is_stale("a"));
    world.unobserve(A, "a");
    assert!(!world.values[&key("a")].invalidated && !world.is_stale("a"));
}
