//! `run`: a coordinator. Preferred as primary; leaves politely, hands over before it is stopped, goes when nobody uses the group.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt, time::Duration};

use paceline::{Error, Role, Session};
use paceline_ipc::{dirs::StateDir, member};
use paceline_proto::{look::EventRecord, message::Rank};
use rustix::process::setsid;
use tokio::{sync::watch, time::Instant};

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
/// A coordinator that could not leave, for not being alone or for what is queued, waits so long at least.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until it is told to leave.
pub async fn run(settings: &Settings, run: Run, ui: &Ui) -> Result<(), Failure> {
    let config = settings.leading_config()?;
    let dir = settings.open_dir()?;
    if run.background {
        detach(&dir)?;
    }
    // Who started this one holds the guard for it.
    let guard = if run.background { None } else { start::guard(&dir).await? };
    let session =
        match settings.session("coordinator").config(config).preferred().leave_on_signals().join().await {
            Err(Error::ToldToLeave) => return Ok(()),
            joined => joined?,
        };
    drop(guard);
    let set = settings.idle_exit_is_set.then_some(settings.idle_exit);
    let idle_exit = run.idle_exit.or(set).unwrap_or(IdleExit::Never);
    let mut coordinator = Coordinator::new(session, dir, idle_exit, *ui);
    coordinator.say_ready(settings)?;
    coordinator.until_left().await
}

struct Coordinator {
    session: Session,
    dir: StateDir,
    idle_exit: IdleExit,
    ui: Ui,
    /// Events told so far.
    told: u64,
    arrived: watch::Receiver<u64>,
    idle: Option<Idle>,
}

/// Nobody uses the group.
#[derive(Debug, Clone, Copy)]
struct Idle {
    /// Sessions that had joined when that was found.
    joined: u64,
    /// When this coordinator goes, if no more join.
    until: Instant,
    /// It wanted to go before, and was not alone.
    again: bool,
}

impl Coordinator {
    fn new(session: Session, dir: StateDir, idle_exit: IdleExit, ui: Ui) -> Self {
        let arrived = session.runtime().observer().arrived();
        Self { session, dir, idle_exit, ui, told: 0, arrived, idle: None }
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

    async fn until_left(&mut self) -> Result<(), Failure> {
        let mut group = self.session.group().watch();
        let death = self.session.runtime().death().clone();
        loop {
            self.tell_events()?;
            self.look_whether_idle();
            let goes_at = self.idle.map(|idle| idle.until);
            tokio::select! {
                biased;
                // A signal let it leave, or it cannot go on.
                _ = death.wait() => break,
                () = sleep_until(goes_at) => {
                    if self.goes().await {
                        self.tell_events()?;
                        self.say("leaves: nobody uses the group");
                        return Ok(());
                    }
                }
                changed = group.changed() => {
                    // Its end is seen above.
                    let _ = changed;
                }
                // As above.
                _ = self.arrived.changed() => {}
            }
        }
        let left = self.session.clone().leave().await;
        self.tell_events()?;
        if left.is_ok() {
            self.say("leaves");
        }
        Ok(left?)
    }

    /// Idle is who is with nobody but others that are preferred to lead, for the time given: those are there for the same
    /// reason, and would keep each other for ever.
    fn look_whether_idle(&mut self) {
        let IdleExit::After(time) = self.idle_exit else { return };
        let group = self.session.group();
        let own = self.session.id();
        let used = group.current().members.iter().any(|member| {
            let about = || member::about(&self.dir, member.session);
            member.session != own && about().is_none_or(|about| about.rank != Rank::Preferred)
        });
        if used {
            self.idle = None;
            return;
        }
        let joined = group.event_counts().get("joined").copied().unwrap_or_default();
        if self.idle.is_none_or(|idle| idle.joined != joined) {
            self.idle = Some(Idle { joined, until: Instant::now() + time, again: false });
        }
    }

    /// Leaves if that harms nobody; true when it left. One that follows just goes. One that leads goes when it is alone;
    /// with other coordinators it lets them go first, and hands over to one that stays.
    async fn goes(&mut self) -> bool {
        let follows = matches!(self.session.group().current().role, Role::Follower { .. });
        if follows {
            return self.session.clone().leave().await.is_ok();
        }
        if self.session.leave_if_alone().await {
            return true;
        }
        let IdleExit::After(time) = self.idle_exit else { return false };
        let Some(idle) = self.idle.as_mut() else { return false };
        idle.until = Instant::now() + time.max(RETRY);
        let heir = self.session.group().current().heirs.iter().any(|heir| heir.current && heir.kit.is_some());
        if std::mem::replace(&mut idle.again, true) && heir {
            // Refused where the heir goes as well; then there is another time.
            let _ = self.session.group().promote(None).await;
        }
        false
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
