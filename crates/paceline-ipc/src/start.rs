//! The guard of a start: of many processes that find no group running, one starts it and the others find it running.

use std::{
    fs::{File, TryLockError},
    io,
};

use crate::{dirs::StateDir, os::no_follow};

/// Held while a process looks whether a group runs and starts it if not. Given up when dropped, or with its process.
#[derive(Debug)]
pub struct StartGuard(File);

impl StartGuard {
    /// Takes the guard if nobody has it. Never waits.
    ///
    /// # Errors
    /// As the file system. Nothing changed but for the empty file of the guard.
    pub fn try_take(dir: &StateDir) -> io::Result<Option<Self>> {
        // The file stays for ever: whoever removed it would let two in.
        let file = no_follow().create(true).truncate(false).write(true).open(dir.start_lock())?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for StartGuard {
    fn drop(&mut self) {
        // Closing the file unlocks it too, but a child of a fork may still have it open.
        if let Err(error) = self.0.unlock() {
            tracing::debug!(%error, "left the unlocking of a start to the system");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::tests::state_dir;

    #[test]
    fn one_has_it_until_it_is_dropped() {
        let (_base, dir) = state_dir();
        let held = StartGuard::try_take(&dir).unwrap();
        assert!(held.is_some());
        assert!(StartGuard::try_take(&dir).unwrap().is_none());
        drop(held);
        assert!(StartGuard::try_take(&dir).unwrap().is_some());
    }
}
