//! The Pusher protocol, version 7, as Laravel Echo uses it.
//!
//! A message, as routes see it, is `{"type": EVENT, "channel": CHANNEL, "data": DATA}`, and has `user_id` where the server
//! says whose event it is. Data that is JSON, or a text that holds JSON, is parsed. Who is in a presence channel comes as
//! the events `pusher:subscription_succeeded`, `pusher:member_added` and `pusher:member_removed`.
//!
//! There are no positions: every reconnect is a gap, with a new id of the socket, by which each private channel is
//! authorised anew. All sessions share the one socket, and the server sends nobody his own events: an event that a
//! session sends is looped back here, so that the others get it.

mod channel;
mod sealed;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_proto::{
    hub::Resume,
    id::Position,
    limits::VALUE_MAX,
    time::{Time, earliest},
};
use serde_json::{Value, json};

pub use self::channel::event_name;
use self::{channel::Kind, sealed::Key};
use crate::{
    protocol::{
        Adapter, Answer, CHANNELS_MAX, COMPLAINT_FLOOR, Call, Caps, Channels, ClientEvent, CloseAction,
        CloseInfo, ConnectRequest, Frame, Head, Out, Outgoing, Protocol, PublishError, Secret, Transport,
    },
    template::percent_encode,
};

/// Silence after which the server is asked whether it lives, unless it wants to be asked sooner.
const ACTIVITY_TIMEOUT: Duration = Duration::from_secs(120);
/// The answer, and the server's greeting, must be there by then.
const PONG_TIMEOUT: Duration = Duration::from_secs(30);
/// An answer of the endpoint that authorises must be there by then.
const AUTH_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest answer of that endpoint: who somebody is, as the application says, may be in it.
const AUTH_MAX: usize = 64 << 10;
/// A channel whose authorisation failed for now is tried again after a second, doubled up to so much.
const AUTH_RETRY_MAX: Duration = Duration::from_secs(30);

/// An endpoint that authorises private and presence channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthSpec {
    /// The id of the socket and the channel are posted there.
    pub endpoint: String,
    /// Headers of the request.
    pub headers: Vec<(String, Secret)>,
    /// Most requests at a time.
    pub parallel: usize,
}

/// A Pusher upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PusherSpec {
    /// The application's key, which is public.
    pub key: String,
    /// The server.
    pub host: String,
    /// Its port, if not the usual one.
    pub port: Option<u16>,
    /// TLS. Without it, a server that wants it gets it.
    pub tls: bool,
    /// How private and presence channels are authorised.
    pub auth: Option<AuthSpec>,
}

impl PusherSpec {
    /// A server of one's own, over TLS.
    pub fn new(key: impl Into<String>, host: impl Into<String>) -> Self {
        Self { key: key.into(), host: host.into(), port: None, tls: true, auth: None }
    }

    /// A cluster of the vendor's.
    pub fn cluster(key: impl Into<String>, cluster: &str) -> Self {
        Self::new(key, format!("ws-{cluster}.pusher.com"))
    }
}

impl Adapter for PusherSpec {
    fn machine(&self) -> Box<dyn Protocol> {
        Box::new(Pusher::new(self.clone()))
    }
}

/// How far a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// For its turn to be authorised.
    Queued,
    /// For the endpoint, after a failure.
    Later(Time),
    /// For the endpoint's answer.
    Asking(u64),
    /// For the server's word.
    Subscribing,
    Joined,
    /// Refused.
    Refused,
}

#[derive(Debug)]
struct Membership {
    kind: Kind,
    stage: Stage,
    /// Failures of the endpoint in a row.
    failures: u32,
    key: Option<Key>,
    /// The server has joined it: authorising it again is for the key only.
    is_joined: bool,
    /// Authorised again because an event could not be opened; not done twice in a row.
    renewed: bool,
}

/// The machine.
#[derive(Debug)]
pub struct Pusher {
    spec: PusherSpec,
    tls: bool,
    wanted: Channels,
    /// The id of the socket, once the server has greeted.
    socket: Option<String>,
    channels: BTreeMap<Arc<str>, Membership>,
    last_call: u64,
    activity: Duration,
    /// The last frame, or the opening.
    heard: Time,
    pinged: bool,
    /// When to look at `heard` again.
    check: Option<Time>,
    live: bool,
}

impl Pusher {
    /// Not connected.
    pub fn new(spec: PusherSpec) -> Self {
        let tls = spec.tls;
        Self {
            spec,
            tls,
            wanted: Channels::new(),
            socket: None,
            channels: BTreeMap::new(),
            last_call: 0,
            activity: ACTIVITY_TIMEOUT,
            heard: Time::ZERO,
            pinged: false,
            check: None,
            live: false,
        }
    }

    /// Leaves, joins and authorises until the channels are the wanted ones.
    fn adjust(&mut self, out: &mut Vec<Out>) {
        if self.socket.is_none() {
            return;
        }
        let left: Vec<_> = self.channels.keys().filter(|it| !self.wanted.contains(*it)).cloned().collect();
        for channel in left {
            let was = self.channels.remove(&channel);
            if was.is_some_and(|it| it.is_joined || it.stage == Stage::Subscribing) {
                out.push(send("pusher:unsubscribe", &json!({ "channel": &*channel })));
            }
        }
        let new: Vec<_> = self.wanted.iter().filter(|it| !self.channels.contains_key(*it)).cloned().collect();
        for channel in new {
            if self.channels.len() == CHANNELS_MAX {
                let why = format!(
                    "more than {CHANNELS_MAX} channels are wanted; {channel:?} and later ones are not joined"
                );
                out.push(Out::Unusable(why));
                break;
            }
            let stage = self.first_stage(&channel, out);
            let kind = Kind::of(&channel);
            let membership =
                Membership { kind, stage, failures: 0, key: None, is_joined: false, renewed: false };
            self.channels.insert(channel, membership);
        }
        self.authorise(out);
        self.look_whether_live(out);
    }

    fn first_stage(&self, channel: &str, out: &mut Vec<Out>) -> Stage {
        if !Kind::of(channel).is_private {
            out.push(send("pusher:subscribe", &json!({ "channel": channel })));
            return Stage::Subscribing;
        }
        if self.spec.auth.is_some() {
            return Stage::Queued;
        }
        out.push(Out::Unusable(format!(
            "the channel {channel:?} is not joined: nothing authorises it; name the endpoint in `auth`"
        )));
        Stage::Refused
    }

    /// Asks the endpoint about as many channels as may be asked about at a time.
    fn authorise(&mut self, out: &mut Vec<Out>) {
        let (Some(auth), Some(socket)) = (&self.spec.auth, &self.socket) else { return };
        let asking = self.channels.values().filter(|it| matches!(it.stage, Stage::Asking(_))).count();
        let free = auth.parallel.max(1).saturating_sub(asking);
        let queued = self.channels.iter_mut().filter(|(_, it)| it.stage == Stage::Queued);
        for (channel, membership) in queued.take(free) {
            self.last_call += 1;
            membership.stage = Stage::Asking(self.last_call);
            let form =
                format!("socket_id={}&channel_name={}", percent_encode(socket), percent_encode(channel));
            let mut headers = vec![
                ("Accept".to_owned(), Secret::new("application/json")),
                ("Content-Type".to_owned(), Secret::new("application/x-www-form-urlencoded")),
            ];
            headers.extend(auth.headers.iter().cloned());
            out.push(Out::Call(Call {
                id: self.last_call,
                url: auth.endpoint.clone(),
                headers,
                body: Some(Secret::new(form)),
                timeout: AUTH_TIMEOUT,
                max_body: AUTH_MAX,
            }));
        }
    }

    /// Live once every channel is joined, or will not be.
    fn look_whether_live(&mut self, out: &mut Vec<Out>) {
        let settled = |it: &Membership| it.is_joined || it.stage == Stage::Refused;
        if !self.live && self.socket.is_some() && self.channels.values().all(settled) {
            self.live = true;
            out.push(Out::Live);
        }
    }

    fn authorised(&mut self, now: Time, answer: Answer, out: &mut Vec<Out>) {
        let asked = |(_, it): &(&Arc<str>, &mut Membership)| it.stage == Stage::Asking(answer.call);
        let Some((channel, membership)) = self.channels.iter_mut().find(asked) else { return };
        let endpoint = "the endpoint that authorises";
        let failure = match &answer.result {
            Err(why) => Failure::Later(Duration::ZERO, why.clone()),
            Ok(reply) => match reply.head.status {
                200..=299 => match Grant::read(&reply.body, membership.kind) {
                    Ok(grant) => {
                        membership.failures = 0;
                        membership.key = grant.key;
                        if membership.is_joined {
                            membership.stage = Stage::Joined;
                        } else {
                            membership.stage = Stage::Subscribing;
                            out.push(subscribe(channel, grant.data));
                        }
                        return self.adjust(out);
                    }
                    Err(why) => Failure::Refused(format!("{endpoint} answered with {why}")),
                },
                status @ (408 | 425 | 429 | 500..=599) => {
                    Failure::Later(reply.head.retry_after.unwrap_or_default(), format!("status {status}"))
                }
                status @ (401 | 403) => Failure::Refused(format!(
                    "{endpoint} refused it (status {status}); check the headers in `auth` and the rights of the user"
                )),
                status => {
                    Failure::Refused(format!("{endpoint} answered with status {status}; check its address"))
                }
            },
        };
        match failure {
            Failure::Refused(why) => {
                membership.stage = Stage::Refused;
                out.push(Out::Unusable(format!("the channel {channel:?} is not joined: {why}")));
            }
            Failure::Later(wish, why) => {
                let delay =
                    COMPLAINT_FLOOR.saturating_mul(1 << membership.failures.min(5)).min(AUTH_RETRY_MAX);
                membership.failures = membership.failures.saturating_add(1);
                membership.stage = Stage::Later(now + delay.max(wish.min(AUTH_RETRY_MAX)));
                out.push(Out::Unusable(format!(
                    "the channel {channel:?} is not joined yet: {why}; it is tried again"
                )));
            }
        }
        self.adjust(out);
    }

    fn event(&mut self, raw: &Bytes, out: &mut Vec<Out>) {
        let frame: Value = match serde_json::from_slice(raw) {
            Ok(frame) => frame,
            Err(error) => return out.push(Out::Unusable(format!("a message is not JSON: {error}"))),
        };
        let name = frame.get("event").and_then(Value::as_str).unwrap_or_default();
        let data = decode(frame.get("data"));
        let channel = frame.get("channel").and_then(Value::as_str);
        match (name, channel) {
            ("pusher:connection_established", None) => self.greeted(&data, out),
            ("pusher:ping", None) => out.push(send("pusher:pong", &json!({}))),
            ("pusher:pong", None) => {}
            ("pusher:error", _) => self.complaint(&data, out),
            ("pusher_internal:subscription_succeeded", Some(channel)) => self.succeeded(channel, data, out),
            ("pusher:subscription_error", Some(channel)) => self.subscription_failed(channel, &data, out),
            (_, Some(channel)) => {
                let name = name.replace("pusher_internal:", "pusher:");
                self.deliver(&name, channel, data, frame.get("user_id"), out);
            }
            (_, None) => {}
        }
    }

    fn greeted(&mut self, data: &Value, out: &mut Vec<Out>) {
        let Some(socket) = data.get("socket_id").and_then(Value::as_str) else {
            return out.push(Out::Drop(CloseInfo::because("the server's greeting names no socket")));
        };
        let asked = data.get("activity_timeout").and_then(Value::as_u64).filter(|seconds| *seconds > 0);
        self.activity = asked.map_or(ACTIVITY_TIMEOUT, |it| Duration::from_secs(it).min(ACTIVITY_TIMEOUT));
        self.check = Some(self.heard + self.activity);
        self.socket = Some(socket.to_owned());
        out.push(Out::Joined { resumed: false });
        self.adjust(out);
    }

    /// Before the greeting it is the end; after it the server closes if it wants an end.
    fn complaint(&self, data: &Value, out: &mut Vec<Out>) {
        let code = data.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        let message = data.get("message").and_then(Value::as_str).unwrap_or("it does not say why");
        if self.socket.is_none() {
            return out.push(Out::Drop(CloseInfo { code, ..CloseInfo::because(message) }));
        }
        let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
        out.push(Out::Unusable(format!("the server complains{code}: {message}")));
    }

    fn succeeded(&mut self, channel: &str, data: Value, out: &mut Vec<Out>) {
        let Some(membership) = self.channels.get_mut(channel) else { return };
        membership.stage = Stage::Joined;
        membership.is_joined = true;
        if membership.kind.is_presence {
            out.push(message("pusher:subscription_succeeded", channel, data, None));
        }
        self.look_whether_live(out);
    }

    fn subscription_failed(&mut self, channel: &str, data: &Value, out: &mut Vec<Out>) {
        let Some(membership) = self.channels.get_mut(channel) else { return };
        membership.stage = Stage::Refused;
        let why = data.get("error").and_then(Value::as_str).unwrap_or("the server does not say why");
        out.push(Out::Unusable(format!("the channel {channel:?} is not joined: {why}")));
        self.look_whether_live(out);
    }

    fn deliver(&mut self, name: &str, channel: &str, data: Value, user: Option<&Value>, out: &mut Vec<Out>) {
        // It may have been left a moment ago.
        let Some(membership) = self.channels.get_mut(channel) else { return };
        if !membership.kind.is_encrypted || name.starts_with("pusher:") {
            return out.push(message(name, channel, data, user));
        }
        if let Some(opened) = membership.key.as_ref().and_then(|key| key.open(&data)) {
            membership.renewed = false;
            return out.push(message(name, channel, opened, user));
        }
        out.push(Out::Unusable(format!("an event of the channel {channel:?} cannot be opened")));
        out.push(Out::Joined { resumed: false });
        if membership.stage == Stage::Joined && !std::mem::replace(&mut membership.renewed, true) {
            // The secret may have changed.
            membership.stage = Stage::Queued;
            self.authorise(out);
        }
    }
}

enum Failure {
    Refused(String),
    Later(Duration, String),
}

/// What the endpoint gives out.
struct Grant {
    /// Of the subscription, without the channel.
    data: serde_json::Map<String, Value>,
    key: Option<Key>,
}

impl Grant {
    fn read(body: &[u8], kind: Kind) -> Result<Self, &'static str> {
        let body: Value = serde_json::from_slice(body).map_err(|_| "something that is not JSON")?;
        let text = |name: &str| body.get(name).and_then(Value::as_str);
        let mut data = serde_json::Map::new();
        data.insert("auth".to_owned(), text("auth").ok_or("no signature")?.into());
        if let Some(who) = text("channel_data") {
            // Signed as it stands, to the byte.
            data.insert("channel_data".to_owned(), who.into());
        } else if kind.is_presence {
            return Err("no data of the user");
        }
        let key = match (kind.is_encrypted, text("shared_secret")) {
            (true, secret) => Some(secret.and_then(Key::read).ok_or("no usable secret of the channel")?),
            (false, _) => None,
        };
        Ok(Self { data, key })
    }
}

fn subscribe(channel: &str, mut data: serde_json::Map<String, Value>) -> Out {
    data.insert("channel".to_owned(), channel.into());
    let frame = json!({ "event": "pusher:subscribe", "data": data });
    Out::Send(Outgoing::Hidden(Secret::new(frame.to_string())))
}

fn send(event: &str, data: &Value) -> Out {
    Out::Send(Outgoing::Text(json!({ "event": event, "data": data }).to_string()))
}

fn message(name: &str, channel: &str, data: Value, user: Option<&Value>) -> Out {
    let mut value = json!({ "type": name, "channel": channel, "data": data });
    if let Some(user) = user {
        value["user_id"] = user.clone();
    }
    let raw = Bytes::from(value.to_string());
    Out::Message { value, raw, position: None, live: true }
}

/// Some servers send data as a text that holds JSON, others as it is.
fn decode(data: Option<&Value>) -> Value {
    match data {
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into()),
        Some(other) => other.clone(),
        None => Value::Null,
    }
}

impl Protocol for Pusher {
    fn caps(&self) -> Caps {
        Caps { joins: true, publishes: true, ..Caps::of(Resume::None) }
    }

    fn transport(&self) -> &'static str {
        "pusher"
    }

    fn request(&mut self, _: Option<&Position>) -> ConnectRequest {
        let scheme = if self.tls { "wss" } else { "ws" };
        let port = self.spec.port.map(|port| format!(":{port}")).unwrap_or_default();
        let key = percent_encode(&self.spec.key);
        let version = env!("CARGO_PKG_VERSION");
        let url = format!(
            "{scheme}://{host}{port}/app/{key}?protocol=7&client=paceline&version={version}&flash=false",
            host = self.spec.host
        );
        ConnectRequest {
            max_message: VALUE_MAX,
            ..ConnectRequest::new(Transport::WebSocket(Vec::new()), url)
        }
    }

    fn on_open(&mut self, now: Time, _: &Head, _: &mut Vec<Out>) {
        self.heard = now;
        self.check = Some(now + PONG_TIMEOUT);
    }

    fn on_frame(&mut self, now: Time, frame: Frame, out: &mut Vec<Out>) {
        match frame {
            Frame::Answer(answer) => self.authorised(now, answer, out),
            Frame::Text(raw) | Frame::Binary(raw) => {
                self.heard = now;
                self.pinged = false;
                self.event(&raw, out);
            }
            Frame::Alive => {
                self.heard = now;
                self.pinged = false;
            }
            Frame::Chunk(_) => {}
        }
    }

    fn set_channels(&mut self, wanted: &Channels, out: &mut Vec<Out>) {
        self.wanted.clone_from(wanted);
        self.adjust(out);
    }

    fn publish(&mut self, event: ClientEvent, out: &mut Vec<Out>) -> Result<(), PublishError> {
        let ClientEvent { channel, name, data } = event;
        if !Kind::of(&channel).takes_events() {
            return Err(PublishError::Channel(channel));
        }
        if self.channels.get(&channel).is_none_or(|it| it.stage != Stage::Joined) {
            return Err(PublishError::NotJoined(channel));
        }
        let name = format!("client-{name}");
        let frame = json!({ "event": name, "channel": &*channel, "data": data });
        out.push(Out::Send(Outgoing::Text(frame.to_string())));
        out.push(message(&name, &channel, data, None));
        Ok(())
    }

    fn deadline(&self) -> Option<Time> {
        let later = self.channels.values().filter_map(|it| match it.stage {
            Stage::Later(at) => Some(at),
            Stage::Queued | Stage::Asking(_) | Stage::Subscribing | Stage::Joined | Stage::Refused => None,
        });
        earliest(self.check, later.min())
    }

    fn on_deadline(&mut self, now: Time, out: &mut Vec<Out>) {
        for membership in self.channels.values_mut() {
            if matches!(membership.stage, Stage::Later(at) if at <= now) {
                membership.stage = Stage::Queued;
            }
        }
        self.authorise(out);
        if self.check.is_none_or(|check| now < check) {
            return;
        }
        let quiet = if self.socket.is_some() { self.heard + self.activity } else { self.heard };
        let dead = quiet + PONG_TIMEOUT;
        if now >= dead {
            let why =
                if self.socket.is_some() { "the server was silent for too long" } else { "no greeting came" };
            self.check = None;
            return out.push(Out::Drop(CloseInfo::because(why)));
        }
        if now >= quiet && !std::mem::replace(&mut self.pinged, true) {
            out.push(send("pusher:ping", &json!({})));
        }
        self.check = Some(if now >= quiet { dead } else { quiet });
    }

    fn on_close(&mut self, close: &CloseInfo) -> CloseAction {
        self.socket = None;
        self.channels.clear();
        self.check = None;
        self.pinged = false;
        self.live = false;
        let said = if close.reason.is_empty() { "it does not say why" } else { &close.reason };
        match close.code {
            // TLS only.
            Some(4000) if !self.tls => {
                self.tls = true;
                CloseAction::Backoff(Duration::ZERO)
            }
            Some(code @ 4000..=4099) => {
                let what = match code {
                    4001 => "knows no application of this key",
                    4003 => "has disabled the application",
                    4004 => "counts too many connections of the application",
                    4009 => "does not authorise this connection",
                    _ => "refuses this connection",
                };
                CloseAction::Stop(format!("the server {what} (code {code}): {said}"))
            }
            Some(4100..=4199) => CloseAction::Backoff(COMPLAINT_FLOOR),
            Some(4200..=4299) => CloseAction::Backoff(Duration::ZERO),
            Some(code @ 4300..=4999) => {
                CloseAction::Stop(format!("the server ended the connection for good (code {code}): {said}"))
            }
            _ => close.action(),
        }
    }
}

#[cfg(test)]
mod tests;
