//! The local, inter-process parts of Paceline: directories, claims, locks, kits, sockets, framing and codec.
//!
//! A group lives in one directory of the user, [`dirs::StateDir`]. Authority over the group is a **claim**
//! ([`claim`]): a hard link named by the epoch, which nobody can hold back once the name is free. The **lock** on it is a
//! fast proof of death, nothing more; the **fence** ([`fence`]) is what an owner asks before it acknowledges
//! anything. A **kit** ([`kit`]) is everything an owner needs, made in advance, so that a takeover is one `link`.
//!
//! Everything that may block is a plain function; only [`socket`] and [`framing`] are asynchronous, and they need a
//! tokio runtime with I/O and time enabled.
//!
//! # Platforms
//! Linux is tested. macOS and the BSDs share its code except for the small modules in `os.rs`, and are **untested**:
//! there a stopped process is not recognised (the hint is `None`) and paths over 100 bytes are refused. Windows is not
//! supported yet: `os.rs`, the locks and [`socket`] are what a port has to supply.
//!
//! # Forking hosts
//! A forked child keeps inherited locks and sockets until it calls `exec` or exits, which delays the proof of death but
//! never harms safety. Values of this crate that are dropped in such a child leave the parent's files alone.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on fails"))]

#[cfg(not(unix))]
compile_error!("paceline-ipc needs a Unix system (tested on Linux)");

pub mod claim;
pub mod clock;
pub mod codec;
pub mod dirs;
#[doc(hidden)]
pub mod failpoint;
pub mod fence;
pub mod framing;
pub mod group;
pub mod kit;
pub mod lock;
pub mod member;
mod os;
mod place;
pub mod process;
pub mod socket;
pub mod start;
pub mod token;

pub use os::FileId;
