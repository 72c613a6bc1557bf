//! What comes to a primary's socket before it said who it is: bounded, answered or closed, and never in anybody's way.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use common::{PATIENCE, block_on, comes_back, group_is, join, leads, scratch};
use paceline::{Presence, Session, SessionId, key};
use paceline_ipc::codec;
use paceline_proto::{
    id::{Mark, Nonce},
    limits::{HELLO_MAX, UNAUTHENTICATED_MAX},
    message::{Hello, Rank, Refusal, ToHub, ToSession},
    program::{Features, PROTO, RELEASE},
};

fn primary(dir: &Path) -> Session {
    let session = join(dir);
    group_is(&session, "the lead", leads);
    session
}

/// Waits until events of this kind happened so often: a connection may be closed a moment before its event is written.
fn happened(session: &Session, kind: &'static str, times: u64) {
    let mut cursor = session.runtime().observer().follow();
    let watched = session.clone();
    let counted = comes_back(kind, move || {
        let counted = || watched.group().event_counts().get(kind).copied().unwrap_or(0);
        while counted() < times {
            block_on(cursor.next(watched.runtime().death())).unwrap();
        }
        counted()
    });
    assert_eq!(counted, times, "{kind}");
}

/// Its nonce and a connection to its socket, which says nothing yet.
fn knock(dir: &Path) -> (Nonce, UnixStream) {
    let group = dir.join("test");
    let claim = fs::read_to_string(group.join("claims").join("00000001")).unwrap();
    let value = |key: &str| claim.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    let stream = UnixStream::connect(group.join("s").join(value("socket="))).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (value("nonce=").parse().unwrap(), stream)
}

/// The first message that comes back; `None` when the connection is closed without one.
fn answer(stream: &mut UnixStream) -> Option<ToSession> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut body).unwrap();
    Some(codec::decode(&body).unwrap())
}

fn hello(proof: Nonce) -> Hello {
    Hello {
        proof,
        proto: PROTO,
        session: SessionId(7),
        label: "a stranger".into(),
        build: "none".into(),
        pid: 0,
        rank: Rank::Observer,
        last: Mark::default(),
        declared: 0,
        presence: Presence::default(),
        release: RELEASE,
        features: Features::ALL,
        schema: 1,
        more: bytes::Bytes::new(),
    }
}

#[test]
fn as_many_as_may_wait_at_the_door_and_one_more_hears_that_it_is_full() {
    let dir = scratch();
    let session = primary(dir.path());
    // All must have come before the first one's time is over: on a stalled machine it takes another try.
    let full = (0..50).any(|_| {
        let mut waiting: Vec<_> = (0..UNAUTHENTICATED_MAX).map(|_| knock(dir.path()).1).collect();
        let (_, mut outside) = knock(dir.path());
        let told = matches!(answer(&mut outside), Some(ToSession::Busy { retry_ms: 1.. }));
        // Those inside are not answered, and closed when their time is over.
        assert!(waiting.iter_mut().all(|inside| answer(inside).is_none()));
        told
    });
    assert!(full, "nobody was told");
    let counts = session.group().event_counts();
    assert!(counts["limit_reached"] >= 1, "{counts:?}");
    let newcomer = join(dir.path());
    newcomer.set_blocking(key!["k"], &1).unwrap();
    group_is(&session, "the lead as before", leads);
}

#[test]
fn who_is_silent_is_closed_and_who_speaks_in_time_is_answered() {
    let dir = scratch();
    let session = primary(dir.path());
    let (nonce, mut silent) = knock(dir.path());
    assert!(answer(&mut silent).is_none());
    happened(&session, "peer_refused", 1);
    let (_, mut speaks) = knock(dir.path());
    speaks.write_all(&codec::encode_frame(&ToHub::Hello(hello(nonce))).unwrap()).unwrap();
    assert!(matches!(answer(&mut speaks), Some(ToSession::Welcome(_))));
    happened(&session, "peer_refused", 1);
}

#[test]
fn the_wrong_proof_is_refused() {
    let dir = scratch();
    let session = primary(dir.path());
    let (Nonce(nonce), mut stream) = knock(dir.path());
    stream.write_all(&codec::encode_frame(&ToHub::Hello(hello(Nonce(nonce ^ 1)))).unwrap()).unwrap();
    assert!(matches!(answer(&mut stream), Some(ToSession::Refused(Refusal::Proof))));
    happened(&session, "peer_refused", 1);
}

#[test]
fn a_first_frame_that_is_too_long_or_no_hello_or_garbage_ends_the_connection() {
    let dir = scratch();
    let session = primary(dir.path());
    let too_long = (u32::try_from(HELLO_MAX).unwrap() + 1).to_le_bytes().to_vec();
    let no_hello = codec::encode_frame(&ToHub::Close).unwrap().to_vec();
    let garbage = [&8_u32.to_le_bytes()[..], &[0xff; 8]].concat();
    for (n, bytes) in [too_long, no_hello, garbage].into_iter().enumerate() {
        let (_, mut stream) = knock(dir.path());
        stream.write_all(&bytes).unwrap();
        assert!(answer(&mut stream).is_none(), "{n}");
        happened(&session, "peer_refused", n as u64 + 1);
    }
}

/// A session that breaks the protocol after its Welcome is dropped alone.
#[test]
fn garbage_behind_a_welcome_ends_that_link_only() {
    let dir = scratch();
    let session = primary(dir.path());
    let other = join(dir.path());
    let (nonce, mut stream) = knock(dir.path());
    stream.write_all(&codec::encode_frame(&ToHub::Hello(hello(nonce))).unwrap()).unwrap();
    assert!(matches!(answer(&mut stream), Some(ToSession::Welcome(_))));
    stream.write_all(&[&8_u32.to_le_bytes()[..], &[0xff; 8]].concat()).unwrap();
    comes_back("the end of the connection", move || while answer(&mut stream).is_some() {});
    happened(&session, "peer_refused", 1);
    other.set_blocking(key!["k"], &1).unwrap();
    session.set_blocking(key!["k"], &2).unwrap();
}
