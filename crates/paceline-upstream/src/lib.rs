//! Upstream transports and fetchers. The protocols above them are pure and live in `paceline-channel`.

pub mod fetch;
mod tls;
pub mod websocket;
