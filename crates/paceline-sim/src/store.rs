//! A queue database: rows, the mark that it is complete, and the segments it adopted by reference.
//!
//! A commit is two moments: it is written (others can see it), then synced (a power loss keeps it). The owner's
//! process may stop or die between them.

use std::collections::BTreeMap;

use paceline_proto::id::MutationId;

use crate::{
    disk::{DbId, Disk, Pid},
    random::Random,
};

/// First 16 bytes of a payload's SHA-256, as in a submit.
pub type Hash = [u8; 16];

/// A stored mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Grows by one with each row of this database.
    pub number: u64,
    /// The mutation.
    pub id: MutationId,
    /// Hash of its payload.
    pub hash: Hash,
}

/// A predecessor's rows up to a bound; later ones are invisible for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where the rows are.
    pub database: DbId,
    /// The last row that counts.
    pub bound: u64,
}

#[derive(Debug, Clone)]
struct Undo {
    rows: usize,
    complete: Option<u64>,
    segments: Vec<Segment>,
}

/// One database.
#[derive(Debug, Clone)]
pub struct Database {
    /// The process that made it: the only one that may write it.
    pub owner: Pid,
    /// Own rows.
    pub rows: Vec<Row>,
    /// The epoch whose adoption it finished.
    pub complete: Option<u64>,
    /// What it adopted.
    pub segments: Vec<Segment>,
    /// The schema of its writer.
    pub schema: u32,
    /// The lowest schema that a build must be made for to read it.
    pub min_reader: u32,
    undo: Option<Undo>,
}

impl Database {
    /// Empty and not complete.
    pub fn new(owner: Pid) -> Self {
        Self {
            owner,
            rows: Vec::new(),
            complete: None,
            segments: Vec::new(),
            schema: 1,
            min_reader: 1,
            undo: None,
        }
    }

    /// Number of the last row.
    pub fn last_row(&self) -> u64 {
        self.rows.last().map_or(0, |row| row.number)
    }

    /// Begins a transaction's write; it is visible but not durable until [`Database::sync`].
    pub fn write(&mut self) -> &mut Self {
        if self.undo.is_none() {
            self.undo = Some(Undo {
                rows: self.rows.len(),
                complete: self.complete,
                segments: self.segments.clone(),
            });
        }
        self
    }

    /// Adds a row.
    pub fn push(&mut self, id: MutationId, hash: Hash) {
        let number = self.last_row() + 1;
        self.rows.push(Row { number, id, hash });
    }

    /// What was written so far is durable.
    pub fn sync(&mut self) {
        self.undo = None;
    }

    /// An unsynced transaction is kept whole or dropped whole.
    pub fn lose_power(&mut self, random: &mut Random) {
        if let Some(undo) = self.undo.take()
            && random.chance(500)
        {
            self.rows.truncate(undo.rows);
            self.complete = undo.complete;
            self.segments = undo.segments;
        }
    }
}

/// What a database reaches: each mutation with its hash and how many rows carry it.
pub type Reachable = BTreeMap<MutationId, (Hash, u32)>;

/// The rows reachable from `database`. A segment whose file is gone reaches nothing.
pub fn reachable(disk: &Disk, database: DbId) -> Reachable {
    let mut found = Reachable::new();
    let mut add = |row: &Row| found.entry(row.id).or_insert((row.hash, 0)).1 += 1;
    let Some(own) = named(disk, database) else { return found };
    own.rows.iter().for_each(&mut add);
    for segment in &own.segments {
        if let Some(part) = named(disk, segment.database) {
            part.rows.iter().filter(|row| row.number <= segment.bound).for_each(&mut add);
        }
    }
    found
}

fn named(disk: &Disk, database: DbId) -> Option<&Database> {
    disk.names.get(database).and_then(|()| disk.databases.get(&database))
}

/// The group's mutations: what the newest complete database reaches.
pub fn group_rows(disk: &Disk) -> Reachable {
    let (_, carriers) = disk.highest_complete();
    carriers.first().map(|database| reachable(disk, *database)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use paceline_proto::{
        id::{Nonce, SessionId},
        message::KitAddress,
    };

    use super::*;

    fn id(seq: u64) -> MutationId {
        MutationId { session: SessionId(1), seq }
    }

    fn kit(disk: &mut Disk, pid: u32) -> DbId {
        let address = KitAddress { socket: format!("{pid}.sock"), nonce: Nonce(u128::from(pid)) };
        disk.make_kit(SessionId(u128::from(pid)), Pid(pid), address).1
    }

    #[test]
    fn rows_beyond_a_bound_are_invisible() {
        let mut disk = Disk::default();
        let (old, new) = (kit(&mut disk, 1), kit(&mut disk, 2));
        disk.databases.get_mut(&old).expect("made").push(id(1), [1; 16]);
        let own = disk.databases.get_mut(&new).expect("made");
        own.complete = Some(2);
        own.segments.push(Segment { database: old, bound: 1 });
        disk.databases.get_mut(&old).expect("made").push(id(2), [2; 16]);
        let rows = group_rows(&disk);
        assert!(rows.contains_key(&id(1)) && !rows.contains_key(&id(2)));
    }

    #[test]
    fn an_unsynced_commit_survives_a_power_loss_whole_or_not_at_all() {
        let mut kept = [false; 2];
        for seed in 0..40 {
            let mut database = Database::new(Pid(1));
            database.write().push(id(1), [1; 16]);
            database.sync();
            let open = database.write();
            open.push(id(2), [2; 16]);
            open.push(id(3), [3; 16]);
            database.lose_power(&mut Random::new(seed));
            assert!([1, 3].contains(&database.rows.len()));
            kept[usize::from(database.rows.len() == 3)] = true;
        }
        assert_eq!(kept, [true; 2]);
    }
}
