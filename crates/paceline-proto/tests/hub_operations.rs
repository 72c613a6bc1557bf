//! Volatile operations: acknowledged when an heir holds them, applied once whoever owns the group next.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod hub_net;

use std::time::Duration;

use hub_net::*;
use paceline_proto::{
    event::Event,
    hub,
    id::*,
    limits::{KEY_MAX, MEMBER_SILENCE, OFFER_WAIT, PING_INTERVAL, VALUE_MAX},
    message::*,
    program::Program,
};

fn applied(volatile: bool) -> impl Fn(Option<OpOutcome>) -> bool {
    move |outcome| matches!(outcome, Some(OpOutcome::Applied { volatile: v, .. }) if v == volatile)
}

fn value(net: &Net, name: &str) -> Option<String> {
    net.hub().get(&key(name)).map(|held| String::from_utf8(held.value.to_vec()).unwrap())
}

#[test]
fn a_set_is_acknowledged_by_an_heir_and_seen_by_all() {
    let mut net = Net::group(resumable(), 4);
    let token = net.set_op(4, "k", "1");
    net.flow();
    assert!(applied(false)(net.outcome(4, token)));
    for id in 1..=4 {
        assert_eq!(net.node(id).value("k").as_deref(), Some("1"), "session {id}");
    }
}

#[test]
fn without_an_heir_the_answer_says_volatile() {
    let mut net = Net::group(resumable(), 1);
    let token = net.set_op(1, "k", "1");
    net.flow();
    assert!(applied(true)(net.outcome(1, token)));
    assert_eq!(net.node(1).value("k").as_deref(), Some("1"));
}

#[test]
fn an_heir_counts_only_after_it_acknowledged_its_snapshot() {
    let mut net = Net::group(resumable(), 1);
    net.publish(vec![set("k", "0")]);
    net.add(2);
    net.subscribe(2, &["k"], true);
    net.link(2);
    // It joins and is appointed, but its acknowledgements stay on the way.
    net.write(2);
    net.step_down(2, 99);
    net.step_up(2, 99);
    net.node(2).mute = true;
    net.flow();
    assert!(net.node(2).heir);
    assert!(!net.is_current_heir(2));
    let token = net.set_op(1, "k", "1");
    net.flow();
    assert!(applied(true)(net.outcome(1, token)));
    net.node(2).mute = false;
    net.flow();
    assert!(net.is_current_heir(2));
    let token = net.set_op(1, "k", "2");
    net.flow();
    assert!(applied(false)(net.outcome(1, token)));
}

#[test]
fn a_batch_with_an_operation_asks_the_heir_to_acknowledge_at_once() {
    let mut net = Net::group(resumable(), 3);
    net.batches.clear();
    net.set_op(3, "k", "1");
    net.flow();
    let urgent = |id: u64| net.batches.iter().any(|(to, header, _)| *to == id && header.ack_now);
    assert!(urgent(2) && urgent(3));
    assert!(!urgent(1));
}

#[test]
fn an_heir_that_dies_between_write_and_acknowledgement_acknowledged_nothing() {
    let mut net = Net::group(resumable(), 2);
    assert!(net.is_current_heir(2));
    net.node(2).deaf = true;
    let token = net.set_op(1, "k", "1");
    net.flow();
    // Written to its socket, but not read.
    assert!(net.on_the_way(2) > 0);
    assert_eq!(net.outcome(1, token), None);
    net.cut(2);
    net.flow();
    assert!(applied(true)(net.outcome(1, token)));
}

#[test]
fn an_operation_an_heir_acknowledged_survives_the_owner() {
    let mut net = Net::group(resumable(), 4);
    net.node(3).deaf = true;
    net.node(4).deaf = true;
    let token = net.merge_op(2, "k", "a");
    net.flow();
    assert!(applied(false)(net.outcome(2, token)));
    // Session 3 never heard of it and takes over.
    net.kill_owner();
    net.take_over(3);
    net.find_dead();
    net.join_all();
    net.rest();
    assert_eq!(value(&net, "k").as_deref(), Some("a"));
    for id in 2..=4 {
        assert_eq!(net.node(id).value("k").as_deref(), Some("a"), "session {id}");
    }
}

#[test]
fn a_merge_whose_answer_was_lost_is_not_applied_again() {
    let mut net = Net::group(resumable(), 3);
    let token = net.merge_op(3, "k", "a");
    net.step_up(3, 1);
    for id in 1..=2 {
        net.write(id);
        net.step_down(id, 99);
        net.step_up(id, 99);
    }
    // The heir acknowledged; the answer never reaches the caller.
    net.node(3).deaf = true;
    net.fail_over(2);
    assert_eq!(value(&net, "k").as_deref(), Some("a"));
    assert!(net.outcome(3, token).is_some());
    // The same over a new link to the same owner.
    let token = net.merge_op(3, "k", "b");
    net.step_up(3, 1);
    net.cut(3);
    net.join(3);
    net.rest();
    assert_eq!(value(&net, "k").as_deref(), Some("ab"));
    assert!(net.outcome(3, token).is_some());
}

#[test]
fn an_operation_only_one_survivor_holds_is_applied_by_the_new_owner() {
    let mut net = Net::group(resumable(), 3);
    net.publish(vec![set("k", "0")]);
    net.rest();
    net.node(2).deaf = true;
    net.merge_op(3, "k", "a");
    net.flow();
    net.kill_owner();
    net.take_over(2);
    net.find_dead();
    // Meanwhile the new owner merged on what it had.
    net.flow();
    net.merge_op(2, "k", "b");
    net.flow();
    assert_eq!(value(&net, "k").as_deref(), Some("0b"));
    net.join_all();
    net.rest();
    let both = value(&net, "k").unwrap();
    assert!(both == "0ba" || both == "0ab", "{both}");
    assert!(net.events.contains(&Event::OperationAdopted { from: session(3) }));
}

#[test]
fn a_late_set_goes_below_merges_that_came_after_it_and_gives_way_to_a_later_set() {
    for later_set in [false, true] {
        let mut net = Net::group(resumable(), 3);
        net.publish(vec![set("k", "0")]);
        net.rest();
        net.node(2).deaf = true;
        let token = net.set_op(3, "k", "acknowledged");
        net.flow();
        assert!(applied(false)(net.outcome(3, token)));
        net.kill_owner();
        net.take_over(2);
        net.find_dead();
        net.flow();
        if later_set {
            net.set_op(2, "k", "later");
        } else {
            net.merge_op(2, "k", "+");
        }
        net.flow();
        net.join_all();
        net.rest();
        let expected = if later_set { "later" } else { "acknowledged+" };
        assert_eq!(value(&net, "k").as_deref(), Some(expected));
        assert_eq!(net.node(3).value("k").as_deref(), Some(expected));
    }
}

#[test]
fn an_owner_that_may_lack_the_value_waits_for_the_offers() {
    let mut net = Net::group(resumable(), 3);
    net.publish(vec![Change::Set { key: key("k"), value: text("5"), version: Version::Number(5) }]);
    net.rest();
    let list = net.node(2).members.clone();
    net.kill_owner();
    net.add(9);
    net.subscribe(9, &["k"], false);
    net.take_over_knowing(9, list);
    net.find_dead();
    net.flow();
    let token = net.set_op(9, "k", "mine");
    net.flow();
    assert_eq!(net.outcome(9, token), None);
    net.join_all();
    net.rest();
    assert!(net.outcome(9, token).is_some());
    // It inherited version 5, so it is not old news beside the survivors' value.
    let held = net.hub().get(&key("k")).unwrap();
    assert_eq!((held.value.as_ref(), &held.place.version), (&b"mine"[..], &Version::Number(5)));
    assert_eq!(net.node(3).value("k").as_deref(), Some("mine"));
}

#[test]
fn the_wait_for_offers_ends() {
    let mut net = Net::group(resumable(), 2);
    let list = net.node(2).members.clone();
    net.kill_owner();
    net.add(9);
    net.take_over_knowing(9, list);
    net.flow();
    let token = net.set_op(9, "k", "mine");
    net.pass(OFFER_WAIT - Duration::from_nanos(1));
    assert_eq!(net.outcome(9, token), None);
    net.pass(Duration::from_nanos(1));
    assert!(applied(true)(net.outcome(9, token)));
}

#[test]
fn a_value_that_comes_after_the_wait_goes_below_what_was_made_of_nothing() {
    for merge in [false, true] {
        let mut net = Net::group(resumable(), 3);
        net.publish(vec![Change::Set { key: key("k"), value: text("5"), version: Version::Number(5) }]);
        let token = net.merge_op(3, "k", "a");
        net.rest();
        assert!(applied(false)(net.outcome(3, token)));
        let list = net.node(2).members.clone();
        net.kill_owner();
        net.add(9);
        net.take_over_knowing(9, list);
        net.pass(OFFER_WAIT);
        if merge {
            net.merge_op(9, "k", "b");
        } else {
            net.set_op(9, "k", "mine");
        }
        net.flow();
        net.join_all();
        net.rest();
        let expected = if merge { "5ab" } else { "mine" };
        assert_eq!(net.node(3).value("k").as_deref(), Some(expected));
        let held = net.hub().get(&key("k")).unwrap();
        assert_eq!((held.value.as_ref(), &held.place.version), (expected.as_bytes(), &Version::Number(5)));
    }
}

#[test]
fn a_volatile_set_keeps_the_servers_version_and_the_next_version_wins() {
    let versioned =
        |value: &str, n| Change::Set { key: key("k"), value: text(value), version: Version::Number(n) };
    let mut net = Net::group(resumable(), 2);
    net.publish(vec![versioned("five", 5)]);
    net.set_op(2, "k", "mine");
    net.flow();
    assert_eq!(net.node(2).value("k").as_deref(), Some("mine"));
    net.publish(vec![versioned("four", 4)]);
    net.flow();
    assert_eq!(net.node(2).value("k").as_deref(), Some("mine"));
    assert_eq!(net.hub().stats().old_versions, 1);
    net.publish(vec![versioned("six", 6)]);
    net.flow();
    assert_eq!(net.node(2).value("k").as_deref(), Some("six"));
}

#[test]
fn one_version_with_two_contents_is_a_clash_that_leaves_the_value_stale() {
    let versioned =
        |value: &str| Change::Set { key: key("k"), value: text(value), version: Version::Number(5) };
    let mut net = Net::group(resumable(), 2);
    net.publish(vec![versioned("one")]);
    net.publish(vec![versioned("one")]);
    net.flow();
    assert_eq!(
        net.hub().last().offset,
        Offset(2),
        "equal news is no news; the second frame appoints the heir"
    );
    net.publish(vec![versioned("two")]);
    net.flow();
    assert_eq!(net.count("version_clash"), 1);
    let held = net.hub().get(&key("k")).unwrap();
    assert!(held.invalidated && held.value == "one");
    assert!(net.nodes[&2].follower.get(&key("k")).unwrap().invalidated);
    // The same again is a confirmation now.
    net.publish(vec![versioned("one")]);
    net.flow();
    assert!(!net.hub().get(&key("k")).unwrap().invalidated);
}

#[test]
fn a_compare_and_set_wins_on_the_place_it_saw_and_loses_on_any_other() {
    let mut net = Net::group(resumable(), 2);
    let compare = |base, value: &str| Operation::CompareSet { key: key("k"), base, value: text(value) };
    let first = net.op(2, compare(None, "1"));
    net.flow();
    assert!(applied(false)(net.outcome(2, first)));
    let seen = net.node(2).follower.get(&key("k")).map(|held| held.place.clone());
    let second = net.op(2, compare(seen.clone(), "2"));
    let third = net.op(2, compare(seen, "3"));
    let fourth = net.op(2, compare(None, "4"));
    net.flow();
    assert!(applied(false)(net.outcome(2, second)));
    assert_eq!(net.outcome(2, third), Some(OpOutcome::Conflict));
    assert_eq!(net.outcome(2, fourth), Some(OpOutcome::Conflict));
    assert_eq!(value(&net, "k").as_deref(), Some("2"));
}

#[test]
fn what_does_not_fit_is_rejected_and_changes_nothing() {
    let mut net = Net::group(resumable(), 2);
    let patch = net.merge_op(2, "k", "!");
    let long = net.op(2, Operation::Set { key: Key(vec![0; KEY_MAX + 1].into()), value: text("1") });
    let fits = net.op(2, Operation::Set { key: key("big"), value: vec![b'x'; VALUE_MAX].into() });
    let grows = net.merge_op(2, "big", "y");
    net.flow();
    for token in [patch, long, grows] {
        assert!(matches!(net.outcome(2, token), Some(OpOutcome::Rejected(_))));
    }
    assert!(applied(false)(net.outcome(2, fits)));
    assert_eq!(value(&net, "k"), None);
}

#[test]
fn an_invalidation_marks_what_lies_under_its_key() {
    let mut net = Net::group(resumable(), 2);
    net.subscribe(2, &["list", "list/1", "other"], false);
    for name in ["list", "list/1", "other"] {
        net.publish(vec![set(name, "1")]);
    }
    net.flow();
    let stale = |net: &Net, name: &str| {
        let there = net.nodes[&2].follower.get(&key(name)).unwrap().invalidated;
        assert_eq!(net.hub().get(&key(name)).unwrap().invalidated, there);
        there
    };
    net.op(2, Operation::Invalidate { key: key("list"), exact: true });
    net.flow();
    assert_eq!([stale(&net, "list"), stale(&net, "list/1"), stale(&net, "other")], [true, false, false]);
    net.op(2, Operation::Invalidate { key: key("list"), exact: false });
    net.flow();
    assert_eq!([stale(&net, "list"), stale(&net, "list/1"), stale(&net, "other")], [true, true, false]);
    net.publish(vec![set("list/1", "1")]);
    net.flow();
    assert!(!stale(&net, "list/1"));
}

#[test]
fn the_stable_place_waits_for_the_caller_to_have_its_answer() {
    let mut net = Net::group(resumable(), 3);
    // The caller acknowledges frames, but its answer stays on the way.
    net.merge_op(3, "k", "a");
    net.step_up(3, 1);
    let op_at = net.hub().last();
    for id in 1..=2 {
        net.write(id);
        net.step_down(id, 99);
        net.step_up(id, 99);
    }
    net.write(3);
    // Everything but the answer reaches it.
    let answer = net.on_the_way(3);
    assert!(answer > 0);
    net.node(3).deaf = true;
    net.pass(PING_INTERVAL * 2);
    assert!(net.hub().stable() < op_at);
    net.node(3).deaf = false;
    net.rest();
    // A later frame, acknowledged, shows that the answer arrived.
    net.publish(vec![set("k", "0")]);
    net.rest();
    assert!(net.hub().stable() >= op_at);
}

#[test]
fn the_stable_place_counts_members_until_they_leave_or_their_silence_ends() {
    let mut net = Net::group(resumable(), 4);
    net.publish(vec![set("k", "1")]);
    net.rest();
    let before = net.hub().stable();
    assert_eq!(before, net.hub().last());
    net.cut(4);
    net.publish(vec![set("k", "2")]);
    net.rest();
    assert!(net.hub().stable() < net.hub().last());
    assert!(net.hub().members().iter().any(|member| member.session == session(4) && !member.joined));
    // Dead: its lock is free.
    net.nodes.remove(&4);
    net.find_dead();
    net.rest();
    assert_eq!(net.hub().stable(), net.hub().last());
    // Silent.
    net.cut(3);
    net.publish(vec![set("k", "3")]);
    net.pass(MEMBER_SILENCE - PING_INTERVAL * 2);
    assert!(net.hub().stable() < net.hub().last());
    net.pass(PING_INTERVAL * 4);
    assert_eq!(net.hub().stable(), net.hub().last());
    // Gone for good.
    net.follower_in(2, paceline_proto::follower::Input::Leave);
    net.flow();
    assert_eq!(net.hub().members().len(), 1);
}

#[test]
fn a_reign_that_follows_its_own_carries_everything_over() {
    let mut net = Net::group(resumable(), 3);
    let token = net.set_op(3, "k", "1");
    net.rest();
    assert!(applied(false)(net.outcome(3, token)));
    let carried = net.hub().carry();
    assert!(carried.complete);
    let mut out = Vec::new();
    let begin = hub::Begin {
        epoch: Epoch(2),
        session: session(1),
        program: Program::new("", 1),
        carried,
        members: Some(net.hub().members()),
        channels: vec![resumable()],
    };
    struct None_;
    impl hub::Fold for None_ {
        fn fold(&self, _: Option<&[u8]>, _: &[u8]) -> Result<bytes::Bytes, String> {
            Err(String::new())
        }
        fn hash(&self, _: &[u8]) -> u64 {
            0
        }
    }
    let hub = hub::Hub::new(begin, Box::new(None_), net.now, &mut out);
    assert_eq!(hub.get(&key("k")).unwrap().value, "1");
}

/// Sessions 2 and 3, both heirs, hold a value that nobody else is subscribed to; their caller has its answer.
fn held_by_heirs() -> Net {
    let mut net = Net::group(resumable(), 5);
    let token = net.merge_op(4, "aside", "<1>");
    net.rest();
    assert!(matches!(net.outcome(4, token), Some(OpOutcome::Applied { volatile: false, .. })));
    net
}

#[test]
fn settled_operations_that_a_late_survivor_brings_are_told_to_those_who_joined_before() {
    let mut net = held_by_heirs();
    net.add(6);
    net.kill_owner();
    net.take_over_knowing(6, None);
    net.link(5);
    net.pass(OFFER_WAIT);
    net.rest();
    assert!(net.is_current_heir(5));
    let knows = |net: &Net| {
        let applied = net.nodes[&5].follower.carry().applied;
        applied.iter().any(|of| of.session == session(4) && of.runs == [(1, 1)])
    };
    assert!(!knows(&net));
    net.link(2);
    net.rest();
    assert!(knows(&net) && net.is_current_heir(5));
}

#[test]
fn a_survivor_that_leaves_before_it_gave_what_was_wanted_is_awaited() {
    let mut net = held_by_heirs();
    net.kill_owner();
    net.nodes.remove(&3);
    // No heir, so that the value is unknown here.
    net.take_over(5);
    net.find_dead();
    net.link(4);
    net.flow();
    net.link(2);
    net.write(2);
    net.step_down(2, 1);
    // Its offer arrives, the values that were asked for do not.
    while net.step_up(2, 1) > 0 {}
    net.cut(2);
    net.merge_op(4, "aside", "<2>");
    net.pass(OFFER_WAIT);
    net.rest();
    net.link(2);
    net.rest();
    assert_eq!(net.hub().get(&key("aside")).map(|held| held.value.clone()), Some(text("<1><2>")));
}

#[test]
fn a_list_from_an_owner_that_began_without_one_is_not_whole() {
    let mut net = held_by_heirs();
    net.add(6);
    net.add(7);
    net.kill_owner();
    for id in [3, 4, 5] {
        net.nodes.remove(&id);
    }
    // A newcomer leads for a moment; another one hears its list, on which the former heir is not.
    net.take_over_knowing(6, None);
    net.link(7);
    net.flow();
    assert!(net.nodes[&7].follower.is_synced());
    net.kill_owner();
    net.take_over(7);
    net.find_dead();
    net.merge_op(7, "aside", "<2>");
    net.pass(OFFER_WAIT);
    net.link(2);
    net.rest();
    assert_eq!(net.hub().get(&key("aside")).map(|held| held.value.clone()), Some(text("<1><2>")));
}

#[test]
fn an_archive_is_held_until_a_current_heir_has_it() {
    let mut net = held_by_heirs();
    let archived = |net: &Net, id: u64| net.nodes[&id].follower.carry().archive.is_some();
    net.kill_owner();
    net.take_over(5);
    net.find_dead();
    net.link(2);
    net.flow();
    assert!(net.nodes[&2].follower.is_synced() && archived(&net, 2), "session 3 and 4 are awaited");
    net.join_all();
    net.rest();
    for id in 2..=4 {
        assert!(!archived(&net, id), "session {id}");
    }
    let held =
        |net: &Net, id: u64| net.nodes[&id].follower.carry().held.iter().any(|held| held.key == key("aside"));
    assert_eq!((2..=4).filter(|id| held(&net, *id)).count(), paceline_proto::limits::HEIRS);
}

#[test]
fn an_answer_that_got_lost_while_draining_does_not_make_an_operation_held() {
    let mut net = Net::group(resumable(), 1);
    net.add(2);
    net.node(2).rank = Rank::Observer;
    net.join(2);
    net.rest();
    net.node(2).deaf = true;
    let token = net.set_op(2, "aside", "1");
    net.flow();
    net.hub_in(hub::Input::Drain { to: session(2) });
    net.drop_down(2);
    net.cut(2);
    net.node(2).deaf = false;
    net.link(2);
    net.rest();
    assert_eq!(net.outcome(2, token), None);
    net.hub_in(hub::Input::Resume);
    net.rest();
    assert!(matches!(net.outcome(2, token), Some(OpOutcome::Applied { volatile: true, .. })));
}
