//! Servers outside, by protocol.

mod poll;
mod pusher;
mod sse;
mod websocket;

use std::collections::BTreeSet;

use paceline_channel::template::Template;
use serde_json::Value;

pub use poll::{PollPosition, PollUpstream};
pub use pusher::{Auth, Host, PusherUpstream};
pub use sse::{Clamp, SseContinuity, SsePosition, SseUpstream};
pub use websocket::{Continuity, Envelope, Heartbeat, Position, WebSocketUpstream};

use crate::{
    node::{Data, Node},
    origin::Origin,
    part::Part,
    problem::{Problem, ProblemKind},
    reader::{Check, Entry, Field, KeyDoc, Reader, Sourced},
    value::{ConditionText, Count, Headers, Interval, Name},
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
        /// Asking again and again.
        Poll = "poll",
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

table! {
    /// When to try again, and when by another transport.
    Backoff {
        /// Upper bound of the first delay; it doubles with each failure.
        has base: Interval = "1s",
            "a server that restarts is found again at once, one that is down is not hammered",
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

/// `[upstreams.NAME]`: a server outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Upstream {
    /// JSON messages over a WebSocket.
    WebSocket(Box<WebSocketUpstream>),
    /// Server-Sent Events.
    Sse(Box<SseUpstream>),
    /// The Pusher protocol.
    Pusher(Box<PusherUpstream>),
    /// Asking again and again.
    Poll(Box<PollUpstream>),
}

impl Upstream {
    /// How it is spoken to.
    pub const fn protocol(&self) -> Protocol {
        match self {
            Self::WebSocket(_) => Protocol::WebSocket,
            Self::Sse(_) => Protocol::Sse,
            Self::Pusher(_) => Protocol::Pusher,
            Self::Poll(_) => Protocol::Poll,
        }
    }

    /// What comes next when it fails.
    pub const fn fallback(&self) -> &Sourced<Vec<Sourced<FallbackStep>>> {
        match self {
            Self::WebSocket(upstream) => upstream.fallback(),
            Self::Sse(upstream) => upstream.fallback(),
            Self::Pusher(upstream) => upstream.fallback(),
            Self::Poll(upstream) => upstream.fallback(),
        }
    }

    /// Names that its connections are bound to.
    pub fn parameters(&self) -> Vec<&str> {
        let per = match self {
            Self::WebSocket(upstream) => upstream.per(),
            Self::Sse(upstream) => upstream.per(),
            Self::Pusher(_) => return Vec::new(),
            Self::Poll(upstream) => upstream.per(),
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
            PollUpstream::describe("", &mut keys);
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
            Protocol::Poll => PollUpstream::read(node, reader).map(|it| Self::Poll(Box::new(it))),
        }
    }

    fn canon(&self) -> Value {
        match self {
            Self::WebSocket(upstream) => upstream.canon(),
            Self::Sse(upstream) => upstream.canon(),
            Self::Pusher(upstream) => upstream.canon(),
            Self::Poll(upstream) => upstream.canon(),
        }
    }

    fn list(&self, key: &str, origin: &Origin, out: &mut Vec<Entry>) {
        match self {
            Self::WebSocket(upstream) => upstream.list(key, origin, out),
            Self::Sse(upstream) => upstream.list(key, origin, out),
            Self::Pusher(upstream) => upstream.list(key, origin, out),
            Self::Poll(upstream) => upstream.list(key, origin, out),
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
pub(in crate::tables) fn bound_names(
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
