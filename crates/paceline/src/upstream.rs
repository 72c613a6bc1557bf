//! Declaring live upstreams in code.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_channel::{
    backoff::BackoffSpec,
    path::Path,
    protocol::Secret,
    route::{self, Router},
    websocket::{Heartbeat, PositionSpec, WebSocketSpec},
};
use paceline_proto::{
    hub::Resume,
    id::{Stream, Version},
    message,
};
use paceline_query::{key::QueryKey, patch::Patch};
use paceline_runtime::socket::Upstream;
use serde::Serialize;
use serde_json::Value;

/// A WebSocket that carries JSON messages.
///
/// The group holds one connection to it, in the session that leads. Mistakes in the declaration are reported by `join`.
#[derive(Clone)]
#[must_use]
pub struct WebSocket {
    name: String,
    spec: WebSocketSpec,
    offset: Option<String>,
    epoch: Option<String>,
    resume_query: Option<String>,
    resume: Resume,
    dense: bool,
    live_when: Option<String>,
    backoff: BackoffSpec,
    routes: Vec<Route>,
    closure: Option<route::Closure>,
}

impl fmt::Debug for WebSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocket")
            .field("name", &self.name)
            .field("routes", &self.routes)
            .finish_non_exhaustive()
    }
}

impl WebSocket {
    /// The upstream `name` at `url` (`ws://` or `wss://`).
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            spec: WebSocketSpec::new(url),
            offset: None,
            epoch: None,
            resume_query: None,
            resume: Resume::None,
            dense: false,
            live_when: None,
            backoff: BackoffSpec::default(),
            routes: Vec::new(),
            closure: None,
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

    /// Upper bound of the first delay between attempts, and of any.
    pub fn backoff(mut self, base: Duration, cap: Duration) -> Self {
        self.backoff.base = base;
        self.backoff.cap = cap;
        self
    }

    /// Longest message taken, bytes. Default: 1 MiB.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.spec.max_message = bytes;
        self
    }

    /// Adds a route. All routes that fit a message apply, in order, as one change.
    pub fn route(mut self, route: Route) -> Self {
        self.routes.push(route);
        self
    }

    /// Routes messages by code. Runs on the session's thread, in the session that leads; keep it short.
    pub fn route_with(mut self, route: impl Fn(&Value) -> Vec<Change> + Send + Sync + 'static) -> Self {
        self.closure =
            Some(Arc::new(move |message| route(message).into_iter().map(|change| change.0).collect()));
        self
    }

    pub(crate) fn build(self) -> Result<Upstream, String> {
        let name = self.name;
        let in_name = |error: &dyn fmt::Display| format!("declare the upstream {name:?}: {error}");
        let mut spec = self.spec;
        if let Some(offset) = self.offset {
            let epoch: Option<Path> =
                self.epoch.map(|path| path.parse()).transpose().map_err(|error| in_name(&error))?;
            spec.position = Some(PositionSpec {
                offset: offset.parse().map_err(|error| in_name(&error))?,
                epoch,
                resume_query: self.resume_query,
                resume: self.resume,
                dense: self.dense,
            });
        } else if self.resume != Resume::None {
            return Err(in_name(&"to resume, it needs the path of a position"));
        }
        spec.live_when =
            self.live_when.map(|when| when.parse()).transpose().map_err(|error| in_name(&error))?;
        let mut router = Router::default();
        for route in self.routes {
            router.push(route.0.map_err(|error| in_name(&error))?);
        }
        if let Some(closure) = self.closure {
            router.set_closure(closure);
        }
        Ok(Upstream { name: name.into(), spec, backoff: self.backoff, router })
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
