//! Virtual world for the pure machines: clock, network, disk, faults, oracle and invariants.
//!
//! A run is fixed by a seed and a [`Scenario`]. It builds session processes out of the real election, hub and follower
//! machines, connects their effects and inputs the way the runtime's actors do, and puts a simulated file system,
//! sockets, clocks and upstream servers under them. Faults strike through a chaos phase; in the heal phase they stop and
//! the group must come to rest. [`invariants`] are shown every fact on the way.
//!
//! A [`Mutant`] breaks one rule of the protocol; that some seed then breaks an invariant is what makes clean seeds mean
//! something.
//!
//! | module | what |
//! |---|---|
//! | `world` | the heap of events, the actors' shells, blocking work, faults, callers |
//! | `disk`, `store` | claims, locks, names and what a power loss leaves; queue databases |
//! | `net`, `feed` | local sockets; upstream servers |
//! | `invariants` | one rule a file |
//!
//! **Invariant:** nothing here reads a clock, iterates over an unordered map or draws from a second source of chance:
//! the same seed gives the same trace (`tests/replay.rs`).

pub mod counters;
pub mod data;
pub mod disk;
pub mod fact;
pub mod feed;
pub mod invariants;
pub mod mutant;
pub mod net;
mod process;
pub mod random;
pub mod run;
pub mod scenario;
pub mod store;
mod world;

pub use counters::Counters;
pub use invariants::Violation;
pub use mutant::Mutant;
pub use run::{Options, Report, run};
pub use scenario::{Faults, Point, Scenario};
