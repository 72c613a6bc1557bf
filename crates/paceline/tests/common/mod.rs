//! What the tests of the client share: a group in a directory of its own, waits with an end, and an upstream.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    future::Future,
    net::SocketAddr,
    path::Path,
    sync::mpsc,
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use futures_util::SinkExt;
use paceline::{Builder, GroupView, Role, Session, WebSocket};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_tungstenite::{accept_async, tungstenite::Message};

/// A wait that takes longer is a hang: far above anything a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A directory for groups, removed at the end.
pub fn scratch() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A session of the group `test` in `dir`, not joined yet.
pub fn builder(dir: &Path) -> Builder {
    Session::builder("test").state_dir(dir)
}

/// A joined one.
pub fn join(dir: &Path) -> Session {
    builder(dir).join_blocking().unwrap()
}

/// Runs `work` on a thread of its own; fails when it does not come back.
pub fn comes_back<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn(work).end(what)
}

/// Work on a thread of its own.
pub struct Started<T>(mpsc::Receiver<T>);

pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Started<T> {
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        // The test may have given up.
        let _ = done.send(work());
    });
    Started(is_done)
}

impl<T> Started<T> {
    /// Its result.
    pub fn end(self, what: &str) -> T {
        self.0.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{what}: {error}"))
    }
}

/// Runs a future on this thread, with nothing but what the standard library has.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(std::sync::Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// Polls a future once and drops it.
pub fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Waits until the group as `session` sees it fits.
pub fn group_is(session: &Session, what: &str, fits: impl Fn(&GroupView) -> bool + Send + 'static) {
    let mut watch = session.group().watch();
    comes_back(what, move || while !fits(&watch.changed_blocking().unwrap()) {});
}

pub fn leads(view: &GroupView) -> bool {
    matches!(view.role, Role::Primary { adopted: true, .. })
}

/// Waits until `session` leads and an heir of it is ready to.
pub fn has_heir(session: &Session) {
    group_is(session, "an heir that is ready", |view| {
        leads(view) && view.heirs.iter().any(|heir| heir.current && heir.kit.is_some())
    });
}

/// A WebSocket server that sends the given texts to whoever connects, and then what it is told to.
pub struct Feed {
    address: SocketAddr,
    more: tokio::sync::broadcast::Sender<String>,
    _thread: thread::JoinHandle<()>,
}

impl Feed {
    #[expect(clippy::disallowed_methods, reason = "the server has a runtime of its own")]
    pub fn start(texts: &[&str]) -> Self {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let (more, _) = tokio::sync::broadcast::channel::<String>(64);
        let (tell, told) = mpsc::channel();
        let sender = more.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                while let Ok((tcp, _)) = listener.accept().await {
                    let (texts, mut more) = (texts.clone(), sender.subscribe());
                    tokio::spawn(async move {
                        let Ok(mut socket) = accept_async(tcp).await else { return };
                        for text in texts {
                            if socket.send(Message::text(text)).await.is_err() {
                                return;
                            }
                        }
                        while let Ok(text) = more.recv().await {
                            if socket.send(Message::text(text)).await.is_err() {
                                return;
                            }
                        }
                    });
                }
            });
        });
        Self { address: told.recv_timeout(PATIENCE).unwrap(), more, _thread: thread }
    }

    /// Sends one more text to all that are connected.
    pub fn send(&self, text: &str) {
        // Nobody may be connected.
        let _ = self.more.send(text.to_owned());
    }

    /// The upstream that leads here, without routes.
    pub fn upstream(&self) -> WebSocket {
        WebSocket::new("feed", format!("ws://{}/", self.address))
    }
}
