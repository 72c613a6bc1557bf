use base64::{Engine, engine::general_purpose::STANDARD};

use super::*;
use crate::protocol::Reply;

/// The vectors of the vendor's own library.
const SOCKET: &str = "1234.1234";
const PRIVATE: &str = "278d425bdf160c739803:58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4";
const PRESENCE: &str =
    "278d425bdf160c739803:31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80";
const WHO: &str = r#"{"user_id":10,"user_info":{"name":"Mr. Channels"}}"#;

fn spec() -> PusherSpec {
    let auth = AuthSpec {
        endpoint: "https://app/broadcasting/auth".into(),
        headers: vec![("Authorization".into(), Secret::new("Bearer s3cret"))],
        parallel: 2,
    };
    PusherSpec { auth: Some(auth), ..PusherSpec::new("app key", "h") }
}

struct Bench {
    machine: Pusher,
    now: Time,
}

impl Bench {
    fn new(spec: PusherSpec) -> Self {
        Self { machine: Pusher::new(spec), now: Time(1) }
    }

    /// Connected and greeted, with these channels wanted.
    fn greeted(wanted: &[&str]) -> (Self, Vec<Out>) {
        let mut bench = Self::new(spec());
        bench.want(wanted);
        let mut out = Vec::new();
        bench.machine.request(None);
        bench.machine.on_open(bench.now, &Head::default(), &mut out);
        assert_eq!(out, []);
        let greeting = json!({"event": "pusher:connection_established",
            "data": json!({"socket_id": SOCKET, "activity_timeout": 30}).to_string()});
        let out = bench.frame(&greeting);
        (bench, out)
    }

    /// With one channel that is joined.
    fn joined(channel: &str, grant: &Value) -> Self {
        let (mut bench, out) = Self::greeted(&[channel]);
        if let [_, Out::Call(call)] = out.as_slice() {
            bench.answer(call.id, 200, grant);
        }
        bench.frame(
            &json!({"event": "pusher_internal:subscription_succeeded", "channel": channel, "data": "{}"}),
        );
        bench
    }

    fn want(&mut self, wanted: &[&str]) -> Vec<Out> {
        let mut out = Vec::new();
        self.machine.set_channels(&wanted.iter().map(|it| Arc::from(*it)).collect(), &mut out);
        out
    }

    fn frame(&mut self, frame: &Value) -> Vec<Out> {
        let mut out = Vec::new();
        self.machine.on_frame(self.now, Frame::Text(frame.to_string().into()), &mut out);
        out
    }

    fn answer(&mut self, call: u64, status: u16, body: &Value) -> Vec<Out> {
        let head = Head { status, ..Head::default() };
        self.result(call, Ok(Reply { head, body: body.to_string().into() }))
    }

    fn result(&mut self, call: u64, result: Result<Reply, String>) -> Vec<Out> {
        let mut out = Vec::new();
        self.machine.on_frame(self.now, Frame::Answer(Answer { call, result }), &mut out);
        out
    }

    /// Lets time pass to the next deadline.
    fn due(&mut self) -> (Duration, Vec<Out>) {
        let at = self.machine.deadline().unwrap();
        let waited = at.since(self.now);
        self.now = at;
        let mut out = Vec::new();
        self.machine.on_deadline(at, &mut out);
        (waited, out)
    }
}

fn sent(out: &Out) -> Value {
    match out {
        Out::Send(Outgoing::Text(text)) => serde_json::from_str(text).unwrap(),
        Out::Send(Outgoing::Hidden(text)) => serde_json::from_str(text.reveal()).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn call(out: &Out) -> &Call {
    match out {
        Out::Call(call) => call,
        other => panic!("{other:?}"),
    }
}

fn value(out: &Out) -> &Value {
    match out {
        Out::Message { value, raw, position: None, live: true } => {
            assert_eq!(serde_json::from_slice::<Value>(raw).unwrap(), *value);
            value
        }
        other => panic!("{other:?}"),
    }
}

fn close(machine: &mut Pusher, code: u16) -> CloseAction {
    machine.on_close(&CloseInfo { code: Some(code), ..CloseInfo::because("says so") })
}

#[test]
fn the_address_is_made_of_key_host_and_port() {
    let url = |spec: PusherSpec| Pusher::new(spec).request(None).url;
    let query = concat!("?protocol=7&client=paceline&version=", env!("CARGO_PKG_VERSION"), "&flash=false");
    assert_eq!(url(PusherSpec::cluster("key", "eu")), format!("wss://ws-eu.pusher.com/app/key{query}"));
    let own = PusherSpec { port: Some(6001), tls: false, ..PusherSpec::new("a/b", "127.0.0.1") };
    assert_eq!(url(own), format!("ws://127.0.0.1:6001/app/a%2Fb{query}"));
}

#[test]
fn public_channels_are_joined_at_once_and_private_ones_with_the_endpoints_signature() {
    let (mut bench, out) = Bench::greeted(&["news", "private-foobar"]);
    let [Out::Joined { resumed: false }, news, asked] = out.as_slice() else { panic!("{out:?}") };
    assert_eq!(sent(news), json!({"event": "pusher:subscribe", "data": {"channel": "news"}}));
    let asked = call(asked).clone();
    assert_eq!(asked.url, "https://app/broadcasting/auth");
    assert_eq!(
        asked.body.as_ref().map(Secret::reveal),
        Some("socket_id=1234.1234&channel_name=private-foobar")
    );
    let headers: Vec<_> = asked.headers.iter().map(|(name, value)| (name.as_str(), value.reveal())).collect();
    assert_eq!(
        headers,
        [
            ("Accept", "application/json"),
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Authorization", "Bearer s3cret"),
        ]
    );
    let out = bench.answer(asked.id, 200, &json!({"auth": PRIVATE}));
    let [subscribe] = out.as_slice() else { panic!("{out:?}") };
    assert_eq!(
        sent(subscribe),
        json!({"event": "pusher:subscribe", "data": {"channel": "private-foobar", "auth": PRIVATE}})
    );
    assert!(!format!("{subscribe:?}").contains("58df8b0c"), "a signature is shown to nobody");
    let succeeded =
        |channel: &str| json!({"event": "pusher_internal:subscription_succeeded", "channel": channel});
    assert_eq!(bench.frame(&succeeded("news")), []);
    assert_eq!(bench.frame(&succeeded("private-foobar")), [Out::Live], "when the last one is joined");
}

#[test]
fn who_is_there_is_signed_to_the_byte_and_told_as_events() {
    let (mut bench, out) = Bench::greeted(&["presence-foobar"]);
    let out = bench.answer(call(&out[1]).id, 200, &json!({"auth": PRESENCE, "channel_data": WHO}));
    assert_eq!(
        sent(&out[0])["data"],
        json!({"channel": "presence-foobar", "auth": PRESENCE, "channel_data": WHO})
    );
    let members = json!({"presence": {"count": 1, "ids": ["10"], "hash": {"10": {"name": "Mr. Channels"}}}});
    let out = bench
        .frame(&json!({"event": "pusher_internal:subscription_succeeded", "channel": "presence-foobar",
        "data": members.to_string()}));
    let told =
        json!({"type": "pusher:subscription_succeeded", "channel": "presence-foobar", "data": members});
    assert_eq!((value(&out[0]), &out[1]), (&told, &Out::Live));
    for event in ["member_added", "member_removed"] {
        let out = bench
            .frame(&json!({"event": format!("pusher_internal:{event}"), "channel": "presence-foobar",
            "data": {"user_id": "11"}}));
        assert_eq!(value(&out[0])["type"], format!("pusher:{event}"));
        assert_eq!(value(&out[0])["data"], json!({"user_id": "11"}));
    }
}

#[test]
fn events_are_messages_whatever_their_data() {
    let mut bench = Bench::joined("news", &Value::Null);
    for (data, expected) in [
        (json!("{\"a\":1}"), json!({"a": 1})),
        (json!({"a": 1}), json!({"a": 1})),
        (json!("plain"), json!("plain")),
        (json!("\"twice\""), json!("twice")),
        (json!(null), json!(null)),
    ] {
        let out =
            bench.frame(&json!({"event": "App\\Events\\X", "channel": "news", "data": data, "user_id": "7"}));
        let told = json!({"type": "App\\Events\\X", "channel": "news", "data": expected, "user_id": "7"});
        assert_eq!(value(&out[0]), &told);
    }
    // The last event of a cache channel, or that there is none.
    let out = bench.frame(&json!({"event": "pusher:cache_miss", "channel": "news"}));
    assert_eq!(value(&out[0])["type"], "pusher:cache_miss");
    for ignored in [
        json!({"event": "X", "channel": "left", "data": 1}),
        json!({"event": "pusher:unheard_of", "data": 1}),
        json!({"event": 7}),
        json!([]),
    ] {
        assert_eq!(bench.frame(&ignored), [], "{ignored}");
    }
    let mut out = Vec::new();
    bench.machine.on_frame(bench.now, Frame::Text("{".into()), &mut out);
    assert!(matches!(out.as_slice(), [Out::Unusable(_)]));
}

#[test]
fn channels_that_are_not_wanted_any_more_are_left() {
    let mut bench = Bench::joined("news", &Value::Null);
    let out = bench.want(&["sport"]);
    let unsubscribe = json!({"event": "pusher:unsubscribe", "data": {"channel": "news"}});
    assert_eq!(out.iter().map(sent).collect::<Vec<_>>()[0], unsubscribe);
    assert_eq!(sent(&out[1])["data"], json!({"channel": "sport"}));
    // One that is not authorised yet is not left, and its answer comes too late.
    let id = call(&bench.want(&["sport", "private-a"])[0]).id;
    assert_eq!(bench.want(&["sport"]), []);
    assert_eq!(bench.answer(id, 200, &json!({"auth": PRIVATE})), []);
}

#[test]
fn the_endpoint_is_asked_about_so_many_channels_at_a_time() {
    let (mut bench, out) = Bench::greeted(&["private-a", "private-b", "private-c", "private-d"]);
    let asked: Vec<u64> = out[1..].iter().map(|it| call(it).id).collect();
    assert_eq!(asked.len(), 2);
    let out = bench.answer(asked[0], 200, &json!({"auth": PRIVATE}));
    assert_eq!(sent(&out[0])["data"]["channel"], "private-a");
    assert!(call(&out[1]).body.as_ref().unwrap().reveal().ends_with("private-c"));
    assert_eq!(out.len(), 2);
}

#[test]
fn a_refused_channel_is_told_and_the_others_go_on() {
    let (mut bench, out) = Bench::greeted(&["private-a", "private-b"]);
    let refused = bench.answer(call(&out[1]).id, 403, &json!({}));
    let [Out::Unusable(why)] = refused.as_slice() else { panic!("{refused:?}") };
    assert!(why.contains("\"private-a\"") && why.contains("status 403"), "{why}");
    bench.answer(call(&out[2]).id, 200, &json!({"auth": PRIVATE}));
    let refused = bench.frame(&json!({"event": "pusher:subscription_error", "channel": "private-b",
        "data": {"type": "AuthError", "error": "The connection is unauthorized", "status": 401}}));
    let [Out::Unusable(why), Out::Live] = refused.as_slice() else { panic!("{refused:?}") };
    assert!(why.contains("unauthorized"), "{why}");
    for (status, body) in [(200, json!({})), (200, json!([])), (404, json!({"auth": PRIVATE}))] {
        let (mut bench, out) = Bench::greeted(&["private-a"]);
        let out = bench.answer(call(&out[1]).id, status, &body);
        assert!(matches!(out.as_slice(), [Out::Unusable(_), Out::Live]), "{status} {body}: {out:?}");
    }
    // Without an endpoint none can be joined.
    let mut bench = Bench::new(PusherSpec::new("key", "h"));
    bench.want(&["private-a"]);
    bench.machine.on_open(bench.now, &Head::default(), &mut Vec::new());
    let out = bench.frame(&json!({"event": "pusher:connection_established", "data": {"socket_id": "1.1"}}));
    assert!(matches!(out.as_slice(), [Out::Joined { .. }, Out::Unusable(_), Out::Live]), "{out:?}");
}

#[test]
fn an_endpoint_in_trouble_is_asked_again_later_and_later() {
    let (mut bench, out) = Bench::greeted(&["private-a"]);
    let mut id = call(&out[1]).id;
    let mut waits = Vec::new();
    for n in 0..7 {
        let failed = if n == 0 {
            bench.result(id, Err("no answer".into()))
        } else {
            bench.answer(id, 503, &json!(null))
        };
        assert!(matches!(failed.as_slice(), [Out::Unusable(_)]), "{failed:?}");
        let failed_at = bench.now;
        id = loop {
            // The connection itself is well.
            bench.frame(&json!({"event": "pusher:pong"}));
            let (_, out) = bench.due();
            if let Some(asked) = out.iter().find(|it| matches!(it, Out::Call(_))) {
                break call(asked).id;
            }
        };
        waits.push(bench.now.since(failed_at).as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
}

#[test]
fn a_silent_server_is_asked_whether_it_lives_and_left_if_it_does_not() {
    let mut bench = Bench::joined("news", &Value::Null);
    let (waited, out) = bench.due();
    assert_eq!(
        (waited, sent(&out[0])),
        (Duration::from_secs(30), json!({"event": "pusher:ping", "data": {}}))
    );
    bench.now = bench.now + Duration::from_secs(1);
    let mut out = Vec::new();
    bench.machine.on_frame(bench.now, Frame::Alive, &mut out);
    assert_eq!(bench.due().1, [], "any frame is an answer");
    assert_eq!(bench.due().1.len(), 1);
    let (waited, out) = bench.due();
    assert!(
        matches!(out.as_slice(), [Out::Drop(_)]) && waited == Duration::from_secs(30),
        "{waited:?} {out:?}"
    );
    let answer = Bench::joined("news", &Value::Null).frame(&json!({"event": "pusher:ping", "data": {}}));
    assert_eq!(sent(&answer[0]), json!({"event": "pusher:pong", "data": {}}));

    let mut bench = Bench::new(spec());
    bench.machine.on_open(bench.now, &Head::default(), &mut Vec::new());
    assert!(matches!(bench.due().1.as_slice(), [Out::Drop(_)]), "no greeting");
}

#[test]
fn each_close_code_decides_what_follows() {
    let second = Duration::from_secs(1);
    let mut machine = Pusher::new(spec());
    for code in [4000, 4001, 4003, 4004, 4006, 4007, 4009, 4099, 4300, 4302, 4999] {
        let CloseAction::Stop(why) = close(&mut machine, code) else { panic!("{code}") };
        assert!(why.contains(&code.to_string()) && why.contains("says so"), "{why}");
    }
    for code in [4100, 4199, 1002, 1003] {
        assert_eq!(close(&mut machine, code), CloseAction::Backoff(second), "{code}");
    }
    for code in [4200, 4201, 4202, 4299, 1000, 1001, 1005, 1006] {
        assert_eq!(close(&mut machine, code), CloseAction::Backoff(Duration::ZERO), "{code}");
    }
    // A server that wants TLS gets it, once.
    let mut machine = Pusher::new(PusherSpec { tls: false, ..spec() });
    assert_eq!(close(&mut machine, 4000), CloseAction::Backoff(Duration::ZERO));
    assert!(machine.request(None).url.starts_with("wss://"));
    assert!(matches!(close(&mut machine, 4000), CloseAction::Stop(_)));
}

#[test]
fn a_complaint_ends_the_connection_before_the_greeting_only() {
    let complaint = json!({"event": "pusher:error", "data": {"code": 4001, "message": "no such app"}});
    let mut bench = Bench::new(spec());
    bench.machine.on_open(bench.now, &Head::default(), &mut Vec::new());
    let out = bench.frame(&complaint);
    let [Out::Drop(close)] = out.as_slice() else { panic!("{out:?}") };
    assert!(matches!(bench.machine.on_close(close), CloseAction::Stop(why) if why.contains("no such app")));
    let out = Bench::joined("news", &Value::Null).frame(&complaint);
    assert!(matches!(out.as_slice(), [Out::Unusable(why)] if why.contains("(4001)")), "{out:?}");
}

#[test]
fn an_event_of_a_session_is_sent_and_looped_back() {
    let mut bench = Bench::joined("private-foobar", &json!({"auth": PRIVATE}));
    let event = |channel: &str| ClientEvent {
        channel: channel.into(),
        name: "typing".into(),
        data: json!({"who": 7}),
    };
    let mut out = Vec::new();
    bench.machine.publish(event("private-foobar"), &mut out).unwrap();
    let frame = json!({"event": "client-typing", "channel": "private-foobar", "data": {"who": 7}});
    assert_eq!(sent(&out[0]), frame);
    let told = json!({"type": "client-typing", "channel": "private-foobar", "data": {"who": 7}});
    assert_eq!(value(&out[1]), &told);
    let mut refused = |channel| bench.machine.publish(event(channel), &mut Vec::new()).unwrap_err();
    assert_eq!(refused("news"), PublishError::Channel("news".into()));
    assert_eq!(refused("private-encrypted-a"), PublishError::Channel("private-encrypted-a".into()));
    assert_eq!(refused("private-other"), PublishError::NotJoined("private-other".into()));
}

/// Sealed with the key of 32 times 7 and the nonce of 24 times 9 by PyNaCl.
const SEALED: &str = "zssJ8uU1iXlCWHbk1HWn7/doctQFYE8=";

#[test]
fn sealed_events_are_opened_and_the_secret_is_asked_for_again_once() {
    let channel = "private-encrypted-a";
    let grant = |byte: u8| json!({"auth": PRIVATE, "shared_secret": STANDARD.encode([byte; 32])});
    let sealed = || json!({"nonce": STANDARD.encode([9_u8; 24]), "ciphertext": SEALED});
    let event = || json!({"event": "X", "channel": channel, "data": sealed().to_string()});
    let mut bench = Bench::joined(channel, &grant(7));
    assert_eq!(value(&bench.frame(&event())[0])["data"], json!({"a": 1}));

    let mut bench = Bench::joined(channel, &grant(8));
    let out = bench.frame(&event());
    let [Out::Unusable(_), Out::Joined { resumed: false }, asked] = out.as_slice() else { panic!("{out:?}") };
    let id = call(asked).id;
    let out = bench.frame(&event());
    assert!(matches!(out.as_slice(), [Out::Unusable(_), Out::Joined { .. }]), "not asked twice: {out:?}");
    assert_eq!(bench.answer(id, 200, &grant(7)), [], "it is joined already");
    assert_eq!(value(&bench.frame(&event())[0])["data"], json!({"a": 1}));
    for grant in [json!({"auth": PRIVATE}), json!({"auth": PRIVATE, "shared_secret": "x"})] {
        let (mut bench, out) = Bench::greeted(&[channel]);
        let out = bench.answer(call(&out[1]).id, 200, &grant);
        assert!(
            matches!(out.as_slice(), [Out::Unusable(why), Out::Live] if why.contains("secret")),
            "{out:?}"
        );
    }
}

#[test]
fn channels_are_bounded() {
    let names: Vec<String> = (0..=CHANNELS_MAX).map(|n| format!("c{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let sends = |out: &[Out]| out.iter().filter(|it| matches!(it, Out::Send(_))).count();
    let (_, out) = Bench::greeted(&names[..CHANNELS_MAX]);
    assert_eq!((sends(&out), out.len()), (CHANNELS_MAX, CHANNELS_MAX + 1));
    let (_, out) = Bench::greeted(&names);
    assert_eq!(sends(&out), CHANNELS_MAX);
    assert!(out.iter().any(|it| matches!(it, Out::Unusable(why) if why.contains("more than 512"))));
}
