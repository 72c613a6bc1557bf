//! Reading another owner's database without taking any lock.
//!
//! Whatever can be held can be held by a stopped process: a reader that finds SQLite's shared index damaged must lock
//! it to repair it, and a process frozen there would stop every later adoption. So this reader takes no lock at all.
//! It opens the file through SQLite's lock-free VFS in exclusive mode, which builds a private index from the
//! write-ahead log, and checks afterwards that the answer is a snapshot:
//!
//! - Frames of the log are only appended until the log *wraps*; wrapping gives its header another salt.
//! - Pages of the database change only in a *checkpoint*. Before the first page, a checkpoint stores how far it will
//!   copy (`nBackfillAttempted`, offset 128 of the `-shm` file). What it copies was committed by then.
//! - So if the log's header and that number are the same before the private index was built and after the read, each
//!   page that changed in between is also in the private index, and SQLite took it from the log. The read is a
//!   snapshot, even if an owner committed all the while. Otherwise it is thrown away and done again.
//!
//! Both formats are documented by SQLite (file format section 4, WAL-mode file format section 2.2) and cannot change
//! without breaking processes of different versions that share a database.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use crate::{
    StoreError,
    limits::{BUSY_TIMEOUT, READ_ATTEMPTS},
    registry::{FileId, Registration, file_id, id_of},
    schema,
};

#[cfg(unix)]
const LOCK_FREE_VFS: &str = "unix-none";
#[cfg(windows)]
const LOCK_FREE_VFS: &str = "win32-none";

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const WAL_HEADER: usize = 32;
const BACKFILL_ATTEMPTED: u64 = 128;

/// A connection for reading that shows one state of the database, or of a later one after it noticed a change.
pub(crate) struct Snapshot {
    path: PathBuf,
    /// Before `guard`: the registration outlives the connection.
    conn: Connection,
    guard: Guard,
}

enum Guard {
    /// This process has the file open for writing: SQLite's locks are used, see [`crate::registry`].
    Locked { _registration: Registration },
    /// Nothing is held.
    LockFree(Mark),
}

impl Snapshot {
    /// Opens `path` with locks if this process writes it, else without any. `Io` where the file is missing.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        schema::check_sqlite()?;
        let id = file_id(path).map_err(|e| StoreError::io(path, &e))?;
        match Registration::join(id) {
            Some(registration) => Self::open_locked(path, registration),
            None => Self::open_lock_free(path),
        }
    }

    fn open_locked(path: &Path, registration: Registration) -> Result<Self, StoreError> {
        let open = || {
            let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            conn.busy_timeout(BUSY_TIMEOUT)?;
            prepare(&conn)?;
            Ok(conn)
        };
        let conn = open().map_err(|e| StoreError::sqlite(path, &e))?;
        Ok(Self { path: path.into(), conn, guard: Guard::Locked { _registration: registration } })
    }

    pub(crate) fn open_lock_free(path: &Path) -> Result<Self, StoreError> {
        check_header(path)?;
        let mark = Mark::take(path)?;
        let open = || {
            let conn =
                Connection::open_with_flags_and_vfs(path, OpenFlags::SQLITE_OPEN_READ_ONLY, LOCK_FREE_VFS)?;
            prepare(&conn)?;
            conn.pragma_update(None, "locking_mode", "exclusive")?;
            Ok(conn)
        };
        let conn = open().map_err(|e| StoreError::sqlite(path, &e))?;
        Ok(Self { path: path.into(), conn, guard: Guard::LockFree(mark) })
    }

    /// Runs `read` in one read transaction, again from the start if the file changed under it.
    pub(crate) fn read<T>(
        &mut self,
        mut read: impl FnMut(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        for _ in 0..READ_ATTEMPTS {
            let result = in_transaction(&self.conn, &mut read);
            if self.unchanged() {
                return result.map_err(|e| StoreError::sqlite(&self.path, &e));
            }
            // A file that this process did not have open for writing never will be.
            *self = Self::open_lock_free(&self.path)?;
        }
        Err(StoreError::Changing { path: self.path.clone() })
    }

    fn unchanged(&self) -> bool {
        match &self.guard {
            Guard::Locked { .. } => true,
            Guard::LockFree(mark) => mark.holds(&self.path),
        }
    }
}

fn prepare(conn: &Connection) -> rusqlite::Result<()> {
    // Closing must neither copy the log back nor remove it: the file is somebody else's.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    Ok(())
}

fn in_transaction<T>(
    conn: &Connection,
    read: &mut impl FnMut(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = conn.unchecked_transaction()?;
    let result = read(&transaction);
    transaction.finish()?;
    result
}

/// SQLite takes an empty file for an empty database and removes its log. A kit gets its name only when it is whole,
/// so an empty or foreign file at that name is a damaged one.
fn check_header(path: &Path) -> Result<(), StoreError> {
    let mut file = File::open(path).map_err(|e| StoreError::io(path, &e))?;
    let size = file.metadata().map_err(|e| StoreError::io(path, &e))?.len();
    let mut magic = [0; MAGIC.len()];
    let corrupt = |why: String| StoreError::Corrupt { path: path.into(), why };
    match file.read_exact(&mut magic) {
        Ok(()) if &magic == MAGIC => {}
        Ok(()) => return Err(corrupt("it does not begin like a database".into())),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(corrupt("it is cut short".into())),
        Err(e) => return Err(StoreError::io(path, &e)),
    }
    let reserved = paceline_proto::limits::KIT_RESERVE as u64;
    if size < reserved {
        return Err(corrupt(format!("it has {size} bytes, it was made with more than {reserved}")));
    }
    Ok(())
}

/// What the log and its index said before the private index was built.
struct Mark {
    log: Option<(FileId, [u8; WAL_HEADER])>,
    attempted: Option<(FileId, [u8; 4])>,
}

impl Mark {
    fn take(path: &Path) -> Result<Self, StoreError> {
        let (log, shm) = (beside(path, "-wal"), beside(path, "-shm"));
        let mark = Self {
            log: peek(&log, 0).map_err(|e| StoreError::io(&log, &e))?,
            attempted: peek(&shm, BACKFILL_ATTEMPTED).map_err(|e| StoreError::io(&shm, &e))?,
        };
        match &mark.log {
            // SQLite ignores a log with a broken header. Headers are flushed before any frame and are smaller than
            // a sector, so no crash breaks one: ignoring it would lose acknowledged rows.
            Some((_, header)) if !valid_wal_header(header) => {
                Err(StoreError::Corrupt { path: log, why: "its header is damaged".into() })
            }
            _ => Ok(mark),
        }
    }

    fn holds(&self, path: &Path) -> bool {
        let same_log = matches!(peek(&beside(path, "-wal"), 0), Ok(log) if log == self.log);
        let same_attempt =
            matches!(peek(&beside(path, "-shm"), BACKFILL_ATTEMPTED), Ok(a) if a == self.attempted);
        same_log && same_attempt
    }
}

/// Name of the log or the index of a database.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}

/// `N` bytes at `at`, and whose they are; `None` where the file is missing or shorter.
fn peek<const N: usize>(path: &Path, at: u64) -> io::Result<Option<(FileId, [u8; N])>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = [0; N];
    file.seek(SeekFrom::Start(at))?;
    match file.read_exact(&mut bytes) {
        Ok(()) => Ok(Some((id_of(&file.metadata()?), bytes))),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

fn valid_wal_header(header: &[u8; WAL_HEADER]) -> bool {
    let word = |i: usize| [header[4 * i], header[4 * i + 1], header[4 * i + 2], header[4 * i + 3]];
    let native: fn([u8; 4]) -> u32 = match u32::from_be_bytes(word(0)) {
        0x377f_0682 => u32::from_le_bytes,
        0x377f_0683 => u32::from_be_bytes,
        _ => return false,
    };
    let (mut s0, mut s1) = (0u32, 0u32);
    for pair in 0..3 {
        s0 = s0.wrapping_add(native(word(2 * pair))).wrapping_add(s1);
        s1 = s1.wrapping_add(native(word(2 * pair + 1))).wrapping_add(s0);
    }
    (s0, s1) == (u32::from_be_bytes(word(6)), u32::from_be_bytes(word(7)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use paceline_proto::{
        id::{Epoch, MutationId, SessionId},
        message::Submit,
    };

    use super::*;
    use crate::{Durability, Inheritance, QueueDb, kit::checkpoint};

    fn owner(dir: &Path) -> QueueDb {
        let mut db = QueueDb::create(&dir.join("q-1.db"), Durability::Process).unwrap();
        db.adopt(&Inheritance::none(dir, Epoch(1))).unwrap();
        db
    }

    fn commit(db: &mut QueueDb, count: usize) {
        for _ in 0..count {
            let seq = db.last_durable() + 1;
            let id = MutationId { session: SessionId(1), seq };
            db.commit(&[Submit { id, hash: [0; 16], payload: vec![b'x'; 900].into() }]).unwrap();
        }
    }

    fn copy_back(path: &Path) {
        let conn = Connection::open(path).unwrap();
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        let (busy, log, copied) = checkpoint(&conn, "PASSIVE").unwrap();
        assert_eq!((busy, log), (false, copied));
    }

    fn last(snapshot: &mut Snapshot) -> u64 {
        snapshot.read(schema::last_row).unwrap()
    }

    #[test]
    fn commits_leave_a_snapshot_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = owner(dir.path());
        commit(&mut db, 3);
        let mut old = Snapshot::open_lock_free(db.path()).unwrap();
        assert_eq!(last(&mut old), 3);
        commit(&mut db, 2);
        assert!(old.unchanged());
        assert_eq!(last(&mut old), 3);
        assert_eq!(last(&mut Snapshot::open_lock_free(db.path()).unwrap()), 5);
    }

    #[test]
    fn a_checkpoint_makes_it_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = owner(dir.path());
        commit(&mut db, 3);
        let mut old = Snapshot::open_lock_free(db.path()).unwrap();
        assert_eq!(last(&mut old), 3);
        commit(&mut db, 2);
        copy_back(db.path());
        assert!(!old.unchanged());
        assert_eq!(last(&mut old), 5);
    }

    #[test]
    fn a_wrapped_log_makes_it_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = owner(dir.path());
        commit(&mut db, 3);
        copy_back(db.path());
        let mut old = Snapshot::open_lock_free(db.path()).unwrap();
        assert_eq!(last(&mut old), 3);
        assert!(old.unchanged());
        commit(&mut db, 1);
        assert!(!old.unchanged());
        assert_eq!(last(&mut old), 4);
    }

    #[test]
    fn a_log_that_was_copied_back_and_removed_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = owner(dir.path());
        commit(&mut db, 3);
        let path = db.path().to_path_buf();
        drop(db);
        let mut old = Snapshot::open(&path).unwrap();
        assert!(matches!(old.guard, Guard::LockFree(_)));
        assert_eq!(last(&mut old), 3);
        // What a person's `sqlite3` does: it is the last to close and so cleans up.
        let conn = Connection::open(&path).unwrap();
        assert_eq!(schema::last_row(&conn).unwrap(), 3);
        conn.close().unwrap();
        assert!(!beside(&path, "-wal").exists());
        assert!(!old.unchanged());
        assert_eq!(last(&mut old), 3);
    }

    #[test]
    fn the_own_process_reads_its_files_with_locks() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = owner(dir.path());
        let mut snapshot = Snapshot::open(db.path()).unwrap();
        assert!(matches!(snapshot.guard, Guard::Locked { .. }));
        commit(&mut db, 2);
        assert_eq!(last(&mut snapshot), 2);
        let path = db.path().to_path_buf();
        drop(db);
        assert!(matches!(Snapshot::open(&path).unwrap().guard, Guard::Locked { .. }), "one is still open");
        drop(snapshot);
        assert!(matches!(Snapshot::open(&path).unwrap().guard, Guard::LockFree(_)));
    }

    /// A log of the same length after it wrapped: its header tells the two apart.
    #[test]
    fn a_log_that_wrapped_and_grew_as_long_again_makes_it_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = owner(dir.path());
        copy_back(db.path());
        let mut attempts = Vec::new();
        let mut olds = Vec::new();
        for _ in 0..40 {
            commit(&mut db, 1);
            copy_back(db.path());
            let old = Snapshot::open_lock_free(db.path()).unwrap();
            let Guard::LockFree(mark) = &old.guard else { panic!("the file is read with locks") };
            attempts.push(mark.attempted);
            olds.push(old);
        }
        let same = (1..40).find(|&i| attempts[i] == attempts[i - 1]).unwrap();
        assert!(!olds[same - 1].unchanged());
        assert!(olds[39].unchanged());
    }

    /// Rows are only added, so every state has as many rows as its last number says, whatever page was read when.
    #[test]
    fn every_read_beside_a_busy_owner_is_one_state() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = owner(dir.path());
        let path = db.path().to_path_buf();
        let done = AtomicBool::new(false);
        let read = || {
            Snapshot::open_lock_free(&path)?.read(|conn| {
                let sums =
                    "SELECT count(*), coalesce(sum(seq), 0), coalesce(sum(length(payload)), 0) FROM rows";
                let (rows, seqs, bytes): (i64, i64, i64) =
                    conn.query_row(sums, [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
                Ok((rows, seqs, bytes, schema::last_row(conn)?))
            })
        };
        let check = |before: u64| match read() {
            Ok((rows, seqs, bytes, last)) => {
                let n = last.cast_signed();
                assert_eq!((rows, seqs, bytes), (n, n * (n + 1) / 2, n * 900));
                assert!(last >= before, "a later read shows an earlier state");
                last
            }
            // It lost the race each time; it must not show a mixture instead.
            Err(StoreError::Changing { .. }) => before,
            Err(e) => panic!("{e}"),
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..300 {
                    commit(&mut db, 5);
                    copy_back(&path);
                }
                done.store(true, Ordering::Relaxed);
            });
            let mut before = 0;
            while !done.load(Ordering::Relaxed) {
                before = check(before);
            }
            assert_eq!(check(before), 1500);
        });
    }

    #[test]
    fn damaged_headers_are_told_from_whole_ones() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = owner(dir.path());
        commit(&mut db, 1);
        let wal = std::fs::read(beside(db.path(), "-wal")).unwrap();
        let header: [u8; WAL_HEADER] = wal[..WAL_HEADER].try_into().unwrap();
        assert!(valid_wal_header(&header));
        for i in 0..WAL_HEADER {
            let mut damaged = header;
            damaged[i] ^= 0x40;
            assert!(!valid_wal_header(&damaged), "byte {i}");
        }
    }
}
