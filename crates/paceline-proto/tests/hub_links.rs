//! Links in good order: who gets what, joins without holes, and what a follower does with what should not be.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod hub_net;

use hub_net::*;
use paceline_proto::{
    connection::{Connection, ConnectionState},
    event::Event,
    follower::{self, Follower},
    hub,
    id::*,
    limits::{ACK_FRAMES, ACK_INTERVAL, HEIRS, PING_INTERVAL, SESSIONS_MAX},
    message::*,
    program::Features,
    time::Time,
};

fn frames_to(net: &Net, id: u64) -> Vec<Frame> {
    net.batches.iter().filter(|(to, ..)| *to == id).flat_map(|(.., frames)| frames.clone()).collect()
}

#[test]
fn a_session_gets_only_what_it_asked_for_and_heirs_get_all() {
    let mut net = Net::group(resumable(), 4);
    net.batches.clear();
    net.publish(vec![set("k", "1"), set("nobody", "1"), event("x")]);
    net.publish(vec![Change::Event { stream: "other".into(), data: text("y") }]);
    net.flow();
    assert_eq!(frames_to(&net, 4).len(), 2);
    assert_eq!(frames_to(&net, 2).len(), 4);
    assert_eq!(net.delivered(2), ["x"]);
    assert_eq!(net.node(2).value("nobody"), None);
    assert!(net.nodes[&2].follower.get(&key("nobody")).is_some());
    assert!(net.nodes[&4].follower.get(&key("nobody")).is_none());
}

#[test]
fn what_was_unsubscribed_comes_no_more() {
    let mut net = Net::group(resumable(), 4);
    net.follower_in(4, follower::Input::Unsubscribe(key("k")));
    net.follower_in(4, follower::Input::UnsubscribeStream(LABELS.into()));
    net.flow();
    net.batches.clear();
    net.publish(vec![set("k", "1"), event("x")]);
    net.flow();
    assert!(frames_to(&net, 4).is_empty());
    // Its place and the channel's position still move on, with the pings.
    net.rest();
    assert_eq!(net.nodes[&4].follower.hello_last(), net.hub().last());
    assert!(net.nodes[&4].follower.covered().any(|(_, at)| *at == seq(1)));
}

#[test]
fn a_late_subscription_joins_without_a_hole_or_a_repeat() {
    let mut net = Net::group(resumable(), 4);
    net.publish(vec![set("late", "0")]);
    net.flow();
    net.node(4).deaf = true;
    net.node(4).mute = true;
    net.publish(vec![set("k", "1"), set("late", "1"), event("1")]);
    net.subscribe(4, &["late"], false);
    net.step_up(4, 1);
    net.publish(vec![set("late", "2"), event("2")]);
    net.publish(vec![set("k", "2"), set("late", "3"), event("3")]);
    net.node(4).deaf = false;
    net.node(4).mute = false;
    net.flow();
    assert_eq!(net.node(4).value("late").as_deref(), Some("3"));
    assert_eq!(net.delivered(4), ["1", "2", "3"]);
    assert!(!net.nodes[&4].events.iter().any(|event| event.kind() == "resynced"));
}

#[test]
fn a_stream_begins_with_its_own_snapshot() {
    let mut net = Net::group(resumable(), 3);
    let other = |data: &str| Change::Event { stream: "other".into(), data: text(data) };
    // An heir: it gets the events of the stream before its subscription reached the owner.
    net.node(2).mute = true;
    net.follower_in(2, follower::Input::SubscribeStream("other".into()));
    net.publish(vec![other("early")]);
    net.flow();
    assert!(net.delivered(2).is_empty());
    net.cut(2);
    net.node(2).mute = false;
    net.publish(vec![other("between")]);
    net.join(2);
    net.publish(vec![other("first")]);
    net.flow();
    assert_eq!(net.delivered(2), ["first"]);
    // Unsubscribed and subscribed again while frames of the old subscription are on their way.
    net.node(2).deaf = true;
    net.publish(vec![other("old")]);
    net.flow();
    net.follower_in(2, follower::Input::UnsubscribeStream("other".into()));
    net.follower_in(2, follower::Input::SubscribeStream("other".into()));
    net.node(2).deaf = false;
    net.flow();
    net.publish(vec![other("new")]);
    net.flow();
    assert_eq!(net.delivered(2), ["first", "new"]);
}

#[test]
fn a_key_subscribed_without_a_link_has_its_value_after_the_rejoin() {
    let mut net = Net::group(resumable(), 3);
    net.publish(vec![set("late", "1")]);
    net.rest();
    net.cut(3);
    net.subscribe(3, &["late"], false);
    net.publish(vec![set("k", "2")]);
    net.join(3);
    assert_eq!(net.hub().stats().deltas, 1);
    assert_eq!(net.node(3).value("late").as_deref(), Some("1"));
    assert_eq!(net.node(3).value("k").as_deref(), Some("2"));
}

#[test]
fn a_short_absence_is_a_delta_and_a_long_one_a_snapshot() {
    for (messages, deltas) in [(100, 1), (5000, 0)] {
        let mut net = Net::group(resumable(), 4);
        net.publish_event();
        net.rest();
        net.cut(4);
        for n in 0..messages {
            net.publish(vec![set("k", &n.to_string())]);
            if n % 500 == 0 {
                net.flow();
            }
        }
        net.rest();
        let snapshots = net.hub().stats().snapshots;
        net.join(4);
        assert_eq!(net.hub().stats().deltas, deltas, "{messages} messages");
        assert_eq!(net.hub().stats().snapshots - snapshots, 1 - deltas);
        assert_eq!(net.node(4).value("k"), Some((messages - 1).to_string()));
        net.publish_event();
        net.rest();
        assert_eq!(net.delivered(4).len(), 2);
        assert!(net.nodes[&4].gaps.is_empty());
    }
}

#[test]
fn a_lost_batch_is_noticed_and_made_good() {
    let mut net = Net::group(resumable(), 4);
    net.node(4).deaf = true;
    net.publish(vec![set("k", "1"), event("1")]);
    net.flow();
    assert!(net.drop_down(4) > 0);
    net.node(4).deaf = false;
    let at = net.nodes[&4].follower.hello_last().offset;
    net.publish(vec![event("2")]);
    net.rest();
    assert!(net.nodes[&4].events.contains(&Event::Resynced { at }));
    assert_eq!(net.hub().stats().resyncs, 1);
    assert_eq!(net.node(4).value("k").as_deref(), Some("1"));
    assert_eq!(net.delivered(4), ["1", "2"]);
    assert!(net.nodes[&4].follower.is_synced());
}

#[test]
fn a_lost_snapshot_of_a_late_subscription_is_made_good() {
    let mut net = Net::group(resumable(), 4);
    net.publish(vec![set("late", "1")]);
    net.flow();
    net.node(4).deaf = true;
    net.publish(vec![set("k", "1")]);
    net.write(4);
    net.drop_down(4);
    net.subscribe(4, &["late"], false);
    net.step_up(4, 9);
    net.write(4);
    net.node(4).deaf = false;
    net.rest();
    assert_eq!(net.node(4).value("late").as_deref(), Some("1"));
    assert_eq!(net.node(4).value("k").as_deref(), Some("1"));
}

#[test]
fn batches_end_where_messages_end() {
    let mut net = Net::group(resumable(), 4);
    net.batches.clear();
    let wide = |n: u64| (0..3).map(|i| event(&format!("{n}.{i}"))).collect::<Vec<_>>();
    for n in 0..200 {
        net.publish(wide(n));
    }
    // Small pieces, so that the queue is cut often.
    let link = net.nodes[&4].link.unwrap();
    while let Some(parts) = net.hub.as_mut().unwrap().write(link, 700) {
        for part in &parts {
            if let hub::Part::Batch { frames, .. } = part {
                assert!(frames.last().unwrap().frame.ends_atom);
            }
        }
        net.hub_in(hub::Input::Written { link });
    }
}

#[test]
fn equal_content_is_not_shown_again_but_its_place_moves() {
    let mut net = Net::group(resumable(), 2);
    net.publish(vec![set("k", "1")]);
    net.flow();
    let before = net.nodes[&2].follower.get(&key("k")).unwrap().place.clone();
    net.node(2).shown.clear();
    net.publish(vec![set("k", "1")]);
    net.flow();
    assert_eq!(net.node(2).value("k"), None);
    assert!(net.nodes[&2].follower.get(&key("k")).unwrap().place > before);
}

#[test]
fn a_second_connection_of_a_session_replaces_the_first() {
    let mut net = Net::group(resumable(), 3);
    let old = net.nodes[&3].link.unwrap();
    net.follower_in(3, follower::Input::LinkLost);
    net.link(3);
    assert!(net.unlinked.iter().any(|(link, _)| *link == old));
    net.unlinked.clear();
    net.rest();
    assert_eq!(net.hub().members().len(), 3);
    net.publish_event();
    net.flow();
    assert_eq!(net.delivered(3), ["1"]);
}

#[test]
fn one_session_more_than_a_group_may_have_is_turned_away() {
    let mut net = Net::new(resumable());
    for id in 2..=SESSIONS_MAX as u64 {
        net.add(id);
        net.node(id).rank = Rank::Observer;
        net.link(id);
    }
    assert_eq!(net.hub().links().count(), SESSIONS_MAX);
    let turned_away = net.unlinked.len();
    net.add(5000);
    net.link(5000);
    assert_eq!(net.unlinked.len(), turned_away + 1);
    let link = net.nodes[&5000].link.unwrap();
    let parts = net.hub.as_mut().unwrap().write(link, 1 << 16).unwrap();
    assert!(matches!(parts[..], [hub::Part::Message(ToSession::Refused(Refusal::Full))]));
}

#[test]
fn heirs_are_the_preferred_then_the_longest_joined_and_never_observers() {
    let mut net = Net::new(resumable());
    for (id, rank) in [(2, Rank::Observer), (3, Rank::Candidate), (4, Rank::Candidate), (5, Rank::Candidate)]
    {
        net.add(id);
        net.node(id).rank = rank;
        net.join(id);
    }
    net.rest();
    let heirs = |net: &Net| net.hub().heirs().iter().map(|heir| heir.session).collect::<Vec<_>>();
    assert_eq!(heirs(&net), [session(3), session(4)]);
    assert_eq!(heirs(&net).len(), HEIRS);
    net.add(6);
    net.node(6).rank = Rank::Preferred;
    net.join(6);
    net.rest();
    assert_eq!(heirs(&net), [session(6), session(3)]);
    assert!(!net.nodes[&4].heir);
    // Heirship ends with the connection; the rest moves up.
    net.cut(3);
    net.rest();
    assert_eq!(heirs(&net), [session(6), session(4)]);
    net.join(3);
    net.rest();
    assert_eq!(heirs(&net), [session(6), session(4)]);
}

#[test]
fn pings_name_heirs_members_and_the_stable_place() {
    let mut net = Net::group(resumable(), 3);
    net.publish(vec![set("k", "1")]);
    net.rest();
    let members = net.nodes[&3].members.clone().unwrap();
    assert_eq!(members.iter().map(|member| member.session).collect::<Vec<_>>(), [1, 2, 3].map(session));
    assert!(members.iter().all(|member| member.joined));
    net.cut(2);
    net.rest();
    let members = net.nodes[&3].members.clone().unwrap();
    assert_eq!(members.iter().filter(|member| !member.joined).count(), 1);
    assert_eq!(net.nodes[&3].follower.carry().stable.epoch, Epoch(1));
}

#[test]
fn a_new_session_knows_the_members_before_it_has_a_snapshot() {
    let mut net = Net::group(resumable(), 3);
    net.add(4);
    net.link(4);
    net.write(4);
    net.step_down(4, 2);
    assert_eq!(net.nodes[&4].members.as_ref().map(Vec::len), Some(4));
}

#[test]
fn the_state_of_an_upstream_is_everybodys() {
    let mut net = Net::group(resumable(), 3);
    let state = |state| Connection {
        upstream: FEED.into(),
        state,
        transport: "websocket".into(),
        attempts: 1,
        backoff_ms: None,
    };
    net.batches.clear();
    net.hub_in(hub::Input::Connection(state(ConnectionState::Live)));
    net.hub_in(hub::Input::Connection(state(ConnectionState::Live)));
    net.flow();
    assert_eq!(frames_to(&net, 3).len(), 1, "the same state again is no news");
    net.fail_over(2);
    assert_eq!(net.hub().connections().next(), Some(&state(ConnectionState::Live)));
}

#[test]
fn messages_that_change_nothing_still_move_the_position() {
    let mut net = Net::group(resumable(), 3);
    net.publish_event();
    net.publish(vec![]);
    net.rest();
    assert!(net.nodes[&3].follower.covered().any(|(_, at)| *at == seq(2)));
    net.fail_over(2);
    assert_eq!(net.feed.opens.last(), Some(&Some(seq(2))));
}

#[test]
fn a_snapshot_sent_by_the_upstream_gives_values_but_no_position() {
    let mut net = Net::group(unresumable(true), 2);
    net.publish_event();
    net.hub_in(hub::Input::Publish {
        channel: FEED.into(),
        position: None,
        live: false,
        changes: vec![set("k", "whole"), event("not taken")],
        trace: Trace::NONE,
    });
    net.publish_event();
    net.flow();
    assert_eq!(net.node(2).value("k").as_deref(), Some("whole"));
    assert_eq!(net.delivered(2), ["1", "2"]);
}

// The follower alone.

fn welcome(epoch: u64) -> Welcome {
    Welcome {
        epoch: Epoch(epoch),
        proto: 1,
        owner: session(1),
        adopting: false,
        offer_since: None,
        positions: vec![],
        features: Features::NONE,
        more: Default::default(),
    }
}

fn snapshot(upto: u64, held: Vec<Held>) -> ToSession {
    let end = SnapshotEnd {
        upto: Offset(upto),
        positions: vec![],
        complete: false,
        rings: vec![],
        applied: vec![],
    };
    ToSession::Snapshot(Snapshot { held, end: Some(end), ..Snapshot::default() })
}

fn header(epoch: u64, after: u64, upto: u64, count: u32) -> ToSession {
    ToSession::Batch(Batch {
        epoch: Epoch(epoch),
        after: Offset(after),
        upto: Offset(upto),
        positions: vec![],
        count,
        ack_now: false,
        conflated: false,
    })
}

fn frame(offset: u64, body: Body) -> ToSession {
    ToSession::Frame(Frame {
        offset: Offset(offset),
        trace: Trace::NONE,
        origin: None,
        op: None,
        ends_atom: true,
        body,
    })
}

fn held(value: &str, place: Place) -> Held {
    let hash = value.len() as u64 * 1000 + u64::from(value.as_bytes().first().copied().unwrap_or_default());
    Held { key: key("k"), place, value: text(value), hash, invalidated: false, updated_at: Time::ZERO }
}

fn place(epoch: u64, offset: u64) -> Place {
    Place { reset: Mark::ZERO, version: Version::None, mark: Mark::new(Epoch(epoch), Offset(offset)) }
}

struct Alone {
    follower: Follower,
    now: Time,
}

impl Alone {
    /// Follows epoch 2 and stands at 10.
    fn new() -> Self {
        let mut alone =
            Self { follower: Follower::new(follower::Config { session: session(7) }), now: Time(0) };
        alone.input(follower::Input::Subscribe(key("k")));
        alone.input(follower::Input::SubscribeStream(LABELS.into()));
        alone.input(follower::Input::Linked(welcome(2)));
        alone.message(snapshot(10, vec![held("1", place(2, 5))]));
        alone
    }

    fn input(&mut self, input: follower::Input) -> Vec<follower::Effect> {
        let mut out = Vec::new();
        self.follower.handle(self.now, input, &mut out);
        out
    }

    fn message(&mut self, message: ToSession) -> Vec<follower::Effect> {
        self.input(follower::Input::Message(message))
    }
}

fn sends(out: &[follower::Effect]) -> Vec<&ToHub> {
    let sent = |effect: &'_ follower::Effect| matches!(effect, follower::Effect::Send(_));
    out.iter()
        .filter(|effect| sent(effect))
        .map(|effect| match effect {
            follower::Effect::Send(message) => message,
            other => unreachable!("{other:?}"),
        })
        .collect()
}

#[test]
fn frames_of_another_epoch_change_nothing() {
    let mut alone = Alone::new();
    assert!(alone.message(header(1, 10, 11, 1)).is_empty());
    assert!(alone.message(frame(11, Body::Value(held("stale", place(1, 11))))).is_empty());
    assert_eq!(alone.follower.hello_last(), Mark::new(Epoch(2), Offset(10)));
    assert_eq!(alone.follower.get(&key("k")).unwrap().value, "1");
    let out = alone.input(follower::Input::Linked(welcome(1)));
    assert!(matches!(out[..], [follower::Effect::Break(_)]));
}

#[test]
fn a_place_never_goes_back_without_a_reset() {
    let mut alone = Alone::new();
    alone.message(header(2, 10, 11, 1));
    assert!(alone.message(frame(11, Body::Value(held("older", place(2, 4))))).is_empty());
    assert_eq!(alone.follower.get(&key("k")).unwrap().value, "1");
    let reset = Mark::new(Epoch(2), Offset(12));
    let back = held("back", Place { reset, version: Version::None, mark: reset });
    alone.message(header(2, 11, 12, 1));
    let body = Body::Reset { key: key("k"), held: Some(back), why: "verified".to_owned() };
    let out = alone.message(frame(12, body));
    assert!(out.iter().any(|effect| matches!(effect, follower::Effect::Show(held) if held.value == "back")));
}

#[test]
fn the_place_moves_only_when_the_batch_is_whole() {
    let mut alone = Alone::new();
    alone.message(header(2, 10, 12, 2));
    alone.message(frame(11, Body::Value(held("2", place(2, 11)))));
    assert_eq!(alone.follower.hello_last().offset, Offset(10));
    assert_eq!(alone.follower.get(&key("k")).unwrap().value, "1");
    alone.message(frame(12, Body::Nothing));
    assert_eq!(alone.follower.hello_last().offset, Offset(12));
    assert_eq!(alone.follower.get(&key("k")).unwrap().value, "2");
}

#[test]
fn a_frame_without_a_batch_breaks_the_link() {
    let mut alone = Alone::new();
    assert!(matches!(alone.message(frame(11, Body::Nothing))[..], [follower::Effect::Break(_)]));
    alone.message(header(2, 10, 11, 1));
    assert!(matches!(alone.message(header(2, 11, 12, 1))[..], [follower::Effect::Break(_)]));
}

#[test]
fn a_hole_asks_for_everything_anew_and_nothing_in_between_counts() {
    let mut alone = Alone::new();
    let out = alone.message(header(2, 11, 12, 1));
    assert_eq!(sends(&out), [&ToHub::Resync]);
    alone.message(frame(12, Body::Value(held("skipped", place(2, 12)))));
    alone.message(snapshot(12, vec![]));
    alone.message(header(2, 12, 13, 0));
    assert_eq!(alone.follower.hello_last().offset, Offset(10));
    let out = alone.message(ToSession::Welcome(welcome(2)));
    assert!(matches!(sends(&out)[..], [ToHub::Subscribe { .. }, .., ToHub::OfferRest { end: true, .. }]));
    alone.message(snapshot(13, vec![held("2", place(2, 12))]));
    assert_eq!(alone.follower.hello_last().offset, Offset(13));
    assert!(alone.follower.is_synced());
}

#[test]
fn acknowledgements_come_by_count_by_time_or_at_once() {
    let mut alone = Alone::new();
    for n in 0..ACK_FRAMES {
        alone.message(header(2, 10 + n, 11 + n, 1));
        let out = alone.message(frame(11 + n, Body::Nothing));
        assert_eq!(sends(&out).is_empty(), n + 1 < ACK_FRAMES, "frame {n}");
    }
    let at = 10 + ACK_FRAMES;
    assert_eq!(alone.follower.deadline(), None);
    assert!(sends(&alone.message(header(2, at, at + 1, 0))).is_empty());
    let due = alone.follower.deadline().unwrap();
    assert_eq!(due, alone.now + ACK_INTERVAL);
    alone.now = due;
    let out = alone.input(follower::Input::Deadline);
    assert_eq!(sends(&out), [&ToHub::Ack(Offset(at + 1))]);
    let ToSession::Batch(mut urgent) = header(2, at + 1, at + 1, 0) else { unreachable!() };
    urgent.ack_now = true;
    let out = alone.message(ToSession::Batch(urgent));
    assert_eq!(sends(&out), [&ToHub::Ack(Offset(at + 1))]);
}

#[test]
fn several_events_of_one_message_are_all_delivered_and_never_twice() {
    let mut alone = Alone::new();
    let event = |offset: u64, n: u64, data: &str, last: bool| {
        ToSession::Frame(Frame {
            offset: Offset(offset),
            trace: Trace::NONE,
            origin: Some((FEED.into(), seq(n))),
            op: None,
            ends_atom: last,
            body: Body::Event { stream: LABELS.into(), data: text(data) },
        })
    };
    let delivered = |out: Vec<follower::Effect>| {
        let data = |effect| match effect {
            follower::Effect::Deliver(event) => Some(String::from_utf8(event.data.to_vec()).unwrap()),
            _ => None,
        };
        out.into_iter().filter_map(data).collect::<Vec<_>>()
    };
    alone.message(header(2, 10, 13, 3));
    alone.message(event(11, 7, "7a", false));
    alone.message(event(12, 7, "7b", true));
    assert_eq!(delivered(alone.message(event(13, 8, "8", true))), ["7a", "7b", "8"]);
    // The next owner repeats 7 and 8 before 9.
    alone.input(follower::Input::LinkLost);
    alone.input(follower::Input::Linked(welcome(3)));
    alone.message(snapshot(0, vec![]));
    alone.message(header(3, 0, 4, 4));
    alone.message(event(1, 7, "7a", false));
    alone.message(event(2, 7, "7b", true));
    alone.message(event(3, 8, "8", true));
    assert_eq!(delivered(alone.message(event(4, 9, "9", true))), ["9"]);
}

#[test]
fn a_gap_that_everything_arrived_in_is_not_shown() {
    let mut alone = Alone::new();
    let position = |n| vec![(FEED.into(), seq(n))];
    let ToSession::Batch(mut moved) = header(2, 10, 11, 0) else { unreachable!() };
    moved.positions = position(20);
    alone.message(ToSession::Batch(moved));
    let gap = |after, upto: Option<u64>| {
        Body::Gap(Gap {
            channel: FEED.into(),
            after: Some(seq(after)),
            upto: upto.map(seq),
            why: GapCause::Upstream,
        })
    };
    for (at, after, upto, shown) in
        [(11, 17, Some(20), false), (12, 17, Some(21), true), (13, 20, None, true)]
    {
        alone.message(header(2, at, at + 1, 1));
        let out = alone.message(frame(at + 1, gap(after, upto)));
        assert_eq!(out.iter().any(|effect| matches!(effect, follower::Effect::ShowGap(_))), shown);
    }
}

#[test]
fn offers_hold_only_what_changed_since_the_place_asked_for() {
    let mut alone = Alone::new();
    alone.message(header(2, 10, 11, 1));
    alone.message(frame(11, Body::Value(held("2", place(2, 11)))));
    alone.input(follower::Input::LinkLost);
    let offered = |alone: &mut Alone, epoch, since| {
        let out = alone.input(follower::Input::Linked(Welcome { offer_since: since, ..welcome(epoch) }));
        let keys = sends(&out).into_iter().filter(|message| matches!(message, ToHub::OfferKeys(_))).count();
        alone.input(follower::Input::LinkLost);
        keys
    };
    let mark = |offset| Some(Mark::new(Epoch(2), Offset(offset)));
    assert_eq!(offered(&mut alone, 3, mark(10)), 1);
    assert_eq!(offered(&mut alone, 3, mark(11)), 0);
    assert_eq!(offered(&mut alone, 3, None), 1);
}

#[test]
fn a_value_dropped_since_the_offer_is_answered_as_none() {
    let mut alone = Alone::new();
    let out = alone.message(ToSession::WantKeys(vec![key("k"), key("gone")]));
    let [ToHub::Values(values)] = sends(&out)[..] else { panic!("{out:?}") };
    assert_eq!(values[0].value, "1");
    assert!(values[1].value.is_empty() && values[1].place == Place::default());
}

#[test]
fn pings_pass_with_the_members_filled_in() {
    let mut alone = Alone::new();
    let members = vec![Member { session: session(1), label: String::new(), pid: 1, joined: true }];
    for sent in [members.clone(), vec![]] {
        let out = alone.message(ToSession::Ping(Ping { members: sent, ..Ping::default() }));
        let [follower::Effect::Ping(ping)] = &out[..] else { panic!("{out:?}") };
        assert_eq!(ping.members, members);
    }
    let _ = PING_INTERVAL;
}

#[test]
fn a_gap_in_a_snapshot_keeps_the_frame_that_showed_it_first() {
    let mut alone = Alone::new();
    let first = Mark::new(Epoch(1), Offset(3));
    let gap = Gap { channel: FEED.into(), after: None, upto: None, why: GapCause::Upstream };
    let ToSession::Snapshot(snapshot) = snapshot(10, vec![]) else { panic!("no snapshot") };
    alone.message(ToSession::Snapshot(Snapshot { gaps: vec![(first, gap)], ..snapshot }));
    let marks: Vec<Mark> = alone
        .follower
        .carry()
        .kept
        .into_iter()
        .filter_map(|kept| if let hub::Kept::Gap { mark, .. } = kept { Some(mark) } else { None })
        .collect();
    assert_eq!(marks, [first], "who follows since then saw it");
}
