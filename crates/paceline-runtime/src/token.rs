//! Tokens that rotate: one session refreshes for all, and a refresh token is used once.
//!
//! The record of a token (`paceline_channel::token`) lies in a file of the group's directory and decides what may be done;
//! this module does it, in this order: take the lock, put the use on record, look whether the reign that asks still
//! stands, ask the server, put the new pair on record, give up the lock, tell. A record is durable before the next step.
//!
//! Whoever holds the lock lives: its death frees it, and a stopped process is waited for. What is told is the number of the
//! rotation alone. Sessions read the access token from the file, so no secret is in a frame, a value or a trace, and a valid
//! one can be read while nobody leads.
//!
//! **Invariant:** a use that has begun runs to its end whoever gives up on it: on a thread of its own, which a session that
//! leaves waits for.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use paceline_channel::{
    protocol::Secret,
    template::{Token, Vault},
    token::{Answer, Asked, Moment, Next, Paths, Record, Seed, read_answer},
};
use paceline_ipc::{
    claim, clock,
    dirs::StateDir,
    failpoint::hit,
    process,
    token::{TokenFile, TokenLock},
};
use paceline_proto::{
    fetch::{FailureKind, FetchFailure, FetchOutcome},
    id::{Epoch, Version},
};
use paceline_query::{
    key::QueryKey,
    rules::{Hints, Staleness},
};
use paceline_upstream::{
    fetch::{FetchContext, Fetcher, Fetching, failure},
    http::{HttpClient, HttpFetcher, HttpRequest, Once},
};
use parking_lot::{Condvar, Mutex};
use tokio::{sync::oneshot, time::sleep};

/// Who waits for the lock looks again after so long.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The time a request may take is counted in these, so that one during which the process was stopped counts once.
const TICK: Duration = Duration::from_millis(100);
/// A new pair that cannot be stored is tried again after so long, and so often: the disk may be full for a moment, and the
/// server gives no such pair again.
const STORE_AGAIN: Duration = Duration::from_secs(1);
const STORE_ATTEMPTS: u32 = 60;
/// An attempt says why it waited, before its deadline says only that it did.
const BEFORE_DEADLINE: Duration = Duration::from_millis(200);
/// The status of what only a new sign-in mends (RFC 9110, section 15.5.2).
pub const UNAUTHORIZED: u16 = 401;

/// How a token is refreshed.
pub struct TokenRules {
    /// Its resource.
    pub name: Arc<str>,
    /// The request that refreshes it.
    pub request: HttpRequest,
    /// Where the answer has what.
    pub paths: Paths,
    /// A use without an outcome is repeated for so long.
    pub grace: Duration,
    /// It is refreshed so long before it ends.
    pub refresh_before: Duration,
    /// The first refresh token, where this process has it.
    pub seed: Option<Secret>,
    /// The other secrets of the request.
    pub vault: Arc<dyn Vault + Send + Sync>,
}

/// Keeps a token in this process. Cheap to clone.
#[derive(Clone)]
pub struct Keeper(Arc<Inner>);

struct Inner {
    dir: StateDir,
    file: TokenFile,
    rules: TokenRules,
    seed: Option<Seed>,
    /// The generation that was found to be durable.
    durable: AtomicU64,
    busy: Mutex<u32>,
    idle: Condvar,
}

/// A fetcher whose request carries a token.
pub struct Authorized {
    /// Makes the request; its own vault has everything but the token.
    pub fetcher: HttpFetcher,
    /// The secrets besides the token.
    pub vault: Arc<dyn Vault + Send + Sync>,
    /// Has the token.
    pub keeper: Keeper,
}

/// The clocks of this machine, for a record.
pub fn moment() -> Moment {
    Moment { boot: process::boot_id().unwrap_or(0), time: clock::boottime() }
}

/// What is on record of a token.
///
/// # Errors
/// Says what is wrong and what to do.
pub fn recorded(file: &TokenFile) -> Result<Option<Record>, String> {
    let unreadable =
        |why: String| format!("the file {} of the token cannot be read: {why}", file.path().display());
    match file.read().map_err(|error| unreadable(error.to_string()))? {
        Some(bytes) => Record::from_bytes(&bytes).map(Some).map_err(|error| unreadable(error.to_string())),
        None => Ok(None),
    }
}

impl Keeper {
    /// A keeper of the token in the directory of its group.
    ///
    /// # Errors
    /// When the name of the resource can be no file.
    pub fn new(dir: &StateDir, rules: TokenRules) -> std::io::Result<Self> {
        use sha2::{Digest, Sha256};
        let seed = rules.seed.clone().map(|refresh| {
            let digest = Sha256::digest(refresh.reveal().as_bytes());
            let digest = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            Seed { refresh, digest }
        });
        let file = TokenFile::new(dir, &rules.name)?;
        let (durable, busy, idle) = (AtomicU64::new(0), Mutex::new(0), Condvar::new());
        let inner = Inner { dir: dir.clone(), file, rules, seed, durable, busy, idle };
        Ok(Self(Arc::new(inner)))
    }

    /// Records the seed of this process, if it is a new one and a sign-in is needed: whoever refreshes next begins with it.
    pub fn sign_in(&self) -> bool {
        let inner = &self.0;
        let Ok(Some(lock)) = inner.file.try_lock() else { return false };
        let Ok(Some(record)) = inner.recorded() else { return false };
        let asked = inner.asked(record.generation(), Epoch(0));
        record.signed_in(&asked).is_some_and(|record| lock.replace(&record.to_bytes()).is_ok())
    }

    /// The resource.
    pub fn name(&self) -> &str {
        &self.0.rules.name
    }

    /// A record with a token that serves and is younger than the generation `after`. Waits for whoever refreshes it.
    ///
    /// # Errors
    /// Why there is none; the record says what of it is to be remembered.
    pub async fn younger_than(&self, after: u64, context: &FetchContext) -> Result<Record, FetchFailure> {
        let inner = &self.0;
        let mut waited = Duration::ZERO;
        let lock = loop {
            // Without the lock: a token that serves can be read at any time.
            if let Some(record) = inner.recorded()?.filter(|record| record.serves(after, moment())) {
                inner.settle(&record)?;
                return Ok(record);
            }
            match inner.file.try_lock().map_err(|error| inner.refused(&error.to_string()))? {
                Some(lock) => break lock,
                None if waited + BEFORE_DEADLINE > context.deadline => return Err(inner.held()),
                None => sleep(LOOK_AGAIN).await,
            }
            waited += LOOK_AGAIN;
        };
        let (says, said) = oneshot::channel();
        let (this, context) = (self.clone(), context.clone());
        *inner.busy.lock() += 1;
        let busy = Busy(self.clone());
        let thread = thread::Builder::new().name("paceline-token".to_owned()).spawn(move || {
            let _busy = busy;
            let kept = this.0.keep(&lock, after, &context);
            drop(lock);
            hit("token_unlocked");
            // Whoever asked may have given up.
            let _ = says.send(kept);
        });
        thread.map_err(|error| inner.refused(&format!("no thread can be started: {error}")))?;
        said.await.unwrap_or_else(|_| Err(inner.refused("its thread panicked")))
    }

    /// A token that is valid and younger than the generation `after`, with its own generation. One that is due is taken while
    /// it is valid, and refreshed meanwhile.
    ///
    /// # Errors
    /// As [`Keeper::younger_than`].
    pub async fn valid(&self, after: u64, context: &FetchContext) -> Result<(u64, Secret), FetchFailure> {
        let valid = |record: &Record| record.access(moment()).filter(|_| record.generation() > after);
        if let Some(record) = self.0.recorded()?
            && let Some(token) = valid(&record)
        {
            self.0.settle(&record)?;
            if !record.serves(after, moment()) {
                let (this, context) = (self.clone(), context.clone());
                // Whoever comes when it is not valid any more is told what went wrong.
                #[expect(
                    clippy::disallowed_methods,
                    reason = "fetchers run on the session's own second thread"
                )]
                tokio::spawn(async move { drop(this.younger_than(after, &context).await) });
            }
            return Ok((record.generation(), token));
        }
        let record = self.younger_than(after, context).await?;
        valid(&record)
            .map(|token| (record.generation(), token))
            .ok_or_else(|| self.0.refused("it ended as it came; is the life that the server gives right?"))
    }

    /// Waits until no use is under way, or for as long as one may take.
    pub(crate) fn finish(&self) {
        let limit = self.0.rules.request.timeout + STORE_AGAIN;
        let mut busy = self.0.busy.lock();
        while *busy > 0 {
            if self.0.idle.wait_for(&mut busy, limit).timed_out() {
                tracing::warn!(token = %self.0.rules.name, "left while a refresh was under way");
                return;
            }
        }
    }
}

/// A use is under way.
struct Busy(Keeper);

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.0.busy.lock() -= 1;
        self.0.0.idle.notify_all();
    }
}

impl Inner {
    /// Makes durable what is about to be used: whoever wrote it may have died in between.
    fn settle(&self, record: &Record) -> Result<(), FetchFailure> {
        if self.durable.load(Ordering::Relaxed) != record.generation() {
            self.file.sync().map_err(|error| self.refused(&error.to_string()))?;
            self.durable.store(record.generation(), Ordering::Relaxed);
        }
        Ok(())
    }

    fn recorded(&self) -> Result<Option<Record>, FetchFailure> {
        recorded(&self.file).map_err(|why| self.refused(&why))
    }

    fn asked(&self, after: u64, epoch: Epoch) -> Asked<'_> {
        let (grace, seed) = (self.rules.grace, self.seed.as_ref());
        Asked { after, now: moment(), grace, seed, epoch, pid: std::process::id() }
    }

    /// Does what the record says, with the lock in hand.
    fn keep(&self, lock: &TokenLock, after: u64, context: &FetchContext) -> Result<Record, FetchFailure> {
        let before = self.recorded()?;
        match Record::next(before.clone(), &self.asked(after, context.epoch)) {
            Next::Serve => before.ok_or_else(|| self.refused("its record vanished")),
            Next::NoSeed => Err(self.needs_auth("this process has no first refresh token for it")),
            Next::NeedsAuth(record) => Err(self.give_up(lock, &record)),
            Next::Use(record) => self.refresh(lock, before, record, context),
        }
    }

    fn refresh(
        &self,
        lock: &TokenLock,
        before: Option<Record>,
        record: Record,
        context: &FetchContext,
    ) -> Result<Record, FetchFailure> {
        hit("token_begun");
        if let Err(error) = lock.replace(&record.to_bytes()) {
            // It may stand there all the same, and would be a use that nobody knows the outcome of.
            let _ = lock.replace(&before.unwrap_or_else(|| record.withdrawn()).to_bytes());
            return Err(self.refused(&format!("a use cannot be recorded: {error}")));
        }
        hit("token_intended");
        // The fence: a reign that is over begins no use, nor does a lock that others do not see.
        if !lock.is_in_place() || claim::is_over(&self.dir, context.epoch) {
            self.store(lock, &record.withdrawn())?;
            let why = "the reign that asked for it is over";
            return Err(failure(FailureKind::Cancelled, self.about(why)));
        }
        let sent = moment();
        let (answer, failed) = self.ask(&record, context);
        hit("token_answered");
        let mut record = record.after(&answer, sent, self.rules.refresh_before);
        if let Answer::Unknown(_) = answer {
            // On record already; whether it may be repeated is decided as for anybody who comes later.
            let asked = self.asked(record.generation(), context.epoch);
            if let Next::NeedsAuth(given_up) = Record::next(Some(record.clone()), &asked) {
                record = given_up;
            }
        }
        self.store(lock, &record)?;
        hit("token_stored");
        match (record.needs_auth(), failed) {
            (Some(why), _) => Err(self.needs_auth(why)),
            (None, Some(failed)) => Err(failed),
            (None, None) => Ok(record),
        }
    }

    /// Asks the server, once.
    fn ask(&self, record: &Record, context: &FetchContext) -> (Answer, Option<FetchFailure>) {
        // Connections and their tasks end with this use; none that is half closed can be taken for a new one.
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let why = format!("no event loop can be made: {error}");
                return (Answer::Declined(why.clone()), Some(self.refused(&why)));
            }
        };
        let vault = With { token: record.refresh(), which: Token::Refresh, others: self.rules.vault.clone() };
        let fetcher = HttpFetcher::new(self.rules.request.clone(), Arc::new(vault), HttpClient::default());
        let limit = self.rules.request.timeout;
        let once = runtime.block_on(awake(limit, fetcher.once(context)));
        runtime.shutdown_background();
        let failed = |kind, why: &str| Some(failure(kind, self.about(why)));
        match once {
            Some(Once::Answered { status, body, retry_after }) => {
                let answer = read_answer(status, &body, &self.rules.paths);
                let failed = match &answer {
                    Answer::Rotated { .. } => None,
                    Answer::Refused(why) | Answer::Declined(why) | Answer::Unknown(why) => {
                        failed(FailureKind::Status(status), why).map(|failed| FetchFailure {
                            retry_after_ms: retry_after.map(|wait| wait.as_millis() as u64),
                            ..failed
                        })
                    }
                };
                (answer, failed)
            }
            Some(Once::NotSent(failed)) => (Answer::Declined(failed.why.clone()), Some(failed)),
            Some(Once::Unknown(failed)) => (Answer::Unknown(failed.why.clone()), Some(failed)),
            None => {
                let why =
                    format!("no whole answer within {limit:?}; raise `timeout` if the server needs longer");
                (Answer::Unknown(why.clone()), failed(FailureKind::Timeout, &why))
            }
        }
    }

    /// Puts on record what cannot be had again.
    fn store(&self, lock: &TokenLock, record: &Record) -> Result<(), FetchFailure> {
        let mut attempt = 1;
        loop {
            match lock.replace(&record.to_bytes()) {
                Ok(()) => return Ok(()),
                Err(error) if attempt == STORE_ATTEMPTS => {
                    return Err(self.refused(&format!("what became of a use cannot be recorded: {error}")));
                }
                Err(error) => {
                    let (token, path) = (&*self.rules.name, self.file.path());
                    tracing::warn!(%error, token, path = %path.display(), "a token cannot be stored; free some space");
                    thread::park_timeout(STORE_AGAIN);
                }
            }
            attempt += 1;
        }
    }

    fn give_up(&self, lock: &TokenLock, record: &Record) -> FetchFailure {
        match self.store(lock, record) {
            Ok(()) => self.needs_auth(record.needs_auth().unwrap_or_default()),
            Err(failed) => failed,
        }
    }

    fn needs_auth(&self, why: &str) -> FetchFailure {
        let why = format!("{why}; sign in again and start a session with the new refresh token as its seed");
        failure(FailureKind::Status(UNAUTHORIZED), self.about(&why))
    }

    fn held(&self) -> FetchFailure {
        let why = match self.file.holder() {
            Some(holder) => {
                let stopped = if holder.stopped { ", which is stopped: continue or end it" } else { "" };
                format!("it is being refreshed by the process {}{stopped}", holder.pid)
            }
            None => "it is being refreshed".to_owned(),
        };
        failure(FailureKind::Timeout, self.about(&why))
    }

    fn refused(&self, why: &str) -> FetchFailure {
        failure(FailureKind::Refused(1), self.about(why))
    }

    fn about(&self, why: &str) -> String {
        format!("refresh the token {:?}: {why}", self.rules.name)
    }
}

impl Fetcher for Keeper {
    fn fetch(&self, context: FetchContext) -> Fetching {
        let this = self.clone();
        Box::pin(async move {
            let after = after(&context.key);
            match this.younger_than(after.unwrap_or(0), &context).await {
                Ok(record) => {
                    hit("token_published");
                    published(&record, after.is_some())
                }
                Err(failed) => FetchOutcome::Failed(failed),
            }
        })
    }
}

impl Fetcher for Authorized {
    fn fetch(&self, context: FetchContext) -> Fetching {
        let (fetcher, vault, keeper) = (self.fetcher.clone(), self.vault.clone(), self.keeper.clone());
        Box::pin(async move {
            let mut after = 0;
            loop {
                let (generation, token) = match keeper.valid(after, &context).await {
                    Ok(valid) => valid,
                    Err(failed) => return FetchOutcome::Failed(failed),
                };
                let vault = With { token, which: Token::Access, others: vault.clone() };
                let outcome = fetcher.with_vault(Arc::new(vault)).fetch(context.clone()).await;
                let rejected = matches!(&outcome, FetchOutcome::Failed(failed)
                    if failed.kind == FailureKind::Status(UNAUTHORIZED));
                if !rejected || after > 0 {
                    return outcome;
                }
                after = generation;
            }
        })
    }
}

/// A token, besides other secrets.
struct With {
    token: Secret,
    which: Token,
    others: Arc<dyn Vault + Send + Sync>,
}

impl Vault for With {
    fn secret(&self, name: &str) -> Option<Secret> {
        self.others.secret(name)
    }

    fn token(&self, which: Token) -> Option<Secret> {
        (which == self.which).then(|| self.token.clone())
    }
}

/// Of a token's key: the generation that a younger one is wanted than, `[.., 7]`.
fn after(key: &QueryKey) -> Option<u64> {
    key.segments().last().and_then(serde_json::Value::as_u64)
}

/// What the group is told: the number of the rotation, and when to ask again. That there is a younger one than some
/// generation stays right.
fn published(record: &Record, stays: bool) -> FetchOutcome {
    let stale = match record.due_in(moment()) {
        Some(due) if !stays => Staleness::After(due),
        Some(_) | None => Staleness::Never,
    };
    let hints = Hints { stale: Some(stale), poll: None };
    FetchOutcome::Value {
        value: Bytes::from(format!("{{\"generation\":{}}}", record.generation())),
        version: Version::None,
        etag: "".into(),
        hints: hints.to_bytes().into(),
    }
}

/// Waits for `future` while this process runs for `limit`. What a process sleeps through counts little: an answer that came
/// meanwhile is there to be read.
async fn awake<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut left = limit.as_millis().div_ceil(TICK.as_millis());
    loop {
        tokio::select! {
            biased;
            output = &mut future => return Some(output),
            () = sleep(TICK) => left = left.saturating_sub(1),
        }
        if left == 0 {
            return None;
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keeper").field(&self.0.rules.name).finish()
    }
}
