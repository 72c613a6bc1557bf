//! Local sockets between processes of one user. The only place that knows how they are made.
//!
//! A listener is **bound** anywhere ([`Bound`]: kits are made before and outside any runtime) and made asynchronous later,
//! inside the runtime that is to serve it ([`Bound::into_listener`]). Names are never reclaimed or overwritten: the drop
//! of an old listener must not unlink its successor's socket.
//!
//! A connection proves nothing yet: a stopped process accepts into its backlog and its buffers take bytes. Only a
//! Welcome before a deadline shows that somebody is there.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use interprocess::{
    ConnectWaitMode,
    local_socket::{
        ConnectOptions, GenericFilePath, ListenerNonblockingMode, ListenerOptions, ToFsName,
        traits::{StreamCommon, tokio::Listener as _},
    },
    os::unix::{local_socket::ListenerOptionsExt, uds_local_socket as uds},
};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use crate::os;

/// Opened in advance, and closed when there are no descriptors left: then one connection can be taken and answered.
const SPARE: &str = "/dev/null";

/// A socket that listens but is served by nobody yet: peers that connect wait in its backlog.
pub struct Bound {
    listener: uds::Listener,
    path: PathBuf,
}

impl Bound {
    /// Binds and listens at `path`, mode 0600, closed on exec. Needs no runtime. Nothing ever unlinks the path for it.
    ///
    /// # Errors
    /// As `bind`; `AddrInUse` where anything has the name. Paths over 100 bytes work on Linux only.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let (short, _guard) = os::socket_path(path)?;
        let options = ListenerOptions::new()
            .name(short.as_path().to_fs_name::<GenericFilePath>()?)
            .nonblocking(ListenerNonblockingMode::Both)
            .reclaim_name(false)
            .try_overwrite(false);
        // Elsewhere the mode of a socket cannot be set before it has a name; its directory is 0700 in any case.
        #[cfg(target_os = "linux")]
        let options = options.mode(0o600);
        let listener = options.create_sync_as::<uds::Listener>()?;
        #[cfg(not(target_os = "linux"))]
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// The path it was bound to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves it with the tokio runtime of the calling thread, which needs I/O enabled.
    ///
    /// # Errors
    /// Outside a runtime, or when the runtime cannot take it; the socket is closed then.
    pub fn into_listener(self) -> io::Result<Listener> {
        tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let Self { listener, path } = self;
        let listener = uds::tokio::Listener::try_from(listener)?;
        Ok(Listener { listener, path, uid: os::own_uid(), spare: Mutex::new(File::open(SPARE).ok()) })
    }
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bound").field(&self.path).finish()
    }
}

/// Accepts connections of the same user. Dropping it closes the socket and leaves its name.
pub struct Listener {
    listener: uds::tokio::Listener,
    path: PathBuf,
    uid: u32,
    spare: Mutex<Option<File>>,
}

/// A connection was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The peer is another user; it was dropped. Worth an event. Accept again at once.
    #[error("accept a connection: the peer is user {uid}")]
    OtherUid {
        /// The peer's effective user.
        uid: u32,
    },
    /// That one connection failed. Accept again at once.
    #[error("accept a connection: the peer cannot be identified: {0}")]
    Lost(io::Error),
    /// The process has no descriptors left but the one of this connection: say so to the peer and close it. Silence would
    /// look like a stopped process. Accept again at once.
    #[error(
        "accept a connection: no descriptors are left; raise the limit (ulimit -n), or find who leaks them"
    )]
    NoDescriptors(Box<Connection>),
    /// The listener failed; the connection stays in the backlog. Pause before accepting again.
    #[error("accept a connection: {0}")]
    Listener(io::Error),
}

impl Listener {
    /// Waits for the next connection. Cancel-safe.
    ///
    /// # Errors
    /// [`AcceptError`]; the listener goes on in every case.
    pub async fn accept(&self) -> Result<Connection, AcceptError> {
        // Unless the connection that took its place is still open.
        let restock = |spare: &mut Option<File>| *spare = spare.take().or_else(|| File::open(SPARE).ok());
        restock(&mut self.spare.lock());
        let (stream, last) = match self.listener.accept().await {
            Err(error) if is_exhausted(&error) && self.spare.lock().take().is_some() => {
                (self.listener.accept().await, true)
            }
            accepted => (accepted, false),
        };
        let stream = stream.map_err(AcceptError::Listener)?;
        match peer_uid(&stream).map_err(AcceptError::Lost)? {
            uid if uid != self.uid => Err(AcceptError::OtherUid { uid }),
            _ if last => Err(AcceptError::NoDescriptors(Box::new(Connection { stream }))),
            _ => Ok(Connection { stream }),
        }
    }

    /// The path it was bound to.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The process, or the machine, has no descriptors left.
fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error
        .raw_os_error()
        .is_some_and(|code| [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error).contains(&code))
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").field(&self.path).finish()
    }
}

/// No connection was made. None of these proves that the owner of the socket is dead; only its lock does.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The path is there, but nobody listens.
    #[error("connect: nobody listens at the socket")]
    Refused,
    /// The path is not there.
    #[error("connect: the socket's path does not exist")]
    Missing,
    /// The path may not be used.
    #[error("connect: permission denied")]
    Permission,
    /// The backlog is full: somebody has the socket and does not accept.
    #[error("connect: the listener's backlog is full")]
    WouldBlock,
    /// It took too long.
    #[error("connect: no connection within {0:?}")]
    Timeout(Duration),
    /// The listener is another user; the connection was dropped.
    #[error("connect: the listener is user {uid}")]
    OtherUid {
        /// The listener's effective user.
        uid: u32,
    },
    /// Anything else.
    #[error("connect: {0}")]
    Io(io::Error),
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::Permission,
            io::ErrorKind::WouldBlock => Self::WouldBlock,
            _ => Self::Io(error),
        }
    }
}

/// Connects to a socket of the same user, within the tokio runtime of the calling thread (I/O and time enabled).
///
/// # Errors
/// [`ConnectError`], by what is known about the path. Nothing changed; a retry may help.
pub async fn connect(path: &Path, timeout: Duration) -> Result<Connection, ConnectError> {
    let (short, _guard) = os::socket_path(path)?;
    let name = short.as_path().to_fs_name::<GenericFilePath>()?;
    let options = ConnectOptions::new().name(name).wait_mode(ConnectWaitMode::Timeout(timeout));
    let stream = tokio::time::timeout(timeout, options.connect_tokio_as::<uds::tokio::Stream>())
        .await
        .map_err(|_| ConnectError::Timeout(timeout))?
        .map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => ConnectError::Timeout(timeout),
            _ => error.into(),
        })?;
    // With a full backlog the library returns a stream that was never connected.
    if rustix::net::getpeername(stream.as_fd()) == Err(rustix::io::Errno::NOTCONN) {
        return Err(ConnectError::WouldBlock);
    }
    match peer_uid(&stream)? {
        uid if uid == os::own_uid() => Ok(Connection { stream }),
        uid => Err(ConnectError::OtherUid { uid }),
    }
}

fn peer_uid(stream: &uds::tokio::Stream) -> io::Result<u32> {
    stream.peer_creds()?.euid().ok_or_else(|| io::Error::other("the system does not tell the peer's user"))
}

/// A connection between two processes of one user.
#[derive(Debug)]
pub struct Connection {
    stream: uds::tokio::Stream,
}

impl Connection {
    /// The peer's process id, for people; never to decide by.
    pub fn peer_pid(&self) -> Option<u32> {
        self.stream.peer_creds().ok()?.pid().and_then(|pid| u32::try_from(pid).ok())
    }

    /// Splits it for a reading and a writing task. It is closed when both halves are dropped, or by
    /// [`WriteHalf::close`].
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        let stream = Arc::new(self.stream);
        (ReadHalf(stream.clone()), WriteHalf(stream))
    }
}

/// The reading end; feeds a [`crate::framing::FrameReader`].
#[derive(Debug)]
pub struct ReadHalf(Arc<uds::tokio::Stream>);

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut &*self.0).poll_read(context, buffer)
    }
}

/// The writing end.
#[derive(Debug)]
pub struct WriteHalf(Arc<uds::tokio::Stream>);

impl WriteHalf {
    /// Writes what the socket takes now and returns how much; never waits. 0 = it takes nothing, or a new connection was
    /// not polled yet: then wait for [`Self::writable`].
    ///
    /// # Errors
    /// As `write`; the connection is unusable.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.inner().try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }

    /// Waits until the socket may take bytes, or failed. Cancel-safe.
    ///
    /// # Errors
    /// As the runtime's I/O driver.
    pub async fn writable(&self) -> io::Result<()> {
        self.0.inner().writable().await
    }

    /// Writes all of it, for as long as it takes: the deadline is the caller's. **Not** cancel-safe: after a cancelled
    /// call the stream may end in the middle of a frame, so the connection has to be dropped.
    ///
    /// # Errors
    /// As `write`; part of it may have been written, the connection is unusable.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        (&*self.0).write_all(bytes).await
    }

    /// Ends the connection in both directions although the reading half still lives: reads end on both sides once what
    /// was sent has been read.
    pub fn close(self) {
        if let Err(error) = rustix::net::shutdown(self.0.as_fd(), rustix::net::Shutdown::Both) {
            tracing::trace!(%error, "closed a connection that had ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    };

    use tokio::io::AsyncReadExt;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        (dir, path)
    }

    async fn pair() -> (Connection, Connection) {
        let (_dir, path) = place();
        let listener = Bound::bind(&path).unwrap().into_listener().unwrap();
        let near = connect(&path, SOON).await.unwrap();
        (near, listener.accept().await.unwrap())
    }

    #[test]
    fn a_socket_is_bound_outside_a_runtime_and_served_inside_one() {
        let (_dir, path) = place();
        let bound = Bound::bind(&path).unwrap();
        let early = UnixStream::connect(&path).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = bound.into_listener().unwrap();
            let accepted = listener.accept().await.unwrap();
            assert_eq!(accepted.peer_pid(), Some(std::process::id()));
        });
        drop(early);
        assert!(Bound::bind(&place().1.with_file_name("none/a")).is_err());
    }

    #[test]
    fn outside_a_runtime_serving_is_an_error_and_no_panic() {
        let (_dir, path) = place();
        assert!(Bound::bind(&path).unwrap().into_listener().is_err());
    }

    #[test]
    fn names_are_private_never_taken_over_and_never_reclaimed() {
        let (_dir, path) = place();
        let bound = Bound::bind(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Bound::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(bound);
        assert!(path.exists());
        assert_eq!(Bound::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse, "not even a dead one's");
    }

    #[test]
    fn descriptors_do_not_survive_exec() {
        let (_dir, path) = place();
        let bound = Bound::bind(&path).unwrap();
        let flags = rustix::io::fcntl_getfd(bound.listener.as_fd()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[tokio::test]
    async fn paths_over_the_system_bound_work_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(90)).join("e".repeat(90));
        fs::create_dir_all(&deep).unwrap();
        let path = deep.join("a.sock");
        let listener = Bound::bind(&path).unwrap().into_listener().unwrap();
        assert_eq!(listener.path(), path);
        assert!(path.exists());
        connect(&path, SOON).await.unwrap();
        listener.accept().await.unwrap();
        assert!(matches!(connect(&deep.join("b.sock"), SOON).await, Err(ConnectError::Missing)));
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let (_dir, path) = place();
        assert!(matches!(connect(&path, SOON).await, Err(ConnectError::Missing)));
        drop(Bound::bind(&path).unwrap());
        assert!(matches!(connect(&path, SOON).await, Err(ConnectError::Refused)));
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"").unwrap();
        assert!(matches!(connect(&path, SOON).await, Err(ConnectError::Refused)), "not a socket");
    }

    #[tokio::test]
    async fn a_full_backlog_is_no_connection() {
        let (_dir, path) = place();
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let first = connect(&path, SOON).await.unwrap();
        assert!(matches!(connect(&path, SOON).await, Err(ConnectError::WouldBlock)));
        drop((first, listener));
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_closing_ends_both() {
        let (near, far) = pair().await;
        let (mut near_read, mut near_write) = near.into_split();
        let (mut far_read, mut far_write) = far.into_split();
        near_write.write_all(b"ping").await.unwrap();
        far_write.write_all(b"pong").await.unwrap();
        near_write.close();
        let (mut at_far, mut at_near) = (String::new(), String::new());
        far_read.read_to_string(&mut at_far).await.unwrap();
        near_read.read_to_string(&mut at_near).await.unwrap();
        assert_eq!((at_far.as_str(), at_near.as_str()), ("ping", "pong"));
    }

    #[tokio::test]
    async fn dropping_both_halves_closes() {
        let (near, far) = pair().await;
        let (near_read, near_write) = near.into_split();
        let (mut far_read, far_write) = far.into_split();
        drop(near_read);
        drop(near_write);
        assert_eq!(far_read.read(&mut [0; 8]).await.unwrap(), 0);
        drop(far_write);
    }

    #[tokio::test]
    async fn trying_to_write_never_waits_and_loses_no_byte() {
        let (near, far) = pair().await;
        let (_near_read, mut near_write) = near.into_split();
        let (mut far_read, _far_write) = far.into_split();
        near_write.writable().await.unwrap();
        let mut sent = 0;
        loop {
            match near_write.try_write(&[b'x'; 64 << 10]).unwrap() {
                0 => break,
                n => sent += n,
            }
        }
        assert!(sent > 0, "a socket takes something before it is full");
        assert_eq!(near_write.try_write(b"y").unwrap(), 0, "still full");
        let mut got = vec![0; sent];
        far_read.read_exact(&mut got).await.unwrap();
        near_write.writable().await.unwrap();
        assert_eq!(near_write.try_write(b"y").unwrap(), 1);
        assert_eq!(far_read.read_u8().await.unwrap(), b'y');
    }

    #[tokio::test]
    async fn connections_live_in_local_tasks_of_one_thread() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let (near, far) = pair().await;
                let echo = tokio::task::spawn_local(async move {
                    let (mut read, mut write) = far.into_split();
                    let byte = read.read_u8().await.unwrap();
                    write.write_all(&[byte]).await.unwrap();
                });
                let (mut read, mut write) = near.into_split();
                write.write_all(b"z").await.unwrap();
                assert_eq!(read.read_u8().await.unwrap(), b'z');
                echo.await.unwrap();
            })
            .await;
    }
}
