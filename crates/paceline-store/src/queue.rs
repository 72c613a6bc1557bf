//! The queue database of the own epoch: submits, their durability, and reading everything reachable.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use paceline_proto::{
    id::{Epoch, MutationId, SessionId},
    limits::DISK_CAP,
    message::Submit,
};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::{
    Inheritance, StoreError,
    kit::{self, Fresh},
    limits::{COMPACT_MIN, MARKS_MAX, WAL_PAGES, WAL_PAGES_HARD},
    registry::{FileId, Registration, file_id},
    row::{self, Mark, Origin, Range, Row, RowState, Segment},
    scan, schema,
    snapshot::{Snapshot, beside},
};

/// What a commit survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Loss of power: each commit is flushed to the disk.
    #[default]
    Power,
    /// Death of all processes, not of the machine: commits are not flushed. Adoption and fold still are.
    Process,
}

impl Durability {
    pub(crate) fn pragma(self) -> &'static str {
        match self {
            Self::Power => "FULL",
            Self::Process => "NORMAL",
        }
    }
}

/// The store's word on one submit of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubmitResult {
    /// Durable under this row of the own database. Acknowledge it if the fence holds.
    Accepted {
        /// Its number, from 1.
        row: u64,
    },
    /// The same mutation was stored before. Acknowledge it if the fence holds.
    Duplicate,
    /// Another payload is stored under this id. Nothing changed; a retry does not help.
    HashMismatch,
    /// An earlier mutation of the session is missing. Nothing changed; that one must come first.
    Hole {
        /// The sequence number wanted.
        expected: u64,
    },
}

/// How much is reachable and how much space it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Reachable rows: mutations and their marks.
    pub rows: u64,
    /// Those of them that still lie in adopted databases.
    pub inherited: u64,
    /// Adopted databases.
    pub segments: usize,
    /// Bytes of the own database and its log.
    pub own_bytes: u64,
    /// Bytes of the adopted databases and their logs.
    pub inherited_bytes: u64,
}

/// The queue database of one epoch, open for writing by its owner from the kit's making to the epoch's end.
///
/// All calls block on the disk; the owner runs them on a thread of their own. After a failed write the handle is
/// *poisoned*: it reads, but never writes or flushes again, since a flush that failed once says nothing when it
/// succeeds the second time. Dropping the handle leaves the files as they are.
pub struct QueueDb {
    // Field order is drop order: connections close before the file's registration goes.
    conn: Connection,
    readers: BTreeMap<Epoch, Snapshot>,
    path: PathBuf,
    dir: PathBuf,
    durability: Durability,
    epoch: Option<Epoch>,
    segments: Vec<Segment>,
    segment_bytes: u64,
    /// The last row whose commit succeeded.
    last_row: u64,
    /// Highest sequence number of sessions that were looked up.
    highest: BTreeMap<SessionId, u64>,
    disk_cap: u64,
    poisoned: Option<String>,
    database: FileId,
    log: FileId,
    _registration: Registration,
}

impl QueueDb {
    /// Makes the database of a kit at `<dir>/q-<nonce>.db`, flushed, with `KIT_RESERVE` bytes reserved in the
    /// database and in its log so that adoption and the first commits succeed on a full disk (on file systems that
    /// overwrite in place). Takes some ten milliseconds.
    ///
    /// # Errors
    /// `Exists` where the name is taken, `Name` for any other form of name, `DiskFull`, `Io`. A database that is not
    /// whole has no name a scan would find.
    pub fn create(path: &Path, durability: Durability) -> Result<Self, StoreError> {
        let (dir, _) = kit::split(path)?;
        let Fresh { conn, database, log, registration } = kit::create(path, &dir, durability)?;
        Ok(Self {
            conn,
            readers: BTreeMap::new(),
            path: path.into(),
            dir,
            durability,
            epoch: None,
            segments: Vec::new(),
            segment_bytes: 0,
            last_row: 0,
            highest: BTreeMap::new(),
            disk_cap: DISK_CAP,
            poisoned: None,
            database,
            log,
            _registration: registration,
        })
    }

    /// [`QueueDb::store`] without marks.
    ///
    /// # Errors
    /// As there.
    pub fn commit(&mut self, batch: &[Submit]) -> Result<Vec<SubmitResult>, StoreError> {
        self.store(batch, &[])
    }

    /// Stores a batch of submits and marks, in this order and in one transaction, and says what became of each submit, in
    /// order. After `Ok` every `Accepted` and `Duplicate` one and every mark is durable; **the caller checks the fence before
    /// it acknowledges or does anything that a mark announces**.
    ///
    /// # Errors
    /// With [`StoreError::state_unknown`] the batch may be stored or not and the handle is poisoned: answer
    /// "unknown" and claim over this database. Any other error stored nothing.
    pub fn store(&mut self, batch: &[Submit], marks: &[Mark]) -> Result<Vec<SubmitResult>, StoreError> {
        self.writable()?;
        if self.epoch.is_none() {
            return Err(StoreError::NotAdopted { path: self.path.clone() });
        }
        let Plan { results, accepted, highest, last_row } = self.plan(batch)?;
        if accepted.is_empty() && marks.is_empty() {
            return Ok(results);
        }
        let submits = accepted.iter().map(|&i| batch[i].payload.len() as u64).sum::<u64>();
        // Marks are what makes room again, and small: the cap does not hold them up.
        if submits > 0 {
            self.check_cap(submits)?;
        }
        self.copy_back(WAL_PAGES_HARD)?;
        let first = self.last_row + 1;
        self.write(|conn| {
            (first..).zip(&accepted).try_for_each(|(row, &i)| {
                schema::write_row(conn, row, &batch[i], RowState::Queued.code(), None)
            })?;
            (last_row + 1..).zip(marks).try_for_each(|(row, mark)| {
                let submit = Submit { id: mark.id, hash: [0; 16], payload: mark.details.clone() };
                schema::write_row(conn, row, &submit, mark.state.code(), None)
            })
        })?;
        self.last_row = last_row + marks.len() as u64;
        self.highest.extend(highest);
        Ok(results)
    }

    /// Up to `limit` reachable rows after `after` in the order they were first stored; pass the last one's origin to
    /// go on. Rows committed or folded in between neither show twice nor hide others.
    ///
    /// # Errors
    /// `Corrupt` or `Io` where a named database cannot be read; nothing changes.
    pub fn rows(&mut self, after: Option<Origin>, limit: usize) -> Result<Vec<Row>, StoreError> {
        let after = after.unwrap_or(Origin { epoch: Epoch::NONE, row: 0 });
        let own = Range { epoch: self.epoch.unwrap_or(Epoch::NONE), after: 0, upto: self.last_row };
        let mut rows =
            row::page(&self.conn, own, after, limit).map_err(|e| StoreError::sqlite(&self.path, &e))?;
        for segment in self.segments.clone() {
            let range = Range::from(&segment);
            rows.extend(self.read_segment(&segment, |conn| row::page(conn, range, after, limit))?);
        }
        rows.sort_by_key(|row| row.origin);
        rows.truncate(limit);
        Ok(rows)
    }

    /// The reachable rows of one mutation, in the order they were first stored: the mutation itself, then its marks.
    ///
    /// # Errors
    /// As [`QueueDb::rows`].
    pub fn of(&mut self, id: MutationId) -> Result<Vec<Row>, StoreError> {
        let own = Range { epoch: self.epoch.unwrap_or(Epoch::NONE), after: 0, upto: self.last_row };
        let mut rows = row::of(&self.conn, own, id).map_err(|e| StoreError::sqlite(&self.path, &e))?;
        for segment in self.segments.clone() {
            let range = Range::from(&segment);
            rows.extend(self.read_segment(&segment, |conn| row::of(conn, range, id))?);
        }
        rows.sort_by_key(|row| row.origin);
        Ok(rows)
    }

    /// How much is reachable. Does not depend on the length of the queue.
    pub fn counts(&self) -> Counts {
        let inherited = self.segments.iter().map(Segment::len).sum::<u64>();
        Counts {
            rows: self.last_row + inherited,
            inherited,
            segments: self.segments.len(),
            own_bytes: size_with_log(&self.path),
            inherited_bytes: self.segment_bytes,
        }
    }

    /// Copies the log back into the database when it has grown. To be called after acknowledging, so that no
    /// acknowledgement waits for it; commits do it themselves only when the log has grown far beyond that.
    ///
    /// # Errors
    /// `DiskFull` and `Io` poison the handle; what was committed before stays durable.
    pub fn maintain(&mut self) -> Result<(), StoreError> {
        self.writable()?;
        self.copy_back(WAL_PAGES)
    }

    /// Checks that the path still leads to the open database and its log: SQLite commits happily to files that were
    /// removed. Every commit does this too.
    ///
    /// # Errors
    /// `Moved`: step down, rows committed from here on would never be found.
    pub fn verify_path(&self) -> Result<(), StoreError> {
        let same = |path: &Path, id| matches!(file_id(path), Ok(found) if found == id);
        if same(&self.path, self.database) && same(&beside(&self.path, "-wal"), self.log) {
            return Ok(());
        }
        Err(StoreError::Moved { path: self.path.clone() })
    }

    /// Whether the own database is large enough, compared with the `live_bytes` the outbox counts in it, to be
    /// rewritten: by claiming over oneself and folding, since a database is never shortened in place.
    pub fn compaction_due(&self, live_bytes: u64) -> bool {
        worth_rewriting(size_with_log(&self.path), live_bytes)
    }

    /// Databases and rests of databases that the owner may remove (with [`scan::remove`]) because nothing reachable
    /// lies in them, also those that an earlier owner did not get to remove. **Check the fence after this call and
    /// before removing**: a fenced owner removes nothing.
    ///
    /// # Errors
    /// `NotAdopted` before the epoch began; otherwise as [`scan::scan`].
    pub fn discardable(&self) -> Result<Vec<PathBuf>, StoreError> {
        let epoch = self.epoch.ok_or_else(|| StoreError::NotAdopted { path: self.path.clone() })?;
        scan::discardable(&self.dir, epoch, &self.segments)
    }

    /// Changes the limit on the bytes of the group's databases, at first `DISK_CAP`.
    pub fn set_disk_cap(&mut self, bytes: u64) {
        self.disk_cap = bytes;
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The epoch it is complete for; `None` in a kit.
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// The databases it names, oldest epoch first.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The last own row whose commit succeeded, 0 before the first.
    pub fn last_durable(&self) -> u64 {
        self.last_row
    }

    /// Whether an earlier write failed.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.is_some()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn writable(&self) -> Result<(), StoreError> {
        match &self.poisoned {
            None => Ok(()),
            Some(why) => Err(StoreError::Poisoned { path: self.path.clone(), why: why.clone() }),
        }
    }

    /// After the adopting commit.
    pub(crate) fn begin_epoch(&mut self, inheritance: &Inheritance) {
        self.epoch = Some(inheritance.epoch);
        self.set_segments(inheritance.segments.clone());
    }

    pub(crate) fn set_segments(&mut self, segments: Vec<Segment>) {
        self.readers.retain(|epoch, _| segments.iter().any(|s| s.epoch == *epoch));
        self.segment_bytes = segments.iter().map(|s| size_with_log(&self.dir.join(&s.file))).sum();
        self.segments = segments;
    }

    /// After a commit that copied rows forward.
    pub(crate) fn set_last_row(&mut self, row: u64) {
        self.last_row = row;
    }

    pub(crate) fn check_cap(&self, more: u64) -> Result<(), StoreError> {
        let used = size_with_log(&self.path) + self.segment_bytes;
        if used.saturating_add(more) > self.disk_cap {
            return Err(StoreError::CapReached { used, cap: self.disk_cap });
        }
        Ok(())
    }

    /// Reads from a named database, which stays open for the next time.
    pub(crate) fn read_segment<T>(
        &mut self,
        segment: &Segment,
        read: impl FnMut(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let reader = match self.readers.entry(segment.epoch) {
            std::collections::btree_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(Snapshot::open(&self.dir.join(&segment.file))?)
            }
        };
        reader.read(read)
    }

    /// One write transaction with the handle's durability.
    pub(crate) fn write(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        match self.transact(work) {
            Err(busy @ StoreError::Busy { .. }) => Err(busy),
            done => self.poison_on_error(done),
        }
    }

    /// `Busy` only where nothing was written.
    fn transact(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Result<(), StoreError> {
        let transaction = Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate)
            .map_err(|e| StoreError::sqlite(&self.path, &e))?;
        work(&transaction).and_then(|()| transaction.commit()).map_err(|e| {
            match StoreError::sqlite(&self.path, &e) {
                StoreError::Busy { path } => StoreError::Io { path, why: e.to_string() },
                other => other,
            }
        })?;
        self.verify_path()
    }

    /// One write transaction that survives the loss of power whatever the handle's durability.
    pub(crate) fn write_flushed(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        self.set_synchronous(Durability::Power)?;
        let done = self.write(work);
        let restored = self.set_synchronous(self.durability);
        done.and_then(|()| self.poison_on_error(restored))
    }

    fn set_synchronous(&self, durability: Durability) -> Result<(), StoreError> {
        self.conn
            .pragma_update(None, "synchronous", durability.pragma())
            .map_err(|e| StoreError::sqlite(&self.path, &e))
    }

    fn poison_on_error<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(e) = &result {
            tracing::warn!(error = %e, "queue database given up");
            self.poisoned = Some(e.to_string());
        }
        result
    }

    /// Copies the log back if more than `pages` pages of it were not.
    fn copy_back(&mut self, pages: u32) -> Result<(), StoreError> {
        let copied = match kit::checkpoint(&self.conn, "NOOP") {
            Ok((_, log, done)) if log.saturating_sub(done) <= pages => return Ok(()),
            Ok(_) => kit::checkpoint(&self.conn, "PASSIVE"),
            Err(e) => Err(e),
        };
        match copied.map_err(|e| StoreError::sqlite(&self.path, &e)) {
            // A reader holds the log: the next call copies it.
            Ok(_) | Err(StoreError::Busy { .. }) => Ok(()),
            Err(e) => self.poison_on_error(Err(e)),
        }
    }

    /// Decides about a batch without writing.
    fn plan(&mut self, batch: &[Submit]) -> Result<Plan, StoreError> {
        let mut plan = Plan { last_row: self.last_row, ..Plan::default() };
        let mut planned = BTreeMap::<MutationId, [u8; 16]>::new();
        for (i, submit) in batch.iter().enumerate() {
            let MutationId { session, seq } = submit.id;
            let high = match plan.highest.get(&session) {
                Some(&high) => high,
                None => self.high_water(session)?,
            };
            let result = if seq == high + 1 {
                plan.highest.insert(session, seq);
                plan.accepted.push(i);
                plan.last_row += 1;
                planned.insert(submit.id, submit.hash);
                SubmitResult::Accepted { row: plan.last_row }
            } else if seq == 0 || seq > high {
                SubmitResult::Hole { expected: high + 1 }
            } else {
                let stored = match planned.get(&submit.id) {
                    Some(&hash) => hash,
                    None => self.stored_hash(submit.id)?,
                };
                if stored == submit.hash { SubmitResult::Duplicate } else { SubmitResult::HashMismatch }
            };
            plan.results.push(result);
        }
        Ok(plan)
    }

    /// The session's highest sequence number, looked up by index in each database and then remembered.
    fn high_water(&mut self, session: SessionId) -> Result<u64, StoreError> {
        if let Some(&high) = self.highest.get(&session) {
            return Ok(high);
        }
        let mut high = row::high_water(&self.conn, session, self.last_row)
            .map_err(|e| StoreError::sqlite(&self.path, &e))?;
        for segment in self.segments.clone() {
            high =
                high.max(self.read_segment(&segment, |conn| row::high_water(conn, session, segment.upto))?);
        }
        if self.highest.len() >= MARKS_MAX {
            self.highest.clear();
        }
        self.highest.insert(session, high);
        Ok(high)
    }

    fn stored_hash(&mut self, id: MutationId) -> Result<[u8; 16], StoreError> {
        let own =
            row::hash_of(&self.conn, id, self.last_row).map_err(|e| StoreError::sqlite(&self.path, &e))?;
        if let Some(hash) = own {
            return Ok(hash);
        }
        for segment in self.segments.clone() {
            if let Some(hash) = self.read_segment(&segment, |conn| row::hash_of(conn, id, segment.upto))? {
                return Ok(hash);
            }
        }
        let why = format!("mutation {} of session {:?} is missing below a later one", id.seq, id.session);
        Err(StoreError::Corrupt { path: self.path.clone(), why })
    }
}

/// What a batch will do.
#[derive(Default)]
struct Plan {
    results: Vec<SubmitResult>,
    /// Indices into the batch.
    accepted: Vec<usize>,
    highest: BTreeMap<SessionId, u64>,
    last_row: u64,
}

fn worth_rewriting(bytes: u64, live: u64) -> bool {
    bytes > COMPACT_MIN.max(live.saturating_mul(2))
}

/// Bytes of a database and its log; what is missing counts nothing.
pub(crate) fn size_with_log(path: &Path) -> u64 {
    [path.to_path_buf(), beside(path, "-wal")]
        .iter()
        .filter_map(|p| fs::metadata(p).ok())
        .map(|m| m.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_owner(dir: &Path) -> QueueDb {
        let mut db = QueueDb::create(&dir.join("q-1.db"), Durability::Process).unwrap();
        db.adopt(&Inheritance::none(dir, Epoch(1))).unwrap();
        db
    }

    fn submit(session: u128, seq: u64) -> Submit {
        Submit { id: MutationId { session: SessionId(session), seq }, hash: [1; 16], payload: "x".into() }
    }

    #[test]
    fn forgotten_marks_are_looked_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = first_owner(dir.path());
        db.commit(&[submit(1, 1), submit(1, 2)]).unwrap();
        db.highest.extend((1000..).take(MARKS_MAX - db.highest.len()).map(|s| (SessionId(s), 0)));
        db.commit(&[submit(1, 3)]).unwrap();
        assert_eq!(db.highest.len(), MARKS_MAX, "a known session makes no room");
        db.commit(&[submit(2, 1)]).unwrap();
        assert_eq!(db.highest.len(), 1, "an unknown one does");
        let results = db.commit(&[submit(1, 3), submit(1, 5), submit(1, 4)]).unwrap();
        assert_eq!(
            results,
            [SubmitResult::Duplicate, SubmitResult::Hole { expected: 4 }, SubmitResult::Accepted { row: 5 }]
        );
    }

    #[test]
    fn the_log_stays_short_whether_or_not_it_is_maintained() {
        for (maintained, pages) in [(true, WAL_PAGES), (false, WAL_PAGES_HARD)] {
            let dir = tempfile::tempdir().unwrap();
            let mut db = first_owner(dir.path());
            for seq in 1..=900 {
                db.commit(&[submit(1, seq)]).unwrap();
                if maintained {
                    db.maintain().unwrap();
                }
            }
            let log = fs::metadata(beside(db.path(), "-wal")).unwrap().len();
            // The commit that passes the bound adds its own pages; the kit's filler needed a few more than the reserve.
            assert!(log < u64::from(pages + 16) * 4120, "{log} bytes with maintain: {maintained}");
        }
    }

    #[test]
    fn the_log_of_a_kit_has_its_reserve_and_is_quick_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let kit = QueueDb::create(&dir.path().join("q-1.db"), Durability::Process).unwrap();
        let reserved = fs::metadata(beside(kit.path(), "-wal")).unwrap().len();
        assert!(reserved > paceline_proto::limits::KIT_RESERVE as u64, "{reserved} bytes");
        let (_, valid, _) = kit::checkpoint(&kit.conn, "NOOP").unwrap();
        assert_eq!(valid, 1, "pages that a reader has to look at");
    }

    #[test]
    fn a_database_is_rewritten_when_large_and_mostly_dead() {
        for (bytes, live, due) in [
            (COMPACT_MIN, 0, false),
            (COMPACT_MIN + 1, 0, true),
            (COMPACT_MIN + 1, COMPACT_MIN / 2, true),
            (COMPACT_MIN * 2, COMPACT_MIN, false),
            (COMPACT_MIN * 2 + 1, COMPACT_MIN, true),
        ] {
            assert_eq!(worth_rewriting(bytes, live), due, "{bytes} of which {live} live");
        }
    }
}
