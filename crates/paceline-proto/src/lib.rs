//! The group protocol of Paceline as pure state machines.
//!
//! Nothing in this crate reads a clock, touches a file or a socket, spawns a task or iterates over an
//! unordered map: the time and every fact come in through `handle`, every wish goes out as an effect. The
//! same machines therefore run in the sessions (`paceline-runtime`) and in the simulator (`paceline-sim`).
//!
//! Keys and values are opaque bytes here. What a key's segments mean and how a patch is folded is the
//! business of `paceline-query`.

pub mod connection;
pub mod election;
pub mod event;
pub mod fetch;
pub mod follower;
pub mod hub;
pub mod id;
pub mod limits;
pub mod look;
pub mod message;
mod ops;
pub mod presence;
pub mod program;
pub mod random;
mod ring;
mod seqs;
pub mod time;
