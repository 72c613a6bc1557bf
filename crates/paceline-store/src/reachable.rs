//! What a group's directory holds, seen from outside: the answer a test or `doctor` compares with what was promised.

use std::path::{Path, PathBuf};

use paceline_proto::id::Epoch;

use crate::{
    Inspection, StoreError, inspect,
    limits::SCAN_ATTEMPTS,
    row::{self, Origin, Range, Row},
    scan::scan,
    snapshot::Snapshot,
};

/// The rows that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reachable {
    /// The highest complete epoch; `Epoch::NONE` in a new group.
    pub epoch: Epoch,
    /// Everything reachable from its database, in the order it was first stored.
    pub rows: Vec<Row>,
}

/// Reads all rows reachable from the highest complete database of `dir` without changing or locking any. Holds them
/// all in memory.
///
/// # Errors
/// Any problem of the scan; `Corrupt` or `Io` where a named database cannot be read, `Corrupt` where one lacks rows.
pub fn reachable(dir: &Path) -> Result<Reachable, StoreError> {
    let mut attempts = SCAN_ATTEMPTS;
    loop {
        attempts -= 1;
        let newest = match newest(dir) {
            Err(_) if attempts > 0 => continue,
            newest => newest?,
        };
        // A living owner folds: it drops a segment from its database and then removes the file.
        let moved = || self::newest(dir).map_or(true, |now| named(&now) != named(&newest));
        match read(dir, &newest) {
            Err(_) if attempts > 0 && moved() => {}
            found => return found,
        }
    }
}

/// The highest complete database: its path, its epoch, what it names.
type Newest = Option<(PathBuf, Epoch, Inspection)>;

fn newest(dir: &Path) -> Result<Newest, StoreError> {
    let scan = scan(dir)?;
    let Some(newest) = scan.predecessor(Epoch(u64::MAX))? else { return Ok(None) };
    Ok(Some((newest.path.clone(), newest.epoch, inspect(&newest.path)?)))
}

fn named(newest: &Newest) -> Option<(Epoch, Vec<String>)> {
    let (_, epoch, found) = newest.as_ref()?;
    Some((*epoch, found.segments.iter().map(|segment| segment.file.clone()).collect()))
}

fn read(dir: &Path, newest: &Newest) -> Result<Reachable, StoreError> {
    let Some((path, epoch, found)) = newest else {
        return Ok(Reachable { epoch: Epoch::NONE, rows: Vec::new() });
    };
    let own = (path.clone(), Range { epoch: *epoch, after: 0, upto: found.rows });
    let mut rows = Vec::new();
    for (path, range) in found.segments.iter().map(|s| (dir.join(&s.file), s.into())).chain([own]) {
        let start = Origin { epoch: Epoch::NONE, row: 0 };
        let part = Snapshot::open(&path)?.read(|conn| row::page(conn, range, start, usize::MAX))?;
        let expected = range.upto - range.after;
        if part.len() as u64 != expected {
            let why = format!("{} of {expected} rows are there", part.len());
            return Err(StoreError::Corrupt { path, why });
        }
        rows.extend(part);
    }
    rows.sort_by_key(|row| row.origin);
    Ok(Reachable { epoch: *epoch, rows })
}
