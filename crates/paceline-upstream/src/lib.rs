//! Upstream transports. The protocols above them are pure and live in `paceline-channel`.

mod tls;
pub mod websocket;
