//! Upstream transports and fetchers. The protocols above them are pure and live in `paceline-channel`.

pub mod fetch;
pub mod http;
mod tls;
pub mod websocket;
