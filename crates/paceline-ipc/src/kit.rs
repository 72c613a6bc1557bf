//! Kits: all that an owner needs, made in advance, so that a takeover is one `link` even on a full disk.
//!
//! A kit is a claim file that is locked and written but has no epoch yet, a socket that listens already, and the path
//! of a queue database that the store makes beside it. Peers that connect before the claim wait in the backlog.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use paceline_proto::{
    id::{Epoch, Nonce},
    message::KitAddress,
};

use crate::{
    claim::{ClaimBody, inspect_claim, list_claims},
    dirs::{StateDir, socket_name},
    failpoint::hit,
    fence::OwnedClaim,
    lock,
    os::FileId,
    socket::Bound,
};

/// A kit could not be made. Whatever had been made of it is removed again.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    /// The nonce's file names are in use. A retry with another nonce helps.
    #[error("make a kit: the name {} is in use", .0.display())]
    NameTaken(PathBuf),
    /// The file system refused. A retry helps once its cause (full disk, descriptors, permissions) is gone.
    #[error("make a kit: cannot {doing}: {source}")]
    Io {
        /// The step that failed.
        doing: &'static str,
        /// How.
        source: io::Error,
    },
}

/// The claim was not made; the kit comes back, ready for another epoch.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Somebody else owns the epoch. Look at the group again before the next attempt.
    #[error("claim the epoch: it is claimed already")]
    Exists(Box<Kit>),
    /// The file system refused, and the epoch is not ours. A retry may help.
    #[error("claim the epoch: {source}")]
    Io {
        /// The kit.
        kit: Box<Kit>,
        /// How it failed.
        source: io::Error,
    },
}

/// A kit that is not linked. Dropping it removes its claim file, its socket and its database (close that before).
#[derive(Debug)]
pub struct Kit {
    dir: StateDir,
    body: ClaimBody,
    /// A forked child that drops this value must leave the files to its parent.
    pid: u32,
    parts: Option<Parts>,
}

#[derive(Debug)]
struct Parts {
    file: File,
    id: FileId,
    bound: Bound,
    socket: FileId,
}

impl Kit {
    /// Makes the kit named by the body's nonce: claim file in `kits/`, locked before anybody can link it, its content
    /// durable; socket bound and listening. Blocks on `fsync`; meant to be done off the takeover path.
    ///
    /// Needs no tokio runtime.
    ///
    /// # Errors
    /// [`KitError`]; nothing is left behind.
    pub fn make(dir: &StateDir, body: ClaimBody) -> Result<Self, KitError> {
        dir.sync_parents().map_err(|source| KitError::Io { doing: "sync the directory", source })?;
        let path = dir.kit(body.nonce);
        let file = lock::create_locked(&path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KitError::NameTaken(path.clone()),
            _ => KitError::Io { doing: "create the claim file", source },
        })?;
        hit("kit_locked");
        match Self::fill(dir, &body, file) {
            Ok(parts) => Ok(Self { dir: dir.clone(), body, pid: std::process::id(), parts: Some(parts) }),
            Err(error) => {
                forget(&path);
                Err(error)
            }
        }
    }

    fn fill(dir: &StateDir, body: &ClaimBody, mut file: File) -> Result<Parts, KitError> {
        let id =
            FileId::of(&file).map_err(|source| KitError::Io { doing: "look at the claim file", source })?;
        file.write_all(body.to_text().as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|source| KitError::Io { doing: "write the claim file", source })?;
        hit("kit_written");
        let path = dir.socket(&body.socket);
        let bound = Bound::bind(&path).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => KitError::NameTaken(path.clone()),
            _ => KitError::Io { doing: "bind the socket", source },
        })?;
        hit("kit_bound");
        match FileId::at(&path) {
            Ok(socket) => Ok(Parts { file, id, bound, socket }),
            Err(source) => Err(KitError::Io { doing: "find the socket", source }),
        }
    }

    /// What the claim will say.
    pub fn body(&self) -> &ClaimBody {
        &self.body
    }

    /// The nonce.
    pub fn nonce(&self) -> Nonce {
        self.body.nonce
    }

    /// What an heir tells the owner about its kit.
    pub fn address(&self) -> KitAddress {
        KitAddress { socket: self.body.socket.clone(), nonce: self.body.nonce }
    }

    /// Where the kit's queue database belongs. The store makes it.
    pub fn database(&self) -> PathBuf {
        self.dir.root().join(&self.body.database)
    }

    /// Claims `epoch`: a hard link, then the removal of the kit's own name. Confirm it with [`OwnedClaim::confirm`]
    /// before adopting.
    ///
    /// # Errors
    /// [`LinkError`] gives the kit back; the epoch is not ours.
    pub fn link(mut self, epoch: Epoch) -> Result<(OwnedClaim, Bound), LinkError> {
        let (kit, claim) = (self.dir.kit(self.body.nonce), self.dir.claim(epoch));
        if let Err(source) = fs::hard_link(&kit, &claim) {
            let ours = self.parts.as_ref().is_some_and(|parts| parts.id.is_at(&claim));
            if !ours && source.kind() == io::ErrorKind::AlreadyExists {
                return Err(LinkError::Exists(Box::new(self)));
            }
            // A file system may report a failure and have made the link all the same.
            if !ours {
                return Err(LinkError::Io { kit: Box::new(self), source });
            }
        }
        let Some(Parts { file, id, bound, socket }) = self.parts.take() else {
            let source = io::Error::other("the kit was used already");
            return Err(LinkError::Io { kit: Box::new(self), source });
        };
        hit("linked_twice");
        // Collectors take a name that stays behind away once the claim's owner is gone.
        forget(&kit);
        Ok((OwnedClaim::new(self.dir.clone(), epoch, file, id, self.body.clone(), socket), bound))
    }
}

impl Drop for Kit {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        // More links than its own name: it became a claim after all, and its database belongs to a reign.
        let only_kit = parts.file.metadata().is_ok_and(|found| found.nlink() <= 1);
        if self.pid != std::process::id() || !only_kit {
            return;
        }
        if let Err(error) = remove_database(&self.database()) {
            tracing::debug!(nonce = %self.body.nonce, %error, "left the database of a kit behind");
        }
        let socket = self.dir.socket(&self.body.socket);
        if parts.socket.is_at(&socket) {
            forget(&socket);
        }
        forget(&self.dir.kit(self.body.nonce));
        // A forked child may keep the descriptor; the lock must not wait for it.
        if let Err(error) = parts.file.unlock() {
            tracing::debug!(nonce = %self.body.nonce, %error, "left the unlocking of a kit to the system");
        }
    }
}

/// Removes what dead processes left: kits nobody holds, and sockets that no kit and no claim names. Returns the names
/// of the kits. May run while the group lives and in several sessions at once.
///
/// `may_delete_database` is asked about each dead kit's database that exists, and says `true` only if that has no
/// `complete` mark; on `false` the whole kit stays.
///
/// # Errors
/// The first failure, after all others were tried. A retry is safe.
pub fn collect_kits(
    dir: &StateDir,
    mut may_delete_database: impl FnMut(&Path) -> bool,
) -> io::Result<Vec<OsString>> {
    let mut collected = Vec::new();
    let mut failed = None;
    for entry in fs::read_dir(dir.kits())? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let nonce = name.to_str().and_then(|name| name.parse::<Nonce>().ok());
        let removed = lock::while_free(&path, || {
            if let Some(nonce) = nonce {
                let database = dir.database(nonce);
                if database.try_exists()? && !may_delete_database(&database) {
                    return Ok(false);
                }
                remove_database(&database)?;
                lock::remove(&dir.socket(&socket_name(nonce)))?;
            }
            // The name goes last: a collector that dies on the way leaves the kit to the next one.
            lock::remove(&path)
        });
        match removed {
            Ok(Some(true)) => collected.push(name),
            Ok(Some(false) | None) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    collect_sockets(dir)?;
    collected.sort_unstable();
    failed.map_or(Ok(collected), Err)
}

/// **Invariant:** the socket is listed before the names that hold it. A kit's file exists before its socket and until
/// its claim does, so a socket that had a holder when it was listed is found with one in the later listings.
fn collect_sockets(dir: &StateDir) -> io::Result<()> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir(dir.sockets())? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            sockets.push(entry.file_name());
        }
    }
    let mut held = BTreeSet::new();
    for entry in fs::read_dir(dir.kits())? {
        let name = entry?.file_name();
        let nonce = name.to_str().and_then(|name| name.parse().ok());
        // A kit's socket follows from its nonce; a probe's has the name of its file.
        held.insert(nonce.map_or(name, |nonce| socket_name(nonce).into()));
    }
    for epoch in list_claims(dir)? {
        let seen = inspect_claim(dir, epoch);
        match seen.body {
            Some(body) => held.insert(body.socket.into()),
            // Its socket could be any of them.
            None if !seen.lock.is_free() => return Ok(()),
            None => false,
        };
    }
    for name in sockets.into_iter().filter(|name| !held.contains(name)) {
        lock::remove(&dir.sockets().join(name))?;
    }
    Ok(())
}

/// The database goes before its log: a log without a database is nothing, a database without its log is wrong.
fn remove_database(path: &Path) -> io::Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        lock::remove(Path::new(&name))?;
    }
    Ok(())
}

/// Removes a name whose staying behind harms nobody.
fn forget(path: &Path) {
    if let Err(error) = lock::remove(path) {
        tracing::debug!(path = %path.display(), %error, "left a file to the collectors");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixStream};

    use super::*;
    use crate::{
        claim::tests::{body, state_dir},
        lock::LockState,
    };

    fn count(path: PathBuf) -> usize {
        fs::read_dir(path).unwrap().count()
    }

    fn yes(_: &Path) -> bool {
        true
    }

    #[test]
    fn a_kit_is_locked_written_and_listening_before_it_is_linked() {
        let (_base, dir) = state_dir();
        let kit = Kit::make(&dir, body(0xab)).unwrap();
        assert_eq!(lock::test_at(&dir.kit(Nonce(0xab))), LockState::Held);
        assert_eq!(fs::read_to_string(dir.kit(Nonce(0xab))).unwrap(), kit.body().to_text());
        let socket = dir.socket(&kit.address().socket);
        assert_eq!(fs::symlink_metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&socket).unwrap();
    }

    #[test]
    fn linking_makes_the_claim_and_takes_the_kit_away() {
        let (_base, dir) = state_dir();
        let (owner, _bound) = Kit::make(&dir, body(0xab)).unwrap().link(Epoch(3)).unwrap();
        assert_eq!((owner.epoch(), owner.nonce()), (Epoch(3), Nonce(0xab)));
        assert_eq!(count(dir.kits()), 0);
        let seen = inspect_claim(&dir, Epoch(3));
        assert_eq!(seen.body.as_ref(), Some(owner.body()));
        assert_eq!(seen.lock, LockState::Held);
        assert_eq!(owner.confirm(), Ok(()));
    }

    #[test]
    fn a_lost_race_gives_the_kit_back() {
        let (_base, dir) = state_dir();
        let _first = Kit::make(&dir, body(1)).unwrap().link(Epoch(1)).unwrap();
        let kit = match Kit::make(&dir, body(2)).unwrap().link(Epoch(1)) {
            Err(LinkError::Exists(kit)) => *kit,
            other => panic!("{other:?}"),
        };
        let (second, _bound) = kit.link(Epoch(2)).unwrap();
        assert_eq!(second.nonce(), Nonce(2));
    }

    #[test]
    fn a_failed_link_gives_the_kit_back_too() {
        let (_base, dir) = state_dir();
        let kit = Kit::make(&dir, body(1)).unwrap();
        fs::rename(dir.claims(), dir.root().join("away")).unwrap();
        let kit = match kit.link(Epoch(1)) {
            Err(LinkError::Io { kit, .. }) => *kit,
            other => panic!("{other:?}"),
        };
        fs::rename(dir.root().join("away"), dir.claims()).unwrap();
        kit.link(Epoch(1)).unwrap();
    }

    #[test]
    fn a_link_that_was_made_and_reported_as_failed_is_ours() {
        let (_base, dir) = state_dir();
        let kit = Kit::make(&dir, body(1)).unwrap();
        fs::hard_link(dir.kit(Nonce(1)), dir.claim(Epoch(1))).unwrap();
        let (owner, _bound) = kit.link(Epoch(1)).unwrap();
        assert_eq!(owner.confirm(), Ok(()));
    }

    #[test]
    fn dropping_an_unlinked_kit_leaves_nothing() {
        let (_base, dir) = state_dir();
        let kit = Kit::make(&dir, body(1)).unwrap();
        let database = kit.database();
        for suffix in ["", "-wal", "-shm"] {
            fs::write(format!("{}{suffix}", database.display()), b"").unwrap();
        }
        drop(kit);
        assert_eq!((count(dir.kits()), count(dir.sockets())), (0, 0));
        assert!(fs::read_dir(dir.root()).unwrap().all(|entry| entry.unwrap().file_type().unwrap().is_dir()));
    }

    #[test]
    fn dropping_a_kit_leaves_what_is_not_its_own() {
        let (_base, dir) = state_dir();
        let linked = Kit::make(&dir, body(1)).unwrap();
        fs::write(linked.database(), b"").unwrap();
        fs::hard_link(dir.kit(Nonce(1)), dir.claim(Epoch(1))).unwrap();
        let database = linked.database();
        drop(linked);
        assert!(database.exists(), "it is a claim's database");

        let moved = Kit::make(&dir, body(2)).unwrap();
        let socket = dir.socket(&moved.address().socket);
        fs::remove_file(&socket).unwrap();
        fs::write(&socket, b"another").unwrap();
        drop(moved);
        assert!(socket.exists(), "the socket's name is another's");
    }

    #[test]
    fn a_nonce_in_use_is_refused_and_its_owner_untouched() {
        let (_base, dir) = state_dir();
        let _kit = Kit::make(&dir, body(7)).unwrap();
        assert!(
            matches!(Kit::make(&dir, body(7)), Err(KitError::NameTaken(path)) if path == dir.kit(Nonce(7)))
        );
        let same_short = 7 | 1 << 64;
        let taken = Kit::make(&dir, body(same_short));
        assert!(matches!(taken, Err(KitError::NameTaken(path)) if path == dir.socket("00000007.sock")));
        assert_eq!((count(dir.kits()), count(dir.sockets())), (1, 1));
        UnixStream::connect(dir.socket("00000007.sock")).unwrap();
    }

    /// What a killed process leaves: the names stay, the lock is free.
    fn abandon(dir: &StateDir, nonce: u128) {
        let kit = Kit::make(dir, body(nonce)).unwrap();
        fs::hard_link(dir.kit(Nonce(nonce)), dir.root().join("spare")).unwrap();
        drop(kit);
        fs::remove_file(dir.root().join("spare")).unwrap();
    }

    #[test]
    fn only_dead_kits_are_collected() {
        let (_base, dir) = state_dir();
        let alive = Kit::make(&dir, body(1)).unwrap();
        abandon(&dir, 2);
        fs::write(dir.database(Nonce(2)), b"").unwrap();
        assert_eq!(count(dir.sockets()), 2);
        assert_eq!(collect_kits(&dir, yes).unwrap(), [OsString::from(Nonce(2).to_string())]);
        assert!(!dir.database(Nonce(2)).exists());
        assert_eq!((count(dir.kits()), count(dir.sockets())), (1, 1));
        alive.link(Epoch(1)).unwrap();
    }

    #[test]
    fn a_kit_whose_database_is_complete_stays() {
        let (_base, dir) = state_dir();
        abandon(&dir, 2);
        fs::write(dir.database(Nonce(2)), b"").unwrap();
        let mut asked = Vec::new();
        let collected = collect_kits(&dir, |path| {
            asked.push(path.to_owned());
            false
        });
        assert!(collected.unwrap().is_empty());
        assert_eq!(asked, [dir.database(Nonce(2))]);
        assert!(dir.kit(Nonce(2)).exists() && dir.database(Nonce(2)).exists());
    }

    #[test]
    fn sockets_stay_while_a_claim_names_them() {
        let (_base, dir) = state_dir();
        let (owner, _bound) = Kit::make(&dir, body(1)).unwrap().link(Epoch(1)).unwrap();
        collect_kits(&dir, yes).unwrap();
        assert!(owner.socket_is_in_place());
        fs::remove_file(dir.claim(Epoch(1))).unwrap();
        collect_kits(&dir, yes).unwrap();
        assert_eq!(count(dir.sockets()), 0);
    }

    #[test]
    fn sockets_stay_while_the_owner_of_a_claim_is_unknown() {
        let (_base, dir) = state_dir();
        let (owner, _bound) = Kit::make(&dir, body(1)).unwrap().link(Epoch(1)).unwrap();
        fs::write(dir.claim(Epoch(1)), b"").unwrap();
        collect_kits(&dir, yes).unwrap();
        assert!(owner.socket_is_in_place());
        drop(owner);
        collect_kits(&dir, yes).unwrap();
        assert_eq!(count(dir.sockets()), 0, "its owner is gone, whoever it was");
    }

    #[test]
    fn leftovers_that_are_no_kits_are_collected() {
        let (_base, dir) = state_dir();
        fs::write(dir.kits().join("probe-1-1"), b"").unwrap();
        drop(std::os::unix::net::UnixListener::bind(dir.socket("probe-1-1")).unwrap());
        collect_kits(&dir, yes).unwrap();
        assert_eq!((count(dir.kits()), count(dir.sockets())), (0, 0));
    }
}
