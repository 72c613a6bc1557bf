//! Rules for keys: when a value is stale, what refetches it, how often it is polled, what it depends on.

mod build;
mod wire;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{condition::Condition, pattern::KeyPattern};

pub use wire::RulesError;

/// When a value turns stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Staleness {
    /// At this age.
    #[serde(rename = "after_ns", with = "wire::nanoseconds")]
    After(Duration),
    /// Time never makes it stale; an invalidation does.
    Never,
    /// At once: every trigger refetches it.
    Always,
    /// Never, not even by an invalidation.
    Static,
}

/// Which triggers refetch a stale value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Triggers {
    /// A session subscribes.
    pub subscribe: bool,
    /// A session gains focus, or is seen again.
    pub focus: bool,
    /// The network is back.
    pub reconnect: bool,
}

/// Whether requests wait for the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Nothing is asked while offline.
    Online,
    /// The network is of no importance.
    Always,
    /// One attempt is made in any case; retries wait for the network.
    OfflineFirst,
}

/// Attempts of a fetch that somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Retries after the first attempt.
    pub times: u32,
    /// Bound of the first delay; it doubles with each failure.
    #[serde(rename = "base_ns", with = "wire::nanoseconds")]
    pub base: Duration,
    /// Bound of any delay.
    #[serde(rename = "cap_ns", with = "wire::nanoseconds")]
    pub cap: Duration,
    /// Draws each delay evenly below its bound; else the bound is the delay.
    pub jitter: bool,
}

/// When a key is polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PollMode {
    /// On time, whatever is pushed.
    Independent,
    /// Only while the channel that feeds it is not healthy.
    Fallback,
    /// Only for sessions that show it and whose users are not idle.
    Smart,
}

/// What a polling rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PollStep {
    /// Again after so long.
    #[serde(rename = "every_ns", with = "wire::nanoseconds")]
    Every(Duration),
    /// Not again, until the value changes.
    Stop,
    /// Ever more seldom, until focus, a reconnect or a manual refetch.
    BackOff,
}

/// How a key is polled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Poll {
    /// When.
    pub mode: PollMode,
    /// The first that holds counts.
    #[serde(with = "wire::poll_rules")]
    pub rules: Vec<(Condition, PollStep)>,
    /// Where none holds.
    pub otherwise: PollStep,
    /// The interval while no session is visible; `None` = not then.
    #[serde(
        rename = "background_ns",
        with = "wire::optional_nanoseconds",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub background: Option<Duration>,
    /// In the smart mode, a session without activity for so long does not count.
    #[serde(rename = "idle_after_ns", with = "wire::nanoseconds")]
    pub idle_after: Duration,
    /// The least interval while the battery of every eligible session is low.
    #[serde(
        rename = "low_battery_ns",
        with = "wire::optional_nanoseconds",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub low_battery: Option<Duration>,
}

/// The service that keeps active values fresh in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refresh {
    /// A value is looked at again so long after the last attempt.
    pub check_interval: Duration,
    /// Most refreshes at a time.
    pub concurrent: usize,
    /// Most refreshes of one look.
    pub batch: usize,
    /// A failed refresh is tried again after so long.
    pub retry_interval: Duration,
    /// Retries of a refresh.
    pub max_retries: u32,
}

/// What makes a resource stale along with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dependency {
    /// A key and those under it. `{name}` in a segment stands for what the dependent's own key binds, or for any segment
    /// where it binds none.
    Key(Vec<Value>),
    /// Every resource with this tag, and the tag itself.
    Tag(Arc<str>),
}

/// Who fetches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Nobody: values are pushed or set.
    None,
    /// A request that any session with this configuration can make; asked of this server.
    Server(Arc<str>),
    /// A closure of the sessions that registered it.
    Closure,
}

/// A resource: named rules for the keys of a pattern. What it leaves open comes from less specific resources of the same key,
/// then from [`Defaults`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    /// Its name, or `NAME.ACTION`.
    pub name: Arc<str>,
    /// Its keys.
    #[serde(with = "wire::pattern_segments")]
    pub pattern: KeyPattern,
    /// When its values turn stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Staleness>,
    /// A value that nobody subscribes to is removed after so long; `Duration::MAX` = never.
    #[serde(
        rename = "gc_ns",
        with = "wire::optional_nanoseconds",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub gc: Option<Duration>,
    /// What refetches a stale value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refetch_on: Option<Triggers>,
    /// Whether requests wait for the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// Attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Tags to invalidate it by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Arc<str>>,
    /// What it depends on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<Dependency>,
    /// Who fetches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// An attempt is given to another session after so long.
    #[serde(
        rename = "deadline_ns",
        with = "wire::optional_nanoseconds",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub deadline: Option<Duration>,
    /// How it is polled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll: Option<Poll>,
    /// Kept fresh while no session is visible.
    #[serde(default, skip_serializing_if = "wire::is_false")]
    pub critical: bool,
    /// A fetch is given up when nobody looks at the key any more.
    #[serde(default, skip_serializing_if = "wire::is_false")]
    pub cancellable: bool,
}

/// What holds where no resource says otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// See [`Resource::stale`]. Of keys that somebody can fetch: others are not stale by time.
    pub stale: Staleness,
    /// See [`Resource::gc`]. Of what was fetched or can be: other values are kept.
    pub gc: Duration,
    /// See [`Resource::refetch_on`].
    pub refetch_on: Triggers,
    /// See [`Resource::network`].
    pub network: NetworkMode,
    /// See [`Resource::retry`].
    pub retry: Retry,
    /// See [`Resource::deadline`].
    pub deadline: Duration,
    /// The refresh service.
    pub refresh: Refresh,
    /// Triggers within this time are one.
    pub debounce: Duration,
    /// Invalidations are gathered until so long after the last one.
    pub batch_window: Duration,
    /// A user who comes back after so long …
    pub idle_after: Duration,
    /// … finds nothing that is older than this.
    pub idle_age: Duration,
    /// The group stays active so long after the last session was hidden.
    pub grace: Duration,
    /// Interval of polling for hidden sessions, where the resource is critical and names none.
    pub poll_background: Duration,
    /// Interval of polling while the battery is low, where the resource names none.
    pub low_battery: Duration,
}

impl Default for Defaults {
    /// The defaults of the configuration language.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            stale: Staleness::Always,
            gc: seconds(300),
            refetch_on: Triggers { subscribe: true, focus: true, reconnect: true },
            network: NetworkMode::Online,
            retry: Retry { times: 3, base: seconds(1), cap: seconds(30), jitter: true },
            deadline: seconds(30),
            refresh: Refresh {
                check_interval: seconds(30),
                concurrent: 3,
                batch: 5,
                retry_interval: seconds(60),
                max_retries: 3,
            },
            debounce: seconds(1),
            batch_window: Duration::from_millis(100),
            idle_after: seconds(120),
            idle_age: seconds(60),
            grace: seconds(5),
            poll_background: seconds(60),
            low_battery: seconds(60),
        }
    }
}

/// What one session asks for a key beyond its resource's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// It counts as somebody who looks. `Some(false)`: it shows what there is, and has nothing fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// When the value is stale for this session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Staleness>,
    /// The value is kept so long after this session went.
    #[serde(
        rename = "gc_ns",
        with = "wire::optional_nanoseconds",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub gc: Option<Duration>,
    /// What refetches it for this session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refetch_on: Option<Triggers>,
    /// Polled so often; `Some(None)` = not for this session.
    #[serde(
        rename = "poll_ns",
        with = "wire::said_nanoseconds",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub poll: Option<Option<Duration>>,
    /// Polled also while no session is visible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_in_background: Option<bool>,
    /// The session shows it right now; decides in the smart mode. `None` counts as shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_screen: Option<bool>,
}

/// What the fetcher of a value knows about this value in particular: functions of the data, evaluated where they live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hints {
    /// When this value is stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Staleness>,
    /// How it is polled from here on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll: Option<PollStep>,
}
