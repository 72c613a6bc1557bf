//! Server-Sent Events, by the rules of the WHATWG, with what a service needs besides: a silent server is noticed, a
//! refusal decides what follows, nothing grows without bound.
//!
//! A message, as routes see it, is `{"type": NAME, "id": ID, "data": DATA}`; data that is JSON is parsed, other data is a
//! text. Where a stream stands in for another transport of the same messages, its data is the message.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_proto::{hub::Resume, id::Position, limits::VALUE_MAX, time::Time};
use serde_json::{Value, json};

use crate::{
    event_stream::{EventStream, Item},
    numbers::{Numbers, Step, bare},
    path::Path,
    protocol::{
        Adapter, COMPLAINT_FLOOR, Caps, CloseAction, CloseInfo, ConnectRequest, Frame, Head, Out, Protocol,
        Secret, TOO_LONG, Transport,
    },
};

/// What a message is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Name, id and data.
    Event,
    /// The data, which is JSON.
    Data,
}

/// An upstream of Server-Sent Events.
#[derive(Debug, Clone, PartialEq)]
pub struct SseSpec {
    /// `http://` or `https://`.
    pub url: String,
    /// Headers of the request.
    pub headers: Vec<(String, Secret)>,
    /// The last event's id is sent on a reconnect. Without it, ids are no positions.
    pub last_event_id: bool,
    /// What a reconnect with the last id proves.
    pub resume: Resume,
    /// Ids are numbers without holes.
    pub dense: bool,
    /// A number without holes in each message: with it a resume is proven whatever the ids are.
    pub number: Option<Path>,
    /// The server is dead after so long without a byte; comments count.
    pub read_timeout: Duration,
    /// Bounds of the delay that the server asks for by `retry`.
    pub retry_clamp: (Duration, Duration),
    /// Longest event taken, bytes.
    pub max_message: usize,
    /// What a message is made of.
    pub shape: Shape,
}

impl SseSpec {
    /// An upstream at `url` that resumes as far as it can.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            headers: Vec::new(),
            last_event_id: true,
            resume: Resume::Unproven,
            dense: false,
            number: None,
            read_timeout: Duration::from_secs(45),
            retry_clamp: (Duration::from_secs(1), Duration::from_secs(30)),
            max_message: VALUE_MAX,
            shape: Shape::Event,
        }
    }
}

impl Adapter for SseSpec {
    fn machine(&self) -> Box<dyn Protocol> {
        Box::new(Sse::new(self.clone()))
    }
}

/// The machine.
#[derive(Debug)]
pub struct Sse {
    spec: SseSpec,
    stream: EventStream,
    numbers: Option<Numbers>,
    /// The request named the last id.
    resumes: bool,
    /// What the server asked for, within bounds.
    retry: Option<Duration>,
    /// The last byte, or the opening.
    heard: Time,
    /// When to look at `heard` again. Not moved by each piece: they come by the thousand.
    check: Option<Time>,
}

impl Sse {
    /// Not connected.
    pub fn new(spec: SseSpec) -> Self {
        let stream = EventStream::new(spec.max_message);
        let numbers = spec.number.clone().map(Numbers::new);
        Self { spec, stream, numbers, resumes: false, retry: None, heard: Time::ZERO, check: None }
    }

    fn position(&self, id: &Arc<str>) -> Position {
        if let Some(numbers) = &self.numbers {
            return numbers.position(id);
        }
        let number = self.spec.dense.then(|| id.parse().ok()).flatten();
        match number {
            Some(offset) => Position::Seq { epoch: "".into(), offset },
            None => Position::Opaque(id.clone()),
        }
    }

    fn take(&mut self, item: Item, out: &mut Vec<Out>) {
        let has_positions = self.spec.last_event_id;
        match item {
            Item::Retry(asked) => {
                let (least, most) = self.spec.retry_clamp;
                self.retry = Some(asked.clamp(least, most));
            }
            Item::Id(id) if has_positions => out.push(Out::Moved(self.position(&id))),
            Item::Id(_) => {}
            Item::Event { name, data, id, own } => {
                let parsed = serde_json::from_str::<Value>(&data);
                let (value, raw) = match (self.spec.shape, parsed) {
                    (Shape::Data, Ok(value)) => (value, Bytes::from(data)),
                    (Shape::Data, Err(error)) => {
                        out.push(Out::Unusable(format!("the data of an event is not JSON: {error}")));
                        if own && has_positions {
                            // It was there: the next one joins on.
                            out.push(Out::Moved(self.position(&id)));
                        }
                        return;
                    }
                    (Shape::Event, parsed) => {
                        let data = parsed.unwrap_or(Value::String(data));
                        let value = json!({ "type": name, "id": &*id, "data": data });
                        let raw = Bytes::from(value.to_string());
                        (value, raw)
                    }
                };
                match self.numbers.as_mut().map(|numbers| numbers.step(&value)) {
                    Some(Step::Repeated) => return,
                    Some(Step::Hole(_) | Step::Unknown) => out.push(Out::Joined { resumed: false }),
                    Some(Step::Next(_)) | None => {}
                }
                let position = (own && has_positions).then(|| self.position(&id));
                out.push(Out::Message { value, raw, position, live: true });
            }
        }
    }
}

/// The id as a header has it; `None` where it can be none.
fn header_of(position: &Position) -> Option<String> {
    let id = match position {
        Position::Seq { offset, .. } => offset.to_string(),
        Position::Opaque(id) => bare(id).to_owned(),
        // Counted here: it means nothing to the server.
        Position::Local { .. } => return None,
    };
    (!id.is_empty() && !id.chars().any(char::is_control)).then_some(id)
}

impl Protocol for Sse {
    fn caps(&self) -> Caps {
        let resume = match (self.spec.last_event_id, &self.spec.number) {
            (false, _) => Resume::None,
            (true, Some(_)) => Resume::Proven,
            (true, None) => self.spec.resume,
        };
        Caps { dense: self.spec.dense, ..Caps::of(resume) }
    }

    fn transport(&self) -> &'static str {
        "sse"
    }

    fn request(&mut self, position: Option<&Position>) -> ConnectRequest {
        let mut request = ConnectRequest::new(Transport::Stream, &self.spec.url);
        request.headers.push(("Accept".to_owned(), Secret::new("text/event-stream")));
        request.headers.push(("Cache-Control".to_owned(), Secret::new("no-store")));
        let last = position.filter(|_| self.caps().resume != Resume::None).and_then(header_of);
        self.resumes = last.is_some();
        if let Some(numbers) = &mut self.numbers {
            let at = position.filter(|_| self.resumes);
            numbers.begin(at.and_then(|at| match at {
                Position::Opaque(at) => Some(&**at),
                Position::Seq { .. } | Position::Local { .. } => None,
            }));
        }
        request.headers.extend(last.map(|id| ("Last-Event-ID".to_owned(), Secret::new(id))));
        request.headers.extend(self.spec.headers.iter().cloned());
        request
    }

    fn on_open(&mut self, now: Time, head: &Head, out: &mut Vec<Out>) {
        let refuse =
            |reason: String| Out::Drop(CloseInfo { status: Some(head.status), ..CloseInfo::because(reason) });
        if head.status != 200 {
            return out.push(refuse(format!("the server answered with status {}", head.status)));
        }
        let kind = head.header("content-type").unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("text/event-stream") {
            return out.push(refuse(format!(
                "the server answered with {kind:?} instead of text/event-stream; check the address"
            )));
        }
        if let Some(coding) =
            head.header("content-encoding").filter(|it| !it.eq_ignore_ascii_case("identity"))
        {
            return out.push(refuse(format!(
                "the server compresses by {coding:?}, which nobody asked for; switch it off there"
            )));
        }
        self.stream = EventStream::new(self.spec.max_message);
        self.heard = now;
        self.check = Some(now + self.spec.read_timeout);
        let resumed = self.resumes && self.caps().resume == Resume::Proven;
        out.extend([Out::Joined { resumed }, Out::Live]);
    }

    fn on_frame(&mut self, now: Time, frame: Frame, out: &mut Vec<Out>) {
        let Frame::Chunk(chunk) = frame else { return };
        self.heard = now;
        let mut items = Vec::new();
        let fed = self.stream.feed(&chunk, &mut items);
        for item in items {
            self.take(item, out);
        }
        if fed.is_err() {
            let reason = format!("an event of more than {} bytes came", self.spec.max_message);
            out.push(Out::Drop(CloseInfo { code: Some(TOO_LONG), ..CloseInfo::because(reason) }));
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.check
    }

    fn on_deadline(&mut self, now: Time, out: &mut Vec<Out>) {
        if self.check.is_none_or(|check| now < check) {
            return;
        }
        let dead = self.heard + self.spec.read_timeout;
        self.check = Some(dead);
        if now >= dead {
            let silence = self.spec.read_timeout;
            out.push(Out::Drop(CloseInfo::because(format!(
                "nothing came for {silence:?}, not even a comment"
            ))));
        }
    }

    fn on_close(&mut self, close: &CloseInfo) -> CloseAction {
        self.check = None;
        match (close.status, close.action()) {
            (Some(204), _) => {
                CloseAction::Stop("the server ended the stream for good (status 204)".to_owned())
            }
            (Some(200..=299), _) => CloseAction::Stop(close.reason.clone()),
            (_, CloseAction::Backoff(hint)) => {
                let floor = if close.code.is_some() { COMPLAINT_FLOOR } else { Duration::ZERO };
                CloseAction::Backoff(hint.max(floor).max(self.retry.unwrap_or_default()))
            }
            (_, action @ (CloseAction::Occupied | CloseAction::Stop(_))) => action,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: &str) -> Head {
        Head { status: 200, headers: vec![("content-type".into(), kind.into())], retry_after: None }
    }

    fn open(spec: SseSpec) -> Sse {
        let mut machine = Sse::new(spec);
        machine.request(None);
        let mut out = Vec::new();
        machine.on_open(Time(0), &head("Text/Event-Stream; charset=utf-8"), &mut out);
        assert_eq!(out, [Out::Joined { resumed: false }, Out::Live]);
        machine
    }

    fn feed(machine: &mut Sse, bytes: &[u8]) -> Vec<Out> {
        let mut out = Vec::new();
        machine.on_frame(Time(1), Frame::Chunk(Bytes::copy_from_slice(bytes)), &mut out);
        out
    }

    fn headers(machine: &mut Sse, position: &Position) -> Vec<(String, String)> {
        let request = machine.request(Some(position));
        request.headers.into_iter().map(|(name, value)| (name, value.reveal().to_owned())).collect()
    }

    #[test]
    fn an_event_is_a_message_with_name_id_and_data_at_its_id() {
        let mut machine = open(SseSpec::new("http://h/"));
        let out =
            feed(&mut machine, b"event: update\nid: a-1\ndata: {\"n\": 1}\n\ndata: plain\n\nid: a-2\n\n");
        let [
            Out::Message { value, raw, position, live: true },
            Out::Message { value: plain, position: None, .. },
            moved,
        ] = out.as_slice()
        else {
            panic!("{out:?}")
        };
        assert_eq!(*value, json!({"type": "update", "id": "a-1", "data": {"n": 1}}));
        assert_eq!(serde_json::from_slice::<Value>(raw).unwrap(), *value);
        assert_eq!(*position, Some(Position::Opaque("a-1".into())));
        assert_eq!(*plain, json!({"type": "message", "id": "a-1", "data": "plain"}));
        assert_eq!(*moved, Out::Moved(Position::Opaque("a-2".into())));
    }

    #[test]
    fn the_last_id_is_asked_for_where_it_can_be() {
        let mut machine = Sse::new(SseSpec::new("http://h/"));
        let basic = [("Accept", "text/event-stream"), ("Cache-Control", "no-store")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let asks = |id: &str| {
            let mut all = basic.to_vec();
            all.push(("Last-Event-ID".to_owned(), id.to_owned()));
            all
        };
        assert_eq!(headers(&mut machine, &Position::Opaque("\u{e4} 1:2".into())), asks("\u{e4} 1:2"));
        assert_eq!(headers(&mut machine, &Position::Seq { epoch: "".into(), offset: 7 }), asks("7"));
        for odd in [Position::Opaque("".into()), Position::Opaque("a\u{7}".into()), Position::START] {
            assert_eq!(headers(&mut machine, &odd), basic, "{odd:?}");
        }
        let mut machine = Sse::new(SseSpec { last_event_id: false, ..SseSpec::new("http://h/") });
        assert_eq!(machine.caps().resume, Resume::None);
        assert_eq!(headers(&mut machine, &Position::Opaque("1".into())), basic);
        machine.on_open(Time(0), &head("text/event-stream"), &mut Vec::new());
        assert!(matches!(
            feed(&mut machine, b"id: 1\ndata: 1\n\nid: 2\n\n").as_slice(),
            [Out::Message { position: None, .. }]
        ));
    }

    #[test]
    fn only_a_proven_resume_of_an_id_joins_on() {
        for (resume, id, resumed) in [
            (Resume::Proven, Some("1"), true),
            (Resume::Proven, Some(""), false),
            (Resume::Proven, None, false),
            (Resume::Unproven, Some("1"), false),
        ] {
            let mut machine = Sse::new(SseSpec { resume, ..SseSpec::new("http://h/") });
            machine.request(id.map(|id| Position::Opaque(id.into())).as_ref());
            let mut out = Vec::new();
            machine.on_open(Time(0), &head("text/event-stream"), &mut out);
            assert_eq!(out[0], Out::Joined { resumed }, "{resume:?} {id:?}");
        }
    }

    #[test]
    fn ids_without_holes_are_numbers() {
        let mut machine = open(SseSpec { dense: true, ..SseSpec::new("http://h/") });
        let positions: Vec<_> = feed(&mut machine, b"id: 41\ndata: 1\n\nid: x\ndata: 1\n\n")
            .into_iter()
            .map(|out| match out {
                Out::Message { position, .. } => position.unwrap(),
                other => panic!("{other:?}"),
            })
            .collect();
        let number = Position::Seq { epoch: "".into(), offset: 41 };
        assert_eq!(positions, [number, Position::Opaque("x".into())]);
    }

    #[test]
    fn a_number_in_each_message_proves_what_the_ids_cannot() {
        let spec = || SseSpec { number: Some("$.data.n".parse().unwrap()), ..SseSpec::new("http://h/") };
        let mut machine = open(spec());
        let out = feed(&mut machine, b"id: x\ndata: {\"n\": 4}\n\n");
        let [Out::Message { position: Some(at), .. }] = out.as_slice() else { panic!("{out:?}") };
        for (events, joined, messages) in [
            // All of it, again from before, and with what is gone.
            (&b"id: y\ndata: {\"n\": 5}\n\n"[..], true, 1),
            (b"id: x\ndata: {\"n\": 4}\n\nid: y\ndata: {\"n\": 5}\n\n", true, 1),
            (b"id: z\ndata: {\"n\": 7}\n\n", false, 1),
            (b"id: z\ndata: {}\n\n", false, 1),
        ] {
            let mut machine = Sse::new(spec());
            assert!(headers(&mut machine, at).contains(&("Last-Event-ID".to_owned(), "x".to_owned())));
            let mut out = Vec::new();
            machine.on_open(Time(0), &head("text/event-stream"), &mut out);
            assert_eq!(out[0], Out::Joined { resumed: true });
            let out = feed(&mut machine, events);
            assert_eq!(!out.contains(&Out::Joined { resumed: false }), joined, "{out:?}");
            assert_eq!(
                out.iter().filter(|it| matches!(it, Out::Message { .. })).count(),
                messages,
                "{out:?}"
            );
        }
    }

    #[test]
    fn where_the_data_is_the_message_it_must_be_json() {
        let mut machine = open(SseSpec { shape: Shape::Data, ..SseSpec::new("http://h/") });
        let out = feed(&mut machine, b"id: 1\ndata: {\"type\": \"A\"}\n\nid: 2\ndata: no\n\n");
        let [Out::Message { value, raw, .. }, Out::Unusable(_), Out::Moved(_)] = out.as_slice() else {
            panic!("{out:?}")
        };
        assert_eq!((value, &raw[..]), (&json!({"type": "A"}), &b"{\"type\": \"A\"}"[..]));
    }

    #[test]
    fn an_answer_that_is_no_event_stream_ends_it_for_good() {
        let answer = |status: u16, headers: &[(&str, &str)]| {
            let mut machine = Sse::new(SseSpec::new("http://h/"));
            let headers =
                headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let mut out = Vec::new();
            machine.on_open(Time(0), &Head { status, headers, retry_after: None }, &mut out);
            let [Out::Drop(close)] = out.as_slice() else { panic!("{out:?}") };
            machine.on_close(close)
        };
        let stream = ("content-type", "text/event-stream");
        for (status, headers, why) in [
            (204, &[][..], "for good"),
            (200, &[], "instead of text/event-stream"),
            (200, &[("content-type", "text/html")], "\"text/html\""),
            (200, &[stream, ("content-encoding", "gzip")], "\"gzip\""),
            (206, &[stream], "status 206"),
        ] {
            let CloseAction::Stop(reason) = answer(status, headers) else { panic!("{status}") };
            assert!(reason.contains(why), "{reason}");
        }
    }

    #[test]
    fn the_servers_wish_to_wait_is_heeded_within_bounds() {
        let second = Duration::from_secs(1);
        let mut machine = open(SseSpec::new("http://h/"));
        let lost = CloseInfo::default();
        assert_eq!(machine.on_close(&lost), CloseAction::Backoff(Duration::ZERO));
        for (asked, delay) in
            [("0", second), ("2500", Duration::from_millis(2500)), ("99999999999999999999", 30 * second)]
        {
            feed(&mut machine, format!("retry: {asked}\n").as_bytes());
            assert_eq!(machine.on_close(&lost), CloseAction::Backoff(delay), "{asked}");
        }
        let busy = CloseInfo { status: Some(503), retry_after: Some(60 * second), ..CloseInfo::default() };
        assert_eq!(machine.on_close(&busy), CloseAction::Backoff(60 * second));
        let occupied = CloseInfo { status: Some(409), ..CloseInfo::default() };
        assert_eq!(machine.on_close(&occupied), CloseAction::Occupied);
        let gone = CloseInfo { status: Some(410), ..CloseInfo::default() };
        assert!(matches!(machine.on_close(&gone), CloseAction::Stop(_)));
    }

    #[test]
    fn an_endless_event_ends_the_connection() {
        let mut machine = open(SseSpec { max_message: 64, ..SseSpec::new("http://h/") });
        let mut out = feed(&mut machine, b"data: first\n\n");
        out.extend(feed(&mut machine, &[b'x'; 65]));
        let [Out::Message { .. }, Out::Drop(close)] = out.as_slice() else { panic!("{out:?}") };
        assert_eq!(close.code, Some(TOO_LONG));
        assert_eq!(machine.on_close(close), CloseAction::Backoff(COMPLAINT_FLOOR));
    }

    #[test]
    fn a_comment_shows_that_the_server_lives_and_silence_that_it_does_not() {
        let mut machine = open(SseSpec::new("http://h/"));
        let timeout = Duration::from_secs(45);
        assert_eq!(machine.deadline(), Some(Time(0) + timeout));
        let mut out = Vec::new();
        let later = Time(0) + Duration::from_secs(30);
        machine.on_frame(later, Frame::Chunk(Bytes::from_static(b":\n")), &mut out);
        machine.on_deadline(Time(0) + timeout, &mut out);
        assert_eq!(out, []);
        assert_eq!(machine.deadline(), Some(later + timeout));
        machine.on_deadline(later + timeout, &mut out);
        assert!(matches!(out.as_slice(), [Out::Drop(_)]));
    }
}
