//! The encoding of every message is what it was: a change here is a change of the protocol.
//!
//! `tests/golden/messages.txt` holds one line per example, its name and the bytes of its body. After a **deliberate**
//! addition, run with `PACELINE_BLESS=1` and read the difference: lines may be added, none may change.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use bytes::Bytes;
use paceline_ipc::codec::{LENGTH_BYTES, decode, encode_frame};
use paceline_proto::{
    connection::{Connection, ConnectionState},
    fetch::*,
    id::{
        Channel, Epoch, Key, Mark, MutationId, Nonce, Offset, OpId, Place, Position, SessionId, Stream,
        Trace, Version,
    },
    look::*,
    message::*,
    presence::Presence,
    program::{Age, Features, ProtoRange, Release},
    time::Time,
};
use proptest::prelude::*;

const SESSION: SessionId = SessionId(0x0192_0000_0000_7000_8000_0000_dead_beef);
const MARK: Mark = Mark::new(Epoch(3), Offset(70_000));

fn channel() -> Channel {
    "feed/a".into()
}

fn stream() -> Stream {
    "labels".into()
}

fn key() -> Key {
    Key::copy_from(b"k\0")
}

fn json() -> Bytes {
    Bytes::from_static(b"{\"a\":1}")
}

fn seq() -> Position {
    Position::Seq { epoch: "e".into(), offset: 300 }
}

fn place() -> Place {
    Place { reset: Mark::ZERO, version: Version::Number(9), mark: MARK }
}

fn held() -> Held {
    Held { key: key(), place: place(), value: json(), hash: u64::MAX, invalidated: true, updated_at: Time(9) }
}

fn operation(n: u64, operation: Operation) -> HeldOp {
    HeldOp { id: OpId { session: SESSION, seq: n }, operation }
}

fn set() -> HeldOp {
    operation(1, Operation::Set { key: key(), value: json() })
}

fn event() -> HeldEvent {
    HeldEvent { mark: MARK, origin: (channel(), seq()), stream: stream(), data: json() }
}

fn gap(why: GapCause) -> Gap {
    Gap { channel: channel(), after: Some(Position::Opaque("x".into())), upto: None, why }
}

fn conflict() -> ItemConflict {
    let declarer = |place: &str| Declarer { session: SESSION, pid: 4711, place: place.to_owned() };
    ItemConflict { item: "outbox".to_owned(), ignored: declarer("b:2:1"), counts: declarer("a:1:1") }
}

fn member() -> Member {
    Member { session: SESSION, label: "editor".to_owned(), pid: 4711, joined: true }
}

fn address() -> KitAddress {
    KitAddress { socket: "deadbeef.sock".to_owned(), nonce: Nonce(0xdead_beef) }
}

fn connection(state: ConnectionState) -> Connection {
    Connection {
        upstream: "feed".into(),
        state,
        transport: "websocket".into(),
        attempts: 2,
        backoff_ms: Some(1500),
    }
}

fn submit() -> Submit {
    Submit { id: MutationId { session: SESSION, seq: 1 }, hash: [7; 16], payload: json() }
}

fn frame(body: Body) -> ToSession {
    let trace = Trace { trace: 0x0102, span: 3 };
    ToSession::Frame(Frame {
        offset: Offset(5),
        trace,
        origin: Some((channel(), seq())),
        op: None,
        ends_atom: true,
        body,
    })
}

/// A name for each variant, without a catch-all: a new variant has to get an example.
fn name_of_hub(message: &ToHub) -> &'static str {
    match message {
        ToHub::Hello(_) => "Hello",
        ToHub::Subscribe { .. } => "Subscribe",
        ToHub::Unsubscribe { .. } => "Unsubscribe",
        ToHub::OfferKeys(_) => "OfferKeys",
        ToHub::OfferRest { .. } => "OfferRest",
        ToHub::Values(_) => "Values",
        ToHub::Tail { .. } => "Tail",
        ToHub::Ack(_) => "Ack",
        ToHub::Resync => "Resync",
        ToHub::Op { .. } => "Op",
        ToHub::Submit(_) => "Submit",
        ToHub::Ask { .. } => "Ask",
        ToHub::Presence(_) => "Presence",
        ToHub::Kit(_) => "Kit",
        ToHub::Took(_) => "Took",
        ToHub::Close => "Close",
        ToHub::Seen { .. } => "Seen",
        ToHub::OfferArchive { .. } => "OfferArchive",
        ToHub::ArchivedValues(_) => "ArchivedValues",
        ToHub::Declare(_) => "Declare",
        ToHub::Observe { .. } => "Observe",
        ToHub::Fetched { .. } => "Fetched",
        ToHub::Items { .. } => "Items",
        ToHub::Layers(_) => "Layers",
        ToHub::TakeBack(_) => "TakeBack",
    }
}

/// As [`name_of_hub`].
fn name_of_session(message: &ToSession) -> &'static str {
    match message {
        ToSession::Welcome(_) => "Welcome",
        ToSession::Busy { .. } => "Busy",
        ToSession::Refused(_) => "Refused",
        ToSession::Ping(_) => "Ping",
        ToSession::Batch(_) => "Batch",
        ToSession::Frame(_) => "Frame",
        ToSession::Snapshot(_) => "Snapshot",
        ToSession::WantKeys(_) => "WantKeys",
        ToSession::WantTail { .. } => "WantTail",
        ToSession::OpDone { .. } => "OpDone",
        ToSession::SubmitDone { .. } => "SubmitDone",
        ToSession::Answer { .. } => "Answer",
        ToSession::Appointed => "Appointed",
        ToSession::Dismissed => "Dismissed",
        ToSession::Go { .. } => "Go",
        ToSession::Moved { .. } => "Moved",
        ToSession::Close => "Close",
        ToSession::Look { .. } => "Look",
        ToSession::ArchiveHeld => "ArchiveHeld",
        ToSession::Applied(_) => "Applied",
        ToSession::Fetch(_) => "Fetch",
        ToSession::CancelFetch(_) => "CancelFetch",
        ToSession::WantItems => "WantItems",
        ToSession::Conflicts(_) => "Conflicts",
        ToSession::Layers(_) => "Layers",
        ToSession::NoRoom(_) => "NoRoom",
    }
}

/// In the order of the variants, each with its own variants inside.
fn to_hub() -> Vec<ToHub> {
    let hello = |rank| {
        ToHub::Hello(Hello {
            proof: Nonce(1),
            proto: ProtoRange { min: 1, max: 1 },
            session: SESSION,
            label: "editor".to_owned(),
            build: "0.1.0".to_owned(),
            pid: 4711,
            rank,
            last: MARK,
            declared: 0,
            presence: Presence::default(),
            release: Release { major: 0, minor: 1, patch: 300 },
            features: Features(1),
            schema: 2,
            more: Bytes::from_static(b"later"),
        })
    };
    let op = |n, o| ToHub::Op { op: operation(n, o), trace: Trace::NONE };
    let ask = |id, ask| ToHub::Ask { id, ask, trace: Trace { trace: u128::MAX, span: u64::MAX } };
    vec![
        hello(Rank::Observer),
        hello(Rank::Candidate),
        hello(Rank::Preferred),
        ToHub::Subscribe { keys: vec![key()], streams: vec![stream()] },
        ToHub::Unsubscribe { keys: vec![], streams: vec![stream()] },
        ToHub::OfferKeys(vec![KeyOffer { key: key(), place: place(), hash: 5 }]),
        ToHub::OfferRest {
            channels: vec![ChannelOffer {
                channel: channel(),
                covered: seq(),
                ring_after: None,
                complete: true,
            }],
            ops: vec![(MARK, set())],
            applied: vec![Applied { session: SESSION, runs: vec![(1, 4)] }],
            end: true,
        },
        ToHub::Values(vec![held()]),
        ToHub::Tail { channel: channel(), events: vec![event()], end: false },
        ToHub::Ack(Offset(64)),
        ToHub::Resync,
        op(1, Operation::Set { key: key(), value: json() }),
        op(2, Operation::Merge { key: key(), patch: json() }),
        op(3, Operation::CompareSet { key: key(), base: Some(place()), value: json() }),
        op(4, Operation::Invalidate { key: key(), exact: false }),
        ToHub::Submit(submit()),
        ask(1, Ask::Promote(Some(SESSION))),
        ask(2, Ask::Sync),
        ask(3, Ask::Members),
        ask(4, Ask::Sessions),
        ask(5, Ask::Keys { after: Some(key()) }),
        ask(6, Ask::Stats),
        ask(7, Ask::Look { at: SESSION, look: Look::Trace { after: 9, trace: Some(0x0102) } }),
        ask(8, Ask::Look { at: SESSION, look: Look::Events { after: 9 } }),
        ask(9, Ask::Look { at: SESSION, look: Look::Debug(true) }),
        ask(10, want(Want::Fresh { max_age_ms: Some(30_000), max_wait_ms: None })),
        ask(11, want(Want::New)),
        ask(12, want(Want::Prefetch)),
        ask(13, Ask::Refetch { key: key(), exact: true, stale: true, refetch: RefetchType::All }),
        ask(14, Ask::Preview { key: key(), exact: true }),
        ask(15, Ask::InvalidateTag { tag: "stock".into(), refetch: RefetchType::Inactive }),
        ask(16, Ask::Online(true)),
        ask(17, Ask::Conflicts),
        ask(18, Ask::Layers { after: Some(key()) }),
        ask(19, Ask::Outbox(OutboxAsk::Outcome(MutationId { session: SESSION, seq: 1 }))),
        ask(20, Ask::Outbox(OutboxAsk::Retry(MutationId { session: SESSION, seq: 1 }))),
        ask(21, Ask::Outbox(OutboxAsk::Discard(MutationId { session: SESSION, seq: 1 }))),
        ask(22, Ask::Outbox(OutboxAsk::Authenticated)),
        ToHub::Presence(Presence { visible: false, focused: true, active: false, battery: Some(80) }),
        ToHub::Kit(address()),
        ToHub::Took(Epoch(4)),
        ToHub::Close,
        ToHub::Seen { asker: SESSION, id: 7, seen: seen_trace() },
        ToHub::OfferArchive {
            channels: vec![(channel(), seq())],
            applied: vec![Applied { session: SESSION, runs: vec![(1, 4)] }],
            keys: vec![KeyOffer { key: key(), place: place(), hash: 5 }],
        },
        ToHub::ArchivedValues(vec![held()]),
        ToHub::Declare(vec![Declared { name: "packages".into(), rules: json(), fetches: true }]),
        ToHub::Observe { key: key(), options: json() },
        fetched(FetchOutcome::Value {
            value: json(),
            version: Version::Number(9),
            etag: "e".into(),
            hints: json(),
        }),
        fetched(FetchOutcome::NotModified),
    ]
    .into_iter()
    .chain(failures().into_iter().map(|failure| fetched(FetchOutcome::Failed(failure))))
    .chain([ToHub::Items {
        items: vec![DeclaredItem { name: "outbox".to_owned(), digest: 7, place: "a:1:1".to_owned() }],
        end: true,
    }])
    .chain([ToHub::Layers(vec![layered()]), ToHub::TakeBack(vec![1, 300])])
    .collect()
}

/// As [`to_hub`].
fn to_session() -> Vec<ToSession> {
    let mut all = vec![
        ToSession::Welcome(Welcome {
            epoch: Epoch(3),
            proto: 1,
            owner: SESSION,
            adopting: true,
            offer_since: Some(MARK),
            positions: vec![(channel(), seq())],
            features: Features(1),
            more: Bytes::new(),
        }),
        ToSession::Busy { retry_ms: 50 },
        ToSession::Refused(Refusal::Version {
            owner: ProtoRange { min: 2, max: 3 },
            build: "9".to_owned(),
            pid: 1,
        }),
        ToSession::Refused(Refusal::Proof),
        ToSession::Refused(Refusal::Full),
        ToSession::Refused(Refusal::Protocol("two Hellos".to_owned())),
        ToSession::Ping(Ping {
            heirs: vec![Heir {
                session: SESSION,
                rank: Rank::Candidate,
                kit: Some(address()),
                current: true,
                age: Age::Newer,
            }],
            stable: MARK,
            members: vec![member()],
            adopting: false,
            unlisted: true,
        }),
        ToSession::Batch(Batch {
            epoch: Epoch(3),
            after: Offset(4),
            upto: Offset(5),
            positions: vec![(channel(), Position::Local { epoch: Epoch(3), n: 8 })],
            count: 1,
            ack_now: true,
            conflated: false,
        }),
    ];
    all.extend(frames());
    all.extend([
        ToSession::Snapshot(Snapshot {
            held: vec![held()],
            events: vec![event()],
            gaps: vec![(MARK, gap(GapCause::Upstream))],
            ops: vec![(MARK, set())],
            connections: vec![connection(ConnectionState::Live)],
            states: vec![(key(), query(FetchStatus::Idle))],
            end: Some(SnapshotEnd {
                upto: Offset(5),
                positions: vec![(channel(), Position::Opaque("x".into()))],
                complete: true,
                rings: vec![(channel(), Some(seq()))],
                applied: vec![Applied { session: SESSION, runs: vec![(1, 4)] }],
            }),
        }),
        ToSession::WantKeys(vec![key()]),
        ToSession::WantTail { channel: channel(), after: Some(seq()) },
    ]);
    all.extend(outcomes());
    all.extend([
        ToSession::Appointed,
        ToSession::Dismissed,
        ToSession::Go { last: MARK },
        ToSession::Moved { epoch: Epoch(4), to: address() },
        ToSession::Close,
        ToSession::Look { asker: SESSION, id: 7, look: Look::Events { after: 0 } },
        ToSession::ArchiveHeld,
        ToSession::Applied(vec![Applied { session: SESSION, runs: vec![(1, 4)] }]),
        ToSession::Fetch(FetchRequest {
            id: FetchId(5),
            resource: "packages".into(),
            key: key(),
            deadline_ms: 30_000,
            background: true,
            etag: "e".into(),
            trace: Trace { trace: 0x0102, span: 3 },
        }),
        ToSession::CancelFetch(FetchId(5)),
        ToSession::WantItems,
        ToSession::Conflicts(vec![conflict()]),
        ToSession::Layers(vec![layered()]),
        ToSession::NoRoom(vec![1, 300]),
    ]);
    all
}

fn layered() -> Layered {
    let layer = Layer { id: OpId { session: SESSION, seq: 300 }, at: MARK, patch: json() };
    Layered { key: key(), layers: vec![layer] }
}

fn want(want: Want) -> Ask {
    Ask::Fetch { key: key(), want }
}

fn fetched(outcome: FetchOutcome) -> ToHub {
    ToHub::Fetched { id: FetchId(5), outcome }
}

fn failures() -> Vec<FetchFailure> {
    [
        FailureKind::Network,
        FailureKind::Timeout,
        FailureKind::Status(503),
        FailureKind::Refused(3),
        FailureKind::Invalid,
        FailureKind::NoFetcher,
        FailureKind::Cancelled,
    ]
    .map(|kind| FetchFailure { kind, why: "closed".to_owned(), retry_after_ms: Some(9), detail: json() })
    .into()
}

fn query(fetch: FetchStatus) -> QueryState {
    QueryState { fetch, background: true, stale: true, failures: 2, error: Some("closed".into()) }
}

fn seen_trace() -> Seen {
    Seen::Trace {
        records: vec![TraceRecord {
            at: 1_000,
            actor: "hub".to_owned(),
            kind: "op".to_owned(),
            key: Bytes::from_static(b"k"),
            queue_ns: 5,
            run_ns: 7,
            outcome: "done".to_owned(),
            trace: Trace { trace: 0x0102, span: 4 },
            parent: 3,
        }],
        written: 10,
    }
}

fn looks() -> Vec<Answer> {
    let info = |standing| SessionInfo {
        member: member(),
        build: "0.1.0".to_owned(),
        rank: Rank::Candidate,
        standing,
        since_ms: 1500,
        keys: 1,
        streams: 2,
        queued: 3,
        acked: Some(Offset(64)),
        conflated: false,
        dropped: 0,
        proto: 1,
    };
    let standings = [
        Standing::Primary,
        Standing::Heir { current: true },
        Standing::Follower,
        Standing::Joining,
        Standing::Awaited,
    ];
    vec![
        Answer::Sessions(standings.map(info).into()),
        Answer::Keys {
            keys: vec![KeyInfo { key: key(), place: place(), bytes: 7, invalidated: true, subscribers: 2 }],
            more: true,
        },
        Answer::Stats(ReignStats {
            last: MARK,
            age_ms: 60_000,
            keys: 1,
            bytes: 7,
            counters: vec![("frames".to_owned(), 9)],
        }),
        Answer::Seen(seen_trace()),
        Answer::Seen(Seen::Events {
            events: vec![EventRecord {
                at: 1_000,
                kind: "fenced".to_owned(),
                text: "fenced".to_owned(),
                level: "info".to_owned(),
            }],
            written: 1,
            counts: vec![("fenced".to_owned(), 1)],
        }),
        Answer::Seen(Seen::Debug { before: false }),
        Answer::Fetched(Fetched::Value { value: json(), updated_at: Time(9), stale: true, cached: false }),
        Answer::Fetched(Fetched::Begun),
        Answer::Fetched(Fetched::Failed(failures().remove(0))),
        Answer::Refetched { ok: 2, failed: 1, failures: vec![(key(), "closed".into())] },
        outcome(OutcomeKind::Done),
        outcome(OutcomeKind::Rejected),
        outcome(OutcomeKind::Failed),
        outcome(OutcomeKind::Conflict),
        outcome(OutcomeKind::Parked),
        outcome(OutcomeKind::Discarded),
        Answer::Cascade(vec![CascadeLine {
            depth: 1,
            cause: "tag stock".into(),
            key: Some(key()),
            resource: Some("packages".into()),
            refetches: true,
        }]),
        Answer::Conflicts(vec![conflict()]),
        Answer::Layers { keys: vec![(key(), 2)], more: true },
    ]
}

fn outcome(kind: OutcomeKind) -> Answer {
    Answer::Outcome { kind, error: Some("HTTP 422".into()), uncertain: true }
}

fn frames() -> Vec<ToSession> {
    let text = Held {
        place: Place { reset: MARK, version: Version::Text("2026".into()), mark: MARK },
        invalidated: false,
        ..held()
    };
    let none = Held { place: Place::default(), ..held() };
    let mut frames = vec![
        Body::Value(held()),
        Body::Value(text),
        Body::Value(none),
        Body::Invalidate { key: key(), exact: true },
        Body::Event { stream: stream(), data: json() },
        Body::Gap(gap(GapCause::Upstream)),
        Body::Gap(gap(GapCause::SlowReader)),
        Body::Gap(gap(GapCause::Resync)),
        Body::Reset { key: key(), held: None, why: "verified".to_owned() },
    ];
    frames.extend(
        [
            ConnectionState::Connecting,
            ConnectionState::Live,
            ConnectionState::Degraded,
            ConnectionState::Offline,
            ConnectionState::Paused,
            ConnectionState::Stopped("no access".to_owned()),
        ]
        .map(|state| Body::Connection(connection(state))),
    );
    frames.push(Body::Nothing);
    frames.extend(
        [FetchStatus::Idle, FetchStatus::Fetching, FetchStatus::Paused]
            .map(|fetch| Body::Query { key: key(), state: query(fetch) }),
    );
    frames.push(Body::Removed { key: key() });
    let mut frames: Vec<ToSession> = frames.into_iter().map(frame).collect();
    frames.push(ToSession::Frame(Frame {
        offset: Offset(6),
        trace: Trace::NONE,
        origin: None,
        op: Some(set()),
        ends_atom: false,
        body: Body::Nothing,
    }));
    frames.push(frame(Body::Layers(layered())));
    frames
}

fn outcomes() -> Vec<ToSession> {
    let op = |outcome| ToSession::OpDone { id: OpId { session: SESSION, seq: 1 }, outcome };
    let submit = |outcome| ToSession::SubmitDone { id: MutationId { session: SESSION, seq: 1 }, outcome };
    let answer = |answer| ToSession::Answer { id: 1, answer };
    let mut all = vec![
        op(OpOutcome::Applied { mark: MARK, volatile: true }),
        op(OpOutcome::Conflict),
        op(OpOutcome::Rejected("too large".to_owned())),
        submit(SubmitOutcome::Acknowledged),
        submit(SubmitOutcome::HashMismatch),
        submit(SubmitOutcome::Hole { expected: 2 }),
        submit(SubmitOutcome::Moved),
        submit(SubmitOutcome::Unknown("disk".to_owned())),
        submit(SubmitOutcome::Busy),
        answer(Answer::Done),
        answer(Answer::Members(vec![member()])),
        answer(Answer::Refused("no heir".to_owned())),
    ];
    all.extend(looks().into_iter().map(answer));
    all
}

/// `<direction>.<variant>.<number>` → bytes of the body.
fn encoded() -> BTreeMap<String, Bytes> {
    let mut lines = BTreeMap::new();
    let mut add = |direction: &str, variant: &str, frame: Bytes| {
        let mut name = String::new();
        for number in 1.. {
            name = format!("{direction}.{variant}.{number:02}");
            if !lines.contains_key(&name) {
                break;
            }
        }
        lines.insert(name, frame.slice(LENGTH_BYTES..));
    };
    for message in to_hub() {
        add("hub", name_of_hub(&message), encode_frame(&message).unwrap());
    }
    for message in to_session() {
        add("session", name_of_session(&message), encode_frame(&message).unwrap());
    }
    lines
}

#[test]
fn messages_are_encoded_as_ever() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/messages.txt");
    let now: String = encoded().iter().fold(String::new(), |mut text, (name, body)| {
        let hex: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{name} {hex}").unwrap();
        text
    });
    if std::env::var_os("PACELINE_BLESS").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap();
    for line in golden.lines() {
        assert!(now.lines().any(|line_now| line_now == line), "changed or lost: {line}");
    }
    for line in now.lines() {
        assert!(golden.lines().any(|golden_line| golden_line == line), "new and not blessed: {line}");
    }
}

#[test]
fn every_variant_has_an_example_and_reads_back() {
    for message in to_hub() {
        let frame = encode_frame(&message).unwrap();
        assert_eq!(decode::<ToHub>(&frame[LENGTH_BYTES..]).unwrap(), message);
    }
    for message in to_session() {
        let frame = encode_frame(&message).unwrap();
        assert_eq!(decode::<ToSession>(&frame[LENGTH_BYTES..]).unwrap(), message);
    }
    // The first byte is the variant's number: all numbers up to the last one occur.
    for direction in ["hub.", "session."] {
        let mut variants: Vec<u8> = encoded()
            .iter()
            .filter(|(name, _)| name.starts_with(direction))
            .map(|(_, body)| body[0])
            .collect();
        variants.sort_unstable();
        variants.dedup();
        assert!(variants.iter().enumerate().all(|(i, &number)| i == usize::from(number)), "{variants:?}");
    }
}

/// A valid body with some bytes changed: reaches deeper than noise.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let bodies: Vec<Bytes> = encoded().into_values().collect();
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (prop::sample::select(bodies), damage, any::<prop::sample::Index>()).prop_map(|(body, damage, end)| {
        let mut body = body.to_vec();
        for (at, byte) in damage {
            let at = at.index(body.len());
            body[at] = byte;
        }
        body.truncate(end.index(body.len()) + 1);
        body
    })
}

proptest! {
    #[test]
    fn decoding_never_panics(
        body in prop_oneof![prop::collection::vec(any::<u8>(), 0..512), damaged()],
    ) {
        // What is accepted is a message like any other.
        if let Ok(message) = decode::<ToHub>(&body) {
            let again = encode_frame(&message).unwrap();
            prop_assert_eq!(decode::<ToHub>(&again[LENGTH_BYTES..]).unwrap(), message);
        }
        if let Ok(message) = decode::<ToSession>(&body) {
            let again = encode_frame(&message).unwrap();
            prop_assert_eq!(decode::<ToSession>(&again[LENGTH_BYTES..]).unwrap(), message);
        }
    }
}
