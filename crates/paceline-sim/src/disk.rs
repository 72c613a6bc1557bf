//! The group's state directory as a file system sees it: names, inodes, locks, and what a power loss leaves.
//!
//! A name is durable only once its directory was synced; until then a power loss keeps or drops each change on its own.
//! Locks belong to processes and vanish with them; the world decides when.

use std::collections::BTreeMap;

use paceline_proto::{id::SessionId, message::KitAddress};

use crate::{random::Random, store::Database};

/// A simulated process; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(pub u32);

/// A file, whatever its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inode(pub u64);

/// A queue database; its name on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DbId(pub u64);

/// A claim file, linked or still a kit's.
#[derive(Debug, Clone)]
pub struct ClaimFile {
    /// Where its owner listens.
    pub address: KitAddress,
    /// Who made it.
    pub owner: SessionId,
    /// The database made with it.
    pub database: DbId,
    /// How many names it has.
    pub links: u32,
    /// Who has it locked.
    pub lock: Option<Pid>,
    /// The body is there; false after a power loss cut it.
    pub whole: bool,
}

/// A directory: what processes see, and what a power loss would leave.
#[derive(Debug, Clone)]
pub struct Directory<K, V> {
    now: BTreeMap<K, V>,
    synced: BTreeMap<K, V>,
    unsynced: Vec<(K, Option<V>)>,
}

impl<K, V> Default for Directory<K, V> {
    fn default() -> Self {
        Self { now: BTreeMap::new(), synced: BTreeMap::new(), unsynced: Vec::new() }
    }
}

impl<K: Ord + Copy, V: Copy> Directory<K, V> {
    /// What processes see.
    pub fn entries(&self) -> &BTreeMap<K, V> {
        &self.now
    }

    /// What lies at the name.
    pub fn get(&self, name: K) -> Option<V> {
        self.now.get(&name).copied()
    }

    /// Adds a name; false if it is taken.
    pub fn link(&mut self, name: K, value: V) -> bool {
        if self.now.contains_key(&name) {
            return false;
        }
        self.now.insert(name, value);
        self.unsynced.push((name, Some(value)));
        true
    }

    /// Removes a name.
    pub fn unlink(&mut self, name: K) -> Option<V> {
        let old = self.now.remove(&name);
        if old.is_some() {
            self.unsynced.push((name, None));
        }
        old
    }

    /// Makes every change so far durable.
    pub fn sync(&mut self) {
        self.synced = self.now.clone();
        self.unsynced.clear();
    }

    /// Keeps each unsynced change or drops it, one by one.
    pub fn lose_power(&mut self, random: &mut Random) {
        let mut left = std::mem::take(&mut self.synced);
        for (name, value) in self.unsynced.drain(..) {
            if random.chance(500) {
                match value {
                    Some(value) => left.insert(name, value),
                    None => left.remove(&name),
                };
            }
        }
        self.now = left.clone();
        self.synced = left;
    }
}

/// How linking a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linked {
    /// It has the name.
    Done,
    /// The name is taken.
    Exists,
}

/// The state directory of one group on one machine.
#[derive(Debug, Default)]
pub struct Disk {
    /// `claims/`: epoch → file.
    pub claims: Directory<u64, Inode>,
    /// Queue databases below `S`.
    pub names: Directory<DbId, ()>,
    /// Every claim file that has a name or a holder.
    pub files: BTreeMap<Inode, ClaimFile>,
    /// Every database ever made; only those named are found.
    pub databases: BTreeMap<DbId, Database>,
    /// `sessions/<session>`: who holds the lock.
    pub sessions: BTreeMap<SessionId, Option<Pid>>,
    /// Nothing new fits.
    pub full: bool,
    next_inode: u64,
}

impl Disk {
    /// Makes a kit: a locked claim file without a name, and a named, empty database.
    pub fn make_kit(&mut self, owner: SessionId, pid: Pid, address: KitAddress) -> (Inode, DbId) {
        self.next_inode += 1;
        let (inode, database) = (Inode(self.next_inode), DbId(self.next_inode));
        self.files
            .insert(inode, ClaimFile { address, owner, database, links: 0, lock: Some(pid), whole: true });
        self.databases.insert(database, Database::new(pid));
        self.names.link(database, ());
        (inode, database)
    }

    /// Links a kit's file as the claim of `epoch`.
    pub fn link_claim(&mut self, inode: Inode, epoch: u64) -> Linked {
        if !self.claims.link(epoch, inode) {
            return Linked::Exists;
        }
        if let Some(file) = self.files.get_mut(&inode) {
            file.links += 1;
        }
        Linked::Done
    }

    /// Removes the claim of `epoch`, whoever owns it.
    pub fn unlink_claim(&mut self, epoch: u64) {
        if let Some(inode) = self.claims.unlink(epoch)
            && let Some(file) = self.files.get_mut(&inode)
        {
            file.links = file.links.saturating_sub(1);
        }
    }

    /// The claim file at the name.
    pub fn claim(&self, epoch: u64) -> Option<&ClaimFile> {
        self.claims.get(epoch).and_then(|inode| self.files.get(&inode))
    }

    /// The highest claim's epoch, 0 where there is none.
    pub fn highest_claim(&self) -> u64 {
        self.claims.entries().keys().next_back().copied().unwrap_or(0)
    }

    /// First half of the fence: nobody claimed the epoch after this one.
    pub fn successor_absent(&self, epoch: u64) -> bool {
        self.claims.get(epoch + 1).is_none()
    }

    /// Second half of the fence: the own claim still has a name, and it is this epoch's.
    pub fn own_claim_stands(&self, epoch: u64, inode: Inode) -> bool {
        self.files.get(&inode).is_some_and(|file| file.links > 0) && self.claims.get(epoch) == Some(inode)
    }

    /// Whether the session's process is proven dead.
    pub fn session_dead(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_none_or(Option::is_none)
    }

    /// Releases every lock of a process: it died.
    pub fn release_locks(&mut self, pid: Pid) {
        for file in self.files.values_mut().filter(|file| file.lock == Some(pid)) {
            file.lock = None;
        }
        for lock in self.sessions.values_mut().filter(|lock| **lock == Some(pid)) {
            *lock = None;
        }
    }

    /// The highest `complete` of any database found, 0 where there is none, and the databases that carry it.
    pub fn highest_complete(&self) -> (u64, Vec<DbId>) {
        self.newest_complete_below(u64::MAX)
    }

    /// As [`Disk::highest_complete`], of epochs below `limit` only.
    pub fn newest_complete_below(&self, limit: u64) -> (u64, Vec<DbId>) {
        let complete =
            |db: &DbId| self.databases.get(db).and_then(|db| db.complete).filter(|epoch| *epoch < limit);
        let newest = self.names.entries().keys().filter_map(complete).max().unwrap_or(0);
        let carriers = self
            .names
            .entries()
            .keys()
            .filter(|db| newest > 0 && complete(db) == Some(newest))
            .copied()
            .collect();
        (newest, carriers)
    }

    /// The machine lost power: unsynced names and writes may be gone, all locks are free.
    pub fn lose_power(&mut self, random: &mut Random) {
        self.claims.lose_power(random);
        self.names.lose_power(random);
        for file in self.files.values_mut() {
            file.lock = None;
            file.links = 0;
        }
        for inode in self.claims.entries().values() {
            if let Some(file) = self.files.get_mut(inode) {
                file.links += 1;
            }
        }
        for lock in self.sessions.values_mut() {
            *lock = None;
        }
        for database in self.databases.values_mut() {
            database.lose_power(random);
        }
        self.full = false;
    }
}

#[cfg(test)]
mod tests {
    use paceline_proto::id::Nonce;

    use super::*;

    fn kit(disk: &mut Disk, pid: u32) -> Inode {
        let address = KitAddress { socket: format!("{pid}.sock"), nonce: Nonce(u128::from(pid)) };
        disk.make_kit(SessionId(u128::from(pid)), Pid(pid), address).0
    }

    #[test]
    fn a_name_is_linked_once() {
        let mut disk = Disk::default();
        let (a, b) = (kit(&mut disk, 1), kit(&mut disk, 2));
        assert_eq!(disk.link_claim(a, 5), Linked::Done);
        assert_eq!(disk.link_claim(b, 5), Linked::Exists);
        assert_eq!(disk.highest_claim(), 5);
    }

    #[test]
    fn the_fence_has_two_halves() {
        let mut disk = Disk::default();
        let (a, b) = (kit(&mut disk, 1), kit(&mut disk, 2));
        disk.link_claim(a, 1);
        assert!(disk.successor_absent(1) && disk.own_claim_stands(1, a));
        disk.link_claim(b, 2);
        assert!(!disk.successor_absent(1));
        disk.unlink_claim(1);
        disk.unlink_claim(2);
        assert!(disk.successor_absent(1) && !disk.own_claim_stands(1, a));
    }

    #[test]
    fn a_power_loss_keeps_what_was_synced_and_frees_locks() {
        for seed in 0..50 {
            let mut disk = Disk::default();
            let (a, b) = (kit(&mut disk, 1), kit(&mut disk, 2));
            disk.link_claim(a, 1);
            disk.claims.sync();
            disk.link_claim(b, 2);
            disk.lose_power(&mut Random::new(seed));
            let claim = disk.claim(1).expect("synced");
            assert_eq!((claim.links, claim.lock), (1, None));
        }
    }

    #[test]
    fn a_power_loss_can_drop_each_unsynced_name_alone() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let mut disk = Disk::default();
            let (a, b) = (kit(&mut disk, 1), kit(&mut disk, 2));
            disk.link_claim(a, 1);
            disk.link_claim(b, 2);
            disk.lose_power(&mut Random::new(seed));
            seen.insert((disk.claims.get(1).is_some(), disk.claims.get(2).is_some()));
        }
        assert_eq!(seen.len(), 4);
    }
}
