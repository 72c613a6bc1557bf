//! Bounds of this crate's own making, each with its reason. Those of the group are in `paceline_proto::limits`.

use std::time::Duration;

/// The bundled SQLite's page size; equal to the file system's block almost everywhere.
pub const PAGE_SIZE: u32 = 4096;
/// The write-ahead log is copied back into the database past so many pages. A reader of an adopted database scans
/// the log once (about 1 ms for this length), so it stays short; it is also what a kit reserves.
pub const WAL_PAGES: u32 = 256;
/// Past so many pages the next commit copies the log back first, even if the caller never calls `maintain`.
pub const WAL_PAGES_HARD: u32 = 4 * WAL_PAGES;
/// An owner waits so long for a lock only an unusual reader can hold, before it says `Busy`.
pub const BUSY_TIMEOUT: Duration = Duration::from_millis(250);
/// High-water marks kept in memory. Sixteen times the sessions a group may have: sessions come and go.
pub const MARKS_MAX: usize = 16 * paceline_proto::limits::SESSIONS_MAX;
/// How often a read starts anew because the file changed under it. A change takes a checkpoint, which an owner runs
/// once in some hundred commits, and an owner that was replaced runs none.
pub const READ_ATTEMPTS: u32 = 16;
/// How often a scan starts anew because a database it had listed was removed.
pub const SCAN_ATTEMPTS: u32 = 16;
/// Below this an own database is never worth rewriting.
pub const COMPACT_MIN: u64 = 64 << 20;
/// Past so many adopted databases an owner that is never idle folds between commits: each holds twice the reserve of a
/// kit, and a new session's first submit looks into each.
pub const SEGMENTS_SOFT: usize = 8;
/// Free disk space that a fold leaves untouched: it is for takeovers and commits.
pub const FOLD_SPARE: u64 = 16 << 20;
