//! Asking again and again, or waiting for an answer that takes its time, as a channel.
//!
//! What an answer is to the group:
//! - with `items`, each element of a list in it is a message, at the position that its own path says, and the next request
//!   asks for what comes after the last;
//! - without, the whole answer is a message, at a cursor that stands in it, or else at its validators (`ETag`, `Last-Modified`),
//!   and an answer that has not changed is none.

use std::time::Duration;

use bytes::Bytes;
use paceline_proto::{hub::Resume, id::Position, limits::VALUE_MAX, time::Time};
use serde_json::Value;

use crate::{
    numbers::{Numbers, Step, bare},
    path::Path,
    protocol::{
        Adapter, Answer, COMPLAINT_FLOOR, Call, Caps, CloseAction, CloseInfo, ConnectRequest, Frame, Head,
        Out, Protocol, Reply, Secret, Transport,
    },
    websocket::{PositionSpec, add_parameter, id_at, position_in},
};

/// Between the validators of an answer.
const VALIDATORS: char = '\n';

/// Where an answer as a whole says where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The cursor, a text or a number, in the answer.
    pub at: Path,
    /// Query parameter that asks for what comes after it.
    pub query: String,
}

/// A polled upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct PollSpec {
    /// `http://` or `https://`.
    pub url: String,
    /// Headers of the request.
    pub headers: Vec<(String, Secret)>,
    /// From an answer to the next request. Zero = at once, for a server that answers when it has something.
    pub every: Duration,
    /// An answer must be there by then.
    pub timeout: Duration,
    /// The list of messages in an answer; `None` = the answer is one.
    pub items: Option<Path>,
    /// Where the elements of the list stand.
    pub position: Option<PositionSpec>,
    /// Where an element has an id, if it has no position: a repetition is dropped by it.
    pub message_id: Option<Path>,
    /// Where the answer stands, without a list.
    pub cursor: Option<Cursor>,
    /// What asking after a position proves, without a list.
    pub resume: Resume,
    /// Without a list: a number without holes in each answer, with which asking after a position is proven.
    pub number: Option<Path>,
    /// Longest answer taken, bytes.
    pub max_message: usize,
}

impl PollSpec {
    /// Asks `url` every ten seconds whether it has changed.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            headers: Vec::new(),
            every: Duration::from_secs(10),
            timeout: Duration::from_secs(60),
            items: None,
            position: None,
            message_id: None,
            cursor: None,
            resume: Resume::None,
            number: None,
            max_message: VALUE_MAX,
        }
    }
}

impl Adapter for PollSpec {
    fn machine(&self) -> Box<dyn Protocol> {
        Box::new(Poll::new(self.clone()))
    }
}

/// The machine.
#[derive(Debug)]
pub struct Poll {
    spec: PollSpec,
    /// Ask for what comes after it.
    after: Option<Position>,
    numbers: Option<Numbers>,
    resumes: bool,
    last_call: u64,
    asked: Option<u64>,
    asked_at: Time,
    /// When to ask next.
    next: Option<Time>,
}

impl Poll {
    /// Not connected.
    pub fn new(spec: PollSpec) -> Self {
        Self {
            numbers: spec.number.clone().map(Numbers::new),
            spec,
            after: None,
            resumes: false,
            last_call: 0,
            asked: None,
            asked_at: Time::ZERO,
            next: None,
        }
    }

    fn ask(&mut self, now: Time, out: &mut Vec<Out>) {
        self.next = None;
        self.asked_at = now;
        self.last_call += 1;
        self.asked = Some(self.last_call);
        let mut url = self.spec.url.clone();
        let mut headers = vec![("Accept".to_owned(), Secret::new("application/json"))];
        match &self.after {
            Some(Position::Seq { offset, .. }) => self.add_cursor(&mut url, &offset.to_string()),
            Some(Position::Opaque(at)) if self.has_cursor() => self.add_cursor(&mut url, bare(at)),
            Some(Position::Opaque(at)) => {
                let validators = bare(at);
                let (etag, modified) = validators.split_once(VALIDATORS).unwrap_or((validators, ""));
                for (name, value) in [("If-None-Match", etag), ("If-Modified-Since", modified)] {
                    if !value.is_empty() {
                        headers.push((name.to_owned(), Secret::new(value)));
                    }
                }
            }
            Some(Position::Local { .. }) | None => {}
        }
        headers.extend(self.spec.headers.iter().cloned());
        out.push(Out::Call(Call {
            id: self.last_call,
            url,
            headers,
            body: None,
            timeout: self.spec.timeout,
            max_body: self.spec.max_message,
        }));
    }

    /// The parameter that asks for what comes after a position.
    fn parameter(&self) -> Option<&str> {
        match &self.spec.items {
            Some(_) => self.spec.position.as_ref()?.resume_query.as_deref(),
            None => Some(&self.spec.cursor.as_ref()?.query),
        }
    }

    fn has_cursor(&self) -> bool {
        self.spec.items.is_some() || self.spec.cursor.is_some()
    }

    fn add_cursor(&self, url: &mut String, at: &str) {
        if let Some(name) = self.parameter() {
            add_parameter(url, name, at);
        }
    }

    fn answered(&mut self, now: Time, answer: Answer, out: &mut Vec<Out>) {
        if self.asked.take_if(|asked| *asked == answer.call).is_none() {
            return;
        }
        let reply = match answer.result {
            Ok(reply) => reply,
            Err(why) => return out.push(Out::Drop(CloseInfo::because(why))),
        };
        let status = reply.head.status;
        let found = match status {
            200 => self.page(reply, out),
            // Nothing new; the server of a long poll that has waited long enough says so in several ways.
            204 | 304 => false,
            408 | 504 if self.spec.every.is_zero() => false,
            _ => {
                return out.push(Out::Drop(CloseInfo {
                    status: Some(status),
                    retry_after: reply.head.retry_after,
                    ..CloseInfo::because(format!("the server answered with status {status}"))
                }));
            }
        };
        out.push(Out::Live);
        // A server that says at once that it has nothing is not asked at once.
        let is_hasty = !found && now.since(self.asked_at) < COMPLAINT_FLOOR;
        let floor = if is_hasty { COMPLAINT_FLOOR } else { Duration::ZERO };
        let next = now + self.spec.every.max(floor);
        if next <= now {
            self.ask(now, out);
        } else {
            self.next = Some(next);
        }
    }

    /// Whether there was something in it.
    fn page(&mut self, reply: Reply, out: &mut Vec<Out>) -> bool {
        let page: Value = match serde_json::from_slice(&reply.body) {
            Ok(page) => page,
            Err(error) => {
                out.push(Out::Unusable(format!("an answer is not JSON: {error}")));
                // It is not sent again if the server goes by validators.
                let position = self.validators(&reply.head);
                self.move_to(position.clone());
                out.extend(position.map(Out::Moved));
                return true;
            }
        };
        let Some(path) = &self.spec.items else {
            let position = match &self.spec.cursor {
                Some(cursor) => cursor.at.find(&page).and_then(opaque),
                None => self.validators(&reply.head),
            };
            self.whole(page, reply.body, position, out);
            return true;
        };
        let Some(Value::Array(items)) = path.find(&page) else {
            out.push(Out::Unusable(format!("there is no list at {path} in an answer")));
            return false;
        };
        for value in items.clone() {
            let position = match &self.spec.position {
                Some(spec) => position_in(spec, &value),
                None => self.spec.message_id.as_ref().and_then(|path| id_at(path, &value)),
            };
            self.move_to(position.clone());
            let raw = Bytes::from(value.to_string());
            out.push(Out::Message { value, raw, position, live: true });
        }
        !items.is_empty()
    }

    /// The answer is a message.
    fn whole(&mut self, value: Value, raw: Bytes, mut position: Option<Position>, out: &mut Vec<Out>) {
        if let Some(numbers) = &mut self.numbers {
            let step = numbers.step(&value);
            if let Some(Position::Opaque(at)) = &position {
                position = Some(numbers.position(at));
            }
            match step {
                Step::Repeated => return self.move_to(position),
                Step::Hole(_) | Step::Unknown => out.push(Out::Joined { resumed: false }),
                Step::Next(_) => {}
            }
        }
        self.move_to(position.clone());
        out.push(Out::Message { value, raw, position, live: true });
    }

    fn move_to(&mut self, position: Option<Position>) {
        if position.is_some() {
            self.after = position;
        }
    }

    fn validators(&self, head: &Head) -> Option<Position> {
        if self.has_cursor() {
            return None;
        }
        let header = |name| head.header(name).unwrap_or_default();
        let (etag, modified) = (header("etag"), header("last-modified"));
        let is_there = !etag.is_empty() || !modified.is_empty();
        is_there.then(|| Position::Opaque(format!("{etag}{VALIDATORS}{modified}").into()))
    }
}

fn opaque(cursor: &Value) -> Option<Position> {
    match cursor {
        Value::String(text) => Some(Position::Opaque(text.as_str().into())),
        Value::Number(number) => Some(Position::Opaque(number.to_string().into())),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

impl Protocol for Poll {
    fn caps(&self) -> Caps {
        match (&self.spec.items, &self.spec.position) {
            (Some(_), Some(position)) => Caps { dense: position.dense, ..Caps::of(position.resume) },
            (Some(_), None) => Caps::of(Resume::None),
            (None, _) if self.spec.number.is_some() => Caps::of(Resume::Proven),
            (None, _) => Caps::of(self.spec.resume),
        }
    }

    fn transport(&self) -> &'static str {
        "poll"
    }

    fn request(&mut self, position: Option<&Position>) -> ConnectRequest {
        let asked = position.filter(|it| !matches!(it, Position::Local { .. }));
        self.after = asked.filter(|_| self.caps().resume != Resume::None).cloned();
        self.resumes = self.after.is_some();
        if let Some(numbers) = &mut self.numbers {
            numbers.begin(match &self.after {
                Some(Position::Opaque(at)) => Some(at),
                Some(Position::Seq { .. } | Position::Local { .. }) | None => None,
            });
        }
        ConnectRequest::new(Transport::Calls, &self.spec.url)
    }

    fn on_open(&mut self, now: Time, _: &Head, out: &mut Vec<Out>) {
        out.push(Out::Joined { resumed: self.resumes && self.caps().resume == Resume::Proven });
        self.ask(now, out);
    }

    fn on_frame(&mut self, now: Time, frame: Frame, out: &mut Vec<Out>) {
        if let Frame::Answer(answer) = frame {
            self.answered(now, answer, out);
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.next
    }

    fn on_deadline(&mut self, now: Time, out: &mut Vec<Out>) {
        if self.next.is_some_and(|next| next <= now) {
            self.ask(now, out);
        }
    }

    fn on_close(&mut self, close: &CloseInfo) -> CloseAction {
        self.next = None;
        self.asked = None;
        close.action()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Bench {
        machine: Poll,
        now: Time,
    }

    impl Bench {
        /// Open, with the first request.
        fn open(spec: PollSpec, position: Option<&Position>) -> (Self, bool, Call) {
            let mut machine = Poll::new(spec);
            assert_eq!(machine.request(position).transport, Transport::Calls);
            let mut out = Vec::new();
            machine.on_open(Time(1), &Head::default(), &mut out);
            let [Out::Joined { resumed }, Out::Call(call)] = out.as_slice() else { panic!("{out:?}") };
            (Self { machine, now: Time(1) }, *resumed, call.clone())
        }

        fn reply(&mut self, call: &Call, status: u16, headers: &[(&str, &str)], body: &str) -> Vec<Out> {
            let headers =
                headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let head = Head { status, headers, retry_after: None };
            self.result(call, Ok(Reply { head, body: Bytes::from(body.to_owned()) }))
        }

        fn result(&mut self, call: &Call, result: Result<Reply, String>) -> Vec<Out> {
            let mut out = Vec::new();
            let answer = Frame::Answer(Answer { call: call.id, result });
            self.machine.on_frame(self.now, answer, &mut out);
            out
        }

        /// The next request, and how long it took to come.
        fn next(&mut self) -> (Duration, Call) {
            let at = self.machine.deadline().unwrap();
            let waited = at.since(self.now);
            self.now = at;
            let mut out = Vec::new();
            self.machine.on_deadline(at, &mut out);
            let [Out::Call(call)] = out.as_slice() else { panic!("{out:?}") };
            (waited, call.clone())
        }
    }

    fn headers(call: &Call) -> Vec<(&str, &str)> {
        call.headers.iter().map(|(name, value)| (name.as_str(), value.reveal())).collect()
    }

    fn list() -> PollSpec {
        PollSpec {
            items: Some("$.items".parse().unwrap()),
            position: Some(PositionSpec {
                offset: "$.seq".parse().unwrap(),
                epoch: None,
                resume_query: Some("since".into()),
                resume: Resume::Unproven,
                dense: true,
            }),
            ..PollSpec::new("http://h/events?x=1")
        }
    }

    #[test]
    fn an_answer_that_has_not_changed_is_no_message() {
        let spec = PollSpec {
            headers: vec![("X-Key".into(), Secret::new("s3cret"))],
            resume: Resume::Unproven,
            ..PollSpec::new("http://h/state")
        };
        let (mut bench, resumed, call) = Bench::open(spec.clone(), None);
        assert!(!resumed);
        assert_eq!(headers(&call), [("Accept", "application/json"), ("X-Key", "s3cret")]);
        let out = bench.reply(&call, 200, &[("etag", "\"a\""), ("last-modified", "Thu")], "{\"n\": 1}");
        let at = Position::Opaque("\"a\"\nThu".into());
        let message = Out::Message {
            value: json!({"n": 1}),
            raw: "{\"n\": 1}".into(),
            position: Some(at.clone()),
            live: true,
        };
        assert_eq!(out, [message, Out::Live]);
        let (waited, call) = bench.next();
        assert_eq!(waited, Duration::from_secs(10));
        let conditional = [
            ("Accept", "application/json"),
            ("If-None-Match", "\"a\""),
            ("If-Modified-Since", "Thu"),
            ("X-Key", "s3cret"),
        ];
        assert_eq!(headers(&call), conditional);
        assert_eq!(bench.reply(&call, 304, &[], ""), [Out::Live]);
        assert_eq!(headers(&bench.next().1), conditional, "still");
        // Another session goes on from there, if the position means something to the server.
        assert_eq!(headers(&Bench::open(spec.clone(), Some(&at)).2), conditional);
        let (_, resumed, call) = Bench::open(PollSpec { resume: Resume::None, ..spec.clone() }, Some(&at));
        assert_eq!((resumed, call.headers.len()), (false, 2));
        let (_, resumed, _) = Bench::open(PollSpec { resume: Resume::Proven, ..spec }, Some(&at));
        assert!(resumed);
    }

    #[test]
    fn elements_of_a_list_are_messages_and_the_next_request_asks_for_what_follows() {
        let (mut bench, _, call) = Bench::open(list(), Some(&Position::Seq { epoch: "".into(), offset: 4 }));
        assert_eq!(call.url, "http://h/events?x=1&since=4");
        let out = bench.reply(&call, 200, &[("etag", "ignored")], r#"{"items": [{"seq": 5}, {"seq": 6}]}"#);
        let offsets: Vec<u64> = out
            .iter()
            .filter_map(|it| match it {
                Out::Message { position: Some(Position::Seq { offset, .. }), .. } => Some(*offset),
                _ => None,
            })
            .collect();
        assert_eq!((offsets, out.len()), (vec![5, 6], 3));
        let (_, call) = bench.next();
        assert_eq!((call.url.as_str(), call.headers.len()), ("http://h/events?x=1&since=6", 1));
        assert_eq!(bench.reply(&call, 200, &[], r#"{"items": []}"#), [Out::Live]);
        let (_, call) = bench.next();
        assert!(matches!(bench.reply(&call, 200, &[], "{}").as_slice(), [Out::Unusable(_), Out::Live]));
        assert!(bench.machine.caps().dense);
    }

    #[test]
    fn a_cursor_in_the_answer_is_where_it_stands() {
        let cursor = Cursor { at: "$.next".parse().unwrap(), query: "cursor".into() };
        let spec = PollSpec { cursor: Some(cursor), resume: Resume::Proven, ..PollSpec::new("http://h/") };
        let (mut bench, _, call) = Bench::open(spec, None);
        let out = bench.reply(&call, 200, &[], r#"{"next": "a b", "n": 1}"#);
        assert!(
            matches!(&out[0], Out::Message { position: Some(Position::Opaque(at)), .. } if &**at == "a b")
        );
        assert_eq!(bench.next().1.url, "http://h/?cursor=a%20b");
    }

    #[test]
    fn a_number_in_each_answer_proves_what_validators_cannot() {
        let spec = || PollSpec { number: Some("$.n".parse().unwrap()), ..PollSpec::new("http://h/") };
        let (mut bench, _, call) = Bench::open(spec(), None);
        let out = bench.reply(&call, 200, &[("etag", "0")], r#"{"n": 4}"#);
        let [Out::Message { position: Some(at), .. }, Out::Live] = out.as_slice() else { panic!("{out:?}") };
        for (body, told) in [(r#"{"n": 5}"#, 2), (r#"{"n": 6}"#, 3), (r#"{"n": 4}"#, 1)] {
            let (mut bench, resumed, call) = Bench::open(spec(), Some(at));
            assert!(resumed && headers(&call).contains(&("If-None-Match", "0")));
            let out = bench.reply(&call, 200, &[("etag", "1")], body);
            assert_eq!(out.len(), told, "{out:?}");
            assert_eq!(out.contains(&Out::Joined { resumed: false }), told == 3, "{out:?}");
            assert!(headers(&bench.next().1).contains(&("If-None-Match", "1")));
        }
    }

    #[test]
    fn a_long_poll_is_asked_again_at_once_but_not_by_a_server_in_haste() {
        let second = Duration::from_secs(1);
        let (mut bench, _, mut call) = Bench::open(PollSpec { every: Duration::ZERO, ..list() }, None);
        // Something came: at once.
        let out = bench.reply(&call, 200, &[], r#"{"items": [{"seq": 1}]}"#);
        let [_, Out::Live, Out::Call(next)] = out.as_slice() else { panic!("{out:?}") };
        call = next.clone();
        // Nothing after a while: at once, however the server says it.
        for status in [304, 204, 408, 504] {
            bench.now = bench.now + 20 * second;
            let out = bench.reply(&call, status, &[], "");
            let [Out::Live, Out::Call(next)] = out.as_slice() else { panic!("{status}: {out:?}") };
            call = next.clone();
        }
        // Nothing at once: a second later.
        assert_eq!(bench.reply(&call, 304, &[], ""), [Out::Live]);
        assert_eq!(bench.next().0, second);
    }

    #[test]
    fn a_refusal_or_no_answer_ends_the_connection() {
        let action = |status: Option<u16>, retry_after| {
            let (mut bench, _, call) = Bench::open(list(), None);
            let result = match status {
                Some(status) => {
                    Ok(Reply { head: Head { status, headers: vec![], retry_after }, body: Bytes::new() })
                }
                None => Err("no route".to_owned()),
            };
            let out = bench.result(&call, result);
            let [Out::Drop(close)] = out.as_slice() else { panic!("{out:?}") };
            bench.machine.on_close(close)
        };
        let minute = Duration::from_secs(60);
        assert_eq!(action(Some(429), Some(minute)), CloseAction::Backoff(minute));
        assert_eq!(action(Some(500), None), CloseAction::Backoff(Duration::ZERO));
        assert_eq!(action(Some(504), None), CloseAction::Backoff(Duration::ZERO));
        assert_eq!(action(None, None), CloseAction::Backoff(Duration::ZERO));
        assert!(matches!(action(Some(404), None), CloseAction::Stop(_)));
        // An answer to a request of an earlier life is none.
        let (mut bench, _, call) = Bench::open(list(), None);
        bench.machine.on_close(&CloseInfo::default());
        assert_eq!(bench.reply(&call, 200, &[], "{}"), []);
        assert_eq!(bench.machine.deadline(), None);
    }

    #[test]
    fn what_is_not_json_is_told_and_not_asked_for_again() {
        let (mut bench, _, call) =
            Bench::open(PollSpec { resume: Resume::Unproven, ..PollSpec::new("http://h/") }, None);
        let out = bench.reply(&call, 200, &[("etag", "x")], "<html>");
        assert!(matches!(out.as_slice(), [Out::Unusable(_), Out::Moved(_), Out::Live]), "{out:?}");
        assert_eq!(headers(&bench.next().1)[1], ("If-None-Match", "x"));
    }
}
