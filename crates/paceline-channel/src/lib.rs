//! Pure upstream protocols: one machine per protocol, backoff, routes and recovery.
