//! `status`: who leads, since when, and how the group is.

use paceline::{Connection, ConnectionState, Standing};
use paceline_ipc::clock;

use crate::{
    document::{self, Instant, document},
    failure::Failure,
    group::{self, Absent, Joined},
    settings::Settings,
    ui::{Style, Ui, ago, one_line},
};

/// Shows the group.
pub async fn status(settings: &Settings, ui: &Ui) -> Result<(), Failure> {
    let joined = group::join(settings, "paceline status", Absent::Fail, ui).await?;
    let own = joined.session.id();
    let mut sessions = group::answer(settings, joined.session.group().sessions()).await?;
    sessions.retain(|info| info.member.session != own);
    let conflicts = group::answer(settings, joined.session.group().conflicts()).await?;
    let connections = joined.session.group().current().connections.clone();
    let lead = joined.lead();
    let primary = sessions.iter().find(|info| info.standing == Standing::Primary);
    let primary = primary.map(|info| document::Primary {
        session: info.member.session.to_string(),
        pid: info.member.pid,
        label: info.member.label.clone(),
        since: lead.as_ref().and_then(|lead| lead.since).map(Instant),
        build: info.build.clone(),
    });
    let status = document::Status {
        group: settings.group.to_string(),
        epoch: lead.as_ref().map_or(0, |lead| lead.epoch.0),
        primary,
        sessions: sessions.len(),
        connection: least_healthy(&connections).map(document::Connection::from),
        strategy: None,
        sync: None,
        queries: None,
        outbox: None,
        upstream: None,
        connections: connections.iter().map(document::Connection::from).collect(),
        conflicts: conflicts.iter().map(document::Conflict::from).collect(),
        directory: joined.dir.root().display().to_string(),
    };
    if ui.json {
        ui.document(&document(&status))?;
    } else {
        print(&status, &sessions, &conflicts, &joined, ui)?;
    }
    joined.leave().await;
    Ok(())
}

fn least_healthy(connections: &[Connection]) -> Option<&Connection> {
    connections.iter().max_by_key(|connection| match connection.state {
        ConnectionState::Live => 0,
        ConnectionState::Paused => 1,
        ConnectionState::Degraded => 2,
        ConnectionState::Connecting => 3,
        ConnectionState::Offline => 4,
        ConnectionState::Stopped(_) => 5,
    })
}

fn print(
    status: &document::Status,
    sessions: &[paceline::SessionInfo],
    conflicts: &[paceline::ItemConflict],
    joined: &Joined,
    ui: &Ui,
) -> Result<(), Failure> {
    let row = |name: &str, text: &str| {
        ui.line(&format!("{}  {text}", ui.paint(Style::Dim, &format!("{name:<11}"))))
    };
    row("group", &format!("{}  epoch {}", ui.paint(Style::Bold, &status.group), status.epoch))?;
    match &status.primary {
        Some(primary) => {
            let age = primary.since.and_then(|since| clock::wall().duration_since(since.0).ok());
            let age = age.map_or_else(String::new, |age| {
                format!(", leads for {}", ago(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)))
            });
            let id = &primary.session[24..];
            let name = format!("{} {}", ui.paint(Style::Bold, id), one_line(&primary.label));
            row("primary", &format!("{name}, process {}{age}", primary.pid))?;
        }
        None => row("primary", &ui.paint(Style::Warn, "nobody leads at the moment"))?,
    }
    row("sessions", &counts(sessions))?;
    if status.connections.is_empty() {
        row("upstreams", &ui.paint(Style::Dim, "none declared"))?;
    }
    for (at, connection) in status.connections.iter().enumerate() {
        let style = match connection.state {
            "live" => Style::Good,
            "stopped" | "offline" => Style::Bad,
            _ => Style::Warn,
        };
        let transport =
            connection.transport.as_deref().map_or_else(String::new, |name| format!(" over {name}"));
        let attempts = match connection.attempts {
            0 => String::new(),
            n => format!(", {n} attempts"),
        };
        let why = connection.reason.as_deref().map_or_else(String::new, |why| format!(": {}", one_line(why)));
        let state = ui.paint(style, connection.state);
        let text = format!("{} {state}{transport}{attempts}{why}", one_line(&connection.upstream));
        row(if at == 0 { "upstreams" } else { "" }, &text)?;
    }
    for (at, conflict) in conflicts.iter().enumerate() {
        let text = one_line(&conflict.to_string());
        row(if at == 0 { "conflicts" } else { "" }, &ui.paint(Style::Warn, &text))?;
    }
    row("directory", &joined.dir.root().display().to_string())
}

/// How many there are of each, in words.
fn counts(sessions: &[paceline::SessionInfo]) -> String {
    let current = sessions.iter().filter(|info| info.standing == Standing::Heir { current: true }).count();
    let mut parts = Vec::new();
    for (one, many) in [
        ("primary", "primaries"),
        ("heir", "heirs"),
        ("follower", "followers"),
        ("observer", "observers"),
        ("joining", "joining"),
        ("awaited", "awaited"),
    ] {
        let word = |info: &&paceline::SessionInfo| match info.standing {
            Standing::Follower if info.rank == paceline::Rank::Observer => one == "observer",
            standing => document::role(standing) == one,
        };
        match sessions.iter().filter(word).count() {
            0 => {}
            n if one == "heir" && current < n => parts.push(format!("{n} {many}, {current} up to date")),
            1 => parts.push(format!("1 {one}")),
            n => parts.push(format!("{n} {many}")),
        }
    }
    format!("{} ({})", sessions.len(), parts.join(", "))
}
