//! What can go wrong with a queue database, and what each failure did to it.

use std::{
    io,
    path::{Path, PathBuf},
};

use paceline_proto::id::Epoch;
use rusqlite::ErrorCode;

/// A failed operation on a queue database.
///
/// [`StoreError::state_unknown`] and [`StoreError::retryable`] say the two things a caller must know.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The kit's name is taken. Nothing changed; make another kit.
    #[error("{} exists already", path.display())]
    Exists {
        /// The name wanted.
        path: PathBuf,
    },
    /// The name does not have the form `q-<nonce>.db`, so no scan would find it. Nothing changed.
    #[error("{} is not a queue database name (q-<nonce>.db)", path.display())]
    Name {
        /// The name given.
        path: PathBuf,
    },
    /// The linked SQLite is older than 3.51.3 and may lose a commit when its log wraps. Nothing changed.
    #[error("SQLite {found} is too old (3.51.3 or later is needed)")]
    Sqlite {
        /// The linked version.
        found: &'static str,
    },
    /// A newer build wrote this store and says that this build cannot read it. Nothing changed; update.
    #[error("{} has schema {schema} and needs a reader of schema {min_reader} or later", path.display())]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its schema.
        schema: u32,
        /// The oldest reader it admits.
        min_reader: u32,
    },
    /// The file cannot be what an owner left behind. Nothing changed; a person must look, nothing falls back past it.
    #[error("{} is corrupt: {why}", path.display())]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Two databases are complete for one epoch. Nothing changed; a person must look.
    #[error("epoch {epoch} has two complete databases, {} and {}", a.display(), b.display())]
    TwoComplete {
        /// The epoch both claim.
        epoch: Epoch,
        /// One of them.
        a: PathBuf,
        /// The other.
        b: PathBuf,
    },
    /// A database of this or a later epoch is complete: the caller was replaced. Nothing changed; step down.
    #[error("epoch {complete} is complete already, epoch {own} came too late")]
    Superseded {
        /// The epoch that wanted to adopt.
        own: Epoch,
        /// The epoch found complete.
        complete: Epoch,
    },
    /// The database was not adopted yet and so accepts no rows. Nothing changed; adopt first.
    #[error("{} belongs to no epoch yet", path.display())]
    NotAdopted {
        /// The database.
        path: PathBuf,
    },
    /// The database belongs to an epoch already and cannot adopt again. Nothing changed.
    #[error("{} belongs to epoch {epoch} already", path.display())]
    AlreadyAdopted {
        /// The database.
        path: PathBuf,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Another process holds a lock that ordinary readers do not hold. Nothing changed; a retry helps.
    #[error("{} is locked by another process", path.display())]
    Busy {
        /// The database.
        path: PathBuf,
    },
    /// The file changed under the reader each time it was read. Nothing changed; a retry helps.
    #[error("{} changes faster than it can be read", path.display())]
    Changing {
        /// The database.
        path: PathBuf,
    },
    /// The group's databases hold as much as they may. Nothing changed; retry after the outbox has drained.
    #[error("the queue holds {used} bytes, the limit is {cap}")]
    CapReached {
        /// Bytes in use.
        used: u64,
        /// The limit.
        cap: u64,
    },
    /// Too little free disk space to fold safely. Nothing changed; retry when there is space.
    #[error("{free} bytes are free on the disk, folding wants {wanted}")]
    NoRoom {
        /// Bytes free.
        free: u64,
        /// Bytes wanted.
        wanted: u64,
    },
    /// The disk is full. Whether the rows are stored is unknown; never write this database again, claim over it.
    #[error("{} cannot grow, the disk is full: {why}; free some space there", path.display())]
    DiskFull {
        /// The database.
        path: PathBuf,
        /// SQLite's words.
        why: String,
    },
    /// Reading or writing failed. After a write, whether the rows are stored is unknown; never write this database
    /// again, claim over it.
    #[error("{} cannot be read or written: {why}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// The path no longer leads to the open file: somebody moved, removed or restored it. After a write, whether the
    /// rows can be found again is unknown; never write this database again, claim over it.
    #[error("{} was moved or replaced while in use", path.display())]
    Moved {
        /// The path.
        path: PathBuf,
    },
    /// An earlier write failed, so nothing is written any more. Nothing changed; claim over this database.
    #[error("{} was given up after an earlier failure: {why}", path.display())]
    Poisoned {
        /// The database.
        path: PathBuf,
        /// The earlier failure.
        why: String,
    },
}

impl StoreError {
    /// Whether a write may or may not have taken place. Everything else left the store as it was.
    pub fn state_unknown(&self) -> bool {
        matches!(self, Self::DiskFull { .. } | Self::Io { .. } | Self::Moved { .. })
    }

    /// Whether the same call on the same handle may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(
            self,
            Self::Busy { .. } | Self::Changing { .. } | Self::CapReached { .. } | Self::NoRoom { .. }
        )
    }

    /// Sorts an error of the file system.
    pub(crate) fn io(path: &Path, e: &io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path: path.into(), why: e.to_string() }
            }
            _ => Self::Io { path: path.into(), why: e.to_string() },
        }
    }

    /// Sorts an error of SQLite into the classes a caller can act on.
    pub(crate) fn sqlite(path: &Path, e: &rusqlite::Error) -> Self {
        let (path, why) = (path.to_path_buf(), e.to_string());
        match e {
            rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
                ErrorCode::DiskFull => Self::DiskFull { path, why },
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed => Self::Busy { path },
                ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                | ErrorCode::Unknown => Self::Corrupt { path, why },
                _ => Self::Io { path, why },
            },
            // A row that is missing or of another type than this schema writes.
            _ => Self::Corrupt { path, why },
        }
    }
}
