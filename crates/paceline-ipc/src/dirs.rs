//! The directory a group lives in, and the paths in it.
//!
//! `S` is `<override>/<group>/`, or `<home>/.local/state/paceline/<group>/` with the home of the **user database**. Neither
//! `$HOME` nor `$XDG_STATE_HOME` is read: a cron job, a sandbox and a desktop session would silently form two groups.
//! A home on a file system that other machines may share moves `S` to `/var/tmp/paceline-<uid>/<group>/`; an override
//! there is refused, because whoever named it meant it.

use std::{
    fmt,
    fs::{self, File},
    io,
    os::unix::{fs::MetadataExt, net::UnixListener},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use paceline_proto::id::{Epoch, Nonce, SessionId};

pub use crate::place::DirectoryError;
use crate::{
    group::{GroupIdentity, GroupName},
    os::{self, FileId, FileSystem},
    place::{Container, Places, check_private, create},
};

/// Longest path of a group's directory, in bytes. SQLite opens no file whose path is longer than 511 bytes; the names of
/// databases, of their logs and of drafts of both come behind it.
const ROOT_MAX: usize = 400;

const CLAIMS: &str = "claims";
const SOCKETS: &str = "s";
const KITS: &str = "kits";
const SESSIONS: &str = "sessions";
const BLOBS: &str = "blobs";
const DRAFTS: &str = "drafts";
const CACHE: &str = "cache";
const TOKENS: &str = "tokens";
const PARTS: [&str; 8] = [CLAIMS, SOCKETS, KITS, SESSIONS, BLOBS, DRAFTS, CACHE, TOKENS];

/// A group's state directory, opened and checked. Cheap to clone.
#[derive(Clone)]
pub struct StateDir(Arc<Inner>);

struct Inner {
    root: PathBuf,
    id: FileId,
    /// Held open, so that the number of the directory is not given to another one.
    _open: File,
    group: GroupIdentity,
    /// Directories above `root` that may be new, so that their entries are made durable once; innermost first.
    parents: Vec<PathBuf>,
    parents_synced: AtomicBool,
}

impl StateDir {
    /// Chooses, creates and checks the directory of a group.
    ///
    /// `state_dir` is the override that the caller read from wherever it reads such things; this library reads no
    /// environment. Directories are created with mode 0700. Blocks on the file system.
    ///
    /// # Errors
    /// [`DirectoryError`] where the directory belongs to someone else, is open to others, is a symbolic link, lies on a
    /// file system without hard links or sockets, or cannot be made.
    pub fn open(
        group: &GroupName,
        principal: Option<&str>,
        state_dir: Option<&Path>,
    ) -> Result<Self, DirectoryError> {
        Self::open_in(&Places::of_this_user(), GroupIdentity::new(group.clone(), principal), state_dir)
    }

    /// As [`StateDir::open`], but makes nothing: `None` where the group was never joined by this user.
    ///
    /// # Errors
    /// As [`StateDir::open`].
    pub fn find(
        group: &GroupName,
        principal: Option<&str>,
        state_dir: Option<&Path>,
    ) -> Result<Option<Self>, DirectoryError> {
        let identity = GroupIdentity::new(group.clone(), principal).to_string();
        let exists = containers(state_dir).iter().any(|container| container.join(&identity).is_dir());
        if exists { Self::open(group, principal, state_dir).map(Some) } else { Ok(None) }
    }

    pub(crate) fn open_in(
        places: &Places<'_>,
        group: GroupIdentity,
        state_dir: Option<&Path>,
    ) -> Result<Self, DirectoryError> {
        let Container { path, parents } = places.container(state_dir)?;
        let root = path.join(group.to_string());
        if root.as_os_str().len() > ROOT_MAX {
            let why = format!(
                "its path has {} bytes, and more than {ROOT_MAX} bytes cannot hold databases",
                root.as_os_str().len()
            );
            return Err(DirectoryError::new(&root, why, "name a state directory with a shorter path"));
        }
        for dir in std::iter::once(root.clone()).chain(PARTS.map(|part| root.join(part))) {
            create(&dir)?;
            check_private(&dir, places.uid)?;
        }
        let open = File::open(&root).map_err(|error| DirectoryError::io(&root, "open it", &error))?;
        let id = FileId::of(&open).map_err(|error| DirectoryError::io(&root, "look at it", &error))?;
        let parents_synced = AtomicBool::new(false);
        let dir = Self(Arc::new(Inner { root, id, _open: open, group, parents, parents_synced }));
        if places.kind_of(dir.root())? != FileSystem::Local {
            dir.probe()?;
        }
        Ok(dir)
    }

    /// The directory itself, `S`.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Whether the path still leads to the directory that was opened. Where it does not, newcomers form another group,
    /// which this one must not meddle with. Where that cannot be seen it is taken to be so.
    pub fn is_in_place(&self) -> bool {
        match FileId::at(&self.0.root) {
            Ok(found) => found == self.0.id,
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }

    /// Makes anew what somebody removed of the directories inside it; what was in them is not brought back.
    ///
    /// # Errors
    /// [`DirectoryError`] for the first that cannot be made.
    pub fn restore(&self) -> Result<(), DirectoryError> {
        let parts = PARTS.map(|part| self.0.root.join(part));
        // Seldom is anything missing, and a look takes no lock of the directory.
        parts.iter().filter(|part| fs::symlink_metadata(part).is_err()).try_for_each(|part| create(part))
    }

    /// The group that lives here.
    pub fn group(&self) -> &GroupIdentity {
        &self.0.group
    }

    /// `claims/`: one file per epoch.
    pub fn claims(&self) -> PathBuf {
        self.part(CLAIMS)
    }

    /// The claim of `epoch`.
    pub fn claim(&self, epoch: Epoch) -> PathBuf {
        self.claims().join(format!("{:08}", epoch.0))
    }

    /// `s/`: sockets.
    pub fn sockets(&self) -> PathBuf {
        self.part(SOCKETS)
    }

    /// The socket with this file name, as claims and kits give it.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets().join(name)
    }

    /// `kits/`: claim files that are not linked yet.
    pub fn kits(&self) -> PathBuf {
        self.part(KITS)
    }

    /// The claim file of a kit.
    pub fn kit(&self, nonce: Nonce) -> PathBuf {
        self.kits().join(nonce.to_string())
    }

    /// The queue database that belongs to the kit or claim with this nonce.
    pub fn database(&self, nonce: Nonce) -> PathBuf {
        self.0.root.join(database_name(nonce))
    }

    /// `sessions/`: one locked file per living session.
    pub fn sessions(&self) -> PathBuf {
        self.part(SESSIONS)
    }

    /// The lock file of a session.
    pub fn session(&self, session: SessionId) -> PathBuf {
        self.sessions().join(session.to_string())
    }

    /// `blobs/`: large payloads of mutations.
    pub fn blobs(&self) -> PathBuf {
        self.part(BLOBS)
    }

    /// `drafts/`: unsent work of sessions.
    pub fn drafts(&self) -> PathBuf {
        self.part(DRAFTS)
    }

    /// `cache/`: hints that may be deleted at any time.
    pub fn cache(&self) -> PathBuf {
        self.part(CACHE)
    }

    /// `tokens/`: tokens that rotate, each with its lock.
    pub fn tokens(&self) -> PathBuf {
        self.part(TOKENS)
    }

    /// The guard of a start; never removed.
    pub fn start_lock(&self) -> PathBuf {
        self.part("start.lock")
    }

    /// What a coordinator in the background has to say.
    pub fn run_log(&self) -> PathBuf {
        self.part("run.log")
    }

    /// `prefs.toml`, replaced as a whole.
    pub fn prefs(&self) -> PathBuf {
        self.part("prefs.toml")
    }

    /// Makes the names of the directory itself durable: the entries in every parent that may be new. Done once per
    /// opened directory, so that a takeover does not wait for it.
    pub(crate) fn sync_parents(&self) -> io::Result<()> {
        if self.0.parents_synced.load(Ordering::Acquire) {
            return Ok(());
        }
        os::sync_dir(self.root())?;
        for parent in &self.0.parents {
            match os::sync_dir(parent) {
                // A directory of the system that we may pass through but not open; nothing in it is new.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                synced => synced?,
            }
        }
        self.0.parents_synced.store(true, Ordering::Release);
        Ok(())
    }

    fn part(&self, name: &str) -> PathBuf {
        self.0.root.join(name)
    }

    /// Tries what claims and kits rest on: a hard link that fails where the name exists, and a socket.
    fn probe(&self) -> Result<(), DirectoryError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("probe-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (file, link) = (self.kits().join(&name), self.kits().join(format!("{name}.link")));
        let socket = self.socket(&name);
        let refused = |what: &str, error: io::Error| {
            DirectoryError::new(
                self.root(),
                format!("its file system has no usable {what}: {error}"),
                "name a state directory on a local disk",
            )
        };
        let tried = (|| {
            fs::write(&file, b"").map_err(|error| DirectoryError::io(&file, "write", &error))?;
            fs::hard_link(&file, &link).map_err(|error| refused("hard links", error))?;
            match fs::hard_link(&file, &link) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(refused("hard links", error)),
                Ok(()) => return Err(refused("hard links", io::Error::other("a name was given twice"))),
            }
            let linked = fs::symlink_metadata(&file).map_err(|error| refused("hard links", error))?;
            if linked.nlink() != 2 {
                return Err(refused("hard links", io::Error::other("links are not counted")));
            }
            let (path, _guard) = os::socket_path(&socket).map_err(|error| refused("sockets", error))?;
            UnixListener::bind(path).map(drop).map_err(|error| refused("sockets", error))
        })();
        for path in [link, file, socket] {
            if let Err(error) = crate::lock::remove(&path) {
                tracing::debug!(path = %path.display(), %error, "left a probe behind");
            }
        }
        tried
    }
}

/// Where the groups of this user may lie: the directory named, or the two that [`StateDir::open`] chooses from. None of
/// them need exist.
pub fn containers(state_dir: Option<&Path>) -> Vec<PathBuf> {
    match state_dir {
        Some(path) => vec![path.to_owned()],
        None => Places::of_this_user().possible(),
    }
}

impl fmt::Debug for StateDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StateDir").field(&self.0.root).finish()
    }
}

/// File name of the socket that belongs to a nonce. Eight digits, because socket paths are short; a clash is seen by
/// `bind` and answered with another nonce.
pub fn socket_name(nonce: Nonce) -> String {
    format!("{}.sock", nonce.short())
}

/// File name of the queue database that belongs to a nonce.
pub fn database_name(nonce: Nonce) -> String {
    format!("q-{nonce}.db")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn name(text: &str) -> GroupName {
        text.parse().unwrap()
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn open(base: &Path) -> Result<StateDir, DirectoryError> {
        StateDir::open(&name("g"), None, Some(base))
    }

    #[test]
    fn directories_are_private_and_opening_twice_finds_the_same() {
        let base = tempfile::tempdir().unwrap();
        let first = open(base.path()).unwrap();
        let second = open(base.path()).unwrap();
        assert_eq!(first.root(), base.path().join("g"));
        assert_eq!(first.root(), second.root());
        for part in ["", "claims", "s", "kits", "sessions", "blobs", "drafts", "cache"] {
            assert_eq!(mode(&first.root().join(part)), 0o700, "{part:?}");
        }
    }

    #[test]
    fn looking_for_a_group_makes_nothing() {
        let base = tempfile::tempdir().unwrap();
        assert!(StateDir::find(&name("g"), None, Some(base.path())).unwrap().is_none());
        assert!(fs::read_dir(base.path()).unwrap().next().is_none());
        let made = open(base.path()).unwrap();
        let found = StateDir::find(&name("g"), None, Some(base.path())).unwrap().unwrap();
        assert_eq!(found.root(), made.root());
    }

    #[test]
    fn a_directory_that_was_removed_is_not_the_one_that_was_made_anew() {
        let base = tempfile::tempdir().unwrap();
        let dir = open(base.path()).unwrap();
        assert!(dir.is_in_place());
        fs::remove_dir_all(dir.root()).unwrap();
        assert!(!dir.is_in_place());
        assert!(open(base.path()).unwrap().is_in_place());
        assert!(!dir.is_in_place());
    }

    #[test]
    fn a_path_just_short_enough_and_one_byte_longer() {
        let base = tempfile::tempdir().unwrap();
        let middle = base.path().join("m".repeat(200));
        fs::create_dir(&middle).unwrap();
        for (length, taken) in [(ROOT_MAX, true), (ROOT_MAX + 1, false)] {
            let rest = length - middle.as_os_str().len() - "//g".len();
            let opened = open(&middle.join("n".repeat(rest)));
            assert_eq!(opened.is_ok(), taken, "{opened:?}");
            assert!(opened.is_ok_and(|dir| dir.root().as_os_str().len() == length) == taken);
        }
    }

    #[test]
    fn paths_follow_the_reference() {
        let base = tempfile::tempdir().unwrap();
        let dir = open(base.path()).unwrap();
        let nonce = Nonce(0xabcd_0000_0000_0000_0000_0000_1234_5678);
        let short = |path: PathBuf| path.strip_prefix(dir.root()).unwrap().display().to_string();
        assert_eq!(short(dir.claim(Epoch(43))), "claims/00000043");
        assert_eq!(short(dir.claim(Epoch(123_456_789))), "claims/123456789");
        assert_eq!(short(dir.socket(&socket_name(nonce))), "s/12345678.sock");
        assert_eq!(short(dir.kit(nonce)), "kits/abcd0000000000000000000012345678");
        assert_eq!(short(dir.database(nonce)), "q-abcd0000000000000000000012345678.db");
        assert_eq!(short(dir.session(SessionId(7))), format!("sessions/{:032x}", 7));
    }

    #[test]
    fn modes_just_inside_and_just_outside() {
        for (group, container, refused) in [
            (0o700, 0o755, None),
            (0o710, 0o755, Some("open to others")),
            (0o701, 0o755, Some("open to others")),
            (0o770, 0o755, Some("open to others")),
            (0o700, 0o775, Some("others may write")),
            (0o700, 0o1777, None),
        ] {
            let base = tempfile::tempdir().unwrap();
            let dir = open(base.path()).unwrap();
            chmod(dir.root(), group);
            chmod(base.path(), container);
            match (open(base.path()), refused) {
                (Ok(_), None) => {}
                (Err(error), Some(why)) => {
                    assert!(error.why.contains(why), "{error}");
                    assert!(error.fix.contains("chmod"), "{error}");
                }
                (got, want) => panic!("{group:o} in {container:o}: {got:?}, wanted {want:?}"),
            }
        }
    }

    #[test]
    fn a_part_that_is_open_to_others_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let dir = open(base.path()).unwrap();
        chmod(&dir.claims(), 0o750);
        assert_eq!(open(base.path()).unwrap_err().path, dir.claims());
    }

    #[test]
    fn symbolic_links_are_refused_in_the_last_components() {
        let base = tempfile::tempdir().unwrap();
        let real = base.path().join("real");
        fs::create_dir(&real).unwrap();
        chmod(&real, 0o700);

        let container = base.path().join("container");
        symlink(&real, &container).unwrap();
        for spelling in ["container", "container/", "container/."] {
            assert_eq!(open(&base.path().join(spelling)).unwrap_err().path, container, "{spelling}");
        }

        let inside = base.path().join("inside");
        fs::create_dir(&inside).unwrap();
        symlink(&real, inside.join("g")).unwrap();
        let error = open(&inside).unwrap_err();
        assert!(error.why.contains("symbolic link"), "{error}");

        let dir = open(&real).unwrap();
        fs::remove_dir(dir.kits()).unwrap();
        symlink(&real, dir.kits()).unwrap();
        assert_eq!(open(&real).unwrap_err().path, dir.kits());
    }

    #[test]
    fn directories_of_another_user_are_refused() {
        if os::own_uid() != 0 {
            eprintln_skip("directories_of_another_user_are_refused");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let dir = open(base.path()).unwrap();
        std::os::unix::fs::chown(dir.root(), Some(12345), None).unwrap();
        let error = open(base.path()).unwrap_err();
        assert!(error.why.contains("12345"), "{error}");
        std::os::unix::fs::chown(base.path(), Some(12345), None).unwrap();
        assert_eq!(open(base.path()).unwrap_err().path, base.path());
    }

    #[expect(clippy::print_stderr, reason = "a skipped test is to be seen")]
    fn eprintln_skip(test: &str) {
        eprintln!("SKIPPED {test}: needs root to give a directory away");
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("g"), b"").unwrap();
        assert!(open(base.path()).unwrap_err().why.contains("not a directory"));
        assert!(open(Path::new("relative")).unwrap_err().why.contains("relative"));
        assert_eq!(open(&base.path().join("a/b")).unwrap_err().path, base.path().join("a/b"));
    }
}
