//! Client of a Paceline group: one wire, one cache, one outbox for all sessions of an application on a machine.
//!
//! A [`Session`] joins the group of its name. One session of the group is elected primary and holds the live
//! connection; every session reads from its own replica, in memory, without asking anybody. When the primary dies,
//! freezes or leaves, the next one takes over in milliseconds.
//!
//! ```no_run
//! use paceline::{Session, WebSocket, key};
//!
//! # async fn run() -> Result<(), paceline::Error> {
//! let session = Session::builder("warehouse")
//!     .upstream(WebSocket::new("feed", "ws://127.0.0.1:9000/").route(paceline::Route::event("notices")))
//!     .join()
//!     .await?;
//!
//! let mut stock = session.query(key!["stock", 7]).subscribe::<u64>();
//! session.set(key!["stock", 7], &41).await?;
//! session.update::<u64>(key!["stock", 7], |old| old.unwrap_or(0) + 1).await?;
//! while let Ok(view) = stock.changed().await {
//!     println!("{:?}", view.data());
//! }
//! session.leave().await
//! # }
//! ```
//!
//! Upstreams and routes can be declared in a file as well: [`Builder::config_file`], in the language of [`config`].
//!
//! The runtime has its own thread, so any executor will do, and none is needed for the `_blocking` twins. The library
//! installs no signal handler, no tracing subscriber and no panic hook, and reads no file and no environment it was
//! not given.

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

mod builder;
mod declared;
mod error;
mod events;
mod fetch;
mod group;
mod layer;
mod mutation;
mod query;
mod resource;
mod session;
mod token;
mod upstream;

pub use builder::Builder;
pub use declared::capabilities;
pub use error::Error;
pub use events::{Event, EventError, EventSubscription, Events};
pub use fetch::{Fetched, Freshness, Reached, Refetched};
pub use group::{Group, GroupWatch};
pub use layer::Layer;
pub use mutation::{Mutation, MutationReceipt, Outcome};
pub use paceline_config as config;
#[cfg(feature = "failpoints")]
#[doc(hidden)]
pub use paceline_ipc::failpoint;
pub use paceline_proto::{
    connection::{Connection, ConnectionState},
    election::Role,
    fetch::{FailureKind, FetchFailure, FetchStatus},
    id::{Epoch, MutationId, Position, SessionId, Trace, Version},
    look::{EventRecord, KeyInfo, Look, ReignStats, Seen, SessionInfo, Standing, TraceRecord},
    message::{Declarer, Gap, GapCause, Heir, ItemConflict, Member, OutcomeKind, Rank},
    presence::Presence,
    program::{Misfit, ProtoRange, Speaker},
};
pub use paceline_query::{
    key,
    key::QueryKey,
    outbox::OnConflict,
    patch::Patch,
    rules::{NetworkMode, Options as QueryOptions, Poll, PollMode, PollStep, Retry, Staleness, Triggers},
};
pub use paceline_runtime::replica::GroupView;
pub use query::{DataStatus, Query, Subscription, View};
pub use resource::{Fetch, FetchError, Found, Resource};
pub use session::{Receipt, Session};
pub use token::{AccessToken, Token};
pub use upstream::{Change, Custom, GraphQl, Polling, Pusher, Route, Sse, Upstream, WebSocket};

/// What an upstream protocol of an application's own is made of: an [`Adapter`](adapter::Adapter) for [`Custom`].
pub mod adapter {
    pub use paceline_channel::protocol::*;
    pub use paceline_proto::{hub::Resume, time::Time};
}
