//! Everything at once, at random: rules, polls, hints, versions, sessions that come, hide and go, preferences, deadlines. What must
//! hold at every moment is asked after each step; then the world is healed, and what must hold in the end is asked.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_proto::{
    fetch::{FailureKind, FetchOutcome, FetchStatus, Want},
    id::{SessionId, Version},
    presence::Presence,
};
use paceline_query::{
    engine::{Ask, AskId, Input, Preferences, RefetchType},
    rules::{Hints, NetworkMode, Options, Poll, PollMode, PollStep, Resource, Source, Staleness},
};
use proptest::prelude::*;

use crate::world::*;

const SESSIONS: [SessionId; 4] = [OWN, A, B, SessionId(4)];
const KEYS: [&str; 10] =
    ["plain/1", "plain/2", "polled", "smart", "fed", "critical", "cancel", "server/1", "server/2", "pushed"];

#[derive(Debug, Clone)]
enum Step {
    Declare(usize),
    Leave(usize),
    Presence(usize, bool, bool, bool, Option<u8>),
    Observe(usize, usize, Options),
    Unobserve(usize, usize),
    Ask(usize, usize, Want),
    Refetch(usize, bool, RefetchType),
    Unask(u64),
    Set(usize),
    Push(usize, bool),
    Reset(usize),
    Invalidate(usize, bool, RefetchType),
    InvalidateTag(RefetchType),
    Answer(usize, Reply),
    Online(bool),
    Channel(bool),
    Prefer(bool, bool),
    Pass(u64),
}

#[derive(Debug, Clone)]
enum Reply {
    Value(Option<u64>, Option<PollStep>, Option<Staleness>),
    NotModified,
    Empty,
    Failed(FailureKind),
    Limited(u64),
}

fn reply() -> impl Strategy<Value = Reply> {
    let poll = prop_oneof![
        Just(None),
        Just(Some(PollStep::Stop)),
        Just(Some(PollStep::BackOff)),
        (500_u64..5000).prop_map(|n| Some(PollStep::Every(ms(n)))),
    ];
    let stale = prop_oneof![Just(None), Just(Some(Staleness::Always)), Just(Some(Staleness::Never))];
    prop_oneof![
        6 => (prop::option::of(0_u64..9), poll, stale).prop_map(|(v, p, s)| Reply::Value(v, p, s)),
        1 => Just(Reply::NotModified),
        1 => Just(Reply::Empty),
        2 => prop_oneof![
            Just(FailureKind::Network),
            Just(FailureKind::Timeout),
            Just(FailureKind::Status(500)),
            Just(FailureKind::Status(404)),
        ]
        .prop_map(Reply::Failed),
        1 => (0_u64..60_000).prop_map(Reply::Limited),
    ]
}

fn options() -> impl Strategy<Value = Options> {
    let stale = prop_oneof![Just(None), (0_u64..5000).prop_map(|n| Some(Staleness::After(ms(n))))];
    let poll = prop_oneof![Just(None), Just(Some(None)), (500_u64..5000).prop_map(|n| Some(Some(ms(n)))),];
    let enabled = prop_oneof![4 => Just(None), 1 => Just(Some(false))];
    (enabled, stale, poll, any::<Option<bool>>(), any::<Option<bool>>()).prop_map(
        |(enabled, stale, poll, poll_in_background, on_screen)| Options {
            enabled,
            stale,
            gc: None,
            refetch_on: None,
            poll,
            poll_in_background,
            on_screen,
        },
    )
}

fn refetch() -> impl Strategy<Value = RefetchType> {
    prop_oneof![
        Just(RefetchType::Active),
        Just(RefetchType::Inactive),
        Just(RefetchType::All),
        Just(RefetchType::None),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let session = 0..SESSIONS.len();
    let key = 0..KEYS.len();
    let want = prop_oneof![
        (prop::option::of(0_u64..9000), prop::option::of(0_u64..900))
            .prop_map(|(max_age_ms, max_wait_ms)| Want::Fresh { max_age_ms, max_wait_ms }),
        Just(Want::New),
        Just(Want::Prefetch),
    ];
    prop_oneof![
        2 => session.clone().prop_map(Step::Declare),
        1 => session.clone().prop_map(Step::Leave),
        2 => (session.clone(), any::<bool>(), any::<bool>(), any::<bool>(), any::<Option<u8>>())
            .prop_map(|(s, v, f, a, b)| Step::Presence(s, v, f, a, b)),
        5 => (session.clone(), key.clone(), options()).prop_map(|(s, k, o)| Step::Observe(s, k, o)),
        3 => (session.clone(), key.clone()).prop_map(|(s, k)| Step::Unobserve(s, k)),
        5 => (session, key.clone(), want).prop_map(|(s, k, w)| Step::Ask(s, k, w)),
        1 => (key.clone(), any::<bool>(), refetch()).prop_map(|(k, s, r)| Step::Refetch(k, s, r)),
        1 => (1_u64..20).prop_map(Step::Unask),
        1 => key.clone().prop_map(Step::Set),
        2 => (key.clone(), any::<bool>()).prop_map(|(k, v)| Step::Push(k, v)),
        1 => key.clone().prop_map(Step::Reset),
        3 => (key.clone(), any::<bool>(), refetch()).prop_map(|(k, e, r)| Step::Invalidate(k, e, r)),
        1 => refetch().prop_map(Step::InvalidateTag),
        12 => (key, reply()).prop_map(|(k, r)| Step::Answer(k, r)),
        1 => any::<bool>().prop_map(Step::Online),
        1 => any::<bool>().prop_map(Step::Channel),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(u, f)| Step::Prefer(u, f)),
        8 => (0_u64..3000).prop_map(Step::Pass),
        2 => (3000_u64..200_000).prop_map(Step::Pass),
    ]
}

fn resources() -> Vec<Resource> {
    let polled = |name, poll| Resource { poll: Some(poll), ..stale_after(name, secs(20)) };
    let backing_off = Poll::every(ms(700))
        .when("error".parse().expect("a condition"), PollStep::BackOff)
        .background(secs(3));
    vec![
        Resource { tags: vec!["tag".into()], ..stale_after("plain", secs(2)) },
        polled("polled", backing_off),
        polled("smart", Poll::every(secs(1)).mode(PollMode::Smart)),
        polled("fed", Poll::every(secs(2)).mode(PollMode::Fallback)),
        Resource { critical: true, ..polled("critical", Poll::every(secs(5))) },
        Resource {
            cancellable: true,
            deadline: Some(secs(3)),
            depends_on: vec![paceline_query::rules::Dependency::Key(vec!["plain".into()])],
            ..stale_after("cancel", secs(4))
        },
        Resource {
            source: Some(Source::Server("main".into())),
            network: Some(NetworkMode::OfflineFirst),
            ..stale_after("server", secs(3))
        },
        Resource { source: Some(Source::None), ..stale_after("pushed", secs(3)) },
    ]
}

/// A session and what it can fetch: the second and third everything but closures of the other.
fn declare(world: &mut World, at: usize) {
    let session = SESSIONS[at];
    for resource in resources() {
        let fetches = match resource.source {
            Some(Source::Server(_)) => true,
            Some(Source::Closure) => at == 1 || at == 2,
            Some(Source::None) | None => false,
        };
        world.send(Input::Declared { session, resource: Arc::new(resource), fetches });
    }
}

fn outcome(reply: &Reply, n: usize) -> FetchOutcome {
    match reply {
        Reply::Value(version, poll, stale) => FetchOutcome::Value {
            value: bytes(&n.to_string()),
            version: version.map_or(Version::None, Version::Number),
            etag: "etag".into(),
            hints: Hints { stale: *stale, poll: *poll }.to_bytes().into(),
        },
        Reply::NotModified => FetchOutcome::NotModified,
        Reply::Empty => FetchOutcome::Value {
            value: Bytes::new(),
            version: Version::None,
            etag: "".into(),
            hints: Bytes::new(),
        },
        Reply::Failed(kind) => failed(*kind),
        Reply::Limited(after) => limited(ms(*after)),
    }
}

#[derive(Default)]
struct Open {
    asks: BTreeSet<AskId>,
    /// Who asked, of those that may be taken back.
    of: Vec<(SessionId, AskId)>,
    observed: BTreeSet<(SessionId, usize)>,
    /// Those of them that are not enabled.
    off: BTreeSet<(SessionId, usize)>,
    online: bool,
}

fn do_step(world: &mut World, open: &mut Open, step: &Step, n: usize) {
    let asked = |world: &World, open: &mut Open, session, id: AskId| {
        if !world.answers.contains_key(&id) {
            open.asks.insert(id);
            open.of.push((session, id));
        }
    };
    match step {
        Step::Declare(at) => declare(world, *at),
        Step::Leave(at) => {
            let gone = SESSIONS[*at];
            world.leave(gone);
            world.open.retain(|(session, _)| *session != gone);
            open.observed.retain(|(session, _)| *session != gone);
            for (_, id) in open.of.iter().filter(|(session, _)| *session == gone) {
                open.asks.remove(id);
            }
        }
        Step::Presence(at, visible, focused, active, battery) => {
            let battery = battery.map(|percent| percent % 101);
            let presence = Presence { visible: *visible, focused: *focused, active: *active, battery };
            world.presence(SESSIONS[*at], |_| presence);
        }
        Step::Observe(at, key, options) => {
            open.observed.insert((SESSIONS[*at], *key));
            if options.enabled == Some(false) {
                open.off.insert((SESSIONS[*at], *key));
            } else {
                open.off.remove(&(SESSIONS[*at], *key));
            }
            world.observe_with(SESSIONS[*at], KEYS[*key], *options);
        }
        Step::Unobserve(at, key) => {
            open.observed.remove(&(SESSIONS[*at], *key));
            world.unobserve(SESSIONS[*at], KEYS[*key]);
        }
        Step::Ask(at, key, want) => {
            let id = world.ask(SESSIONS[*at], KEYS[*key], want.clone());
            asked(world, open, SESSIONS[*at], id);
        }
        Step::Refetch(at, stale, refetch) => {
            let name = KEYS[*at].split('/').next().expect("a name");
            let ask = Ask::Refetch { key: key(name), exact: false, stale: *stale, refetch: *refetch };
            let id = world.ask_for(OWN, ask);
            asked(world, open, OWN, id);
        }
        Step::Unask(id) => {
            if open.asks.remove(&AskId(*id)) {
                world.send(Input::Unasked { id: AskId(*id) });
            }
        }
        Step::Set(at) => world.set(KEYS[*at], &n.to_string()),
        Step::Push(at, versioned) => world.push_as(KEYS[*at], &n.to_string(), *versioned),
        Step::Reset(at) => world.reset(KEYS[*at]),
        Step::Invalidate(at, exact, refetch) => world.invalidate_as(KEYS[*at], *exact, *refetch),
        Step::InvalidateTag(refetch) => {
            let trace = paceline_proto::id::Trace::NONE;
            world.send(Input::TagInvalidated { tag: "tag".into(), refetch: *refetch, trace });
        }
        Step::Answer(at, reply) => {
            if world.open.iter().any(|(_, request)| request.key == key(KEYS[*at])) {
                world.reply_to(KEYS[*at], outcome(reply, n));
            }
        }
        Step::Online(online) => {
            open.online = *online;
            world.online(*online);
        }
        Step::Channel(healthy) => world.send(Input::Channel { resource: "fed".into(), healthy: *healthy }),
        Step::Prefer(automatic_updates, refetch_on_focus) => world.send(Input::Preferences(Preferences {
            automatic_updates: *automatic_updates,
            refetch_on_focus: *refetch_on_focus,
            ..Preferences::default()
        })),
        Step::Pass(time) => world.pass(ms(*time)),
    }
    open.asks.retain(|id| !world.answers.contains_key(id));
}

/// What holds at every moment.
fn check(world: &World, open: &Open, requests: usize) {
    let mut running = BTreeSet::new();
    for (session, request) in &world.open {
        assert!(running.insert(request.key.clone()), "two attempts for {:?}", request.key);
        assert!(request.key != key("pushed"), "nobody fetches it");
        assert!(*session != OWN || request.resource.starts_with("server"), "{session:?} cannot fetch it");
    }
    if !open.online {
        let asked =
            world.requests[requests..].iter().find(|(_, _, asked)| !asked.0.starts_with(b"\x05\x06server"));
        assert_eq!(asked, None, "nothing is asked offline");
    }
    for (_, at) in &open.observed {
        let state = world.state(KEYS[*at]);
        let attempt = running.contains(&key(KEYS[*at]));
        assert!(!attempt || state.fetch == FetchStatus::Fetching, "{} is fetched: {state:?}", KEYS[*at]);
        let stored = world.values.get(&key(KEYS[*at]));
        assert!(stored.is_some() || state.stale, "{} has no value and is not stale", KEYS[*at]);
    }
}

/// Everything becomes well; what anybody waits for or looks at is there within the time that failures may take.
fn heal(world: &mut World, open: &mut Open) {
    world.online(true);
    world.send(Input::Preferences(Preferences::default()));
    for (at, session) in SESSIONS.iter().enumerate() {
        // What failed too often waits for somebody who looks again.
        world.presence(*session, |presence| Presence { visible: false, ..presence });
        world.presence(*session, |presence| presence);
        declare(world, at);
    }
    let end = world.time() + mins(3);
    let mut answered = 0;
    loop {
        while !world.open.is_empty() {
            world.reply(value("\"healed\""));
            answered += 1;
            assert!(answered < 20_000, "it fetches for ever");
        }
        let due = world.engine.deadline().map(|due| due.since(START)).filter(|due| *due <= end);
        let Some(due) = due else { break };
        world.pass_until(due);
    }
    world.pass_until(end);
    open.asks.retain(|id| !world.answers.contains_key(id));
    assert!(open.asks.is_empty(), "questions without an answer: {:?}", open.asks);
    for (session, at) in open.observed.iter().filter(|(_, at)| KEYS[*at] != "pushed") {
        let off = open.off.contains(&(*session, *at));
        assert!(off || world.held(KEYS[*at]).is_some(), "{} has no value", KEYS[*at]);
        assert_eq!(world.fetch_status(KEYS[*at]), FetchStatus::Idle, "{}", KEYS[*at]);
    }
    for (session, name) in SESSIONS.iter().flat_map(|session| KEYS.map(|name| (*session, name))) {
        world.unobserve(session, name);
    }
    world.pass(Duration::from_secs(3600));
    world.values.retain(|stored, _| *stored != key("pushed"));
    assert!(world.values.is_empty(), "somebody could fetch it, nobody needs {:?}", world.values);
    for session in SESSIONS {
        world.leave(session);
    }
    assert_eq!(world.engine.deadline(), None, "nobody is there, nothing is due");
}

fn run(steps: &[Step]) {
    let mut world = World::new([]);
    let mut open = Open { online: true, ..Open::default() };
    for (at, session) in SESSIONS.iter().enumerate() {
        world.presence(*session, |presence| presence);
        declare(&mut world, at);
    }
    for (n, step) in steps.iter().enumerate() {
        let requests = world.requests.len();
        do_step(&mut world, &mut open, step, n);
        check(&world, &open, if matches!(step, Step::Online(_)) { world.requests.len() } else { requests });
    }
    heal(&mut world, &mut open);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_what_must_hold_holds_and_a_healed_world_is_well(
        steps in prop::collection::vec(step(), 1..100),
    ) {
        run(&steps);
    }
}
