//! Which database files this process has open through SQLite's locking VFS.
//!
//! POSIX locks belong to a process and a file: when *any* descriptor of the file closes, the process loses its locks
//! on it. SQLite's VFS knows this and keeps descriptors open as long as needed; a descriptor opened beside it does
//! not. An owner without its locks looks absent to another process's `sqlite3`, whose close would then remove the
//! live log. So a file that is registered here is only read through the locking VFS, and only files that are not
//! registered are read without locks. A database is opened for writing once in its life, by the process that made
//! it and before anybody else knows its name; therefore a file that is not registered will never have to be.

use std::{collections::BTreeMap, fs, io, path::Path};

use parking_lot::{Mutex, MutexGuard};

/// What a file is, whatever its name: device and inode.
pub(crate) type FileId = (u64, u64);

static OPEN: Mutex<BTreeMap<FileId, usize>> = Mutex::new(BTreeMap::new());

/// Identity of the file now found at `path`.
pub(crate) fn file_id(path: &Path) -> io::Result<FileId> {
    fs::symlink_metadata(path).map(|m| id_of(&m))
}

/// Identity of an open file.
#[cfg(unix)]
pub(crate) fn id_of(metadata: &fs::Metadata) -> FileId {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

/// Creation time stands in where the standard library shows no inode; good enough to notice a replaced file.
#[cfg(not(unix))]
pub(crate) fn id_of(metadata: &fs::Metadata) -> FileId {
    let created = metadata.created().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    (0, created.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
}

/// Holds everybody else off while a file gets its final name and its registration together.
pub(crate) struct Gate(MutexGuard<'static, BTreeMap<FileId, usize>>);

impl Gate {
    /// Waits for the gate. Held for a hard link and an unlink, never for a flush or a commit.
    pub(crate) fn enter() -> Self {
        Self(OPEN.lock())
    }

    /// Registers a file that gets its name while the gate is held.
    pub(crate) fn register(&mut self, id: FileId) -> Registration {
        *self.0.entry(id).or_insert(0) += 1;
        Registration(id)
    }
}

/// Keeps a file registered. Dropped after the connection it stands for is closed.
pub(crate) struct Registration(FileId);

impl Registration {
    /// A further registration of a file that has one; `None` where this process does not have the file open.
    pub(crate) fn join(id: FileId) -> Option<Self> {
        let mut open = OPEN.lock();
        open.get_mut(&id).map(|count| {
            *count += 1;
            Self(id)
        })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut open = OPEN.lock();
        if let Some(count) = open.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.0);
            }
        }
    }
}
