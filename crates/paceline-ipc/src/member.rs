//! Proof that a session lives: a locked file of its own, for the list of members.

use std::{
    fs::{self, File},
    io,
};

use paceline_proto::id::SessionId;

use crate::{
    dirs::StateDir,
    lock::{self, LockState},
};

/// Held for as long as the session lives. Dropping it shows the session's death; [`SessionLock::leave`] also takes its
/// file away.
#[derive(Debug)]
pub struct SessionLock {
    dir: StateDir,
    session: SessionId,
    file: File,
    pid: u32,
}

impl SessionLock {
    /// Creates and locks the file of a new session. Must be done before the session says Hello to anybody.
    ///
    /// # Errors
    /// `AlreadyExists` where the id is in use (nothing changed; take another id), otherwise as the file system.
    pub fn hold(dir: &StateDir, session: SessionId) -> io::Result<Self> {
        let file = lock::create_locked(&dir.session(session))?;
        Ok(Self { dir: dir.clone(), session, file, pid: std::process::id() })
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Removes the file and then releases the lock.
    ///
    /// # Errors
    /// As `unlink`. The lock is released in any case, and the file left to collectors.
    pub fn leave(self) -> io::Result<()> {
        lock::remove(&self.dir.session(self.session)).map(drop)
    }
}

impl Drop for SessionLock {
    fn drop(&mut self) {
        // A forked child shares the lock with its parent and must not end it; the parent must not wait for the child.
        if self.pid == std::process::id()
            && let Err(error) = self.file.unlock()
        {
            tracing::debug!(session = %self.session, %error, "left the unlocking of a session to the system");
        }
    }
}

/// Whether the session may still live. `false` is proof: it left, or its process ended. Where that cannot be tested the
/// answer is `true`.
pub fn session_alive(dir: &StateDir, session: SessionId) -> bool {
    match lock::test_at(&dir.session(session)) {
        LockState::Free | LockState::Missing => false,
        LockState::Held | LockState::Unreadable(_) => true,
    }
}

/// The sessions that may live, ascending.
///
/// # Errors
/// As `readdir`.
pub fn live_sessions(dir: &StateDir) -> io::Result<Vec<SessionId>> {
    let mut alive = Vec::new();
    for entry in fs::read_dir(dir.sessions())? {
        let name = entry?.file_name();
        let session = name.to_str().and_then(|name| name.parse::<SessionId>().ok());
        alive.extend(session.filter(|session| session_alive(dir, *session)));
    }
    alive.sort_unstable();
    Ok(alive)
}

/// Removes the files of sessions that are gone; returns them. May run in several sessions at once.
///
/// # Errors
/// The first failure, after all others were tried: one file that cannot be read does not keep the rest. A retry is
/// safe.
pub fn collect_sessions(dir: &StateDir) -> io::Result<Vec<SessionId>> {
    let mut collected = Vec::new();
    let mut failed = None;
    for entry in fs::read_dir(dir.sessions())? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(session) = name.to_str().and_then(|name| name.parse::<SessionId>().ok()) else { continue };
        let path = entry.path();
        match lock::while_free(&path, || lock::remove(&path)) {
            Ok(Some(true)) => collected.push(session),
            Ok(Some(false) | None) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    collected.sort_unstable();
    failed.map_or(Ok(collected), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::tests::state_dir;

    #[test]
    fn a_session_lives_as_long_as_its_lock() {
        let (_base, dir) = state_dir();
        let id = SessionId(5);
        assert!(!session_alive(&dir, id));
        let held = SessionLock::hold(&dir, id).unwrap();
        let _inherited = held.file.try_clone().unwrap();
        assert!(session_alive(&dir, id));
        assert_eq!(SessionLock::hold(&dir, id).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop(held);
        assert!(!session_alive(&dir, id));
        assert!(dir.session(id).exists(), "only leaving removes the file");
    }

    #[test]
    fn leaving_takes_the_file_away() {
        let (_base, dir) = state_dir();
        SessionLock::hold(&dir, SessionId(5)).unwrap().leave().unwrap();
        assert!(!dir.session(SessionId(5)).exists());
    }

    #[test]
    fn a_session_that_cannot_be_tested_may_live() {
        let (_base, dir) = state_dir();
        std::os::unix::fs::symlink("nowhere", dir.session(SessionId(5))).unwrap();
        assert!(session_alive(&dir, SessionId(5)));
    }

    #[test]
    fn only_the_dead_are_collected() {
        let (_base, dir) = state_dir();
        let alive = SessionLock::hold(&dir, SessionId(1)).unwrap();
        drop(SessionLock::hold(&dir, SessionId(2)).unwrap());
        fs::write(dir.sessions().join("notes"), b"").unwrap();
        assert_eq!(live_sessions(&dir).unwrap(), [SessionId(1)]);
        assert_eq!(collect_sessions(&dir).unwrap(), [SessionId(2)]);
        assert!(session_alive(&dir, alive.session()));
        assert!(dir.sessions().join("notes").exists());
    }

    #[test]
    fn one_bad_file_does_not_keep_the_rest() {
        let (_base, dir) = state_dir();
        std::os::unix::fs::symlink("nowhere", dir.session(SessionId(1))).unwrap();
        drop(SessionLock::hold(&dir, SessionId(0)).unwrap());
        drop(SessionLock::hold(&dir, SessionId(2)).unwrap());
        assert!(collect_sessions(&dir).is_err());
        assert!(!dir.session(SessionId(0)).exists() && !dir.session(SessionId(2)).exists());
    }
}
