//! The fence: does my successor's claim exist, or is my own gone?
//!
//! An owner writes its row and then asks the fence; a successor writes its claim and then reads the rows. One of them
//! sees the other, so what was acknowledged is always adopted. No clock, lock or time-out takes part.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use paceline_proto::id::{Epoch, Nonce};
use parking_lot::Mutex;

use crate::{
    claim::{ClaimBody, listed_above},
    dirs::StateDir,
    lock,
    os::FileId,
    socket::Bound,
};

/// The owner is not, or cannot be sure to be, the owner any more. What it committed may be invisible to its successor:
/// acknowledge nothing and step down. It never becomes unfenced again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("act as owner of epoch {epoch}: {why}")]
pub struct Fenced {
    /// The epoch that ended.
    pub epoch: Epoch,
    /// What showed it.
    pub why: FencedBy,
}

/// What fenced an owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FencedBy {
    /// A higher epoch is claimed.
    #[error("a successor has claimed")]
    Successor,
    /// The own claim was collected, replaced, or moved away with its directory.
    #[error("the own claim is no longer at its name")]
    ClaimGone,
    /// The own claim was given up.
    #[error("the claim was released")]
    Released,
    /// A check failed; an owner that cannot look is fenced.
    #[error("the claims cannot be checked: {0}")]
    Unreadable(String),
}

/// Asks whether the owner is still the owner. Cheap to clone, to send and to ask (three system calls).
///
/// Holds no lock of its own: after the [`OwnedClaim`] is released every handle answers [`FencedBy::Released`].
#[derive(Debug, Clone)]
pub struct Fence(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: StateDir,
    epoch: Epoch,
    path: PathBuf,
    next: PathBuf,
    /// Locked since before it had a name.
    file: File,
    id: FileId,
    released: AtomicBool,
}

impl Fence {
    /// The epoch it belongs to.
    pub fn epoch(&self) -> Epoch {
        self.0.epoch
    }

    /// `Ok` means: at a moment after this call began, nobody had claimed the next epoch. Ask after every durable commit
    /// and before every effect, never the other way round.
    ///
    /// **Invariant:** first the successor's claim is absent, then the own claim is still linked and found at its name.
    /// The other order, or either half alone, lets an owner that slept through two reigns and a collection
    /// acknowledge what nobody will adopt.
    ///
    /// # Errors
    /// [`Fenced`], also when a check cannot be made. Asking changed nothing.
    pub fn unfenced(&self) -> Result<(), Fenced> {
        self.check(|| {})
    }

    /// The owner may be stopped between the halves for as long as it pleases anybody.
    fn check(&self, between: impl FnOnce()) -> Result<(), Fenced> {
        self.successor_absent()?;
        between();
        self.own_claim_in_place()
    }

    fn successor_absent(&self) -> Result<(), Fenced> {
        match fs::symlink_metadata(&self.0.next) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Ok(_) => Err(self.fenced(FencedBy::Successor)),
            Err(error) => Err(self.unreadable(&error)),
        }
    }

    fn own_claim_in_place(&self) -> Result<(), Fenced> {
        if self.0.released.load(Ordering::Acquire) {
            return Err(self.fenced(FencedBy::Released));
        }
        let held = self.0.file.metadata().map_err(|error| self.unreadable(&error))?;
        if held.nlink() == 0 {
            return Err(self.fenced(FencedBy::ClaimGone));
        }
        match FileId::at(&self.0.path) {
            Ok(found) if found == self.0.id => Ok(()),
            Ok(_) => Err(self.fenced(FencedBy::ClaimGone)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.fenced(FencedBy::ClaimGone)),
            Err(error) => Err(self.unreadable(&error)),
        }
    }

    fn fenced(&self, why: FencedBy) -> Fenced {
        Fenced { epoch: self.0.epoch, why }
    }

    fn unreadable(&self, error: &io::Error) -> Fenced {
        self.fenced(FencedBy::Unreadable(error.to_string()))
    }
}

/// The claim of this process: the file is linked and locked. Keep it for as long as any thread may still send.
///
/// Dropping it releases the lock and takes the socket away; the claim itself stays where it is, for collectors.
#[derive(Debug)]
pub struct OwnedClaim {
    fence: Fence,
    body: ClaimBody,
    /// The socket as it was bound last.
    socket: Mutex<FileId>,
    /// A forked child that drops this value must not unlock what its parent still holds.
    pid: u32,
}

impl OwnedClaim {
    /// Takes over a claim file that is locked and linked as `epoch`.
    pub(crate) fn new(
        dir: StateDir,
        epoch: Epoch,
        file: File,
        id: FileId,
        body: ClaimBody,
        socket: FileId,
    ) -> Self {
        let (path, next) = (dir.claim(epoch), dir.claim(epoch.next()));
        let inner = Inner { dir, epoch, path, next, file, id, released: AtomicBool::new(false) };
        Self { fence: Fence(Arc::new(inner)), body, socket: Mutex::new(socket), pid: std::process::id() }
    }

    /// The epoch claimed.
    pub fn epoch(&self) -> Epoch {
        self.fence.epoch()
    }

    /// What the claim says.
    pub fn body(&self) -> &ClaimBody {
        &self.body
    }

    /// What a peer shows as proof.
    pub fn nonce(&self) -> Nonce {
        self.body.nonce
    }

    /// A handle to ask whether this claim still stands.
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// The step after the link: no higher claim is listed, then the own claim is still linked and found at its name.
    ///
    /// A stale listing may have made this session link a name that was collected already; only listing again shows it.
    ///
    /// # Errors
    /// [`Fenced`]: drop the claim and look at the group again. Nothing was adopted or acknowledged.
    pub fn confirm(&self) -> Result<(), Fenced> {
        let Inner { dir, epoch, .. } = &*self.fence.0;
        match listed_above(dir, *epoch) {
            Ok(false) => self.fence.own_claim_in_place(),
            Ok(true) => Err(self.fence.fenced(FencedBy::Successor)),
            Err(error) => Err(self.fence.unreadable(&error)),
        }
    }

    /// Whether the path in the claim still leads to the socket that was bound. Asked on each ping.
    pub fn socket_is_in_place(&self) -> bool {
        self.socket.lock().is_at(&self.fence.0.dir.socket(&self.body.socket))
    }

    /// Binds the socket again after its path was removed. Peers that are connected stay so.
    ///
    /// # Errors
    /// As `bind`; `AddrInUse` where something else has the name, which is never unlinked. A retry helps once the name is free.
    pub fn rebind(&self) -> io::Result<Bound> {
        let path = self.fence.0.dir.socket(&self.body.socket);
        let bound = Bound::bind(&path)?;
        *self.socket.lock() = FileId::at(&path)?;
        Ok(bound)
    }

    /// Gives the claim up: a successor may take the free lock as proof at once. Everything else that belongs to the
    /// reign (connections, database, send threads) must have ended before.
    pub fn release(self) {}
}

impl Drop for OwnedClaim {
    fn drop(&mut self) {
        let inner = &*self.fence.0;
        inner.released.store(true, Ordering::Release);
        if self.pid == std::process::id() {
            // Fence handles and forked children may keep the descriptor; the lock must not wait for them.
            if let Err(error) = inner.file.unlock() {
                tracing::debug!(epoch = inner.epoch.0, %error, "left the unlocking of a claim to the system");
            }
            // After the lock: a held one without a socket would look like an owner that cannot be reached.
            let socket = inner.dir.socket(&self.body.socket);
            if self.socket.lock().is_at(&socket)
                && let Err(error) = lock::remove(&socket)
            {
                tracing::debug!(path = %socket.display(), %error, "left a socket to the collectors");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{PermissionsExt, symlink},
        sync::atomic::AtomicU64,
    };

    use super::*;
    use crate::{
        claim::{
            collect_claims, inspect_claim,
            tests::{body, state_dir},
        },
        kit::Kit,
        lock::LockState,
    };

    fn claim(dir: &StateDir, epoch: u64) -> OwnedClaim {
        static NONCE: AtomicU64 = AtomicU64::new(1);
        let nonce = NONCE.fetch_add(1, Ordering::Relaxed);
        Kit::make(dir, body(u128::from(nonce))).unwrap().link(Epoch(epoch)).unwrap().0
    }

    fn why(fence: &Fence) -> Option<FencedBy> {
        fence.unfenced().err().map(|fenced| fenced.why)
    }

    #[test]
    fn a_handle_can_go_anywhere() {
        fn anywhere<T: Send + Sync + Clone + 'static>() {}
        anywhere::<Fence>();
    }

    #[test]
    fn only_the_next_claim_is_a_successor() {
        let (_base, dir) = state_dir();
        let owner = claim(&dir, 41);
        let fence = owner.fence();
        assert_eq!(why(&fence), None);
        fs::write(dir.claim(Epoch(40)), b"").unwrap();
        assert_eq!(why(&fence), None, "a claim below");
        symlink("nowhere", dir.claim(Epoch(42))).unwrap();
        assert_eq!(why(&fence), Some(FencedBy::Successor), "whatever it is");
    }

    #[test]
    fn a_claim_that_is_gone_or_replaced_fences() {
        let (_base, dir) = state_dir();
        let gone = claim(&dir, 1);
        fs::remove_file(dir.claim(Epoch(1))).unwrap();
        assert_eq!(why(&gone.fence()), Some(FencedBy::ClaimGone));

        fs::write(dir.claim(Epoch(1)), b"").unwrap();
        assert_eq!(why(&gone.fence()), Some(FencedBy::ClaimGone), "another file has the name");

        let kept = claim(&dir, 7);
        fs::hard_link(dir.claim(Epoch(7)), dir.root().join("spare")).unwrap();
        fs::remove_file(dir.claim(Epoch(7))).unwrap();
        assert_eq!(why(&kept.fence()), Some(FencedBy::ClaimGone), "linked elsewhere only");
    }

    #[test]
    fn a_renamed_or_restored_directory_fences() {
        let (base, dir) = state_dir();
        let owner = claim(&dir, 1);
        let away = base.path().join("away");
        fs::rename(dir.root(), &away).unwrap();
        assert_eq!(why(&owner.fence()), Some(FencedBy::ClaimGone));
        fs::create_dir_all(dir.claims()).unwrap();
        fs::copy(away.join("claims/00000001"), dir.claim(Epoch(1))).unwrap();
        assert_eq!(why(&owner.fence()), Some(FencedBy::ClaimGone), "a copy is not the claim");
    }

    #[test]
    fn an_owner_that_cannot_look_is_fenced() {
        let (_base, dir) = state_dir();
        let owner = claim(&dir, 1);
        fs::rename(dir.claims(), dir.root().join("away")).unwrap();
        fs::write(dir.claims(), b"").unwrap();
        assert!(matches!(why(&owner.fence()), Some(FencedBy::Unreadable(_))));
    }

    /// Owner 41 stops between commit and check; 42 and 43 reign and die; a newcomer claims 44 and collects; 41 wakes.
    #[test]
    fn the_second_half_sees_what_collection_hid_from_the_first() {
        let (_base, dir) = state_dir();
        let sleeper = claim(&dir, 41);
        for epoch in 42..60 {
            drop(claim(&dir, epoch));
        }
        let removed = collect_claims(&dir, None).unwrap();
        assert!(removed.contains(&Epoch(41)) && removed.contains(&Epoch(42)), "{removed:?}");
        assert_eq!(sleeper.fence().successor_absent(), Ok(()), "the first half alone is fooled");
        assert_eq!(why(&sleeper.fence()), Some(FencedBy::ClaimGone));
    }

    #[test]
    fn an_owner_that_sleeps_between_the_halves_is_fenced() {
        let (_base, dir) = state_dir();
        let sleeper = claim(&dir, 41);
        let fenced = sleeper.fence().check(|| {
            for epoch in 42..60 {
                drop(claim(&dir, epoch));
            }
            collect_claims(&dir, None).unwrap();
        });
        assert_eq!(fenced.unwrap_err().why, FencedBy::ClaimGone);
    }

    #[test]
    fn listing_again_finds_a_collected_name_that_was_linked_anew() {
        let (_base, dir) = state_dir();
        for epoch in 1..=20 {
            drop(claim(&dir, epoch));
        }
        collect_claims(&dir, None).unwrap();
        let stale = claim(&dir, 3);
        assert_eq!(stale.fence().unfenced(), Ok(()), "the fence alone cannot know: 4 was collected too");
        assert_eq!(stale.confirm().unwrap_err().why, FencedBy::Successor);
        assert_eq!(claim(&dir, 21).confirm(), Ok(()));
    }

    #[test]
    fn a_claim_taken_away_right_after_the_link_is_not_confirmed() {
        let (_base, dir) = state_dir();
        let owner = claim(&dir, 5);
        fs::remove_file(dir.claim(Epoch(5))).unwrap();
        assert_eq!(owner.confirm().unwrap_err().why, FencedBy::ClaimGone);
    }

    #[test]
    fn a_released_claim_is_free_although_handles_and_forked_children_live() {
        let (_base, dir) = state_dir();
        let owner = claim(&dir, 1);
        let fence = owner.fence();
        // What a forked child inherits: another descriptor of the same open file.
        let _inherited = fence.0.file.try_clone().unwrap();
        assert_eq!(inspect_claim(&dir, Epoch(1)).lock, LockState::Held);
        owner.release();
        assert_eq!(inspect_claim(&dir, Epoch(1)).lock, LockState::Free);
        assert_eq!(why(&fence), Some(FencedBy::Released));
    }

    #[test]
    fn a_forked_child_that_drops_the_claim_releases_nothing() {
        let (_base, dir) = state_dir();
        let mut owner = claim(&dir, 1);
        let _parent = owner.fence.0.file.try_clone().unwrap();
        owner.pid += 1;
        drop(owner);
        assert_eq!(inspect_claim(&dir, Epoch(1)).lock, LockState::Held);
    }

    #[test]
    fn a_claim_that_ends_takes_its_socket_away_but_not_a_strangers() {
        let (_base, dir) = state_dir();
        let owner = claim(&dir, 1);
        let path = dir.socket(&owner.body().socket);
        drop(owner);
        assert!(!path.exists());
        // The bound socket keeps its inode from being given to the stranger.
        let (owner, _bound) = Kit::make(&dir, body(2)).unwrap().link(Epoch(2)).unwrap();
        let path = dir.socket(&owner.body().socket);
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"").unwrap();
        drop(owner);
        assert!(path.exists());
    }

    #[test]
    fn a_socket_that_was_removed_is_bound_again_and_a_stranger_left_alone() {
        let (_base, dir) = state_dir();
        let owner = claim(&dir, 1);
        let path = dir.socket(&owner.body().socket);
        assert!(owner.socket_is_in_place());
        assert_eq!(owner.rebind().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        fs::remove_file(&path).unwrap();
        assert!(!owner.socket_is_in_place());
        let _bound = owner.rebind().unwrap();
        assert!(owner.socket_is_in_place());
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
