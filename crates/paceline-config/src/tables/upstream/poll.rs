//! Asking again and again.

use paceline_proto::limits::VALUE_MAX;

use super::{
    Background, Backoff, ConnectWhen, Continuity, Envelope, FallbackStep, NONE, Protocol, names, needs,
};
use crate::{
    origin::Origin,
    problem::{Problem, ProblemKind},
    reader::{Check, Reader, Sourced},
    value::{Bytes, Count, Headers, HttpUrl, Interval, JsonPath, Name, Text},
};

table! {
    /// Where answers say where they stand, and what asking after a position proves.
    PollPosition {
        /// The server's name for the history that positions belong to, in an element of `items`; a change of it is a gap.
        may epoch: JsonPath,
        /// The position of an element of `items`: a number that ascends, or a text.
        may offset: JsonPath,
        /// Without `items`: the cursor in an answer. Without it, `ETag` and `Last-Modified` are one.
        may cursor: JsonPath,
        /// Parameter of the URL that asks for what comes after a position.
        may resume_query: Text,
        /// What asking after a position proves.
        has continuity: Continuity = "none", "what is not known to be complete is verified",
        /// Without `items`: a number without holes in each answer. It proves that nothing is missing, so that `continuity` is
        /// `proven`.
        may number: JsonPath,
        /// Positions are numbers without holes: a hole proves a loss.
        has dense: bool = false, "servers that number all their channels at once leave holes",
    }
}

impl Check for PollPosition {
    fn check(&self, at: &Origin, reader: &mut Reader<'_>) {
        let given =
            |key: &'static str, is_there: bool, reader: &Reader<'_>| is_there || reader.is_malformed(key);
        let offset = given("offset", self.offset.is_some(), reader);
        let mut lacks = |key: &str, because: &str, origin: &Origin| {
            let what = format!("the key `{key}` is missing, which `{because}` needs");
            let problem = Problem::new(ProblemKind::Missing, reader.key_of(key), at.clone(), what);
            reader.report(problem.related(reader.key_of(because), origin.clone()));
        };
        if let (Some(epoch), false) = (&self.epoch, offset) {
            lacks("offset", "epoch", epoch.origin());
        }
        if *self.dense.value() && !offset {
            lacks("offset", "dense", self.dense.origin());
        }
        let anchor =
            self.offset.as_ref().map(|it| ("offset", it)).or(self.cursor.as_ref().map(|it| ("cursor", it)));
        if let (Some((key, path)), None) = (anchor, &self.resume_query)
            && (*self.continuity.value() != Continuity::None || self.number.is_some())
            && !reader.is_malformed("resume_query")
        {
            let what = format!("the key `resume_query` is missing, which `{key}` needs to be asked for");
            let problem = Problem::new(ProblemKind::Missing, reader.key_of("resume_query"), at.clone(), what);
            reader.report(problem.related(reader.key_of(key), path.origin().clone()));
        }
    }
}

table! {
    /// `[upstreams.NAME]` with `protocol = "poll"`: asking again and again, or waiting for an answer that takes its time.
    PollUpstream {
        /// `poll`.
        must protocol: Protocol,
        /// Where it is.
        must url: HttpUrl,
        /// Headers of the request.
        table headers: Headers,
        /// One consumer: a successor asks only after the old request ended.
        has exclusive: bool = true, "a server that admits one consumer is never shown two",
        /// When it is asked.
        has connect_when: ConnectWhen = "always", "the first session that subscribes finds the wire live",
        /// What it does while no session is visible.
        has background: Background = "keep", "sessions without a window are never visible",
        /// From an answer to the next request.
        has every: Interval = "10s", "what a person calls soon",
        /// The server answers when it has something: it is asked again at once.
        has long: bool = false, "a server that answers at once would be asked without end",
        /// An answer must be there by then.
        has timeout: Interval = "60s", "servers hold a request for half a minute",
        /// Longest answer taken.
        has max_message: Bytes<1, { VALUE_MAX as u64 }> = "1MiB", "what a value of the cache may take",
        /// Where messages say what they are.
        table envelope: Envelope,
        /// The list of messages in an answer; without it, the answer is one.
        may items: JsonPath,
        /// Where answers say where they stand.
        table position: PollPosition,
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

impl Check for PollUpstream {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        needs(
            self.connect_when.origin(),
            *self.connect_when.value(),
            self.background.origin(),
            *self.background.value(),
            reader,
        );
        names(&self.url, self.url.template(), &self.headers, &self.per, reader);
        let position = self.position.value();
        if let (Some(items), Some(number)) = (&self.items, position.number()) {
            reader.relate(
                ("position.number", number.origin()),
                ("items", items.origin()),
                "with a list of messages each of them has a position of its own",
                "say `position.offset` and `position.dense`",
            );
        }
        match (&self.items, position.offset(), position.cursor()) {
            (Some(items), _, Some(cursor)) => reader.relate(
                ("position.cursor", cursor.origin()),
                ("items", items.origin()),
                "with a list of messages each of them has a position of its own",
                "say `position.offset`, the position of an element",
            ),
            (None, Some(offset), _) if !reader.is_malformed("items") => {
                let what = "the key `items` is missing, which `position.offset` needs";
                let problem =
                    Problem::new(ProblemKind::Missing, reader.key_of("items"), offset.origin().clone(), what);
                reader
                    .report(problem.fix("say where the list is, or `position.cursor` for the whole answer"));
            }
            _ => {}
        }
    }
}
