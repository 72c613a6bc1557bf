//! From configuration to what the machines of `paceline-channel` take.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use paceline_channel::{
    backoff::{self, BackoffSpec},
    condition::Bindings,
    poll::{Cursor, PollSpec},
    protocol::{Adapter, Secret},
    pusher::{self, AuthSpec, PusherSpec},
    route::{Envelope, RouteError, Router},
    sse::{Shape, SseSpec},
    template::{FillError, Template, Vault},
    websocket::{Heartbeat, PositionSpec, WebSocketSpec},
};
use paceline_proto::hub::Resume;
use paceline_query::rules::RulesError;

use crate::{
    config::Config,
    origin::Origin,
    reader::Sourced,
    tables::{
        Backoff, Continuity, FallbackStep, Jitter, PollUpstream, Position, PusherUpstream, Scope,
        SseContinuity, SseUpstream, Upstream, WebSocketUpstream,
    },
    value::Headers,
};

/// Everything a connection is made of.
#[derive(Debug)]
pub struct LiveUpstream {
    /// Its name.
    pub name: String,
    /// What is spoken, and where, and what else leads to the same messages, in the order of preference.
    pub adapters: Vec<Arc<dyn Adapter>>,
    /// When to try again.
    pub backoff: BackoffSpec,
    /// What its messages change.
    pub router: Router,
}

/// An upstream or a resource cannot be made. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A header or the URL cannot be filled. A retry helps once the secret is there.
    #[error("{origin}: fill {key}: {error}")]
    Fill {
        /// The key.
        key: String,
        /// Where it is.
        origin: Origin,
        /// Why.
        error: FillError,
    },
    /// A route is not one; validation lets none of these pass.
    #[error("make a route of {upstream}: {error}")]
    Route {
        /// The upstream.
        upstream: String,
        /// Why.
        error: RouteError,
    },
    /// The rules of a resource are none that a group takes.
    #[error("{origin}: make the rules of {resource}: {error}")]
    Rules {
        /// The resource.
        resource: String,
        /// Where it is.
        origin: Origin,
        /// Why.
        error: Box<RulesError>,
    },
}

impl Config {
    /// The upstreams that are connected to for themselves, not as the fallback of another, with what the vault fills into their headers.
    ///
    /// ```
    /// use paceline_channel::template::NoSecrets;
    /// use paceline_config::{Capabilities, Draft, Source};
    ///
    /// let text = "[upstreams.feed]\nprotocol = \"websocket\"\nurl = \"wss://api.example.com/ws\"\n\
    ///     [[routes]]\nupstream = \"feed\"\nevent = { stream = \"notices\" }\n";
    /// let config = Draft::new([Source::named("paceline.toml", text)])?.validate(&Capabilities::all())?;
    /// let live = config.live_upstreams(&NoSecrets)?;
    /// let request = live[0].adapters[0].machine().request(None);
    /// assert_eq!((live[0].name.as_str(), request.url.as_str()), ("feed", "wss://api.example.com/ws"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When a secret is not there.
    pub fn live_upstreams(&self, vault: &dyn Vault) -> Result<Vec<LiveUpstream>, ConvertError> {
        let mut made = Vec::new();
        let others: BTreeSet<&str> = self.upstreams().values().flat_map(|it| others_of(it.value())).collect();
        for (name, upstream) in self.upstreams().iter().filter(|(name, _)| !others.contains(name.as_str())) {
            let scope = Scope::of(upstream);
            let mut router = Router::default();
            router.set_envelope(envelope(upstream.value()));
            for route in self.routes_of(name.as_str()) {
                let route = route.build(&scope);
                let mut route =
                    route.map_err(|error| ConvertError::Route { upstream: name.to_string(), error })?;
                if let Upstream::Pusher(it) = upstream.value() {
                    let namespace = it.namespace().as_ref().map(|it| it.as_str());
                    route = route.renamed(|name| pusher::event_name(namespace, name));
                }
                router.push(route);
            }
            // An event stream that stands in for another transport carries that one's messages.
            let shape = match upstream.value() {
                Upstream::Sse(_) => Shape::Event,
                Upstream::WebSocket(_) | Upstream::Pusher(_) | Upstream::Poll(_) => Shape::Data,
            };
            let mut adapters = Vec::new();
            for name in self.ways(name.as_str()) {
                let Some(upstream) = self.upstreams().get(name) else { continue };
                adapters.push(Fill { upstream: name, vault }.adapter(upstream, shape)?);
            }
            let backoff = backoff(upstream.value()).spec();
            made.push(LiveUpstream { name: name.to_string(), adapters, backoff, router });
        }
        Ok(made)
    }

    /// An upstream, what it falls back to, and what that falls back to.
    fn ways<'a>(&'a self, name: &'a str) -> Vec<&'a str> {
        let mut ways = vec![name];
        let mut at = 0;
        while let Some(name) = ways.get(at) {
            for other in self.upstreams().get(*name).into_iter().flat_map(|it| others_of(it.value())) {
                if !ways.contains(&other) {
                    ways.push(other);
                }
            }
            at += 1;
        }
        ways
    }
}

/// The upstreams that it falls back to.
fn others_of(upstream: &Upstream) -> impl Iterator<Item = &str> {
    upstream.fallback().iter().filter_map(|step| match step.value() {
        FallbackStep::Upstream(name) => Some(name.as_str()),
        // The rules of the resources that it feeds.
        FallbackStep::Poll => None,
    })
}

fn envelope(upstream: &Upstream) -> Envelope {
    let envelope = match upstream {
        Upstream::WebSocket(it) => it.envelope(),
        Upstream::Poll(it) => it.envelope(),
        Upstream::Sse(_) | Upstream::Pusher(_) => return Envelope::default(),
    };
    Envelope { name: envelope.r#type().path().clone(), channel: envelope.channel().path().clone() }
}

fn backoff(upstream: &Upstream) -> &Backoff {
    match upstream {
        Upstream::WebSocket(it) => it.backoff(),
        Upstream::Sse(it) => it.backoff(),
        Upstream::Pusher(it) => it.backoff(),
        Upstream::Poll(it) => it.backoff(),
    }
}

/// Fills in what an upstream needs.
struct Fill<'a> {
    upstream: &'a str,
    vault: &'a dyn Vault,
}

impl Fill<'_> {
    fn adapter(&self, upstream: &Upstream, shape: Shape) -> Result<Arc<dyn Adapter>, ConvertError> {
        Ok(match upstream {
            Upstream::WebSocket(it) => Arc::new(self.websocket(it)?),
            Upstream::Sse(it) => Arc::new(SseSpec { shape, ..self.sse(it)? }),
            Upstream::Pusher(it) => Arc::new(self.pusher(it)?),
            Upstream::Poll(it) => Arc::new(self.poll(it)?),
        })
    }

    fn websocket(&self, upstream: &WebSocketUpstream) -> Result<WebSocketSpec, ConvertError> {
        let url = self.url("url", upstream.url(), upstream.url().template())?;
        let mut spec = WebSocketSpec::new(url);
        spec.headers = self.headers("headers", upstream.headers())?;
        spec.subprotocols = upstream.subprotocols().iter().map(|it| it.as_str().to_owned()).collect();
        spec.position = position(upstream.position());
        spec.message_id = upstream.envelope().id().as_ref().map(|path| path.path().clone());
        spec.resume_epoch_query =
            upstream.position().resume_epoch_query().as_ref().map(|it| it.as_str().to_owned());
        spec.subscribe = upstream.subscribe().as_ref().map(|it| it.template().clone());
        spec.unsubscribe = upstream.unsubscribe().as_ref().map(|it| it.template().clone());
        spec.heartbeat = upstream.heartbeat().as_ref().map(|it| Heartbeat {
            send: it.send().as_ref().map(|text| text.as_str().to_owned()),
            every: it.every().value().get(),
            dead_after: it.dead_after().value().get(),
        });
        spec.live_when = upstream.live_when().as_ref().map(|it| it.condition().clone());
        spec.max_message = usize::try_from(upstream.max_message().value().get()).unwrap_or(usize::MAX);
        Ok(spec)
    }

    fn sse(&self, upstream: &SseUpstream) -> Result<SseSpec, ConvertError> {
        let url = self.url("url", upstream.url(), upstream.url().template())?;
        let position = upstream.position();
        let clamp = upstream.retry_clamp().value();
        Ok(SseSpec {
            headers: self.headers("headers", upstream.headers())?,
            last_event_id: *position.last_event_id().value(),
            resume: match position.continuity().value() {
                SseContinuity::Proven => Resume::Proven,
                SseContinuity::Unproven => Resume::Unproven,
                SseContinuity::None => Resume::None,
            },
            dense: *position.dense().value(),
            number: position.number().as_ref().map(|path| path.path().clone()),
            read_timeout: upstream.read_timeout().value().get(),
            retry_clamp: (clamp.least().get(), clamp.most().get()),
            max_message: usize::try_from(upstream.max_message().value().get()).unwrap_or(usize::MAX),
            ..SseSpec::new(url)
        })
    }

    fn poll(&self, upstream: &PollUpstream) -> Result<PollSpec, ConvertError> {
        let url = self.url("url", upstream.url(), upstream.url().template())?;
        let position = upstream.position();
        let resume = resume(*position.continuity().value());
        let resume_query = position.resume_query().as_ref().map(|it| it.as_str().to_owned());
        Ok(PollSpec {
            headers: self.headers("headers", upstream.headers())?,
            every: if *upstream.long().value() { Duration::ZERO } else { upstream.every().value().get() },
            timeout: upstream.timeout().value().get(),
            items: upstream.items().as_ref().map(|path| path.path().clone()),
            position: position.offset().as_ref().map(|offset| PositionSpec {
                offset: offset.path().clone(),
                epoch: position.epoch().as_ref().map(|path| path.path().clone()),
                resume_query: resume_query.clone(),
                resume,
                dense: *position.dense().value(),
            }),
            message_id: upstream.envelope().id().as_ref().map(|path| path.path().clone()),
            cursor: position
                .cursor()
                .as_ref()
                .zip(resume_query)
                .map(|(at, query)| Cursor { at: at.path().clone(), query }),
            resume,
            number: position.number().as_ref().map(|path| path.path().clone()),
            max_message: usize::try_from(upstream.max_message().value().get()).unwrap_or(usize::MAX),
            ..PollSpec::new(url)
        })
    }

    fn pusher(&self, upstream: &PusherUpstream) -> Result<PusherSpec, ConvertError> {
        let key = upstream.key().as_str();
        let mut spec = match (upstream.cluster(), upstream.host()) {
            (Some(cluster), _) => PusherSpec::cluster(key, cluster.as_str()),
            (None, host) => PusherSpec::new(key, host.as_ref().map_or("", |host| host.as_str())),
        };
        spec.port = upstream.port().as_ref().and_then(|port| u16::try_from(port.value().get()).ok());
        spec.tls = *upstream.force_tls().value();
        if let Some(auth) = upstream.auth() {
            spec.auth = Some(AuthSpec {
                endpoint: self.url("auth.endpoint", auth.endpoint(), auth.endpoint().template())?,
                headers: self.headers("auth.headers", auth.headers())?,
                parallel: usize::try_from(auth.parallel().value().get()).unwrap_or(usize::MAX),
            });
        }
        Ok(spec)
    }

    fn url<T>(&self, key: &str, url: &Sourced<T>, template: &Template) -> Result<String, ConvertError> {
        template.fill(&Bindings::new()).map_err(|error| self.failed(key, url.origin(), error))
    }

    fn headers(&self, key: &str, headers: &Headers) -> Result<Vec<(String, Secret)>, ConvertError> {
        let mut filled = Vec::new();
        for (name, value) in headers.iter() {
            let secret = value.template().fill_secret(&Bindings::new(), self.vault);
            let secret =
                secret.map_err(|error| self.failed(&format!("{key}.{name}"), value.origin(), error))?;
            filled.push((name.to_string(), secret));
        }
        Ok(filled)
    }

    fn failed(&self, key: &str, origin: &Origin, error: FillError) -> ConvertError {
        ConvertError::Fill {
            key: format!("upstreams.{}.{key}", self.upstream),
            origin: origin.clone(),
            error,
        }
    }
}

fn position(position: &Position) -> Option<PositionSpec> {
    let offset = position.offset().as_ref()?;
    Some(PositionSpec {
        offset: offset.path().clone(),
        epoch: position.epoch().as_ref().map(|path| path.path().clone()),
        resume_query: position.resume_query().as_ref().map(|it| it.as_str().to_owned()),
        resume: resume(*position.continuity().value()),
        dense: *position.dense().value(),
    })
}

const fn resume(continuity: Continuity) -> Resume {
    match continuity {
        Continuity::Proven => Resume::Proven,
        Continuity::Unproven => Resume::Unproven,
        Continuity::None => Resume::None,
    }
}

impl Backoff {
    /// As the machines take it.
    pub fn spec(&self) -> BackoffSpec {
        BackoffSpec {
            base: self.base().value().get(),
            cap: self.cap().value().get(),
            reset_after: self.reset_after().value().get(),
            jitter: match self.jitter().value() {
                Jitter::Full => backoff::Jitter::Full,
                Jitter::None => backoff::Jitter::None,
            },
            fallback_after: u32::try_from(self.fallback_after().value().get()).unwrap_or(u32::MAX),
        }
    }
}
