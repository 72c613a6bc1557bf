//! Durable queue of a group: one SQLite database per epoch, group commit, adoption by reference, fold.
//!
//! # Why it is safe
//! An owner stores a row and *then* looks whether its successor's claim exists; a successor makes its claim and *then*
//! reads the rows. One of them sees the other, so an acknowledged row is always adopted and a row that was not adopted
//! was never acknowledged. This crate has the rows; the claims and the look at them (the fence) are the caller's:
//!
//! 1. Off the takeover path: [`QueueDb::create`] makes the database of a kit, with space reserved.
//! 2. After the claim is linked: [`Inheritance::read`].
//! 3. The caller flushes `claims/` and the directory.
//! 4. [`QueueDb::adopt`] commits `complete` and the list of segments; [`QueueDb::verify_path`].
//! 5. [`QueueDb::commit`], fence, acknowledge; [`QueueDb::maintain`] after that. Any error with
//!    [`StoreError::state_unknown`]: answer "unknown" and claim over oneself into the other kit, leaving out what was
//!    answered so ([`Inheritance::forget_beyond`]).
//! 6. When idle: [`QueueDb::fold`]; [`QueueDb::discardable`], fence, [`remove`].
//!
//! **Invariant:** a row, once committed, is never changed or deleted in its database. Therefore a bound on row numbers
//! is enough to make everything invisible that a replaced owner stores later. What happens to a mutation is told by
//! further rows, and space comes back only when a successor folds and removes the file.
//!
//! **Invariant:** nothing on the takeover path waits for a lock. SQLite's can be held by a stopped process: its write
//! lock by an owner inside a transaction, all of them by a reader that repairs the shared index. Databases of other
//! processes are therefore read without locks and the answer is checked (see `snapshot.rs`).
//!
//! **Invariant:** a database is opened for writing once, by the process that made it.
//!
//! **Invariant:** nothing that failed to be flushed is flushed again: after a failed write the handle only reads.
//! Checkpoints are run by this crate, since SQLite ignores errors of those it starts itself, and closing a handle
//! runs none.
//!
//! # The schema
//! `q-<nonce>.db`, WAL, pages of 4 KiB, `application_id` "PACE". A file gets this name when it is whole; before, it is
//! `q-<nonce>.db.new`. Anything at the name that is not whole was damaged later.
//!
//! - `meta (key, value)`, the same in every schema, for ever: `schema` (of the writer), `min_reader` (the oldest schema
//!   whose builds may read this one; a build with a lower [`SCHEMA`] never adopts it, and so never claims over it) and,
//!   once adopted, `complete` (the epoch).
//! - `segments (epoch, file, after, upto)`: rows in (`after`, `upto`] of the file of that complete epoch belong here
//!   too. Copied from the predecessor, with the predecessor itself added; a fold moves `after` up and drops a segment
//!   that has nothing left.
//! - `rows (row, session, seq, hash, state, payload, origin_epoch, origin_row)`: `row` counts from 1 without holes;
//!   `(session, seq)` is the mutation's identity, `seq` without holes over all epochs; the origin is set where the row
//!   was copied forward and is the order of all rows. A row with `state` 0 is a mutation, `payload` what to send; all
//!   others are marks of one that is stored before them: 1 sending, 2 again, 3 done, 4 rejected, 5 failed, 6 conflict,
//!   7 parked, 8 discarded, 9 reopened, `payload` the details, `hash` zeros. Integers are signed 64 bit, ids and hashes
//!   16 bytes, big end first. Where each mutation stands, in one database:
//!   `SELECT hex(session), seq, state, max(row) FROM rows GROUP BY session, seq`.
//!
//! A change that older builds can live with raises `schema`; one they cannot raises `min_reader` too.
//!
//! # What is not promised
//! The reserve works where the file system overwrites in place (ext4, XFS, tmpfs; not btrfs or ZFS). If flushing fails
//! and *another* session adopts, it may adopt rows that were answered as unknown from the system's cache; a loss of
//! power at that moment may take them although a resubmit was answered as a duplicate. Bits that rot in the middle of
//! the write-ahead log end the log there, as SQLite has it; damage anywhere else is an error.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic is how a test fails"))]

mod adopt;
mod error;
mod fold;
mod kit;
pub mod limits;
mod queue;
mod reachable;
mod registry;
mod row;
mod scan;
mod schema;
mod snapshot;

pub use adopt::{Adopted, Inheritance};
pub use error::StoreError;
pub use fold::{FoldLimit, Folded};
pub use queue::{Counts, Durability, QueueDb, SubmitResult};
pub use reachable::{Reachable, reachable};
pub use row::{Mark, Origin, Row, RowState, Segment};
pub use scan::{Complete, Inspection, Scan, inspect, remove, scan};
#[cfg(feature = "other-builds")]
#[doc(hidden)]
pub use schema::stand_for;
pub use schema::{MIN_READER, SCHEMA, Schema, schema};
