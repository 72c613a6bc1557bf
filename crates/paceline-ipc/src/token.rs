//! The file of a token that rotates, and the lock on its use. What stands in it is opaque here.
//!
//! **Invariant:** who uses a token holds its lock from before the use is on record until its outcome is, or dies. The lock
//! file is never removed, so there is one lock.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use crate::{
    dirs::StateDir,
    lock::remove,
    os::{self, FileId, no_follow},
    process::{ProcessMark, is_stopped},
};

/// Longest record: a few tokens with what belongs to them.
const RECORD_MAX: u64 = 64 << 10;
/// Names of tokens are names of resources and begin with a letter or a digit; these are of no token.
const LOCK_PREFIX: &str = ".lock-";
const NEW_PREFIX: &str = ".new-";

/// A token's place in the group's directory.
#[derive(Debug, Clone)]
pub struct TokenFile {
    dir: StateDir,
    name: String,
}

/// The right to use a token. Given up when dropped, or with its process.
#[derive(Debug)]
pub struct TokenLock {
    file: File,
    id: FileId,
    token: TokenFile,
}

/// Who holds a token's lock, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenHolder {
    /// Its process.
    pub pid: u32,
    /// Whether it was seen stopped.
    pub stopped: bool,
}

impl TokenFile {
    /// The file of the token `name`.
    ///
    /// # Errors
    /// Where the name could be no file of the directory.
    pub fn new(dir: &StateDir, name: &str) -> io::Result<Self> {
        let odd = name.is_empty() || name.len() > 200 || name.starts_with('.') || name.contains(['/', '\0']);
        if odd {
            let why = format!("{name:?} cannot be the name of a token");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        Ok(Self { dir: dir.clone(), name: name.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.dir.tokens().join(&self.name)
    }

    /// What stands in it; `None` where there is nothing yet.
    ///
    /// # Errors
    /// As the file system; also when the file is not this user's own, or open to others.
    pub fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match no_follow().read(true).open(self.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = file.metadata()?;
        if found.uid() != os::own_uid() || found.mode() & 0o077 != 0 {
            let why = format!("{} is not this user's alone (chmod 600)", self.path().display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let mut bytes = Vec::new();
        file.take(RECORD_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > RECORD_MAX {
            return Err(too_long());
        }
        Ok(Some(bytes))
    }

    /// Makes durable what [`TokenFile::read`] found: whoever wrote it may have died in between.
    ///
    /// # Errors
    /// As the file system.
    pub fn sync(&self) -> io::Result<()> {
        os::sync_dir(&self.dir.tokens())
    }

    /// Takes the lock if nobody has it. Never waits.
    ///
    /// # Errors
    /// As the file system. Nothing changed but for the file of the lock.
    pub fn try_lock(&self) -> io::Result<Option<TokenLock>> {
        let path = self.lock_path();
        let mut file = no_follow().create(true).truncate(false).read(true).write(true).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let id = FileId::of(&file)?;
        if !id.is_at(&path) {
            return Ok(None);
        }
        let ProcessMark { pid, start_time, boot_id } = ProcessMark::own();
        file.set_len(0)?;
        write!(file, "{pid} {start_time} {boot_id:032x}")?;
        Ok(Some(TokenLock { file, id, token: self.clone() }))
    }

    /// Who holds the lock, or held it last.
    pub fn holder(&self) -> Option<TokenHolder> {
        let text = fs::read_to_string(self.lock_path()).ok()?;
        let mut words = text.split(' ');
        let mark = ProcessMark {
            pid: words.next()?.parse().ok()?,
            start_time: words.next()?.parse().ok()?,
            boot_id: u128::from_str_radix(words.next()?, 16).ok()?,
        };
        Some(TokenHolder { pid: mark.pid, stopped: is_stopped(&mark) == Some(true) })
    }

    fn lock_path(&self) -> PathBuf {
        self.dir.tokens().join(format!("{LOCK_PREFIX}{}", self.name))
    }
}

impl TokenLock {
    /// Whether the lock is still the one that others look at: the directory was neither replaced nor restored.
    pub fn is_in_place(&self) -> bool {
        self.id.is_at(&self.token.lock_path()) && self.token.dir.is_in_place()
    }

    /// Puts a record in the place of the one before. When this returns it is durable.
    ///
    /// # Errors
    /// As the file system. The old record or the new one stands there, whole.
    pub fn replace(&self, record: &[u8]) -> io::Result<()> {
        if record.len() as u64 > RECORD_MAX {
            return Err(too_long());
        }
        let tokens = self.token.dir.tokens();
        let new = tokens.join(format!("{NEW_PREFIX}{}", self.token.name));
        // Of somebody who died over it.
        remove(&new)?;
        let mut file = no_follow().write(true).create_new(true).open(&new)?;
        file.write_all(record)?;
        file.sync_all()?;
        fs::rename(&new, self.token.path())?;
        self.token.dir.sync_parents()?;
        os::sync_dir(&tokens)
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the record has more than {RECORD_MAX} bytes"))
}

impl Drop for TokenLock {
    fn drop(&mut self) {
        // Closing the file unlocks it too, but a child of a fork may still have it open.
        if let Err(error) = self.file.unlock() {
            tracing::debug!(%error, "left the unlocking of a token to the system");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::claim::tests::state_dir;

    #[test]
    fn a_record_is_read_as_it_was_written_last_and_is_nobody_elses() {
        let (_base, dir) = state_dir();
        let token = TokenFile::new(&dir, "login").unwrap();
        assert_eq!(token.read().unwrap(), None);
        let lock = token.try_lock().unwrap().unwrap();
        lock.replace(b"one").unwrap();
        lock.replace(b"two").unwrap();
        token.sync().unwrap();
        assert_eq!(token.read().unwrap().as_deref(), Some(&b"two"[..]));
        for entry in fs::read_dir(dir.tokens()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        fs::set_permissions(token.path(), fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(token.read().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        fs::remove_file(token.path()).unwrap();
        symlink("elsewhere", token.path()).unwrap();
        assert!(token.read().is_err(), "a link is not followed");
    }

    #[test]
    fn one_holds_the_lock_and_is_named() {
        let (_base, dir) = state_dir();
        let token = TokenFile::new(&dir, "login").unwrap();
        let lock = token.try_lock().unwrap().unwrap();
        assert!(token.try_lock().unwrap().is_none());
        assert_eq!(token.holder().unwrap(), TokenHolder { pid: std::process::id(), stopped: false });
        assert!(TokenFile::new(&dir, "login.eu").unwrap().try_lock().unwrap().is_some(), "another token's");
        drop(lock);
        assert!(token.try_lock().unwrap().is_some());
    }

    #[test]
    fn a_lock_whose_directory_was_replaced_is_not_in_place() {
        let (_base, dir) = state_dir();
        let lock = TokenFile::new(&dir, "login").unwrap().try_lock().unwrap().unwrap();
        assert!(lock.is_in_place());
        let away = dir.root().join("away");
        fs::rename(dir.tokens(), &away).unwrap();
        assert!(!lock.is_in_place());
        fs::rename(&away, dir.tokens()).unwrap();
        assert!(lock.is_in_place());
    }

    #[test]
    fn what_a_dead_writer_left_is_written_over_and_a_record_has_a_bound() {
        let (_base, dir) = state_dir();
        let token = TokenFile::new(&dir, "login").unwrap();
        fs::write(dir.tokens().join(".new-login"), b"half").unwrap();
        let lock = token.try_lock().unwrap().unwrap();
        lock.replace(&vec![b'x'; RECORD_MAX as usize]).unwrap();
        assert_eq!(token.read().unwrap().map(|bytes| bytes.len() as u64), Some(RECORD_MAX));
        let more = vec![b'x'; RECORD_MAX as usize + 1];
        assert_eq!(lock.replace(&more).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(token.read().is_ok(), "the one before stays");
        fs::write(token.path(), more).unwrap();
        assert_eq!(token.read().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let (_base, dir) = state_dir();
        for name in ["", ".lock-login", "..", "a/b", "a\0b"] {
            assert!(TokenFile::new(&dir, name).is_err(), "{name:?}");
        }
    }
}
