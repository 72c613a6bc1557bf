//! Fold: rows of adopted databases are copied forward until nothing needs the old files.

use std::path::Path;

use paceline_proto::id::Epoch;

use crate::{
    QueueDb, StoreError,
    limits::FOLD_SPARE,
    row::{self, Range, Row, Segment},
    schema,
};

/// How much one fold copies at most; one row is copied in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldLimit {
    /// Rows.
    pub rows: usize,
    /// Bytes of payload, exceeded by at most one row.
    pub bytes: usize,
}

impl Default for FoldLimit {
    /// About ten milliseconds: submits wait for no longer than that.
    fn default() -> Self {
        Self { rows: 256, bytes: 1 << 20 }
    }
}

/// What one fold did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Folded {
    /// Rows copied.
    pub rows: usize,
    /// Segments still named.
    pub left: usize,
    /// Files that are no longer named and may be removed under the rule of [`QueueDb::discardable`].
    pub dropped: Vec<String>,
}

/// Rows to copy from one segment.
struct Piece {
    epoch: Epoch,
    file: String,
    rows: Vec<Row>,
    after: u64,
    done: bool,
}

impl QueueDb {
    /// Copies a bounded number of rows of the oldest segments into this database, in one flushed commit that also
    /// moves the segments' bounds and drops those that have none left. Never on a takeover.
    ///
    /// Every row stays reachable exactly once, whatever happens: the copy and the bound change together. A fenced
    /// owner may fold (its successor has read the list before, or reads it after) but may remove nothing.
    ///
    /// # Errors
    /// `NoRoom` changed nothing; otherwise as [`QueueDb::commit`].
    pub fn fold(&mut self, limit: FoldLimit) -> Result<Folded, StoreError> {
        self.writable()?;
        if self.segments().is_empty() {
            return Ok(Folded::default());
        }
        let pieces = self.gather(limit)?;
        let bytes = pieces.iter().flat_map(|p| &p.rows).map(|r| r.payload.len() as u64).sum::<u64>();
        // It gives more space back than it takes, and at the cap nothing else would.
        self.check_room(bytes)?;
        let mut last = self.last_durable();
        self.write_flushed(|conn| {
            for piece in &pieces {
                for row in &piece.rows {
                    last += 1;
                    schema::write_row(conn, last, &row::as_submit(row), row.state.code(), Some(row.origin))?;
                }
                schema::move_segment(conn, piece.epoch, piece.after, piece.done)?;
            }
            Ok(())
        })?;
        self.set_last_row(last);
        Ok(self.settle(&pieces))
    }

    /// Reads the oldest rows, up to the limit.
    fn gather(&mut self, limit: FoldLimit) -> Result<Vec<Piece>, StoreError> {
        let (mut rows_left, mut bytes_left) = (limit.rows.max(1), limit.bytes);
        let mut pieces = Vec::new();
        for segment in self.segments().to_vec() {
            if rows_left == 0 || (bytes_left == 0 && !pieces.is_empty()) {
                break;
            }
            let range = Range::from(&segment);
            let taken = self.read_segment(&segment, |conn| row::take(conn, range, rows_left, bytes_left))?;
            let after = self.check_taken(&segment, &taken)?;
            rows_left = rows_left.saturating_sub(taken.len());
            bytes_left = bytes_left.saturating_sub(taken.iter().map(|(_, r)| r.payload.len()).sum());
            let done = after == segment.upto;
            let rows = taken.into_iter().map(|(_, row)| row).collect();
            pieces.push(Piece { epoch: segment.epoch, file: segment.file, rows, after, done });
            if !done {
                break;
            }
        }
        Ok(pieces)
    }

    /// Rows of a database are numbered without holes; one that is missing must not be dropped with its segment.
    fn check_taken(&self, segment: &Segment, taken: &[(u64, Row)]) -> Result<u64, StoreError> {
        let mut after = segment.after;
        for (number, _) in taken {
            if *number != after + 1 {
                break;
            }
            after = *number;
        }
        if after == segment.after || after - segment.after != taken.len() as u64 {
            let why = format!("row {} is missing", after + 1);
            return Err(StoreError::Corrupt { path: self.dir().join(&segment.file), why });
        }
        Ok(after)
    }

    /// Folding is never worth the last of the disk: a commit that fails for lack of space costs an epoch.
    fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        leaves_spare(free_bytes(self.dir())?, bytes)
    }

    fn settle(&mut self, pieces: &[Piece]) -> Folded {
        let mut segments = self.segments().to_vec();
        for piece in pieces {
            for segment in segments.iter_mut().filter(|s| s.epoch == piece.epoch) {
                segment.after = piece.after;
            }
        }
        segments.retain(|s| !s.is_empty());
        let left = segments.len();
        self.set_segments(segments);
        Folded {
            rows: pieces.iter().map(|p| p.rows.len()).sum(),
            left,
            dropped: pieces.iter().filter(|p| p.done).map(|p| p.file.clone()).collect(),
        }
    }
}

fn leaves_spare(free: u64, bytes: u64) -> Result<(), StoreError> {
    // Once into the log and once into the database, with as much again for indexes and half-filled pages.
    let wanted = bytes.saturating_mul(4).saturating_add(FOLD_SPARE);
    if free < wanted { Err(StoreError::NoRoom { free, wanted }) } else { Ok(()) }
}

#[cfg(unix)]
fn free_bytes(dir: &Path) -> Result<u64, StoreError> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| StoreError::io(dir, &e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Not known here: a fold then fails like any other write.
#[cfg(not(unix))]
fn free_bytes(_dir: &Path) -> Result<u64, StoreError> {
    Ok(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fold_leaves_the_spare_and_not_a_byte_less() {
        assert!(leaves_spare(FOLD_SPARE + 4, 1).is_ok());
        let refused = leaves_spare(FOLD_SPARE + 3, 1).unwrap_err();
        assert!(matches!(refused, StoreError::NoRoom { .. }) && !refused.state_unknown());
    }
}
