//! What the sessions say, as far as they answer.

use std::time::Duration;

use paceline::{ConnectionState, EventRecord, ItemConflict, Look, Seen, SessionInfo};

use crate::{
    document::{Doctor, Finding},
    failure::Failure,
    group::{self, Absent, Joined},
    looks::{Looks, Sight, silent},
    settings::Settings,
    ui::Ui,
};

/// A primary that has not answered by then is told of as silent.
const PATIENCE: Duration = Duration::from_secs(3);
/// Events of one kind that are told in full.
const TOLD: usize = 3;

/// Joins and asks; a primary that does not answer is a finding.
pub(super) async fn ask(
    settings: &Settings,
    doctor: &mut Doctor,
    findings: &mut Vec<Finding>,
    ui: &Ui,
) -> Result<(), Failure> {
    let hasty = settings.hasty(PATIENCE);
    let joined = match group::join(&hasty, "paceline doctor", Absent::Fail, ui).await {
        Ok(joined) => joined,
        Err(failure) => {
            answers(doctor, false);
            // What the files told is not told twice.
            if findings.iter().all(|finding| !["socket", "version"].contains(&finding.kind)) {
                findings.push(Finding::new(
                    "silent",
                    failure.to_string(),
                    "see what the process does (its log, `strace -p`); ending it lets another session take over at once",
                ));
            }
            return Ok(());
        }
    };
    answers(doctor, true);
    let asked = look(&hasty, &joined, doctor, findings).await;
    let own = joined.session.id().to_string();
    doctor.sessions.retain(|session| session.session != own);
    joined.leave().await;
    match asked {
        // The primary fell silent in between: that was told by what it did answer.
        Ok(()) | Err(Failure::Timeout { .. }) => Ok(()),
        Err(failure) => Err(failure),
    }
}

fn answers(doctor: &mut Doctor, yes: bool) {
    if let Some(holder) = &mut doctor.holder {
        holder.answers = Some(yes);
    }
}

async fn look(
    settings: &Settings,
    joined: &Joined,
    doctor: &mut Doctor,
    findings: &mut Vec<Finding>,
) -> Result<(), Failure> {
    let sessions = group::answer(settings, joined.session.group().sessions()).await?;
    slow(&sessions, findings);
    conflicts(&group::answer(settings, joined.session.group().conflicts()).await?, findings);
    upstreams(joined, findings);
    let mut looks = Looks::new(settings, joined, None).await?;
    let sights = looks.again(settings, joined, |after| Look::Events { after }).await?;
    for info in silent(&sights) {
        let pid = info.member.pid;
        findings.push(Finding::new(
            "unanswering",
            format!(
                "session {}, process {pid} ({}), does not answer",
                info.member.session.short(),
                info.member.label
            ),
            format!("if it is stopped, continue it (kill -CONT {pid}) or end it (kill {pid})"),
        ));
    }
    causes(&sights, doctor);
    complaints(&sights, findings);
    Ok(())
}

fn slow(sessions: &[SessionInfo], findings: &mut Vec<Finding>) {
    for info in sessions.iter().filter(|info| info.conflated) {
        findings.push(Finding::new(
            "slow",
            format!(
                "session {}, process {} ({}), reads too slowly: {} frames were left out",
                info.member.session.short(),
                info.member.pid,
                info.member.label,
                info.dropped
            ),
            "it gets the latest of each key; see whether its process is starved or stopped",
        ));
    }
}

fn conflicts(conflicts: &[ItemConflict], findings: &mut Vec<Finding>) {
    for conflict in conflicts {
        let (ignored, counts) = (conflict.ignored.pid, conflict.counts.pid);
        findings.push(Finding::new(
            "config_conflict",
            conflict.to_string(),
            format!("make both say the same, then restart process {ignored}, or {counts} if that one is out of date"),
        ));
    }
}

fn upstreams(joined: &Joined, findings: &mut Vec<Finding>) {
    for connection in &joined.session.group().current().connections {
        let (what, fix) = match &connection.state {
            ConnectionState::Stopped(why) => {
                (format!("is stopped: {why}"), "do what it says, then restart the primary")
            }
            ConnectionState::Offline => (
                format!("is offline after {} attempts", connection.attempts),
                "check its address, the network and the proxy; it is tried again by itself",
            ),
            ConnectionState::Connecting
            | ConnectionState::Live
            | ConnectionState::Degraded
            | ConnectionState::Paused => continue,
        };
        findings.push(Finding::new("upstream", format!("upstream {} {what}", connection.upstream), fix));
    }
}

/// Why each reign began and how long it took to be ready, from the sessions that led.
fn causes(sights: &[Sight], doctor: &mut Doctor) {
    for event in events(sights) {
        let Some(rest) = event.text.strip_prefix("leads epoch ").filter(|_| event.kind == "primary_elected")
        else {
            continue;
        };
        let Some((epoch, cause)) = rest.split_once(": ") else { continue };
        let election = doctor.elections.iter_mut().find(|election| election.epoch.to_string() == epoch);
        let Some(election) = election else { continue };
        election.cause = Some(cause.to_owned());
        let ready = format!("epoch {epoch} has its store");
        let adopted = events(sights).find(|event| event.kind == "adopted" && event.text.starts_with(&ready));
        election.ready_ms = adopted.map(|adopted| adopted.at.saturating_sub(event.at) as f64 / 1e6);
    }
}

/// What sessions saw and somebody should look at.
fn complaints(sights: &[Sight], findings: &mut Vec<Finding>) {
    for (kind, fix) in [
        ("adoption_failed", "do what it says; nothing is acknowledged until then"),
        ("store_too_new", "update the program that says so"),
        ("join_refused", "do what it says, or end sessions where too many are joined"),
        ("version_refused", "update the older of the two programs"),
        ("owner_unreachable", "see whether the primary's directory was moved or its socket removed"),
        ("claim_failed", "see whether the directory is writable and the disk has space"),
        (
            "peer_refused",
            "a process that speaks another language connects to the group's socket: see which it is (ps -p PID), then end or update it",
        ),
        (
            "limit_reached",
            "docs/LIMITS.md says what each limit is for; raise RLIMIT_NOFILE with ulimit -n; at UNAUTHENTICATED_MAX find who \
             connects to the group's socket and says nothing (ss -xp)",
        ),
        ("version_clash", "the upstream gave one version to two values: its versions cannot be trusted"),
        ("upstream_message_refused", "compare the message with the routes declared for the upstream"),
    ] {
        let seen: Vec<&EventRecord> = events(sights).filter(|event| event.kind == kind).collect();
        let Some(last) = seen.last() else { continue };
        let more = if seen.len() > TOLD { format!(" ({} times)", seen.len()) } else { String::new() };
        let age = paceline_ipc::clock::boottime().0.saturating_sub(last.at) / 1_000_000;
        let text = format!("{}{more}, {} ago", last.text, crate::ui::ago(age));
        findings.push(Finding::new(kind, text, fix));
    }
}

fn events(sights: &[Sight]) -> impl Iterator<Item = &EventRecord> {
    sights.iter().flat_map(|sight| match &sight.seen {
        Some(Seen::Events { events, .. }) => events.as_slice(),
        _ => &[],
    })
}
