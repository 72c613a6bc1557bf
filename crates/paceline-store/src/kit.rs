//! Making the database of a kit: before its epoch is known and before anybody waits for it.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
};

use paceline_proto::limits::KIT_RESERVE;
use rusqlite::{Connection, OpenFlags, config::DbConfig};

use crate::{
    Durability, StoreError,
    limits::{BUSY_TIMEOUT, PAGE_SIZE},
    registry::{FileId, Gate, Registration, file_id, id_of},
    schema,
    snapshot::beside,
};

/// A database that was made just now, open for writing.
pub(crate) struct Fresh {
    pub(crate) conn: Connection,
    pub(crate) database: FileId,
    pub(crate) log: FileId,
    pub(crate) registration: Registration,
}

/// Suffix of a database under construction. It has no name a scan would find until it is whole on the disk.
const UNFINISHED: &str = ".new";

/// Whether `name` is what a database is called: `q-<nonce>.db`.
pub(crate) fn is_database_name(name: &str) -> bool {
    name.strip_prefix("q-").and_then(|n| n.strip_suffix(".db")).is_some_and(|nonce| !nonce.is_empty())
}

/// Whether `name` is a database under construction, or what its maker left when it died.
pub(crate) fn is_unfinished_name(name: &str) -> bool {
    name.strip_suffix(UNFINISHED).is_some_and(is_database_name)
}

/// Whether the maker of an unfinished database is gone. An empty one may be of a maker that has not locked it yet, and
/// costs nothing; it is written under the lock only.
pub(crate) fn is_abandoned(path: &Path) -> bool {
    // Closed again before a maker in this process can give the file its name and lock it through SQLite.
    let _gate = Gate::enter();
    let written = |file: &File| file.metadata().is_ok_and(|about| about.len() > 0);
    File::open(path).is_ok_and(|file| written(&file) && file.try_lock().is_ok())
}

/// Makes the database at `path` with its tables, its reserve and its log, flushed together with the directory.
pub(crate) fn create(path: &Path, dir: &Path, durability: Durability) -> Result<Fresh, StoreError> {
    schema::check_sqlite()?;
    let unfinished = beside(path, UNFINISHED);
    let file = claim_name(&unfinished)?;
    let published = build(&unfinished, &file).and_then(|()| publish(&unfinished, path, file));
    let (registration, database) = published.inspect_err(|_| {
        let _ = fs::remove_file(&unfinished);
    })?;
    match prepare(path, dir, durability) {
        Ok((conn, log)) => Ok(Fresh { conn, database, log, registration }),
        Err(e) => {
            let _ = crate::remove(path);
            Err(e)
        }
    }
}

/// Opens the finished file for its owner, with a log as long as the reserve.
fn prepare(path: &Path, dir: &Path, durability: Durability) -> Result<(Connection, FileId), StoreError> {
    let conn = open(path, durability)?;
    reserve_log(&conn, path)?;
    let wal = beside(path, "-wal");
    let log = file_id(&wal).map_err(|e| StoreError::io(&wal, &e))?;
    sync(&wal)?;
    if cfg!(unix) {
        sync(dir)?;
    }
    Ok((conn, log))
}

/// Makes the unfinished file. Its lock tells a collector that its maker lives.
fn claim_name(unfinished: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(unfinished).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => StoreError::Exists { path: unfinished.into() },
        _ => StoreError::io(unfinished, &e),
    })?;
    file.lock().map_err(|e| StoreError::io(unfinished, &e))?;
    Ok(file)
}

/// Writes the tables and the reserve, flushed.
fn build(unfinished: &Path, file: &File) -> Result<(), StoreError> {
    let mode = fill(unfinished).map_err(|e| StoreError::sqlite(unfinished, &e))?;
    if mode != "wal" {
        let why = format!("the file system cannot share a write-ahead log (journal mode {mode})");
        return Err(StoreError::Io { path: unfinished.into(), why });
    }
    file.sync_all().map_err(|e| StoreError::io(unfinished, &e))
}

/// Returns the journal mode in force, which is `wal` where that is possible.
fn fill(unfinished: &Path) -> rusqlite::Result<String> {
    let conn = Connection::open_with_flags(unfinished, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // A crash in here leaves an unfinished file; the caller flushes the whole one.
    conn.execute_batch(&format!(
        "PRAGMA page_size = {PAGE_SIZE}; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
    ))?;
    schema::create(&conn)?;
    with_filler(&conn)?;
    let mode = conn.pragma_update_and_check(None, "journal_mode", "wal", |r| r.get(0))?;
    conn.close().map_err(|(_, e)| e)?;
    Ok(mode)
}

/// Writes a filler as large as the reserve and drops it: its pages become free pages of a file that keeps its size.
fn with_filler(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch("CREATE TABLE filler (bytes BLOB NOT NULL) STRICT;")?;
    conn.execute("INSERT INTO filler (bytes) VALUES (zeroblob(?1))", [KIT_RESERVE as i64])?;
    conn.execute_batch("DROP TABLE filler;")
}

/// Gives the finished file its name, once and for all.
fn publish(unfinished: &Path, path: &Path, file: File) -> Result<(Registration, FileId), StoreError> {
    let id = file.metadata().map(|m| id_of(&m)).map_err(|e| StoreError::io(unfinished, &e))?;
    let mut gate = Gate::enter();
    fs::hard_link(unfinished, path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => StoreError::Exists { path: path.into() },
        _ => StoreError::io(path, &e),
    })?;
    fs::remove_file(unfinished).map_err(|e| StoreError::io(unfinished, &e))?;
    // The descriptor must be closed before SQLite takes its first lock on the file.
    drop(file);
    Ok((gate.register(id), id))
}

fn open(path: &Path, durability: Durability) -> Result<Connection, StoreError> {
    let configure = || {
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        // Neither a fork nor a poisoned handle may copy the log back or remove it by closing.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        // SQLite ignores errors of checkpoints it starts itself, and would flush again what failed to be flushed.
        conn.pragma_update(None, "wal_autocheckpoint", 0)?;
        conn.pragma_update(None, "temp_store", "memory")?;
        // For macOS, where a plain flush stops at the drive's cache.
        conn.pragma_update(None, "fullfsync", true)?;
        conn.pragma_update(None, "checkpoint_fullfsync", true)?;
        conn.pragma_update(None, "synchronous", durability.pragma())?;
        Ok(conn)
    };
    configure().map_err(|e| StoreError::sqlite(path, &e))
}

/// Writes the log once over its reserved length and copies it back, so that the next commits overwrite it in place. The
/// first of them is made here: whoever looks at a kit reads its log up to the last valid page, and every takeover does.
fn reserve_log(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    let sqlite = |e| StoreError::sqlite(path, &e);
    with_filler(conn).map_err(sqlite)?;
    let (busy, log, copied) = checkpoint(conn, "PASSIVE").map_err(sqlite)?;
    if busy || log != copied {
        return Err(StoreError::Busy { path: path.into() });
    }
    schema::mark(conn).map_err(sqlite)
}

/// Runs `PRAGMA wal_checkpoint`: (whether a lock was missed, pages in the log, pages copied back).
pub(crate) fn checkpoint(conn: &Connection, mode: &str) -> rusqlite::Result<(bool, u32, u32)> {
    // SQLite says -1 where the log was never written.
    let pages = |n: i64| u32::try_from(n).unwrap_or(0);
    conn.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?
        .query_row([], |r| Ok((r.get::<_, i64>(0)? != 0, pages(r.get(1)?), pages(r.get(2)?))))
}

/// Flushes a file or, where that can be opened, a directory.
fn sync(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| StoreError::io(path, &e))
}

/// Splits a database path into its directory and its checked name.
pub(crate) fn split(path: &Path) -> Result<(PathBuf, String), StoreError> {
    let wrong = || StoreError::Name { path: path.into() };
    let name = path.file_name().and_then(|n| n.to_str()).filter(|n| is_database_name(n)).ok_or_else(wrong)?;
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    Ok((dir.into(), name.into()))
}
