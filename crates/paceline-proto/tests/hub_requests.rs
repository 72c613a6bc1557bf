//! Mutations, questions, the handover; and peers that break the rules.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod hub_net;

use hub_net::*;
use paceline_proto::{
    event::Event,
    follower,
    hub::{self, Effect},
    id::*,
    limits::{CHUNK_ITEMS, KEY_MAX, VALUE_MAX},
    message::*,
    program::{Features, PROTO, RELEASE},
    time::Time,
};

fn submit(net: &mut Net, id: u64, payload: &str) -> u64 {
    let token = net.node(id).token();
    net.follower_in(id, follower::Input::Submit { token, hash: [1; 16], payload: text(payload) });
    token
}

fn ask(net: &mut Net, id: u64, ask: Ask) -> u64 {
    let token = net.node(id).token();
    net.follower_in(id, follower::Input::Ask { token, ask, trace: Trace::NONE });
    token
}

fn stores(net: &mut Net) -> Vec<MutationId> {
    let stored = |effect: &Effect| match effect {
        Effect::Store(submit) => Some(submit.id),
        _ => None,
    };
    let all = net.effects.iter().filter_map(stored).collect();
    net.effects.clear();
    all
}

fn mutation(session: u64, seq: u64) -> MutationId {
    MutationId { session: hub_net::session(session), seq }
}

fn kit() -> KitAddress {
    KitAddress { socket: "kit.sock".to_owned(), nonce: Nonce(9) }
}

#[test]
fn submits_wait_for_adoption_and_are_answered_over_the_current_link() {
    let mut net = Net::group(resumable(), 3);
    net.effects.clear();
    let token = submit(&mut net, 3, "pay");
    net.flow();
    assert!(stores(&mut net).is_empty());
    net.hub_in(hub::Input::Adopted);
    assert_eq!(stores(&mut net), [mutation(3, 1)]);
    // The session reconnects and sends it again; the answer under way serves both.
    net.cut(3);
    net.join(3);
    assert!(stores(&mut net).is_empty());
    net.hub_in(hub::Input::Stored(vec![(mutation(3, 1), SubmitOutcome::Acknowledged)]));
    net.flow();
    assert_eq!(net.nodes[&3].submits, [(token, SubmitOutcome::Acknowledged)]);
}

#[test]
fn a_submit_without_an_answer_goes_to_the_next_owner_in_order() {
    let mut net = Net::group(resumable(), 3);
    net.hub_in(hub::Input::Adopted);
    for n in 1..=3 {
        submit(&mut net, 3, &n.to_string());
    }
    net.flow();
    net.hub_in(hub::Input::Stored(vec![
        (mutation(3, 1), SubmitOutcome::Acknowledged),
        (mutation(3, 2), SubmitOutcome::Moved),
    ]));
    net.flow();
    net.fail_over(2);
    net.effects.clear();
    net.hub_in(hub::Input::Adopted);
    assert_eq!(stores(&mut net), [mutation(3, 2), mutation(3, 3)]);
}

#[test]
fn while_draining_nothing_is_answered_and_a_failed_handover_makes_it_good() {
    let mut net = Net::group(resumable(), 3);
    net.hub_in(hub::Input::Adopted);
    let early = submit(&mut net, 3, "early");
    net.flow();
    stores(&mut net);
    net.hub_in(hub::Input::Drain { to: session(2) });
    net.flow();
    assert!(net.effects.contains(&Effect::Drained { last: net.hub().last() }));
    net.hub_in(hub::Input::Stored(vec![(mutation(3, 1), SubmitOutcome::Acknowledged)]));
    let late = submit(&mut net, 3, "late");
    let op = net.set_op(3, "k", "1");
    net.rest();
    assert!(stores(&mut net).is_empty());
    assert!(net.nodes[&3].submits.is_empty());
    assert_eq!(net.outcome(3, op), None);
    let opens = net.feed.opens.len();
    net.hub_in(hub::Input::Resume);
    net.flow();
    assert_eq!(net.nodes[&3].submits, [(early, SubmitOutcome::Acknowledged)]);
    assert_eq!(stores(&mut net), [mutation(3, 2)]);
    net.hub_in(hub::Input::Stored(vec![(mutation(3, 2), SubmitOutcome::Acknowledged)]));
    net.rest();
    assert_eq!(net.nodes[&3].submits[1].0, late);
    assert!(matches!(net.outcome(3, op), Some(OpOutcome::Applied { volatile: false, .. })));
    assert_eq!(net.feed.opens.len(), opens + 1);
}

#[test]
fn a_drain_ends_when_the_heir_has_everything_and_then_nothing_changes() {
    let mut net = Net::group(resumable(), 3);
    net.node(2).deaf = true;
    net.publish(vec![set("k", "1"), event("1")]);
    net.effects.clear();
    net.hub_in(hub::Input::Drain { to: session(2) });
    net.flow();
    assert!(!net.effects.iter().any(|effect| matches!(effect, Effect::Drained { .. })));
    net.node(2).deaf = false;
    net.flow();
    let last = net.hub().last();
    assert!(net.effects.contains(&Effect::Drained { last }));
    assert_eq!(net.nodes[&2].follower.hello_last(), last);
    net.publish_event();
    assert_eq!(net.hub().last(), last);
}

#[test]
fn a_session_that_came_back_as_an_ordinary_member_is_not_handed_to() {
    let mut net = Net::group(resumable(), 3);
    net.node(2).blocked = true;
    net.publish_event();
    net.hub_in(hub::Input::Drain { to: session(2) });
    net.flow();
    net.cut(2);
    net.node(2).blocked = false;
    net.link(2);
    net.rest();
    assert!(net.nodes[&2].follower.is_synced());
    assert!(!net.effects.iter().any(|effect| matches!(effect, Effect::Drained { .. })));
}

#[test]
fn a_handover_tells_the_heir_and_then_everybody() {
    let mut net = Net::group(resumable(), 3);
    net.follower_in(2, follower::Input::KitReady(kit()));
    let token = ask(&mut net, 3, Ask::Promote(None));
    net.flow();
    assert!(net.effects.contains(&Effect::Promote { to: None }));
    assert_eq!(net.hub().heirs()[0].kit, Some(kit()));
    net.hub_in(hub::Input::Drain { to: session(2) });
    net.flow();
    let last = net.hub().last();
    net.hub_in(hub::Input::SendGo { to: session(2), last });
    net.flow();
    net.follower_in(2, follower::Input::Took(Epoch(2)));
    net.flow();
    assert!(net.effects.contains(&Effect::Took { epoch: Epoch(2), to: Some(kit()) }));
    assert!(net.nodes[&3].answers.is_empty());
    net.hub_in(hub::Input::SendMoved { epoch: Epoch(2), to: kit() });
    net.flow();
    assert_eq!(net.nodes[&3].moved, Some(Epoch(2)));
    assert_eq!(net.nodes[&3].answers, [(token, Answer::Done)]);
}

#[test]
fn a_handover_that_cannot_be_is_refused_with_its_reason() {
    let mut net = Net::group(resumable(), 2);
    net.add(3);
    net.node(3).rank = Rank::Observer;
    net.join(3);
    for (to, part) in [(session(3), "never leads"), (session(9), "not connected")] {
        let token = ask(&mut net, 2, Ask::Promote(Some(to)));
        net.flow();
        let answer = net.node(2).answers.pop();
        assert!(matches!(answer, Some((t, Answer::Refused(why))) if t == token && why.contains(part)));
    }
    let token = ask(&mut net, 2, Ask::Promote(Some(session(1))));
    net.flow();
    assert_eq!(net.node(2).answers.pop(), Some((token, Answer::Done)));
    // The election refused: a resume without a drain.
    let token = ask(&mut net, 1, Ask::Promote(None));
    net.flow();
    net.hub_in(hub::Input::Resume);
    net.flow();
    assert!(matches!(net.node(1).answers.pop(), Some((t, Answer::Refused(_))) if t == token));
}

#[test]
fn questions_are_answered_in_line_with_what_came_before() {
    let mut net = Net::group(resumable(), 2);
    net.publish(vec![set("k", "1")]);
    let sync = ask(&mut net, 2, Ask::Sync);
    let members = ask(&mut net, 2, Ask::Members);
    net.flow();
    assert_eq!(net.node(2).value("k").as_deref(), Some("1"));
    let answers = &net.nodes[&2].answers;
    assert_eq!(answers[0], (sync, Answer::Done));
    assert!(matches!(&answers[1], (token, Answer::Members(list)) if *token == members && list.len() == 2));
}

#[test]
fn a_question_without_an_answer_goes_to_the_next_owner() {
    let mut net = Net::group(resumable(), 3);
    net.node(3).mute = true;
    let token = ask(&mut net, 3, Ask::Sync);
    net.flow();
    net.fail_over(2);
    assert_eq!(net.nodes[&3].answers, [(token, Answer::Done)]);
}

#[test]
fn presence_is_reported_and_ends_with_the_link() {
    let mut net = Net::group(resumable(), 2);
    let hidden = paceline_proto::presence::Presence { visible: false, ..Default::default() };
    net.effects.clear();
    net.follower_in(2, follower::Input::Presence(hidden));
    net.flow();
    net.cut(2);
    let seen: Vec<_> = net
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Presence { session, presence } => Some((*session, *presence)),
            _ => None,
        })
        .collect();
    assert_eq!(seen, [(session(2), Some(hidden)), (session(2), None)]);
}

#[test]
fn who_breaks_a_rule_is_dropped_alone_with_the_reason() {
    let op = |session| HeldOp {
        id: OpId { session: hub_net::session(session), seq: 1 },
        operation: Operation::Set { key: key("k"), value: text("1") },
    };
    let long = || Key(vec![b'k'; KEY_MAX + 1].into());
    let far = Place { reset: Mark::ZERO, version: Version::None, mark: Mark::new(Epoch(99), Offset(1)) };
    let rest = |end| ToHub::OfferRest { channels: vec![], ops: vec![], applied: vec![], end };
    let cases: Vec<(ToHub, &str)> = vec![
        (ToHub::Subscribe { keys: vec![long()], streams: vec![] }, "too long"),
        (ToHub::Subscribe { keys: vec![key("k"); CHUNK_ITEMS + 1], streams: vec![] }, "chunk"),
        (ToHub::OfferKeys(vec![]), "offer without"),
        (rest(true), "offer without"),
        (ToHub::Ack(Offset(1 << 40)), "not sent"),
        (ToHub::Op { op: op(2), trace: Trace::NONE }, "another session"),
        (ToHub::Submit(Submit { id: mutation(2, 1), hash: [0; 16], payload: text("x") }), "another session"),
        (
            ToHub::Submit(Submit {
                id: mutation(3, 1),
                hash: [0; 16],
                payload: vec![0; VALUE_MAX + 1].into(),
            }),
            "past the bounds",
        ),
        (
            ToHub::Values(vec![Held {
                key: key("k"),
                place: far,
                value: text("x"),
                hash: 0,
                invalidated: false,
                updated_at: Time::ZERO,
            }]),
            "hash",
        ),
        (ToHub::Kit(KitAddress { socket: "s".repeat(256), nonce: Nonce(1) }), "socket name"),
    ];
    for (message, part) in cases {
        let mut net = Net::group(resumable(), 4);
        net.send_up(3, message.clone());
        net.step_up(3, 1);
        let (link, why) = net.unlinked.last().expect("dropped").clone();
        assert_eq!(Some(link), net.nodes[&3].link, "{message:?}");
        assert!(why.contains(part), "{why}: {message:?}");
        assert_eq!(net.count("peer_refused"), 1);
        net.publish_event();
        net.flow();
        for id in [1, 2, 4] {
            assert_eq!(net.delivered(id), ["1"], "session {id} after {message:?}");
        }
    }
}

#[test]
fn a_second_hello_ends_the_link() {
    let mut net = Net::group(resumable(), 2);
    let hello = Hello {
        proof: Nonce(0),
        proto: PROTO,
        session: session(2),
        label: String::new(),
        build: String::new(),
        pid: 2,
        rank: Rank::Candidate,
        last: Mark::ZERO,
        declared: 0,
        presence: Default::default(),
        release: RELEASE,
        features: Features::NONE,
        schema: 1,
        more: Default::default(),
    };
    net.send_up(2, ToHub::Hello(hello));
    net.step_up(2, 1);
    assert!(net.unlinked.last().unwrap().1.contains("second Hello"));
}

#[test]
fn a_value_that_nobody_can_have_poisons_nothing() {
    let mut net = Net::group(resumable(), 3);
    net.publish(vec![set("k", "1")]);
    net.rest();
    net.kill_owner();
    net.take_over(2);
    net.find_dead();
    net.link(3);
    net.write(3);
    let future = Place {
        reset: Mark::new(Epoch(u64::MAX), Offset(1)),
        version: Version::None,
        mark: Mark::new(Epoch(1), Offset(1)),
    };
    net.send_up(3, ToHub::OfferKeys(vec![KeyOffer { key: key("k"), place: future, hash: 1 }]));
    net.step_up(3, 1);
    assert!(net.unlinked.last().unwrap().1.contains("future"));
    assert_eq!(net.hub().get(&key("k")).unwrap().value, "1");
}

#[test]
fn who_asks_without_reading_is_dropped() {
    let mut net = Net::group(resumable(), 3);
    let link = net.nodes[&3].link.unwrap();
    net.node(3).blocked = true;
    for id in 0..30_000 {
        net.hub_in(hub::Input::Message {
            link,
            message: ToHub::Ask { id, ask: Ask::Sync, trace: Trace::NONE },
        });
    }
    assert!(net.unlinked.iter().any(|(dropped, why)| *dropped == link && why.contains("without reading")));
    assert_eq!(net.hub().links().count(), 2);
}

#[test]
fn an_upstream_message_past_the_bounds_is_refused_alone() {
    let mut net = Net::group(resumable(), 2);
    let big = Change::Set { key: key("k"), value: vec![b'x'; VALUE_MAX + 1].into(), version: Version::None };
    let fits = Change::Set { key: key("k"), value: vec![b'x'; VALUE_MAX].into(), version: Version::None };
    net.publish(vec![big, event("1")]);
    net.flow();
    assert_eq!(net.delivered(2), ["1"]);
    assert_eq!(net.node(2).value("k"), None);
    assert!(net.events.iter().any(|event| matches!(event, Event::UpstreamMessageRefused { .. })));
    net.publish(vec![fits]);
    net.flow();
    assert_eq!(net.node(2).value("k").map(|value| value.len()), Some(VALUE_MAX));
}
