//! `sessions` and `queries`: lists that the primary gives.

use std::time::Duration;

use paceline::{QueryKey, SessionInfo, Standing};
use paceline_ipc::clock;

use crate::{
    document::{self, Instant, document, short, spell, version},
    failure::Failure,
    group::{self, Absent},
    settings::Settings,
    ui::{Cell, Style, Ui, ago},
};

/// Lists the sessions, without the one that asks.
pub async fn sessions(settings: &Settings, ui: &Ui) -> Result<(), Failure> {
    let joined = group::join(settings, "paceline sessions", Absent::Fail, ui).await?;
    let group = joined.session.group();
    let stats = group::answer(settings, group.stats()).await?;
    let mut sessions = group::answer(settings, group.sessions()).await?;
    sessions.retain(|info| info.member.session != joined.session.id());
    let last = stats.last.offset.0;
    if ui.json {
        ui.document(&document(document::Sessions {
            group: settings.group.to_string(),
            epoch: stats.last.epoch.0,
            sessions: sessions.iter().map(|info| document::Session::new(info, last)).collect(),
        }))?;
    } else {
        let rows: Vec<Vec<Cell>> = sessions.iter().map(|info| session_row(info, last)).collect();
        let heading = ["SESSION", "ROLE", "LABEL", "PROCESS", "SINCE", "KEYS", "STREAMS", "BEHIND", "BUILD"];
        ui.table(&heading, &rows)?;
    }
    joined.leave().await;
    Ok(())
}

fn session_row(info: &SessionInfo, last: u64) -> Vec<Cell> {
    let (role, style) = match info.standing {
        Standing::Primary => ("primary".to_owned(), Style::Bold),
        Standing::Heir { current: true } => ("heir".to_owned(), Style::Good),
        Standing::Heir { current: false } => ("heir, behind".to_owned(), Style::Warn),
        Standing::Follower if info.rank == paceline::Rank::Observer => ("observer".to_owned(), Style::Dim),
        other => (document::role(other).to_owned(), Style::Dim),
    };
    let behind = match (info.conflated, info.acked) {
        (true, _) => Cell::new(format!("slow, {} left out", info.dropped)).style(Style::Warn),
        (false, Some(acked)) => Cell::new(last.saturating_sub(acked.0).to_string()),
        (false, None) => Cell::new("-"),
    };
    vec![
        Cell::new(short(info.member.session)).style(Style::Bold),
        Cell::new(role).style(style),
        Cell::new(info.member.label.clone()),
        Cell::new(info.member.pid.to_string()),
        Cell::new(ago(info.since_ms)),
        Cell::new(info.keys.to_string()),
        Cell::new(info.streams.to_string()),
        behind,
        Cell::new(info.build.clone()),
    ]
}

/// Lists the keys of the cache.
pub async fn queries(settings: &Settings, ui: &Ui) -> Result<(), Failure> {
    let joined = group::join(settings, "paceline queries", Absent::Fail, ui).await?;
    let keys = group::answer(settings, joined.session.group().keys()).await?;
    let layers = match group::answer(settings, joined.session.group().layers()).await {
        Ok(layers) => Some(layers),
        // The primary's build knows none.
        Err(Failure::Refused(_)) => None,
        Err(failure) => return Err(failure),
    };
    let over =
        |key| layers.as_ref().map(|all| all.iter().find(|(of, _)| of == key).map_or(0, |(_, count)| *count));
    let epoch = joined.lead().map_or(0, |lead| lead.epoch.0);
    let queries: Vec<document::Query> = keys
        .iter()
        .filter_map(|info| {
            Some(document::Query {
                // A key of bytes that no build of this protocol makes is not shown.
                key: document::Key(QueryKey::from_key(&info.key).ok()?),
                bytes: info.bytes,
                stale: info.invalidated,
                version: version(Some(&info.place.version)),
                subscribers: info.subscribers,
                layers: over(&info.key),
                epoch: info.place.mark.epoch.0,
                offset: info.place.mark.offset.0,
            })
        })
        .collect();
    if ui.json {
        ui.document(&document(document::Queries { group: settings.group.to_string(), epoch, queries }))?;
    } else {
        let rows: Vec<Vec<Cell>> = queries.iter().map(query_row).collect();
        ui.table(&["KEY", "BYTES", "STATE", "VERSION", "SUBSCRIBERS", "LAYERS", "SET AT"], &rows)?;
    }
    joined.leave().await;
    Ok(())
}

fn query_row(query: &document::Query) -> Vec<Cell> {
    let state = if query.stale {
        Cell::new("stale").style(Style::Warn)
    } else {
        Cell::new("fresh").style(Style::Good)
    };
    let version = if query.version.is_null() { "-".to_owned() } else { query.version.to_string() };
    vec![
        Cell::new(spell(&query.key.0)).style(Style::Bold),
        Cell::new(query.bytes.to_string()),
        state,
        Cell::new(version),
        Cell::new(query.subscribers.to_string()),
        Cell::new(query.layers.map_or_else(|| "-".to_owned(), |count| count.to_string())),
        Cell::new(format!("{}/{}", query.epoch, query.offset)),
    ]
}

/// The wall clock's time of a time of the machine's clock.
pub fn wall_of(at: u64) -> Instant {
    let age = Duration::from_nanos(clock::boottime().0.saturating_sub(at));
    Instant(clock::wall() - age)
}
