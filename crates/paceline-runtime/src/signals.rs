//! Signals of the process, taken over only when a session asks for it.
//!
//! SIGTERM, SIGINT and SIGHUP let every session of the process that asked leave politely; then the process exits with 128
//! and the signal's number, as a shell would say it, or goes on where every session says that its program ends by itself.
//! A second one does not wait. SIGTSTP lets an owner hand over before the process stops. After SIGCONT every owner looks at
//! its fence before anything else. A SIGHUP that the process ignores, as under `nohup`, stays ignored.
//!
//! A handler that was installed stays for as long as the process lives, so one thread serves it for all sessions, and goes
//! on to do what the signal would have done when none is left.

use std::{
    io,
    sync::{LazyLock, mpsc},
    thread,
    time::Duration,
};

use futures_util::future::join_all;
use paceline_proto::{election::Role, event::Event, id::Trace, limits::HANDOVER_TIMEOUT};
use parking_lot::Mutex;
use rustix::process::{Signal, getpid, kill_process};
use tokio::{
    signal::unix::{Signal as Signals, SignalKind, signal},
    sync::watch,
    time::timeout,
};

use crate::{
    death::Death,
    election::ElectionIn,
    observe::Observer,
    replica::{GroupReceiver, changed_or_dead},
    shell::Mail,
};

/// A polite leave takes some milliseconds, and two handovers that fail at worst. Whoever sent the signal waits no longer.
const LEAVE_WAIT: Duration = HANDOVER_TIMEOUT.saturating_mul(5);
/// A handover ends by itself within twice its time-out; joining the new owner takes some milliseconds more.
const SUSPEND_WAIT: Duration = HANDOVER_TIMEOUT.saturating_mul(3);

/// What becomes of the process when a signal let its sessions leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// It exits with 128 and the signal's number.
    Exit,
    /// It goes on: its program sees that the session left, and ends in its own way.
    Return,
}

/// A session that asked.
pub(crate) struct Handled {
    pub afterwards: Afterwards,
    pub election: Mail<ElectionIn>,
    pub observer: Observer,
    pub group: GroupReceiver,
    pub death: Death,
    /// True when its thread has released everything.
    pub ended: watch::Receiver<bool>,
}

#[derive(Default)]
struct Served {
    sessions: Vec<Handled>,
    running: bool,
}

impl Served {
    /// Whether the program ends by itself when its sessions left. One without sessions wants what the signal does.
    fn returns(&self) -> bool {
        let mut here = self.sessions.iter().filter(|session| !*session.ended.borrow()).peekable();
        here.peek().is_some() && here.all(|session| session.afterwards == Afterwards::Return)
    }
}

static SERVED: LazyLock<Mutex<Served>> = LazyLock::new(Mutex::default);

/// From here on the signals of the process act on this session too. The first call takes them over.
pub(crate) fn handle(session: Handled) -> io::Result<()> {
    let mut served = SERVED.lock();
    if !served.running {
        start()?;
        served.running = true;
    }
    served.sessions.retain(|session| !*session.ended.borrow());
    served.sessions.push(session);
    Ok(())
}

/// Starts the thread; returns when the handlers are installed.
fn start() -> io::Result<()> {
    let (ready, is_ready) = mpsc::sync_channel(1);
    thread::Builder::new().name("paceline-signals".to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error))),
        };
        runtime.block_on(async {
            match Taken::install() {
                Ok(taken) => {
                    // The starter waits for it.
                    let _ = ready.send(Ok(()));
                    taken.serve().await;
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
    })?;
    is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("the thread for signals ended at once")))
}

/// The signals taken over.
struct Taken {
    ending: Ending,
    suspend: Signals,
    resume: Signals,
}

impl Taken {
    fn install() -> io::Result<Self> {
        let taken = |kind: Signal| signal(SignalKind::from_raw(kind.as_raw()));
        Ok(Self {
            ending: Ending {
                terminate: taken(Signal::TERM)?,
                interrupt: taken(Signal::INT)?,
                hang_up: if ignores(Signal::HUP) { None } else { Some(taken(Signal::HUP)?) },
            },
            suspend: taken(Signal::TSTP)?,
            resume: taken(Signal::CONT)?,
        })
    }

    async fn serve(mut self) {
        loop {
            tokio::select! {
                by = self.ending.next() => self.end(by).await,
                _ = self.suspend.recv() => stop().await,
                _ = self.resume.recv() => look_at_fences(),
            }
        }
    }

    /// All leave; then the process ends, or its program ends it. A second signal says that somebody does not want to wait.
    async fn end(&mut self, by: Signal) {
        tracing::info!(signal = ?by, "the sessions of this process leave");
        let returns = SERVED.lock().returns();
        let left = tokio::select! {
            left = timeout(LEAVE_WAIT, leave()) => left.is_ok(),
            _ = self.ending.next() => false,
        };
        if !(left && returns) {
            std::process::exit(128 + by.as_raw());
        }
    }
}

/// Signals that end a process.
struct Ending {
    terminate: Signals,
    interrupt: Signals,
    /// None where the process ignores it.
    hang_up: Option<Signals>,
}

impl Ending {
    async fn next(&mut self) -> Signal {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signals) => signals.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.interrupt.recv() => Signal::INT,
            _ = hang_up => Signal::HUP,
        }
    }
}

/// Whether the process was started with this signal ignored. Where the system does not tell, it was not.
fn ignores(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask & (1 << (signal.as_raw() - 1)) != 0
}

async fn leave() {
    let ends: Vec<_> = {
        let served = SERVED.lock();
        for session in &served.sessions {
            session.election.tell(ElectionIn::Leave, Trace::NONE);
        }
        served.sessions.iter().map(|session| session.ended.clone()).collect()
    };
    join_all(ends.into_iter().map(|mut ended| async move {
        // The sender lives in the session's thread: an error means that it ended.
        let _ = ended.wait_for(|ended| *ended).await;
    }))
    .await;
}

/// Owners hand over; then the process stops, handed over or not.
async fn stop() {
    let handovers: Vec<_> = SERVED.lock().sessions.iter().filter_map(hand_over).collect();
    if timeout(SUSPEND_WAIT, join_all(handovers)).await.is_err() {
        tracing::warn!("the process stops without having handed over");
    }
    // It goes on behind this line when it is continued.
    if let Err(error) = kill_process(getpid(), Signal::STOP) {
        tracing::warn!(%error, "the process cannot stop itself");
    }
}

/// Asks an owner to hand over. Done when it follows another, when nobody can take over, or when it ended.
fn hand_over(session: &Handled) -> Option<impl Future<Output = ()> + use<>> {
    let mut group = session.group.clone();
    if !leads(&group.borrow_and_update().role) {
        return None;
    }
    let (mut events, death) = (session.observer.follow_from_now(), session.death.clone());
    session.election.tell(ElectionIn::Promote { to: None }, Trace::NONE);
    Some(async move {
        let follows = async {
            while !matches!(group.borrow_and_update().role, Role::Follower { .. }) {
                if changed_or_dead(&mut group, &death).await.is_err() {
                    return;
                }
            }
        };
        let aborted = async {
            while let Some((events, _)) = events.next(&death).await {
                if events.iter().any(|(_, event)| matches!(event, Event::HandoverAborted { .. })) {
                    return;
                }
            }
        };
        tokio::select! {
            () = follows => {}
            () = aborted => {}
        }
    })
}

fn leads(role: &Role) -> bool {
    matches!(role, Role::Primary { .. } | Role::Draining { .. })
}

fn look_at_fences() {
    for session in &SERVED.lock().sessions {
        session.election.tell(ElectionIn::Continued, Trace::NONE);
    }
}
