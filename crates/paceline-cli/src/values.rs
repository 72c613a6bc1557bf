//! `get`, `set` and `invalidate`.

use paceline::Receipt;
use serde_json::value::RawValue;

use crate::{
    args::{Get, Invalidate, Set, Spawn},
    document::{self, Done, Got, document, raw, spell, version},
    failure::Failure,
    group::{self, Absent},
    settings::Settings,
    ui::Ui,
};

/// What a command that needs a group does where none runs.
pub fn absent(settings: &Settings, spawn: Spawn) -> Absent {
    if settings.spawn && !spawn.no_spawn { Absent::Start } else { Absent::Fail }
}

/// Prints the cached value of a key.
pub async fn get(settings: &Settings, get: Get, ui: &Ui) -> Result<(), Failure> {
    let joined = group::join(settings, "paceline get", absent(settings, get.spawn), ui).await?;
    let query = joined.session.query(&get.key);
    let view = group::answer(settings, query.read::<Box<RawValue>>()).await?;
    joined.leave().await;
    if view.raw().is_empty() {
        return Err(Failure::failed(format!("{} has no value", spell(&get.key))));
    }
    if ui.json {
        return ui.document(&document(Got {
            group: settings.group.to_string(),
            key: document::Key(get.key),
            value: raw(view.raw()),
            stale: view.is_stale(),
            version: version(view.version()),
        }));
    }
    if view.is_stale() {
        ui.note("stale");
    }
    ui.line(&String::from_utf8_lossy(view.raw()))
}

/// Sets the value of a key.
pub async fn set(settings: &Settings, set: Set, ui: &Ui) -> Result<(), Failure> {
    let joined = group::join(settings, "paceline set", absent(settings, set.spawn), ui).await?;
    let receipt = group::answer(settings, joined.session.set(&set.key, &set.value)).await?;
    joined.leave().await;
    let held =
        if receipt.volatile { "held by the primary alone, no heir yet" } else { "held by an heir too" };
    let trace = format!("{:032x}", receipt.trace.trace);
    ui.note(&format!("set {}: {held}; trace {}", spell(&set.key), &trace[24..]));
    done(settings, set.key, receipt, ui)
}

/// Marks keys stale.
pub async fn invalidate(settings: &Settings, invalidate: Invalidate, ui: &Ui) -> Result<(), Failure> {
    let joined = group::join(settings, "paceline invalidate", Absent::Fail, ui).await?;
    let (session, key) = (joined.session.clone(), invalidate.key.clone());
    let receipt = if invalidate.exact {
        group::answer(settings, session.invalidate_exact(key)).await?
    } else {
        group::answer(settings, session.invalidate(key)).await?
    };
    joined.leave().await;
    let what = if invalidate.exact { "" } else { " and what is under it" };
    ui.note(&format!("marked {}{what} stale", spell(&invalidate.key)));
    done(settings, invalidate.key, receipt, ui)
}

fn done(settings: &Settings, key: paceline::QueryKey, receipt: Receipt, ui: &Ui) -> Result<(), Failure> {
    if !ui.json {
        return Ok(());
    }
    ui.document(&document(Done {
        group: settings.group.to_string(),
        key: document::Key(key),
        volatile: receipt.volatile,
        trace: format!("{:032x}", receipt.trace.trace),
    }))
}
