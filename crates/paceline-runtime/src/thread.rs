//! The session's own thread, its arbiter, and the handle that other threads hold.

use std::{sync::Arc, thread};

use bytes::Bytes;
use paceline_ipc::{
    dirs::StateDir,
    member::{SessionAbout, SessionLock},
    process::ProcessMark,
    token::TokenFile,
};
use paceline_proto::{
    event::Event,
    id::{Key, SessionId, Stream, Trace},
    message::{Answer, Ask, OpOutcome, Operation, SubmitOutcome},
    presence::Presence,
};
use paceline_query::{limits::OPTIONS_MAX, rules::Options as Wishes};
use tokio::sync::{oneshot, watch};

use crate::{
    death::{Death, End},
    election::{ElectionBusiness, ElectionIn},
    fetcher::FetcherBusiness,
    follower::{FollowerBusiness, FollowerIn, Laid},
    hub::HubBusiness,
    observe::Observer,
    options::{Identity, Options},
    outbox::OutboxBusiness,
    peers::{Mailboxes, Pace, Peers, Reign},
    replica::{Cell, EventQueue, Interest, Replica},
    shell::{Mail, Refused, Shell},
    signals::{self, Afterwards},
    socket::SocketBusiness,
    token::Keeper,
    trace::Ring,
};

/// A session's runtime could not be started. Nothing was joined.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The session's lock file could not be made.
    #[error(
        "make the lock file of the session in {path}: {source}; make the directory writable, free some space, or name \
         another state directory"
    )]
    SessionLock {
        /// The directory.
        path: std::path::PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// No thread could be started.
    #[error("start the session's thread: {0}; this user, or this machine, has too many")]
    Thread(std::io::Error),
    /// The thread's event loop could not be made.
    #[error("make the session's event loop: {0}; with too many open files, raise the limit (ulimit -n)")]
    Loop(std::io::Error),
    /// The signals of the process could not be taken over.
    #[error("take over the signals of the process: {0}")]
    Signals(std::io::Error),
    /// The thread ended before it was ready.
    #[error("the session's thread ended at once: {0:?}")]
    Ended(End),
}

/// A call on a running session failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Too many calls are unanswered; nothing was done, try later.
    #[error("too many calls of this session are unanswered")]
    Overloaded,
    /// The runtime ended; what the call did is unknown.
    #[error("the session's runtime ended: {0:?}")]
    Dead(End),
}

/// A running session. Cheap to clone; the last clone that is dropped lets the session leave.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    session: SessionId,
    dir: StateDir,
    tokens: Vec<Keeper>,
    follower: Mail<FollowerIn>,
    election: Mail<ElectionIn>,
    replica: Arc<Replica>,
    observer: Observer,
    ring: Ring,
    death: Death,
    ended: watch::Receiver<bool>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("session", &self.0.session).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody waits any more; the thread ends on its own.
        let _ = self.election.offer(ElectionIn::Leave, Trace::NONE);
    }
}

impl Runtime {
    /// Starts the session's thread. Returns when the actors run; `join()` of the observer tells when it is joined.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let session = options.identity.session;
        let mut lock = SessionLock::hold(&options.dir, session)
            .map_err(|source| StartError::SessionLock { path: options.dir.sessions(), source })?;
        let about = SessionAbout {
            process: ProcessMark::own(),
            label: options.identity.label.clone(),
            build: options.identity.program.build.clone(),
            rank: options.identity.rank,
        };
        if let Err(error) = lock.describe(&about) {
            tracing::debug!(%error, "the session's file says nothing of it");
        }
        let replica = Arc::new(Replica::default());
        let observer = Observer::default();
        let ring = Ring::default();
        let death = Death::default();
        let (dir, tokens) = (options.dir.clone(), options.tokens.clone());
        let (ended, watch_ended) = watch::channel(false);
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let shared = (replica.clone(), observer.clone(), ring.clone(), death.clone());
        thread::Builder::new()
            .name(format!("paceline-{}", session.short()))
            .spawn(move || {
                let death = shared.3.clone();
                let run = std::panic::AssertUnwindSafe(|| run(options, lock, shared, &ready));
                if std::panic::catch_unwind(run).is_err() {
                    death.declare(End::Panicked("the session's thread".into()));
                }
                death.declare(End::Failed("the session's thread ended".into()));
                ended.send_replace(true);
            })
            .map_err(StartError::Thread)?;
        let (follower, election) = match is_ready.recv() {
            Ok(Ok(mailboxes)) => mailboxes,
            Ok(Err(error)) => return Err(StartError::Loop(error)),
            Err(_) => return Err(StartError::Ended(death.get().unwrap_or(End::Left))),
        };
        let ended = watch_ended;
        Ok(Self(Arc::new(Inner {
            session,
            dir,
            tokens,
            follower,
            election,
            replica,
            observer,
            ring,
            death,
            ended,
        })))
    }

    /// The session's id.
    pub fn session(&self) -> SessionId {
        self.0.session
    }

    /// Where the group keeps the token `name`.
    ///
    /// # Errors
    /// When it can be the name of none.
    pub fn token_file(&self, name: &str) -> std::io::Result<TokenFile> {
        TokenFile::new(&self.0.dir, name)
    }

    /// Records the first refresh token of this process for the token `name`, if that is a new sign-in and one is needed.
    pub fn sign_in(&self, name: &str) -> bool {
        self.0.tokens.iter().any(|keeper| keeper.name() == name && keeper.sign_in())
    }

    /// The replica, for reads.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.0.replica
    }

    /// Observable events, counters, and the join.
    pub fn observer(&self) -> &Observer {
        &self.0.observer
    }

    /// The trace ring.
    pub fn ring(&self) -> &Ring {
        &self.0.ring
    }

    /// Whether and why the runtime ended.
    pub fn death(&self) -> &Death {
        &self.0.death
    }

    /// Adds a subscriber of a key. The interest reaches the owner in the background.
    pub fn subscribe(&self, key: &Key, options: Wishes) -> Arc<Cell> {
        self.0.replica.subscribe(key, options, |interest| self.tell_interest(key, interest))
    }

    /// A subscriber of a key asks for something else.
    pub fn change_options(&self, key: &Key, old: &Wishes, new: Wishes) {
        self.0.replica.ask(key, old, new, |interest| self.tell_interest(key, interest));
    }

    /// Takes a subscriber of a key away, with the options it had last.
    pub fn unsubscribe(&self, key: &Key, options: &Wishes) {
        self.0.replica.unsubscribe(key, options, |interest| self.tell_interest(key, interest));
    }

    fn tell_interest(&self, key: &Key, interest: Interest) {
        let key = key.clone();
        self.tell(match interest {
            Interest::Begins => FollowerIn::Subscribe(key),
            Interest::Ends => FollowerIn::Unsubscribe(key),
            Interest::Asks(mut wishes) => {
                if wishes.len() > OPTIONS_MAX {
                    self.0.observer.event(Event::LimitReached { limit: "OPTIONS_MAX" });
                    wishes.truncate(OPTIONS_MAX);
                }
                FollowerIn::Observe { key, options: Wishes::list_to_bytes(&wishes).into() }
            }
        });
    }

    /// Adds an event subscriber.
    pub fn subscribe_stream(&self, stream: &Stream) -> Arc<EventQueue> {
        self.0.replica.subscribe_stream(stream, || self.tell(FollowerIn::SubscribeStream(stream.clone())))
    }

    /// Takes an event subscriber away.
    pub fn unsubscribe_stream(&self, stream: &Stream, queue: &Arc<EventQueue>) {
        let last = || self.tell(FollowerIn::UnsubscribeStream(stream.clone()));
        self.0.replica.unsubscribe_stream(stream, queue, last);
    }

    /// Performs a volatile operation; survives a change of the owner.
    pub async fn op(&self, operation: Operation, trace: Trace) -> Result<OpOutcome, CallError> {
        self.call(trace, |reply| FollowerIn::Op { operation, reply }).await
    }

    /// Lays a layer over a key; it is shown in this session when this returns. The inner error says why it cannot be.
    pub async fn lay(&self, key: Key, patch: Bytes) -> Result<Result<Laid, String>, CallError> {
        let laid = Laid::new(self.0.follower.clone());
        self.call(Trace::NONE, |reply| FollowerIn::Lay { key, patch, laid, reply }).await
    }

    /// Performs the operation of a layer: its effect takes the layer's place. One that changes nothing takes it back.
    pub async fn commit(
        &self,
        layer: &Laid,
        operation: Operation,
        trace: Trace,
    ) -> Result<OpOutcome, CallError> {
        // It has a number since it was handed out.
        let layer = layer.number().unwrap_or_default();
        self.call(trace, |reply| FollowerIn::Commit { layer, operation, reply }).await
    }

    /// Submits bytes to the queue; survives a change of the owner. Returns the mutation's sequence number.
    pub async fn submit(&self, payload: Bytes, trace: Trace) -> Result<(u64, SubmitOutcome), CallError> {
        let hash = payload_hash(&payload);
        self.call(trace, |reply| FollowerIn::Submit { hash, payload, reply }).await
    }

    /// Asks the owner.
    pub async fn ask(&self, ask: Ask, trace: Trace) -> Result<Answer, CallError> {
        self.call(trace, |reply| FollowerIn::Ask { ask, reply }).await
    }

    /// Tells the group what this session shows to its user.
    pub fn presence(&self, presence: Presence) {
        self.tell(FollowerIn::Presence(presence));
    }

    /// Leaves if this session leads, nobody else is in the group and its queue holds nothing: first nobody is welcomed any
    /// more, then it is looked whether that is so, then the session leaves. False: it stays as it was.
    pub async fn leave_if_alone(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.0.election.tell(ElectionIn::Retire { reply }, Trace::NONE);
        let alone = tokio::select! {
            biased;
            answer = answer => answer.unwrap_or(false),
            _ = self.0.death.wait() => false,
        };
        if alone {
            self.leave().await;
        }
        alone
    }

    /// From here on the signals of the process act on this session: SIGTERM, SIGINT and SIGHUP let it leave, and then the
    /// process ends, or its program ends it; SIGTSTP lets it hand over before the process stops, SIGCONT lets it look at its
    /// fence.
    ///
    /// # Errors
    /// When the handlers cannot be installed; nothing changed then.
    pub fn handle_signals(&self, afterwards: Afterwards) -> std::io::Result<()> {
        signals::handle(signals::Handled {
            afterwards,
            election: self.0.election.clone(),
            observer: self.0.observer.clone(),
            group: self.0.replica.group(),
            death: self.0.death.clone(),
            ended: self.0.ended.clone(),
        })
    }

    /// Leaves politely: an owner hands over first. Returns when everything is released.
    pub async fn leave(&self) -> End {
        self.0.election.tell(ElectionIn::Leave, Trace::NONE);
        let end = self.0.death.wait().await;
        let mut ended = self.0.ended.clone();
        // The sender lives in the thread: an error means that it ended.
        let _ = ended.wait_for(|ended| *ended).await;
        end
    }

    fn tell(&self, input: FollowerIn) {
        self.0.follower.tell(input, Trace::NONE);
    }

    async fn call<T>(
        &self,
        trace: Trace,
        input: impl FnOnce(oneshot::Sender<Option<T>>) -> FollowerIn,
    ) -> Result<T, CallError> {
        let (reply, answer) = oneshot::channel();
        match self.0.follower.offer(input(reply), trace) {
            Ok(()) => {}
            Err(Refused::Full) => return Err(CallError::Overloaded),
            Err(Refused::Closed) => return Err(CallError::Dead(self.0.death.wait().await)),
        }
        tokio::select! {
            biased;
            answer = answer => match answer {
                Ok(Some(value)) => Ok(value),
                Ok(None) => Err(CallError::Overloaded),
                Err(_) => Err(CallError::Dead(self.0.death.wait().await)),
            },
            end = self.0.death.wait() => Err(CallError::Dead(end)),
        }
    }
}

/// First 16 bytes of SHA-256.
fn payload_hash(payload: &[u8]) -> [u8; 16] {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(payload);
    let mut hash = [0; 16];
    hash.copy_from_slice(&digest[..16]);
    hash
}

type Shared = (Arc<Replica>, Observer, Ring, Death);
type Ready = std::sync::mpsc::SyncSender<std::io::Result<(Mail<FollowerIn>, Mail<ElectionIn>)>>;

/// The life of the session's thread.
fn run(options: Options, lock: SessionLock, shared: Shared, ready: &Ready) {
    let death = shared.3.clone();
    let tokens = options.tokens.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Commits, kits and directory listings; each is rare, and idle threads go away.
        .max_blocking_threads(4)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            if let Err(error) = lock.leave() {
                tracing::debug!(%error, "the session's lock file stays behind");
            }
            // The starter waits for it.
            let _ = ready.send(Err(error));
            return;
        }
    };
    let system = actix::System::with_tokio_rt(|| runtime);
    system.block_on(async move {
        let (follower, election) = start_actors(options, lock, shared);
        election.tell(ElectionIn::Start, Trace::NONE);
        // The starter may have given up; then the handle's drop lets the session leave.
        let _ = ready.send(Ok((follower, election)));
        death.wait().await;
        // One turn for the actors to see it and drop what they hold.
        tokio::task::yield_now().await;
    });
    tokens.iter().for_each(Keeper::finish);
}

fn start_actors(
    options: Options,
    lock: SessionLock,
    (replica, observer, ring, death): Shared,
) -> (Mail<FollowerIn>, Mail<ElectionIn>) {
    let peers = Peers::empty();
    let channels = options.upstreams.iter().map(crate::socket::Upstream::channel).collect();
    let feeds = options.upstreams.iter().map(|it| (it.name.clone(), it.router.clone())).collect();
    let follows = options.upstreams.iter().any(crate::socket::Upstream::follows_sessions);
    let seed = uuid::Uuid::new_v4().as_u64_pair().0;

    let seat = Seat {
        identity: Arc::new(options.identity),
        dir: options.dir,
        peers: peers.clone(),
        reign: Reign::default(),
        pace: Pace::default(),
        observer: observer.clone(),
        replica,
        ring: ring.clone(),
        death: death.clone(),
    };
    let election = ElectionBusiness::new(seat.clone(), lock, seed);
    let hub = HubBusiness::new(seat.clone(), channels, follows, feeds, options.defaults, seed);
    let follower = FollowerBusiness::new(seat.clone(), options.resources, options.items);
    let answers = peers.clone();
    let answer = Box::new(move |epoch, id, outcome, trace| {
        answers.follower(FollowerIn::Fetched { epoch, id, outcome }, trace);
    });
    let fetcher = FetcherBusiness::new(options.fetchers, observer.clone(), answer);
    let socket = SocketBusiness::new(seat.clone(), options.upstreams, seed);
    let outbox = OutboxBusiness::new(seat, options.sends);

    let mailboxes = Mailboxes {
        election: Shell::start(election, ring.clone(), death.clone(), observer.clone()),
        hub: Shell::start(hub, ring.clone(), death.clone(), observer.clone()),
        follower: Shell::start(follower, ring.clone(), death.clone(), observer.clone()),
        socket: Shell::start(socket, ring.clone(), death.clone(), observer.clone()),
        outbox: Shell::start(outbox, ring.clone(), death.clone(), observer.clone()),
        fetcher: Shell::start(fetcher, ring, death, observer),
    };
    let handles = (mailboxes.follower.clone(), mailboxes.election.clone());
    peers.fill(mailboxes);
    handles
}

/// What every actor of a session has at hand.
#[derive(Clone)]
pub(crate) struct Seat {
    pub identity: Arc<Identity>,
    pub dir: StateDir,
    pub peers: Peers,
    pub reign: Reign,
    pub pace: Pace,
    pub observer: Observer,
    pub replica: Arc<Replica>,
    pub ring: Ring,
    pub death: Death,
}
