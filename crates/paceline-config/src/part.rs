//! What a build can do. Every part of the language is read and checked by every build; using a part that this one lacks
//! is refused by name.

use std::{collections::BTreeSet, fmt};

macro_rules! parts {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// A part of Paceline that configuration can ask for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Part {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Part {
            /// All parts.
            pub const ALL: &[Self] = &[$(Self::$name),+];
        }

        impl fmt::Display for Part {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)+ })
            }
        }
    };
}

parts! {
    /// `protocol = "websocket"`, with routes, positions and a heartbeat.
    WebSocket = "WebSocket upstreams",
    /// `protocol = "sse"`.
    Sse = "Server-Sent Events",
    /// `protocol = "pusher"`.
    Pusher = "the Pusher protocol",
    /// `subscribe` and `unsubscribe` of an upstream.
    Channels = "joining channels",
    /// `envelope.id`.
    MessageIds = "dropping repetitions by message id",
    /// `fallback` of an upstream.
    Fallback = "fallback transports",
    /// `per` of an upstream.
    Parameters = "one connection per parameter",
    /// `connect_when = "subscribed"`.
    OnDemand = "connecting on demand",
    /// `background` of an upstream.
    Background = "the background strategy",
    /// `secrets.NAME.command`.
    SecretCommands = "secrets from commands",
    /// `http`: declared requests.
    Http = "declared HTTP requests",
    /// `defaults`, `resources`, `profiles`: freshness, fetching and polling.
    QueryEngine = "the query engine",
    /// `invalidate[].refetch` of a route.
    RouteRefetch = "routes that choose what is fetched anew",
    /// `kind = "token"`.
    Tokens = "token resources",
    /// `token.store = "keyring"`.
    Keyring = "the system's keyring",
    /// `{token.access}` in what an upstream is asked with.
    UpstreamTokens = "tokens for upstreams",
    /// `persist` of a resource.
    PersistedCache = "the persisted cache",
    /// `outbox`.
    Outbox = "the outbox",
    /// `tags`, `periodic`.
    Sync = "tagged and periodic sync",
    /// `preferences`.
    Preferences = "preferences",
}

/// The parts that a build has.
///
/// ```
/// use paceline_config::{Capabilities, Part};
///
/// let build = Capabilities::of([Part::WebSocket]);
/// assert!(build.has(Part::WebSocket) && !build.has(Part::Outbox));
/// assert_eq!(build.to_string(), "WebSocket upstreams");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities(BTreeSet<Part>);

impl Capabilities {
    /// Exactly these parts.
    pub fn of(parts: impl IntoIterator<Item = Part>) -> Self {
        Self(parts.into_iter().collect())
    }

    /// All parts of the language.
    pub fn all() -> Self {
        Self::of(Part::ALL.iter().copied())
    }

    /// Whether the part is there.
    pub fn has(&self, part: Part) -> bool {
        self.0.contains(&part)
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none of the optional parts");
        }
        self.0.iter().enumerate().try_for_each(|(n, part)| {
            if n > 0 {
                f.write_str(", ")?;
            }
            part.fmt(f)
        })
    }
}
