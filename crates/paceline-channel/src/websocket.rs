//! JSON messages over a WebSocket; where a message has its position is configured by paths.

use std::time::Duration;

use paceline_proto::{hub::Resume, id::Position, limits::VALUE_MAX, time::Time};
use serde_json::Value;

use crate::{
    condition::{Bindings, Condition},
    path::Path,
    protocol::{
        Adapter, CHANNELS_MAX, Caps, Channels, CloseAction, CloseInfo, ConnectRequest, Frame, Head, Out,
        Outgoing, Protocol, Secret, Transport,
    },
    template::{Template, percent_encode},
};

/// Where messages say where they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionSpec {
    /// The number (or text) of a message. Numbers ascend, and no two messages of a history have one: a message at or
    /// before the last number is a repetition and is dropped.
    pub offset: Path,
    /// The server's name for the history the number belongs to.
    pub epoch: Option<Path>,
    /// Query parameter that resumes after a position.
    pub resume_query: Option<String>,
    /// What a reconnect can prove.
    pub resume: Resume,
    /// Numbers have no holes.
    pub dense: bool,
}

/// How a silent server is noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Text to send; `None` = a ping of the transport.
    pub send: Option<String>,
    /// After so long without an inbound frame.
    pub every: Duration,
    /// Dead after so long without an inbound frame.
    pub dead_after: Duration,
}

/// A JSON WebSocket upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct WebSocketSpec {
    /// `ws://` or `wss://`.
    pub url: String,
    /// Headers of the handshake.
    pub headers: Vec<(String, Secret)>,
    /// Subprotocols offered.
    pub subprotocols: Vec<String>,
    /// Positions, if messages have them.
    pub position: Option<PositionSpec>,
    /// Where a message has an id, a text or a number, if it has no position: a repetition is dropped by it.
    pub message_id: Option<Path>,
    /// Query parameter that names the history a resume belongs to, if the server wants it.
    pub resume_epoch_query: Option<String>,
    /// Sent to join a channel: `{channel}` in it is the channel. `None` = there is nothing to join.
    pub subscribe: Option<Template>,
    /// Sent to leave a channel.
    pub unsubscribe: Option<Template>,
    /// Heartbeat, if wanted.
    pub heartbeat: Option<Heartbeat>,
    /// A message that ends the snapshot which the server sends on connect; `None` = it sends none. A connection that
    /// resumes with proof gets the missing messages instead of a snapshot.
    pub live_when: Option<Condition>,
    /// Longest message taken, bytes.
    pub max_message: usize,
}

impl WebSocketSpec {
    /// An upstream at `url`, without positions, heartbeat and snapshot.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            headers: Vec::new(),
            subprotocols: Vec::new(),
            position: None,
            message_id: None,
            resume_epoch_query: None,
            subscribe: None,
            unsubscribe: None,
            heartbeat: None,
            live_when: None,
            max_message: VALUE_MAX,
        }
    }
}

impl Adapter for WebSocketSpec {
    fn machine(&self) -> Box<dyn Protocol> {
        Box::new(WebSocketJson::new(self.clone()))
    }
}

/// The machine.
#[derive(Debug)]
pub struct WebSocketJson {
    spec: WebSocketSpec,
    wanted: Channels,
    joined: Channels,
    open: bool,
    /// The request asked for the messages after a position.
    resumes: bool,
    live: bool,
    /// The last inbound frame, or the opening.
    heard: Time,
    /// The last heartbeat sent on this connection.
    beat: Option<Time>,
    /// When to look at `heard` again. Not moved by each frame: frames come by the thousand.
    check: Option<Time>,
}

impl WebSocketJson {
    /// Not connected.
    pub const fn new(spec: WebSocketSpec) -> Self {
        Self {
            spec,
            wanted: Channels::new(),
            joined: Channels::new(),
            open: false,
            resumes: false,
            live: false,
            heard: Time::ZERO,
            beat: None,
            check: None,
        }
    }

    /// When the next heartbeat is due, and when the server is dead, as far as it was heard.
    fn due(&self) -> Option<(Time, Time)> {
        let heartbeat = self.spec.heartbeat.as_ref()?;
        let beat = self.beat.map_or(self.heard, |beat| beat.max(self.heard)) + heartbeat.every;
        Some((beat, self.heard + heartbeat.dead_after))
    }

    fn check_later(&mut self) {
        self.check = self.due().map(|(beat, dead)| beat.min(dead));
    }

    /// Joins and leaves until the joined channels are the wanted ones. Leaves first: servers count.
    fn adjust(&mut self, out: &mut Vec<Out>) {
        if !self.open {
            return;
        }
        let left: Vec<_> = self.joined.difference(&self.wanted).cloned().collect();
        for channel in left {
            self.joined.remove(&channel);
            send(self.spec.unsubscribe.as_ref(), &channel, out);
        }
        let new: Vec<_> = self.wanted.difference(&self.joined).cloned().collect();
        for channel in new {
            if self.joined.len() == CHANNELS_MAX {
                let why = format!(
                    "more than {CHANNELS_MAX} channels are wanted; {channel:?} and later ones are not joined"
                );
                return out.push(Out::Unusable(why));
            }
            send(self.spec.subscribe.as_ref(), &channel, out);
            self.joined.insert(channel);
        }
    }

    fn closed(&mut self) {
        self.open = false;
        self.joined.clear();
        self.check = None;
    }
}

fn send(template: Option<&Template>, channel: &str, out: &mut Vec<Out>) {
    let Some(template) = template else { return };
    let bindings = Bindings::from([("channel".to_owned(), Value::from(channel))]);
    match template.fill(&bindings) {
        Ok(text) => out.push(Out::Send(Outgoing::Text(text))),
        Err(error) => {
            out.push(Out::Unusable(format!("the channel {channel:?} cannot be asked for: {error}")))
        }
    }
}

impl Protocol for WebSocketJson {
    fn caps(&self) -> Caps {
        let (resume, dense) =
            self.spec.position.as_ref().map_or((Resume::None, false), |it| (it.resume, it.dense));
        Caps { dense, joins: self.spec.subscribe.is_some(), ..Caps::of(resume) }
    }

    fn transport(&self) -> &'static str {
        "websocket"
    }

    fn request(&mut self, position: Option<&Position>) -> ConnectRequest {
        let mut url = self.spec.url.clone();
        let parameter = self.spec.position.as_ref().and_then(|spec| spec.resume_query.as_deref());
        self.resumes = false;
        if let (Some(name), Some(position)) = (parameter, position) {
            let (epoch, value) = match position {
                Position::Seq { epoch, offset } => (Some(epoch.as_ref()), Some(offset.to_string())),
                Position::Opaque(opaque) => (None, Some(opaque.to_string())),
                // Counted here: it means nothing to the server.
                Position::Local { .. } => (None, None),
            };
            if let Some(value) = value {
                self.resumes = true;
                add_parameter(&mut url, name, &value);
                let epoch = epoch.filter(|epoch| !epoch.is_empty());
                if let (Some(name), Some(epoch)) = (self.spec.resume_epoch_query.as_deref(), epoch) {
                    add_parameter(&mut url, name, epoch);
                }
            }
        }
        ConnectRequest {
            transport: Transport::WebSocket(self.spec.subprotocols.clone()),
            url,
            headers: self.spec.headers.clone(),
            max_message: self.spec.max_message,
        }
    }

    fn on_open(&mut self, now: Time, _: &Head, out: &mut Vec<Out>) {
        let resumed = self.resumes && self.caps().resume == Resume::Proven;
        out.push(Out::Joined { resumed });
        self.open = true;
        self.heard = now;
        self.beat = None;
        self.check_later();
        self.live = self.spec.live_when.is_none() || resumed;
        self.joined.clear();
        self.adjust(out);
        if self.live {
            out.push(Out::Live);
        }
    }

    fn on_frame(&mut self, now: Time, frame: Frame, out: &mut Vec<Out>) {
        self.heard = now;
        let raw = match frame {
            Frame::Text(raw) | Frame::Binary(raw) => raw,
            Frame::Alive | Frame::Chunk(_) | Frame::Answer(_) => return,
        };
        let value: Value = match serde_json::from_slice(&raw) {
            Ok(value) => value,
            Err(error) => return out.push(Out::Unusable(format!("a message is not JSON: {error}"))),
        };
        if self.spec.live_when.as_ref().is_some_and(|when| when.holds(&value)) {
            self.live = true;
            return out.push(Out::Live);
        }
        let position = match &self.spec.position {
            Some(spec) => position_in(spec, &value),
            None => self.spec.message_id.as_ref().and_then(|path| id_at(path, &value)),
        };
        out.push(Out::Message { value, raw, position, live: self.live });
    }

    fn set_channels(&mut self, wanted: &Channels, out: &mut Vec<Out>) {
        self.wanted.clone_from(wanted);
        self.adjust(out);
    }

    fn deadline(&self) -> Option<Time> {
        self.check
    }

    fn on_deadline(&mut self, now: Time, out: &mut Vec<Out>) {
        if self.check.is_none_or(|check| now < check) {
            return;
        }
        let Some((beat, dead)) = self.due() else { return };
        if now >= dead {
            self.closed();
            return out.push(Out::Drop(CloseInfo::because("the server was silent for too long")));
        }
        if now >= beat {
            self.beat = Some(now);
            let text = self.spec.heartbeat.as_ref().and_then(|heartbeat| heartbeat.send.clone());
            out.push(Out::Send(text.map_or(Outgoing::Ping, Outgoing::Text)));
        }
        self.check_later();
    }

    fn on_close(&mut self, close: &CloseInfo) -> CloseAction {
        self.closed();
        close.action()
    }
}

/// An id is a place that nothing can be resumed at, known again by whoever has the message still.
pub(crate) fn id_at(path: &Path, message: &Value) -> Option<Position> {
    let id = path.find(message).filter(|id| id.is_string() || id.is_number())?;
    Some(Position::Opaque(text(id).into()))
}

/// Where a message stands.
pub(crate) fn position_in(spec: &PositionSpec, message: &Value) -> Option<Position> {
    match spec.offset.find(message)? {
        Value::Number(number) => {
            let epoch = spec.epoch.as_ref().and_then(|path| path.find(message)).map(text).unwrap_or_default();
            Some(Position::Seq { epoch: epoch.into(), offset: number.as_u64()? })
        }
        Value::String(opaque) => Some(Position::Opaque(opaque.as_str().into())),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(crate) fn add_parameter(url: &mut String, name: &str, value: &str) {
    url.push(if url.contains('?') { '&' } else { '?' });
    url.push_str(&percent_encode(name));
    url.push('=');
    url.push_str(&percent_encode(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> WebSocketSpec {
        let mut spec = WebSocketSpec::new("ws://h/feed?x=1");
        spec.position = Some(PositionSpec {
            offset: "$.seq".parse().unwrap(),
            epoch: Some("$.stream".parse().unwrap()),
            resume_query: Some("since".into()),
            resume: Resume::Proven,
            dense: true,
        });
        spec
    }

    fn frame(machine: &mut WebSocketJson, now: u64, text: &str) -> Vec<Out> {
        let mut out = Vec::new();
        machine.on_frame(Time(now), Frame::Text(text.to_owned().into()), &mut out);
        out
    }

    #[test]
    fn a_position_is_read_and_asked_for_again() {
        let mut machine = WebSocketJson::new(spec());
        machine.on_open(Time(0), &Head::default(), &mut Vec::new());
        let out = frame(&mut machine, 1, r#"{"seq":41,"stream":"a"}"#);
        let Some(Out::Message { position: Some(position), live: true, .. }) = out.first() else {
            panic!("{out:?}")
        };
        assert_eq!(*position, Position::Seq { epoch: "a".into(), offset: 41 });
        assert_eq!(machine.request(Some(position)).url, "ws://h/feed?x=1&since=41");
        assert_eq!(
            machine.request(Some(&Position::Opaque("a b&c".into()))).url,
            "ws://h/feed?x=1&since=a%20b%26c"
        );
        assert_eq!(machine.request(None).url, "ws://h/feed?x=1");
    }

    #[test]
    fn an_id_is_the_place_of_a_message_without_a_position() {
        let spec =
            WebSocketSpec { message_id: Some("$.id".parse().unwrap()), ..WebSocketSpec::new("ws://h/") };
        let mut machine = WebSocketJson::new(spec);
        machine.on_open(Time(0), &Head::default(), &mut Vec::new());
        for (message, id) in
            [(r#"{"id":"a"}"#, Some("a")), (r#"{"id":7}"#, Some("7")), (r#"{"id":null}"#, None), ("{}", None)]
        {
            let out = frame(&mut machine, 1, message);
            let Some(Out::Message { position, .. }) = out.first() else { panic!("{out:?}") };
            assert_eq!(*position, id.map(|id| Position::Opaque(id.into())), "{message}");
        }
        assert_eq!(
            machine.request(Some(&Position::Opaque("a".into()))).url,
            "ws://h/",
            "nothing is asked for by it"
        );
    }

    #[test]
    fn a_message_that_is_not_json_does_not_end_the_connection() {
        let mut machine = WebSocketJson::new(spec());
        machine.on_open(Time(0), &Head::default(), &mut Vec::new());
        assert!(matches!(frame(&mut machine, 1, "{").as_slice(), [Out::Unusable(_)]));
        assert!(matches!(frame(&mut machine, 2, "{}").as_slice(), [Out::Message { position: None, .. }]));
    }

    #[test]
    fn messages_before_the_live_mark_are_a_snapshot() {
        let mut spec = spec();
        spec.live_when = Some(r#"$.type == "live""#.parse().unwrap());
        let mut machine = WebSocketJson::new(spec);
        let mut out = Vec::new();
        machine.on_open(Time(0), &Head::default(), &mut out);
        assert_eq!(out, [Out::Joined { resumed: false }]);
        assert!(matches!(frame(&mut machine, 1, "{}").as_slice(), [Out::Message { live: false, .. }]));
        assert_eq!(frame(&mut machine, 2, r#"{"type":"live"}"#), [Out::Live]);
        assert!(matches!(frame(&mut machine, 3, "{}").as_slice(), [Out::Message { live: true, .. }]));
        // Again from the start after a reconnect without a position; with one, the server goes on where it was.
        machine.request(None);
        machine.on_open(Time(4), &Head::default(), &mut out);
        assert!(matches!(frame(&mut machine, 5, "{}").as_slice(), [Out::Message { live: false, .. }]));
        machine.request(Some(&Position::Seq { epoch: "a".into(), offset: 1 }));
        machine.on_open(Time(6), &Head::default(), &mut out);
        assert!(matches!(frame(&mut machine, 7, "{}").as_slice(), [Out::Message { live: true, .. }]));
    }

    #[test]
    fn silence_is_answered_by_a_heartbeat_and_then_ends_the_connection() {
        let mut spec = spec();
        let (every, dead_after) = (Duration::from_secs(20), Duration::from_secs(30));
        spec.heartbeat = Some(Heartbeat { send: Some("ping".into()), every, dead_after });
        let mut machine = WebSocketJson::new(spec);
        machine.on_open(Time(0), &Head::default(), &mut Vec::new());
        assert_eq!(machine.deadline(), Some(Time(0) + every));
        let mut out = Vec::new();
        machine.on_deadline(Time(0) + every, &mut out);
        assert_eq!(out, [Out::Send(Outgoing::Text("ping".into()))]);
        assert_eq!(machine.deadline(), Some(Time(0) + dead_after));
        let mut revived = Vec::new();
        machine.on_frame(Time(0) + (dead_after - Duration::from_nanos(1)), Frame::Alive, &mut revived);
        out.clear();
        machine.on_deadline(Time(0) + dead_after, &mut out);
        assert_eq!(out, []);
        let later = machine.deadline().unwrap() + dead_after;
        machine.on_deadline(later, &mut out);
        assert!(matches!(out.as_slice(), [Out::Drop(_)]));
    }
}
