//! Server-Sent Events.

use paceline_proto::limits::VALUE_MAX;
use serde_json::Value;

use super::{Background, Backoff, ConnectWhen, FallbackStep, NONE, Protocol, names, needs};
use crate::{
    node::Node,
    origin::Origin,
    reader::{Check, Field, Reader, Sourced},
    value::{Bytes, Count, Headers, HttpUrl, Interval, JsonPath, Name},
};

words! {
    /// What a reconnect with the last event's id proves.
    SseContinuity {
        /// The server resumes after the last id and sends everything since, or refuses.
        Proven = "proven",
        /// The server resumes after the last id as far as it can.
        Unproven = "unproven",
        /// Every reconnect is a gap.
        None = "none",
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
    /// Where an event says where it stands.
    SsePosition {
        /// The last event's id is sent on a reconnect.
        has last_event_id: bool = true, "what the standard asks for",
        /// What a reconnect can prove.
        has continuity: SseContinuity = "unproven", "the standard has no proof that nothing is missing",
        /// A number without holes in each message. It proves that nothing is missing where the server does not say, so that
        /// `continuity` is `proven`.
        may number: JsonPath,
        /// Ids are numbers without holes: a hole proves a loss, its absence that nothing is missing.
        has dense: bool = false, "ids are opaque by the standard",
    }
}

impl Check for SsePosition {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        if let Some(number) = self.number.as_ref().filter(|_| !self.last_event_id.value()) {
            reader.relate(
                ("last_event_id", self.last_event_id.origin()),
                ("number", number.origin()),
                "without the last event's id nothing is resumed, and nothing proven",
                "leave `number` out",
            );
        }
        if !self.last_event_id.value() && *self.continuity.value() != SseContinuity::None {
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
        /// Longest event taken.
        has max_message: Bytes<1, { VALUE_MAX as u64 }> = "1MiB", "what a value of the cache may take",
        /// Where events say where they stand.
        table position: SsePosition,
        /// When to try again.
        table backoff: Backoff,
        /// What comes next when this fails.
        has fallback: Vec<Sourced<FallbackStep>> = NONE, "nothing is assumed of a server"; needs Fallback,
        /// Names in the URL, bound by the keys that are subscribed: each of their values is a connection.
        has per: Vec<Sourced<Name>> = NONE, "one connection"; needs Parameters,
        /// Most connections with different values at a time.
        has max_connections: Count<1, 256> = 8,
            "more than a person looks at, fewer than a server complains about"; needs Parameters,
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
