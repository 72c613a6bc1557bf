//! What the files say, whether or not anybody answers.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use paceline::Rank;
use paceline_ipc::{
    claim, clock,
    dirs::{StateDir, containers},
    lock::LockState,
    member, process,
};

use crate::{
    document::{Directory, Election, Finding, Holder, Instant, LiveSession, OtherGroup},
    group::{self, Lead},
    settings::Settings,
};

/// Elections told of.
const ELECTIONS: usize = 8;
/// So many changes of primary in a minute are no chance.
const FLAPPING: usize = 4;
const MINUTE: Duration = Duration::from_secs(60);
/// A primary collects what the dead left behind about once a minute; after so long it does not.
const STUCK: Duration = Duration::from_secs(300);
/// Less free space than this, and a queue cannot grow much.
const SPACE: u64 = 64 << 20;

/// Where the group lies and why there.
pub(super) fn directory(settings: &Settings, dir: Option<&StateDir>) -> Directory {
    let path = dir.map(|dir| dir.root().display().to_string());
    let why = match (&settings.state_dir, dir) {
        (Some(path), _) => format!("{} was named by --state-dir or PACELINE_STATE_DIR", path.display()),
        (None, Some(dir)) if dir.root().starts_with("/var/tmp") => {
            "the home lies on a file system that other machines may share".to_owned()
        }
        (None, _) => "no directory was named: the home of the user database (neither $HOME nor $XDG_STATE_HOME is read)"
            .to_owned(),
    };
    Directory { path, why }
}

/// Groups of the same name that do not see this one.
pub(super) fn other_groups(
    settings: &Settings,
    dir: Option<&StateDir>,
    findings: &mut Vec<Finding>,
) -> Vec<OtherGroup> {
    let own = dir.map(|dir| dir.root().to_owned());
    let mut others = Vec::new();
    for container in possible_containers() {
        let found = settings.in_container(&container);
        let Ok(Some(other)) = found else { continue };
        if own.as_deref().is_some_and(|own| same(own, other.root())) {
            continue;
        }
        let lead = group::lead(&other);
        let runs = group::is_owned(&other);
        let pid = lead.as_ref().and_then(|lead| lead.body.as_ref()).map(|body| body.process.pid);
        if runs && dir.is_some_and(group::is_owned) {
            findings.push(Finding::new(
                "split",
                format!(
                    "another group {:?} runs under {}, led by process {}: its sessions and those here do not see each \
                     other",
                    settings.group.as_str(),
                    container.display(),
                    pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string()),
                ),
                "let all of them use the same PACELINE_STATE_DIR, or none",
            ));
        }
        let path = other.root().display().to_string();
        others.push(OtherGroup { path, runs, epoch: lead.map(|lead| lead.epoch.0), pid });
    }
    others
}

/// Wherever a session of this user could have looked, by whatever rule.
fn possible_containers() -> Vec<PathBuf> {
    let mut all = containers(None);
    all.extend(std::env::var_os("PACELINE_STATE_DIR").map(PathBuf::from));
    all.extend(std::env::var_os("XDG_STATE_HOME").map(|path| PathBuf::from(path).join("paceline")));
    all.extend(std::env::var_os("HOME").map(|path| PathBuf::from(path).join(".local/state/paceline")));
    let mut unique: Vec<PathBuf> = Vec::new();
    for path in all.into_iter().filter(|path| path.is_absolute()) {
        if !unique.iter().any(|known| same(known, &path)) {
            unique.push(path);
        }
    }
    unique
}

fn same(a: &Path, b: &Path) -> bool {
    a == b || fs::canonicalize(a).ok().is_some_and(|a| fs::canonicalize(b).is_ok_and(|b| a == b))
}

/// The newest reigns, newest first.
pub(super) fn elections(dir: &StateDir, findings: &mut Vec<Finding>) -> Vec<Election> {
    let epochs = match claim::list_claims(dir) {
        Ok(epochs) => epochs,
        Err(error) => {
            findings.push(Finding::new(
                "directory",
                format!("the claims in {} cannot be listed: {error}", dir.claims().display()),
                "make the directory readable to this user",
            ));
            return Vec::new();
        }
    };
    let mut ended: Option<SystemTime> = None;
    let mut elections = Vec::new();
    let mut lately = 0;
    for epoch in epochs.into_iter().rev() {
        let seen = claim::inspect_claim(dir, epoch);
        let since = claim::claimed_at(dir, epoch);
        lately += usize::from(since.is_some_and(|since| age(since) < MINUTE));
        // Nobody knows when an owner died that has no successor.
        let until = ended.or_else(|| (!seen.lock.is_free()).then(clock::wall));
        let reigned = since.and_then(|since| until?.duration_since(since).ok());
        if elections.len() < ELECTIONS {
            elections.push(Election {
                epoch: epoch.0,
                since: since.map(Instant),
                reigned_ms: reigned.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
                session: seen.body.as_ref().map(|body| body.session.to_string()),
                pid: seen.body.as_ref().map(|body| body.process.pid),
                label: seen.body.as_ref().map(|body| body.label.clone()),
                build: seen.body.map(|body| body.build),
                cause: None,
                ready_ms: None,
            });
        }
        ended = since;
    }
    if lately >= FLAPPING {
        findings.push(Finding::new(
            "flapping",
            format!("the primary changed {lately} times within the last minute"),
            "look at `paceline events` for the causes; a process that is stopped or starved again and again should not \
             be a coordinator",
        ));
    }
    elections
}

/// The sessions whose locks are held, from their files.
pub(super) fn live_sessions(dir: &StateDir) -> Vec<LiveSession> {
    let alive = member::live_sessions(dir).unwrap_or_default();
    alive
        .into_iter()
        .map(|session| {
            let about = member::about(dir, session);
            LiveSession {
                session: session.to_string(),
                pid: about.as_ref().map(|about| about.process.pid),
                label: about.as_ref().map(|about| about.label.clone()),
                build: about.as_ref().map(|about| about.build.clone()),
                leads: about.as_ref().map(|about| about.rank != Rank::Observer),
                stopped: about.and_then(|about| process::is_stopped(&about.process)),
            }
        })
        .collect()
}

/// Who owns the group now, and what the files say of it.
pub(super) fn holder(dir: &StateDir, alive: &[LiveSession], findings: &mut Vec<Finding>) -> Option<Holder> {
    let lead = group::lead(dir)?;
    match &lead.lock {
        LockState::Held => {}
        LockState::Free | LockState::Missing => {
            without_owner(&lead, alive, findings);
            return None;
        }
        LockState::Unreadable(why) => {
            let path = dir.claim(lead.epoch);
            findings.push(Finding::new(
                "claim",
                format!("the lock of the claim {} cannot be tested: {why}", path.display()),
                format!(
                    "make it a file of this user that it may read, for example chmod u+r {}",
                    path.display()
                ),
            ));
        }
    }
    let Some(body) = lead.body.clone() else {
        findings.push(Finding::new(
            "claim",
            format!("the claim {} is held but cannot be read: nobody knows its owner", dir.claim(lead.epoch).display()),
            "end the process that has it open (`fuser` or `lsof` on the file name it); another session takes over at once",
        ));
        return None;
    };
    let stopped = process::is_stopped(&body.process);
    let others = heirs_apparent(alive, &body.session.to_string());
    if stopped == Some(true) {
        findings.push(frozen(&lead, body.process.pid, &body.label, others));
    }
    let socket = dir.socket(&body.socket);
    if fs::symlink_metadata(&socket).is_err() {
        findings.push(Finding::new(
            "socket",
            format!(
                "the primary, process {}, holds its lock but its socket {} is gone: nobody can join, and it is never \
                 taken for dead",
                body.process.pid,
                socket.display()
            ),
            format!(
                "it binds it again within a second if it runs; if it does not, end it: kill {}",
                body.process.pid
            ),
        ));
    }
    if let Some(misfit) = group::misfit(&body) {
        findings.push(Finding::new("version", misfit.to_string(), "update the older of the two"));
    }
    Some(Holder {
        epoch: lead.epoch.0,
        session: body.session.to_string(),
        pid: body.process.pid,
        label: body.label,
        build: body.build,
        since: lead.since.map(Instant),
        age_ms: lead.since.map(|since| u64::try_from(age(since).as_millis()).unwrap_or(u64::MAX)),
        stopped,
        answers: None,
        protocol: (body.proto.min, body.proto.max),
        store: (body.schema, body.min_reader),
    })
}

/// Living sessions that would lead; sessions that do not say are counted.
fn heirs_apparent(alive: &[LiveSession], but: &str) -> usize {
    alive.iter().filter(|session| session.session != but && session.leads != Some(false)).count()
}

fn frozen(lead: &Lead, pid: u32, label: &str, others: usize) -> Finding {
    let why = if others == 0 {
        "it is not replaced because no other session here may lead: observers never do"
    } else {
        "a session that may lead replaces it about two seconds after it was stopped; if this stays, none hears the others"
    };
    let fix = if others == 0 {
        format!("continue it (kill -CONT {pid}), or start another: paceline run")
    } else {
        format!("run doctor again; then continue it: kill -CONT {pid}")
    };
    Finding::new(
        "frozen",
        format!("the primary of epoch {}, process {pid} ({label}), is stopped; {why}", lead.epoch),
        fix,
    )
}

fn without_owner(lead: &Lead, alive: &[LiveSession], findings: &mut Vec<Finding>) {
    let (lead_able, all) = (heirs_apparent(alive, ""), alive.len());
    if all == 0 {
        return;
    }
    let who = match lead_able {
        0 => format!("who lives, {all} in number, is an observer, and observers never lead"),
        n => format!("{n} of {all} living sessions may lead, and none claimed it"),
    };
    findings.push(Finding::new(
        "leaderless",
        format!("nobody leads: the owner of epoch {} is gone; {who}", lead.epoch),
        "start a coordinator: paceline run",
    ));
}

/// Files that a running primary should have collected.
pub(super) fn stuck(dir: &StateDir, runs: bool, findings: &mut Vec<Finding>) {
    if !runs {
        return;
    }
    let old = |path: &Path| {
        let modified = fs::symlink_metadata(path).and_then(|found| found.modified());
        modified.is_ok_and(|modified| age(modified) > STUCK)
    };
    let names =
        |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let dead_session = |path: &PathBuf| {
        let session = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        session.is_none_or(|session| !member::session_alive(dir, session))
    };
    let sessions: Vec<PathBuf> =
        names(dir.sessions()).filter(|path| old(path)).filter(dead_session).collect();
    if let Some(first) = sessions.first() {
        findings.push(Finding::new(
            "stuck",
            format!("{} files of sessions that are gone were not collected, for example {}", sessions.len(), first.display()),
            "the primary removes them about once a minute: if they stay, its directory may be read-only; they may be \
             deleted by hand",
        ));
    }
    let claims = claim::list_claims(dir).unwrap_or_default();
    let sockets: Vec<String> = claims
        .iter()
        .filter_map(|epoch| claim::inspect_claim(dir, *epoch).body)
        .map(|body| body.socket)
        .collect();
    let kits: Vec<String> = names(dir.kits())
        .filter_map(|path| Some(format!("{}.sock", path.file_name()?.to_str()?.get(24..)?)))
        .collect();
    let orphan = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        old(path) && !sockets.contains(&name) && !kits.contains(&name)
    };
    if let Some(first) = names(dir.sockets()).find(orphan) {
        findings.push(Finding::new(
            "stuck",
            format!("the socket {} belongs to no claim and no kit", first.display()),
            "it may be deleted",
        ));
    }
}

/// Whether the disk is nearly full.
pub(super) fn space(dir: &StateDir, findings: &mut Vec<Finding>) {
    let Ok(found) = rustix::fs::statvfs(dir.root()) else { return };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free < SPACE {
        findings.push(Finding::new(
            "space",
            format!("only {} MiB are free where {} lies", free >> 20, dir.root().display()),
            "free some space: mutations are refused on a full disk",
        ));
    }
}

fn age(since: SystemTime) -> Duration {
    clock::wall().duration_since(since).unwrap_or_default()
}
