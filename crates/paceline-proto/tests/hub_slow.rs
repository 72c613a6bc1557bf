//! A session that does not read: it gets the latest of each key and a gap, and delays nobody.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod hub_net;

use hub_net::*;
use paceline_proto::{
    event::Event,
    id::*,
    limits::{
        LINK_PATIENCE, LINK_PAUSE, LINK_QUEUE_BURST, LINK_QUEUE_BYTES, LINK_QUEUE_FRAMES, PING_INTERVAL,
        WRITE_TIMEOUT,
    },
    message::*,
};

/// Three sessions and one that takes nothing. No heirs get in the way: 4 joined last.
fn blocked() -> Net {
    let mut net = Net::group(resumable(), 4);
    net.publish_event();
    net.rest();
    block(&mut net, 4);
    net
}

/// The transport holds a piece that the session's socket does not take, for longer than a burst explains.
fn block(net: &mut Net, id: u64) {
    net.node(id).blocked = true;
    net.publish(vec![set("k", "stuck")]);
    net.pass(LINK_PATIENCE);
}

#[test]
fn a_queue_at_its_bound_is_sent_whole_and_one_frame_more_is_conflated() {
    for (frames, conflated) in [(LINK_QUEUE_FRAMES, false), (LINK_QUEUE_FRAMES + 1, true)] {
        let mut net = blocked();
        for n in 0..frames as u64 {
            net.publish(vec![set("k", &n.to_string())]);
            if n % 500 == 0 {
                net.flow();
            }
        }
        net.flow();
        assert_eq!(net.link_info(4).conflated, conflated, "{frames} frames");
        assert_eq!(net.count("follower_conflated"), usize::from(conflated));
        net.batches.clear();
        net.node(4).blocked = false;
        net.rest();
        let sent: usize =
            net.batches.iter().filter(|(id, ..)| *id == 4).map(|(.., frames)| frames.len()).sum();
        // One frame was with the transport all the time.
        assert_eq!(sent, 1 + if conflated { 1 } else { frames });
        assert_eq!(net.node(4).value("k"), net.node(3).value("k"));
        assert_eq!(net.count("follower_caught_up"), usize::from(conflated));
        assert!(!net.link_info(4).conflated);
    }
}

#[test]
fn a_queue_over_its_bytes_is_conflated() {
    let mut net = blocked();
    let big = "x".repeat(LINK_QUEUE_BYTES / 5);
    for n in 0..5 {
        net.publish(vec![set("k", &format!("{n}{big}"))]);
        net.flow();
    }
    assert!(net.link_info(4).conflated);
    net.node(4).blocked = false;
    net.rest();
    assert_eq!(net.node(4).value("k").map(|value| value.len()), Some(big.len() + 1));
}

#[test]
fn a_conflated_batch_covers_exactly_what_was_left_out() {
    let mut net = blocked();
    let before = net.nodes[&4].follower.hello_last();
    for n in 0..3000_u64 {
        net.publish(vec![set("k", &n.to_string()), event(&(n + 3).to_string())]);
        net.flow();
    }
    let end = net.hub().last().offset;
    net.batches.clear();
    net.node(4).blocked = false;
    net.flow();
    let batches: Vec<_> = net.batches.iter().filter(|(id, ..)| *id == 4).collect();
    assert!(!batches[0].1.conflated && batches[1].1.conflated);
    let mut at = before.offset;
    for (_, header, _) in &batches {
        assert_eq!(header.after, at);
        at = header.upto;
    }
    assert_eq!(at, end);
    // What came after the fold is delivered; what was left out is a gap with its exact ends.
    let delivered = net.delivered(4);
    let gap = net.nodes[&4].gaps[0].clone();
    assert_eq!((gap.why, gap.after), (GapCause::SlowReader, Some(seq(2))));
    let Some(Position::Seq { offset: upto, .. }) = gap.upto else { panic!("a gap without an end") };
    assert_eq!(delivered[..2], ["1", "gap"]);
    let rest: Vec<u64> = delivered[2..].iter().map(|data| data.parse().unwrap()).collect();
    assert_eq!(rest, (upto + 1..=3002).collect::<Vec<_>>());
    assert_eq!(net.delivered_from(3, 2), (3..=3002).collect::<Vec<_>>());
}

#[test]
fn a_subscription_among_what_is_left_out_hides_no_gap() {
    let mut net = blocked();
    net.publish(vec![set("k", "before")]);
    net.subscribe(4, &["late"], false);
    net.flow();
    let first = net.feed.log.len() as u64 + 1;
    for n in first..first + 3000 {
        net.publish(vec![set("k", &n.to_string()), event(&n.to_string())]);
        net.flow();
    }
    assert!(net.link_info(4).conflated);
    net.node(4).blocked = false;
    net.rest();
    let delivered = net.delivered(4);
    assert_eq!(delivered[..2], ["1", "gap"]);
    let [Gap { upto: Some(Position::Seq { offset: upto, .. }), .. }] = net.nodes[&4].gaps[..] else {
        panic!("{:?}", net.nodes[&4].gaps)
    };
    let rest: Vec<u64> = delivered[2..].iter().map(|data| data.parse().unwrap()).collect();
    assert_eq!(rest, (upto + 1..first + 3000).collect::<Vec<_>>());
}

#[test]
fn a_conflated_batch_keeps_the_ids_of_its_operations() {
    let mut net = blocked();
    net.publish(vec![set("k", "0")]);
    net.merge_op(3, "k", "a");
    net.merge_op(3, "k", "b");
    net.flow();
    for n in 0..2000 {
        net.publish(vec![set("other", &n.to_string()), event("x")]);
        net.flow();
    }
    assert!(net.link_info(4).conflated);
    net.node(4).blocked = false;
    net.flow();
    assert_eq!(net.node(4).value("k").as_deref(), Some("0ab"));
    let held: Vec<u64> = net.nodes[&4].follower.carry().ops.iter().map(|(_, op)| op.id.seq).collect();
    assert_eq!(held, [1, 2]);
    // It alone takes over; what others offer is not applied again.
    net.fail_over(4);
    assert_eq!(net.hub().get(&key("k")).unwrap().value, "0ab");
}

#[test]
fn an_invalidation_that_was_left_out_still_marks_the_value() {
    let mut net = blocked();
    net.publish(vec![set("k", "1")]);
    net.publish(vec![Change::Invalidate { key: key("k"), exact: false }]);
    for _ in 0..2000 {
        net.publish_event();
        net.flow();
    }
    net.node(4).blocked = false;
    net.flow();
    assert!(net.nodes[&4].follower.get(&key("k")).unwrap().invalidated);
}

#[test]
fn a_conflated_heir_stops_being_one_until_it_has_caught_up() {
    let mut net = Net::group(resumable(), 3);
    assert!(net.is_current_heir(2));
    block(&mut net, 2);
    for _ in 0..2000 {
        net.publish_event();
        net.flow();
    }
    assert!(net.events.contains(&Event::HeirDismissed { session: session(2) }));
    assert!(!net.link_info(2).heir);
    net.node(2).blocked = false;
    net.rest();
    assert!(net.is_current_heir(2));
    assert!(net.nodes[&2].follower.is_complete());
}

#[test]
fn who_takes_nothing_for_too_long_is_dropped_and_nobody_waits_for_it() {
    let mut net = Net::group(resumable(), 3);
    net.publish_event();
    net.flow();
    net.node(3).blocked = true;
    // The transport is in the middle of a write that never ends.
    let link = net.nodes[&3].link.unwrap();
    net.publish_event();
    assert!(net.hub.as_mut().unwrap().write(link, 1 << 16).is_some());
    net.pass(WRITE_TIMEOUT - PING_INTERVAL * 2);
    assert!(net.unlinked.is_empty());
    net.pass(PING_INTERVAL * 4);
    assert!(net.unlinked.iter().any(|(dropped, _)| *dropped == link));
    assert_eq!(net.delivered_from(2, 1), [1, 2]);
}

#[test]
fn pings_and_flushes_do_not_pile_up_for_a_blocked_link() {
    let mut net = blocked();
    net.pass(PING_INTERVAL * 20);
    net.node(4).deaf = true;
    net.node(4).blocked = false;
    net.write(4);
    // One of them was with the transport before.
    assert!(net.pings_on_the_way(4) <= 2);
}

#[test]
fn a_burst_does_not_conflate_who_takes_what_it_is_given() {
    for (frames, conflated) in
        [(LINK_QUEUE_BURST * LINK_QUEUE_FRAMES, false), (LINK_QUEUE_BURST * LINK_QUEUE_FRAMES + 1, true)]
    {
        let mut net = Net::group(resumable(), 4);
        net.node(4).blocked = true;
        net.publish(vec![set("k", "with the transport")]);
        net.flow();
        for n in 0..frames {
            net.publish(vec![set("k", &n.to_string())]);
            if n % 500 == 0 {
                net.flow();
            }
        }
        assert_eq!(net.link_info(4).conflated, conflated, "{frames} frames");
        net.node(4).blocked = false;
        net.rest();
        assert_eq!(net.node(4).value("k"), net.node(3).value("k"));
    }
}

#[test]
fn the_upstream_waits_a_moment_for_who_is_far_behind_and_no_longer() {
    let mut net = Net::group(resumable(), 4);
    net.node(4).blocked = true;
    net.publish(vec![set("k", "with the transport")]);
    net.flow();
    for n in 0..LINK_QUEUE_FRAMES / 2 {
        net.publish(vec![set("k", &n.to_string())]);
    }
    assert!(!net.hub().is_congested());
    net.publish(vec![set("k", "one more than half")]);
    assert!(net.hub().is_congested());
    net.pass(LINK_PAUSE);
    net.publish(vec![set("k", "later")]);
    assert!(!net.hub().is_congested(), "a session that takes nothing holds up nobody");
    assert!(!net.link_info(4).conflated);
    net.node(4).blocked = false;
    net.rest();
    assert_eq!(net.node(4).value("k"), net.node(3).value("k"));
}

#[test]
fn a_slow_session_catches_up_while_the_feed_goes_on() {
    let mut net = blocked();
    for round in 0..6_u64 {
        for n in 0..700_u64 {
            net.publish(vec![set("k", &(round * 700 + n).to_string())]);
            if n % 100 == 0 {
                net.flow();
            }
        }
        // One piece is taken now and then.
        let link = net.nodes[&4].link.unwrap();
        net.node(4).blocked = round % 2 == 0;
        net.write(4);
        net.step_down(4, usize::MAX);
        net.node(4).blocked = true;
        let _ = link;
    }
    net.node(4).blocked = false;
    net.rest();
    assert_eq!(net.node(4).value("k").as_deref(), Some("4199"));
    assert!(net.count("follower_caught_up") >= 1);
}
