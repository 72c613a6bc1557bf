//! The tables, and how builds of different age read each other's (see the crate's documentation).

use std::path::Path;

use paceline_proto::id::Epoch;
use rusqlite::{Connection, OptionalExtension, params};

use crate::{Origin, StoreError, row::Segment};

/// The schema this build writes.
pub const SCHEMA: u32 = 2;
/// The oldest build that reads what this build writes, by the schema it writes itself.
pub const MIN_READER: u32 = 2;

/// What a build writes and reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema {
    /// The schema it writes, and the highest it reads.
    pub writes: u32,
    /// The lowest schema that a build must write itself to read what this one writes.
    pub min_reader: u32,
}

/// This build's, or what a test has it stand for.
pub fn schema() -> Schema {
    #[cfg(feature = "other-builds")]
    if let Some(schema) = STOOD_FOR.get() {
        return *schema;
    }
    Schema { writes: SCHEMA, min_reader: MIN_READER }
}

#[cfg(feature = "other-builds")]
static STOOD_FOR: std::sync::OnceLock<Schema> = std::sync::OnceLock::new();

/// From here on this process reads and writes stores as a build of another schema would. Only what is said of the schema
/// changes; the tables stay the same. False: it was said before.
#[cfg(feature = "other-builds")]
#[doc(hidden)]
pub fn stand_for(schema: Schema) -> bool {
    STOOD_FOR.set(schema).is_ok()
}

/// SQLite before this version may lose a commit when its log wraps.
const SQLITE_MIN: i32 = 3_051_003;
/// `PACE`: tells a queue database from any other SQLite file.
const APPLICATION_ID: i32 = 0x5041_4345;

/// `meta` never changes, in any schema. Schema 1 had no marks.
const TABLES: &str = "
CREATE TABLE meta (
    key   TEXT PRIMARY KEY NOT NULL,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE segments (
    epoch INTEGER PRIMARY KEY,
    file  TEXT NOT NULL UNIQUE,
    after INTEGER NOT NULL,
    upto  INTEGER NOT NULL
) STRICT;

CREATE TABLE rows (
    row          INTEGER PRIMARY KEY,
    session      BLOB NOT NULL,
    seq          INTEGER NOT NULL,
    hash         BLOB NOT NULL,
    state        INTEGER NOT NULL,
    payload      BLOB NOT NULL,
    origin_epoch INTEGER,
    origin_row   INTEGER
) STRICT;

CREATE UNIQUE INDEX rows_mutation ON rows (session, seq) WHERE state = 0;
CREATE INDEX rows_of ON rows (session, seq);

CREATE INDEX rows_folded ON rows (origin_epoch, origin_row) WHERE origin_epoch IS NOT NULL;
";

/// Refuses a SQLite that loses commits. The bundled one never is; a build against the system's may be.
pub(crate) fn check_sqlite() -> Result<(), StoreError> {
    if rusqlite::version_number() < SQLITE_MIN {
        return Err(StoreError::Sqlite { found: rusqlite::version() });
    }
    Ok(())
}

/// Marks the file as a queue database; the smallest commit there is.
pub(crate) fn mark(conn: &Connection) -> rusqlite::Result<()> {
    conn.pragma_update(None, "application_id", APPLICATION_ID)
}

/// Makes the tables in a new database.
pub(crate) fn create(conn: &Connection) -> rusqlite::Result<()> {
    mark(conn)?;
    conn.execute_batch(TABLES)?;
    conn.execute(
        "INSERT INTO meta (key, value) VALUES ('schema', ?1), ('min_reader', ?2)",
        params![schema().writes, schema().min_reader],
    )?;
    Ok(())
}

/// What every build can read of a database of any schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) schema: u32,
    pub(crate) min_reader: u32,
    pub(crate) complete: Option<Epoch>,
}

impl Meta {
    /// Reads the frozen table; `None` where the file is another application's.
    pub(crate) fn read(conn: &Connection) -> rusqlite::Result<Option<Self>> {
        let id: i32 = conn.pragma_query_value(None, "application_id", |r| r.get(0))?;
        if id != APPLICATION_ID {
            return Ok(None);
        }
        let get = |key: &str| {
            conn.query_row("SELECT value FROM meta WHERE key = ?1", [key], |r| r.get::<_, i64>(0)).optional()
        };
        let version = |key: &str| -> rusqlite::Result<u32> {
            let value = get(key)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            u32::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(0, value))
        };
        Ok(Some(Self {
            schema: version("schema")?,
            min_reader: version("min_reader")?,
            complete: get("complete")?.map(|e| Epoch(e.cast_unsigned())),
        }))
    }

    /// Whether this build understands the other tables.
    pub(crate) fn check(&self, path: &Path) -> Result<(), StoreError> {
        if self.min_reader > schema().writes {
            let (schema, min_reader) = (self.schema, self.min_reader);
            return Err(StoreError::TooNew { path: path.into(), schema, min_reader });
        }
        Ok(())
    }
}

/// Error for a file that is a database but not one of ours.
pub(crate) fn foreign(path: &Path) -> StoreError {
    StoreError::Corrupt { path: path.into(), why: "it is not a queue database".into() }
}

/// Marks the database as the complete one of `epoch`.
pub(crate) fn write_complete(conn: &Connection, epoch: Epoch) -> rusqlite::Result<()> {
    conn.execute("INSERT INTO meta (key, value) VALUES ('complete', ?1)", [epoch.0.cast_signed()])?;
    Ok(())
}

/// The highest own row, 0 where there is none.
pub(crate) fn last_row(conn: &Connection) -> rusqlite::Result<u64> {
    conn.query_row("SELECT coalesce(max(row), 0) FROM rows", [], |r| r.get::<_, i64>(0))
        .map(i64::cast_unsigned)
}

/// The segments named by the database, oldest epoch first.
pub(crate) fn segments(conn: &Connection) -> rusqlite::Result<Vec<Segment>> {
    conn.prepare("SELECT epoch, file, after, upto FROM segments ORDER BY epoch")?
        .query_map([], |r| {
            Ok(Segment {
                epoch: Epoch(r.get::<_, i64>(0)?.cast_unsigned()),
                file: r.get(1)?,
                after: r.get::<_, i64>(2)?.cast_unsigned(),
                upto: r.get::<_, i64>(3)?.cast_unsigned(),
            })
        })?
        .collect()
}

/// Names a segment.
pub(crate) fn write_segment(conn: &Connection, segment: &Segment) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT INTO segments (epoch, file, after, upto) VALUES (?1, ?2, ?3, ?4)")?.execute(
        params![
            segment.epoch.0.cast_signed(),
            segment.file,
            segment.after.cast_signed(),
            segment.upto.cast_signed()
        ],
    )?;
    Ok(())
}

/// Remembers how far a segment was folded, or stops naming it.
pub(crate) fn move_segment(conn: &Connection, epoch: Epoch, after: u64, done: bool) -> rusqlite::Result<()> {
    let changed = if done {
        conn.execute("DELETE FROM segments WHERE epoch = ?1", [epoch.0.cast_signed()])?
    } else {
        conn.execute(
            "UPDATE segments SET after = ?2 WHERE epoch = ?1",
            [epoch.0.cast_signed(), after.cast_signed()],
        )?
    };
    if changed == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(changed)) }
}

/// Inserts a row under `row`, with its origin where it was not submitted to this database.
pub(crate) fn write_row(
    conn: &Connection,
    row: u64,
    submit: &paceline_proto::message::Submit,
    state: u8,
    origin: Option<Origin>,
) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO rows (row, session, seq, hash, state, payload, origin_epoch, origin_row)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        row.cast_signed(),
        submit.id.session.0.to_be_bytes(),
        submit.id.seq.cast_signed(),
        submit.hash,
        state,
        submit.payload.as_ref(),
        origin.map(|o| o.epoch.0.cast_signed()),
        origin.map(|o| o.row.cast_signed()),
    ])?;
    Ok(())
}
