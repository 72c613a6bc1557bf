//! What an owner tells of its reign, and looks that it passes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod hub_net;

use hub_net::{Net, resumable, session, set};
use paceline_proto::{
    follower,
    id::Trace,
    limits::CHUNK_ITEMS,
    look::{Look, Seen, Standing},
    message::{Answer, Ask, Rank},
};

fn ask(net: &mut Net, id: u64, ask: Ask) -> u64 {
    let token = net.node(id).token();
    net.follower_in(id, follower::Input::Ask { token, ask, trace: Trace::NONE });
    token
}

fn answer(net: &mut Net, id: u64, question: Ask) -> Answer {
    let token = ask(net, id, question);
    net.flow();
    let (answered, answer) = net.node(id).answers.pop().unwrap();
    assert_eq!(answered, token);
    answer
}

#[test]
fn every_session_is_listed_with_what_it_is() {
    let mut net = Net::group(resumable(), 3);
    net.add(4);
    net.node(4).rank = Rank::Observer;
    net.join(4);
    net.subscribe(4, &["k"], true);
    net.flow();
    let Answer::Sessions(sessions) = answer(&mut net, 4, Ask::Sessions) else { panic!("sessions") };
    let standing: Vec<_> = sessions.iter().map(|info| (info.member.session, info.standing)).collect();
    assert_eq!(standing[0], (session(1), Standing::Primary));
    assert!(standing.contains(&(session(2), Standing::Heir { current: true })));
    assert!(standing.contains(&(session(4), Standing::Follower)));
    let observer = sessions.iter().find(|info| info.member.session == session(4)).unwrap();
    assert_eq!((observer.rank, observer.keys, observer.streams), (Rank::Observer, 1, 1));
}

#[test]
fn keys_come_in_chunks_that_join() {
    let mut net = Net::group(resumable(), 2);
    for n in 0..=CHUNK_ITEMS {
        net.publish(vec![set(&format!("{n:04}"), "1")]);
    }
    net.flow();
    let Answer::Keys { keys, more: true } = answer(&mut net, 2, Ask::Keys { after: None }) else {
        panic!("a first chunk and more")
    };
    assert_eq!(keys.len(), CHUNK_ITEMS);
    let after = Some(keys[CHUNK_ITEMS - 1].key.clone());
    let Answer::Keys { keys: rest, more: false } = answer(&mut net, 2, Ask::Keys { after }) else {
        panic!("the rest")
    };
    assert_eq!(rest.len(), 1);
}

#[test]
fn a_look_reaches_its_session_and_the_answer_whoever_asked() {
    let mut net = Net::group(resumable(), 3);
    let token = ask(&mut net, 3, Ask::Look { at: session(2), look: Look::Debug(true) });
    net.flow();
    let (asker, id, look) = net.node(2).looks.pop().unwrap();
    assert_eq!((asker, look), (session(3), Look::Debug(true)));
    assert!(net.node(3).answers.is_empty());
    let seen = Seen::Debug { before: false };
    net.follower_in(2, follower::Input::Seen { asker, id, seen: seen.clone() });
    net.flow();
    assert_eq!(net.nodes[&3].answers, [(token, Answer::Seen(seen))]);
}

#[test]
fn a_look_at_a_session_that_is_not_there_is_refused() {
    let mut net = Net::group(resumable(), 2);
    let refused = answer(&mut net, 2, Ask::Look { at: session(9), look: Look::Debug(true) });
    assert!(matches!(refused, Answer::Refused(why) if why.contains("not connected")));
}

#[test]
fn an_owner_with_a_follower_is_not_alone() {
    let mut net = Net::group(resumable(), 1);
    assert!(net.hub().is_alone());
    net.add(2);
    net.join(2);
    net.flow();
    assert!(!net.hub().is_alone());
}
