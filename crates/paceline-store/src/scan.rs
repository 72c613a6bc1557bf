//! What lies in a group's directory: complete databases, kits, leftovers.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use paceline_proto::id::Epoch;

use crate::{
    StoreError,
    kit::{is_abandoned, is_database_name, is_unfinished_name},
    limits::SCAN_ATTEMPTS,
    row::Segment,
    schema::{self, Meta},
    snapshot::{Snapshot, beside},
};

/// A database that some epoch's owner completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complete {
    /// The epoch.
    pub epoch: Epoch,
    /// The file.
    pub path: PathBuf,
}

/// All databases of a directory.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// The complete ones, oldest epoch first.
    pub complete: Vec<Complete>,
    /// The highest epoch that is complete; `Epoch::NONE` where none is. The next claim must be above it.
    pub highest_complete: Epoch,
    /// Databases nobody completed: kits, or what is left of them.
    pub kits: Vec<PathBuf>,
    /// What cannot be what an owner left behind, or cannot be read by this build. While there is one, nothing may be
    /// adopted: the database in question may be the newest.
    pub problems: Vec<StoreError>,
}

impl Scan {
    /// The database the owner of `epoch` adopts: the newest complete one, none in a new group.
    ///
    /// # Errors
    /// The first problem, whatever it is; `Superseded` where `epoch` or a later one is complete.
    pub fn predecessor(&self, epoch: Epoch) -> Result<Option<&Complete>, StoreError> {
        if let Some(problem) = self.problems.first() {
            return Err(problem.clone());
        }
        if self.highest_complete >= epoch {
            return Err(StoreError::Superseded { own: epoch, complete: self.highest_complete });
        }
        Ok(self.complete.last())
    }

    /// `(schema, min_reader)` of a store that this build cannot read and therefore must not claim over.
    pub fn too_new(&self) -> Option<(u32, u32)> {
        self.problems.iter().find_map(|p| match p {
            StoreError::TooNew { schema, min_reader, .. } => Some((*schema, *min_reader)),
            _ => None,
        })
    }
}

/// Looks at every database in `dir` without changing or locking any. Takes about a millisecond for each.
///
/// # Errors
/// `Io` where the directory cannot be read, `Changing` where databases come and go all the time. What is wrong with
/// a single database is among [`Scan::problems`].
pub fn scan(dir: &Path) -> Result<Scan, StoreError> {
    'again: for _ in 0..SCAN_ATTEMPTS {
        let mut scan = Scan::default();
        for name in names(dir)? {
            if !is_database_name(&name) {
                continue;
            }
            let path = dir.join(name);
            match look(&path) {
                Ok(Meta { complete: None, .. }) => scan.kits.push(path),
                Ok(meta @ Meta { complete: Some(epoch), .. }) => {
                    scan.problems.extend(meta.check(&path).err());
                    scan.complete.push(Complete { epoch, path });
                }
                // Removed after it was listed, so an owner is at work whose own database may not be in this list.
                Err(_) if gone(&path) => continue 'again,
                Err(problem) => scan.problems.push(problem),
            }
        }
        scan.complete.sort_by_key(|c| c.epoch);
        scan.highest_complete = scan.complete.last().map_or(Epoch::NONE, |c| c.epoch);
        for pair in scan.complete.windows(2) {
            if let [a, b] = pair
                && a.epoch == b.epoch
            {
                let (epoch, a, b) = (a.epoch, a.path.clone(), b.path.clone());
                scan.problems.push(StoreError::TwoComplete { epoch, a, b });
            }
        }
        return Ok(scan);
    }
    Err(StoreError::Changing { path: dir.into() })
}

/// A database, for people and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The schema it was written with.
    pub schema: u32,
    /// The oldest schema whose builds may read it.
    pub min_reader: u32,
    /// The epoch it is complete for.
    pub complete: Option<Epoch>,
    /// The segments it names, oldest epoch first.
    pub segments: Vec<Segment>,
    /// Its own rows, those copied forward included; also the number of the last one.
    pub rows: u64,
}

/// Reads one database without changing or locking it.
///
/// # Errors
/// `Io` where it is missing, `Corrupt` or `TooNew` where it cannot be understood.
pub fn inspect(path: &Path) -> Result<Inspection, StoreError> {
    let mut snapshot = Snapshot::open(path)?;
    let (meta, rest) = snapshot.read(|conn| {
        let meta = Meta::read(conn)?;
        // The other tables of a newer schema may look different.
        let rest = match meta {
            Some(meta) if meta.check(path).is_ok() => {
                Some((schema::segments(conn)?, schema::last_row(conn)?))
            }
            _ => None,
        };
        Ok((meta, rest))
    })?;
    let meta = meta.ok_or_else(|| schema::foreign(path))?;
    meta.check(path)?;
    let (segments, rows) = rest.unwrap_or_default();
    check_segments(path, meta.complete, &segments)?;
    let Meta { schema, min_reader, complete } = meta;
    Ok(Inspection { schema, min_reader, complete, segments, rows })
}

/// Segments come from a file that something else may have written: their names lead nowhere else, their epochs are
/// earlier and their bounds make sense.
fn check_segments(path: &Path, complete: Option<Epoch>, segments: &[Segment]) -> Result<(), StoreError> {
    for s in segments {
        let sensible = is_database_name(&s.file)
            && !s.file.contains(['/', '\\'])
            && s.after < s.upto
            && complete.is_some_and(|c| s.epoch < c);
        if !sensible {
            return Err(StoreError::Corrupt {
                path: path.into(),
                why: format!("its segment {s:?} is impossible"),
            });
        }
    }
    Ok(())
}

/// Databases of earlier epochs, and rests of databases, that a complete owner of `epoch` which names `named` may
/// remove.
pub(crate) fn discardable(dir: &Path, epoch: Epoch, named: &[Segment]) -> Result<Vec<PathBuf>, StoreError> {
    let mut found: Vec<PathBuf> = scan(dir)?
        .complete
        .into_iter()
        .filter(|c| c.epoch < epoch && !named.iter().any(|s| c.path.ends_with(&s.file)))
        .map(|c| c.path)
        .collect();
    for name in names(dir)? {
        let path = dir.join(&name);
        // A database has its name before it has a log, and loses it before.
        let orphan = ["-wal", "-shm"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .any(|database| is_database_name(database) && gone(&dir.join(database)));
        if orphan || (is_unfinished_name(&name) && is_abandoned(&path)) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Removes a database, its log and its index, in this order: a log alone is nothing, a database without its log
/// would be an older state. Missing files are no error, so an interrupted removal can be repeated.
///
/// # Errors
/// `Io`; what was removed stays removed.
pub fn remove(path: &Path) -> Result<(), StoreError> {
    for file in [path.to_path_buf(), beside(path, "-wal"), beside(path, "-shm")] {
        match fs::remove_file(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(StoreError::io(&file, &e)),
            _ => {}
        }
    }
    Ok(())
}

fn look(path: &Path) -> Result<Meta, StoreError> {
    Snapshot::open(path)?.read(Meta::read)?.ok_or_else(|| schema::foreign(path))
}

fn gone(path: &Path) -> bool {
    matches!(path.try_exists(), Ok(false))
}

/// Names in the directory, sorted.
fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let io = |e| StoreError::io(dir, &e);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        names.extend(entry.map_err(io)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}
