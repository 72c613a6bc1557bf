//! Triggers and the refresh service: T1, T4, T5, T7, T10, N3 (the queue after a reconnect), S1, S2, S3.

use paceline_proto::{fetch::FailureKind, presence::Presence};
use paceline_query::{
    engine::{Input, Note, Preferences},
    rules::{Defaults, Options, Poll, PollStep, Resource, Staleness, Triggers},
};

use crate::world::*;

fn hidden(presence: Presence) -> Presence {
    Presence { visible: false, ..presence }
}

fn idle(presence: Presence) -> Presence {
    Presence { active: false, ..presence }
}

fn focused(presence: Presence) -> Presence {
    Presence { focused: true, ..presence }
}

/// A world whose refresh service rests, so that only triggers fetch.
fn triggered(resources: impl IntoIterator<Item = Resource>) -> World {
    let mut defaults = Defaults::default();
    defaults.refresh.check_interval = mins(1_000_000);
    World::with(defaults, resources)
}

/// A value that was fetched by and shown to `A`, and is stale now.
fn stale_in(world: &mut World, name: &str) {
    world.observe(A, name);
    world.reply_to(name, value("0"));
    world.invalidate_as(name, true, paceline_query::engine::RefetchType::None);
}

#[test]
fn t1_subscribe_focus_and_reconnect_refetch_what_is_stale_and_nothing_else() {
    let mut world = triggered([stale_after("a", mins(60))]);
    stale_in(&mut world, "a/stale");
    world.observe(A, "a/fresh");
    world.reply(value("0"));
    world.pass(secs(10));

    world.presence(A, focused);
    world.pass(secs(1));
    assert_eq!(world.requested("a/stale"), [secs(0), secs(11)]);
    world.reply(value("1"));

    world.invalidate_as("a/stale", true, paceline_query::engine::RefetchType::None);
    world.online(false);
    world.pass(secs(9));
    world.online(true);
    world.pass(secs(1));
    assert_eq!(world.requested("a/stale"), [secs(0), secs(11), secs(21)]);
    world.reply(value("2"));

    world.invalidate_as("a/stale", true, paceline_query::engine::RefetchType::None);
    world.observe(B, "a/stale");
    assert_eq!(world.requested("a/stale").len(), 4);
    assert_eq!(world.requested("a/fresh").len(), 1);
}

#[test]
fn t1_each_trigger_is_switched_by_rule_by_query_and_at_run_time() {
    let off = Triggers { subscribe: false, focus: false, reconnect: false };
    let all = |world: &mut World| {
        world.observe(B, "a");
        world.presence(A, focused);
        world.online(false);
        world.online(true);
        world.pass(secs(2));
        world.requested("a").len() - 1
    };
    let mut world = triggered([Resource { refetch_on: Some(off), ..stale_after("a", mins(60)) }]);
    stale_in(&mut world, "a");
    assert_eq!(all(&mut world), 0, "by rule");

    let mut world = triggered([stale_after("a", mins(60))]);
    let own = Options { refetch_on: Some(off), ..Options::default() };
    world.observe_with(A, "a", own);
    world.reply(value("0"));
    world.invalidate_as("a", true, paceline_query::engine::RefetchType::None);
    world.presence(A, focused);
    world.online(false);
    world.online(true);
    world.pass(secs(2));
    assert_eq!(world.requested("a").len(), 1, "by query");

    let preferences = [
        Preferences { automatic_updates: false, ..Preferences::default() },
        Preferences {
            refetch_on_subscribe: false,
            refetch_on_focus: false,
            refetch_on_reconnect: false,
            ..Preferences::default()
        },
    ];
    for chosen in preferences {
        let mut world = triggered([stale_after("a", mins(60))]);
        world.send(Input::Preferences(chosen));
        stale_in(&mut world, "a");
        assert_eq!(all(&mut world), 0, "at run time");
    }
    let mut world = triggered([stale_after("a", mins(60))]);
    stale_in(&mut world, "a");
    assert_eq!(all(&mut world), 1);
}

#[test]
fn t4_who_comes_back_after_two_minutes_finds_nothing_older_than_one() {
    let mut world = triggered([stale_after("a", mins(60))]);
    world.observe(A, "a/old");
    world.reply(value("0"));
    world.presence(A, idle);
    world.pass(mins(1) + secs(30));
    world.observe(A, "a/young");
    world.reply(value("0"));
    world.pass(secs(30));
    world.presence(A, |presence| presence);
    world.pass(secs(1));
    assert_eq!((world.requested("a/old").len(), world.requested("a/young").len()), (2, 1));
    world.reply(value("1"));

    world.presence(A, idle);
    world.pass(mins(2) - ms(1));
    world.presence(A, |presence| presence);
    world.pass(secs(2));
    assert_eq!(world.requested("a/old").len(), 2, "not idle for two minutes");
}

#[test]
fn t4_a_return_to_visible_refreshes_what_is_stale() {
    let mut world = triggered([stale_after("a", mins(60))]);
    stale_in(&mut world, "a");
    world.presence(A, hidden);
    world.pass(mins(1));
    world.presence(A, |presence| presence);
    world.pass(secs(1));
    assert_eq!(world.requested("a"), [secs(0), secs(61)]);
}

#[test]
fn t5_focus_and_reconnect_together_are_one() {
    let mut world = triggered([stale_after("a", ms(0))]);
    world.observe(A, "a");
    world.reply(value("0"));
    world.online(false);
    world.presence(A, focused);
    world.pass(ms(900));
    world.online(true);
    world.pass(ms(100));
    assert_eq!(world.requested("a"), [secs(0), secs(1)]);
    world.reply(value("1"));
    world.pass(secs(10));
    assert_eq!(world.requested("a").len(), 2);
}

#[test]
fn t7_a_stale_value_is_refreshed_by_the_service_and_not_more_often_than_it_checks() {
    let mut world = World::new([stale_after("slow", mins(2)), stale_after("fast", secs(5))]);
    for name in ["slow", "fast"] {
        world.observe(A, name);
        world.reply(value("0"));
    }
    world.set("unused/1", "0");
    while world.time() < mins(3) {
        world.pass(ms(100));
        while !world.open.is_empty() {
            world.reply(value("1"));
        }
    }
    assert_eq!(world.requested("slow"), [secs(0), secs(120)]);
    let expected: Vec<_> = (0..=6).map(|n| secs(30 * n)).collect();
    assert_eq!(world.requested("fast"), expected, "max(stale at, last attempt + 30 s)");
    assert!(world.requested("unused/1").is_empty(), "active queries only");
    let looks = world.notes.iter().filter(|(_, note)| matches!(note, Note::Refresh { .. })).count();
    assert_eq!(looks, 6, "a look only when something is due");
}

#[test]
fn t7_what_nobody_called_stale_or_what_is_polled_is_not_refreshed_by_its_age() {
    let always = Resource { stale: Some(Staleness::Always), ..resource("always") };
    let stopped = Poll::otherwise(PollStep::Stop);
    let polled = Resource { poll: Some(stopped), ..stale_after("polled", secs(1)) };
    let names = ["default", "always", "polled"];
    let mut world = World::new([resource("default"), always, polled]);
    for name in names {
        world.observe(A, name);
        world.reply(value("0"));
    }
    for _ in 0..120 {
        world.pass(secs(1));
        while !world.open.is_empty() {
            world.reply(value("1"));
        }
    }
    assert_eq!(names.map(|name| world.requested(name).len()), [1, 5, 1]);
    for name in names {
        world.invalidate_as(name, true, paceline_query::engine::RefetchType::None);
    }
    world.pass(secs(30));
    assert_eq!(names.map(|name| world.requested(name).len()), [2, 6, 2], "a mark is no age");
}

#[test]
fn t7_three_at_a_time_and_five_of_a_look() {
    let mut world = World::new([stale_after("a", mins(1))]);
    for n in 0..12 {
        world.observe(A, &format!("a/{n:02}"));
        world.reply(value("0"));
    }
    world.pass(mins(1));
    let mut most = 0;
    while !world.open.is_empty() {
        most = most.max(world.open.len());
        world.pass(ms(10));
        world.reply(value("1"));
    }
    assert_eq!((most, world.requests.len()), (3, 24));
    let looks: Vec<_> = world
        .notes
        .iter()
        .filter_map(|(_, note)| match note {
            Note::Refresh { checked, stale, begun } => Some((*checked, *stale, *begun)),
            _ => None,
        })
        .collect();
    assert_eq!(looks.iter().map(|(checked, ..)| checked).sum::<u32>(), 12);
    assert!(looks.iter().all(|(checked, stale, begun)| *checked <= 5 && checked == stale && stale == begun));
}

#[test]
fn t7_a_failed_refresh_is_tried_again_three_times_and_keeps_the_value() {
    let mut world = World::new([stale_after("a", mins(2))]);
    world.observe(A, "a");
    world.reply(value("0"));
    while world.time() < mins(20) {
        world.pass(secs(1));
        if !world.open.is_empty() {
            world.reply(failed(FailureKind::Network));
        }
    }
    let at = |seconds: [u64; 5]| seconds.map(secs);
    assert_eq!(world.requested("a"), at([0, 120, 180, 240, 300]));
    assert_eq!((world.held("a"), world.state("a").error.clone()), (Some("0"), None), "S1");
    assert_eq!(world.engine.deadline(), None);

    world.presence(A, focused);
    world.pass(secs(1));
    world.reply(value("1"));
    assert_eq!(world.held("a"), Some("1"));
}

#[test]
fn t7_nothing_is_refreshed_offline() {
    let mut world = World::new([stale_after("a", mins(1))]);
    world.observe(A, "a");
    world.reply(value("0"));
    world.online(false);
    world.pass(mins(30));
    assert_eq!((world.requests.len(), world.engine.deadline()), (1, None));
    world.online(true);
    world.pass(ms(1));
    assert_eq!(world.requests.len(), 2);
}

#[test]
fn t10_refreshing_pauses_while_no_session_is_visible_but_for_critical_keys() {
    let critical = Resource { critical: true, ..stale_after("c", mins(1)) };
    let mut world = World::new([stale_after("a", mins(1)), critical]);
    for name in ["a", "c"] {
        world.observe(A, name);
        world.reply(value("0"));
    }
    world.presence(A, hidden);
    world.pass(mins(1));
    world.reply(value("1"));
    world.pass(secs(30));
    assert_eq!((world.requested("a").len(), world.requested("c").len()), (1, 2));
    world.presence(B, |presence| presence);
    world.pass(ms(0));
    assert_eq!(world.requested("a").len(), 2, "somebody looks again");
}

#[test]
fn n3_a_crowd_after_a_reconnect_is_a_queue() {
    let mut world = World::new([stale_after("a", mins(60))]);
    for n in 0..50 {
        stale_in(&mut world, &format!("a/{n}"));
    }
    world.online(false);
    world.pass(secs(5));
    world.online(true);
    let mut answered = 0;
    world.pass(secs(1));
    while !world.open.is_empty() {
        assert!(world.open.len() <= 3);
        world.reply(value("1"));
        answered += 1;
    }
    assert_eq!(answered, 50);
}

#[test]
fn s1_s3_notes_tell_of_background_and_duration_of_age_and_limit() {
    let mut world = World::new([stale_after("a", mins(5))]);
    world.observe(A, "a");
    world.pass(ms(40));
    world.reply(value("0"));
    world.pass(mins(5));
    world.pass(ms(25));
    world.reply(failed(FailureKind::Status(500)));
    let notes: Vec<_> = world.notes.iter().map(|(_, note)| note.clone()).collect();
    let [first, turned, look, second] = &notes[..] else { panic!("{notes:?}") };
    let ended = |note: &Note| match note {
        Note::FetchEnded { background, took_ns, failure, .. } => (*background, *took_ns, failure.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(ended(first), (false, 40_000_000, None));
    let (age_ns, limit_ns) = (300_000_000_000, 300_000_000_000);
    assert_eq!(*turned, Note::TurnedStale { key: key("a"), age_ns, limit_ns });
    assert_eq!(*look, Note::Refresh { checked: 1, stale: 1, begun: 1 });
    assert_eq!(ended(second), (true, 25_000_000, Some("Status(500)".into())));
}

#[test]
fn s2_the_counters_add_up() {
    let mut world = World::new([stale_after("a", mins(1))]);
    for n in 0..4 {
        world.ask(A, "a", FRESH);
        world.ask(B, "a", FRESH);
        if n % 2 == 0 {
            world.pass(ms(100));
            world.reply(value("12345"));
            world.ask(A, "a", FRESH);
        } else {
            world.reply(failed(FailureKind::Invalid));
        }
        world.pass(mins(1));
    }
    let stats = world.engine.stats();
    assert_eq!((stats.total(), stats.ok, stats.failed), (4, 2, 2));
    assert_eq!((stats.hits, stats.misses, stats.joined, stats.saved_requests()), (2, 8, 4, 6));
    assert_eq!((stats.bytes, stats.hit_bytes, stats.requests), (10, 10, 4));
    assert_eq!(stats.durations.average(), Some(ms(50)));
    assert!(stats.durations.percentile(95).is_some_and(|p95| p95 >= ms(100) && p95 <= ms(113)));
}

#[test]
fn q5_the_defaults_are_those_of_the_requirements() {
    let defaults = Defaults::default();
    assert_eq!(defaults.stale, Staleness::Always);
    assert_eq!((defaults.gc, defaults.debounce, defaults.batch_window), (mins(5), secs(1), ms(100)));
    assert_eq!((defaults.idle_after, defaults.idle_age), (mins(2), mins(1)));
    assert_eq!((defaults.poll_background, defaults.low_battery), (mins(1), mins(1)));
    let refresh = defaults.refresh;
    assert_eq!((refresh.concurrent, refresh.batch, refresh.max_retries), (3, 5, 3));
    assert_eq!((refresh.check_interval, refresh.retry_interval), (secs(30), mins(1)));
}
