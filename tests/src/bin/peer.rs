//! A session that tests steer: commands on standard input, facts on standard output, one JSON object a line.
//!
//! `peer STATE_DIR [--handle-signals] [--observer] [--preferred] [--label TEXT] [--config FILE] [--stand-for JSON]
//! [--env] [--at-go]`. With `--own-place` for the directory it takes the user's own. With `--at-go` it joins when it is sent its
//! first line. It ends when its standard input ends.

#![expect(clippy::print_stdout, reason = "its output is its interface")]

use std::{collections::BTreeMap, io::BufRead, time::Duration};

use paceline::{Error, EventError, Freshness, Layer, Mutation, Patch, QueryKey, Session, failpoint::Action};
use paceline_proto::{
    event::Event,
    program::{Program, ProtoRange},
};
use serde_json::{Value, json};

fn say(value: &Value) {
    println!("{value}");
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let state_dir = arguments.next().ok_or("the state directory is missing")?;
    let mut at_go = false;
    let mut builder = Session::builder("test");
    if state_dir != "--own-place" {
        builder = builder.state_dir(state_dir);
    }
    while let Some(argument) = arguments.next() {
        builder = match argument.as_str() {
            "--observer" => builder.observer(),
            "--preferred" => builder.preferred(),
            "--handle-signals" => builder.handle_signals(true),
            "--at-go" => {
                at_go = true;
                builder
            }
            "--env" => builder.from_env(),
            "--config" => builder.config_file(arguments.next().ok_or("--config needs a file")?),
            "--stand-for" => {
                let other: Value =
                    serde_json::from_str(&arguments.next().ok_or("--stand-for needs a value")?)?;
                builder.stand_for(|program| stand_for(&other, program))
            }
            "--label" => builder.label(arguments.next().ok_or("--label needs a value")?),
            other => return Err(format!("unknown argument {other}").into()),
        };
    }
    let mut lines = std::io::stdin().lock().lines();
    if at_go {
        say(&json!({ "ready": true }));
        lines.next().transpose()?;
    }
    let session = match builder.join_blocking() {
        Ok(session) => session,
        Err(error) => {
            say(&json!({ "failed": error.to_string() }));
            return Err(error.into());
        }
    };
    say(&json!({ "joined": session.id().to_string(), "pid": std::process::id() }));
    follow_group(&session);
    follow_events_of(&session);
    let mut layers = BTreeMap::new();
    for line in lines {
        let command: Value = serde_json::from_str(&line?)?;
        if command.get("leave").is_some() {
            break;
        }
        if !layer(&session, &command, &mut layers)? {
            obey(&session, &command)?;
        }
    }
    session.leave_blocking()?;
    say(&json!({ "left": true }));
    Ok(())
}

/// `{"build": NAME, "release": MINOR, "proto": [MIN, MAX], "schema": N, "min_reader": N}`, each if it differs.
fn stand_for(other: &Value, program: &mut Program) {
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let small = |value: &Value| value.as_u64().and_then(|number| u16::try_from(number).ok());
    if let Some(build) = other["build"].as_str() {
        program.build = build.to_owned();
    }
    if let (Some(min), Some(max)) = (small(&other["proto"][0]), small(&other["proto"][1])) {
        program.proto = ProtoRange { min, max };
    }
    program.release.minor = small(&other["release"]).unwrap_or(program.release.minor);
    program.schema = number(&other["schema"]).unwrap_or(program.schema);
    program.min_reader = number(&other["min_reader"]).unwrap_or(program.min_reader);
}

fn follow_group(session: &Session) {
    let mut watch = session.group().watch();
    std::thread::spawn(move || {
        let end = loop {
            let view = match watch.changed_blocking() {
                Ok(view) => view,
                Err(error) => break error,
            };
            let ready = view.heirs.iter().filter(|heir| heir.current && heir.kit.is_some()).count();
            let role = format!("{:?}", view.role);
            say(&json!({ "role": role, "members": view.members.len(), "ready_heirs": ready }));
        };
        say(&json!({ "dead": true, "why": end.to_string() }));
    });
}

/// Says what tests count: claims won, adopted rows, and mutations that a replaced owner did not acknowledge.
fn follow_events_of(session: &Session) {
    let (mut cursor, death) = (session.runtime().observer().follow(), session.runtime().death().clone());
    std::thread::spawn(move || {
        while let Some((events, lost)) = block_on(cursor.next(&death)) {
            if lost > 0 {
                say(&json!({ "lost_events": lost }));
            }
            for (_, event) in events {
                match event {
                    Event::PrimaryElected { epoch, over } => {
                        say(&json!({ "elected": epoch.0, "over": format!("{over:?}") }));
                    }
                    Event::Adopted { epoch, rows } => say(&json!({ "adopted": epoch.0, "rows": rows })),
                    Event::SubmitsMoved { epoch, submits } => {
                        say(&json!({ "moved": submits, "epoch": epoch.0 }));
                    }
                    Event::AdoptionFailed { epoch, why } => {
                        say(&json!({ "adoption_failed": epoch.0, "why": why }));
                    }
                    Event::ClaimFailed { epoch, why } => {
                        say(&json!({ "claim_failed": epoch.0, "why": why }));
                    }
                    Event::HandoverStarted { .. } => say(&json!({ "hands_over": true })),
                    Event::HandoverAborted { why } => say(&json!({ "handover_aborted": why })),
                    Event::LimitReached { limit } => say(&json!({ "limit": limit })),
                    Event::Fenced { epoch, .. } => say(&json!({ "fenced": epoch.0 })),
                    Event::SteppedDown { epoch } => say(&json!({ "stepped_down": epoch.0 })),
                    Event::PeerRefused { .. }
                    | Event::OwnerUnreachable { .. }
                    | Event::JoinRefused { .. } => {
                        say(&json!({ "warned": event.kind(), "text": event.to_string() }));
                    }
                    _ => {}
                }
            }
        }
    });
}

/// `{"lay": NAME, "key": KEY, "patch": JSON}`, `{"commit": NAME, "with": JSON}`, `{"roll_back": NAME}`. False: another command.
fn layer(
    session: &Session,
    command: &Value,
    layers: &mut BTreeMap<String, Layer>,
) -> Result<bool, Box<dyn std::error::Error>> {
    let laid = |layers: &mut BTreeMap<String, Layer>, name| layers.remove(name).ok_or("no such layer");
    if let Some(name) = command["lay"].as_str() {
        let (key, patch) = (command["key"].to_string().parse::<QueryKey>()?, Patch::merge(&command["patch"]));
        layers.insert(name.to_owned(), session.optimistic_blocking(key, patch)?);
        say(&json!({ "laid": name }));
    } else if let Some(name) = command["roll_back"].as_str() {
        laid(layers, name)?.roll_back();
    } else if let Some(name) = command["commit"].as_str() {
        let (layer, name, with) = (laid(layers, name)?, name.to_owned(), command.get("with").cloned());
        on_thread(move || {
            let done = match with {
                Some(value) => layer.commit_with_blocking(&value),
                None => layer.commit_blocking(),
            };
            match done {
                Ok(receipt) => say(&json!({ "committed": name, "volatile": receipt.volatile })),
                Err(error) => say(&json!({ "error": error.to_string() })),
            }
        });
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn obey(session: &Session, command: &Value) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(key) = command.get("subscribe") {
        subscribe(session, key.to_string().parse()?);
    } else if let Some(stream) = command["events"].as_str() {
        follow_events(session, stream);
    } else if let Some(key) = command.get("set") {
        operate(session, key.to_string().parse()?, command["value"].clone());
    } else if let Some(key) = command.get("merge") {
        let (session, key, patch) =
            (session.clone(), key.to_string().parse::<QueryKey>()?, command["patch"].clone());
        on_thread(move || match block_on(session.merge(key, Patch::merge(patch))) {
            Ok(receipt) => say(&json!({ "merged": true, "volatile": receipt.volatile })),
            Err(error) => say(&json!({ "error": error.to_string() })),
        });
    } else if let Some(key) = command.get("increment") {
        let (session, key) = (session.clone(), key.to_string().parse::<QueryKey>()?);
        on_thread(move || match block_on(session.update::<u64>(key, |old| old.unwrap_or(0) + 1)) {
            Ok(_) => say(&json!({ "incremented": true })),
            Err(error) => say(&json!({ "error": error.to_string() })),
        });
    } else if let Some(key) = command.get("invalidate") {
        let (session, key) = (session.clone(), key.to_string().parse::<QueryKey>()?);
        on_thread(move || match block_on(session.invalidate(key)) {
            Ok(_) => say(&json!({ "invalidated": true })),
            Err(error) => say(&json!({ "error": error.to_string() })),
        });
    } else if let Some(key) = command.get("fetch") {
        for _ in 0..command["callers"].as_u64().unwrap_or(1) {
            fetch(session, key.to_string().parse()?);
        }
    } else if let Some(name) = command["token"].as_str() {
        for _ in 0..command["callers"].as_u64().unwrap_or(1) {
            token(session, name, command["rejected"].as_bool() == Some(true));
        }
    } else if command.get("ring").is_some() {
        say(&json!({ "ring": format!("{:?} {:?}", session.runtime().ring().read(), session) }));
    } else if let Some(key) = command.get("flood") {
        let count = command["count"].as_u64().unwrap_or(1);
        let bytes = command["bytes"].as_u64().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(1);
        flood(session, key.to_string().parse()?, count, bytes);
    } else if let Some(prefix) = command["submit"].as_str() {
        submit_on(session, prefix.to_owned(), command["callers"].as_u64().unwrap_or(1));
    } else if let Some(url) = command["mutate"].as_str() {
        mutate_on(session.clone(), url.to_owned(), command["scope"].as_str().unwrap_or("s").to_owned());
    } else if let Some(payload) = command["submit_once"].as_str() {
        let (session, payload) = (session.clone(), payload.to_owned());
        let padding = command["padding"].as_u64().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
        on_thread(move || {
            submit(&session, &payload, padding);
        });
    } else if let Some(place) = command["arm"].as_str() {
        let action = command["action"].as_str().unwrap_or("kill").parse()?;
        paceline::failpoint::arm(place, action);
        say(&json!({ "armed": place }));
        if action == Action::Hold {
            let place = place.to_owned();
            on_thread(move || {
                while !paceline::failpoint::is_held(&place) {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
                say(&json!({ "held": place }));
            });
        }
    } else if let Some(place) = command["release_after_leave"].as_str() {
        let (death, place) = (session.runtime().death().clone(), place.to_owned());
        on_thread(move || {
            while death.get().is_none() {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            paceline::failpoint::release(&place);
        });
    } else if let Some(place) = command["release"].as_str() {
        paceline::failpoint::release(place);
    } else if command.get("promote").is_some() {
        let session = session.clone();
        on_thread(move || match block_on(session.group().promote(None)) {
            Ok(()) => say(&json!({ "promoted": true })),
            Err(error) => say(&json!({ "error": error.to_string() })),
        });
    } else if command.get("sessions").is_some() {
        let session = session.clone();
        on_thread(move || match block_on(session.group().sessions()) {
            Ok(all) => {
                let protocols: serde_json::Map<String, Value> =
                    all.iter().map(|info| (info.member.pid.to_string(), info.proto.into())).collect();
                say(&json!({ "protocols": protocols }));
            }
            Err(error) => say(&json!({ "error": error.to_string() })),
        });
    } else if command.get("counts").is_some() {
        say(&json!({ "counts": session.group().event_counts() }));
    } else {
        return Err(format!("unknown command {command}").into());
    }
    Ok(())
}

fn on_thread(work: impl FnOnce() + Send + 'static) {
    std::thread::spawn(work);
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers").block_on(future)
}

fn subscribe(session: &Session, key: QueryKey) {
    let mut subscription = session.query(key).subscribe::<Value>();
    on_thread(move || {
        while let Ok(view) = subscription.changed_blocking() {
            let number = view.data().and_then(|data| data.get(0)).cloned();
            let shown = if number.is_some() { number.as_ref() } else { view.data() };
            say(&json!({ "view": shown, "stale": view.is_stale() }));
        }
    });
}

fn follow_events(session: &Session, stream: &str) {
    let mut events = session.events(stream).subscribe::<Value>();
    on_thread(move || {
        loop {
            match events.next_blocking() {
                Ok(event) => say(&json!({ "event": event.data })),
                Err(EventError::Gap(gap)) => say(&json!({ "gap": format!("{:?}", gap.why) })),
                Err(EventError::Decode { error, .. }) => say(&json!({ "error": error.to_string() })),
                Err(EventError::RuntimeDead(_)) => return,
            }
        }
    });
}

fn operate(session: &Session, key: QueryKey, value: Value) {
    let session = session.clone();
    on_thread(move || match block_on(session.set(key, &value)) {
        Ok(receipt) => say(&json!({ "set": value, "volatile": receipt.volatile })),
        Err(error) => say(&json!({ "error": error.to_string() })),
    });
}

fn fetch(session: &Session, key: QueryKey) {
    let session = session.clone();
    on_thread(move || match session.query(key).fetch_blocking::<Value>(Freshness::by_rules()) {
        Ok(fetched) => say(&json!({ "fetched": fetched.value(), "cached": fetched.is_cached })),
        Err(error) => say(&json!({ "error": error.to_string() })),
    });
}

/// Says the generation of an access token that is valid, and of one that is younger than it if it is `rejected`.
fn token(session: &Session, name: &str, rejected: bool) {
    let token = match session.token(name) {
        Ok(token) => token,
        Err(error) => return say(&json!({ "error": error.to_string() })),
    };
    on_thread(move || {
        let got = token.get_blocking();
        let got = if rejected { got.and_then(|access| token.rejected_blocking(&access)) } else { got };
        match got {
            // The secret itself is the test server's to judge: its end says which it gave.
            Ok(access) => {
                say(&json!({ "token": access.generation(), "ends": access.reveal().rsplit('-').next() }))
            }
            Err(error @ Error::NeedsAuth { .. }) => say(&json!({ "needs_auth": error.to_string() })),
            Err(error) => say(&json!({ "error": error.to_string() })),
        }
    });
}

/// Sets a key `count` times to values that begin with their number.
fn flood(session: &Session, key: QueryKey, count: u64, bytes: usize) {
    let session = session.clone();
    on_thread(move || {
        for n in 1..=count {
            if let Err(error) = block_on(session.set(&key, &json!([n, "x".repeat(bytes)]))) {
                return say(&json!({ "error": error.to_string() }));
            }
        }
        say(&json!({ "flooded": count }));
    });
}

/// Submits without end, each payload `PREFIX-CALLER-N`; says which were acknowledged.
fn submit_on(session: &Session, prefix: String, callers: u64) {
    for caller in 0..callers {
        let (session, prefix) = (session.clone(), prefix.clone());
        on_thread(move || {
            for n in 0_u64.. {
                if !submit(&session, &format!("{prefix}-{caller}-{n}"), 0) {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            }
        });
    }
}

/// Submits the payload, followed by so many `#`. Says whether it was acknowledged.
/// Makes mutations of one scope without end, and waits for every tenth.
fn mutate_on(session: Session, url: String, scope: String) {
    on_thread(move || {
        for n in 1_u64.. {
            let mutation = Mutation::post(format!("{url}/{scope}/{n}")).scope(&*scope);
            match block_on(session.mutate(mutation)) {
                Ok(receipt) => {
                    say(&json!({ "acknowledged": format!("/{scope}/{n}") }));
                    if n.is_multiple_of(10) {
                        match block_on(receipt.outcome()) {
                            Ok(outcome) => say(&json!({ "outcome": outcome.to_string() })),
                            Err(_) => return,
                        }
                    }
                }
                Err(Error::NotAcknowledged { why, .. }) => say(&json!({ "refused": why })),
                Err(_) => return,
            }
        }
    });
}

fn submit(session: &Session, payload: &str, padding: usize) -> bool {
    match block_on(session.submit_raw(format!("{payload}{}", "#".repeat(padding)))) {
        Ok(seq) => {
            say(&json!({ "acknowledged": payload, "seq": seq }));
            true
        }
        Err(error) => {
            say(&json!({ "refused": payload, "why": error.to_string() }));
            false
        }
    }
}
