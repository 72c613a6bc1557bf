//! `get`, `set`, `invalidate` and `refetch`.

use paceline::{Error, FailureKind, Freshness, Query, Receipt};
use serde_json::{Value, value::RawValue};

use crate::{
    args::{Get, Invalidate, Refetch, Set, Spawn},
    cached::{self, Cached},
    document::{self, Done, Got, Preview, Reached, RefetchFailure, Refetched, document, raw, spell, version},
    failure::Failure,
    group::{self, Absent},
    settings::Settings,
    ui::Ui,
};

/// What a command that needs a group does where none runs.
pub fn absent(settings: &Settings, spawn: Spawn) -> Absent {
    if settings.spawn && !spawn.no_spawn { Absent::Start } else { Absent::Fail }
}

/// Prints the value of a key, fetched where it is stale or missing and somebody can.
pub async fn get(settings: &Settings, get: Get, ui: &Ui) -> Result<(), Failure> {
    if !get.command.is_empty() {
        return get_command(settings, get, ui).await;
    }
    let joined = group::join(settings, "paceline get", absent(settings, get.spawn), ui).await?;
    let found = find(settings, joined.session.query(&get.key), &get, ui).await;
    joined.leave().await;
    let Found { value, stale, version, note } = found?;
    if let Some(note) = note {
        ui.note(&note);
    }
    if ui.json {
        let key = document::Key(get.key);
        return ui.document(&document(Got { group: settings.group.to_string(), key, value, stale, version }));
    }
    if stale {
        ui.note("stale");
    }
    ui.line(value.get())
}

/// A value, and what to say of it.
struct Found {
    value: Box<RawValue>,
    stale: bool,
    version: Value,
    note: Option<String>,
}

async fn find(settings: &Settings, query: Query, get: &Get, ui: &Ui) -> Result<Found, Failure> {
    let fresh = get.max_age.map_or(Freshness::by_rules(), |age| Freshness::by_rules().max_age(age));
    // By a question alone: a subscription would let the value be fetched too.
    let asked = tokio::time::timeout(settings.timeout, query.fetch::<Box<RawValue>>(fresh)).await;
    let missed = match asked {
        Ok(Ok(fetched)) => {
            let (stale, cached) = (fetched.is_stale, fetched.is_cached);
            let value = fetched.into_inner();
            let version =
                if ui.json && cached { version_of(settings, &query, &value).await? } else { Value::Null };
            return Ok(Found { value, stale, version, note: None });
        }
        Ok(Err(error)) => missed(error, get),
        Err(_) => {
            let what = format!("{} is being fetched", spell(&get.key));
            Failure::Timeout { what, after: settings.timeout }
        }
    };
    // An age that was asked for is kept, or the command fails.
    if get.max_age.is_some() {
        return Err(missed);
    }
    let held = group::answer(settings, query.read::<Box<RawValue>>()).await?;
    if held.raw().is_empty() {
        return Err(missed);
    }
    let (stale, version) = (held.is_stale(), version(held.version()));
    Ok(Found { value: raw(held.raw()), stale, version, note: Some(missed.to_string()) })
}

/// Why there is no younger value.
fn missed(error: Error, get: &Get) -> Failure {
    match error {
        Error::Fetch(failure) if failure.kind == FailureKind::NoFetcher => {
            Failure::failed(format!("no session can fetch {}", spell(&get.key)))
        }
        other => other.into(),
    }
}

/// The server's version of a value that is held.
async fn version_of(settings: &Settings, query: &Query, value: &RawValue) -> Result<Value, Failure> {
    let held = group::answer(settings, query.read::<Box<RawValue>>()).await?;
    let is_same = held.raw() == value.get().as_bytes();
    Ok(if is_same { version(held.version()) } else { Value::Null })
}

/// Prints what a command writes, run by one of all who ask.
async fn get_command(settings: &Settings, get: Get, ui: &Ui) -> Result<(), Failure> {
    let cached = Cached::new(&get.key, get.command, get.max_age.unwrap_or_default())?;
    let absent = absent(settings, get.spawn);
    let joined =
        group::join_with(settings, "paceline get", absent, ui, |builder| cached.prepare(builder)).await?;
    let found = joined.session.query(cached.key()).fetch::<Value>(cached.freshness()).await;
    joined.leave().await;
    let fetched = found.map_err(cached::failure)?;
    if !ui.json {
        return ui.raw(&cached::bytes(fetched.value())?);
    }
    ui.document(&document(Got {
        group: settings.group.to_string(),
        key: document::Key(cached.key().clone()),
        value: raw(fetched.raw()),
        stale: fetched.is_stale,
        version: Value::Null,
    }))
}

/// Fetches a key and those under it anew.
pub async fn refetch(settings: &Settings, refetch: Refetch, ui: &Ui) -> Result<(), Failure> {
    let joined = group::join(settings, "paceline refetch", Absent::Fail, ui).await?;
    let mut done = group::answer(settings, joined.session.refetch(&refetch.key)).await?;
    if (done.ok, done.failed) == (0, 0) {
        // Nothing of it is cached: the key itself is fetched for the first time.
        let query = joined.session.query(&refetch.key);
        match group::answer(settings, query.refetch::<Box<RawValue>>()).await {
            Ok(_) => done.ok = 1,
            Err(failure) => {
                done.failed = 1;
                done.failures = vec![(refetch.key.clone(), failure.to_string().into())];
            }
        }
    }
    joined.leave().await;
    let all = done.failed == 0;
    if ui.json {
        let failures = done.failures.into_iter();
        ui.document(&document(Refetched {
            group: settings.group.to_string(),
            key: document::Key(refetch.key),
            ok: done.ok,
            failed: done.failed,
            failures: failures
                .map(|(key, why)| RefetchFailure { key: document::Key(key), why: why.to_string() })
                .collect(),
        }))?;
    } else {
        for (key, why) in &done.failures {
            ui.say(&format!("{}: {why}", spell(key)));
        }
        ui.note(&format!("fetched {}, failed {}", done.ok, done.failed));
    }
    if all { Ok(()) } else { Err(Failure::Told) }
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
    if invalidate.preview {
        return preview(settings, invalidate, ui).await;
    }
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

/// Shows what an invalidation would reach; changes nothing.
async fn preview(settings: &Settings, invalidate: Invalidate, ui: &Ui) -> Result<(), Failure> {
    let joined = group::join(settings, "paceline invalidate", Absent::Fail, ui).await?;
    let asked = joined.session.preview(&invalidate.key, invalidate.exact);
    let reached = group::answer(settings, asked).await?;
    joined.leave().await;
    if ui.json {
        let reached = reached.into_iter().map(|line| Reached {
            depth: line.depth,
            cause: line.cause.to_string(),
            key: line.key.map(document::Key),
            resource: line.resource.map(|resource| resource.to_string()),
            refetches: line.refetches,
        });
        let group = settings.group.to_string();
        let key = document::Key(invalidate.key);
        return ui.document(&document(Preview { group, key, reached: reached.collect() }));
    }
    for line in &reached {
        let what = match (&line.key, &line.resource) {
            (Some(key), _) => spell(key),
            (None, Some(resource)) => format!("resource {resource}, nothing cached"),
            (None, None) => continue,
        };
        let because = if line.depth == 0 { String::new() } else { format!("  by {}", line.cause) };
        let then = if line.refetches { "fetched at once" } else { "marked" };
        let indent = "  ".repeat(line.depth as usize);
        ui.line(&format!("{indent}{what}  {then}{because}"))?;
    }
    Ok(())
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
