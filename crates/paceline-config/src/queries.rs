//! From configuration to the rules that the query engine takes.

use std::time::Duration;

use paceline_query::rules::{self, PollStep, RulesError, Source, Triggers};
use serde_json::Value;

use crate::{
    config::Config,
    convert::ConvertError,
    origin::Origin,
    reader::Sourced,
    tables::{
        Defaults, Dependency, Fetch, Jitter, Method, NetworkMode, Poll, PollMode, PollRule, Refresh,
        Resource, ResourceKind, Retry, Trigger,
    },
    value::{OrNever, Staleness, StopOr},
};

/// What an attempt may take besides the time that its server has: its turn, and the way there and back.
const BESIDES: Duration = Duration::from_secs(5);

impl Config {
    /// What holds for keys that no resource says anything about.
    pub fn query_defaults(&self) -> rules::Defaults {
        let Defaults {
            stale_time,
            gc_time,
            refetch_on,
            network_mode,
            retry,
            refresh,
            debounce,
            batch_window,
        } = self.defaults().value();
        rules::Defaults {
            stale: staleness(*stale_time.value()),
            gc: or_never(*gc_time.value()),
            refetch_on: triggers(refetch_on),
            network: network(*network_mode.value()),
            retry: retries(retry),
            refresh: refreshes(refresh),
            debounce: debounce.value().get(),
            batch_window: batch_window.value().get(),
            ..rules::Defaults::default()
        }
    }

    /// The declared resources, as the profile that is set has them.
    ///
    /// ```
    /// use paceline_config::{Capabilities, Draft, Source};
    /// use paceline_query::rules::Staleness;
    /// use std::time::Duration;
    ///
    /// let text = "[resources.process]\nstale_time = \"5m\"\n[group]\nprofile = \"dev\"\n\
    ///     [profiles.dev]\nresources = { process = { stale_time = \"1m\" } }\n";
    /// let config = Draft::new([Source::named("paceline.toml", text)])?.validate(&Capabilities::all())?;
    /// assert_eq!(config.query_resources()?[0].stale, Some(Staleness::After(Duration::from_secs(60))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When the rules of a resource are longer than a group takes.
    pub fn query_resources(&self) -> Result<Vec<rules::Resource>, ConvertError> {
        let mut made = Vec::new();
        for (name, resource) in self.resources().iter() {
            let origin = resource.origin();
            let failed = |error| refused(name.as_str(), origin, error);
            let mut rules = rules::Resource::new(name.as_str()).map_err(failed)?;
            if let Some(key) = resource.key() {
                rules.pattern = key.pattern().clone();
            }
            self.fill(&mut rules, resource);
            let profile = self.profile().and_then(|profile| profile.resources().get(name));
            if let Some(profile) = profile {
                change(
                    &mut rules,
                    Changes {
                        stale: profile.stale_time().as_ref(),
                        gc: profile.gc_time().as_ref(),
                        refetch_on: profile.refetch_on().as_ref(),
                        network: profile.network_mode().as_ref(),
                        retry: profile.retry().as_ref(),
                    },
                );
            }
            if *resource.kind().value() == ResourceKind::Token {
                // Each value says when it is stale; one whose word was lost with an owner is asked for again, which costs
                // the server nothing while its token serves.
                rules.stale = Some(rules::Staleness::Always);
                rules.critical = true;
            }
            rules.check().map_err(failed)?;
            made.push(rules);
        }
        Ok(made)
    }

    fn fill(&self, rules: &mut rules::Resource, resource: &Resource) {
        change(
            rules,
            Changes {
                stale: resource.stale_time().as_ref(),
                gc: resource.gc_time().as_ref(),
                refetch_on: resource.refetch_on().as_ref(),
                network: resource.network_mode().as_ref(),
                retry: resource.retry().as_ref(),
            },
        );
        rules.tags = resource.tags().iter().map(|tag| tag.as_str().into()).collect();
        rules.depends_on =
            resource.depends_on().iter().filter_map(|dependency| depends_on(dependency.value())).collect();
        rules.poll = resource.poll().as_ref().map(|poll| polls(poll.value()));
        rules.critical = *resource.critical().value();
        match resource.fetch().as_ref().map(Sourced::value) {
            None => {}
            Some(Fetch::Closure) => {
                rules.source = Some(Source::Closure);
                rules.deadline = resource.fetch_deadline().as_ref().map(|deadline| deadline.value().get());
            }
            Some(Fetch::Http(fetch)) => {
                let server = self.http().get(fetch.http().as_str());
                let origin = server.map(|server| server.base().value().origin().to_string());
                rules.source = origin.map(|origin| Source::Server(origin.into()));
                rules.deadline = server.map(|server| server.timeout().value().get() + BESIDES);
                // What only reads may be given up half-way.
                rules.cancellable = *fetch.method().value() == Method::Get;
            }
        }
    }
}

fn refused(resource: &str, origin: &Origin, error: RulesError) -> ConvertError {
    ConvertError::Rules { resource: resource.to_owned(), origin: origin.clone(), error: Box::new(error) }
}

/// What resources and profiles say alike.
struct Changes<'a> {
    stale: Option<&'a Sourced<Staleness>>,
    gc: Option<&'a Sourced<OrNever>>,
    refetch_on: Option<&'a Sourced<Vec<Sourced<Trigger>>>>,
    network: Option<&'a Sourced<NetworkMode>>,
    retry: Option<&'a Sourced<Retry>>,
}

fn change(rules: &mut rules::Resource, changes: Changes<'_>) {
    let Changes { stale, gc, refetch_on, network: mode, retry } = changes;
    rules.stale = stale.map(|stale| staleness(*stale.value())).or(rules.stale);
    rules.gc = gc.map(|gc| or_never(*gc.value())).or(rules.gc);
    rules.refetch_on = refetch_on.map(|on| triggers(on)).or(rules.refetch_on);
    rules.network = mode.map(|mode| network(*mode.value())).or(rules.network);
    rules.retry = retry.map(|retry| retries(retry)).or(rules.retry);
}

fn staleness(staleness: Staleness) -> rules::Staleness {
    match staleness {
        Staleness::ALWAYS => rules::Staleness::Always,
        Staleness::After(age) => rules::Staleness::After(age.get()),
        Staleness::Never => rules::Staleness::Never,
        Staleness::Static => rules::Staleness::Static,
    }
}

fn or_never(age: OrNever) -> Duration {
    match age {
        OrNever::After(age) => age.get(),
        OrNever::Never => Duration::MAX,
    }
}

fn triggers(on: &[Sourced<Trigger>]) -> Triggers {
    let has = |trigger| on.iter().any(|on| *on.value() == trigger);
    Triggers {
        subscribe: has(Trigger::Subscribe),
        focus: has(Trigger::Focus),
        reconnect: has(Trigger::Reconnect),
    }
}

fn network(mode: NetworkMode) -> rules::NetworkMode {
    match mode {
        NetworkMode::Online => rules::NetworkMode::Online,
        NetworkMode::Always => rules::NetworkMode::Always,
        NetworkMode::OfflineFirst => rules::NetworkMode::OfflineFirst,
    }
}

fn retries(retry: &Retry) -> rules::Retry {
    rules::Retry {
        times: count(retry.times().value().get()),
        base: retry.base().value().get(),
        cap: retry.cap().value().get(),
        jitter: *retry.jitter().value() == Jitter::Full,
    }
}

fn refreshes(refresh: &Refresh) -> rules::Refresh {
    let size = |number| usize::try_from(number).unwrap_or(usize::MAX);
    rules::Refresh {
        check_interval: refresh.check_interval().value().get(),
        concurrent: size(refresh.concurrent().value().get()),
        batch: size(refresh.batch().value().get()),
        retry_interval: refresh.retry_interval().value().get(),
        max_retries: count(refresh.max_retries().value().get()),
    }
}

fn count(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn depends_on(dependency: &Dependency) -> Option<rules::Dependency> {
    if let Some(tag) = dependency.tag() {
        return Some(rules::Dependency::tag(tag.as_str()));
    }
    let segments = dependency.key().as_ref()?.json().as_array()?.clone();
    Some(rules::Dependency::Key(segments.into_iter().map(literal).collect()))
}

/// `$$` begins a text with one `$`.
fn literal(value: Value) -> Value {
    match value {
        Value::String(text) if text.starts_with("$$") => text[1..].into(),
        Value::Array(items) => items.into_iter().map(literal).collect(),
        Value::Object(members) => members.into_iter().map(|(name, member)| (name, literal(member))).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

fn polls(poll: &Poll) -> rules::Poll {
    let step = |step: StopOr| match step {
        StopOr::Every(interval) => PollStep::Every(interval.get()),
        StopOr::Stop => PollStep::Stop,
    };
    let mut polls = rules::Poll::otherwise(step(*poll.otherwise().value())).mode(match poll.mode().value() {
        PollMode::Independent => rules::PollMode::Independent,
        PollMode::Fallback => rules::PollMode::Fallback,
        PollMode::Smart => rules::PollMode::Smart,
    });
    polls.rules =
        poll.rules().iter().map(|rule| (rule.when().condition().clone(), outcome(rule.value()))).collect();
    polls.background = match poll.background().value() {
        StopOr::Every(interval) => Some(interval.get()),
        StopOr::Stop => None,
    };
    polls.low_battery = poll.low_battery().as_ref().map(|interval| interval.value().get());
    if let Some(idle_after) = poll.idle_after() {
        polls.idle_after = idle_after.value().get();
    }
    polls
}

/// A rule has one outcome.
fn outcome(rule: &PollRule) -> PollStep {
    match (rule.every(), rule.backoff()) {
        (Some(interval), _) => PollStep::Every(interval.value().get()),
        (None, Some(_)) => PollStep::BackOff,
        (None, None) => PollStep::Stop,
    }
}
