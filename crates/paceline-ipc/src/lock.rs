//! Locks on files: how a process shows that it lives, to everybody and for as long as the kernel keeps it.
//!
//! **Invariant:** owners take their lock before anybody can find the file under the name that matters; everybody else
//! takes a shared lock without waiting, on a descriptor of their own, so that testers never disturb each other.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::Path,
};

use crate::os::{FileId, no_follow};

/// Times a file is made again because a collector took it for an orphan in the moment between creation and lock.
const CREATE_ATTEMPTS: usize = 16;

/// What a lock says about its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockState {
    /// Nobody holds it: the owner's process has ended, or released it.
    Free,
    /// Somebody holds it: the owner's process exists, running or stopped.
    Held,
    /// There is no such file. This is **not** a free lock: it proves nothing.
    Missing,
    /// It could not be tested; the text says why. Proves nothing.
    Unreadable(String),
}

impl LockState {
    /// Whether this proves that the owner is gone.
    pub fn is_free(&self) -> bool {
        matches!(self, Self::Free)
    }
}

/// Tests the lock of an open file, and leaves it as it was.
pub(crate) fn test(file: &File) -> LockState {
    match file.try_lock_shared() {
        Ok(()) => match file.unlock() {
            Ok(()) => LockState::Free,
            Err(error) => LockState::Unreadable(error.to_string()),
        },
        Err(TryLockError::WouldBlock) => LockState::Held,
        Err(TryLockError::Error(error)) => LockState::Unreadable(error.to_string()),
    }
}

/// Tests the lock of the file at `path`.
pub(crate) fn test_at(path: &Path) -> LockState {
    match no_follow().read(true).open(path) {
        Ok(file) => test(&file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => LockState::Missing,
        Err(error) => LockState::Unreadable(error.to_string()),
    }
}

/// Creates a file that did not exist and locks it.
///
/// A collector may take the file for an orphan before the lock is on it; then it is made again.
pub(crate) fn create_locked(path: &Path) -> io::Result<File> {
    create_locked_with(path, || {})
}

/// `before_lock` is where others may come in between.
fn create_locked_with(path: &Path, mut before_lock: impl FnMut()) -> io::Result<File> {
    for _ in 0..CREATE_ATTEMPTS {
        let file = no_follow().read(true).write(true).create_new(true).open(path)?;
        before_lock();
        match file.try_lock() {
            Ok(()) if FileId::of(&file)?.is_at(path) => return Ok(file),
            Ok(()) | Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                remove(path)?;
                return Err(error);
            }
        }
        remove(path)?;
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "the new file was collected again and again"))
}

/// Runs `then` if the file's owner is gone, while no owner can appear. `None` = there is an owner, or no file.
pub(crate) fn while_free<T>(path: &Path, then: impl FnOnce() -> io::Result<T>) -> io::Result<Option<T>> {
    while_free_with(path, || {}, then)
}

/// As [`create_locked_with`].
fn while_free_with<T>(
    path: &Path,
    before_lock: impl FnOnce(),
    then: impl FnOnce() -> io::Result<T>,
) -> io::Result<Option<T>> {
    let file = match no_follow().read(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    before_lock();
    match file.try_lock_shared() {
        Ok(()) if FileId::of(&file)?.is_at(path) => then().map(Some),
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes a name that may be gone already; whether this call removed it.
pub(crate) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn testers_do_not_disturb_each_other_or_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(test_at(&path), LockState::Missing);
        let owner = create_locked(&path).unwrap();
        assert_eq!(test_at(&path), LockState::Held);
        drop(owner);
        let tester = File::open(&path).unwrap();
        tester.lock_shared().unwrap();
        assert_eq!(test_at(&path), LockState::Free, "a tester in the middle of its test is not an owner");
    }

    #[test]
    fn an_unreadable_lock_is_not_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("link");
        std::os::unix::fs::symlink("target", &path).unwrap();
        assert!(matches!(test_at(&path), LockState::Unreadable(_)));
    }

    #[test]
    fn a_name_in_use_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        File::create(&path).unwrap();
        assert_eq!(create_locked(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn free_files_are_collected_and_owned_ones_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(while_free(&path, || Ok(())).unwrap(), None, "no file");
        let owner = create_locked(&path).unwrap();
        assert_eq!(while_free(&path, || Ok(())).unwrap(), None, "owned");
        drop(owner);
        assert_eq!(while_free(&path, || remove(&path)).unwrap(), Some(true));
    }

    #[test]
    fn a_new_file_that_a_collector_took_for_an_orphan_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut collections = 3;
        let file = create_locked_with(&path, || {
            if collections > 0 {
                collections -= 1;
                assert_eq!(while_free(&path, || remove(&path)).unwrap(), Some(true));
            }
        })
        .unwrap();
        assert!(FileId::of(&file).unwrap().is_at(&path), "it has its name and its lock");
        assert_eq!(test_at(&path), LockState::Held);
    }

    #[test]
    fn a_new_file_that_a_collector_is_looking_at_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut looking = None;
        let file = create_locked_with(&path, || {
            if looking.is_none() {
                let collector = File::open(&path).unwrap();
                collector.lock_shared().unwrap();
                looking = Some(collector);
            }
        })
        .unwrap();
        assert!(FileId::of(&file).unwrap().is_at(&path));
    }

    #[test]
    fn a_file_that_is_collected_for_ever_is_an_error_at_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let made = create_locked_with(&path, || fs::remove_file(&path).unwrap());
        assert_eq!(made.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    }

    #[test]
    fn a_name_that_passed_to_another_owner_is_not_collected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        drop(create_locked(&path).unwrap());
        let mut owner = None;
        let collected = while_free_with(
            &path,
            || {
                fs::remove_file(&path).unwrap();
                owner = Some(create_locked(&path).unwrap());
            },
            || remove(&path),
        );
        assert_eq!(collected.unwrap(), None);
        assert_eq!(test_at(&path), LockState::Held);
    }
}
