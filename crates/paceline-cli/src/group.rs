//! Whether a group runs, and joining it as an observer.

use std::time::{Duration, SystemTime};

use paceline::{Builder, Session};
use paceline_ipc::{
    claim::{self, ClaimBody},
    dirs::StateDir,
    lock::LockState,
    member,
};
use paceline_proto::{
    id::Epoch,
    program::{Misfit, Program, Speaker},
};

use crate::{failure::Failure, settings::Settings, start, ui::Ui};

/// Sessions that lost their primary lead again within milliseconds; where none does for so long, those that live are
/// observers.
const TAKEOVER: Duration = Duration::from_millis(500);
/// Between two looks at a lock.
const STEP: Duration = Duration::from_millis(10);

/// The newest claim.
#[derive(Debug, Clone)]
pub struct Lead {
    /// Its epoch.
    pub epoch: Epoch,
    /// What it says, if it can be read.
    pub body: Option<ClaimBody>,
    /// When it was made.
    pub since: Option<SystemTime>,
    /// Whether its owner lives.
    pub lock: LockState,
}

/// Looks at the newest claim.
pub fn lead(dir: &StateDir) -> Option<Lead> {
    let epoch = claim::list_claims(dir).ok()?.pop()?;
    let seen = claim::inspect_claim(dir, epoch);
    Some(Lead { epoch, body: seen.body, since: claim::claimed_at(dir, epoch), lock: seen.lock })
}

/// Whether a living process owns the newest claim. Nobody is taken for dead who cannot be looked at.
pub fn is_owned(dir: &StateDir) -> bool {
    lead(dir).is_some_and(|lead| matches!(lead.lock, LockState::Held | LockState::Unreadable(_)))
}

/// Whether the group runs: it is owned, or a session that lives takes it over at once.
pub async fn runs(dir: &StateDir) -> bool {
    let mut waited = Duration::ZERO;
    while !is_owned(dir) {
        let nobody = member::live_sessions(dir).is_ok_and(|alive| alive.is_empty());
        if nobody || waited >= TAKEOVER {
            return false;
        }
        tokio::time::sleep(STEP).await;
        waited += STEP;
    }
    true
}

/// Returns when the group runs no longer.
pub async fn ended(dir: &StateDir) {
    while runs(dir).await {
        tokio::time::sleep(5 * STEP).await;
    }
}

/// What a command does where no group runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// It fails.
    Fail,
    /// It starts a coordinator.
    Start,
}

/// An observer of the group: reads, asks and sets, but never leads.
#[derive(Debug)]
pub struct Joined {
    /// Its session.
    pub session: Session,
    /// The group's directory.
    pub dir: StateDir,
}

impl Joined {
    /// The claim of whoever leads.
    pub fn lead(&self) -> Option<Lead> {
        lead(&self.dir)
    }

    /// Leaves; the answers are already here, so a failure changes nothing.
    pub async fn leave(self) {
        let _ = self.session.leave().await;
    }
}

/// Joins the group as an observer.
///
/// # Errors
/// [`Failure::NoGroup`] where none runs and none is to be started; [`Failure::Timeout`] where its primary does not
/// answer; [`Failure::Version`] where its build is too different.
pub async fn join(settings: &Settings, label: &str, absent: Absent, ui: &Ui) -> Result<Joined, Failure> {
    join_with(settings, label, absent, ui, |builder| builder).await
}

/// [`join`] with a session that declares something.
///
/// # Errors
/// As [`join`].
pub async fn join_with(
    settings: &Settings,
    label: &str,
    absent: Absent,
    ui: &Ui,
    prepare: impl Fn(Builder) -> Builder,
) -> Result<Joined, Failure> {
    let joining = join_or_start(settings, label, absent, ui, prepare);
    match tokio::time::timeout(settings.timeout, joining).await {
        Ok(joined) => joined,
        Err(_) => Err(silent(settings)),
    }
}

async fn join_or_start(
    settings: &Settings,
    label: &str,
    absent: Absent,
    ui: &Ui,
    prepare: impl Fn(Builder) -> Builder,
) -> Result<Joined, Failure> {
    loop {
        let dir = settings.find_dir()?;
        let Some(dir) = running(dir).await else {
            if absent == Absent::Fail {
                return Err(settings.no_group());
            }
            start::ensure(settings, ui).await?;
            continue;
        };
        if let Some(version) = lead(&dir).and_then(|lead| other_version(&lead)) {
            return Err(version);
        }
        tokio::select! {
            joined = prepare(settings.session(label).observer()).join() => {
                return Ok(Joined { session: joined?, dir });
            }
            // Its coordinator left while this session knocked.
            () = ended(&dir) => {}
        }
    }
}

async fn running(dir: Option<StateDir>) -> Option<StateDir> {
    let dir = dir?;
    runs(&dir).await.then_some(dir)
}

/// Waits for an answer of the primary, as long as the user wants to.
///
/// # Errors
/// [`Failure::Timeout`], or what the call failed with.
pub async fn answer<T>(
    settings: &Settings,
    call: impl Future<Output = Result<T, paceline::Error>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(settings.timeout, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(silent(settings)),
    }
}

fn silent(settings: &Settings) -> Failure {
    let lead = settings.find_dir().ok().flatten().and_then(|dir| lead(&dir));
    let what = match lead.and_then(|lead| Some((lead.epoch, lead.body?))) {
        Some((epoch, body)) => {
            format!("the primary of epoch {epoch}, process {} ({}), is silent", body.process.pid, body.label)
        }
        None => "no session leads the group".to_owned(),
    };
    Failure::Timeout { what, after: settings.timeout }
}

/// Whether the primary speaks another protocol; it would turn this session away in the end.
fn other_version(lead: &Lead) -> Option<Failure> {
    let misfit = lead.body.as_ref().and_then(misfit)?;
    Some(Failure::Version(misfit.to_string()))
}

/// How this build and a primary's do not fit.
pub fn misfit(primary: &ClaimBody) -> Option<Misfit> {
    let ours = Program::new(concat!("paceline ", env!("CARGO_PKG_VERSION")), std::process::id()).speaker();
    let theirs = Speaker { build: primary.build.clone(), pid: primary.process.pid, proto: primary.proto };
    Misfit::between(ours, theirs)
}
