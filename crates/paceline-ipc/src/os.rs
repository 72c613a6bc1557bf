//! What differs between systems. Everything else in the crate is the same on every Unix.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Longest socket path that is handed to the system as it is. The bound is 108 on Linux and 104 elsewhere, with a NUL.
const SOCKET_PATH_MAX: usize = 100;

/// Options that never follow a symbolic link in the last component; the descriptor is closed on exec.
pub(crate) fn no_follow() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()).mode(0o600);
    options
}

/// The effective user of this process.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Home of the effective user from the user database, whatever `$HOME` says; `None` = no entry.
pub(crate) fn home() -> io::Result<Option<PathBuf>> {
    let entry = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).map_err(io::Error::from)?;
    Ok(entry.map(|user| user.dir))
}

/// Makes a directory's entries durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A file as the file system knows it, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The open file.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from(&file.metadata()?))
    }

    /// The file found at `path` now; a symbolic link there is itself the file.
    ///
    /// # Errors
    /// As `lstat`; `NotFound` where there is none.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&fs::symlink_metadata(path)?))
    }

    /// Whether `path` still names this file. Any error counts as no.
    ///
    /// Meaningful while the file is held open (by whatever descriptor): only then its number is not given to another
    /// file. SQLite commits happily to a database whose name is gone, so an owner asks this before it acknowledges.
    pub fn is_at(self, path: &Path) -> bool {
        Self::at(path).is_ok_and(|found| found == self)
    }
}

impl From<&Metadata> for FileId {
    fn from(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// How far a file system can be trusted with claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// Of this machine, with hard links, locks and sockets.
    Local,
    /// May be shared by several machines: claims there would join groups of different machines.
    Network(&'static str),
    /// Depends on what is behind it.
    Doubtful(&'static str),
    /// Not in the table: to be tried.
    Unknown,
}

/// The file system that holds `path`.
pub(crate) fn file_system(path: &Path) -> io::Result<FileSystem> {
    system::file_system(path)
}

/// A path for the same socket that fits the system's bound; the guard must outlive its use.
pub(crate) fn socket_path(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok((path.to_owned(), None));
    }
    system::shorten(path)
}

#[cfg(target_os = "linux")]
mod system {
    use std::os::fd::AsRawFd;

    use super::*;

    pub(super) fn file_system(path: &Path) -> io::Result<FileSystem> {
        let magic = rustix::fs::statfs(path)?.f_type;
        // The width and sign of the field differ between architectures; the numbers have 32 bits.
        Ok(classify(magic as u32))
    }

    /// `statfs(2)` and `linux/magic.h`.
    pub(super) fn classify(magic: u32) -> FileSystem {
        match magic {
            0x0000_ef53 | 0x5846_5342 | 0x9123_683e | 0x0102_1994 | 0xf2f5_2010 | 0x2fc1_2fc1
            | 0xca45_1a4e => {
                FileSystem::Local // ext2-4, XFS, Btrfs, tmpfs, F2FS, ZFS, bcachefs
            }
            0x0000_6969 => FileSystem::Network("NFS"),
            0x0000_517b | 0xff53_4d42 | 0xfe53_4d42 => FileSystem::Network("SMB"),
            0x5346_414f | 0x6b41_4653 => FileSystem::Network("AFS"),
            0x7375_7245 => FileSystem::Network("Coda"),
            0x0000_564c => FileSystem::Network("NCP"),
            0x00c3_6400 => FileSystem::Network("Ceph"),
            0x0bd0_0bd0 => FileSystem::Network("Lustre"),
            0x7461_636f => FileSystem::Network("OCFS2"),
            0x0116_1970 => FileSystem::Network("GFS2"),
            0x4750_4653 => FileSystem::Network("GPFS"),
            0x0102_1997 => FileSystem::Doubtful("9p"),
            0x6573_5546 => FileSystem::Doubtful("FUSE"),
            0x786f_4256 => FileSystem::Doubtful("VirtualBox"),
            _ => FileSystem::Unknown,
        }
    }

    /// The system follows the descriptor's entry in `/proc` without counting the length of what is behind it.
    pub(super) fn shorten(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket needs a directory and a name"));
        };
        let mut options = OpenOptions::new();
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        let dir = options.read(true).custom_flags(flags.bits().cast_signed()).open(dir)?;
        Ok((Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name), Some(dir)))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn file_systems_of_other_machines_are_told_from_local_ones() {
            for (magic, want) in [
                (0xef53, FileSystem::Local),
                (0x0102_1994, FileSystem::Local),
                (0x6969, FileSystem::Network("NFS")),
                (0xff53_4d42, FileSystem::Network("SMB")),
                (0x0102_1997, FileSystem::Doubtful("9p")),
                (0x6573_5546, FileSystem::Doubtful("FUSE")),
                (0x794c_7630, FileSystem::Unknown), // overlayfs
            ] {
                assert_eq!(classify(magic), want, "{magic:#x}");
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::*;

    pub(super) fn file_system(_: &Path) -> io::Result<FileSystem> {
        Ok(FileSystem::Unknown)
    }

    pub(super) fn shorten(_: &Path) -> io::Result<(PathBuf, Option<File>)> {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "the path of the socket is longer than 100 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_at_its_path_until_the_name_goes_to_another() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        let file = File::create(&path).unwrap();
        let id = FileId::of(&file).unwrap();
        assert!(id.is_at(&path));
        File::create(&other).unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(!id.is_at(&path), "another file has the name");
        fs::remove_file(&path).unwrap();
        assert!(!id.is_at(&path), "nobody has the name");
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert!(!id.is_at(&path), "a link is not the file");
    }

    #[test]
    fn the_home_is_the_one_of_the_user_database() {
        let uid = own_uid().to_string();
        let database = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let entry =
            database.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|entry| entry[2] == uid);
        if let Some(entry) = entry {
            assert_eq!(home().unwrap().unwrap(), Path::new(entry[5]));
        }
    }

    #[test]
    fn short_socket_paths_stay_as_they_are_and_long_ones_shrink() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(SOCKET_PATH_MAX));
        fs::create_dir(&long).unwrap();
        for (length, short) in
            [(SOCKET_PATH_MAX - 1, true), (SOCKET_PATH_MAX, true), (SOCKET_PATH_MAX + 1, false)]
        {
            let name = "n".repeat(length - dir.path().as_os_str().len() - 1);
            let path = dir.path().join(name);
            let (used, guard) = socket_path(&path).unwrap();
            assert_eq!(used == path, short, "{length}");
            assert_eq!(guard.is_none(), short);
            assert!(used.as_os_str().len() <= SOCKET_PATH_MAX.max(path.as_os_str().len()));
        }
        let (used, _guard) = socket_path(&long.join("s")).unwrap();
        assert!(used.as_os_str().len() < SOCKET_PATH_MAX);
    }
}
