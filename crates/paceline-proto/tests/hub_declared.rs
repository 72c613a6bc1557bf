//! Sessions that declare different things under one name: the items are compared, and nobody is asked where all is the same.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod hub_net;

use hub_net::{Net, resumable, session};
use paceline_proto::{
    event::Event,
    fetch::Declared,
    follower, hub,
    limits::{CHUNK_ITEMS, ITEM_TEXT_MAX, ITEMS_MAX},
    message::{Answer, Ask, DeclaredItem, Declarer, ItemConflict, ToHub},
};

type Items<'a> = &'a [(&'a str, u64)];

const OURS: Items<'static> = &[("outbox", 1), ("resources.a", 3), ("upstreams.feed", 2)];

fn declare(net: &mut Net, id: u64, items: Items<'_>) {
    net.add(id);
    net.node(id).declared =
        items.iter().fold(0, |root, (name, digest)| (root + digest) * 7 % 1009 + name.len() as u64);
    let item = |(name, digest): &(&str, u64)| DeclaredItem {
        name: (*name).to_owned(),
        digest: *digest,
        place: format!("{id}.toml"),
    };
    net.follower_in(id, follower::Input::Items(items.iter().map(item).collect()));
}

/// Session 1 leads, the others join in order; each declares what is said of it.
fn group(declared: &[Items<'_>]) -> Net {
    let mut net = Net::new(resumable());
    net.end_hub();
    for (items, id) in declared.iter().zip(1..) {
        declare(&mut net, id, items);
        if id == 1 {
            net.take_over_knowing(1, None);
            net.flow();
        } else {
            net.join(id);
        }
    }
    net.rest();
    net
}

fn conflict(item: &str, ignored: u64, counts: u64) -> ItemConflict {
    let declarer = |id: u64| Declarer { session: session(id), pid: id as u32, place: format!("{id}.toml") };
    ItemConflict { item: item.to_owned(), ignored: declarer(ignored), counts: declarer(counts) }
}

/// What status would show.
fn shown(net: &mut Net) -> Vec<ItemConflict> {
    let (owner, token) = (net.owner, 77);
    let trace = paceline_proto::id::Trace::NONE;
    net.follower_in(owner, follower::Input::Ask { token, ask: Ask::Conflicts, trace });
    net.flow();
    let answers = &mut net.node(owner).answers;
    let at = answers.iter().position(|(of, _)| *of == token).unwrap();
    let Answer::Conflicts(conflicts) = answers.remove(at).1 else { panic!("another answer") };
    conflicts
}

/// What a session was told, and what the owner was of the same session.
fn told(net: &Net, id: u64) -> Vec<ItemConflict> {
    let of = |events: &[Event]| -> Vec<ItemConflict> {
        let conflict = |event: &Event| match event {
            Event::ConfigConflict(conflict) => Some((**conflict).clone()),
            _ => None,
        };
        events.iter().filter_map(conflict).filter(|it| it.ignored.session == session(id)).collect()
    };
    let told = of(&net.nodes[&id].events);
    assert_eq!(told, of(&net.events), "the session and its owner know the same");
    told
}

#[test]
fn each_item_that_differs_is_told_to_its_session_and_shown_while_it_does() {
    let theirs: Items<'_> = &[("outbox", 1), ("resources.a", 8), ("upstreams.feed", 9), ("tags.b", 1)];
    let mut net = group(&[OURS, OURS, theirs, &[]]);
    let both = vec![conflict("resources.a", 3, 1), conflict("upstreams.feed", 3, 1)];
    assert_eq!(told(&net, 3), both, "what only one declares is no conflict");
    assert_eq!(shown(&mut net), both);
    for id in [1, 2, 4] {
        assert_eq!(told(&net, id), [], "session {id}");
    }
    let words = both[0].to_string();
    for part in ["resources.a of session ", "process 3 (3.toml)", "process 1 (1.toml), which counts"] {
        assert!(words.contains(part), "{words}");
    }
    net.lose(3);
    assert_eq!(shown(&mut net), []);
    net.join(3);
    net.rest();
    assert_eq!(shown(&mut net), both, "it came again");
}

#[test]
fn where_all_declare_the_same_nobody_is_asked() {
    let mut net = group(&[OURS, OURS, &[]]);
    let link = net.node(2).link.unwrap();
    net.hub_in(hub::Input::Message { link, message: ToHub::Items { items: Vec::new(), end: true } });
    assert!(net.unlinked.iter().any(|(unlinked, why)| *unlinked == link && why.contains("nobody wanted")));
}

#[test]
fn a_new_owner_learns_it_again_and_its_own_declaration_counts() {
    let mut net = group(&[OURS, &[("outbox", 7)], OURS]);
    assert_eq!(shown(&mut net), [conflict("outbox", 2, 1)]);
    net.fail_over(2);
    assert_eq!(shown(&mut net), [conflict("outbox", 3, 2)]);
    assert_eq!(told(&net, 3), [conflict("outbox", 3, 2)]);
    net.lose(3);
    net.nodes.remove(&3);
    assert_eq!(shown(&mut net), []);
}

#[test]
fn what_the_owner_does_not_declare_is_as_the_first_declares_it() {
    let mut net = group(&[&[], &[("resources.a", 1)], &[("resources.a", 2)], &[("resources.a", 1)]]);
    assert_eq!(shown(&mut net), [conflict("resources.a", 3, 2)]);
    net.lose(2);
    assert_eq!(shown(&mut net), [conflict("resources.a", 4, 3)], "the first that is still there");
    assert_eq!(told(&net, 4), [conflict("resources.a", 4, 3)]);
}

#[test]
fn the_first_is_who_was_heard_first_as_for_the_query_engine() {
    let mut net = group(&[&[]]);
    for (id, digest) in [(2, 1), (3, 2)] {
        declare(&mut net, id, &[("resources.a", digest)]);
        let resource = Declared { name: "a".into(), rules: hub_net::text("{}"), fetches: false };
        net.follower_in(id, follower::Input::Declare(vec![resource]));
    }
    net.node(2).mute = true;
    net.join(2);
    net.join(3);
    net.node(2).mute = false;
    net.flow();
    net.rest();
    let sessions: Vec<_> = net
        .facts
        .iter()
        .filter_map(|fact| match fact {
            hub::QueryFact::Declared { session, .. } => Some(*session),
            _ => None,
        })
        .collect();
    assert_eq!(sessions, [session(3), session(2)]);
    assert_eq!(shown(&mut net), [conflict("resources.a", 2, 3)]);
}

/// A session that was asked what it declares and has not said.
fn asked() -> Net {
    let mut net = group(&[OURS]);
    declare(&mut net, 2, &[("outbox", 7)]);
    net.node(2).mute = true;
    net.join(2);
    net
}

fn say(net: &mut Net, numbers: std::ops::Range<usize>, text: usize, end: bool) {
    let item = |n: usize| DeclaredItem { name: format!("{n:0text$}"), digest: 1, place: "p".repeat(text) };
    let link = net.node(2).link.unwrap();
    let message = ToHub::Items { items: numbers.map(item).collect(), end };
    net.hub_in(hub::Input::Message { link, message });
}

#[test]
fn bounds_of_what_is_declared_hold_just_inside_and_just_outside() {
    let mut net = asked();
    for first in (0..ITEMS_MAX).step_by(CHUNK_ITEMS) {
        say(&mut net, first..first + CHUNK_ITEMS, ITEM_TEXT_MAX, false);
    }
    assert_eq!(net.count("peer_refused"), 0);
    say(&mut net, ITEMS_MAX..ITEMS_MAX + 1, 1, true);
    assert_eq!((net.count("peer_refused"), net.count("limit_reached")), (1, 1));
    let mut net = asked();
    say(&mut net, 0..1, ITEM_TEXT_MAX + 1, true);
    assert_eq!(net.count("peer_refused"), 1);
}

#[test]
fn of_very_many_conflicts_a_chunk_is_told() {
    let names: Vec<String> = (0..=CHUNK_ITEMS).map(|n| format!("tags.{n:04}")).collect();
    let all = |digest| names.iter().map(|name| (name.as_str(), digest)).collect::<Vec<_>>();
    let mut net = group(&[&all(1), &all(2)]);
    assert_eq!(shown(&mut net).len(), CHUNK_ITEMS);
    assert_eq!(told(&net, 2).len(), CHUNK_ITEMS);
}
