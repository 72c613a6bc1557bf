//! `run`: a coordinator. Preferred as primary; leaves politely, hands over before it is stopped, goes when alone.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt, time::Duration};

use paceline::{Role, Session};
use paceline_ipc::dirs::StateDir;
use paceline_proto::look::EventRecord;
use rustix::process::{Signal, getpid, kill_process, setsid};
use tokio::{
    signal::unix::{Signal as Signals, SignalKind, signal},
    sync::watch,
    time::Instant,
};

use crate::{
    args::{IdleExit, Run},
    document::{Event, document},
    failure::Failure,
    listing::wall_of,
    settings::Settings,
    start,
    ui::{Style, Ui},
};

/// The log of a background coordinator begins anew when it is longer.
const LOG_MAX: u64 = 1 << 20;
/// A coordinator that could not leave for being busy tries again after this time at the latest.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until it is told to leave.
pub async fn run(settings: &Settings, run: Run, ui: &Ui) -> Result<(), Failure> {
    let config = settings.leading_config()?;
    let dir = settings.open_dir()?;
    if run.background {
        detach(&dir)?;
    }
    let mut asked = Asked::listen()?;
    // Who started this one holds the guard for it.
    let guard = if run.background { None } else { start::guard(&dir).await? };
    let session = tokio::select! {
        joined = settings.session("coordinator").config(config).preferred().join() => joined?,
        () = asked.leave() => return Ok(()),
    };
    drop(guard);
    let set = settings.idle_exit_is_set.then_some(settings.idle_exit);
    let idle_exit = run.idle_exit.or(set).unwrap_or(IdleExit::Never);
    let mut coordinator = Coordinator::new(session, idle_exit, *ui);
    coordinator.say_ready(settings)?;
    coordinator.until_left(&mut asked).await
}

struct Coordinator {
    session: Session,
    idle_exit: IdleExit,
    ui: Ui,
    /// Events told so far.
    told: u64,
    arrived: watch::Receiver<u64>,
    /// Sessions that had joined when this one was last found alone, and when it leaves if none more does.
    alone: Option<(u64, Instant)>,
}

impl Coordinator {
    fn new(session: Session, idle_exit: IdleExit, ui: Ui) -> Self {
        let arrived = session.runtime().observer().arrived();
        Self { session, idle_exit, ui, told: 0, arrived, alone: None }
    }

    fn say_ready(&self, settings: &Settings) -> Result<(), Failure> {
        let role = match &self.session.group().current().role {
            Role::Primary { epoch, .. } => format!("leads epoch {epoch}"),
            Role::Follower { epoch, owner } => {
                format!("follows {} in epoch {epoch}, ready to take over", owner.short())
            }
            _ => "joined".to_owned(),
        };
        let (id, pid) = (self.session.id().short(), std::process::id());
        let text = format!("coordinator {id} of group {:?}, process {pid}: {role}", settings.group.as_str());
        self.tell(EventRecord {
            at: paceline_ipc::clock::boottime().0,
            kind: "ready".to_owned(),
            text,
            level: "info".to_owned(),
        })
    }

    async fn until_left(&mut self, asked: &mut Asked) -> Result<(), Failure> {
        let mut group = self.session.group().watch();
        loop {
            self.tell_events()?;
            self.look_whether_alone();
            let leaves_at = self.alone.map(|(_, at)| at);
            tokio::select! {
                biased;
                wish = asked.next() => match wish {
                    Wish::Leave => break,
                    Wish::Stop => self.stop().await,
                },
                () = sleep_until(leaves_at) => {
                    if self.session.leave_if_alone().await {
                        self.tell_events()?;
                        self.say("leaves: nobody else was here");
                        return Ok(());
                    }
                    self.alone = None;
                    tokio::time::sleep(RETRY).await;
                }
                changed = group.changed() => { changed?; }
                arrived = self.arrived.changed() => {
                    if arrived.is_err() {
                        return Err(Failure::failed("the session's runtime ended"));
                    }
                }
            }
        }
        self.say("leaves");
        let left = self.session.clone().leave().await;
        self.tell_events()?;
        Ok(left?)
    }

    /// Alone is who leads while nobody else has joined for the time given.
    fn look_whether_alone(&mut self) {
        let IdleExit::After(time) = self.idle_exit else { return };
        let group = self.session.group();
        let view = group.current();
        let others = view.members.iter().any(|member| member.session != self.session.id());
        if others || !matches!(view.role, Role::Primary { .. }) {
            self.alone = None;
            return;
        }
        let joined = group.event_counts().get("joined").copied().unwrap_or_default();
        if self.alone.is_none_or(|(before, _)| before != joined) {
            self.alone = Some((joined, Instant::now() + time));
        }
    }

    /// Hands over and then stops, as the terminal wants it; goes on when it is continued.
    async fn stop(&mut self) {
        let leads = matches!(self.session.group().current().role, Role::Primary { .. });
        if leads && let Err(error) = self.session.group().promote(None).await {
            self.say(&format!("is stopped without a successor: {error}"));
        }
        if let Err(error) = kill_process(getpid(), Signal::STOP) {
            self.say(&format!("could not stop itself: {error}"));
        }
    }

    fn tell_events(&mut self) -> Result<(), Failure> {
        let (events, written) = self.session.runtime().observer().records_after(self.told);
        self.told = written;
        let debug = self.session.runtime().observer().is_debug();
        events
            .into_iter()
            .filter(|event| debug || event.level != "debug")
            .try_for_each(|event| self.tell(event))
    }

    fn tell(&self, event: EventRecord) -> Result<(), Failure> {
        let at = wall_of(event.at);
        if self.ui.json {
            let session = self.session.id().to_string();
            let EventRecord { kind, text, level, .. } = event;
            return self.ui.document(&document(Event { at, session, kind, level, text }));
        }
        let style = if event.level == "warn" { Style::Warn } else { Style::Bold };
        let time = self.ui.on_err(Style::Dim, &at.time());
        let text = crate::ui::one_line(&event.text);
        let text = if event.level == "warn" { self.ui.on_err(style, &text) } else { text };
        self.ui.say(&format!("{time}  {text}"));
        Ok(())
    }

    fn say(&self, text: &str) {
        self.ui.say(&format!("paceline: coordinator {} {text}", self.session.id().short()));
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A wish of the user, the terminal or the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Leave,
    Stop,
}

/// Where wishes come from.
struct Asked {
    terminate: Signals,
    interrupt: Signals,
    hang_up: Signals,
    stop: Signals,
}

impl Asked {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::failed(format!("failed to listen to signals: {error}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            stop: listen(SignalKind::from_raw(Signal::TSTP.as_raw()))?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Leave,
            _ = self.interrupt.recv() => Wish::Leave,
            _ = self.hang_up.recv() => Wish::Leave,
            _ = self.stop.recv() => Wish::Stop,
        }
    }

    /// A stop before there is anything to hand over has to wait.
    async fn leave(&mut self) {
        while self.next().await == Wish::Stop {}
    }
}

/// A session of its own, and the group's log for what it has to say.
fn detach(dir: &StateDir) -> Result<(), Failure> {
    // Fails where whoever started this made it the leader of a group of processes: then it is detached already.
    let _ = setsid();
    let path = dir.run_log();
    let too_long = std::fs::metadata(&path).is_ok_and(|found| found.len() > LOG_MAX);
    let log = OpenOptions::new()
        .create(true)
        .append(!too_long)
        .write(true)
        .truncate(too_long)
        .mode(0o600)
        .open(&path);
    let failed =
        |error: std::io::Error| Failure::failed(format!("failed to open {}: {error}", path.display()));
    rustix::stdio::dup2_stderr(log.map_err(failed)?).map_err(|error| failed(error.into()))
}
