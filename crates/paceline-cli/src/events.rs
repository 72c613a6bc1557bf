//! `events`, `stats` and `debug`: what sessions observed, how often, and how loud they are.

use std::{collections::BTreeMap, time::Duration};

use paceline::{EventRecord, Look, Seen};

use crate::{
    args::{DebugArgs, Events, Level, Switch},
    document::{self, document, short},
    failure::Failure,
    group::{self, Absent},
    listing::wall_of,
    looks::{Looks, Sight, silent},
    settings::Settings,
    ui::{Cell, Style, Ui, ago, one_line},
};

/// Between two looks while following.
const STEP: Duration = Duration::from_millis(200);

/// Shows the log of observable events of all sessions, in the order of time.
pub async fn events(settings: &Settings, events: Events, ui: &Ui) -> Result<(), Failure> {
    let joined = group::join(settings, "paceline events", Absent::Fail, ui).await?;
    let mut looks = Looks::new(settings, &joined, events.session.as_deref()).await?;
    let sights = looks.again(settings, &joined, |after| Look::Events { after }).await?;
    let lines = lines_of(&sights, &events);
    if ui.json && !events.follow {
        ui.document(&document(document::Events {
            group: settings.group.to_string(),
            events: lines.into_iter().map(|(_, line)| line).collect(),
            silent: silent(&sights).iter().map(|info| info.member.session.to_string()).collect(),
        }))?;
    } else {
        say_who_is_silent(&sights, ui);
        print(lines, ui)?;
    }
    if !events.follow {
        joined.leave().await;
        return Ok(());
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(STEP) => {}
            _ = tokio::signal::ctrl_c() => {
                joined.leave().await;
                return Err(Failure::Interrupted);
            }
        }
        let sights = looks.again(settings, &joined, |after| Look::Events { after }).await?;
        print(lines_of(&sights, &events), ui)?;
    }
}

/// Names the sessions that did not answer.
pub fn say_who_is_silent(sights: &[Sight], ui: &Ui) {
    for info in silent(sights) {
        let id = short(info.member.session);
        ui.say(&format!(
            "paceline: session {id}, process {}, did not answer and is left out",
            info.member.pid
        ));
    }
}

fn lines_of(sights: &[Sight], wanted: &Events) -> Vec<(String, document::Event)> {
    let mut lines = Vec::new();
    for sight in sights {
        let Some(Seen::Events { events, .. }) = &sight.seen else { continue };
        let fits = |event: &&EventRecord| {
            Level::of(&event.level) >= wanted.level
                && wanted.kind.as_ref().is_none_or(|kind| *kind == event.kind)
        };
        lines.extend(events.iter().filter(fits).map(|event| {
            (
                event.at,
                sight.info.member.label.clone(),
                document::Event {
                    at: wall_of(event.at),
                    session: sight.info.member.session.to_string(),
                    kind: event.kind.clone(),
                    level: event.level.clone(),
                    text: event.text.clone(),
                },
            )
        }));
    }
    lines.sort_by_key(|(at, ..)| *at);
    lines.into_iter().map(|(_, label, event)| (label, event)).collect()
}

fn print(lines: Vec<(String, document::Event)>, ui: &Ui) -> Result<(), Failure> {
    for (label, event) in lines {
        if ui.json {
            ui.document(&document(event))?;
            continue;
        }
        let style = match Level::of(&event.level) {
            Level::Debug => Style::Dim,
            Level::Info => Style::Good,
            Level::Warn => Style::Warn,
        };
        ui.line(&format!(
            "{}  {}  {:<14}  {}  {}",
            ui.paint(Style::Dim, &event.at.time()),
            ui.paint(Style::Bold, &event.session[24..]),
            one_line(&label),
            ui.paint(style, &format!("{:<16}", event.kind)),
            one_line(&event.text),
        ))?;
    }
    Ok(())
}

/// Shows the counters of the reign and how often each kind of event happened in each session.
pub async fn stats(settings: &Settings, ui: &Ui) -> Result<(), Failure> {
    let joined = group::join(settings, "paceline stats", Absent::Fail, ui).await?;
    let stats = group::answer(settings, joined.session.group().stats()).await?;
    let mut looks = Looks::new(settings, &joined, None).await?;
    // Only the counts are wanted.
    let sights = looks.again(settings, &joined, |_| Look::Events { after: u64::MAX }).await?;
    joined.leave().await;
    let sessions: Vec<document::Counted> = sights
        .iter()
        .map(|sight| document::Counted {
            session: sight.info.member.session.to_string(),
            label: sight.info.member.label.clone(),
            pid: sight.info.member.pid,
            events: match &sight.seen {
                Some(Seen::Events { counts, .. }) => Some(counts.iter().cloned().collect()),
                _ => None,
            },
        })
        .collect();
    let stats = document::Stats {
        group: settings.group.to_string(),
        epoch: stats.last.epoch.0,
        offset: stats.last.offset.0,
        age_ms: stats.age_ms,
        keys: stats.keys,
        bytes: stats.bytes,
        counters: stats.counters.into_iter().collect(),
        sessions,
    };
    if ui.json {
        return ui.document(&document(stats));
    }
    print_stats(&stats, ui)?;
    say_who_is_silent(&sights, ui);
    Ok(())
}

fn print_stats(stats: &document::Stats, ui: &Ui) -> Result<(), Failure> {
    let row = |name: &str, text: String| {
        ui.line(&format!("{}  {text}", ui.paint(Style::Dim, &format!("{name:<14}"))))
    };
    row("epoch", format!("{}, for {}", stats.epoch, ago(stats.age_ms)))?;
    row("cache", format!("{} keys, {} bytes", stats.keys, stats.bytes))?;
    for (name, count) in &stats.counters {
        row(name, count.to_string())?;
    }
    ui.line("")?;
    let mut kinds: BTreeMap<&str, Vec<(&document::Counted, u64)>> = BTreeMap::new();
    for session in &stats.sessions {
        for (kind, count) in session.events.iter().flatten() {
            kinds.entry(kind).or_default().push((session, *count));
        }
    }
    let rows: Vec<Vec<Cell>> = kinds
        .iter()
        .map(|(kind, counts)| {
            let total: u64 = counts.iter().map(|(_, count)| count).sum();
            let each: Vec<String> =
                counts.iter().map(|(session, count)| format!("{} {count}", &session.session[24..])).collect();
            vec![
                Cell::new(*kind).style(Style::Bold),
                Cell::new(total.to_string()),
                Cell::new(each.join(", ")).style(Style::Dim),
            ]
        })
        .collect();
    ui.table(&["EVENT", "COUNT", "IN"], &rows)
}

/// Switches debug lines on or off.
pub async fn debug(settings: &Settings, debug: DebugArgs, ui: &Ui) -> Result<(), Failure> {
    let joined = group::join(settings, "paceline debug", Absent::Fail, ui).await?;
    let on = debug.switch == Switch::On;
    let mut looks = Looks::new(settings, &joined, debug.session.as_deref()).await?;
    let sights = looks.again(settings, &joined, |_| Look::Debug(on)).await?;
    joined.leave().await;
    let switched = sights.iter().filter_map(|sight| match sight.seen {
        Some(Seen::Debug { before }) => {
            Some(document::Debugged { session: sight.info.member.session.to_string(), before, now: on })
        }
        _ => None,
    });
    let switched: Vec<document::Debugged> = switched.collect();
    say_who_is_silent(&sights, ui);
    ui.note(&format!("debug lines are {} in {} sessions", if on { "on" } else { "off" }, switched.len()));
    if !ui.json {
        return Ok(());
    }
    ui.document(&document(document::Debug { group: settings.group.to_string(), sessions: switched }))
}
