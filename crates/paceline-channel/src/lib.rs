//! Upstream protocols as pure machines: one [`protocol::Protocol`] per protocol, a [`connection::Connection`] that
//! lives through reconnects, and [`route`]s that turn messages into changes of the group's state.

pub mod backoff;
pub mod connection;
pub mod event_stream;
pub mod graphql;
pub mod interest;
mod numbers;
pub mod pattern;
pub mod poll;
pub mod protocol;
pub mod pusher;
pub mod reign;
pub mod route;
mod shape;
pub mod sse;
pub mod template;
pub mod token;
pub mod websocket;

pub use paceline_proto::random;
pub use paceline_query::{condition, path};
