//! A new owner: nobody misses, repeats or reorders an event, whoever heard what before the old owner died.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod hub_net;

use std::time::Duration;

use hub_net::*;
use paceline_proto::{
    event::Event,
    follower, hub,
    id::*,
    limits::{MEMBER_SILENCE, OFFER_WAIT},
    message::*,
};

fn all(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

/// A group in which everybody heard event 1.
fn begun(spec: hub::ChannelSpec, n: u64) -> Net {
    let mut net = Net::group(spec, n);
    net.publish_event();
    net.rest();
    net
}

/// Enough to push everything older out of every ring, with nobody behind.
fn publish_flowing(net: &mut Net, count: u64) {
    for _ in 0..count / 500 {
        net.publish_events(500);
        net.flow();
    }
    net.rest();
}

#[test]
fn everybody_hears_every_event_across_a_takeover() {
    let mut net = Net::group(resumable(), 4);
    net.publish_events(5);
    net.flow();
    net.kill_owner();
    net.publish_events(3);
    net.take_over(2);
    net.find_dead();
    net.join_all();
    net.publish_events(2);
    net.rest();
    for id in 2..=4 {
        assert_eq!(net.delivered_from(id, 1), all(1, 10), "session {id}");
    }
    assert_eq!(net.feed.opens.last(), Some(&Some(seq(5))));
    assert_eq!(net.count("gap_shown"), 0);
}

#[test]
fn an_up_to_date_heir_resumes_without_waiting_for_anybody() {
    let mut net = begun(resumable(), 3);
    assert!(net.is_current_heir(2));
    net.kill_owner();
    net.take_over(2);
    assert_eq!(net.feed.opens.last(), Some(&Some(seq(1))));
    net.publish_event();
    net.flow();
    assert_eq!(net.delivered_from(2, 1), all(1, 2));
}

#[test]
fn an_event_that_reached_one_survivor_reaches_all_from_the_upstream() {
    let mut net = begun(resumable(), 4);
    net.node(2).deaf = true;
    net.node(3).deaf = true;
    net.publish_event();
    net.flow();
    net.kill_owner();
    assert_eq!(net.delivered_from(4, 1), all(1, 2));
    net.take_over(2);
    net.find_dead();
    net.join_all();
    net.publish_event();
    net.rest();
    for id in 2..=4 {
        assert_eq!(net.delivered_from(id, 1), all(1, 3), "session {id}");
    }
}

#[test]
fn an_event_that_reached_one_survivor_is_pulled_where_the_upstream_cannot_resume() {
    let mut net = begun(unresumable(true), 4);
    net.node(2).deaf = true;
    net.node(3).deaf = true;
    net.publish_event();
    net.flow();
    net.kill_owner();
    net.take_over(2);
    net.find_dead();
    net.join_all();
    net.publish_event();
    net.rest();
    for id in 2..=4 {
        assert_eq!(net.delivered_from(id, 1), all(1, 3), "session {id}");
    }
    let pulled = net.events.iter().find(|event| matches!(event, Event::TailPulled { .. }));
    assert_eq!(pulled, Some(&Event::TailPulled { channel: FEED.into(), from: session(4), events: 1 }));
}

#[test]
fn newer_events_wait_for_the_tail_of_a_survivor() {
    let mut net = begun(unresumable(true), 3);
    net.node(2).deaf = true;
    net.publish_event();
    net.flow();
    net.kill_owner();
    net.take_over(2);
    net.find_dead();
    net.flow();
    // The upstream is connected and sends 3 before the survivor, who alone has 2, says anything.
    net.publish_event();
    net.flow();
    assert_eq!(net.delivered_from(2, 1), all(1, 1));
    net.join_all();
    net.rest();
    for id in 2..=3 {
        assert_eq!(net.delivered_from(id, 1), all(1, 3), "session {id}");
    }
}

#[test]
fn a_survivor_that_dies_while_it_hands_on_its_tail_is_replaced_by_the_next() {
    let mut net = begun(unresumable(true), 5);
    net.node(2).deaf = true;
    net.node(3).deaf = true;
    net.publish_event();
    net.flow();
    net.kill_owner();
    net.take_over(2);
    net.find_dead();
    net.flow();
    net.join(3);
    for id in 4..=5 {
        net.link(id);
        net.write(id);
        net.step_down(id, 1);
    }
    net.step_up(4, usize::MAX);
    // Session 4 was asked and is gone before it answers.
    net.cut(4);
    net.flow();
    net.find_dead();
    net.publish_event();
    net.pass(OFFER_WAIT * 3);
    for id in [2, 3, 5] {
        assert_eq!(net.delivered_from(id, 1), all(1, 3), "session {id}");
    }
}

#[test]
fn an_owner_that_missed_what_another_heard_resumes_at_the_lower_position() {
    let mut net = begun(resumable(), 4);
    // Nobody is an heir who takes over: session 4 listens to key 2 only, session 5 to key 1 only.
    net.join(5);
    net.subscribe(4, &["key2"], false);
    net.subscribe(5, &["key1"], false);
    net.rest();
    net.publish(vec![set("key1", "10")]);
    net.flow();
    net.node(5).deaf = true;
    net.publish(vec![set("key1", "11")]);
    net.publish(vec![set("key2", "12")]);
    net.flow();
    net.kill_owner();
    for id in 2..=3 {
        net.nodes.remove(&id);
    }
    assert_eq!(net.node(4).value("key2").as_deref(), Some("12"));
    net.take_over(4);
    net.find_dead();
    net.join_all();
    net.rest();
    assert_eq!(net.feed.opens.last(), Some(&Some(seq(2))));
    assert_eq!(net.node(5).value("key1").as_deref(), Some("11"));
    assert_eq!(net.node(4).value("key2").as_deref(), Some("12"));
    assert_eq!(net.hub().get(&key("key1")).unwrap().value, "11");
}

#[test]
fn a_late_offer_from_further_back_reopens_the_channel_there() {
    let mut net = begun(resumable(), 4);
    net.join(5);
    net.subscribe(5, &["key1"], true);
    net.rest();
    net.node(5).deaf = true;
    net.publish(vec![set("key1", "2"), event("2")]);
    net.publish_event();
    net.flow();
    net.kill_owner();
    for id in 2..=3 {
        net.nodes.remove(&id);
    }
    // Session 4 was no heir; session 5 comes after the time for offers.
    net.take_over(4);
    net.pass(OFFER_WAIT);
    assert_eq!(net.feed.opens.last(), Some(&Some(seq(3))));
    net.publish_event();
    net.flow();
    net.join_all();
    net.publish_event();
    net.rest();
    assert!(net.feed.opens.contains(&Some(seq(1))));
    assert_eq!(net.node(5).value("key1").as_deref(), Some("2"));
    for id in 4..=5 {
        assert_eq!(net.delivered_from(id, 2), all(2, 5), "session {id}");
    }
    assert_eq!(net.count("gap_shown"), 0);
}

#[test]
fn an_heir_without_its_snapshot_waits_for_the_first_offer() {
    let mut net = begun(resumable(), 2);
    net.join(3);
    // It has joined, but it heard of nothing: its snapshot never came.
    net.add(4);
    net.subscribe(4, &["k"], true);
    net.link(4);
    net.flow();
    net.pass(Duration::from_millis(300));
    net.kill_owner();
    let list = net.node(4).members.clone();
    net.nodes.remove(&4);
    net.add(4);
    net.subscribe(4, &["k"], true);
    net.take_over_knowing(4, list);
    net.find_dead();
    net.pass(OFFER_WAIT * 2);
    assert_eq!(net.feed.opens.last(), Some(&None), "the old owner's: nothing was opened since");
    assert_eq!(net.feed.opens.len(), 1);
    net.join(2);
    assert_eq!(net.feed.opens.last(), Some(&Some(seq(1))));
}

#[test]
fn an_owner_without_a_position_starts_at_now_when_nobody_remains() {
    let mut net = begun(resumable(), 2);
    net.kill_owner();
    let list = net.node(2).members.clone();
    net.nodes.remove(&2);
    net.add(9);
    net.subscribe(9, &["k"], true);
    net.take_over_knowing(9, list);
    net.pass(OFFER_WAIT * 2);
    assert_eq!(net.feed.opens.len(), 1);
    net.pass(MEMBER_SILENCE);
    assert_eq!(net.feed.opens.len(), 2);
    assert_eq!(net.feed.opens.last(), Some(&None));
    net.publish_event();
    net.flow();
    assert_eq!(net.delivered(9), ["2"]);
}

#[test]
fn a_snapshot_cut_by_a_new_epoch_changes_nothing() {
    let mut net = begun(resumable(), 3);
    for n in 0..600 {
        net.publish(vec![set(&format!("many{n}"), "1")]);
    }
    net.add(4);
    net.subscribe(4, &["many0", "many599", "k"], true);
    net.link(4);
    net.step_up(4, 99);
    net.write(4);
    net.step_down(4, 1);
    net.step_up(4, 99);
    net.write(4);
    // Of the snapshot only its first chunk arrives.
    let on_the_way = net.on_the_way(4);
    assert!(on_the_way >= 2, "{on_the_way}");
    net.step_down(4, on_the_way - 1);
    net.node(4).deaf = true;
    net.kill_owner();
    assert_eq!(net.node(4).follower.hello_last(), Mark::ZERO);
    assert_eq!(net.node(4).value("many0"), None);
    net.take_over(2);
    net.find_dead();
    net.join_all();
    net.rest();
    assert_eq!(net.node(4).value("many599").as_deref(), Some("1"));
    assert_eq!(net.node(4).synced, 1);
}

#[test]
fn a_chain_of_takeovers_loses_nothing() {
    let mut net = begun(resumable(), 6);
    for next in 2..=6 {
        net.publish_events(3);
        if next % 2 == 0 {
            net.flow();
        }
        net.kill_owner();
        net.publish_events(2);
        net.take_over(next);
        net.find_dead();
        net.join_all();
        net.pass(Duration::from_millis(50 * next));
    }
    net.rest();
    assert_eq!(net.delivered_from(6, 1), all(1, 26));
    assert_eq!(net.count("gap_shown"), 0);
}

#[test]
fn a_dense_channel_shows_a_gap_exactly_when_a_number_is_missing() {
    for (missed, gap) in [(0, false), (1, true)] {
        let mut net = begun(unresumable(true), 3);
        net.kill_owner();
        net.publish_events(missed);
        net.take_over(2);
        net.find_dead();
        net.join_all();
        net.publish_event();
        net.rest();
        for id in 2..=3 {
            let expected: &[&str] = if gap { &["1", "gap", "3"] } else { &["1", "2"] };
            assert_eq!(net.delivered(id), expected, "session {id}, {missed} missed");
        }
        if gap {
            let shown = Gap {
                channel: FEED.into(),
                after: Some(seq(1)),
                upto: Some(seq(2)),
                why: GapCause::Upstream,
            };
            assert_eq!(net.nodes[&3].gaps, [shown]);
        }
    }
}

#[test]
fn a_channel_that_cannot_prove_anything_always_shows_a_gap() {
    let mut net = begun(unresumable(false), 3);
    net.kill_owner();
    net.take_over(2);
    net.find_dead();
    net.join_all();
    net.publish_event();
    net.rest();
    for id in 2..=3 {
        assert_eq!(net.delivered(id), ["1", "gap", "2"], "session {id}");
    }
}

#[test]
fn a_resumable_upstream_that_forgot_is_treated_like_one_that_cannot() {
    let mut net = begun(resumable(), 4);
    net.node(2).deaf = true;
    net.publish_event();
    net.flow();
    net.kill_owner();
    net.publish_event();
    net.feed.forgotten = 3;
    net.take_over(2);
    net.find_dead();
    net.join_all();
    net.publish_event();
    net.rest();
    for id in 2..=4 {
        // 2 came from a survivor, 3 is lost.
        assert_eq!(net.delivered(id), ["1", "2", "gap", "4"], "session {id}");
    }
}

#[test]
fn a_tail_with_a_gap_in_it_does_not_hide_the_gap() {
    let mut net = begun(unresumable(true), 5);
    net.cut(2);
    // Session 5 hears 2, misses 3 and 4 with a gap, and hears 5.
    net.publish_event();
    net.flow();
    net.feed.log.push(vec![event("3")]);
    net.feed.log.push(vec![event("4")]);
    net.publish_event();
    net.flow();
    assert_eq!(net.delivered(5), ["1", "2", "gap", "5"]);
    net.kill_owner();
    for id in 3..=4 {
        net.nodes.remove(&id);
    }
    net.take_over(2);
    net.find_dead();
    net.join_all();
    net.publish_event();
    net.rest();
    assert_eq!(net.delivered(2), ["1", "gap", "2", "5", "6"]);
    assert_eq!(net.nodes[&2].gaps[0].upto, Some(seq(5)));
    assert_eq!(net.delivered(5), ["1", "2", "gap", "5", "6"]);
}

#[test]
fn a_gap_keeps_its_place_for_those_who_join_later() {
    let mut net = begun(unresumable(true), 4);
    net.cut(4);
    net.kill_owner();
    net.publish_event();
    net.take_over(2);
    net.find_dead();
    net.join(3);
    net.pass(OFFER_WAIT);
    net.publish_event();
    net.publish_event();
    net.flow();
    assert_eq!(net.delivered(3), ["1", "gap", "3", "4"]);
    net.join(4);
    assert_eq!(net.delivered(4), ["1", "gap", "3", "4"]);
    // And once more in the next reign.
    net.cut(4);
    net.fail_over(3);
    assert_eq!(net.delivered(4), ["1", "gap", "3", "4"]);
}

#[test]
fn positions_counted_by_an_owner_end_with_it() {
    let mut net = Net::group(unresumable(false), 4);
    net.feed.numbered = false;
    net.publish_events(2);
    net.rest();
    net.cut(4);
    net.publish_event();
    net.rest();
    net.kill_owner();
    net.take_over(2);
    net.find_dead();
    net.join(3);
    net.pass(OFFER_WAIT);
    net.publish_event();
    net.flow();
    assert_eq!(net.delivered(3), ["1", "2", "3", "gap", "4"]);
    // Session 4 comes late; what the old owner counted is still in the ring.
    net.join(4);
    assert_eq!(net.delivered(4), ["1", "2", "3", "gap", "4"]);
}

#[test]
fn opaque_positions_are_found_by_equality_or_not_at_all() {
    let opaque = |n: u64| Position::Opaque(format!("id{n}").as_str().into());
    let mut net = Net::group(resumable(), 4);
    let publish = |net: &mut Net, n: u64| {
        net.hub_in(hub::Input::Publish {
            channel: FEED.into(),
            position: Some(opaque(n)),
            live: true,
            changes: vec![event(&n.to_string())],
            trace: Trace::NONE,
        });
    };
    publish(&mut net, 1);
    net.rest();
    net.cut(4);
    publish(&mut net, 2);
    net.rest();
    net.feed.eager = false;
    net.kill_owner();
    net.take_over(2);
    net.find_dead();
    assert_eq!(net.feed.opens.last(), Some(&Some(opaque(2))));
    net.hub_in(hub::Input::ChannelOpened { channel: FEED.into(), resumed: true });
    // The upstream repeats the last one: equal, so not new.
    publish(&mut net, 2);
    publish(&mut net, 3);
    net.join_all();
    net.rest();
    assert_eq!(net.delivered_from(3, 1), all(1, 3));
    // Where session 4 stands is still in the ring; a stranger's place is not.
    assert_eq!(net.delivered_from(4, 1), all(1, 3));
    assert_eq!(net.count("gap_shown"), 0);
}

#[test]
fn a_session_behind_every_ring_gets_a_replay_and_nobody_else_does() {
    let mut net = begun(resumable(), 4);
    net.cut(4);
    publish_flowing(&mut net, 5000);
    let before = net.delivered(3).len();
    net.feed.eager = false;
    net.link(4);
    net.flow();
    assert_eq!(net.feed.opens.last(), Some(&Some(seq(1))));
    assert_eq!(net.count("channel_rewound"), 1);
    // From the old connection: newer, so session 4 must not get it yet.
    net.feed.log.push(vec![event("5002")]);
    net.hub_in(hub::Input::Publish {
        channel: FEED.into(),
        position: Some(seq(5002)),
        live: true,
        changes: vec![event("5002")],
        trace: Trace::NONE,
    });
    net.flow();
    assert_eq!(net.delivered(4), ["1"]);
    assert_eq!(net.delivered(3).len(), before + 1);
    net.feed.eager = true;
    net.flow();
    net.publish_event();
    net.rest();
    assert_eq!(net.delivered_from(4, 1), all(1, 5003));
    assert_eq!(net.delivered_from(3, 1), all(1, 5003));
}

#[test]
fn a_session_behind_every_ring_is_shown_a_gap_where_nothing_can_be_repeated() {
    let mut net = begun(unresumable(true), 4);
    net.cut(4);
    publish_flowing(&mut net, 5000);
    net.join(4);
    net.publish_event();
    net.rest();
    assert_eq!(net.delivered(4), ["1", "gap", "5002"]);
    let shown =
        Gap { channel: FEED.into(), after: Some(seq(1)), upto: Some(seq(5001)), why: GapCause::Resync };
    assert_eq!(net.nodes[&4].gaps, [shown]);
    assert_eq!(net.delivered_from(3, 1), all(1, 5002));
}

#[test]
fn a_value_that_one_survivor_heard_is_republished_to_the_rest() {
    let mut net = begun(unresumable(true), 4);
    net.publish(vec![set("k", "old")]);
    net.rest();
    net.node(2).deaf = true;
    net.node(3).deaf = true;
    net.publish(vec![set("k", "new")]);
    net.flow();
    net.kill_owner();
    net.take_over(2);
    net.find_dead();
    net.join_all();
    net.rest();
    for id in 2..=4 {
        assert_eq!(net.node(id).value("k").as_deref(), Some("new"), "session {id}");
    }
    assert!(net.count("winner_republished") >= 1);
}

#[test]
fn a_replay_does_not_undo_a_value_that_a_survivor_brought() {
    let mut net = begun(resumable(), 4);
    net.node(2).deaf = true;
    net.node(3).deaf = true;
    let merge = |patch: &str| Change::Merge { key: key("k"), patch: text(patch) };
    net.publish(vec![merge("a")]);
    net.publish(vec![merge("b")]);
    net.flow();
    net.kill_owner();
    net.feed.eager = false;
    net.take_over(2);
    net.find_dead();
    net.join_all();
    net.rest();
    assert_eq!(net.node(3).value("k").as_deref(), Some("ab"));
    net.feed.eager = true;
    net.publish(vec![merge("c")]);
    net.rest();
    for id in 2..=4 {
        assert_eq!(net.node(id).value("k").as_deref(), Some("abc"), "session {id}");
    }
}

#[test]
fn a_reset_is_remembered_by_those_who_take_over() {
    let versioned = |value: &str, version| Change::Set {
        key: key("k"),
        value: text(value),
        version: Version::Number(version),
    };
    let mut net = begun(resumable(), 4);
    net.publish(vec![versioned("high", 900)]);
    net.rest();
    net.cut(4);
    let base = net.hub().get(&key("k")).map(|held| held.place.clone());
    net.hub_in(hub::Input::Reset {
        key: key("k"),
        value: Some((text("low"), Version::Number(3))),
        base,
        why: "the server went back".to_owned(),
        trace: Trace::NONE,
    });
    net.rest();
    assert_eq!(net.node(3).value("k").as_deref(), Some("low"));
    // Session 4 slept through it and still holds version 900.
    net.fail_over(2);
    for id in 2..=4 {
        assert_eq!(net.node(id).value("k").as_deref(), Some("low"), "session {id}");
    }
    net.publish(vec![versioned("next", 4)]);
    net.rest();
    assert_eq!(net.node(4).value("k").as_deref(), Some("next"));
}

#[test]
fn a_reset_to_nothing_clears_the_value_everywhere() {
    let mut net = begun(resumable(), 4);
    net.publish(vec![set("k", "1")]);
    net.rest();
    net.cut(4);
    let base = net.hub().get(&key("k")).map(|held| held.place.clone());
    let reset = |base| hub::Input::Reset {
        key: key("k"),
        value: None,
        base,
        why: "gone at the server".to_owned(),
        trace: Trace::NONE,
    };
    // A fetch that began before the value was installed decides nothing.
    net.hub_in(reset(None));
    net.flow();
    assert_eq!(net.node(3).value("k").as_deref(), Some("1"));
    net.hub_in(reset(base));
    net.rest();
    assert_eq!(net.node(3).value("k"), None);
    net.fail_over(2);
    assert_eq!(net.node(4).value("k"), None);
    assert_eq!(net.hub().get(&key("k")), None);
}

#[test]
fn a_reset_does_not_overtake_messages_that_wait() {
    let mut net = begun(unresumable(true), 3);
    let versioned = |value: &str, version| Change::Set {
        key: key("k"),
        value: text(value),
        version: Version::Number(version),
    };
    net.publish(vec![versioned("seven", 7)]);
    net.rest();
    net.kill_owner();
    net.take_over(2);
    net.find_dead();
    net.flow();
    // Held back until the survivor has offered; a fetch begun after it answers with an older version.
    net.publish(vec![versioned("eight", 8)]);
    let base = net.hub().get(&key("k")).map(|held| held.place.clone());
    net.hub_in(hub::Input::Reset {
        key: key("k"),
        value: Some((text("five"), Version::Number(5))),
        base,
        why: "the server went back".to_owned(),
        trace: Trace::NONE,
    });
    net.join_all();
    net.rest();
    let held = net.hub().get(&key("k")).unwrap();
    assert_eq!((held.value.as_ref(), held.place.reset), (&b"eight"[..], Mark::ZERO));
}

#[test]
fn a_reconnect_among_messages_that_wait_leaves_its_mark() {
    let mut net = Net::group(unresumable(false), 3);
    net.feed.numbered = false;
    net.publish_event();
    net.rest();
    net.kill_owner();
    net.take_over(2);
    net.find_dead();
    net.flow();
    net.publish_event();
    net.hub_in(hub::Input::ChannelOpened { channel: FEED.into(), resumed: false });
    net.publish_event();
    assert_eq!(net.delivered(2), ["1"]);
    net.join_all();
    net.rest();
    for id in 2..=3 {
        assert_eq!(net.delivered(id), ["1", "gap", "2", "gap", "3"], "session {id}");
    }
}

#[test]
fn an_opaque_place_that_the_owner_lacks_is_a_gap_wherever_the_owner_comes_from() {
    let opaque = |n: u64| Position::Opaque(format!("id{n}").as_str().into());
    let mut net = Net::group(resumable(), 4);
    net.feed.eager = false;
    let publish = |net: &mut Net, n: u64| {
        net.hub_in(hub::Input::Publish {
            channel: FEED.into(),
            position: Some(opaque(n)),
            live: true,
            changes: vec![event(&n.to_string())],
            trace: Trace::NONE,
        });
    };
    publish(&mut net, 1);
    net.rest();
    net.node(4).deaf = true;
    publish(&mut net, 2);
    net.flow();
    net.kill_owner();
    net.nodes.remove(&2);
    // Session 4 was no heir, and session 3 stands where it has never been.
    net.take_over(4);
    net.find_dead();
    net.join_all();
    net.rest();
    assert_eq!(net.feed.opens.last(), Some(&Some(opaque(1))));
    net.hub_in(hub::Input::ChannelOpened { channel: FEED.into(), resumed: true });
    publish(&mut net, 2);
    publish(&mut net, 3);
    net.rest();
    assert_eq!(net.delivered(4), ["1", "2", "3"]);
    // Around a gap events may be repeated.
    assert_eq!(net.delivered(3), ["1", "2", "gap", "2", "3"]);
}

#[test]
fn a_former_heir_gives_what_it_holds_to_a_second_owner_too() {
    let mut net = begun(resumable(), 5);
    let token = net.set_op(4, "aside", "acknowledged");
    net.flow();
    assert!(matches!(net.outcome(4, token), Some(OpOutcome::Applied { volatile: false, .. })));
    // Session 5, no heir, takes over, learns the value and dies before anybody else holds it.
    net.kill_owner();
    net.take_over(5);
    net.find_dead();
    for id in 2..=3 {
        net.link(id);
        net.write(id);
        net.step_down(id, 9);
        while net.step_up(id, 1) > 0 {}
        net.write(id);
        net.step_down(id, 1);
        while net.step_up(id, 1) > 0 {}
    }
    net.kill_owner();
    net.take_over(4);
    net.find_dead();
    net.join_all();
    net.rest();
    assert_eq!(net.hub().get(&key("aside")).map(|held| held.value.clone()), Some(text("acknowledged")));
}

#[test]
fn an_owner_that_knows_no_list_waits_for_offers_before_it_resumes() {
    let mut net = begun(resumable(), 3);
    net.kill_owner();
    net.add(9);
    net.subscribe(9, &["k"], true);
    net.take_over_knowing(9, None);
    net.flow();
    assert_eq!(net.feed.opens.len(), 1);
    net.join_all();
    net.pass(OFFER_WAIT);
    assert_eq!(net.feed.opens.last(), Some(&Some(seq(1))));
    net.publish_event();
    net.rest();
    assert_eq!(net.delivered_from(3, 1), all(1, 2));
}

#[test]
fn a_reconnect_that_loses_messages_shows_a_gap_and_one_that_loses_none_does_not() {
    let mut net = begun(unresumable(true), 2);
    net.feed.connected = false;
    net.hub_in(hub::Input::ChannelOpened { channel: FEED.into(), resumed: false });
    net.feed.connected = true;
    net.publish_event();
    net.rest();
    assert_eq!(net.delivered(2), ["1", "2"]);
    net.feed.connected = false;
    net.publish_event();
    net.hub_in(hub::Input::ChannelOpened { channel: FEED.into(), resumed: false });
    net.feed.connected = true;
    net.publish_event();
    net.rest();
    assert_eq!(net.delivered(2), ["1", "2", "gap", "4"]);
}

#[test]
fn what_an_older_connection_sends_after_a_step_back_is_left_to_the_new_one() {
    let mut net = Net::group(resumable(), 2);
    net.publish_events(3);
    net.rest();
    net.add(9);
    net.kill_owner();
    net.take_over_knowing(9, None);
    net.pass(OFFER_WAIT);
    assert_eq!(net.feed.opens.last(), Some(&None), "nobody has offered");
    net.feed.eager = false;
    // The survivor stands at 3, the channel goes back there; a message of the connection from now on is on its way.
    net.link(2);
    net.flow();
    assert_eq!(net.feed.opens.last(), Some(&Some(seq(3))));
    net.publish_events(2);
    net.feed_answer();
    net.rest();
    assert_eq!(net.delivered_from(2, 1), [1, 2, 3, 4, 5]);
    assert!(net.nodes[&2].gaps.is_empty());
}

#[test]
fn an_old_gap_is_not_shown_to_who_stands_where_the_upstream_can_resume() {
    let mut net = begun(resumable(), 3);
    net.publish_events(4);
    net.rest();
    net.kill_owner();
    // An heir of another line of owners, which holds all there is: a gap, and nothing after it.
    net.add(9);
    let welcome = Welcome {
        epoch: Epoch(2),
        proto: 1,
        owner: session(8),
        adopting: false,
        offer_since: None,
        positions: vec![],
        features: paceline_proto::program::Features::NONE,
        more: Default::default(),
    };
    let gap = Gap { channel: FEED.into(), after: None, upto: None, why: GapCause::Upstream };
    let end =
        SnapshotEnd { upto: Offset(4), positions: vec![], complete: true, rings: vec![], applied: vec![] };
    let gaps = vec![(Mark::new(Epoch(2), Offset(2)), gap)];
    net.follower_in(9, follower::Input::SubscribeStream(LABELS.into()));
    net.follower_in(9, follower::Input::Linked(welcome));
    net.follower_in(9, follower::Input::Message(ToSession::Appointed));
    let snapshot = Snapshot { gaps, end: Some(end), ..Snapshot::default() };
    net.follower_in(9, follower::Input::Message(ToSession::Snapshot(snapshot)));
    net.follower_in(9, follower::Input::LinkLost);
    net.epoch = 2;
    let member = |id: u64| Member { session: session(id), label: String::new(), pid: 0, joined: true };
    net.take_over_knowing(9, Some(vec![member(2), member(3), member(9)]));
    net.flow();
    net.join(2);
    assert_eq!(net.node(2).gaps, [], "the channel is opened where it stands, once session 3 offered as well");
    net.join(3);
    net.rest();
    net.publish_event();
    net.rest();
    for id in [2, 3] {
        assert_eq!(
            (net.node(id).gaps.clone(), net.delivered_from(id, 1)),
            (vec![], all(1, 6)),
            "session {id}"
        );
    }
}
