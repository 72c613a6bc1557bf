//! The seam between hub and query engine: what the engine is told, and what becomes of its wishes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod hub_net;

use hub_net::*;
use paceline_proto::{
    event::Event,
    fetch::*,
    follower,
    hub::{self, QueryFact, QueryWish, Writer},
    id::*,
    limits::{CHUNK_ITEMS, DECLARED_MAX, LINK_QUEUE_BURST, LINK_QUEUE_FRAMES},
    message::*,
};

fn wish(net: &mut Net, wish: QueryWish) {
    net.hub_in(hub::Input::Query(wish));
}

fn install(net: &mut Net, value: &str, version: Version) {
    wish(net, QueryWish::Install { key: key("k"), value: text(value), version, trace: Trace::NONE });
    net.flow();
}

fn fetching() -> QueryState {
    QueryState { fetch: FetchStatus::Fetching, ..QueryState::default() }
}

fn show(net: &mut Net, state: QueryState) {
    wish(net, QueryWish::Show { key: key("k"), state });
    net.flow();
}

fn state(net: &mut Net, id: u64) -> QueryState {
    net.node(id).states.get(&key("k")).cloned().unwrap_or_default()
}

fn changes(net: &Net) -> Vec<(Writer, String)> {
    let changed = |fact: &QueryFact| match fact {
        QueryFact::Changed { value, by, .. } => Some((*by, String::from_utf8(value.to_vec()).unwrap())),
        _ => None,
    };
    net.facts.iter().filter_map(changed).collect()
}

fn resources(n: usize) -> Vec<Declared> {
    let declared = |n| Declared { name: format!("r{n}").into(), rules: text("{}"), fetches: true };
    (0..n).map(declared).collect()
}

#[test]
fn an_engine_begins_when_the_offers_are_in_and_hears_of_interest_after_that() {
    let mut net = Net::group(resumable(), 3);
    net.publish(vec![set("k", "1")]);
    net.rest();
    net.kill_owner();
    net.facts.clear();
    net.take_over(2);
    net.flow();
    assert!(
        !net.facts.contains(&QueryFact::Began),
        "session 3 may still bring a newer value: {:?}",
        net.facts
    );
    net.join_all();
    net.rest();
    assert_eq!(net.facts.iter().position(|fact| *fact == QueryFact::Began), Some(0));
    for id in [2, 3] {
        let observed = QueryFact::Observed { session: session(id), key: key("k") };
        assert_eq!(net.facts.iter().filter(|fact| **fact == observed).count(), 1, "session {id}");
    }
    assert_eq!(changes(&net), [], "what is held when it begins is not told");
}

#[test]
fn the_engine_hears_who_changed_a_value_in_the_order_of_the_log() {
    let mut net = Net::group(resumable(), 2);
    net.facts.clear();
    net.publish(vec![set("k", "1")]);
    net.publish(vec![Change::Merge { key: key("k"), patch: text("+2") }]);
    net.set_op(2, "k", "3");
    net.flow();
    install(&mut net, "4", Version::None);
    let by: Vec<Writer> = changes(&net).into_iter().map(|(by, _)| by).collect();
    assert_eq!(by, [Writer::Push { versioned: false }, Writer::Write, Writer::Write, Writer::Fetch]);
    assert_eq!(net.node(2).value("k").as_deref(), Some("4"));
}

#[test]
fn a_fetched_value_older_than_the_pushed_one_is_dropped_and_the_engine_is_told_what_stands() {
    let mut net = Net::group(resumable(), 2);
    install(&mut net, "new", Version::Number(7));
    net.facts.clear();
    install(&mut net, "old", Version::Number(6));
    assert_eq!(changes(&net), [(Writer::Fetch, "new".to_owned())]);
    assert_eq!(net.node(2).value("k").as_deref(), Some("new"));
    install(&mut net, "newer", Version::Number(8));
    assert_eq!(net.node(2).value("k").as_deref(), Some("newer"));
}

#[test]
fn a_value_found_to_be_right_loses_its_mark_and_nobody_is_notified() {
    let mut net = Net::group(resumable(), 2);
    install(&mut net, "1", Version::None);
    net.op(1, Operation::Invalidate { key: key("k"), exact: false });
    net.flow();
    assert!(net.hub().get(&key("k")).unwrap().invalidated);
    net.pass(std::time::Duration::from_secs(5));
    wish(&mut net, QueryWish::Touch { key: key("k"), trace: Trace::NONE });
    net.flow();
    let held = net.hub().get(&key("k")).unwrap().clone();
    assert!(!held.invalidated);
    assert_eq!((held.updated_at, held.value), (net.now, text("1")));
    let follower = net.node(2).follower.get(&key("k")).unwrap();
    assert_eq!((follower.updated_at, follower.invalidated), (held.updated_at, false));
}

#[test]
fn a_value_that_no_mark_makes_stale_loses_it_everywhere_and_keeps_its_time() {
    let mut net = Net::group(resumable(), 2);
    install(&mut net, "1", Version::None);
    let at = net.hub().get(&key("k")).unwrap().updated_at;
    net.pass(std::time::Duration::from_secs(5));
    net.op(1, Operation::Invalidate { key: key("k"), exact: false });
    net.flow();
    net.facts.clear();
    wish(&mut net, QueryWish::Unmark { key: key("k") });
    net.flow();
    for held in [net.hub().get(&key("k")).cloned(), net.node(2).follower.get(&key("k")).cloned()] {
        assert_eq!(held.map(|held| (held.invalidated, held.updated_at)), Some((false, at)));
    }
    assert_eq!(net.facts, []);
}

#[test]
fn dependents_are_marked_everywhere_and_not_told_back() {
    let mut net = Net::group(resumable(), 2);
    install(&mut net, "1", Version::None);
    net.facts.clear();
    wish(&mut net, QueryWish::Mark { keys: vec![key("k")], trace: Trace::NONE });
    net.flow();
    assert!(net.node(2).follower.get(&key("k")).unwrap().invalidated);
    assert_eq!(net.facts, []);
}

#[test]
fn an_invalidation_is_told_once_with_its_prefix() {
    let mut net = Net::group(resumable(), 2);
    install(&mut net, "1", Version::None);
    net.facts.clear();
    net.op(2, Operation::Invalidate { key: key("k"), exact: true });
    net.flow();
    let told = |fact: &&QueryFact| matches!(fact, QueryFact::Invalidated { exact: true, .. });
    assert_eq!(net.facts.iter().filter(told).count(), 1);
    assert_eq!(net.facts.len(), 1, "{:?}", net.facts);
}

#[test]
fn the_state_of_a_query_is_shown_to_who_subscribes_now_later_and_again() {
    let mut net = Net::group(resumable(), 2);
    net.join(3);
    show(&mut net, fetching());
    assert_eq!((state(&mut net, 2), state(&mut net, 3)), (fetching(), QueryState::default()));
    net.subscribe(3, &["k"], false);
    net.flow();
    assert_eq!(state(&mut net, 3), fetching());
    // A link that ends and comes back hears what changed meanwhile.
    net.cut(3);
    show(&mut net, QueryState { failures: 2, ..QueryState::default() });
    net.link(3);
    net.flow();
    assert_eq!(state(&mut net, 3).failures, 2);
    show(&mut net, QueryState::default());
    assert_eq!(state(&mut net, 3), QueryState::default());
}

#[test]
fn a_new_owner_shows_no_state_of_the_old_one() {
    let mut net = Net::group(resumable(), 3);
    show(&mut net, fetching());
    net.kill_owner();
    net.take_over(2);
    net.join_all();
    net.rest();
    assert_eq!((state(&mut net, 2), state(&mut net, 3)), (QueryState::default(), QueryState::default()));
}

#[test]
fn a_slow_session_gets_the_last_state() {
    let mut net = Net::group(resumable(), 2);
    net.node(2).blocked = true;
    for n in 0..=(LINK_QUEUE_BURST * LINK_QUEUE_FRAMES) as u32 {
        wish(
            &mut net,
            QueryWish::Show { key: key("k"), state: QueryState { failures: n + 1, ..fetching() } },
        );
    }
    assert!(net.events.iter().any(|event| matches!(event, Event::FollowerConflated { .. })));
    let last = net.hub().stats().frames;
    net.node(2).blocked = false;
    net.flow();
    assert!(last > LINK_QUEUE_FRAMES as u64);
    assert_eq!(state(&mut net, 2).failures, (LINK_QUEUE_BURST * LINK_QUEUE_FRAMES) as u32 + 1);
}

#[test]
fn a_value_is_dropped_everywhere_only_while_nobody_subscribes_to_it() {
    let mut net = Net::group(resumable(), 2);
    install(&mut net, "1", Version::None);
    wish(&mut net, QueryWish::Remove { key: key("k") });
    net.flow();
    assert_eq!(net.node(2).value("k").as_deref(), Some("1"), "it is subscribed to");
    for id in [1, 2] {
        net.follower_in(id, follower::Input::Unsubscribe(key("k")));
    }
    net.flow();
    assert!(net.node(2).follower.get(&key("k")).is_some(), "an heir holds everything");
    net.facts.clear();
    wish(&mut net, QueryWish::Remove { key: key("k") });
    net.flow();
    assert_eq!(net.facts, [QueryFact::Removed { key: key("k") }]);
    assert!(net.hub().get(&key("k")).is_none());
    assert!(net.node(2).follower.get(&key("k")).is_none());
}

#[test]
fn a_session_is_asked_to_fetch_and_answers_who_asked_only() {
    let mut net = Net::group(resumable(), 3);
    let request = FetchRequest {
        id: FetchId(9),
        resource: "r0".into(),
        key: key("k"),
        deadline_ms: 1_000,
        background: false,
        etag: "".into(),
        trace: Trace::NONE,
    };
    let session = session(3);
    wish(&mut net, QueryWish::Fetch { session, request: request.clone() });
    net.flow();
    let (epoch, asked) = net.node(3).fetches.pop().unwrap();
    assert_eq!(asked, request);
    net.facts.clear();
    net.follower_in(
        3,
        follower::Input::Fetched { epoch, id: FetchId(9), outcome: FetchOutcome::NotModified },
    );
    net.flow();
    let told = QueryFact::Fetched { session, id: FetchId(9), outcome: FetchOutcome::NotModified };
    assert_eq!(net.facts, [told]);
    net.kill_owner();
    net.take_over(2);
    net.join_all();
    net.rest();
    net.facts.clear();
    net.follower_in(
        3,
        follower::Input::Fetched { epoch, id: FetchId(9), outcome: FetchOutcome::NotModified },
    );
    net.flow();
    assert_eq!(net.facts, [], "the next owner did not ask");
}

#[test]
fn what_a_session_declares_and_asks_of_keys_is_told_to_every_owner() {
    let mut net = Net::group(resumable(), 3);
    net.follower_in(3, follower::Input::Declare(resources(CHUNK_ITEMS.min(3))));
    net.follower_in(3, follower::Input::Observe { key: key("k"), options: text("{}") });
    net.flow();
    net.kill_owner();
    net.facts.clear();
    net.take_over(2);
    net.join_all();
    net.rest();
    let session = session(3);
    assert!(net.facts.contains(&QueryFact::Declared { session, resources: resources(CHUNK_ITEMS.min(3)) }));
    let place = |fact: &QueryFact| net.facts.iter().position(|told| told == fact);
    let options = place(&QueryFact::Options { session, key: key("k"), options: text("{}") });
    let observed = place(&QueryFact::Observed { session, key: key("k") });
    assert!(options.is_some() && options < observed, "with what it asks for: {:?}", net.facts);
}

#[test]
fn a_session_may_declare_so_many_resources_and_not_one_more() {
    let mut net = Net::group(resumable(), 3);
    net.follower_in(3, follower::Input::Declare(resources(DECLARED_MAX)));
    net.flow();
    let told: usize = net
        .facts
        .iter()
        .map(|fact| if let QueryFact::Declared { resources, .. } = fact { resources.len() } else { 0 })
        .sum();
    assert_eq!(told, DECLARED_MAX);
    net.follower_in(3, follower::Input::Declare(resources(DECLARED_MAX + 1)));
    assert!(net.node(3).events.contains(&Event::LimitReached { limit: "DECLARED_MAX" }));
    // A peer that does not keep to it is dropped alone.
    let link = net.node(3).link.unwrap();
    net.hub_in(hub::Input::Message { link, message: ToHub::Declare(resources(1)) });
    assert!(net.unlinked.iter().any(|(unlinked, why)| *unlinked == link && why.contains("declare")));
    assert!(net.events.contains(&Event::LimitReached { limit: "DECLARED_MAX" }));
}

#[test]
fn a_question_for_the_engine_is_answered_by_it_and_asked_again_of_the_next() {
    let mut net = Net::group(resumable(), 3);
    let ask = Ask::Fetch { key: key("k"), want: Want::New };
    let token = net.node(3).token();
    net.follower_in(3, follower::Input::Ask { token, ask: ask.clone(), trace: Trace::NONE });
    net.flow();
    let asked = |net: &Net| {
        net.facts.iter().rev().find_map(|fact| match fact {
            QueryFact::Asked { link, id, ask, .. } => Some((*link, *id, ask.clone())),
            _ => None,
        })
    };
    assert_eq!(asked(&net).unwrap().2, ask);
    net.kill_owner();
    net.facts.clear();
    net.take_over(2);
    net.join_all();
    net.rest();
    let (link, id, again) = asked(&net).unwrap();
    assert_eq!(again, ask);
    assert_eq!(net.node(3).answers, []);
    let answer = Answer::Fetched(Fetched::Begun);
    wish(&mut net, QueryWish::Answer { link, id, answer: answer.clone() });
    net.flow();
    assert_eq!(net.node(3).answers, [(token, answer)]);
}

#[test]
fn that_a_query_is_stale_is_shown_of_a_value_without_a_mark() {
    let mut net = Net::group(resumable(), 2);
    let stale = QueryState { stale: true, ..QueryState::default() };
    show(&mut net, stale.clone());
    assert!(!state(&mut net, 2).stale, "there is no value");
    install(&mut net, "1", Version::None);
    show(&mut net, stale.clone());
    assert!(state(&mut net, 2).stale);
    show(&mut net, QueryState::default());
    net.op(1, Operation::Invalidate { key: key("k"), exact: true });
    net.flow();
    show(&mut net, stale);
    assert!(!state(&mut net, 2).stale, "the mark says so already");
}

#[test]
fn what_the_engine_wished_during_a_handover_that_failed_is_carried_out_after_it() {
    let mut net = Net::group(resumable(), 2);
    net.hub_in(hub::Input::Drain { to: session(2) });
    net.rest();
    assert!(
        net.effects.iter().any(|effect| matches!(effect, hub::Effect::Drained { .. })),
        "it has everything"
    );
    install(&mut net, "1", Version::None);
    show(&mut net, fetching());
    assert_eq!(
        (net.node(2).value("k"), state(&mut net, 2)),
        (None, QueryState::default()),
        "nothing changes now"
    );
    net.facts.clear();
    net.hub_in(hub::Input::Resume);
    net.rest();
    assert_eq!(changes(&net), [(Writer::Fetch, "1".to_owned())], "the engine waits for it");
    assert_eq!((net.node(2).value("k").as_deref(), state(&mut net, 2)), (Some("1"), fetching()));
}
