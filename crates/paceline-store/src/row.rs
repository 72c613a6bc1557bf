//! What a queue database holds, and how rows are looked up in one source.

use bytes::Bytes;
use paceline_proto::{
    id::{Epoch, MutationId, SessionId},
    message::Submit,
};
use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};

/// Where a row was first stored. Stays the same when the row is copied forward, so it is the order of all rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The epoch whose owner accepted the submit.
    pub epoch: Epoch,
    /// Its place among the rows of that epoch's database, from 1.
    pub row: u64,
}

/// What a row says of its mutation. The last row of a mutation says where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowState {
    /// It was submitted; the payload is what to send. All other rows are *marks*, their payload the details.
    Queued,
    /// From here on it may be on its way.
    Sending,
    /// An attempt came to nothing; there will be another.
    Again,
    /// The server took it.
    Done,
    /// The server refused it.
    Rejected,
    /// All attempts failed.
    Failed,
    /// The server's value had changed.
    Conflict,
    /// Whether it was applied is not known.
    Parked,
    /// It was taken back.
    Discarded,
    /// It is to be sent once more.
    Reopened,
}

impl RowState {
    const ALL: [Self; 10] = [
        Self::Queued,
        Self::Sending,
        Self::Again,
        Self::Done,
        Self::Rejected,
        Self::Failed,
        Self::Conflict,
        Self::Parked,
        Self::Discarded,
        Self::Reopened,
    ];

    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

/// What happened to a stored mutation, to be stored behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The mutation.
    pub id: MutationId,
    /// What happened: anything but [`RowState::Queued`].
    pub state: RowState,
    /// The details, for whoever goes on.
    pub details: Bytes,
}

/// A row: a stored mutation, or a mark of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its identity.
    pub id: MutationId,
    /// First 16 bytes of SHA-256 of the payload; zeros in a mark.
    pub hash: [u8; 16],
    /// What the row says.
    pub state: RowState,
    /// What to send, or the details of a mark.
    pub payload: Bytes,
    /// Where it was first stored.
    pub origin: Origin,
}

/// An adopted database: its rows in (`after`, `upto`] belong to the database that names it. Rows beyond `upto` are
/// invisible for ever; rows up to `after` were copied forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The epoch the file is complete for.
    pub epoch: Epoch,
    /// Its name in the directory.
    pub file: String,
    /// Rows up to here were copied forward.
    pub after: u64,
    /// The last row that counts.
    pub upto: u64,
}

impl Segment {
    /// Rows that are reachable through this segment.
    pub fn len(&self) -> u64 {
        self.upto.saturating_sub(self.after)
    }

    /// Whether no row is reachable through it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The rows of one database that are asked for: (`after`, `upto`] of the database of `epoch`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) epoch: Epoch,
    pub(crate) after: u64,
    pub(crate) upto: u64,
}

impl From<&Segment> for Range {
    fn from(s: &Segment) -> Self {
        Self { epoch: s.epoch, after: s.after, upto: s.upto }
    }
}

const COLUMNS: &str = "row, session, seq, hash, state, payload, origin_epoch, origin_row";

/// Reads a row with the columns of [`COLUMNS`]; `epoch` is the origin of rows that carry none.
fn decode(r: &SqlRow<'_>, epoch: Epoch) -> rusqlite::Result<(u64, Row)> {
    let row = r.get::<_, i64>(0)?.cast_unsigned();
    let state: u8 = r.get(4)?;
    let origin = match (r.get::<_, Option<i64>>(6)?, r.get::<_, Option<i64>>(7)?) {
        (Some(e), Some(n)) => Origin { epoch: Epoch(e.cast_unsigned()), row: n.cast_unsigned() },
        (None, None) => Origin { epoch, row },
        _ => {
            return Err(rusqlite::Error::InvalidColumnType(
                7,
                "origin_row".into(),
                rusqlite::types::Type::Null,
            ));
        }
    };
    let decoded = Row {
        id: MutationId {
            session: SessionId(u128::from_be_bytes(r.get(1)?)),
            seq: r.get::<_, i64>(2)?.cast_unsigned(),
        },
        hash: r.get(3)?,
        state: RowState::from_code(state)
            .ok_or(rusqlite::Error::IntegralValueOutOfRange(4, i64::from(state)))?,
        payload: Bytes::from(r.get::<_, Vec<u8>>(5)?),
        origin,
    };
    Ok((row, decoded))
}

/// Up to `limit` rows of the range after `origin`, in order of origin.
pub(crate) fn page(
    conn: &Connection,
    range: Range,
    after: Origin,
    limit: usize,
) -> rusqlite::Result<Vec<Row>> {
    let limit_sql = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = conn
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM rows INDEXED BY rows_folded
             WHERE origin_epoch IS NOT NULL AND (origin_epoch, origin_row) > (?1, ?2) AND row > ?3 AND row <= ?4
             ORDER BY origin_epoch, origin_row LIMIT ?5"
        ))?
        .query_map(
            params![
                after.epoch.0.cast_signed(),
                after.row.cast_signed(),
                range.after.cast_signed(),
                range.upto.cast_signed(),
                limit_sql
            ],
            |r| decode(r, range.epoch).map(|(_, row)| row),
        )?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    // Rows submitted to this database come after all rows it copied forward from earlier ones.
    if rows.len() < limit && after.epoch <= range.epoch {
        let from = if after.epoch == range.epoch { after.row.max(range.after) } else { range.after };
        let rest = i64::try_from(limit - rows.len()).unwrap_or(i64::MAX);
        let mut statement = conn.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM rows WHERE row > ?1 AND row <= ?2 AND origin_epoch IS NULL
             ORDER BY row LIMIT ?3"
        ))?;
        let own = statement.query_map(params![from.cast_signed(), range.upto.cast_signed(), rest], |r| {
            decode(r, range.epoch).map(|(_, row)| row)
        })?;
        for row in own {
            rows.push(row?);
        }
    }
    Ok(rows)
}

/// Rows of the range in order of their number, until `rows` rows or `bytes` bytes of payload are there; at least one.
pub(crate) fn take(
    conn: &Connection,
    range: Range,
    rows: usize,
    bytes: usize,
) -> rusqlite::Result<Vec<(u64, Row)>> {
    let mut statement = conn
        .prepare_cached(&format!("SELECT {COLUMNS} FROM rows WHERE row > ?1 AND row <= ?2 ORDER BY row"))?;
    let mut found = statement.query(params![range.after.cast_signed(), range.upto.cast_signed()])?;
    let (mut taken, mut size) = (Vec::new(), 0);
    while taken.len() < rows.max(1) && (taken.is_empty() || size < bytes) {
        let Some(r) = found.next()? else { break };
        let row = decode(r, range.epoch)?;
        size += row.1.payload.len();
        taken.push(row);
    }
    Ok(taken)
}

/// The rows of one mutation in the range.
pub(crate) fn of(conn: &Connection, range: Range, id: MutationId) -> rusqlite::Result<Vec<Row>> {
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM rows WHERE session = ?1 AND seq = ?2 AND row > ?3 AND row <= ?4"
    ))?
    .query_map(
        params![
            id.session.0.to_be_bytes(),
            id.seq.cast_signed(),
            range.after.cast_signed(),
            range.upto.cast_signed()
        ],
        |r| decode(r, range.epoch).map(|(_, row)| row),
    )?
    .collect()
}

/// The session's highest sequence number among the rows up to `upto`, 0 where there is none.
pub(crate) fn high_water(conn: &Connection, session: SessionId, upto: u64) -> rusqlite::Result<u64> {
    conn.prepare_cached(
        "SELECT seq FROM rows WHERE state = 0 AND session = ?1 AND row <= ?2 ORDER BY seq DESC LIMIT 1",
    )?
    .query_row(params![session.0.to_be_bytes(), upto.cast_signed()], |r| r.get::<_, i64>(0))
    .optional()
    .map(|seq| seq.map_or(0, i64::cast_unsigned))
}

/// The hash stored under `id` among the rows up to `upto`.
pub(crate) fn hash_of(conn: &Connection, id: MutationId, upto: u64) -> rusqlite::Result<Option<[u8; 16]>> {
    conn.prepare_cached("SELECT hash FROM rows WHERE state = 0 AND session = ?1 AND seq = ?2 AND row <= ?3")?
        .query_row(params![id.session.0.to_be_bytes(), id.seq.cast_signed(), upto.cast_signed()], |r| {
            r.get(0)
        })
        .optional()
}

/// The row as the submit it came from.
pub(crate) fn as_submit(row: &Row) -> Submit {
    Submit { id: row.id, hash: row.hash, payload: row.payload.clone() }
}
