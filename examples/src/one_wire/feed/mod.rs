//! The feed: a real WebSocket server with live figures of this machine, numbered, for one consumer.
//!
//! It plays the licensed feed or the bot gateway of the outside world: a second consumer is refused with 409, one that
//! is not heard of for a second is dropped. A consumer that gives its position (`?since=N`) gets `{"type":"live"}` and
//! then every message after it; any other one, and every one if the feed was told not to resume, gets a versioned
//! snapshot of every key first.

mod consumer;
mod store;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};

use self::{
    consumer::serve,
    store::{Admission, Store},
};
use super::control::{self, Counters, FeedCommand, FeedLine};

/// How the feed behaves.
#[derive(Debug, Clone)]
pub struct FeedOptions {
    /// Messages per second.
    pub rate: u32,
    /// Whether `?since=N` is honoured.
    pub resume: bool,
    /// Admit every consumer instead of one.
    pub admit_all: bool,
    /// Messages kept for those who resume.
    pub history: usize,
    /// Where each published message is logged; the file must not exist.
    pub log: Option<PathBuf>,
}

impl Default for FeedOptions {
    fn default() -> Self {
        Self { rate: 1000, resume: true, admit_all: false, history: 200_000, log: None }
    }
}

/// A running feed; it ends when dropped.
#[derive(Debug)]
pub struct Feed {
    port: u16,
    store: Arc<Store>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Feed {
    /// Listens on a free port of 127.0.0.1 and publishes from now on.
    ///
    /// # Errors
    /// If no port is free or the log cannot be created; nothing runs then.
    pub async fn start(options: FeedOptions) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let rate = options.rate.max(1);
        let store = Arc::new(Store::new(options)?);
        let tasks = [
            tokio::spawn(publish_at_rate(Arc::clone(&store), rate)),
            tokio::spawn(accept(listener, Arc::clone(&store))),
        ];
        Ok(Self { port, store, tasks })
    }

    /// Port of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What the feed saw of its consumers.
    pub fn counters(&self) -> Counters {
        self.store.counters()
    }

    /// Publishes no more; tells the last number, the final values and the counters.
    pub fn pause(&self) -> FeedLine {
        self.store.pause()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// The feed as a process of its own, steered by [`FeedCommand`] lines; ends with its standard input.
///
/// # Errors
/// As [`Feed::start`], and if the parent cannot be told.
pub async fn run(options: FeedOptions) -> io::Result<()> {
    let mut commands = control::commands::<FeedCommand>();
    let feed = Feed::start(options).await?;
    control::say(&FeedLine::Listening { port: feed.port() })?;
    let mut changes = feed.store.changes();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(FeedCommand::Pause) => control::say(&feed.pause())?,
                Some(FeedCommand::Stop) | None => return Ok(()),
            },
            changed = changes.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let counters = *changes.borrow_and_update();
                control::say(&FeedLine::Counters(counters))?;
            }
        }
    }
}

/// Publishes so many messages that their count follows the clock, in bursts of a millisecond's worth.
async fn publish_at_rate(store: Arc<Store>, rate: u32) {
    let start = Instant::now();
    let mut published = 0_u128;
    let period = Duration::from_millis(1).max(Duration::from_secs(1) / rate);
    loop {
        let due = start.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000;
        let burst = usize::try_from(due - published).unwrap_or(usize::MAX);
        if !store.publish_metrics(burst) {
            return;
        }
        published = due;
        tokio::time::sleep(period).await;
    }
}

async fn accept(listener: TcpListener, store: Arc<Store>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(handshake(stream, Arc::clone(&store)));
            }
            // Out of descriptors or memory: others may be given back in a moment.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Time a client has to finish its handshake; it holds the only seat meanwhile.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(2);

async fn handshake(stream: TcpStream, store: Arc<Store>) {
    use tokio_tungstenite::tungstenite::{
        handshake::server::{ErrorResponse, Request, Response},
        http::StatusCode,
    };
    // Small messages must not wait for each other.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let mut admitted = None;
    #[expect(clippy::result_large_err, reason = "the signature is the library's")]
    let admit = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        match store.admit(request.uri().query().unwrap_or_default()) {
            Admission::Admitted(seat) => {
                admitted = Some(seat);
                Ok(response)
            }
            Admission::Refused => {
                let mut refusal = ErrorResponse::new(Some("another consumer is connected".to_owned()));
                *refusal.status_mut() = StatusCode::CONFLICT;
                Err(refusal)
            }
        }
    };
    let handshake = tokio_tungstenite::accept_hdr_async(stream, admit);
    let opened = tokio::time::timeout(HANDSHAKE_LIMIT, handshake).await;
    if let (Ok(Ok(socket)), Some(seat)) = (opened, admitted) {
        serve(socket, seat).await;
    }
}
