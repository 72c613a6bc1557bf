//! Upstream transports: WebSocket over TCP and TLS.
