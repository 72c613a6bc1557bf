//! JSON messages over a WebSocket.

use paceline_proto::limits::VALUE_MAX;

use super::{Background, Backoff, ConnectWhen, FallbackStep, NONE, Protocol, bound_names, names, needs};
use crate::{
    origin::Origin,
    problem::{Problem, ProblemKind},
    reader::{Check, Reader, Sourced},
    value::{
        Bytes, ChannelMessage, ConditionText, Count, Headers, Interval, JsonPath, LiveUrl, Name, Payload,
        Text,
    },
};

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

table! {
    /// Where a message says what it is.
    Envelope {
        /// Its type, a text.
        has r#type: JsonPath = "$.type", "what most servers call it",
        /// Its id; where it has no position, a repetition of an event is dropped by it.
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
        may send: Payload,
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
        has max_connections: Count<1, 256> = 8,
            "more than a person looks at, fewer than a server complains about"; needs Parameters,
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
