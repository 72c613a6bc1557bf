//! Child processes that never outlive their parent, and the directory they share.

use std::{
    cell::Cell,
    fs, io,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
};

/// Called first in a child: it dies with the parent, also when the parent is killed or the child is stopped.
///
/// Where the system has no such request, the end of standard input does the same for a child that runs.
pub fn die_with_parent() {
    #[cfg(target_os = "linux")]
    {
        // The request fails only for a signal number that does not exist.
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    }
}

/// A child of this executable, reached by the handle that started it, never by name.
#[derive(Debug)]
pub struct ChildProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    pid: Pid,
}

impl ChildProcess {
    /// Starts this executable with `args`. Each line the child writes is handed to `on_line`, and its end as `None`.
    pub fn spawn<T, F>(args: &[String], mut on_line: F) -> io::Result<Self>
    where
        T: DeserializeOwned + Send + 'static,
        F: FnMut(Option<T>) + Send + 'static,
    {
        let mut child = Command::new(std::env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C reaches the parent only, which then ends its children itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child
            .id()
            .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
            .ok_or_else(|| io::Error::other("the child has no process id"))?;
        let stdin = child.stdin.take();
        let stdout =
            child.stdout.take().ok_or_else(|| io::Error::other("the child has no standard output"))?;
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(line) = serde_json::from_str(&line) {
                    on_line(Some(line));
                }
            }
            on_line(None);
        });
        Ok(Self { child, stdin, pid })
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends one command. A child that is gone is noticed by its end, so a failure to write is no news here.
    pub async fn tell<T: Serialize>(&mut self, command: &T) {
        if let (Some(stdin), Ok(mut line)) = (&mut self.stdin, serde_json::to_vec(command)) {
            line.push(b'\n');
            let _ = stdin.write_all(&line).await;
        }
    }

    /// Sends a signal. The child was not waited for, so its process id cannot be another's.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// Whether the process was seen stopped, or `None` where that cannot be read.
    pub fn is_stopped(&self) -> Option<bool> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        Some(stat.rsplit_once(')')?.1.trim_start().starts_with(['T', 't']))
    }

    /// Memory in use, in KiB, or `None` where that cannot be read.
    pub fn resident_kib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// Waits for the end of the process.
    pub async fn ended(&mut self) -> io::Result<()> {
        self.child.wait().await.map(drop)
    }

    /// Ends the process for certain and waits for it.
    pub async fn kill(&mut self) -> io::Result<()> {
        self.child.kill().await
    }
}

/// Waits until the user interrupts the run or the system ends it; tells the exit code for that.
pub async fn interrupted() -> ExitCode {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals end the process themselves, and its children with it.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => ExitCode::from(130),
        _ = terminate.recv() => ExitCode::from(143),
    }
}

/// A private directory that is removed with all it holds.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    keep: Cell<bool>,
}

impl TempDir {
    /// Creates a directory of mode 0700 under the system's directory for temporary files.
    pub fn new(label: &str) -> io::Result<Self> {
        let base = std::env::temp_dir();
        let mut n = super::clock::now_ns();
        loop {
            // Short: socket paths below it are bounded by the system at about 100 bytes.
            let path = base.join(format!("{label}-{}-{:x}", std::process::id(), n & 0xfff_ffff));
            let mut builder = fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            match builder.create(&path) {
                Ok(()) => return Ok(Self { path, keep: Cell::new(false) }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => n += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory where it is, for someone to look into.
    pub fn keep(&self) -> &Path {
        self.keep.set(true);
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What cannot be removed is left to the system's own cleaning of that directory.
        if !self.keep.get() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
