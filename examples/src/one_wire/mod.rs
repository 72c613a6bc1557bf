//! The example `one_wire`: many processes, one live connection, and a primary that is killed and frozen again and
//! again while nothing is missed.
//!
//! Three kinds of process of one executable: the *parent* starts a *feed* (a WebSocket server that admits one
//! consumer) and N *sessions*, injects the faults, and compares what every session logged with what the feed logged.

pub mod args;
pub mod child;
pub mod clock;
pub mod control;
pub mod feed;
pub mod fleet;
pub mod log;
pub mod message;
pub mod metrics;
pub mod parent;
pub mod report;
pub mod schedule;
pub mod session;
pub mod table;
pub mod verify;
