//! Rules on the wire: what is written is what is read, and nothing else is read.

use std::time::Duration;

use paceline_query::{
    condition::Condition,
    limits::{INTERVAL_MIN, RETRIES_MAX, RULES_MAX},
    pattern::KeyPattern,
    rules::{
        Dependency, Hints, NetworkMode, Options, Poll, PollMode, PollStep, Resource, Retry, RulesError,
        Source, Staleness, Triggers,
    },
};
use proptest::{option, prelude::*};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);

fn pattern(segments: Value) -> KeyPattern {
    KeyPattern::new(segments.as_array().expect("a list")).expect("a pattern")
}

fn resource(name: &str) -> Resource {
    Resource::new(name).expect("a name")
}

#[test]
fn a_resource_without_a_pattern_has_the_keys_that_begin_with_its_name() {
    assert_eq!(resource("process").pattern, pattern(json!(["process", ".."])));
    assert_eq!(resource("process.list").pattern, pattern(json!(["process", "list", ".."])));
    for name in ["", ".", "a.", ".a", "a.b.c", "A", "{a}", "a b", "..", &"x".repeat(65)] {
        assert_eq!(Resource::new(name), Err(RulesError::Name(name.to_owned())));
    }
    assert!(Resource::new(&format!("{0}.{0}", "x".repeat(64))).is_ok());
}

#[test]
fn the_bytes_on_the_wire_are_fixed() {
    let polled = Poll::otherwise(PollStep::Every(30 * SECOND))
        .when("empty($)".parse().unwrap(), PollStep::Stop)
        .when("error".parse().unwrap(), PollStep::BackOff)
        .mode(PollMode::Smart)
        .background(60 * SECOND);
    let whole = resource("job")
        .pattern(pattern(json!(["job", "{id}"])))
        .stale(Staleness::After(2 * SECOND))
        .gc(Duration::MAX)
        .refetch_on(Triggers { subscribe: true, focus: false, reconnect: true })
        .network(NetworkMode::OfflineFirst)
        .retry(Retry { times: 3, base: SECOND, cap: 30 * SECOND, jitter: true })
        .tag("work")
        .depends_on(Dependency::Key(vec![json!("site"), json!("{id}")]))
        .depends_on(Dependency::tag("all"))
        .source(Source::Server("main".into()))
        .deadline(10 * SECOND)
        .poll(polled)
        .critical()
        .cancellable();
    let bytes = r#"{"name":"job","pattern":["job","{id}"],"stale":{"after_ns":2000000000},"gc_ns":18446744073709551615,"refetch_on":{"subscribe":true,"focus":false,"reconnect":true},"network":"offline_first","retry":{"times":3,"base_ns":1000000000,"cap_ns":30000000000,"jitter":true},"tags":["work"],"depends_on":[{"key":["site","{id}"]},{"tag":"all"}],"source":{"server":"main"},"deadline_ns":10000000000,"poll":{"mode":"smart","rules":[{"when":"empty($)","then":"stop"},{"when":"error","then":"back_off"}],"otherwise":{"every_ns":30000000000},"background_ns":60000000000,"idle_after_ns":300000000000},"critical":true,"cancellable":true}"#;
    assert_eq!(String::from_utf8(whole.to_bytes()).unwrap(), bytes);
    assert_eq!(Resource::from_bytes(bytes.as_bytes()), Ok(whole));
    let bare = r#"{"name":"job","pattern":["job",".."]}"#;
    assert_eq!(String::from_utf8(resource("job").to_bytes()).unwrap(), bare);
    assert_eq!(Resource::from_bytes(bare.as_bytes()), Ok(resource("job")));
}

#[test]
fn what_is_asked_for_in_several_places_is_told_together_and_alone_as_ever() {
    let poll = Options { poll: Some(Some(Duration::from_secs(1))), ..Options::default() };
    let off = Options { enabled: Some(false), ..Options::default() };
    for list in [vec![Options::default()], vec![poll], vec![poll, off, Options::default()]] {
        assert_eq!(Options::list_from_bytes(&Options::list_to_bytes(&list)), Ok(list));
    }
    for one in [poll, Options::default()] {
        assert_eq!(Options::list_to_bytes(&[one]), one.to_bytes());
    }
    assert!(Options::list_to_bytes(&[]).is_empty());
    assert_eq!(Options::list_from_bytes(b""), Ok(vec![Options::default()]));
    assert!(Options::list_from_bytes(br#"[{"poll_ns":1}]"#).is_err(), "each is checked");
}

#[test]
fn options_and_hints_that_say_nothing_take_no_room_and_null_is_said() {
    for (options, bytes) in [
        (Options::default(), "{}"),
        (Options { poll: Some(None), ..Options::default() }, r#"{"poll_ns":null}"#),
        (
            Options { poll: Some(Some(SECOND)), on_screen: Some(false), ..Options::default() },
            r#"{"poll_ns":1000000000,"on_screen":false}"#,
        ),
    ] {
        assert_eq!(String::from_utf8(options.to_bytes()).unwrap(), bytes);
        assert_eq!(Options::from_bytes(bytes.as_bytes()), Ok(options));
    }
    assert_eq!(Options::from_bytes(b""), Ok(Options::default()));
    assert!(Hints::default().to_bytes().is_empty());
    assert_eq!(Hints::from_bytes(b""), Ok(Hints::default()));
    let hints = Hints { stale: Some(Staleness::Never), poll: Some(PollStep::Stop) };
    assert_eq!(hints.to_bytes(), br#"{"stale":"never","poll":"stop"}"#);
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let refused = |text: &str| match Resource::from_bytes(text.as_bytes()) {
        Err(RulesError::Json(why)) => why,
        other => panic!("{text}: {other:?}"),
    };
    let poll = r#""mode":"smart","rules":[],"otherwise":"stop","idle_after_ns":1"#;
    for (text, named) in [
        (r#"{"name":"a","pattern":["a"],"colour":1}"#.to_owned(), "`colour`"),
        (r#"{"name":"a","pattern":["a"],"stale":"soon"}"#.to_owned(), "`soon`"),
        (r#"{"name":"a","pattern":["a"],"stale":{"later":1}}"#.to_owned(), "`later`"),
        (r#"{"name":"a","pattern":["a"],"refetch_on":{"subscribe":true,"focus":true,"reconnect":true,"rain":true}}"#.to_owned(), "`rain`"),
        (r#"{"name":"a","pattern":["a"],"depends_on":[{"wish":[]}]}"#.to_owned(), "`wish`"),
        (format!(r#"{{"name":"a","pattern":["a"],"poll":{{{poll},"pace":1}}}}"#), "`pace`"),
        (format!(r#"{{"name":"a","pattern":["a"],"poll":{{{}}}}}"#, poll.replace("[]", r#"[{"when":"error","then":"stop","why":1}]"#)), "`why`"),
        (format!(r#"{{"name":"a","pattern":["a"],"poll":{{{}}}}}"#, poll.replace("[]", r#"[{"when":"perhaps","then":"stop"}]"#)), "read the condition"),
        (r#"{"name":"a","pattern":["..","a"]}"#.to_owned(), "`..` stands at the end only"),
        (r#"{"name":"a","name":"b","pattern":["a"]}"#.to_owned(), "duplicate field `name`"),
        (r#"{"pattern":["a"]}"#.to_owned(), "missing field `name`"),
        (r#"{"name":"a","pattern":["a"]} "#.to_owned() + "x", "trailing characters"),
        (r#"{"name":"a","pattern":["a"],"gc_ns":-1}"#.to_owned(), "-1"),
    ] {
        let why = refused(&text);
        assert!(why.contains(named), "{text}: {why}");
    }
    let options = Options::from_bytes(br#"{"staleness":"never"}"#);
    assert!(matches!(options, Err(RulesError::Json(why)) if why.contains("`staleness`")));
    let hints = Hints::from_bytes(br#"{"gc_ns":1}"#);
    assert!(matches!(hints, Err(RulesError::Json(why)) if why.contains("`gc_ns`")));
}

#[test]
fn rules_at_a_bound_are_taken_and_beyond_it_refused() {
    let long = |len: usize| resource("a").source(Source::Server("x".repeat(len).into()));
    let room = RULES_MAX - long(0).to_bytes().len();
    assert_eq!(long(room).check(), Ok(()));
    assert_eq!(Resource::from_bytes(&long(room).to_bytes()), Ok(long(room)));
    assert_eq!(long(room + 1).check(), Err(RulesError::TooLong(RULES_MAX + 1)));
    assert_eq!(Resource::from_bytes(&long(room + 1).to_bytes()), Err(RulesError::TooLong(RULES_MAX + 1)));

    let short = INTERVAL_MIN - Duration::from_nanos(1);
    let polled = |interval| resource("a").poll(Poll::every(interval)).check();
    assert_eq!((polled(INTERVAL_MIN), polled(short)), (Ok(()), Err(RulesError::Interval("every"))));
    let rule = |interval| {
        resource("a").poll(Poll::every(SECOND).when(Condition::Failed, PollStep::Every(interval))).check()
    };
    assert_eq!((rule(INTERVAL_MIN), rule(short)), (Ok(()), Err(RulesError::Interval("every"))));
    let unseen = |interval| resource("a").poll(Poll::every(SECOND).background(interval)).check();
    assert_eq!((unseen(INTERVAL_MIN), unseen(short)), (Ok(()), Err(RulesError::Interval("background"))));
    let weak = |interval| resource("a").poll(Poll::every(SECOND).low_battery(interval)).check();
    assert_eq!((weak(INTERVAL_MIN), weak(short)), (Ok(()), Err(RulesError::Interval("low_battery"))));
    let deadline = |interval| resource("a").deadline(interval).check();
    assert_eq!((deadline(INTERVAL_MIN), deadline(short)), (Ok(()), Err(RulesError::Interval("deadline"))));
    let asked = |interval| {
        Options::from_bytes(&Options { poll: Some(Some(interval)), ..Options::default() }.to_bytes())
            .map(drop)
    };
    assert_eq!((asked(INTERVAL_MIN), asked(short)), (Ok(()), Err(RulesError::Interval("poll"))));
    let hinted = |interval| {
        Hints::from_bytes(&Hints { poll: Some(PollStep::Every(interval)), stale: None }.to_bytes()).map(drop)
    };
    assert_eq!((hinted(INTERVAL_MIN), hinted(short)), (Ok(()), Err(RulesError::Interval("every"))));

    let retried =
        |times, base| resource("a").retry(Retry { times, base, cap: SECOND, jitter: false }).check();
    assert_eq!(retried(RETRIES_MAX, SECOND), Ok(()));
    assert_eq!(retried(RETRIES_MAX + 1, SECOND), Err(RulesError::Retries(RETRIES_MAX + 1)));
    assert_eq!((retried(0, INTERVAL_MIN), retried(0, short)), (Ok(()), Err(RulesError::Interval("base"))));
    assert_eq!(retried(0, SECOND + short), Err(RulesError::Delays));
}

#[test]
fn names_tags_and_dependencies_are_checked() {
    let unnamed = Resource { name: "No".into(), ..resource("a") };
    assert_eq!(unnamed.check(), Err(RulesError::Name("No".into())));
    let wrong = |tag: &str| Err(RulesError::Tag { resource: "a".into(), tag: tag.into() });
    assert_eq!(resource("a").tag("fine").tag("Not fine").check(), wrong("Not fine"));
    assert_eq!(resource("a").depends_on(Dependency::tag("")).check(), wrong(""));
    for segments in [json!([]), json!(["x{id}"]), json!(["a", "{ID}"]), json!(["x".repeat(5000)])] {
        let keyed = resource("a").depends_on(Dependency::Key(segments.as_array().unwrap().clone()));
        assert!(matches!(keyed.check(), Err(RulesError::Dependency { resource, .. }) if resource == "a"));
    }
    let keyed = |segments: Value| Dependency::Key(segments.as_array().unwrap().clone());
    assert_eq!(resource("a").depends_on(keyed(json!(["b", "{id}", { "c": ["{"] }]))).check(), Ok(()));
}

#[test]
fn the_digest_tells_rules_apart_but_not_who_fetches() {
    let rules = resource("a").stale(Staleness::Never);
    assert_eq!(rules.digest(), rules.clone().source(Source::Closure).digest());
    assert_ne!(rules.digest(), rules.clone().stale(Staleness::Static).digest());
    assert_ne!(rules.digest(), rules.clone().tag("b").digest());
}

fn duration() -> impl Strategy<Value = Duration> {
    let whole = (1_000_000..u64::MAX).prop_map(Duration::from_nanos);
    prop_oneof![4 => (1_u64..100_000_000).prop_map(Duration::from_millis), 1 => whole, 1 => Just(Duration::MAX)]
}

fn staleness() -> impl Strategy<Value = Staleness> {
    prop_oneof![
        prop_oneof![Just(Duration::ZERO), duration()].prop_map(Staleness::After),
        Just(Staleness::Never),
        Just(Staleness::Always),
        Just(Staleness::Static),
    ]
}

fn triggers() -> impl Strategy<Value = Triggers> {
    any::<(bool, bool, bool)>().prop_map(|(subscribe, focus, reconnect)| Triggers {
        subscribe,
        focus,
        reconnect,
    })
}

fn step() -> impl Strategy<Value = PollStep> {
    prop_oneof![duration().prop_map(PollStep::Every), Just(PollStep::Stop), Just(PollStep::BackOff)]
}

fn condition() -> impl Strategy<Value = Condition> {
    let texts = [
        r#"$.type == "A\"b" and len($.n) <= 7"#,
        "any($, $.FinishedDate == null and key.x > 1.5)",
        "empty($.a[0]) and error",
        r#"key.filter != "active""#,
        "$ >= -1e300",
    ];
    prop::sample::select(texts.to_vec()).prop_map(|text| text.parse().expect("a condition"))
}

fn poll() -> impl Strategy<Value = Poll> {
    let mode = prop::sample::select(vec![PollMode::Independent, PollMode::Fallback, PollMode::Smart]);
    let rules = prop::collection::vec((condition(), step()), 0..3);
    (mode, rules, step(), option::of(duration()), duration(), option::of(duration())).prop_map(
        |(mode, rules, otherwise, background, idle_after, low_battery)| Poll {
            mode,
            rules,
            otherwise,
            background,
            idle_after,
            low_battery,
        },
    )
}

fn retry() -> impl Strategy<Value = Retry> {
    (0..=RETRIES_MAX, duration(), duration(), any::<bool>()).prop_map(|(times, one, two, jitter)| Retry {
        times,
        base: one.min(two),
        cap: one.max(two),
        jitter,
    })
}

fn dependency() -> impl Strategy<Value = Dependency> {
    let segment =
        prop::sample::select(vec![json!("a"), json!("{id}"), json!(7), json!(null), json!({"b":[1.5]})]);
    prop_oneof![
        prop::collection::vec(segment, 1..4).prop_map(Dependency::Key),
        "[a-z0-9][a-z0-9_-]{0,8}".prop_map(|tag| Dependency::tag(&tag)),
    ]
}

fn keys() -> impl Strategy<Value = KeyPattern> {
    prop::sample::select(vec![
        json!(["a", ".."]),
        json!(["a", "{x}", 7, null, { "b": [1.5, true] }]),
        json!(["{x}", "{y}", ".."]),
    ])
    .prop_map(pattern)
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![
        Just(Source::None),
        Just(Source::Closure),
        "\\PC{0,8}".prop_map(|name| Source::Server(name.into()))
    ]
}

prop_compose! {
    fn any_resource()(
        name in "[a-z0-9][a-z0-9_-]{0,8}(\\.[a-z0-9][a-z0-9_-]{0,8})?",
        pattern in keys(),
        (stale, gc, refetch_on) in (option::of(staleness()), option::of(duration()), option::of(triggers())),
        network in option::of(prop::sample::select(vec![NetworkMode::Online, NetworkMode::Always, NetworkMode::OfflineFirst])),
        retry in option::of(retry()),
        tags in prop::collection::vec("[a-z0-9][a-z0-9_-]{0,8}", 0..3),
        depends_on in prop::collection::vec(dependency(), 0..3),
        (source, deadline, poll) in (option::of(source()), option::of(duration()), option::of(poll())),
        (critical, cancellable) in any::<(bool, bool)>(),
    ) -> Resource {
        Resource {
            name: name.into(),
            pattern,
            stale,
            gc,
            refetch_on,
            network,
            retry,
            tags: tags.into_iter().map(Into::into).collect(),
            depends_on,
            source,
            deadline,
            poll,
            critical,
            cancellable,
        }
    }
}

prop_compose! {
    fn options()(
        (stale, gc, refetch_on) in (option::of(staleness()), option::of(duration()), option::of(triggers())),
        poll in option::of(option::of(duration())),
        (enabled, poll_in_background, on_screen) in any::<(Option<bool>, Option<bool>, Option<bool>)>(),
    ) -> Options {
        Options { enabled, stale, gc, refetch_on, poll, poll_in_background, on_screen }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(resource in any_resource(), options in options(), stale in option::of(staleness()), poll in option::of(step())) {
        prop_assert_eq!(Resource::from_bytes(&resource.to_bytes()), Ok(resource));
        prop_assert_eq!(Options::from_bytes(&options.to_bytes()), Ok(options));
        let hints = Hints { stale, poll };
        prop_assert_eq!(Hints::from_bytes(&hints.to_bytes()), Ok(hints));
    }

    #[test]
    fn no_bytes_bring_the_reader_down(resource in any_resource(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = resource.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = Resource::from_bytes(&bytes) {
            prop_assert_eq!(read.check(), Ok(()));
            prop_assert_eq!(Resource::from_bytes(&read.to_bytes()), Ok(read));
        }
    }
}
