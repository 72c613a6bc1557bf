//! Upstream transports and fetchers. The protocols above them are pure and live in `paceline-channel`.

pub mod fetch;
pub mod http;
pub mod send;
mod stream;
mod tls;
pub mod transport;
pub mod websocket;
