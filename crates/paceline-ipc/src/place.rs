//! The choice of the directory that holds groups, and the checks that every directory passes.

use std::{
    fs::{self, DirBuilder, Metadata},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::os::{self, FileSystem};

/// A directory cannot serve as a group's state directory. No group was joined; directories that were missing may have
/// been made. A retry helps only after `fix` was followed.
#[derive(Debug, thiserror::Error)]
#[error("use {} as state directory: {why}; {fix}", path.display())]
pub struct DirectoryError {
    /// The directory that failed its check.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
    /// What the user can do.
    pub fix: String,
}

impl DirectoryError {
    pub(crate) fn new(path: &Path, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { path: path.to_owned(), why: why.into(), fix: fix.into() }
    }

    pub(crate) fn io(path: &Path, doing: &str, error: &io::Error) -> Self {
        Self::new(path, format!("cannot {doing}: {error}"), "make it usable or name another state directory")
    }
}

/// The roots to choose from, and how a file system is recognised.
pub(crate) struct Places<'a> {
    home: &'a dyn Fn() -> io::Result<Option<PathBuf>>,
    /// Where homes of other machines' file systems are left for; anyone may write there.
    shared: &'a Path,
    pub(crate) uid: u32,
    file_system: &'a dyn Fn(&Path) -> io::Result<FileSystem>,
}

/// The directory that holds groups.
pub(crate) struct Container {
    pub(crate) path: PathBuf,
    /// What may be new: the directory itself and those above it, innermost first.
    pub(crate) parents: Vec<PathBuf>,
}

impl Places<'_> {
    /// The user of this process, the home of the user database, the file systems as they are.
    pub(crate) fn of_this_user() -> Self {
        Self {
            home: &os::home,
            shared: Path::new("/var/tmp"),
            uid: os::own_uid(),
            file_system: &os::file_system,
        }
    }

    /// Chooses, creates and checks the directory that holds groups.
    pub(crate) fn container(&self, state_dir: Option<&Path>) -> Result<Container, DirectoryError> {
        match state_dir {
            Some(path) => self.named(path),
            None => self.own(),
        }
    }

    /// Where the directory that holds groups may be if none is named.
    pub(crate) fn possible(&self) -> Vec<PathBuf> {
        let home = (self.home)().ok().flatten();
        home.map(|home| home.join(".local/state/paceline")).into_iter().chain([self.shared_path()]).collect()
    }

    fn shared_path(&self) -> PathBuf {
        self.shared.join(format!("paceline-{}", self.uid))
    }

    /// The file system that holds `path`.
    pub(crate) fn kind_of(&self, path: &Path) -> Result<FileSystem, DirectoryError> {
        (self.file_system)(path).map_err(|error| DirectoryError::io(path, "ask for its file system", &error))
    }

    /// The directory that the user named.
    fn named(&self, path: &Path) -> Result<Container, DirectoryError> {
        if !path.is_absolute() {
            let why = "it is relative, and sessions have different working directories";
            return Err(DirectoryError::new(path, why, "give the whole path"));
        }
        // A trailing slash would make the system follow a link in the last component.
        let path: &Path = &path.components().collect::<PathBuf>();
        create(path)?;
        let found = lstat_dir(path)?;
        if found.uid() != self.uid && found.uid() != 0 {
            return Err(foreign(path, found.uid()));
        }
        check_others_cannot_rename(path, &found)?;
        if let FileSystem::Network(name) = self.kind_of(path)? {
            let why = format!("it lies on {name}, which other machines may share");
            return Err(DirectoryError::new(path, why, "name a directory on a local disk"));
        }
        let parents = path.ancestors().take(2).map(Path::to_owned).collect();
        Ok(Container { path: path.to_owned(), parents })
    }

    /// `~/.local/state/paceline`, or the shared place where the home may belong to several machines.
    fn own(&self) -> Result<Container, DirectoryError> {
        let unknown = Path::new("~");
        let named = "name a state directory";
        let home = (self.home)()
            .map_err(|error| {
                DirectoryError::new(unknown, format!("the user database cannot be read: {error}"), named)
            })?
            .ok_or_else(|| {
                let why = format!("the user database has no entry for user {}", self.uid);
                DirectoryError::new(unknown, why, named)
            })?;
        if !home.is_absolute() || !home.is_dir() {
            return Err(DirectoryError::new(
                &home,
                "this home of the user database is not a directory",
                named,
            ));
        }
        match self.kind_of(&home)? {
            FileSystem::Network(_) | FileSystem::Doubtful(_) => self.shared(),
            FileSystem::Local | FileSystem::Unknown => {
                let mut parents = vec![home.clone()];
                let mut path = home;
                for part in [".local", "state", "paceline"] {
                    path.push(part);
                    create(&path)?;
                    parents.insert(0, path.clone());
                }
                check_own(&path, self.uid)?;
                // `.local` or `state` may be a link to elsewhere.
                match self.kind_of(&path)? {
                    FileSystem::Network(_) | FileSystem::Doubtful(_) => self.shared(),
                    FileSystem::Local | FileSystem::Unknown => Ok(Container { path, parents }),
                }
            }
        }
    }

    fn shared(&self) -> Result<Container, DirectoryError> {
        let path = self.shared_path();
        create(&path)?;
        check_private(&path, self.uid)?;
        let parents = vec![path.clone(), self.shared.to_owned()];
        Ok(Container { path, parents })
    }
}

/// Makes a directory of mode 0700 where there is nothing; parents must exist.
pub(crate) fn create(path: &Path) -> Result<(), DirectoryError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(DirectoryError::io(path, "create it", &error)),
    }
}

fn lstat_dir(path: &Path) -> Result<Metadata, DirectoryError> {
    let found = fs::symlink_metadata(path).map_err(|error| DirectoryError::io(path, "look at it", &error))?;
    let kind = found.file_type();
    if kind.is_symlink() {
        return Err(DirectoryError::new(path, "it is a symbolic link", "put a real directory in its place"));
    }
    if !kind.is_dir() {
        let what = if kind.is_socket() { "a socket" } else { "not a directory" };
        return Err(DirectoryError::new(path, format!("it is {what}"), "move it away"));
    }
    Ok(found)
}

fn foreign(path: &Path, owner: u32) -> DirectoryError {
    let fix = "remove it with its owner's rights or name another state directory";
    DirectoryError::new(path, format!("it belongs to user {owner}"), fix)
}

/// Someone who may rename what is inside could exchange a group under our feet.
fn check_others_cannot_rename(path: &Path, found: &Metadata) -> Result<(), DirectoryError> {
    const STICKY: u32 = 0o1000;
    let mode = found.permissions().mode();
    if mode & 0o022 != 0 && mode & STICKY == 0 {
        let fix = format!("run chmod go-w {}", path.display());
        return Err(DirectoryError::new(
            path,
            format!("others may write to it (mode {:04o})", mode & 0o7777),
            fix,
        ));
    }
    Ok(())
}

/// A real directory of ours that only we may change.
fn check_own(path: &Path, uid: u32) -> Result<Metadata, DirectoryError> {
    let found = lstat_dir(path)?;
    if found.uid() != uid {
        return Err(foreign(path, found.uid()));
    }
    check_others_cannot_rename(path, &found)?;
    Ok(found)
}

/// A real directory of ours that nobody else may even look into.
pub(crate) fn check_private(path: &Path, uid: u32) -> Result<(), DirectoryError> {
    let found = lstat_dir(path)?;
    if found.uid() != uid {
        return Err(foreign(path, found.uid()));
    }
    let mode = found.permissions().mode();
    if mode & 0o077 != 0 {
        let fix = format!("run chmod 700 {}", path.display());
        return Err(DirectoryError::new(
            path,
            format!("it is open to others (mode {:04o})", mode & 0o7777),
            fix,
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::{
        dirs::StateDir,
        group::{GroupIdentity, GroupName},
    };

    fn group() -> GroupIdentity {
        GroupIdentity::new("g".parse::<GroupName>().unwrap(), None)
    }

    struct World {
        base: tempfile::TempDir,
        kind: FileSystem,
    }

    impl World {
        fn new(kind: FileSystem) -> Self {
            let base = tempfile::tempdir().unwrap();
            fs::create_dir(base.path().join("home")).unwrap();
            fs::create_dir(base.path().join("shared")).unwrap();
            Self { base, kind }
        }

        fn home(&self) -> PathBuf {
            self.base.path().join("home")
        }

        fn shared(&self) -> PathBuf {
            self.base.path().join("shared")
        }

        /// `home` is on the file system of this world, everything else is on a local one.
        fn open(&self, state_dir: Option<&Path>) -> Result<StateDir, DirectoryError> {
            let home = self.home();
            let places = Places {
                home: &|| Ok(Some(home.clone())),
                shared: &self.shared(),
                uid: os::own_uid(),
                file_system: &|path| Ok(if path.starts_with(&home) { self.kind } else { FileSystem::Local }),
            };
            StateDir::open_in(&places, group(), state_dir)
        }
    }

    #[test]
    fn homes_of_several_machines_are_left_for_a_local_place() {
        let at_home = |world: &World| world.home().join(".local/state/paceline/g");
        let shared = |world: &World| world.shared().join(format!("paceline-{}/g", os::own_uid()));
        for (kind, local) in [
            (FileSystem::Local, true),
            (FileSystem::Unknown, true),
            (FileSystem::Network("NFS"), false),
            (FileSystem::Doubtful("FUSE"), false),
        ] {
            let world = World::new(kind);
            let want = if local { at_home(&world) } else { shared(&world) };
            assert_eq!(world.open(None).unwrap().root(), want, "{kind:?}");
        }
    }

    #[test]
    fn a_named_directory_on_a_network_is_refused_and_a_doubtful_one_tried() {
        let world = World::new(FileSystem::Network("NFS"));
        let error = world.open(Some(&world.home())).unwrap_err();
        assert!(error.why.contains("NFS"), "{error}");
        let world = World::new(FileSystem::Doubtful("9p"));
        let dir = world.open(Some(&world.home())).unwrap();
        assert_eq!(fs::read_dir(dir.kits()).unwrap().count(), 0, "the probe leaves nothing behind");
        assert_eq!(fs::read_dir(dir.sockets()).unwrap().count(), 0);
    }

    #[test]
    fn the_shared_place_is_checked_like_any_other() {
        let world = World::new(FileSystem::Network("NFS"));
        let planted = world.shared().join(format!("paceline-{}", os::own_uid()));
        symlink(world.base.path(), &planted).unwrap();
        assert_eq!(world.open(None).unwrap_err().path, planted);
    }

    #[test]
    fn users_without_a_home_are_told_what_to_do() {
        let places = Places {
            home: &|| Ok(None),
            shared: Path::new("/nonexistent"),
            uid: 7,
            file_system: &|_| Ok(FileSystem::Local),
        };
        let error = StateDir::open_in(&places, group(), None).unwrap_err();
        assert!(error.why.contains("no entry for user 7"), "{error}");
        assert!(error.fix.contains("state directory"), "{error}");
    }
}
