//! Servers outside, by protocol.

use std::collections::BTreeSet;

use paceline_channel::template::Template;
use paceline_proto::limits::VALUE_MAX;
use serde_json::Value;

use crate::{
    node::{Data, Node},
    origin::Origin,
    part::Part,
    problem::{Problem, ProblemKind},
    reader::{Check, Entry, Field, KeyDoc, Reader, Sourced},
    value::{
        Bytes, ChannelMessage, ConditionText, Count, Headers, HttpUrl, Interval, JsonPath, LiveUrl, Name,
        Text,
    },
};

const NONE: [&str; 0] = [];

words! {
    /// How a server is spoken to.
    Protocol {
        /// JSON messages over a WebSocket.
        WebSocket = "websocket",
        /// Server-Sent Events.
        Sse = "sse",
        /// The Pusher protocol, as Laravel Echo uses it.
        Pusher = "pusher",
    }
}

words! {
    /// When a connection is opened.
    ConnectWhen {
        /// While the group lives.
        Always = "always",
        /// While some session subscribes to a key or stream that is routed from it.
        Subscribed = "subscribed",
    }
}

words! {
    /// What a reconnect proves.
    Continuity {
        /// The server resumes after a position and says when it cannot.
        Proven = "proven",
        /// The server resumes as far as it can, and does not say how far.
        Unproven = "unproven",
        /// Every reconnect is a gap.
        None = "none",
    }
}

words! {
    /// What a reconnect proves where it cannot prove that nothing is missing.
    SseContinuity {
        /// The server resumes after the last id as far as it can.
        Unproven = "unproven",
        /// Every reconnect is a gap.
        None = "none",
    }
}

words! {
    /// How a delay is drawn.
    Jitter {
        /// Uniform from zero to the bound.
        Full = "full",
        /// The bound itself.
        None = "none",
    }
}

/// What a connection does while no session is visible: `"keep"` or `"drop-after 60s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Background {
    /// It stays.
    Keep,
    /// It is closed after so long.
    DropAfter(Interval),
}

impl Field for Background {
    fn kind() -> String {
        "`keep` or `drop-after DURATION`".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.text(node, &Self::kind())?;
        if text == "keep" {
            return Some(Self::Keep);
        }
        let Some(duration) = text.strip_prefix("drop-after ") else {
            let problem = Problem::new(
                ProblemKind::Value,
                reader.key(),
                node.origin.clone(),
                format!("does not take {text:?}"),
            );
            reader.report(problem.one_of(text, ["keep", "drop-after 60s"]).allowed(Self::kind()));
            return None;
        };
        let duration = Node { data: Data::Text(duration.trim().to_owned()), origin: node.origin.clone() };
        Interval::read(&duration, reader).map(Self::DropAfter)
    }

    fn canon(&self) -> Value {
        match self {
            Self::Keep => "keep".into(),
            Self::DropAfter(interval) => format!("drop-after {interval}").into(),
        }
    }
}

/// What comes next when a transport fails again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FallbackStep {
    /// Another upstream.
    Upstream(Name),
    /// The polling rules of the routed resources.
    Poll,
}

impl Field for FallbackStep {
    fn kind() -> String {
        "name of another upstream, or `poll`".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        if node.text() == Some("poll") {
            return Some(Self::Poll);
        }
        let name = Name::read(node, reader)?;
        let declared = reader.declared("upstreams");
        if declared.contains_key(name.as_str()) || reader.is_lost("upstreams") {
            return Some(Self::Upstream(name));
        }
        let what = format!("refers to {:?}, and no [upstreams.{name}] is declared", name.as_str());
        let problem = Problem::new(ProblemKind::Reference, reader.key(), node.origin.clone(), what);
        reader.report(problem.one_of(name.as_str(), declared.keys().map(String::as_str).chain(["poll"])));
        None
    }

    fn canon(&self) -> Value {
        match self {
            Self::Upstream(name) => name.canon(),
            Self::Poll => "poll".into(),
        }
    }
}

/// A lower and an upper bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clamp {
    least: Interval,
    most: Interval,
}

impl Clamp {
    /// The lower bound.
    pub const fn least(&self) -> Interval {
        self.least
    }

    /// The upper bound.
    pub const fn most(&self) -> Interval {
        self.most
    }
}

impl Field for Clamp {
    fn kind() -> String {
        "list of two durations, the lower one first".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let items = reader.items(node, &Self::kind())?;
        let [least, most] = items else {
            reader.odd(node, format!("has {} elements", items.len()), Self::kind());
            return None;
        };
        let least = reader.inside("[0]", |reader| Interval::read(least, reader));
        let most = reader.inside("[1]", |reader| Interval::read(most, reader));
        let clamp = Self { least: least?, most: most? };
        if clamp.least > clamp.most {
            reader.odd(node, format!("{} is more than {}", clamp.least, clamp.most), Self::kind());
            return None;
        }
        Some(clamp)
    }

    fn canon(&self) -> Value {
        [self.least.canon(), self.most.canon()].into_iter().collect()
    }
}

table! {
    /// When to try again, and when by another transport.
    Backoff {
        /// Upper bound of the first delay; it doubles with each failure.
        has base: Interval = "1s", "a server that restarts is found again at once, one that is down is not hammered",
        /// Upper bound of any delay.
        has cap: Interval = "30s", "half a minute is the longest a user waits for a server that is back",
        /// How a delay is drawn below its bound.
        has jitter: Jitter = "full", "the clients of a server that failed do not come back at one instant",
        /// A connection that lived so long forgets the failures before it.
        has reset_after: Interval = "60s", "a server that accepts and drops is not hammered",
        /// After so many failures in a row the next transport is tried.
        has fallback_after: Count<1, 100> = 5, "about half a minute of failures",
    }
}

impl Check for Backoff {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        if self.base.value() > self.cap.value() {
            let what =
                format!("the first delay of {} is longer than the longest of {}", *self.base, *self.cap);
            reader.relate(
                ("base", self.base.origin()),
                ("cap", self.cap.origin()),
                &what,
                "make `cap` at least `base`",
            );
        }
    }
}

table! {
    /// Where a message says what it is.
    Envelope {
        /// Its type, a text.
        has r#type: JsonPath = "$.type", "what most servers call it",
        /// Its id; a repetition is dropped by it.
        may id: JsonPath; needs MessageIds,
        /// Its channel, a text.
        has channel: JsonPath = "$.channel", "what most servers call it",
        /// Its payload: what a route takes that does not say more.
        has data: JsonPath = "$", "the whole message, so that nothing of it is lost",
    }
}

impl Check for Envelope {}

table! {
    /// Where a message says where it stands, and what a reconnect can prove.
    Position {
        /// The server's name for the history that positions belong to; a change of it is a gap.
        may epoch: JsonPath,
        /// The position: a number that ascends, or a text.
        may offset: JsonPath,
        /// Parameter of the URL that resumes after a position.
        may resume_query: Text,
        /// Parameter of the URL that names the history a resume belongs to.
        may resume_epoch_query: Text,
        /// What a reconnect can prove.
        has continuity: Continuity = "none", "what is not known to be complete is verified",
        /// Positions are numbers without holes: a hole proves a loss.
        has dense: bool = false, "servers that number all their channels at once leave holes",
    }
}

impl Check for Position {
    fn check(&self, at: &Origin, reader: &mut Reader<'_>) {
        let continuity = (self.continuity.value(), self.continuity.origin());
        let mut lacks = |key: &str, because: (&str, &Origin)| {
            if reader.is_malformed(key) || reader.is_malformed(because.0) {
                return;
            }
            let what = format!("the key `{key}` is missing, which `{}` needs", because.0);
            let problem = Problem::new(ProblemKind::Missing, reader.key_of(key), at.clone(), what);
            reader.report(problem.related(reader.key_of(because.0), because.1.clone()));
        };
        match continuity.0 {
            Continuity::Proven | Continuity::Unproven => {
                if self.offset.is_none() {
                    lacks("offset", ("continuity", continuity.1));
                }
                if self.resume_query.is_none() {
                    lacks("resume_query", ("continuity", continuity.1));
                }
            }
            Continuity::None => {
                if let Some(query) = &self.resume_query {
                    reader.relate(
                        ("continuity", continuity.1),
                        ("resume_query", query.origin()),
                        "a connection that resumes has some continuity",
                        "say `continuity = \"proven\"` or \"unproven\", or leave `resume_query` out",
                    );
                }
                let offsets = [
                    ("epoch", self.epoch.as_ref().map(Sourced::origin)),
                    ("dense", self.dense.then(|| self.dense.origin())),
                ];
                for (key, origin) in offsets {
                    if let (Some(origin), None, false) = (origin, &self.offset, reader.is_malformed("offset"))
                    {
                        let what = format!("the key `offset` is missing, which `{key}` needs");
                        let problem =
                            Problem::new(ProblemKind::Missing, reader.key_of("offset"), at.clone(), what);
                        reader.report(problem.related(reader.key_of(key), origin.clone()));
                    }
                }
            }
        }
        if let (Some(query), None, false) =
            (&self.resume_epoch_query, &self.epoch, reader.is_malformed("epoch"))
        {
            let what = "the key `epoch` is missing, which `resume_epoch_query` needs";
            let problem = Problem::new(ProblemKind::Missing, reader.key_of("epoch"), at.clone(), what);
            reader.report(problem.related(reader.key_of("resume_epoch_query"), query.origin().clone()));
        }
    }
}

table! {
    /// How a silent server is noticed. Any frame from it counts.
    Heartbeat {
        /// Text to send; a ping of the transport where it is left out.
        may send: Text,
        /// After so long without a frame.
        must every: Interval,
        /// The server is dead after so long without a frame.
        must dead_after: Interval,
    }
}

impl Check for Heartbeat {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        if self.dead_after.value() <= self.every.value() {
            let what = format!(
                "a server that is dead after {} has no time to answer what is sent after {}",
                *self.dead_after, *self.every
            );
            reader.relate(
                ("dead_after", self.dead_after.origin()),
                ("every", self.every.origin()),
                &what,
                "make `dead_after` longer than `every`",
            );
        }
    }
}

table! {
    /// `[upstreams.NAME]` with `protocol = "websocket"`: JSON messages over a WebSocket.
    WebSocketUpstream {
        /// `websocket`.
        must protocol: Protocol; needs WebSocket,
        /// Where it is.
        must url: LiveUrl,
        /// Headers of the handshake.
        table headers: Headers,
        /// Subprotocols to offer.
        table subprotocols: Vec<Sourced<Text>>,
        /// One consumer: a successor connects only after the old connection ended.
        has exclusive: bool = true, "a server that admits one consumer is never shown two",
        /// When it is opened.
        has connect_when: ConnectWhen = "always", "the first session that subscribes finds the wire live",
        /// What it does while no session is visible.
        has background: Background = "keep", "sessions without a window are never visible",
        /// Longest message taken.
        has max_message: Bytes<1, { VALUE_MAX as u64 }> = "1MiB", "what a value of the cache may take",
        /// Where messages say what they are.
        table envelope: Envelope,
        /// Where messages say where they stand.
        table position: Position,
        /// How a silent server is noticed.
        may heartbeat: Heartbeat,
        /// A message that ends the snapshot which the server sends on connect.
        may live_when: ConditionText,
        /// Sent to join a channel.
        may subscribe: ChannelMessage; needs Channels,
        /// Sent to leave a channel.
        may unsubscribe: ChannelMessage; needs Channels,
        /// When to try again.
        table backoff: Backoff,
        /// What comes next when this fails.
        has fallback: Vec<Sourced<FallbackStep>> = NONE, "nothing is assumed of a server"; needs Fallback,
        /// Names in the URL, bound by the keys that are subscribed: each of their values is a connection.
        has per: Vec<Sourced<Name>> = NONE, "one connection"; needs Parameters,
        /// Most connections with different values at a time.
        has max_connections: Count<1, 256> = 8, "more than a person looks at, fewer than a server complains about"; needs Parameters,
    }
}

impl Check for WebSocketUpstream {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        needs(
            self.connect_when.origin(),
            *self.connect_when.value(),
            self.background.origin(),
            *self.background.value(),
            reader,
        );
        names(&self.url, self.url.template(), &self.headers, &self.per, reader);
        if let (Some(unsubscribe), None, false) =
            (&self.unsubscribe, &self.subscribe, reader.is_malformed("subscribe"))
        {
            let what = "the key `subscribe` is missing, which `unsubscribe` needs";
            let problem = Problem::new(
                ProblemKind::Missing,
                reader.key_of("subscribe"),
                unsubscribe.origin().clone(),
                what,
            );
            reader.report(problem.fix("say how a channel is joined that is to be left"));
        }
        if let Some(live_when) = &self.live_when {
            bound_names(live_when, "live_when", &[], false, reader);
        }
    }
}

table! {
    /// Where an event says where it stands.
    SsePosition {
        /// The last event's id is sent on a reconnect.
        has last_event_id: bool = true, "what the standard asks for",
        /// What a reconnect can prove.
        has continuity: SseContinuity = "unproven", "the standard has no proof that nothing is missing",
    }
}

impl Check for SsePosition {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        if !self.last_event_id.value() && *self.continuity.value() == SseContinuity::Unproven {
            reader.relate(
                ("last_event_id", self.last_event_id.origin()),
                ("continuity", self.continuity.origin()),
                "without the last event's id nothing is resumed",
                "say `continuity = \"none\"`",
            );
        }
    }
}

table! {
    /// `[upstreams.NAME]` with `protocol = "sse"`: Server-Sent Events.
    SseUpstream {
        /// `sse`.
        must protocol: Protocol; needs Sse,
        /// Where it is.
        must url: HttpUrl,
        /// Headers of the request.
        table headers: Headers,
        /// One consumer: a successor connects only after the old connection ended.
        has exclusive: bool = true, "a server that admits one consumer is never shown two",
        /// When it is opened.
        has connect_when: ConnectWhen = "always", "the first session that subscribes finds the wire live",
        /// What it does while no session is visible.
        has background: Background = "keep", "sessions without a window are never visible",
        /// The server is dead after so long without a byte; comments count.
        has read_timeout: Interval = "45s", "three of the usual comments of 15 s",
        /// Bounds for the delay that the server asks for.
        has retry_clamp: Clamp = ["1s", "30s"], "as the backoff",
        /// Where events say where they stand.
        table position: SsePosition,
        /// When to try again.
        table backoff: Backoff,
        /// What comes next when this fails.
        has fallback: Vec<Sourced<FallbackStep>> = NONE, "nothing is assumed of a server"; needs Fallback,
        /// Names in the URL, bound by the keys that are subscribed: each of their values is a connection.
        has per: Vec<Sourced<Name>> = NONE, "one connection"; needs Parameters,
        /// Most connections with different values at a time.
        has max_connections: Count<1, 256> = 8, "more than a person looks at, fewer than a server complains about"; needs Parameters,
    }
}

impl Check for SseUpstream {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        needs(
            self.connect_when.origin(),
            *self.connect_when.value(),
            self.background.origin(),
            *self.background.value(),
            reader,
        );
        names(&self.url, self.url.template(), &self.headers, &self.per, reader);
    }
}

table! {
    /// How private and presence channels are authorised.
    Auth {
        /// Where: the socket's id and the channel are posted there.
        must endpoint: HttpUrl,
        /// Headers of the request.
        table headers: Headers,
        /// Most requests at a time.
        has parallel: Count<1, 64> = 4, "a reconnect with many channels is no burst for the server",
    }
}

impl Check for Auth {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        names(
            &self.endpoint,
            self.endpoint.template(),
            &self.headers,
            &Sourced::new(Vec::new(), self.endpoint.origin().clone()),
            reader,
        );
    }
}

/// A server, by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host(String);

impl Host {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Field for Host {
    fn kind() -> String {
        "name or address of a host".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.text(node, &Self::kind())?;
        if crate::value::is_host(text) {
            return Some(Self(text.to_ascii_lowercase()));
        }
        reader.invalid(
            node,
            "a host, as \"ws.example.com\", \"127.0.0.1\" or \"[::1]\", without scheme and port",
        );
        None
    }

    fn canon(&self) -> Value {
        self.0.as_str().into()
    }
}

table! {
    /// `[upstreams.NAME]` with `protocol = "pusher"`: the Pusher protocol, as Laravel Echo uses it.
    PusherUpstream {
        /// `pusher`.
        must protocol: Protocol; needs Pusher,
        /// The application's key, which is public.
        must key: Text,
        /// The vendor's cluster; `host` for a server of your own.
        may cluster: Name,
        /// A server of your own.
        may host: Host,
        /// Its port; 443, or 80 without TLS, where it is left out.
        may port: Count<1, 65535>,
        /// TLS only.
        has force_tls: bool = true, "keys and messages are not for the network to read",
        /// Put before the names of events that do not begin with a dot.
        may namespace: Text,
        /// How private and presence channels are authorised.
        may auth: Auth,
        /// One consumer: a successor connects only after the old connection ended.
        has exclusive: bool = true, "a server that admits one consumer is never shown two",
        /// When it is opened.
        has connect_when: ConnectWhen = "always", "the first session that subscribes finds the wire live",
        /// What it does while no session is visible.
        has background: Background = "keep", "sessions without a window are never visible",
        /// When to try again.
        table backoff: Backoff,
        /// What comes next when this fails.
        has fallback: Vec<Sourced<FallbackStep>> = NONE, "nothing is assumed of a server"; needs Fallback,
    }
}

impl Check for PusherUpstream {
    fn check(&self, at: &Origin, reader: &mut Reader<'_>) {
        needs(
            self.connect_when.origin(),
            *self.connect_when.value(),
            self.background.origin(),
            *self.background.value(),
            reader,
        );
        match (&self.cluster, &self.host) {
            (Some(cluster), Some(host)) => reader.relate(
                ("host", host.origin()),
                ("cluster", cluster.origin()),
                "a server is named by `cluster` or by `host`, not by both",
                "leave one out",
            ),
            (None, None) if !reader.is_malformed("cluster") && !reader.is_malformed("host") => {
                let problem = Problem::new(ProblemKind::Missing, reader.key(), at.clone(), "names no server");
                reader.report(problem.allowed("cluster, host").fix("give one of them"));
            }
            (Some(cluster), None) => {
                if let Some(port) = &self.port {
                    let what = "the port of a cluster is known";
                    reader.relate(
                        ("port", port.origin()),
                        ("cluster", cluster.origin()),
                        what,
                        "leave `port` out",
                    );
                }
            }
            (None, Some(_) | None) => {}
        }
    }
}

/// `[upstreams.NAME]`: a server outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Upstream {
    /// JSON messages over a WebSocket.
    WebSocket(Box<WebSocketUpstream>),
    /// Server-Sent Events.
    Sse(Box<SseUpstream>),
    /// The Pusher protocol.
    Pusher(Box<PusherUpstream>),
}

impl Upstream {
    /// How it is spoken to.
    pub const fn protocol(&self) -> Protocol {
        match self {
            Self::WebSocket(_) => Protocol::WebSocket,
            Self::Sse(_) => Protocol::Sse,
            Self::Pusher(_) => Protocol::Pusher,
        }
    }

    /// What comes next when it fails.
    pub const fn fallback(&self) -> &Sourced<Vec<Sourced<FallbackStep>>> {
        match self {
            Self::WebSocket(upstream) => upstream.fallback(),
            Self::Sse(upstream) => upstream.fallback(),
            Self::Pusher(upstream) => upstream.fallback(),
        }
    }

    /// Names that its connections are bound to.
    pub fn parameters(&self) -> Vec<&str> {
        let per = match self {
            Self::WebSocket(upstream) => upstream.per(),
            Self::Sse(upstream) => upstream.per(),
            Self::Pusher(_) => return Vec::new(),
        };
        per.iter().map(|name| name.as_str()).collect()
    }
}

impl Field for Upstream {
    fn kind() -> String {
        "table".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(members) = node.members() else {
            reader.invalid(node, "a table of protocol and what it needs");
            return None;
        };
        let Some(protocol) = members.get("protocol") else {
            let mut keys = Vec::new();
            WebSocketUpstream::describe("", &mut keys);
            SseUpstream::describe("", &mut keys);
            PusherUpstream::describe("", &mut keys);
            let known: BTreeSet<&str> =
                keys.iter().map(|key| key.key.as_str()).filter(|key| !key.contains('.')).collect();
            reader.table(node, &known.into_iter().collect::<Vec<_>>());
            reader.missing(&node.origin, "protocol", Protocol::kind());
            return None;
        };
        match reader.inside("protocol", |reader| Protocol::read(&protocol.node, reader))? {
            Protocol::WebSocket => {
                WebSocketUpstream::read(node, reader).map(|it| Self::WebSocket(Box::new(it)))
            }
            Protocol::Sse => SseUpstream::read(node, reader).map(|it| Self::Sse(Box::new(it))),
            Protocol::Pusher => PusherUpstream::read(node, reader).map(|it| Self::Pusher(Box::new(it))),
        }
    }

    fn canon(&self) -> Value {
        match self {
            Self::WebSocket(upstream) => upstream.canon(),
            Self::Sse(upstream) => upstream.canon(),
            Self::Pusher(upstream) => upstream.canon(),
        }
    }

    fn list(&self, key: &str, origin: &Origin, out: &mut Vec<Entry>) {
        match self {
            Self::WebSocket(upstream) => upstream.list(key, origin, out),
            Self::Sse(upstream) => upstream.list(key, origin, out),
            Self::Pusher(upstream) => upstream.list(key, origin, out),
        }
    }

    fn describe(_key: &str, _out: &mut Vec<KeyDoc>) {}
}

fn needs(
    when_at: &Origin,
    when: ConnectWhen,
    background_at: &Origin,
    background: Background,
    reader: &mut Reader<'_>,
) {
    if when == ConnectWhen::Subscribed {
        reader.need(Part::OnDemand, "connect_when", when_at);
    }
    if matches!(background, Background::DropAfter(_)) {
        reader.need(Part::Background, "background", background_at);
    }
}

/// Names in the URL and the headers are those of `per`, and all of those.
fn names<U>(
    url: &Sourced<U>,
    template: &Template,
    headers: &Headers,
    per: &Sourced<Vec<Sourced<Name>>>,
    reader: &mut Reader<'_>,
) {
    if reader.is_malformed("per") {
        return;
    }
    let bound: Vec<&str> = per.iter().map(|name| name.as_str()).collect();
    let mut wanted: Vec<(String, &Template, &Origin)> = vec![("url".to_owned(), template, url.origin())];
    for (name, value) in headers.iter() {
        wanted.push((format!("headers.{name}"), value.template(), value.origin()));
    }
    for (key, template, origin) in &wanted {
        for name in template.names().filter(|name| !bound.contains(name)) {
            let what = format!("fills in {{{name}}}, and nothing binds it");
            let problem = Problem::new(ProblemKind::Reference, reader.key_of(key), (*origin).clone(), what)
                .one_of(name, bound.iter().copied())
                .fix("name it in `per` if each of its values is a connection of its own");
            reader.report(problem);
        }
    }
    for (n, name) in per.iter().enumerate() {
        let key = format!("{}[{n}]", reader.key_of("per"));
        if bound[..n].contains(&name.as_str()) {
            let what = format!("names {:?} again", name.as_str());
            reader.report(Problem::new(ProblemKind::Duplicate, key, name.origin().clone(), what));
        } else if !wanted.iter().any(|(_, template, _)| template.names().any(|used| used == name.as_str())) {
            let what = format!("{:?} stands neither in the URL nor in a header", name.as_str());
            let problem = Problem::new(ProblemKind::Relation, key, name.origin().clone(), what)
                .related(reader.key_of("url"), url.origin().clone())
                .fix(format!("write {{{}}} where it belongs", name.as_str()));
            reader.report(problem);
        }
    }
}

/// `key.NAME` in a condition is bound, and `error` has a meaning.
pub(super) fn bound_names(
    condition: &Sourced<ConditionText>,
    key: &str,
    bound: &[&str],
    fetches: bool,
    reader: &mut Reader<'_>,
) {
    let at = condition.origin();
    for name in condition.condition().names() {
        if !bound.contains(&name) {
            let what = format!("asks for key.{name}, and nothing binds {name:?}");
            let problem = Problem::new(ProblemKind::Reference, reader.key_of(key), at.clone(), what);
            reader.report(problem.one_of(name, bound.iter().copied()));
        }
    }
    if !fetches && condition.condition().asks_for_failure() {
        let what = "asks for `error`, and no message is the error of a fetch";
        let problem = Problem::new(ProblemKind::Value, reader.key_of(key), at.clone(), what);
        reader.report(problem.allowed("`error` in the rules of a poll"));
    }
}
