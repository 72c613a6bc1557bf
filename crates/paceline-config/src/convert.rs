//! From configuration to what the machines of `paceline-channel` take.

use paceline_channel::{
    backoff::{self, BackoffSpec},
    condition::Bindings,
    protocol::Secret,
    route::{Envelope, RouteError, Router},
    template::{FillError, Vault},
    websocket::{Heartbeat, PositionSpec, WebSocketSpec},
};
use paceline_proto::hub::Resume;
use paceline_query::rules::RulesError;

use crate::{
    config::Config,
    origin::Origin,
    tables::{Backoff, Continuity, Jitter, Position, Scope, Upstream, WebSocketUpstream},
};

/// Everything a connection is made of.
#[derive(Debug)]
pub struct LiveUpstream {
    /// Its name.
    pub name: String,
    /// What is spoken, and where.
    pub spec: WebSocketSpec,
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
    /// The WebSocket upstreams, with what the vault fills into their headers.
    ///
    /// ```
    /// use paceline_channel::template::NoSecrets;
    /// use paceline_config::{Capabilities, Draft, Source};
    ///
    /// let text = "[upstreams.feed]\nprotocol = \"websocket\"\nurl = \"wss://api.example.com/ws\"\n\
    ///     [[routes]]\nupstream = \"feed\"\nevent = { stream = \"notices\" }\n";
    /// let config = Draft::new([Source::named("paceline.toml", text)])?.validate(&Capabilities::all())?;
    /// let live = config.websockets(&NoSecrets)?;
    /// assert_eq!((live[0].name.as_str(), live[0].spec.url.as_str()), ("feed", "wss://api.example.com/ws"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When a secret is not there.
    pub fn websockets(&self, vault: &dyn Vault) -> Result<Vec<LiveUpstream>, ConvertError> {
        let mut made = Vec::new();
        for (name, upstream) in self.upstreams().iter() {
            let Upstream::WebSocket(websocket) = upstream.value() else { continue };
            let scope = Scope::of(upstream);
            let mut router = Router::default();
            router.set_envelope(Envelope {
                name: websocket.envelope().r#type().path().clone(),
                channel: websocket.envelope().channel().path().clone(),
            });
            for route in self.routes_of(name.as_str()) {
                let route = route.build(&scope);
                router
                    .push(route.map_err(|error| ConvertError::Route { upstream: name.to_string(), error })?);
            }
            made.push(LiveUpstream {
                name: name.to_string(),
                spec: spec(name.as_str(), websocket, vault)?,
                backoff: websocket.backoff().spec(),
                router,
            });
        }
        Ok(made)
    }
}

fn spec(name: &str, upstream: &WebSocketUpstream, vault: &dyn Vault) -> Result<WebSocketSpec, ConvertError> {
    let bindings = Bindings::new();
    let failed = |key: String, origin: &Origin, error: FillError| ConvertError::Fill {
        key,
        origin: origin.clone(),
        error,
    };
    let url = upstream.url().template().fill(&bindings);
    let url = url.map_err(|error| failed(format!("upstreams.{name}.url"), upstream.url().origin(), error))?;
    let mut spec = WebSocketSpec::new(url);
    for (header, value) in upstream.headers().iter() {
        let key = || format!("upstreams.{name}.headers.{header}");
        let filled: Secret = value
            .template()
            .fill_secret(&bindings, vault)
            .map_err(|error| failed(key(), value.origin(), error))?;
        spec.headers.push((header.to_string(), filled));
    }
    spec.subprotocols = upstream.subprotocols().iter().map(|it| it.as_str().to_owned()).collect();
    spec.position = position(upstream.position());
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

fn position(position: &Position) -> Option<PositionSpec> {
    let offset = position.offset().as_ref()?;
    Some(PositionSpec {
        offset: offset.path().clone(),
        epoch: position.epoch().as_ref().map(|path| path.path().clone()),
        resume_query: position.resume_query().as_ref().map(|it| it.as_str().to_owned()),
        resume: match position.continuity().value() {
            Continuity::Proven => Resume::Proven,
            Continuity::Unproven => Resume::Unproven,
            Continuity::None => Resume::None,
        },
        dense: *position.dense().value(),
    })
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
