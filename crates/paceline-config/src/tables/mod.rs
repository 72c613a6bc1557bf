//! The tables of the language, each by its own type. They are made by [`Draft::validate`](crate::Draft::validate) only.

mod defaults;
mod group;
mod outbox;
mod poll;
mod preferences;
mod resource;
mod route;
mod sync;
mod upstream;

pub use defaults::{Defaults, Http, NetworkMode, Refresh, Retry, Trigger};
pub use group::{Group, ProfileName, Secret};
pub use outbox::{
    Conflict, ConflictPolicy, Delivery, Durability, Endpoint, Endpoints, Limits, Outbox, OutboxBackoff,
    VersionSource,
};
pub use poll::{Poll, PollMode, PollRule};
pub use preferences::Preferences;
pub use resource::{
    Dependency, Fetch, HttpFetch, HttpName, Method, Persist, Profile, ProfileResource, Resource,
    ResourceKind, Token, TokenStore,
};
pub(crate) use route::Scope;
pub use route::{Event, Invalidate, Merge, Refetch, Route, Set, UpstreamName};
pub use sync::{Periodic, Post, PreferenceName, Tag, TagMode, Task};
pub use upstream::{
    Auth, Background, Backoff, Clamp, ConnectWhen, Continuity, Envelope, FallbackStep, Heartbeat, Host,
    Jitter, PollPosition, PollUpstream, Position, Protocol, PusherUpstream, SseContinuity, SsePosition,
    SseUpstream, Upstream, WebSocketUpstream,
};
