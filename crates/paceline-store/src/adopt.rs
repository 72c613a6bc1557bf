//! Adoption by reference: what a successor inherits, and the one commit that makes it the successor's own.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use paceline_proto::id::Epoch;

use crate::{QueueDb, StoreError, inspect, row::Segment, scan::scan, schema, snapshot::beside};

/// Everything below an epoch that its owner has to answer for: a list of files with bounds, never their rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inheritance {
    pub(crate) dir: PathBuf,
    pub(crate) epoch: Epoch,
    pub(crate) predecessor: Option<Epoch>,
    pub(crate) segments: Vec<Segment>,
}

/// A finished adoption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adopted {
    /// The epoch that is complete now.
    pub epoch: Epoch,
    /// The epoch whose database was adopted; `None` in a new group.
    pub predecessor: Option<Epoch>,
    /// Databases named.
    pub segments: usize,
    /// Mutations reachable.
    pub rows: u64,
}

impl Inheritance {
    /// Reads what the owner of `epoch` inherits in `dir`: the predecessor's segments and its own rows up to its last
    /// one, in one snapshot. Takes no lock and does not depend on the length of the queue.
    ///
    /// **Call it after the claim of `epoch` is linked**, never before: a predecessor that commits later sees the
    /// claim and does not acknowledge. A failed call changed nothing and may be repeated.
    ///
    /// # Errors
    /// Any problem of [`crate::Scan::problems`]: nothing falls back past a database that cannot be read.
    /// `Superseded` where `epoch` or a later one is complete already.
    pub fn read(dir: &Path, epoch: Epoch) -> Result<Self, StoreError> {
        let scan = scan(dir)?;
        let mut inheritance = Self { dir: dir.into(), epoch, predecessor: None, segments: Vec::new() };
        let Some(predecessor) = scan.predecessor(epoch)? else { return Ok(inheritance) };
        let found = inspect(&predecessor.path)?;
        if found.complete != Some(predecessor.epoch) {
            let why = format!("it was complete for epoch {} and is not any more", predecessor.epoch);
            return Err(StoreError::Corrupt { path: predecessor.path.clone(), why });
        }
        inheritance.predecessor = Some(predecessor.epoch);
        inheritance.segments = found.segments;
        if found.rows > 0 {
            let (_, file) = crate::kit::split(&predecessor.path)?;
            let segment = Segment { epoch: predecessor.epoch, file, after: 0, upto: found.rows };
            inheritance.segments.push(segment);
        }
        // A row may be visible and not yet flushed. Its owner has not acknowledged it, but after the adoption a
        // resubmit would be answered as a duplicate: so it becomes durable first.
        flush_log(&predecessor.path)?;
        Ok(inheritance)
    }

    /// What the first owner of a group inherits.
    pub fn none(dir: &Path, epoch: Epoch) -> Self {
        Self { dir: dir.into(), epoch, predecessor: None, segments: Vec::new() }
    }

    /// Leaves out the predecessor's own rows beyond `row`. For an owner that claims over itself after a failed
    /// commit: rows beyond [`QueueDb::last_durable`] were answered as unknown, and what the system shows of them may
    /// never reach the disk.
    pub fn forget_beyond(&mut self, row: u64) {
        if let Some(segment) = self.segments.last_mut()
            && Some(segment.epoch) == self.predecessor
        {
            segment.upto = segment.upto.min(row);
        }
        self.segments.retain(|s| !s.is_empty());
    }

    /// The epoch that inherits.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The databases inherited, oldest epoch first.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Mutations inherited.
    pub fn rows(&self) -> u64 {
        self.segments.iter().map(Segment::len).sum()
    }
}

impl QueueDb {
    /// Makes this database the complete one of the inheritance's epoch, in one flushed commit.
    ///
    /// Before: `claims/` and the directory (and new parents) must be flushed. After: [`QueueDb::verify_path`] must
    /// succeed before anything is acknowledged.
    ///
    /// # Errors
    /// `AlreadyAdopted`, or as [`QueueDb::commit`]. After an error with [`StoreError::state_unknown`] the database
    /// may be complete or not; claim the next epoch.
    pub fn adopt(&mut self, inheritance: &Inheritance) -> Result<Adopted, StoreError> {
        self.writable()?;
        if let Some(epoch) = self.epoch() {
            return Err(StoreError::AlreadyAdopted { path: self.path().into(), epoch });
        }
        if inheritance.dir != self.dir() || inheritance.segments.iter().any(|s| s.epoch >= inheritance.epoch)
        {
            return Err(StoreError::Name { path: inheritance.dir.clone() });
        }
        self.write_flushed(|conn| {
            schema::write_complete(conn, inheritance.epoch)?;
            inheritance.segments.iter().try_for_each(|s| schema::write_segment(conn, s))
        })?;
        self.begin_epoch(inheritance);
        tracing::debug!(epoch = %inheritance.epoch, rows = inheritance.rows(), "adopted");
        Ok(Adopted {
            epoch: inheritance.epoch,
            predecessor: inheritance.predecessor,
            segments: inheritance.segments.len(),
            rows: inheritance.rows(),
        })
    }
}

/// Makes durable what is visible in the log of another owner's database.
fn flush_log(path: &Path) -> Result<(), StoreError> {
    let log = beside(path, "-wal");
    match File::open(&log).and_then(|f| f.sync_data()) {
        // Copied back and removed by somebody's `sqlite3` after the owner's death.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|e| StoreError::io(&log, &e)),
    }
}
