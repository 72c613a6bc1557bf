//! Fetches: T2, T9, X2, N2, N4, retries, delegation, cancellation, race guards (O3).

use std::sync::Arc;

use paceline_proto::fetch::{FailureKind, FetchStatus, Want};
use paceline_query::{
    engine::{Answer, Ask, Input, RefetchType},
    limits::FAILURES_SHOWN,
    rules::{NetworkMode, Resource, Retry, Source},
};

use crate::world::*;

fn steady(name: &str) -> Resource {
    let retry = Retry { times: 3, base: secs(1), cap: secs(30), jitter: false };
    Resource { retry: Some(retry), ..stale_after(name, mins(1)) }
}

#[test]
fn x2_fifty_questions_cost_one_request_and_a_fresh_value_costs_none() {
    let mut world = World::new([steady("a")]);
    let asks: Vec<_> = (0..50).map(|n| world.ask(if n % 2 == 0 { A } else { B }, "a", FRESH)).collect();
    assert_eq!(world.requests.len(), 1);
    world.reply(value("1"));
    assert!(asks.iter().all(|ask| world.answer(*ask) == Some(Ok(("1".into(), false, false)))));
    let later = world.ask(B, "a", FRESH);
    assert_eq!(world.answer(later), Some(Ok(("1".into(), false, true))));
    assert_eq!(world.requests.len(), 1);
}

#[test]
fn t2_a_manual_refetch_restarts_what_runs_and_all_get_the_new_result() {
    let mut world = World::new([steady("a")]);
    world.set("a", "0");
    world.pass(mins(1));
    let old = world.ask(A, "a", FRESH);
    let new = world.ask(B, "a", Want::New);
    assert_eq!((world.requests.len(), world.cancelled.len(), world.open.len()), (2, 1, 1));
    world.reply(value("1"));
    for ask in [old, new] {
        assert_eq!(world.answer(ask), Some(Ok(("1".into(), false, false))));
    }
    // Restarted once already: what comes then waits for the next fetch.
    let first = world.ask(A, "a", Want::New);
    let second = world.ask(A, "a", Want::New);
    let third = world.ask(A, "a", Want::New);
    world.reply(value("2"));
    assert_eq!(world.answer(second), Some(Ok(("2".into(), false, false))));
    assert_eq!((world.answer(first).is_some(), world.answer(third)), (true, None));
    world.reply(value("3"));
    assert_eq!(world.answer(third), Some(Ok(("3".into(), false, false))));
    let failing = world.ask(A, "a", Want::New);
    world.reply(failed(FailureKind::Status(404)));
    assert_eq!(world.answer(failing).unwrap().unwrap_err().kind, FailureKind::Status(404));
}

#[test]
fn t2_a_refetch_of_many_is_answered_when_all_are_done() {
    let mut world = World::new([steady("a")]);
    for name in ["a/1", "a/2", "a/3"] {
        world.set(name, "0");
        world.observe(A, name);
    }
    world.set("a/4", "0");
    let ask = Ask::Refetch { key: key("a"), exact: false, stale: false, refetch: RefetchType::Active };
    let id = world.ask_for(A, ask);
    assert_eq!(world.requests.len(), 3);
    world.reply(value("1"));
    world.reply(failed(FailureKind::Invalid));
    assert!(!world.answers.contains_key(&id));
    world.reply(value("1"));
    let answer = format!("{:?}", world.answers[&id]);
    assert!(answer.starts_with("Refetched { ok: 2, failed: 1,"), "{answer}");
    let none = Ask::Refetch { key: key("a"), exact: false, stale: true, refetch: RefetchType::Inactive };
    let id = world.ask_for(A, none);
    assert!(format!("{:?}", world.answers[&id]).starts_with("Refetched { ok: 0, failed: 0,"));
}

#[test]
fn t9_a_prefetch_is_answered_at_once_and_its_value_serves_the_next() {
    let mut world = World::new([steady("a")]);
    let prefetch = world.ask(A, "a", Want::Prefetch);
    assert_eq!(format!("{:?}", world.answers[&prefetch]), "Fetched(Begun)");
    assert!(world.open[0].1.background);
    world.reply(value("1"));
    world.ask(A, "a", Want::Prefetch);
    world.observe(A, "a");
    assert_eq!(world.requests.len(), 1);
}

#[test]
fn retries_double_up_to_the_cap_and_then_the_failure_is_told() {
    let mut world = World::new([steady("a")]);
    let ask = world.ask(A, "a", FRESH);
    for wait in [1, 2, 4] {
        world.reply(failed(FailureKind::Network));
        assert!(world.open.is_empty());
        world.pass(secs(wait) - ms(1));
        assert!(world.open.is_empty());
        world.pass(ms(1));
    }
    assert_eq!(world.requested("a"), [secs(0), secs(1), secs(3), secs(7)]);
    world.reply(failed(FailureKind::Network));
    assert_eq!(world.answer(ask).unwrap().unwrap_err().kind, FailureKind::Network);
    assert_eq!(world.engine.deadline(), None);
}

#[test]
fn a_failure_that_does_not_pass_is_told_at_once() {
    let mut world = World::new([steady("a")]);
    let ask = world.ask(A, "a", FRESH);
    world.reply(failed(FailureKind::Status(404)));
    assert_eq!(world.answer(ask).unwrap().unwrap_err().kind, FailureKind::Status(404));
}

#[test]
fn retries_draw_full_jitter() {
    let retry = Retry { times: 1, base: secs(1), cap: secs(30), jitter: true };
    let mut world = World::new([Resource { retry: Some(retry), ..resource("a") }]);
    let mut delays = Vec::new();
    for n in 0..200 {
        let name = format!("a/{n}");
        world.ask(A, &name, FRESH);
        let begun = world.time();
        world.reply(failed(FailureKind::Network));
        world.pass(secs(1));
        delays.push(world.requested(&name)[1] - begun);
        world.reply(value("1"));
    }
    assert!(delays.iter().all(|delay| *delay <= secs(1)));
    let early = delays.iter().filter(|delay| **delay < ms(500)).count();
    assert!((70..130).contains(&early), "{early} of 200 in the first half");
}

#[test]
fn n2_nothing_is_asked_offline_and_retries_are_not_consumed() {
    let mode = |name, network| Resource { network: Some(network), ..steady(name) };
    let mut world = World::new([
        steady("a"),
        mode("always", NetworkMode::Always),
        mode("first", NetworkMode::OfflineFirst),
    ]);
    let ask = world.ask(A, "a", FRESH);
    world.reply(failed(FailureKind::Network));
    world.online(false);
    world.pass(mins(10));
    assert_eq!(world.requested("a").len(), 1, "the retry waits for the network");
    world.online(true);
    for _ in 0..3 {
        world.reply(failed(FailureKind::Network));
        world.pass(secs(30));
    }
    assert_eq!((world.requested("a").len(), world.answer(ask).is_some()), (4, true));

    world.online(false);
    world.ask(A, "a", FRESH);
    world.ask(A, "always", FRESH);
    world.ask(A, "first", FRESH);
    assert_eq!((world.requested("a").len(), world.open.len()), (4, 2));
    world.reply_to("first", failed(FailureKind::Network));
    world.pass(mins(1));
    assert_eq!(world.requested("first").len(), 1);
    world.observe(B, "a");
    assert_eq!(world.fetch_status("a"), FetchStatus::Paused);
}

#[test]
fn n4_a_wish_to_wait_is_everybodys_who_asks_that_server() {
    let from = |name, server: &str| Resource { source: Some(Source::Server(server.into())), ..steady(name) };
    let mut world = World::new([from("a", "main"), from("b", "main"), from("c", "other")]);
    let first = world.ask(A, "a", FRESH);
    world.reply(limited(secs(20)));
    let second = world.ask(B, "b", FRESH);
    world.ask(B, "c", FRESH);
    assert_eq!((world.requested("b").len(), world.requested("c").len()), (0, 1));
    world.pass(secs(20) - ms(1));
    assert_eq!((world.requested("a").len(), world.requested("b").len()), (1, 0));
    world.pass(ms(1));
    assert_eq!((world.requested("a"), world.requested("b")), (vec![secs(0), secs(20)], vec![secs(20)]));
    world.reply_to("a", value("1"));
    world.reply_to("b", value("2"));
    assert!(world.answer(first).is_some() && world.answer(second).is_some());

    // Longer than a retry would make anybody wait: told at once.
    let ask = world.ask(A, "a/2", FRESH);
    world.reply_to("a/2", limited(secs(31)));
    assert_eq!(world.answer(ask).unwrap().unwrap_err().retry_after_ms, Some(31_000));
    world.pass(secs(1));
    let later = world.ask(B, "b/2", FRESH);
    assert_eq!(world.answer(later), None, "thirty seconds are bearable");
}

#[test]
fn the_owner_asks_itself_first_where_a_server_is_meant_and_a_visible_session_where_a_closure_is() {
    let server = Resource { source: Some(Source::Server("main".into())), ..steady("server") };
    let mut world = World::new([]);
    for session in [B, A, OWN] {
        world.declare(session, server.clone());
        world.declare(session, steady("closure"));
    }
    for hidden in [OWN, A] {
        world.presence(hidden, |presence| paceline_proto::presence::Presence { visible: false, ..presence });
    }
    world.ask(A, "server", FRESH);
    world.ask(A, "closure", FRESH);
    assert_eq!(world.requests[0].1, OWN);
    assert_eq!(world.requests[1].1, B);
}

#[test]
fn an_attempt_is_given_to_another_session_after_its_deadline_or_when_its_session_leaves() {
    let slow = Resource { deadline: Some(secs(10)), ..steady("a") };
    let mut world = World::new([]);
    world.declare(A, slow.clone());
    world.declare(B, slow);
    let ask = world.ask(OWN, "a", FRESH);
    let late = world.open[0].clone();
    world.pass(secs(10));
    assert_eq!(world.requests.iter().map(|(_, session, _)| *session).collect::<Vec<_>>(), [A, B]);
    world.send(Input::Fetched { id: late.1.id, session: A, outcome: value("late") });
    assert_eq!(world.answer(ask), None, "its number is void");
    world.leave(B);
    world.open.pop_front();
    assert_eq!(world.requests.len(), 3);
    world.reply(value("1"));
    assert_eq!(world.answer(ask), Some(Ok(("1".into(), false, false))));
}

#[test]
fn without_a_session_that_can_who_asks_is_told_and_who_looks_waits() {
    let mut world = World::new([]);
    world.send(Input::Declared { session: B, resource: Arc::new(steady("a")), fetches: false });
    world.observe(B, "a");
    assert_eq!(world.fetch_status("a"), FetchStatus::Paused);
    let ask = world.ask(B, "a", FRESH);
    assert_eq!(world.answer(ask).unwrap().unwrap_err().kind, FailureKind::NoFetcher);
    let unknown = world.ask(B, "elsewhere", FRESH);
    assert_eq!(world.answer(unknown).unwrap().unwrap_err().kind, FailureKind::NoFetcher);
    world.declare(A, steady("a"));
    assert_eq!((world.fetch_status("a"), world.open.len()), (FetchStatus::Fetching, 1));
    world.leave(A);
    world.open.clear();
    assert_eq!(world.fetch_status("a"), FetchStatus::Paused);
}

#[test]
fn a_cancellable_fetch_ends_with_the_last_who_looks_or_asks() {
    let cancellable = Resource { cancellable: true, ..steady("a") };
    let mut world = World::new([cancellable, steady("b")]);
    let ask = world.ask(A, "a", FRESH);
    world.observe(B, "a");
    world.send(Input::Unasked { id: ask });
    assert!(world.cancelled.is_empty());
    world.unobserve(B, "a");
    assert_eq!(world.cancelled.len(), 1);
    assert_eq!(world.engine.deadline(), None, "nothing is left of it");

    world.observe(B, "b");
    world.unobserve(B, "b");
    assert_eq!(world.cancelled.len(), 1, "what cannot be cancelled brings its value");
    world.reply(value("1"));
    assert_eq!(world.held("b"), Some("1"));
}

#[test]
fn o3_a_response_that_began_before_a_write_is_discarded_and_asked_for_once_more() {
    let mut world = World::new([steady("a")]);
    let ask = world.ask(A, "a", FRESH);
    world.set("a", "mine");
    world.reply(value("before"));
    assert_eq!((world.held("a"), world.requests.len()), (Some("mine"), 2));
    world.reply(value("after"));
    assert_eq!(world.held("a"), Some("after"));
    assert_eq!(world.answer(ask), Some(Ok(("after".into(), false, false))));
}

#[test]
fn o3_a_key_that_is_pushed_all_the_time_is_asked_for_twice_and_then_the_pushed_value_answers() {
    let mut world = World::new([steady("a")]);
    let ask = world.ask(A, "a", FRESH);
    for n in 0..3000 {
        world.push("a", &n.to_string());
        world.pass(ms(1));
        if n % 700 == 699 && !world.open.is_empty() {
            world.reply(value("fetched"));
        }
    }
    assert_eq!(world.requests.len(), 2);
    assert_eq!(world.answer(ask), Some(Ok(("1399".into(), false, false))));
    assert_eq!(world.held("a"), Some("2999"));
}

#[test]
fn n4_a_wish_to_wait_is_believed_for_a_day() {
    let day = secs(24 * 3600);
    for (wish, expected) in [(day - secs(1), day - secs(1)), (day, day), (day + secs(1), day)] {
        let mut world = World::new([steady("a")]);
        world.observe(A, "a");
        world.reply(limited(wish));
        world.pass(expected - ms(1));
        assert_eq!(world.requests.len(), 1);
        world.pass(ms(1));
        assert_eq!(world.requests.len(), 2, "{wish:?}");
    }
}

#[test]
fn t2_a_refetch_tells_so_many_failures_in_full_and_counts_the_rest() {
    for count in [FAILURES_SHOWN, FAILURES_SHOWN + 1] {
        let mut world = World::new([steady("a")]);
        for n in 0..count {
            world.set(&format!("a/{n}"), "0");
        }
        let ask = Ask::Refetch { key: key("a"), exact: false, stale: false, refetch: RefetchType::All };
        let id = world.ask_for(A, ask);
        for _ in 0..count {
            world.reply(failed(FailureKind::Invalid));
        }
        let Answer::Refetched { failed, failures, .. } = &world.answers[&id] else { panic!("no answer") };
        assert_eq!((*failed, failures.len()), (count as u64, FAILURES_SHOWN));
    }
}
