//! Declaring live upstreams in code.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_channel::{
    backoff::BackoffSpec,
    graphql::{GraphQlSpec, Operation},
    path::Path,
    poll::{Cursor, PollSpec},
    protocol::{Adapter, Secret},
    pusher::{self, AuthSpec, PusherSpec},
    route::{self, Router},
    sse::{Shape, SseSpec},
    websocket::{Heartbeat, PositionSpec, WebSocketSpec},
};
use paceline_proto::{
    hub::Resume,
    id::{Stream, Version},
    message,
};
use paceline_query::{key::QueryKey, patch::Patch};
use paceline_runtime::socket;
use serde::Serialize;
use serde_json::Value;

/// An upstream as it is declared: a [`WebSocket`], an [`Sse`], a [`Pusher`], a [`Polling`] or [`GraphQl`] one, or a [`Custom`] one.
///
/// The group holds one connection to it, in the session that leads. Mistakes in the declaration are reported by `join`.
#[derive(Debug, Clone)]
pub struct Upstream(Result<socket::Upstream, String>);

impl Upstream {
    pub(crate) fn build(self) -> Result<socket::Upstream, String> {
        self.0
    }
}

/// Most requests at a time that authorise channels: a reconnect with many is no burst for the server.
const AUTH_PARALLEL: usize = 4;

/// What a server that holds a request may take longer than it says.
const HOLD_SLACK: Duration = Duration::from_secs(10);

/// What all upstreams have.
#[derive(Clone)]
struct Common {
    name: String,
    backoff: BackoffSpec,
    routes: Vec<Route>,
    closure: Option<route::Closure>,
    others: Vec<Upstream>,
    /// Names of events are Echo's, with its namespace.
    echo: Option<Option<String>>,
}

impl Common {
    fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            backoff: BackoffSpec::default(),
            routes: Vec::new(),
            closure: None,
            others: Vec::new(),
            echo: None,
        }
    }

    fn build(self, adapter: Result<Arc<dyn Adapter>, String>) -> Upstream {
        let Self { name, backoff, routes, closure, others, echo } = self;
        let made = || {
            let mut adapters = vec![adapter?];
            for other in others {
                adapters.extend(other.build()?.adapters);
            }
            let mut router = Router::default();
            for route in routes {
                let mut route = route.0.map_err(|error| error.to_string())?;
                if let Some(namespace) = &echo {
                    route = route.renamed(|name| pusher::event_name(namespace.as_deref(), name));
                }
                router.push(route);
            }
            if let Some(closure) = closure {
                router.set_closure(closure);
            }
            Ok::<_, String>((adapters, router))
        };
        Upstream(match made() {
            Ok((adapters, router)) => Ok(socket::Upstream { name: name.into(), adapters, backoff, router }),
            Err(error) => Err(format!("declare the upstream {name:?}: {error}")),
        })
    }
}

macro_rules! common {
    ($upstream:ident) => {
        impl $upstream {
            /// Upper bound of the first delay between attempts, and of any.
            pub fn backoff(mut self, base: Duration, cap: Duration) -> Self {
                self.common.backoff.base = base;
                self.common.backoff.cap = cap;
                self
            }

            /// Adds a route. All routes that fit a message apply, in order, as one change.
            pub fn route(mut self, route: Route) -> Self {
                self.common.routes.push(route);
                self
            }

            /// Routes messages by code. Runs on the session's thread, in the session that leads; keep it short.
            pub fn route_with(
                mut self,
                route: impl Fn(&Value) -> Vec<Change> + Send + Sync + 'static,
            ) -> Self {
                self.common.closure = Some(Arc::new(move |message| {
                    route(message).into_iter().map(|change| change.0).collect()
                }));
                self
            }

            /// Another way to the same messages and positions, tried in its turn when those before it fail. Its name,
            /// backoff and routes are not used.
            pub fn or_else(mut self, other: impl Into<Upstream>) -> Self {
                self.common.others.push(other.into());
                self
            }
        }

        impl fmt::Debug for $upstream {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($upstream))
                    .field("name", &self.common.name)
                    .field("routes", &self.common.routes)
                    .finish_non_exhaustive()
            }
        }

        impl From<$upstream> for Upstream {
            fn from(upstream: $upstream) -> Self {
                let adapter = upstream.adapter();
                upstream.common.build(adapter)
            }
        }
    };
}

common!(WebSocket);
common!(Sse);
common!(Pusher);
common!(Polling);
common!(GraphQl);
common!(Custom);

/// A WebSocket that carries JSON messages.
#[derive(Clone)]
#[must_use]
pub struct WebSocket {
    common: Common,
    spec: WebSocketSpec,
    message_id: Option<String>,
    offset: Option<String>,
    epoch: Option<String>,
    resume_query: Option<String>,
    resume: Resume,
    dense: bool,
    live_when: Option<String>,
}

impl WebSocket {
    /// The upstream `name` at `url` (`ws://` or `wss://`).
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            common: Common::new(name),
            spec: WebSocketSpec::new(url),
            message_id: None,
            offset: None,
            epoch: None,
            resume_query: None,
            resume: Resume::None,
            dense: false,
            live_when: None,
        }
    }

    /// A header of the handshake. Its value appears in no log, trace or message.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.headers.push((name.into(), Secret::new(value)));
        self
    }

    /// A subprotocol to offer.
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.spec.subprotocols.push(name.into());
        self
    }

    /// Path of a message's position: a number that ascends, or a text.
    pub fn position(mut self, path: impl Into<String>) -> Self {
        self.offset = Some(path.into());
        self
    }

    /// Path of a message's id, where it has no position: an event that is sent again, after a reconnect for example, is
    /// dropped by it as long as the group remembers the first.
    pub fn message_id(mut self, path: impl Into<String>) -> Self {
        self.message_id = Some(path.into());
        self
    }

    /// Path of the server's name for the history that positions belong to; a change of it is a gap.
    pub fn position_epoch(mut self, path: impl Into<String>) -> Self {
        self.epoch = Some(path.into());
        self
    }

    /// Positions are numbers without holes: a hole proves a loss, its absence proves that nothing is missing.
    pub fn dense(mut self) -> Self {
        self.dense = true;
        self
    }

    /// The server resumes after a position given in this query parameter, and proves that nothing is missing.
    pub fn resumes(mut self, parameter: impl Into<String>) -> Self {
        self.resume_query = Some(parameter.into());
        self.resume = Resume::Proven;
        self
    }

    /// The server resumes after a position given in this query parameter as far as it can, without proof.
    pub fn resumes_unproven(mut self, parameter: impl Into<String>) -> Self {
        self.resume_query = Some(parameter.into());
        self.resume = Resume::Unproven;
        self
    }

    /// On connect the server sends a snapshot, which ends with a message that fits this condition.
    pub fn live_when(mut self, condition: impl Into<String>) -> Self {
        self.live_when = Some(condition.into());
        self
    }

    /// After `every` without an inbound frame a ping is sent; after `dead_after` the connection is given up.
    pub fn heartbeat(mut self, every: Duration, dead_after: Duration) -> Self {
        self.spec.heartbeat = Some(Heartbeat { send: None, every, dead_after });
        self
    }

    /// Longest message taken, bytes. Default: 1 MiB.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.spec.max_message = bytes;
        self
    }

    fn adapter(&self) -> Result<Arc<dyn Adapter>, String> {
        let path = |text: &str| text.parse::<Path>().map_err(|error| error.to_string());
        let mut spec = self.spec.clone();
        spec.message_id = self.message_id.as_deref().map(path).transpose()?;
        if let Some(offset) = &self.offset {
            spec.position = Some(PositionSpec {
                offset: path(offset)?,
                epoch: self.epoch.as_deref().map(path).transpose()?,
                resume_query: self.resume_query.clone(),
                resume: self.resume,
                dense: self.dense,
            });
        } else if self.resume != Resume::None {
            return Err("to resume, it needs the path of a position".to_owned());
        }
        let live_when = self.live_when.as_ref().map(|when| when.parse()).transpose();
        spec.live_when =
            live_when.map_err(|error: paceline_channel::condition::ConditionError| error.to_string())?;
        Ok(Arc::new(spec))
    }
}

/// Server-Sent Events.
///
/// A message is `{"type": NAME, "id": ID, "data": DATA}`, where data that is JSON is parsed and other data is a text. The
/// id of an event is its position: a reconnect, by whichever session leads then, asks for what came after it. The server
/// is not believed to have kept everything unless [`Sse::proven`] or [`Sse::dense`] says so.
#[derive(Clone)]
#[must_use]
pub struct Sse {
    common: Common,
    spec: SseSpec,
    number: Option<String>,
}

impl Sse {
    /// The upstream `name` at `url` (`http://` or `https://`).
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self { common: Common::new(name), spec: SseSpec::new(url), number: None }
    }

    /// A header of the request. Its value appears in no log, trace or message.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.headers.push((name.into(), Secret::new(value)));
        self
    }

    /// The server sends everything since the last id, or refuses: a reconnect is no gap.
    pub fn proven(mut self) -> Self {
        self.spec.resume = Resume::Proven;
        self
    }

    /// Ids are numbers without holes: a hole proves a loss, its absence proves that nothing is missing.
    pub fn dense(mut self) -> Self {
        self.spec.dense = true;
        self
    }

    /// Path of a number without holes in each message, which proves that nothing is missing where ids cannot.
    pub fn number(mut self, path: impl Into<String>) -> Self {
        self.number = Some(path.into());
        self
    }

    /// The server cannot resume: ids are no positions, and every reconnect is a gap.
    pub fn without_resume(mut self) -> Self {
        self.spec.last_event_id = false;
        self
    }

    /// The data of an event, which is JSON, is the message, as on another transport of the same messages.
    pub fn data_is_message(mut self) -> Self {
        self.spec.shape = Shape::Data;
        self
    }

    /// The server is dead after so long without a byte; comments count. Default: 45 s.
    pub fn read_timeout(mut self, timeout: Duration) -> Self {
        self.spec.read_timeout = timeout;
        self
    }

    /// Bounds for the delay that the server asks for. Default: 1 s and 30 s.
    pub fn retry_clamp(mut self, least: Duration, most: Duration) -> Self {
        self.spec.retry_clamp = (least, most.max(least));
        self
    }

    /// Longest event taken, bytes. Default: 1 MiB.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.spec.max_message = bytes;
        self
    }

    fn adapter(&self) -> Result<Arc<dyn Adapter>, String> {
        let number = self.number.as_ref().map(|path| path.parse()).transpose();
        let number = number.map_err(|error: paceline_channel::path::PathError| error.to_string())?;
        Ok(Arc::new(SseSpec { number, ..self.spec.clone() }))
    }
}

/// Asking again and again, or waiting for an answer that takes its time, as a live upstream.
///
/// Without [`Polling::items`] an answer is a message, and one that has not changed, by its `ETag` or `Last-Modified`, is none.
#[derive(Clone)]
#[must_use]
pub struct Polling {
    common: Common,
    spec: PollSpec,
    items: Option<String>,
    offset: Option<String>,
    cursor: Option<String>,
    resume_query: Option<String>,
    number: Option<String>,
    dense: bool,
}

impl Polling {
    /// The upstream `name` at `url` (`http://` or `https://`), asked every ten seconds.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            common: Common::new(name),
            spec: PollSpec::new(url),
            items: None,
            offset: None,
            cursor: None,
            resume_query: None,
            number: None,
            dense: false,
        }
    }

    /// A header of the request. Its value appears in no log, trace or message.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.headers.push((name.into(), Secret::new(value)));
        self
    }

    /// From an answer to the next request.
    pub fn every(mut self, every: Duration) -> Self {
        self.spec.every = every;
        self
    }

    /// The server answers when it has something, or after `hold` at the latest: it is asked again at once.
    pub fn long(mut self, hold: Duration) -> Self {
        self.spec.every = Duration::ZERO;
        self.spec.timeout = hold.saturating_add(HOLD_SLACK);
        self
    }

    /// Path of the list of messages in an answer.
    pub fn items(mut self, path: impl Into<String>) -> Self {
        self.items = Some(path.into());
        self
    }

    /// Path of the position of an element of the list, and the query parameter that asks for what comes after it.
    pub fn position(mut self, path: impl Into<String>, parameter: impl Into<String>) -> Self {
        self.offset = Some(path.into());
        self.resume_query = Some(parameter.into());
        self
    }

    /// Path of the cursor in an answer without a list, and the query parameter that asks for what comes after it.
    pub fn cursor(mut self, path: impl Into<String>, parameter: impl Into<String>) -> Self {
        self.cursor = Some(path.into());
        self.resume_query = Some(parameter.into());
        self
    }

    /// Positions are numbers without holes: a hole proves a loss, its absence proves that nothing is missing.
    pub fn dense(mut self) -> Self {
        self.dense = true;
        self
    }

    /// Path of a number without holes in each answer, which proves that nothing is missing where validators cannot.
    pub fn number(mut self, path: impl Into<String>) -> Self {
        self.number = Some(path.into());
        self
    }

    /// Asking after a position yields everything since, or is refused: a reconnect is no gap.
    pub fn proven(mut self) -> Self {
        self.spec.resume = Resume::Proven;
        self
    }

    /// Asking after a position yields what the server still has.
    pub fn resumes_unproven(mut self) -> Self {
        self.spec.resume = Resume::Unproven;
        self
    }

    fn adapter(&self) -> Result<Arc<dyn Adapter>, String> {
        let path = |text: &String| text.parse::<Path>().map_err(|error| error.to_string());
        let mut spec = self.spec.clone();
        spec.items = self.items.as_ref().map(path).transpose()?;
        spec.number = self.number.as_ref().map(path).transpose()?;
        if self.offset.is_some() && spec.items.is_none() {
            return Err("for the position of an element it needs the list".to_owned());
        }
        if let Some(offset) = &self.offset {
            spec.position = Some(PositionSpec {
                offset: path(offset)?,
                epoch: None,
                resume_query: self.resume_query.clone(),
                resume: spec.resume,
                dense: self.dense,
            });
        }
        if let (Some(at), Some(query)) = (&self.cursor, &self.resume_query) {
            spec.cursor = Some(Cursor { at: path(at)?, query: query.clone() });
        }
        Ok(Arc::new(spec))
    }
}

/// GraphQL subscriptions over `graphql-transport-ws`.
///
/// A message is `{"type": SUBSCRIPTION, "data": DATA}`, with `errors` where the server has some. There are no positions, so every
/// reconnect is a gap.
///
/// ```
/// use paceline::{GraphQl, Route};
/// use serde_json::json;
///
/// let shop = GraphQl::new("shop", "wss://shop.example.com/graphql")
///     .init("authorization", "Bearer …")
///     .subscription("price", "subscription ($id: ID!) { price(id: $id) }", json!({ "id": 7 }))
///     .route(Route::when(r#"$.type == "price""#).set(&json!(["price", 7]), "$.data.price"));
/// # drop(shop);
/// ```
#[derive(Clone)]
#[must_use]
pub struct GraphQl {
    common: Common,
    spec: GraphQlSpec,
    odd: Option<String>,
}

impl GraphQl {
    /// The upstream `name` at `url` (`ws://` or `wss://`).
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self { common: Common::new(name), spec: GraphQlSpec::new(url), odd: None }
    }

    /// A header of the handshake. Its value appears in no log, trace or message.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.headers.push((name.into(), Secret::new(value)));
        self
    }

    /// A value that the connection begins with, as a token. It appears in no log, trace or message.
    pub fn init(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.init.push((name.into(), Secret::new(value)));
        self
    }

    /// A subscription: its name, which is the type of its messages, the document, and the variables, a JSON object.
    pub fn subscription(mut self, name: &str, query: impl Into<String>, variables: Value) -> Self {
        match variables {
            Value::Object(variables) => {
                self.spec.operations.insert(name.into(), Operation { query: query.into(), variables });
            }
            other => self.odd = Some(format!("the variables of {name:?} are no object: {other}")),
        }
        self
    }

    fn adapter(&self) -> Result<Arc<dyn Adapter>, String> {
        match &self.odd {
            Some(odd) => Err(odd.clone()),
            None => Ok(Arc::new(self.spec.clone())),
        }
    }
}

/// The Pusher protocol, version 7, as Laravel Echo uses it: Pusher itself, Reverb, Soketi.
///
/// A message is `{"type": EVENT, "channel": CHANNEL, "data": DATA}`. The channels are those of its routes: one with a name
/// in it, as `private-org.{org}`, is joined while a session subscribes to a key of the route that binds the name, and left
/// after the last one. There are no positions, so every reconnect is a gap.
///
/// ```
/// use paceline::{Pusher, Route};
/// use serde_json::json;
///
/// let echo = Pusher::cluster("echo", "app-key", "eu")
///     .namespace("App.Events")
///     .auth("https://app.example.com/broadcasting/auth")
///     .auth_header("Authorization", "Bearer …")
///     .route(
///         Route::channel("private-org.{org}")
///             .named(["LabelApproved", "LabelRejected"])
///             .invalidate(&json!(["labels", "{org}"])),
///     );
/// # drop(echo);
/// ```
#[derive(Clone)]
#[must_use]
pub struct Pusher {
    common: Common,
    spec: PusherSpec,
}

impl Pusher {
    /// The upstream `name`: the application `key` at a server of one's own, over TLS.
    pub fn new(name: impl Into<String>, key: impl Into<String>, host: impl Into<String>) -> Self {
        Self { common: Common { echo: Some(None), ..Common::new(name) }, spec: PusherSpec::new(key, host) }
    }

    /// The upstream `name`: the application `key` in a cluster of the vendor's.
    pub fn cluster(name: impl Into<String>, key: impl Into<String>, cluster: &str) -> Self {
        Self {
            common: Common { echo: Some(None), ..Common::new(name) },
            spec: PusherSpec::cluster(key, cluster),
        }
    }

    /// The port of the server, if not the usual one.
    pub fn port(mut self, port: u16) -> Self {
        self.spec.port = Some(port);
        self
    }

    /// Whether to begin with TLS; a server that wants it gets it in any case. Default: yes.
    pub fn force_tls(mut self, force: bool) -> Self {
        self.spec.tls = force;
        self
    }

    /// Put before the names of events in routes that do not begin with a dot, as Echo does with `App.Events`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.common.echo = Some(Some(namespace.into()));
        self
    }

    /// Where private and presence channels are authorised, as `https://…/broadcasting/auth`.
    pub fn auth(mut self, endpoint: impl Into<String>) -> Self {
        let headers = self.spec.auth.take().map(|auth| auth.headers).unwrap_or_default();
        self.spec.auth = Some(AuthSpec { endpoint: endpoint.into(), headers, parallel: AUTH_PARALLEL });
        self
    }

    /// A header of the requests that authorise, behind [`Pusher::auth`]. Its value appears in no log, trace or message.
    pub fn auth_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        if let Some(auth) = &mut self.spec.auth {
            auth.headers.push((name.into(), Secret::new(value)));
        }
        self
    }

    fn adapter(&self) -> Result<Arc<dyn Adapter>, String> {
        Ok(Arc::new(self.spec.clone()))
    }
}

/// An upstream with a protocol of the application's own; see [`adapter`](crate::adapter).
#[derive(Clone)]
#[must_use]
pub struct Custom {
    common: Common,
    adapter: Arc<dyn Adapter>,
}

impl Custom {
    /// The upstream `name`, spoken to by the machines of `adapter`.
    pub fn new(name: impl Into<String>, adapter: impl Adapter + 'static) -> Self {
        Self { common: Common::new(name), adapter: Arc::new(adapter) }
    }

    fn adapter(&self) -> Result<Arc<dyn Adapter>, String> {
        Ok(self.adapter.clone())
    }
}

/// A declared route: which messages, and what they change. Texts in keys that begin with `$` are paths into the
/// message; `$$` begins a text with one `$`.
#[derive(Debug, Clone)]
#[must_use]
pub struct Route(Result<route::Route, route::RouteError>);

impl Route {
    /// For messages that fit the condition, for example `$.type == "PACKAGE_UPDATE"`.
    pub fn when(condition: &str) -> Self {
        Self(route::Route::new().when(condition))
    }

    /// For messages on channels of this pattern, for example `org.{org}`, whose names fill the keys behind it.
    pub fn channel(pattern: &str) -> Self {
        Self(route::Route::new().channel(pattern))
    }

    /// Only for messages of one of these types.
    pub fn named<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Self {
        Self(self.0.map(|route| route.named(names)))
    }

    /// For every message.
    pub fn all() -> Self {
        Self(Ok(route::Route::new()))
    }

    /// Every message is an event of `stream`.
    pub fn event(stream: &str) -> Self {
        Self::all().emit(stream, "$")
    }

    /// Sets `key` (a JSON array) to what is at the path `value`.
    pub fn set(self, key: &Value, value: &str) -> Self {
        Self(self.0.and_then(|route| route.set(key, value, None)))
    }

    /// As [`Route::set`], with the server's version at the path `version`: an older one never replaces a newer one.
    pub fn set_versioned(self, key: &Value, value: &str, version: &str) -> Self {
        Self(self.0.and_then(|route| route.set(key, value, Some(version))))
    }

    /// Folds a merge patch (RFC 7396), whose texts may be paths, onto `key`.
    pub fn merge(self, key: &Value, patch: &Value) -> Self {
        Self(self.0.and_then(|route| route.merge(key, patch)))
    }

    /// Marks keys at or under `key` stale.
    pub fn invalidate(self, key: &Value) -> Self {
        Self(self.0.and_then(|route| route.invalidate(key, false)))
    }

    /// Emits what is at the path `data` as an event of `stream`.
    pub fn emit(self, stream: &str, data: &str) -> Self {
        Self(self.0.and_then(|route| route.event(stream, data)))
    }
}

/// A change that a closure makes of a message.
#[derive(Debug, Clone)]
pub struct Change(message::Change);

impl Change {
    /// Sets a key. A value that cannot be serialised sets null.
    pub fn set(key: impl Into<QueryKey>, value: &impl Serialize, version: Version) -> Self {
        Self(message::Change::Set { key: key.into().to_key(), value: json(value), version })
    }

    /// Folds a patch onto a key.
    pub fn merge(key: impl Into<QueryKey>, patch: &Patch) -> Self {
        Self(message::Change::Merge { key: key.into().to_key(), patch: Bytes::from(patch.to_bytes()) })
    }

    /// Marks keys at or under a key stale.
    pub fn invalidate(key: impl Into<QueryKey>) -> Self {
        Self(message::Change::Invalidate { key: key.into().to_key(), exact: false })
    }

    /// Emits an event of a stream.
    pub fn event(stream: &str, data: &impl Serialize) -> Self {
        Self(message::Change::Event { stream: Stream::from(stream), data: json(data) })
    }
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).map_or_else(|_| Bytes::from_static(b"null"), Bytes::from)
}
