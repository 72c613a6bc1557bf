//! Somebody at the group's socket who does not speak as a session does, while the others set and submit without end.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use paceline_ipc::codec;
use paceline_proto::{
    id::{Mark, Nonce, SessionId},
    limits::{FRAME_MAX, HELLO_MAX, UNAUTHENTICATED_MAX},
    message::{Hello, Rank, ToHub, ToSession},
    presence::Presence,
    program::{Features, PROTO, RELEASE},
};
use paceline_tests::{PATIENCE, Peer, Scratch, newest_claim};
use serde_json::{Value, json};

use crate::{PEER, says, stored, text, trio};

/// A connection to the primary, which has heard nothing on it, and the proof that Hello needs.
fn knock(scratch: &Scratch) -> (Nonce, UnixStream) {
    let group = scratch.path().join("test");
    let claim = fs::read_to_string(group.join("claims/00000001")).expect("the claim");
    let value =
        |key: &str| claim.lines().find_map(|line| line.strip_prefix(key)).expect("a field").to_owned();
    let stream = UnixStream::connect(group.join("s").join(value("socket="))).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time to wait");
    (value("nonce=").parse().expect("a nonce"), stream)
}

fn frame(message: &ToHub) -> Vec<u8> {
    codec::encode_frame(message).expect("a message").to_vec()
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).expect("a length").to_le_bytes()[..], body].concat()
}

fn hello(proof: Nonce) -> Vec<u8> {
    frame(&ToHub::Hello(Hello {
        proof,
        proto: PROTO,
        session: SessionId(7),
        label: "a stranger".into(),
        build: "none".into(),
        pid: std::process::id(),
        rank: Rank::Observer,
        last: Mark::default(),
        declared: 0,
        presence: Presence::default(),
        release: RELEASE,
        features: Features::ALL,
        schema: 1,
        more: bytes::Bytes::new(),
    }))
}

/// A message of a few bytes that announces more keys than there is memory.
fn bomb() -> Vec<u8> {
    let body = &frame(&ToHub::Subscribe { keys: Vec::new(), streams: Vec::new() })[4..];
    assert_eq!(body[1..], [0, 0], "two empty lists");
    framed(&[&body[..1], &[0xfd], &u64::MAX.to_le_bytes()[..], &[0; 16]].concat())
}

/// Reads to the end of the connection.
fn closed(mut stream: UnixStream) {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
}

/// What a stranger sends, before it said Hello or after it was welcomed, and the words about it.
struct Attack {
    welcomed: bool,
    bytes: Vec<u8>,
    /// It goes away; else the primary is to end the connection.
    leaves: bool,
    words: &'static [&'static str],
}

fn attacks() -> Vec<Attack> {
    let attack = |welcomed, bytes, words| Attack { welcomed, bytes, leaves: false, words };
    let too_long = |cap: usize| (u32::try_from(cap).expect("a length") + 1).to_le_bytes().to_vec();
    vec![
        attack(
            false,
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            &["take a frame of 542393671 bytes", "at most 4096"],
        ),
        attack(false, too_long(HELLO_MAX), &["take a frame of 4097 bytes", "at most 4096"]),
        attack(false, framed(&[0xff; 8]), &["decode a frame"]),
        attack(false, bomb(), &["decode a frame"]),
        attack(false, frame(&ToHub::Close), &["the first message was not Hello"]),
        attack(false, Vec::new(), &["no Hello within 500 ms"]),
        attack(false, hello(Nonce(0))[..20].to_vec(), &["no Hello within 500 ms"]),
        attack(false, hello(Nonce(0)), &["a stranger", "it does not know what the claim says"]),
        Attack { leaves: true, ..attack(false, Vec::new(), &["closed before Hello"]) },
        attack(true, framed(&[0xff; 8]), &["a stranger", "a frame that cannot be read"]),
        attack(
            true,
            too_long(FRAME_MAX),
            &["a stranger", "take a frame of 1114113 bytes", "at most 1114112"],
        ),
        attack(true, bomb(), &["a stranger", "a frame that cannot be read"]),
        attack(true, frame(&ToHub::Close)[..3].to_vec(), &["a stranger", "begun and not finished within 2s"]),
        attack(true, frame(&ToHub::Resync), &["a stranger", "a resync before the snapshot"]),
    ]
}

fn carry_out(scratch: &Scratch, attack: &Attack) {
    let (nonce, mut stream) = knock(scratch);
    if attack.welcomed {
        stream.write_all(&hello(nonce)).expect("say Hello");
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect("an answer");
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        stream.read_exact(&mut body).expect("an answer");
        let answer = codec::decode::<ToSession>(&body).expect("a message");
        assert!(matches!(answer, ToSession::Welcome(_)), "{answer:?}");
    }
    // It may be closed before it took everything.
    let _ = stream.write_all(&attack.bytes);
    if !attack.leaves {
        closed(stream);
    }
}

/// A session whose calls go on, and everything it said.
struct Working {
    peer: Peer,
    said: Vec<Value>,
}

impl Working {
    fn new(mut peer: Peer, work: &Value) -> Self {
        peer.tell(work);
        Self { peer, said: Vec::new() }
    }

    /// More of its calls are answered from now on.
    fn goes_on(&mut self, is: fn(&Value) -> bool) {
        self.said.extend(self.peer.drain());
        for _ in 0..20 {
            let line = self.peer.wait("more of it", |line| is(line).then(|| line.clone()));
            self.said.push(line);
        }
    }

    /// Kills it; nothing it said tells of trouble.
    fn end(mut self) -> Vec<Value> {
        self.peer.kill();
        assert!(self.peer.ended());
        self.said.extend(self.peer.drain());
        for trouble in ["refused", "error", "gap", "dead", "elected", "fenced", "lost_events"] {
            let told = self.said.iter().find(|line| line.get(trouble).is_some());
            assert_eq!(told, None, "{trouble}");
        }
        self.said
    }
}

fn acknowledged(line: &Value) -> bool {
    line["acknowledged"].is_string()
}

fn shown(line: &Value) -> bool {
    line["view"].is_u64()
}

/// The most that the process had mapped, KiB.
fn peak(peer: &Peer) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", peer.pid())).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).expect("a peak");
    peak.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn whoever_breaks_the_rules_at_the_socket_is_named_and_disturbs_nobody() {
    let scratch = Scratch::new("strangers");
    let [primary, heir, observer] = trio(&scratch);
    // The heir submits, the observer sets what the heir shows.
    let mut heir = Working::new(heir, &json!({ "submit": "heir", "callers": 2 }));
    let mut observer = Working::new(observer, &json!({ "flood": ["k"], "count": u64::MAX, "bytes": 8 }));
    let (before, this) = (peak(&primary), format!("process {}", std::process::id()));
    for attack in attacks() {
        heir.goes_on(acknowledged);
        carry_out(&scratch, &attack);
        let words = primary.wait("its words", |line| {
            (line["warned"] == json!("peer_refused")).then(|| text(line, "text")).flatten()
        });
        says(&words, &[&["a peer was turned away", this.as_str()], attack.words].concat());
        heir.goes_on(acknowledged);
        heir.goes_on(shown);
        observer.goes_on(shown);
    }
    assert!(peak(&primary) < before + (1 << 20), "no memory was taken for what was only announced");
    full_door(&scratch, &primary, &mut heir);

    assert_eq!(newest_claim(&scratch), (1, primary.pid()), "nobody took it for dead");
    let (heir, observer) = (heir.end(), observer.end());
    for said in [&heir, &observer] {
        let views: Vec<u64> = said.iter().filter_map(|line| line["view"].as_u64()).collect();
        assert!(views.is_sorted(), "never an older value: {views:?}");
    }
    let payloads: Vec<&str> = heir.iter().filter_map(|line| line["acknowledged"].as_str()).collect();
    let mut numbers = BTreeMap::<&str, Vec<u64>>::new();
    for payload in &payloads {
        let (caller, number) = payload.rsplit_once('-').expect("a number");
        numbers.entry(caller).or_default().push(number.parse().expect("a number"));
    }
    for (caller, numbers) in numbers {
        assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{caller}: {numbers:?}");
    }
    drop(primary);
    let stored = stored(&scratch);
    for payload in payloads {
        assert_eq!(stored.get(payload), Some(&1), "{payload}");
    }
}

/// As many say nothing as may stand at the door: one more is told so, and who is a session comes in when there is room.
fn full_door(scratch: &Scratch, primary: &Peer, heir: &mut Working) {
    let is_full = |line: &Value| (line["limit"] == json!("UNAUTHENTICATED_MAX")).then_some(());
    // All must come before the first one's time is over: on a machine that stalls it takes another try.
    let mut tries = 0..50;
    let waiting = loop {
        assert!(tries.next().is_some(), "nobody was told");
        let waiting: Vec<UnixStream> = (0..UNAUTHENTICATED_MAX).map(|_| knock(scratch).1).collect();
        let mut outside = knock(scratch).1;
        let mut length = [0; 4];
        if outside.read_exact(&mut length).is_err() {
            continue;
        }
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        outside.read_exact(&mut body).expect("an answer");
        if let Ok(ToSession::Busy { retry_ms: 1.. }) = codec::decode(&body) {
            break waiting;
        }
    };
    primary.wait("that it says so", is_full);
    let newcomer = Peer::start(PEER, scratch, &["--observer"]);
    newcomer.joined();
    heir.goes_on(acknowledged);
    waiting.into_iter().for_each(closed);
}
