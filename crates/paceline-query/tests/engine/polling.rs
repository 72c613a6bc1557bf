//! Polling: P1 to P8.

use std::time::Duration;

use paceline_proto::{
    fetch::{FailureKind, FetchOutcome, Want},
    id::{SessionId, Version},
    presence::Presence,
};
use paceline_query::{
    engine::Input,
    rules::{Defaults, Hints, Options, Poll, PollMode, PollStep, Resource, Staleness},
};
use serde_json::json;

use crate::world::*;

const FASTEST: SessionId = SessionId(9);

fn polled(name: &str, poll: Poll) -> Resource {
    Resource { stale: Some(Staleness::Never), poll: Some(poll), ..resource(name) }
}

fn when(poll: Poll, condition: &str, step: PollStep) -> Poll {
    poll.when(condition.parse().expect("a condition"), step)
}

fn hidden(presence: Presence) -> Presence {
    Presence { visible: false, ..presence }
}

/// Lets time pass; every request is answered at once with this value.
fn run(world: &mut World, time: Duration, text: &str) {
    let end = world.time() + time;
    loop {
        while !world.open.is_empty() {
            world.reply(value(text));
        }
        let due = world.engine.deadline().filter(|due| due.since(START) <= end);
        let Some(due) = due else { break };
        world.pass_until(due.since(START));
    }
    world.pass_until(end);
}

fn gaps(world: &World, name: &str) -> Vec<Duration> {
    let at = world.requested(name);
    at.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[test]
fn p1_a_fixed_interval_is_kept() {
    let mut world = World::new([polled("a", Poll::every(secs(30)))]);
    world.observe(A, "a");
    run(&mut world, mins(2), "1");
    assert_eq!(world.requested("a"), [0, 30, 60, 90, 120].map(secs));
    world.unobserve(A, "a");
    run(&mut world, mins(2), "1");
    assert_eq!(world.requested("a").len(), 5, "nobody looks");
}

#[test]
fn p2_smart_polling_needs_a_visible_session_that_shows_it_to_a_user_who_is_there() {
    let poll = Poll::every(secs(10)).mode(PollMode::Smart);
    let mut world = World::new([polled("a", poll)]);
    world.observe(A, "a");
    run(&mut world, secs(20), "1");
    assert_eq!(world.requested("a").len(), 3);

    world.presence(A, |presence| Presence { active: false, ..presence });
    run(&mut world, mins(30), "1");
    assert_eq!(world.requested("a").len(), 3 + 29, "until the user was idle for five minutes");
    world.presence(A, |presence| presence);
    run(&mut world, secs(20), "1");
    let since: Vec<_> = world.requested("a").into_iter().filter(|at| *at >= mins(30) + secs(20)).collect();
    assert_eq!(since[0], mins(30) + secs(20), "at once");
    assert_eq!(since[1] - since[0], secs(10), "and cleanly on");

    let off_screen = Options { on_screen: Some(false), ..Options::default() };
    let before = world.requested("a").len();
    world.observe_with(A, "a", off_screen);
    run(&mut world, mins(5), "1");
    assert_eq!(world.requested("a").len(), before);
    world.observe(A, "a");
    world.presence(A, hidden);
    run(&mut world, mins(5), "1");
    assert_eq!(world.requested("a").len(), before + 1, "overdue when it is on screen again, then hidden");
}

#[test]
fn p3_the_interval_is_a_function_of_the_data() {
    let job = when(Poll::every(secs(2)), r#"$.status == "completed""#, PollStep::Stop);
    let job = when(job, r#"$.status == "failed""#, PollStep::Stop);
    let list = when(Poll::every(secs(30)), "empty($)", PollStep::Stop);
    let list = when(list, "len($) > 10", PollStep::Every(secs(10)));
    let unfinished =
        when(Poll::otherwise(PollStep::Stop), "any($, $.FinishedDate == null)", PollStep::Every(secs(30)));
    let mut world = World::new([polled("job", job), polled("list", list), polled("packages", unfinished)]);
    let eleven = json!(vec![1; 11]).to_string();
    let cases = [
        ("job", r#"{"status":"running"}"#, Some(2)),
        ("job", r#"{"status":"completed"}"#, None),
        ("job", r#"{"status":"failed"}"#, None),
        ("list", "[]", None),
        ("list", "[1]", Some(30)),
        ("list", &eleven, Some(10)),
        ("packages", r#"[{"FinishedDate":null},{"FinishedDate":1}]"#, Some(30)),
        ("packages", r#"[{"FinishedDate":1}]"#, None),
    ];
    for (n, (name, text, interval)) in cases.into_iter().enumerate() {
        let name = format!("{name}/{n}");
        world.observe(A, &name);
        run(&mut world, mins(1), text);
        let gaps = gaps(&world, &name);
        match interval {
            Some(seconds) => assert!(
                gaps.len() as u64 == 60 / seconds && gaps.iter().all(|gap| *gap == secs(seconds)),
                "{name} {text}: {gaps:?}"
            ),
            None => assert_eq!(gaps, [], "{name} {text}"),
        }
        world.unobserve(A, &name);
    }
}

#[test]
fn p3_rules_see_the_segments_of_the_key() {
    let poll = when(Poll::every(secs(5)), r#"key.filter != "active""#, PollStep::Stop);
    let pattern =
        paceline_query::pattern::KeyPattern::new(&[json!("p"), json!("{filter}")]).expect("a pattern");
    let mut world = World::new([Resource { pattern, ..polled("p", poll) }]);
    for name in ["p/active", "p/done"] {
        world.observe(A, name);
    }
    run(&mut world, secs(10), "1");
    assert_eq!((world.requested("p/active").len(), world.requested("p/done").len()), (3, 1));
}

#[test]
fn p3_an_error_backs_off_and_focus_reconnect_and_manual_refetch_clear_it() {
    let poll = when(Poll::every(secs(10)), "error", PollStep::BackOff);
    let clear: [fn(&mut World); 3] = [
        |world| world.presence(A, |presence| Presence { focused: true, ..presence }),
        |world| {
            world.online(false);
            world.online(true);
        },
        |world| {
            world.ask(A, "a", Want::New);
        },
    ];
    for clear in clear {
        let mut world = World::new([polled("a", poll.clone())]);
        world.observe(A, "a");
        world.reply(value("1"));
        let fail_for = |world: &mut World, time| {
            let end = world.time() + time;
            while world.time() < end {
                world.pass(secs(1));
                while !world.open.is_empty() {
                    world.reply(failed(FailureKind::Status(404)));
                }
            }
        };
        fail_for(&mut world, mins(10));
        let backed_off = gaps(&world, "a");
        assert_eq!(backed_off[..5], [10, 20, 40, 80, 160].map(secs), "{backed_off:?}");
        clear(&mut world);
        let cleared = world.time();
        fail_for(&mut world, secs(31));
        let since = world.requested("a").iter().filter(|at| **at >= cleared).count();
        assert!(since >= 2, "{:?} after {cleared:?}", world.requested("a"));
        run(&mut world, secs(100), "2");
        let gaps = gaps(&world, "a");
        assert_eq!(gaps[gaps.len() - 3..], [secs(10); 3], "a success ends it");
    }
}

#[test]
fn p3_what_the_fetcher_knows_of_its_value_counts() {
    let mut world = World::new([polled("a", Poll::every(secs(30)))]);
    world.observe(A, "a");
    let hinted = |poll| FetchOutcome::Value {
        value: bytes("1"),
        version: Version::None,
        etag: "".into(),
        hints: Hints { stale: None, poll: Some(poll) }.to_bytes().into(),
    };
    world.reply(hinted(PollStep::Every(secs(2))));
    world.pass(secs(2));
    assert_eq!(world.requested("a"), [secs(0), secs(2)]);
    world.reply(hinted(PollStep::Stop));
    world.pass(mins(10));
    assert_eq!(world.requested("a").len(), 2);
}

#[test]
fn p4_one_timer_per_key_with_the_shortest_interval_of_those_who_count() {
    let own = |seconds| Options { poll: Some(Some(secs(seconds))), ..Options::default() };
    let mut world = World::new([polled("a", Poll::otherwise(PollStep::Stop))]);
    world.observe_with(A, "a", own(30));
    world.observe_with(B, "a", own(10));
    run(&mut world, secs(60), "1");
    assert_eq!(world.requested("a").len(), 7, "as if only the faster one were there");
    world.unobserve(B, "a");
    run(&mut world, secs(60), "1");
    assert_eq!(world.requested("a").len(), 9);
    world.presence(FASTEST, |presence| presence);
    world.observe_with(FASTEST, "a", own(5));
    run(&mut world, secs(10), "1");
    assert_eq!(world.requested("a").len(), 11);
    world.observe_with(FASTEST, "a", Options { poll: Some(None), ..Options::default() });
    run(&mut world, secs(30), "1");
    assert_eq!(world.requested("a").len(), 12);
}

#[test]
fn p5_p8_hidden_sessions_poll_slowly_and_only_where_it_is_wanted() {
    let slow = Poll::every(secs(5)).background(secs(45));
    let critical = Resource { critical: true, ..polled("c", Poll::every(secs(5))) };
    let mut world = World::new([polled("off", Poll::every(secs(5))), polled("on", slow), critical]);
    let names = ["off", "on", "c", "off/own"];
    for name in &names[..3] {
        world.observe(A, name);
    }
    let own = Options { poll_in_background: Some(true), ..Options::default() };
    world.observe_with(A, "off/own", own);
    run(&mut world, secs(60), "1");
    assert!(names.iter().all(|name| world.requested(name).len() == 13), "active: every five seconds");
    world.presence(A, hidden);
    run(&mut world, mins(3), "1");
    let polls = names.map(|name| world.requested(name).len() - 13);
    assert_eq!(polls, [0, 4, 3, 3]);
    world.presence(B, |presence| presence);
    world.observe(B, "off");
    run(&mut world, secs(10), "1");
    assert_eq!(world.requested("off").len() - 13, 3, "one visible session is enough: at once, and on");
}

#[test]
fn p6_a_low_battery_of_all_who_count_slows_polling() {
    let low = |percent| move |presence| Presence { battery: Some(percent), ..presence };
    let mut world = World::new([polled("a", Poll::every(secs(10)))]);
    world.presence(A, low(20));
    world.observe(A, "a");
    run(&mut world, secs(20), "1");
    assert_eq!(world.requested("a").len(), 3);
    world.presence(A, low(19));
    run(&mut world, mins(3), "1");
    assert_eq!(world.requested("a").len(), 6, "every minute");
    world.presence(B, |presence| presence);
    world.observe(B, "a");
    run(&mut world, secs(30), "1");
    assert_eq!(gaps(&world, "a").last(), Some(&secs(10)), "a session on mains counts too");
}

#[test]
fn p6_a_network_that_fails_or_is_slow_is_asked_less_often() {
    let mut world = World::new([polled("a", Poll::every(secs(10)))]);
    world.observe(A, "a");
    world.reply(value("1"));
    for _ in 0..4 {
        while world.open.is_empty() {
            world.pass(secs(1));
        }
        world.reply(failed(FailureKind::Network));
    }
    while world.open.is_empty() {
        world.pass(secs(1));
    }
    assert_eq!(gaps(&world, "a"), [10, 20, 40, 80, 160].map(secs));
    world.reply(value("1"));

    let mut world = World::new([polled("a", Poll::every(secs(2)))]);
    world.observe(A, "a");
    for _ in 0..3 {
        while world.open.is_empty() {
            world.pass(ms(100));
        }
        world.pass(secs(4));
        world.reply(value("1"));
    }
    while world.open.is_empty() {
        world.pass(ms(100));
    }
    assert_eq!(gaps(&world, "a"), [secs(8); 3], "half of the time at most is spent asking");
}

#[test]
fn p6_a_wish_to_wait_holds_for_polls() {
    let mut world = World::new([polled("a", Poll::every(secs(5)))]);
    world.observe(A, "a");
    world.reply(value("1"));
    world.pass(secs(5));
    world.reply(limited(secs(60)));
    run(&mut world, secs(120), "1");
    let at = world.requested("a");
    assert!(at[2] >= secs(65) && at[2] <= secs(70), "{at:?}");
}

#[test]
fn p7_a_fallback_is_silent_while_the_channel_is_healthy_and_there_at_once_when_it_is_not() {
    let fallback = Poll::every(secs(60)).mode(PollMode::Fallback);
    let mut world = World::new([polled("a", fallback), polled("b", Poll::every(secs(60)))]);
    let channel = |healthy| Input::Channel { resource: "a".into(), healthy };
    world.send(channel(true));
    for name in ["a", "b"] {
        world.observe(A, name);
    }
    run(&mut world, mins(5), "1");
    assert_eq!(world.requested("a").len(), 1, "what nobody had was fetched, and then nothing");
    world.pass(secs(7));
    world.send(channel(false));
    run(&mut world, secs(1), "1");
    assert_eq!(world.requested("a")[1..], [mins(5) + secs(7)]);
    run(&mut world, mins(1), "1");
    assert_eq!(world.requested("a").len(), 3);
    world.send(channel(true));
    run(&mut world, mins(5), "1");
    assert_eq!(world.requested("a").len(), 3);
}

#[test]
fn p7_beside_a_healthy_channel_nothing_is_asked_whatever_the_age() {
    let fallback = Poll::every(secs(60)).mode(PollMode::Fallback);
    let mut world = World::new([Resource { poll: Some(fallback), ..resource("a") }]);
    world.send(Input::Channel { resource: "a".into(), healthy: true });
    world.observe(A, "a");
    run(&mut world, mins(30), "1");
    assert_eq!(world.requested("a").len(), 1);
}

#[test]
fn p7_an_independent_poll_is_on_time_whatever_is_pushed() {
    let mut world = World::new([
        polled("on-time", Poll::every(secs(10))),
        polled("fallback", Poll::every(secs(10)).mode(PollMode::Fallback)),
    ]);
    for name in ["on-time", "fallback"] {
        world.observe(A, name);
    }
    run(&mut world, secs(1), "1");
    for _ in 0..30 {
        for name in ["on-time", "fallback"] {
            world.push(name, "2");
        }
        run(&mut world, secs(1), "1");
    }
    assert_eq!(world.requested("on-time"), [0, 10, 20, 30].map(secs));
    assert_eq!(world.requested("fallback").len(), 1, "what was pushed need not be asked for");
}

#[test]
fn p4_nothing_is_polled_offline_and_polls_come_back_spread_over_their_interval() {
    let mut defaults = Defaults::default();
    defaults.refresh.check_interval = mins(1_000_000);
    let mut world = World::with(defaults, [polled("a", Poll::every(secs(30)))]);
    for n in 0..40 {
        world.observe(A, &format!("a/{n}"));
    }
    run(&mut world, secs(1), "1");
    world.online(false);
    world.pass(mins(10));
    assert_eq!(world.requests.len(), 40);
    world.online(true);
    let back = world.time();
    run(&mut world, secs(30), "1");
    let early = world.requests[40..].iter().filter(|(at, ..)| *at - back < secs(10)).count();
    assert!((5..25).contains(&early), "{early} of 40 in the first third");
    assert!(world.requests.len() >= 80);
}

#[test]
fn p3_a_backoff_ends_at_five_minutes() {
    let poll = when(Poll::every(secs(80)), "error", PollStep::BackOff);
    let mut world = World::new([polled("a", poll)]);
    world.observe(A, "a");
    world.reply(value("1"));
    for _ in 0..4 {
        while world.open.is_empty() {
            world.pass(secs(1));
        }
        world.reply(failed(FailureKind::Status(404)));
    }
    assert_eq!(gaps(&world, "a"), [80, 160, 300, 300].map(secs));
}
