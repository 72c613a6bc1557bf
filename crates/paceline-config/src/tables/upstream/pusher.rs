//! The Pusher protocol.

use serde_json::Value;

use super::{Background, Backoff, ConnectWhen, FallbackStep, NONE, Protocol, names, needs};
use crate::{
    node::Node,
    origin::Origin,
    problem::{Problem, ProblemKind},
    reader::{Check, Field, Reader, Sourced},
    value::{Count, Headers, HttpUrl, Name, Text},
};

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
        /// Put before the names of events that do not begin with a dot; dots in them are backslashes there.
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
