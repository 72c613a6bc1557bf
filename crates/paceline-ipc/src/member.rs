//! Proof that a session lives: a locked file of its own, for the list of members.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
};

use paceline_proto::{id::SessionId, message::Rank};

use crate::{
    claim::for_people,
    dirs::StateDir,
    lock::{self, LockState},
    os::no_follow,
    process::ProcessMark,
};

/// Longest description that is read; one that this crate wrote is far shorter.
const ABOUT_MAX: u64 = 8 << 10;

/// Held for as long as the session lives. Dropping it shows the session's death; [`SessionLock::leave`] also takes its
/// file away.
#[derive(Debug)]
pub struct SessionLock {
    dir: StateDir,
    session: SessionId,
    file: File,
    pid: u32,
    /// What is written into it.
    about: String,
}

impl SessionLock {
    /// Creates and locks the file of a new session. Must be done before the session says Hello to anybody.
    ///
    /// # Errors
    /// `AlreadyExists` where the id is in use (nothing changed; take another id), otherwise as the file system.
    pub fn hold(dir: &StateDir, session: SessionId) -> io::Result<Self> {
        let file = lock::create_locked(&dir.session(session))?;
        Ok(Self { dir: dir.clone(), session, file, pid: std::process::id(), about: String::new() })
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Writes into the file who the session is, for people who look when nobody answers.
    ///
    /// # Errors
    /// As `write`. The lock is held in any case.
    pub fn describe(&mut self, about: &SessionAbout) -> io::Result<()> {
        self.about = about.to_text();
        self.file.write_all(self.about.as_bytes())
    }

    /// Makes the file anew where somebody removed it: without it the session would be taken for dead.
    ///
    /// # Errors
    /// As [`SessionLock::hold`] and [`SessionLock::describe`].
    pub fn keep(&mut self) -> io::Result<()> {
        let path = self.dir.session(self.session);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found.map(drop),
        }
        self.file = lock::create_locked(&path)?;
        self.file.write_all(self.about.as_bytes())
    }

    /// Removes the file and then releases the lock.
    ///
    /// # Errors
    /// As `unlink`. The lock is released in any case, and the file left to collectors.
    pub fn leave(self) -> io::Result<()> {
        lock::remove(&self.dir.session(self.session)).map(drop)
    }
}

/// Who a session is, as its file says it. For people; nothing is decided by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionAbout {
    /// Its process.
    pub process: ProcessMark,
    /// A name for people.
    pub label: String,
    /// Build of its binary.
    pub build: String,
    /// Whether it leads when needed.
    pub rank: Rank,
}

impl SessionAbout {
    fn to_text(&self) -> String {
        let ProcessMark { pid, start_time, boot_id } = self.process;
        let rank = match self.rank {
            Rank::Observer => "observer",
            Rank::Candidate => "candidate",
            Rank::Preferred => "preferred",
        };
        let (label, build) = (for_people(&self.label), for_people(&self.build));
        format!(
            "pid={pid}\nstart_time={start_time}\nboot_id={boot_id:032x}\nlabel={label}\nbuild={build}\nrank={rank}\n"
        )
    }

    fn from_text(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            lines.filter(|(found, _)| *found == key).map(|(_, value)| value).next()
        };
        Some(Self {
            process: ProcessMark {
                pid: value("pid")?.parse().ok()?,
                start_time: value("start_time")?.parse().ok()?,
                boot_id: u128::from_str_radix(value("boot_id")?, 16).ok()?,
            },
            label: value("label")?.to_owned(),
            build: value("build")?.to_owned(),
            rank: match value("rank")? {
                "observer" => Rank::Observer,
                "candidate" => Rank::Candidate,
                "preferred" => Rank::Preferred,
                _ => return None,
            },
        })
    }
}

/// Who the session is, if its file says it.
pub fn about(dir: &StateDir, session: SessionId) -> Option<SessionAbout> {
    let file = no_follow().read(true).open(dir.session(session)).ok()?;
    let mut text = String::new();
    file.take(ABOUT_MAX).read_to_string(&mut text).ok()?;
    SessionAbout::from_text(&text)
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
    fn a_session_says_who_it_is() {
        let (_base, dir) = state_dir();
        let about = SessionAbout {
            process: ProcessMark::own(),
            label: "editor\n".to_owned(),
            build: "1.2.3".to_owned(),
            rank: Rank::Preferred,
        };
        let mut held = SessionLock::hold(&dir, SessionId(5)).unwrap();
        assert_eq!(super::about(&dir, SessionId(5)), None);
        held.describe(&about).unwrap();
        assert_eq!(
            super::about(&dir, SessionId(5)),
            Some(SessionAbout { label: "editor ".to_owned(), ..about })
        );
        assert_eq!(super::about(&dir, SessionId(6)), None);
    }

    #[test]
    fn a_file_that_somebody_removed_is_made_anew() {
        let (_base, dir) = state_dir();
        let about = SessionAbout {
            process: ProcessMark::own(),
            label: "editor".to_owned(),
            build: "1.2.3".to_owned(),
            rank: Rank::Candidate,
        };
        let mut held = SessionLock::hold(&dir, SessionId(5)).unwrap();
        held.describe(&about).unwrap();
        held.keep().unwrap();
        fs::remove_dir_all(dir.sessions()).unwrap();
        assert!(held.keep().is_err() && !session_alive(&dir, SessionId(5)));
        dir.restore().unwrap();
        held.keep().unwrap();
        assert!(session_alive(&dir, SessionId(5)));
        assert_eq!(super::about(&dir, SessionId(5)), Some(about));
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
