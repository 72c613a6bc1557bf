//! The report for people.

use crate::{
    document::{Doctor, Election},
    failure::Failure,
    ui::{Cell, Style, Ui, ago, one_line},
};

/// Prints the report, findings last.
pub(super) fn print(doctor: &Doctor, ui: &Ui) -> Result<(), Failure> {
    let row = |name: &str, text: &str| {
        ui.line(&format!("{}  {text}", ui.paint(Style::Dim, &format!("{name:<10}"))))
    };
    row("group", &ui.paint(Style::Bold, &doctor.group))?;
    row("directory", doctor.directory.path.as_deref().unwrap_or("none yet"))?;
    row("", &ui.paint(Style::Dim, &doctor.directory.why))?;
    match &doctor.holder {
        None => row("holder", &ui.paint(Style::Warn, "nobody leads"))?,
        Some(holder) => {
            let state = match (holder.stopped, holder.answers) {
                (Some(true), _) => ui.paint(Style::Bad, "stopped"),
                (_, Some(true)) => ui.paint(Style::Good, "answers"),
                (_, Some(false)) => ui.paint(Style::Bad, "does not answer"),
                (_, None) => "not asked".to_owned(),
            };
            let age = holder.age_ms.map_or_else(|| "unknown".to_owned(), ago);
            let (id, label) = (ui.paint(Style::Bold, &holder.session[24..]), one_line(&holder.label));
            row("holder", &format!("{id} {label}, process {}, {state}", holder.pid))?;
            row("", &format!("epoch {}, for {age}; build {}", holder.epoch, one_line(&holder.build)))?;
            let ((least, most), (schema, reader)) = (holder.protocol, holder.store);
            let protocol = if least == most { least.to_string() } else { format!("{least} to {most}") };
            row("", &format!("protocol {protocol}, store schema {schema} for readers from {reader} on"))?;
        }
    }
    let live: Vec<String> = doctor
        .sessions
        .iter()
        .map(|session| {
            let id = &session.session[24..];
            let who =
                session.label.as_deref().map_or_else(String::new, |label| format!(" {}", one_line(label)));
            let role = if session.leads == Some(false) { " (observer)" } else { "" };
            let stopped = if session.stopped == Some(true) { ", stopped" } else { "" };
            format!("{id}{who}{role}{stopped}")
        })
        .collect();
    row("sessions", &format!("{} live", live.len()))?;
    live.iter().try_for_each(|session| row("", session))?;
    row("builds", &builds(doctor))?;
    for other in &doctor.others {
        let state = if other.runs { "runs" } else { "does not run" };
        row("elsewhere", &format!("{} {state}", other.path))?;
    }
    if !doctor.elections.is_empty() {
        ui.line("")?;
        let rows: Vec<Vec<Cell>> = doctor.elections.iter().map(election).collect();
        ui.table(&["EPOCH", "SINCE", "REIGNED", "PROCESS", "WHO", "CAUSE", "STORE READY AFTER"], &rows)?;
    }
    ui.line("")?;
    if doctor.findings.is_empty() {
        return ui.line(&ui.paint(Style::Good, "nothing found"));
    }
    for finding in &doctor.findings {
        ui.line(&format!("{}  {}", ui.paint(Style::Bad, finding.kind), one_line(&finding.what)))?;
        ui.line(&format!("  {} {}", ui.paint(Style::Good, "do:"), one_line(&finding.fix)))?;
    }
    Ok(())
}

fn builds(doctor: &Doctor) -> String {
    let own = doctor.holder.iter().map(|holder| holder.build.clone());
    let mut all: Vec<String> =
        doctor.sessions.iter().filter_map(|session| session.build.clone()).chain(own).collect();
    all.sort_unstable();
    all.dedup();
    if all.is_empty() { "none seen".to_owned() } else { one_line(&all.join(", ")) }
}

fn election(election: &Election) -> Vec<Cell> {
    let unknown = || "-".to_owned();
    vec![
        Cell::new(election.epoch.to_string()).style(Style::Bold),
        Cell::new(election.since.map_or_else(unknown, |since| since.time())).style(Style::Dim),
        Cell::new(election.reigned_ms.map_or_else(unknown, ago)),
        Cell::new(election.pid.map_or_else(unknown, |pid| pid.to_string())),
        Cell::new(election.label.clone().unwrap_or_else(unknown)),
        Cell::new(election.cause.clone().unwrap_or_else(|| "unknown: its session is gone".to_owned())),
        Cell::new(election.ready_ms.map_or_else(unknown, |ms| format!("{ms:.1} ms"))),
    ]
}
