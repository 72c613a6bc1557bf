//! Actor shells that run the pure machines on one thread of a session.
//!
//! A session's runtime is one thread with one actix arbiter. On it live the actors **Election** (`election.rs`), **Hub**
//! (`hub.rs`), **Follower** (`follower.rs`), **Socket** (`socket.rs`), **Outbox** (`outbox.rs`) and **Fetcher** (`fetcher.rs`), each a shell
//! (`shell.rs`), most over a pure machine. Other threads hold a [`Runtime`], read the [`replica::Replica`] and send messages.

mod death;
pub mod drain;
mod election;
pub mod fetcher;
mod fold;
mod follower;
mod hub;
mod link;
mod listing;
mod observe;
mod options;
mod outbox;
mod peers;
pub mod replica;
mod shell;
mod signals;
pub mod socket;
mod thread;
pub mod token;
pub mod trace;
mod unique;

pub use death::{Death, End};
pub use follower::Laid;
pub use observe::{Blocked, EVENTS_KEPT, EventCursor, JoinState, Observer, level};
pub use options::{Identity, Options};
pub use paceline_ipc::clock::wall_of;
pub use paceline_store::schema as store_schema;
pub use signals::Afterwards;
pub use thread::{CallError, Runtime, StartError};

/// Lets the process read and write stores as a build of another schema would.
#[cfg(feature = "other-builds")]
#[doc(hidden)]
pub fn stand_for(schema: u32, min_reader: u32) -> bool {
    paceline_store::stand_for(paceline_store::Schema { writes: schema, min_reader })
}
pub use unique::unique;
