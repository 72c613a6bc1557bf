//! What the newest claim and the stores say, at the least cost: every session lists after a takeover, when the processor
//! has better things to do.

use std::{collections::BTreeMap, ffi::OsString, io, os::unix::fs::MetadataExt, sync::Arc};

use paceline_ipc::{claim, dirs::StateDir, lock::LockState};
use paceline_proto::{
    election::{ClaimSeen, Listing, Lock},
    id::{Epoch, Nonce},
    message::KitAddress,
};
use paceline_store::StoreError;
use parking_lot::Mutex;

/// Lists claims and stores; remembers databases that are complete, which never changes. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Lister {
    dir: StateDir,
    /// The highest schema that this build reads.
    schema: u32,
    complete: Arc<Mutex<BTreeMap<OsString, Epoch>>>,
}

/// The group's directory cannot be listed. Nothing is known then, and nothing may be claimed.
#[derive(Debug, thiserror::Error)]
#[error("list {}: {source}", dir.display())]
pub(crate) struct ListError {
    dir: std::path::PathBuf,
    source: io::Error,
}

impl Lister {
    pub(crate) fn new(dir: StateDir, schema: u32) -> Self {
        Self { dir, schema, complete: Arc::default() }
    }

    /// The newest claim, and the highest epoch of a complete database. Blocks on the file system.
    ///
    /// **Invariant:** stores are read before claims. A store is complete only after its claim has its name, so the claim of
    /// every complete store that was seen is seen too, unless it is really gone; read the other way round, an owner that
    /// claims and adopts in between would look like one that is dead and lost its claim.
    pub(crate) fn list(&self) -> Result<Listing, ListError> {
        self.list_with(|| {})
    }

    /// `between` is where others may come in between.
    fn list_with(&self, between: impl FnOnce()) -> Result<Listing, ListError> {
        let failed = |source| ListError { dir: self.dir.root().to_owned(), source };
        let (highest_complete, too_new) = self.stores().map_err(failed)?;
        between();
        let claims = claim::list_claims(&self.dir).map_err(failed)?;
        let claim = claims.last().map(|&epoch| self.look_at(epoch));
        Ok(Listing { claim, highest_complete, too_new })
    }

    fn look_at(&self, epoch: Epoch) -> ClaimSeen {
        let seen = claim::inspect_claim(&self.dir, epoch);
        let body = seen.body.as_ref();
        ClaimSeen {
            epoch,
            address: body.map(|body| KitAddress { socket: body.socket.clone(), nonce: body.nonce }),
            owner: body.map(|body| body.session),
            lock: lock_of(&seen.lock),
            readable: body.is_none_or(|body| body.min_reader <= self.schema),
        }
    }

    fn stores(&self) -> io::Result<(Epoch, Option<(u32, u32)>)> {
        let mut known = self.complete.lock();
        let mut found = BTreeMap::new();
        let mut too_new = None;
        for entry in std::fs::read_dir(self.dir.root())? {
            let name = entry?.file_name();
            let Some(nonce) = nonce_of(&name) else { continue };
            if let Some(epoch) = known.get(&name) {
                found.insert(name, *epoch);
            } else if !self.is_unlinked_kit(nonce) {
                match paceline_store::inspect(&self.dir.root().join(&name)) {
                    Ok(database) => {
                        found.extend(database.complete.map(|epoch| (name, epoch)));
                    }
                    Err(StoreError::TooNew { schema, min_reader, .. }) => {
                        too_new = Some((schema, min_reader))
                    }
                    // Gone meanwhile, or unreadable: the adoption that follows a claim refuses to go on without it.
                    Err(error) => tracing::debug!(%error, "a store cannot be read"),
                }
            }
        }
        let highest = found.values().copied().max().unwrap_or(Epoch::NONE);
        *known = found;
        Ok((highest, too_new))
    }

    /// A kit has a name of its own until it is linked as a claim, and no database is complete before that.
    fn is_unlinked_kit(&self, nonce: Nonce) -> bool {
        std::fs::symlink_metadata(self.dir.kit(nonce)).is_ok_and(|kit| kit.nlink() == 1)
    }
}

fn nonce_of(name: &OsString) -> Option<Nonce> {
    name.to_str()?.strip_prefix("q-")?.strip_suffix(".db")?.parse().ok()
}

pub(crate) fn lock_of(lock: &LockState) -> Lock {
    match lock {
        LockState::Free => Lock::Free,
        LockState::Missing => Lock::Missing,
        LockState::Held | LockState::Unreadable(_) => Lock::Held,
    }
}

#[cfg(test)]
mod tests {
    use paceline_ipc::dirs::database_name;
    use paceline_store::{Durability, Inheritance, QueueDb};

    use super::*;

    fn lister(dir: &tempfile::TempDir) -> Lister {
        let state = StateDir::open(&"test".parse().unwrap(), None, Some(dir.path())).unwrap();
        Lister::new(state, paceline_store::schema().writes)
    }

    fn complete(lister: &Lister, nonce: u128, epoch: u64) {
        let mut database = QueueDb::create(&lister.dir.database(Nonce(nonce)), Durability::Process).unwrap();
        database.adopt(&Inheritance::none(lister.dir.root(), Epoch(epoch))).unwrap();
    }

    #[test]
    fn the_highest_complete_database_counts_also_when_it_is_known_already_or_gone() {
        let scratch = tempfile::tempdir().unwrap();
        let lister = lister(&scratch);
        assert_eq!(lister.list().unwrap().highest_complete, Epoch::NONE);
        complete(&lister, 1, 4);
        complete(&lister, 2, 7);
        assert_eq!(lister.list().unwrap().highest_complete, Epoch(7));
        assert_eq!(lister.list().unwrap().highest_complete, Epoch(7));
        paceline_store::remove(&lister.dir.root().join(database_name(Nonce(2)))).unwrap();
        assert_eq!(lister.list().unwrap().highest_complete, Epoch(4));
    }

    #[test]
    fn an_owner_that_claims_and_adopts_meanwhile_is_not_taken_for_one_without_a_claim() {
        let scratch = tempfile::tempdir().unwrap();
        let lister = lister(&scratch);
        let claim_and_adopt = || {
            std::fs::write(lister.dir.claim(Epoch(1)), "").unwrap();
            complete(&lister, 1, 1);
        };
        let listing = lister.list_with(claim_and_adopt).unwrap();
        let claimed = listing.claim.map_or(Epoch::NONE, |claim| claim.epoch);
        assert!(claimed >= listing.highest_complete, "{claimed:?} {:?}", listing.highest_complete);
    }

    #[test]
    fn a_database_of_a_kit_that_was_completed_later_counts() {
        let scratch = tempfile::tempdir().unwrap();
        let lister = lister(&scratch);
        let kit = lister.dir.kit(Nonce(9));
        std::fs::write(&kit, "kit").unwrap();
        complete(&lister, 9, 3);
        assert_eq!(lister.list().unwrap().highest_complete, Epoch::NONE, "not linked as a claim");
        std::fs::hard_link(&kit, lister.dir.claim(Epoch(3))).unwrap();
        assert_eq!(lister.list().unwrap().highest_complete, Epoch(3));
    }
}
