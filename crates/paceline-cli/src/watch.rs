//! `watch`: follows a key or a stream through any change of primary.

use std::{collections::BTreeSet, convert::Infallible, time::Duration};

use paceline::{EventError, GapCause, QueryKey, Role};
use serde_json::value::RawValue;

use crate::{
    args::Watch,
    document::{self, Instant, Watched, document, raw, spell, version},
    failure::Failure,
    group::{self, Absent, Joined},
    settings::Settings,
    start,
    ui::{Style, Ui, one_line},
    values::absent,
};

/// Which keys there are is learned so often, so that what is lost can be named.
const LEARN: Duration = Duration::from_secs(2);
/// Lost keys that are named.
const TOLD: usize = 10;
/// While nobody leads it is looked so often whether a coordinator must be started.
const STEP: Duration = Duration::from_millis(50);

/// Follows until interrupted.
pub async fn watch(settings: &Settings, watch: Watch, ui: &Ui) -> Result<(), Failure> {
    let absent = absent(settings, watch.spawn);
    let joined = group::join(settings, "paceline watch", absent, ui).await?;
    let known = group::answer(settings, names(&joined)).await?;
    let ended = tokio::select! {
        ended = follow(&joined, watch.key.as_ref(), watch.stream, ui) => ended.map(|_| ()),
        ended = keep_led(settings, &joined, watch.key.as_ref(), absent, known, ui) => ended.map(|_| ()),
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
    };
    joined.leave().await;
    ended
}

async fn follow(
    joined: &Joined,
    key: Option<&QueryKey>,
    stream: Option<String>,
    ui: &Ui,
) -> Result<Infallible, Failure> {
    match (key, stream) {
        (Some(key), _) => follow_key(joined, key, ui).await,
        (None, stream) => follow_stream(joined, &stream.unwrap_or_default(), ui).await,
    }
}

async fn follow_key(joined: &Joined, key: &QueryKey, ui: &Ui) -> Result<Infallible, Failure> {
    let query = joined.session.query(key);
    let mut subscription = query.subscribe::<Box<RawValue>>();
    if query.read::<Box<RawValue>>().await?.raw().is_empty() {
        ui.note(&format!("{} has no value yet", spell(key)));
    }
    let mut shown: Option<(Vec<u8>, bool)> = None;
    loop {
        let view = subscription.changed().await?;
        let (now, at) = ((view.raw().to_vec(), view.is_stale()), Instant::now());
        let had_value = shown.as_ref().is_some_and(|(value, _)| !value.is_empty());
        if now.0.is_empty() {
            if had_value {
                lost(key, at, ui)?;
            }
        } else if shown.as_ref() != Some(&now) {
            let same_value = shown.as_ref().is_some_and(|(value, _)| *value == now.0);
            if ui.json {
                ui.document(&document(Watched::Value {
                    at,
                    key: document::Key(key.clone()),
                    value: raw(view.raw()),
                    stale: now.1,
                    version: version(view.version()),
                }))?;
            } else {
                show(&now.0, now.1, same_value, at, ui)?;
            }
        }
        shown = Some(now);
    }
}

fn lost(key: &QueryKey, at: Instant, ui: &Ui) -> Result<(), Failure> {
    if ui.json {
        return ui.document(&document(Watched::Lost { at, key: document::Key(key.clone()) }));
    }
    ui.say(&format!("paceline: the value of {} was lost with the primary: it was volatile", spell(key)));
    Ok(())
}

/// A terminal sees each state with its time, a pipe each value.
fn show(value: &[u8], stale: bool, same_value: bool, at: Instant, ui: &Ui) -> Result<(), Failure> {
    let text = String::from_utf8_lossy(value);
    if !ui.is_terminal() {
        return if same_value { Ok(()) } else { ui.line(&text) };
    }
    let mark = if stale { format!("  {}", ui.paint(Style::Warn, "stale")) } else { String::new() };
    ui.line(&format!("{}  {text}{mark}", ui.paint(Style::Dim, &at.time())))
}

async fn follow_stream(joined: &Joined, stream: &str, ui: &Ui) -> Result<Infallible, Failure> {
    let mut events = joined.session.events(stream).subscribe::<Box<RawValue>>();
    loop {
        let next = events.next().await;
        let at = Instant::now();
        let data = match next {
            Ok(event) => event.raw,
            Err(EventError::Decode { raw, .. }) => raw,
            Err(EventError::Gap(gap)) => {
                let why = match gap.why {
                    GapCause::Upstream => "upstream",
                    GapCause::SlowReader => "slow_reader",
                    GapCause::Resync => "resync",
                };
                if ui.json {
                    let (stream, channel) = (stream.to_owned(), gap.channel.0.to_string());
                    ui.document(&document(Watched::Gap { at, stream, channel, why }))?;
                } else {
                    ui.say(&format!("paceline: events of {} may be missing here ({why})", gap.channel.0));
                }
                continue;
            }
            Err(EventError::RuntimeDead(error)) => return Err(error.into()),
        };
        if ui.json {
            ui.document(&document(Watched::Message { at, stream: stream.to_owned(), data: raw(&data) }))?;
        } else {
            show(&data, false, false, at, ui)?;
        }
    }
}

/// Tells of changes of primary, and starts a coordinator when nobody is left to lead.
async fn keep_led(
    settings: &Settings,
    joined: &Joined,
    key: Option<&QueryKey>,
    absent: Absent,
    mut known: BTreeSet<String>,
    ui: &Ui,
) -> Result<Infallible, Failure> {
    let mut group = joined.session.group().watch();
    let mut led = None;
    let mut lost = Lost::No;
    loop {
        let view = tokio::select! {
            view = group.changed() => view?,
            // Only what is known before can be missed after.
            () = tokio::time::sleep(LEARN), if lost == Lost::No => {
                if let Ok(names) = tokio::time::timeout(LEARN, names(joined)).await {
                    known = names?;
                }
                continue;
            }
        };
        if let Role::Follower { epoch, .. } = view.role {
            if led.is_some_and(|before| before != epoch.0) {
                told(joined, epoch.0, ui)?;
                if lost == Lost::Everybody {
                    tell_what_is_left(joined, key, &known, ui).await?;
                }
            }
            (led, lost) = (Some(epoch.0), Lost::No);
            continue;
        }
        if lost == Lost::No
            && let Some(epoch) = led
        {
            lost = Lost::Primary;
            if ui.json {
                ui.document(&document(Watched::PrimaryLost { at: Instant::now(), epoch }))?;
            } else {
                ui.note(&format!("the primary of epoch {epoch} is gone"));
            }
        }
        if await_lead(settings, joined, absent, &mut group, ui).await? {
            lost = Lost::Everybody;
        }
    }
}

/// Who is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    No,
    Primary,
    /// Everybody who could lead: what no observer holds is lost.
    Everybody,
}

/// Returns when the group changes; tells whether nobody was left who could lead.
async fn await_lead(
    settings: &Settings,
    joined: &Joined,
    absent: Absent,
    group: &mut paceline::GroupWatch,
    ui: &Ui,
) -> Result<bool, Failure> {
    let mut everybody = false;
    loop {
        let changed = tokio::time::timeout(STEP, group.peek_changed()).await;
        if let Ok(changed) = changed {
            return changed.map(|()| everybody).map_err(Failure::from);
        }
        if group::runs(&joined.dir).await {
            continue;
        }
        everybody = true;
        if absent == Absent::Start {
            start::ensure(settings, ui).await?;
        }
    }
}

/// Says what is lost, as far as it was known, and what is kept.
async fn tell_what_is_left(
    joined: &Joined,
    key: Option<&QueryKey>,
    known: &BTreeSet<String>,
    ui: &Ui,
) -> Result<(), Failure> {
    if let Some(key) = key {
        // What this session holds reaches the new primary before it answers.
        joined.session.query(key).read::<Box<RawValue>>().await?;
    }
    let now = names(joined).await?;
    let lost: Vec<String> = known.difference(&now).cloned().collect();
    let kept = key.map(spell).filter(|key| now.contains(key));
    if ui.json {
        let kept = kept.is_some();
        return ui.document(&document(Watched::Recovered { at: Instant::now(), lost, kept }));
    }
    let kept = kept.map_or_else(String::new, |key| format!("; {key} is kept, this session held it"));
    let lost = match lost.len() {
        0 => "nothing that was known is lost".to_owned(),
        n if n > TOLD => format!("lost with it: {} and {} more", lost[..TOLD].join(", "), n - TOLD),
        _ => format!("lost with it: {}", lost.join(", ")),
    };
    ui.say(&format!("paceline: every session that could lead was gone; {lost}{kept}"));
    Ok(())
}

/// The keys that have a value, or the first of them where there are many.
async fn names(joined: &Joined) -> Result<BTreeSet<String>, paceline::Error> {
    let (keys, _) = joined.session.group().keys_after(None).await?;
    Ok(keys.iter().filter_map(|info| QueryKey::from_key(&info.key).ok()).map(|key| spell(&key)).collect())
}

fn told(joined: &Joined, epoch: u64, ui: &Ui) -> Result<(), Failure> {
    let body = joined.lead().filter(|lead| lead.epoch.0 == epoch).and_then(|lead| lead.body);
    let session = match &joined.session.group().current().role {
        Role::Follower { owner, .. } => *owner,
        _ => return Ok(()),
    };
    if ui.json {
        return ui.document(&document(Watched::Primary {
            at: Instant::now(),
            epoch,
            session: session.to_string(),
            pid: body.as_ref().map(|body| body.process.pid),
            label: body.map(|body| body.label),
        }));
    }
    let who = body
        .map_or_else(String::new, |body| format!(" {}, process {}", one_line(&body.label), body.process.pid));
    ui.note(&format!("epoch {epoch}: {}{who} leads", session.short()));
    Ok(())
}
