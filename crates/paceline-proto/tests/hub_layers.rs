//! Optimistic layers through hub and followers: laid, committed, taken back, carried over a takeover, bounded.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod hub_net;

use std::time::Duration;

use hub_net::*;
use paceline_proto::{
    fetch::*,
    follower,
    hub::{self, QueryWish},
    id::*,
    limits::{
        LAYERS_BYTES, LAYERS_KEY_BYTES, LAYERS_MAX, LINK_QUEUE_BURST, LINK_QUEUE_FRAMES, MEMBER_SILENCE,
    },
    message::*,
    program::Features,
};

/// Owner 1 and followers 2 and 3, all subscribed to `k`, which has the value `base`.
fn group(n: u64) -> Net {
    let mut net = Net::group(resumable(), n);
    net.publish(vec![set("k", "base")]);
    net.rest();
    net
}

fn shown(net: &mut Net) -> Vec<String> {
    let ids: Vec<u64> = net.nodes.keys().copied().collect();
    ids.into_iter().map(|id| net.node(id).value("k").unwrap_or_default()).collect()
}

fn base(net: &Net) -> String {
    String::from_utf8(net.hub().get(&key("k")).unwrap().value.to_vec()).unwrap()
}

#[test]
fn a_layer_shows_at_once_where_it_is_laid_and_then_everywhere() {
    let mut net = group(3);
    net.lay(2, "k", "+a");
    assert_eq!(shown(&mut net), ["base", "base+a", "base"], "without asking the owner");
    net.flow();
    assert_eq!(shown(&mut net), ["base+a"; 3]);
    assert_eq!(base(&net), "base", "it is no part of the value");
}

#[test]
fn a_committed_layer_becomes_the_base_in_one_step_everywhere() {
    let mut net = group(3);
    let layer = net.lay(2, "k", "+a");
    net.flow();
    let token = net.commit(2, layer, "k", "+a");
    net.rest();
    assert!(matches!(net.outcome(2, token), Some(OpOutcome::Applied { volatile: false, .. })));
    assert_eq!((shown(&mut net), base(&net)), (vec!["base+a".to_owned(); 3], "base+a".to_owned()));
    assert_eq!(net.layers("k"), []);
    for (id, node) in &net.nodes {
        let same = node.folded.iter().all(|(_, value)| value == "base+a");
        assert!(same, "session {id} saw the old value again or the layer twice: {:?}", node.folded);
    }
}

#[test]
fn what_the_server_answered_replaces_the_base_and_the_layer() {
    let mut net = group(3);
    let layer = net.lay(2, "k", "+a");
    net.lay(3, "k", "+b");
    net.flow();
    net.commit_as(2, layer, Operation::Set { key: key("k"), value: text("answer") });
    net.rest();
    assert_eq!(shown(&mut net), ["answer+b"; 3]);
}

#[test]
fn concurrent_layers_are_taken_back_in_any_order_without_disturbing_each_other() {
    for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1], [2, 1, 3]] {
        let mut net = group(3);
        let layers: Vec<u64> =
            [1, 2, 3].map(|id| (id, net.lay(id, "k", &format!("+{id}")), net.flow()).1).into();
        assert_eq!(shown(&mut net), ["base+1+2+3"; 3]);
        let mut left = vec![1, 2, 3];
        for id in order {
            net.take_back(id, layers[id as usize - 1]);
            left.retain(|other| *other != id);
            let expected = left.iter().fold("base".to_owned(), |text, id| format!("{text}+{id}"));
            assert_eq!(net.node(id).value("k"), Some(expected.clone()), "gone at once where it was laid");
            net.flow();
            assert_eq!(shown(&mut net), vec![expected; 3]);
        }
    }
}

#[test]
fn a_value_from_the_upstream_or_a_fetch_that_knows_nothing_of_a_layer_leaves_it_on_top() {
    let mut net = group(3);
    net.lay(2, "k", "+a");
    net.flow();
    net.publish(vec![set("k", "pushed")]);
    net.flow();
    assert_eq!(shown(&mut net), ["pushed+a"; 3]);
    let install =
        QueryWish::Install { key: key("k"), value: text("old"), version: Version::None, trace: Trace::NONE };
    net.hub_in(hub::Input::Query(install));
    net.flow();
    assert_eq!(shown(&mut net), ["old+a"; 3]);
    for node in net.nodes.values() {
        let bare = |(_, value): &&(Key, String)| !value.ends_with("+a");
        assert_eq!(node.folded.iter().find(bare), None, "no base showed through");
    }
    // That it was found right again moves its time only.
    let touch = QueryWish::Touch { key: key("k"), trace: Trace::NONE };
    net.hub_in(hub::Input::Query(touch));
    net.flow();
    assert_eq!(shown(&mut net), ["old+a"; 3]);
}

#[test]
fn a_fetch_that_began_before_a_commit_is_told_to_the_engine_as_overtaken() {
    let mut net = group(2);
    let layer = net.lay(2, "k", "+a");
    net.flow();
    net.facts.clear();
    net.commit(2, layer, "k", "+a");
    net.rest();
    let wrote =
        |fact: &hub::QueryFact| matches!(fact, hub::QueryFact::Changed { by: hub::Writer::Write, .. });
    assert_eq!(net.facts.iter().filter(|fact| wrote(fact)).count(), 1);
}

#[test]
fn a_key_without_a_value_has_layers_for_those_who_come_later_too() {
    let mut net = Net::group(resumable(), 2);
    net.lay(2, "new", "+a");
    net.flow();
    net.add(3);
    net.subscribe(3, &["new"], false);
    net.join(3);
    assert_eq!(net.node(3).value("new").as_deref(), Some("+a"), "in the first snapshot");
    net.subscribe(1, &["new"], false);
    net.flow();
    assert_eq!(net.node(1).value("new").as_deref(), Some("+a"), "in that of a later subscription");
}

#[test]
fn layers_survive_a_takeover_in_their_order() {
    for heir in [2, 3, 4, 5] {
        let mut net = group(5);
        // Session 5 lays first but is heard last.
        let first = net.lay(5, "k", "+5");
        net.flow();
        net.lay(3, "k", "+3");
        net.flow();
        net.lay(4, "k", "+4");
        net.flow();
        assert_eq!(shown(&mut net), ["base+5+3+4"; 5]);
        net.rest();
        net.fail_over(heir);
        assert_eq!(shown(&mut net), ["base+5+3+4"; 4], "session {heir} leads");
        for (id, node) in &net.nodes {
            let whole = |(_, value): &&(Key, String)| value.contains("+5") && value.contains("+3");
            assert!(
                node.folded.iter().skip_while(|seen| !whole(seen)).all(|seen| whole(&seen)),
                "session {id}: {:?}",
                node.folded
            );
        }
        net.take_back(5, first);
        net.rest();
        assert_eq!(shown(&mut net), ["base+3+4"; 4]);
    }
}

#[test]
fn a_survivor_keeps_showing_a_layer_whose_session_comes_back_later() {
    let mut net = group(6);
    for id in [4, 5] {
        net.subscribe(id, &["other"], false);
    }
    net.lay(5, "other", "+a");
    net.rest();
    net.kill_owner();
    assert!(!net.node(6).follower.is_complete(), "it was no heir, and does not follow the key");
    net.take_over(6);
    net.link(4);
    net.flow();
    assert_eq!(net.layers("other"), [(5, "+a".to_owned())], "session 4 told it");
    assert!(net.node(4).folded.iter().all(|(of, value)| *of != key("other") || value == "+a"));
    net.join_all();
    net.rest();
    assert_eq!(net.layers("other").len(), 1);
}

#[test]
fn a_commit_that_a_dead_owner_did_not_answer_is_in_the_base_once() {
    let mut net = group(3);
    let layer = net.lay(2, "k", "+a");
    net.rest();
    // The answer gets lost, the effect does not.
    net.node(2).deaf = true;
    let token = net.commit(2, layer, "k", "+a");
    net.pass(Duration::from_millis(120));
    net.fail_over(3);
    assert_eq!(shown(&mut net), ["base+a"; 2]);
    assert_eq!(base(&net), "base+a");
    assert!(matches!(net.outcome(2, token), Some(OpOutcome::Applied { .. })));
    assert_eq!(net.layers("k"), []);
}

#[test]
fn layers_of_a_session_that_is_gone_are_taken_back() {
    // It leaves.
    let mut net = group(3);
    net.lay(3, "k", "+a");
    net.flow();
    net.follower_in(3, follower::Input::Leave);
    net.flow();
    assert_eq!((net.layers("k"), net.node(2).value("k").as_deref()), (vec![], Some("base")));
    // It is found dead.
    let mut net = group(3);
    net.lay(3, "k", "+a");
    net.flow();
    net.cut(3);
    net.nodes.remove(&3);
    net.flow();
    assert_eq!(shown(&mut net), ["base+a"; 2], "it may come back");
    net.find_dead();
    net.flow();
    assert_eq!((shown(&mut net), net.count("layers_taken_back")), (vec!["base".to_owned(); 2], 1));
    // It is silent, and comes back all the same.
    let mut net = group(3);
    net.lay(3, "k", "+a");
    net.flow();
    net.cut(3);
    net.pass(MEMBER_SILENCE + Duration::from_secs(1));
    assert_eq!(net.node(2).value("k").as_deref(), Some("base"));
    net.join(3);
    net.rest();
    assert_eq!(shown(&mut net), ["base+a"; 3], "it says that its layer is open");
}

#[test]
fn layers_of_a_session_that_died_with_the_owner_are_taken_back_by_the_next_one() {
    let mut net = group(4);
    net.lay(1, "k", "+1");
    net.lay(4, "k", "+4");
    net.rest();
    net.cut(4);
    net.nodes.remove(&4);
    net.fail_over(2);
    assert_eq!(shown(&mut net), ["base"; 2]);
    assert_eq!(net.layers("k"), []);
}

#[test]
fn an_owner_without_a_list_waits_for_the_sessions_of_layers_as_long_as_for_any() {
    let mut net = group(4);
    net.lay(4, "k", "+4");
    net.rest();
    net.cut(4);
    net.nodes.remove(&4);
    net.kill_owner();
    net.take_over_knowing(2, None);
    net.join_all();
    net.rest();
    assert_eq!(shown(&mut net), ["base+4"; 2]);
    net.pass(MEMBER_SILENCE);
    assert_eq!(shown(&mut net), ["base"; 2]);
}

#[test]
fn what_a_session_ended_while_it_had_no_link_is_ended_by_its_next_one() {
    let mut net = group(3);
    let layer = net.lay(3, "k", "+a");
    net.lay(3, "k", "+b");
    net.flow();
    net.cut(3);
    net.take_back(3, layer);
    let late = net.lay(3, "k", "+c");
    assert_eq!(net.node(3).value("k").as_deref(), Some("base+b+c"));
    assert_eq!(net.node(2).value("k").as_deref(), Some("base+a+b"));
    net.join(3);
    net.rest();
    assert_eq!(shown(&mut net), ["base+b+c"; 3]);
    net.take_back(3, late);
    net.flow();
    assert_eq!(shown(&mut net), ["base+b"; 3]);
}

#[test]
fn a_commit_that_does_not_fit_takes_the_layer_back() {
    let mut net = group(3);
    let layer = net.lay(2, "k", "+a");
    net.flow();
    let token = net.commit(2, layer, "k", "!");
    net.rest();
    assert!(matches!(net.outcome(2, token), Some(OpOutcome::Rejected(_))));
    assert_eq!((shown(&mut net), net.layers("k")), (vec!["base".to_owned(); 3], vec![]));
    let again = net.commit(2, layer, "k", "+a");
    assert!(matches!(net.outcome(2, again), Some(OpOutcome::Rejected(_))), "it has ended");
}

#[test]
fn operations_are_sent_again_in_the_order_in_which_they_were_made() {
    let mut net = group(3);
    let layer = net.lay(2, "k", "+a");
    net.rest();
    net.cut(2);
    net.set_op(2, "k", "new");
    net.commit(2, layer, "k", "+a");
    net.join(2);
    net.rest();
    assert_eq!(base(&net), "new+a", "the operation of the layer has the lower number");
}

#[test]
fn a_handover_carries_layers_and_one_that_fails_loses_none() {
    let mut net = group(3);
    net.rest();
    net.hub_in(hub::Input::Drain { to: session(2) });
    net.rest();
    let drained = |effect: &hub::Effect| matches!(effect, hub::Effect::Drained { .. });
    assert!(net.effects.iter().any(drained), "the heir has everything");
    let layer = net.lay(3, "k", "+a");
    net.lay(3, "k", "+b");
    net.take_back(3, layer);
    net.flow();
    assert_eq!(shown(&mut net), ["base", "base", "base+b"], "nothing changes any more");
    net.hub_in(hub::Input::Resume);
    net.rest();
    assert_eq!(shown(&mut net), ["base+b"; 3]);
}

#[test]
fn a_slow_session_gets_the_layers_of_a_key_with_its_value() {
    let mut net = group(3);
    let layer = net.lay(2, "k", "+a");
    let other = net.lay(2, "k", "+b");
    net.flow();
    net.node(3).blocked = true;
    for n in 0..LINK_QUEUE_BURST * LINK_QUEUE_FRAMES + 2 {
        net.publish(vec![set("k", &n.to_string())]);
    }
    net.flow();
    net.commit(2, layer, "k", "+a");
    net.take_back(2, other);
    net.lay(2, "k", "+c");
    net.flow();
    assert!(net.count("follower_conflated") > 0, "it is slow");
    net.node(3).blocked = false;
    net.node(3).folded.clear();
    net.rest();
    let expected = net.node(2).value("k").unwrap();
    assert!(expected.ends_with("+a+c"), "{expected}");
    let seen: Vec<String> = net.node(3).folded.iter().map(|(_, value)| value.clone()).collect();
    assert_eq!(seen.last(), Some(&expected));
    assert!(seen.iter().all(|value| value.matches("+a").count() <= 1), "{seen:?}");
}

#[test]
fn a_build_that_knows_no_layers_gets_none_and_leads_without_them() {
    let mut net = group(2);
    net.add(3);
    net.node(3).program.features = Features::NONE;
    net.subscribe(3, &["k"], true);
    net.join(3);
    net.rest();
    let layer = net.lay(2, "k", "+a");
    net.rest();
    assert_eq!(shown(&mut net), ["base+a", "base+a", "base"]);
    net.fail_over(3);
    assert_eq!(shown(&mut net), ["base+a", "base"], "its own session shows it");
    let token = net.node(2).token();
    net.follower_in(2, follower::Input::Ask { token, ask: Ask::Layers { after: None }, trace: Trace::NONE });
    assert!(
        matches!(net.node(2).answers.last(), Some((_, Answer::Refused(_)))),
        "what it cannot answer it is not asked"
    );
    net.commit(2, layer, "k", "+a");
    net.rest();
    assert_eq!(shown(&mut net), ["base+a"; 2], "an operation like any other");
    assert!(net.nodes.values().all(|node| node.broken.is_none()) && net.count("peer_refused") == 0);
}

#[test]
fn an_owner_tells_how_many_layers_lie_over_each_key() {
    let mut net = group(2);
    net.lay(2, "k", "+a");
    net.lay(1, "k", "+b");
    net.lay(2, "other", "+c");
    net.flow();
    let token = net.node(2).token();
    net.follower_in(2, follower::Input::Ask { token, ask: Ask::Layers { after: None }, trace: Trace::NONE });
    net.flow();
    let keys = vec![(key("k"), 2), (key("other"), 1)];
    assert_eq!(net.node(2).answers.last(), Some(&(token, Answer::Layers { keys, more: false })));
}

#[test]
fn as_many_layers_as_may_be_lie_over_a_key_and_one_more_shows_nowhere() {
    let mut net = group(3);
    let first = net.lay(2, "k", "+");
    for _ in 1..LAYERS_MAX {
        net.lay(2, "k", "+");
    }
    net.flow();
    assert_eq!((net.layers("k").len(), net.count("limit_reached")), (LAYERS_MAX, 0));
    let full = shown(&mut net);
    let more = net.lay(3, "k", "+more");
    net.flow();
    assert_eq!((shown(&mut net), net.count("limit_reached")), (full, 1), "not even where it was laid");
    net.take_back(2, first);
    net.flow();
    net.commit(3, more, "k", "+more");
    net.rest();
    assert_eq!(base(&net), "base+more", "its operation is none the worse");
}

#[test]
fn patches_over_a_key_take_as_many_bytes_as_may_be_and_not_one_more() {
    let mut net = group(2);
    let half = "x".repeat(LAYERS_KEY_BYTES / 2);
    net.lay(2, "k", &half);
    net.lay(2, "k", &half);
    net.flow();
    assert_eq!((net.layers("k").len(), net.count("limit_reached")), (2, 0));
    net.lay(2, "k", "x");
    net.flow();
    assert_eq!((net.layers("k").len(), net.count("limit_reached")), (2, 1));
    let token = net.node(2).token();
    let patch = text(&"x".repeat(LAYERS_KEY_BYTES + 1));
    net.follower_in(2, follower::Input::Lay { token, key: key("k"), patch });
    assert!(matches!(net.outcome(2, token), Some(OpOutcome::Rejected(_))), "it would fit nowhere");
}

#[test]
fn all_patches_take_as_many_bytes_as_may_be_and_not_one_more() {
    let mut net = group(3);
    let whole = "x".repeat(LAYERS_KEY_BYTES);
    let keys = LAYERS_BYTES / LAYERS_KEY_BYTES;
    for n in 0..keys {
        net.lay(2 + n as u64 % 2, &format!("k{n}"), &whole);
    }
    net.flow();
    assert_eq!(net.count("limit_reached"), 0);
    let more = net.lay(3, "k", "x");
    net.flow();
    assert_eq!((net.count("limit_reached"), net.layers("k").len()), (1, 0));
    net.take_back(3, more);
    let other = net.node(2).follower.open_layers().next().unwrap().0.seq;
    net.take_back(2, other);
    net.lay(3, "k", "x");
    net.flow();
    assert_eq!((net.count("limit_reached"), net.layers("k").len()), (1, 1), "what has ended takes none");
}

#[test]
fn nobody_lays_layers_for_another_session() {
    let mut net = group(3);
    let layer = Layer { id: OpId { session: session(2), seq: 9 }, at: Mark::ZERO, patch: text("+x") };
    net.send_up(3, ToHub::Layers(vec![Layered { key: key("k"), layers: vec![layer] }]));
    net.flow();
    assert_eq!((net.layers("k"), net.count("peer_refused")), (vec![], 1));
}

#[test]
fn the_state_of_a_query_and_its_layers_do_not_disturb_each_other() {
    let mut net = group(2);
    net.lay(2, "k", "+a");
    let state = QueryState { fetch: FetchStatus::Fetching, ..QueryState::default() };
    net.hub_in(hub::Input::Query(QueryWish::Show { key: key("k"), state: state.clone() }));
    net.flow();
    assert_eq!(net.node(1).states.get(&key("k")), Some(&state));
    assert_eq!(shown(&mut net), ["base+a"; 2]);
}
