//! Rules, written in code.

use std::{sync::Arc, time::Duration};

use serde_json::Value;

use super::{
    Dependency, NetworkMode, Options, Poll, PollMode, PollStep, Resource, Retry, RulesError, Source,
    Staleness, Triggers, wire::is_resource_name,
};
use crate::{condition::Condition, pattern::KeyPattern};

/// In the smart mode, who did nothing for so long does not look.
const IDLE_AFTER: Duration = Duration::from_secs(300);

impl Resource {
    /// A resource that leaves everything open but its keys: those that begin with the parts of its name, so that the
    /// keys of `process.list` are `["process", "list", ".."]`.
    ///
    /// # Errors
    /// [`RulesError::Name`].
    pub fn new(name: &str) -> Result<Self, RulesError> {
        if !is_resource_name(name) {
            return Err(RulesError::Name(name.to_owned()));
        }
        let segments: Vec<Value> = name.split('.').chain([".."]).map(Value::from).collect();
        Ok(Self {
            name: name.into(),
            pattern: KeyPattern::new(&segments)?,
            stale: None,
            gc: None,
            refetch_on: None,
            network: None,
            retry: None,
            tags: Vec::new(),
            depends_on: Vec::new(),
            source: None,
            deadline: None,
            poll: None,
            critical: false,
            cancellable: false,
        })
    }

    /// For these keys.
    #[must_use]
    pub fn pattern(self, pattern: KeyPattern) -> Self {
        Self { pattern, ..self }
    }

    /// When its values turn stale.
    #[must_use]
    pub fn stale(self, stale: Staleness) -> Self {
        Self { stale: Some(stale), ..self }
    }

    /// Values that nobody subscribes to are removed after so long; `Duration::MAX` = never.
    #[must_use]
    pub fn gc(self, gc: Duration) -> Self {
        Self { gc: Some(gc), ..self }
    }

    /// What refetches stale values.
    #[must_use]
    pub fn refetch_on(self, triggers: Triggers) -> Self {
        Self { refetch_on: Some(triggers), ..self }
    }

    /// Whether requests wait for the network.
    #[must_use]
    pub fn network(self, network: NetworkMode) -> Self {
        Self { network: Some(network), ..self }
    }

    /// Attempts of a fetch that somebody waits for.
    #[must_use]
    pub fn retry(self, retry: Retry) -> Self {
        Self { retry: Some(retry), ..self }
    }

    /// One more tag to invalidate it by.
    #[must_use]
    pub fn tag(mut self, tag: &str) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// One more thing that makes it stale along with it.
    #[must_use]
    pub fn depends_on(mut self, dependency: Dependency) -> Self {
        self.depends_on.push(dependency);
        self
    }

    /// Who fetches it.
    #[must_use]
    pub fn source(self, source: Source) -> Self {
        Self { source: Some(source), ..self }
    }

    /// An attempt is given to another session after so long.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// How it is polled.
    #[must_use]
    pub fn poll(self, poll: Poll) -> Self {
        Self { poll: Some(poll), ..self }
    }

    /// Kept fresh while no session is visible.
    #[must_use]
    pub fn critical(self) -> Self {
        Self { critical: true, ..self }
    }

    /// A fetch is given up when nobody looks at the key any more.
    #[must_use]
    pub fn cancellable(self) -> Self {
        Self { cancellable: true, ..self }
    }
}

impl Poll {
    /// On time, while some session is visible.
    pub fn every(interval: Duration) -> Self {
        Self::otherwise(PollStep::Every(interval))
    }

    /// What is done where no rule holds; rules are added by [`Poll::when`].
    pub fn otherwise(step: PollStep) -> Self {
        Self {
            mode: PollMode::Independent,
            rules: Vec::new(),
            otherwise: step,
            background: None,
            idle_after: IDLE_AFTER,
            low_battery: None,
        }
    }

    /// One more rule; the first that holds counts.
    #[must_use]
    pub fn when(mut self, condition: Condition, step: PollStep) -> Self {
        self.rules.push((condition, step));
        self
    }

    /// When it is polled at all.
    #[must_use]
    pub fn mode(self, mode: PollMode) -> Self {
        Self { mode, ..self }
    }

    /// The interval while no session is visible.
    #[must_use]
    pub fn background(self, interval: Duration) -> Self {
        Self { background: Some(interval), ..self }
    }

    /// In the smart mode, a session without activity for so long does not count.
    #[must_use]
    pub fn idle_after(self, idle_after: Duration) -> Self {
        Self { idle_after, ..self }
    }

    /// The least interval while batteries are low.
    #[must_use]
    pub fn low_battery(self, interval: Duration) -> Self {
        Self { low_battery: Some(interval), ..self }
    }
}

impl Dependency {
    /// A tag.
    pub fn tag(tag: &str) -> Self {
        Self::Tag(Arc::from(tag))
    }
}

impl Options {
    /// Nothing beyond the rules.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether this subscription has the value fetched. One that is not enabled shows what there is; it is neither a
    /// reason to fetch, to poll nor to refresh.
    #[must_use]
    pub const fn enabled(self, enabled: bool) -> Self {
        Self { enabled: Some(enabled), ..self }
    }

    /// The value is stale at this age. Zero: at once.
    #[must_use]
    pub const fn stale_time(self, age: Duration) -> Self {
        self.stale(if age.is_zero() { Staleness::Always } else { Staleness::After(age) })
    }

    /// When the value turns stale.
    #[must_use]
    pub const fn stale(self, stale: Staleness) -> Self {
        Self { stale: Some(stale), ..self }
    }

    /// The value is kept so long after this subscription ended.
    #[must_use]
    pub const fn gc_time(self, age: Duration) -> Self {
        Self { gc: Some(age), ..self }
    }

    /// What refetches a stale value.
    #[must_use]
    pub const fn refetch_on(self, triggers: Triggers) -> Self {
        Self { refetch_on: Some(triggers), ..self }
    }

    /// Polled so often, at least [`INTERVAL_MIN`](crate::limits::INTERVAL_MIN).
    #[must_use]
    pub fn poll_every(self, interval: Duration) -> Self {
        Self { poll: Some(Some(interval.max(crate::limits::INTERVAL_MIN))), ..self }
    }

    /// Not polled for this subscription, whatever the rules say.
    #[must_use]
    pub const fn no_poll(self) -> Self {
        Self { poll: Some(None), ..self }
    }

    /// Polled also while no session is visible, or not.
    #[must_use]
    pub const fn poll_in_background(self, polled: bool) -> Self {
        Self { poll_in_background: Some(polled), ..self }
    }

    /// It is on the user's screen right now, or not: what is not is not polled in the smart mode.
    #[must_use]
    pub const fn on_screen(self, shown: bool) -> Self {
        Self { on_screen: Some(shown), ..self }
    }
}
