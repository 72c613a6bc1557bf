//! A session: the part of the example that uses Paceline.

use std::{collections::BTreeMap, io};

use futures_util::FutureExt;
use paceline::{
    Connection, ConnectionState, Event, EventError, EventSubscription, GroupView, GroupWatch, Position, Role,
    Route, Session, Subscription, Version, View, WebSocket, key,
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    args::SessionArgs,
    clock::now_ns,
    control::{self, Place, SessionCommand, SessionLine, say},
    log::{LogWriter, Record},
    message::{Message, OUTAGE_KEY, Versioned, all_keys, fingerprint_bytes},
};

/// The stream that carries every message of the feed, in order.
const STREAM: &str = "metrics";

/// At most so many events are logged by one write.
const BATCH: usize = 1024;

/// What can end a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Paceline could not go on.
    #[error("{0}")]
    Paceline(#[from] paceline::Error),
    /// The log or the parent is out of reach.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Joins the group, logs every event, and does what the parent asks until it leaves.
///
/// # Errors
/// When Paceline, the log or the parent is gone; the parent is told if it is there.
pub async fn run(args: SessionArgs) -> Result<(), SessionError> {
    let ended = member(&args).await;
    say(&SessionLine::Ended { error: ended.as_ref().err().map(ToString::to_string) })?;
    ended
}

async fn member(args: &SessionArgs) -> Result<(), SessionError> {
    let mut commands = control::commands::<SessionCommand>();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut log = LogWriter::create(&args.log, args.inject)?;
    let join = Session::builder(&args.group)
        .state_dir(&args.state_dir)
        .label(&args.name)
        .upstream(upstream(args))
        .join();
    let mut asked_to_end = async || {
        tokio::select! {
            // Before it is a member it can be asked for one thing only.
            _ = commands.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let session = tokio::select! {
        session = join => session?,
        () = asked_to_end() => return Ok(()),
    };

    let mut group = session.group().watch();
    let mut events = session.events(STREAM).subscribe::<IgnoredAny>();
    let queries: Vec<(&str, Subscription<Value>)> =
        all_keys().map(|name| (name, session.query(key!["metrics", name]).subscribe())).collect();
    let mut outage = session.query(key!["metrics", OUTAGE_KEY]).subscribe::<Value>();
    let ready = ready(&session, &mut group, &args.name);
    tokio::select! {
        ready = ready => ready?,
        () = asked_to_end() => return Ok(session.leave().await?),
    }
    say(&SessionLine::Joined { at_ns: now_ns() })?;

    loop {
        tokio::select! {
            event = events.next() => deliver(event, &mut events, &mut log, args)?,
            view = group.changed() => say(&SessionLine::State(place(&*view?)))?,
            view = outage.changed() => if let Some(Versioned { version, .. }) = shown(&*view?) {
                say(&SessionLine::Outage { version })?;
            },
            command = commands.recv() => match command {
                Some(SessionCommand::Final) => say(&SessionLine::Final { values: values(&queries) })?,
                Some(SessionCommand::Promote) => {
                    tokio::spawn(promote(session.clone()));
                }
                // The parent is gone without a word.
                None | Some(SessionCommand::Leave) => break,
            },
            _ = terminate.recv() => break,
        }
    }
    Ok(session.leave().await?)
}

/// Waits until every further event of the feed must come.
async fn ready(session: &Session, group: &mut GroupWatch, name: &str) -> Result<(), SessionError> {
    // A new group has no history: what its feed published before the first connection is nobody's.
    loop {
        let view = group.changed().await?;
        say(&SessionLine::State(place(&view)))?;
        if is_live(&view) {
            break;
        }
    }
    // Answered after what was asked before it, so the subscriptions are in force then.
    session.set(key!["sessions", name], &json!({ "pid": std::process::id() })).await?;
    Ok(())
}

/// The feed as this group's upstream: what its messages change, and where they stand.
fn upstream(args: &SessionArgs) -> WebSocket {
    let mut feed = WebSocket::new("feed", &args.url);
    if args.foreign {
        feed = feed.route(Route::all().set(&json!(["latest"]), "$").emit(STREAM, "$"));
    } else {
        let key = json!(["metrics", "$.key"]);
        feed = feed
            .position_epoch("$.stream")
            .dense()
            .live_when(r#"$.type == "live""#)
            .route(
                Route::when(r#"$.type == "metric""#)
                    .set_versioned(&key, "$.data", "$.version")
                    .emit(STREAM, "$"),
            )
            .route(Route::when(r#"$.type == "snapshot""#).set_versioned(&key, "$.data", "$.version"));
    }
    if let Some(path) = &args.position_path {
        feed = feed.position(path);
    }
    if let Some(parameter) = &args.resume_query {
        feed = feed.resumes(parameter);
    }
    feed
}

/// Logs a delivery and all others that wait, by one write.
fn deliver(
    first: Result<Event<IgnoredAny>, EventError>,
    events: &mut EventSubscription<IgnoredAny>,
    log: &mut LogWriter,
    args: &SessionArgs,
) -> Result<(), SessionError> {
    let mut delivery = first;
    for left in (0..BATCH).rev() {
        let at_ns = now_ns();
        match delivery {
            Ok(event) => {
                if let Some((number, hash)) = identify(&event, args)? {
                    log.push(Record::Event { number, hash, at_ns });
                }
            }
            Err(EventError::Gap(gap)) => {
                log.push(Record::Gap { at_ns });
                let [after, upto] =
                    [&gap.after, &gap.upto].map(|at| at.as_ref().map_or("?".to_owned(), describe));
                say(&SessionLine::Gap { what: format!("after {after}, up to {upto} ({:?})", gap.why) })?;
            }
            Err(EventError::Decode { error, .. } | EventError::RuntimeDead(error)) => {
                return Err(error.into());
            }
        }
        // What is taken must be logged, so nothing is taken after the last one.
        match (left > 0).then(|| events.next().now_or_never()).flatten() {
            Some(next) => delivery = next,
            None => break,
        }
    }
    Ok(log.flush()?)
}

/// Number and fingerprint of an event: those of the built-in feed's message, or what is known of a foreign one. A
/// message without a number in a feed that has numbers cannot be compared with anything.
fn identify(event: &Event<IgnoredAny>, args: &SessionArgs) -> Result<Option<(u64, u64)>, SessionError> {
    if !args.foreign {
        let message: Message = serde_json::from_slice(&event.raw).map_err(io::Error::from)?;
        return Ok(Some((message.seq, message.fingerprint())));
    }
    let number = match &event.position {
        Position::Seq { offset, .. } => *offset,
        Position::Local { .. } if args.position_path.is_some() => return Ok(None),
        // Counted by the primary of an epoch: the epochs are put one after the other.
        Position::Local { epoch, n } => epoch.0 << 40 | n,
        Position::Opaque(_) => return Err(io::Error::other("the feed's positions are no numbers").into()),
    };
    Ok(Some((number, fingerprint_bytes(&event.raw))))
}

fn describe(position: &Position) -> String {
    match position {
        Position::Seq { offset, .. } => offset.to_string(),
        Position::Local { epoch, n } => format!("{n} of epoch {epoch}"),
        Position::Opaque(text) => text.to_string(),
    }
}

async fn promote(session: Session) {
    if let Err(error) = session.group().promote(None).await {
        // A parent that is gone ends this process anyway.
        let _ = say(&SessionLine::Refused { why: error.to_string() });
    }
}

fn values(queries: &[(&str, Subscription<Value>)]) -> BTreeMap<String, Versioned> {
    let value =
        |(name, query): &(&str, Subscription<Value>)| Some(((*name).to_owned(), shown(&query.current())?));
    queries.iter().filter_map(value).collect()
}

fn shown(view: &View<Value>) -> Option<Versioned> {
    match view.version()? {
        Version::Number(version) => Some(Versioned { version: *version, data: view.data()?.clone() }),
        Version::None | Version::Text(_) => None,
    }
}

fn is_live(view: &GroupView) -> bool {
    view.connections.iter().any(|connection| connection.state == ConnectionState::Live)
}

fn place(view: &GroupView) -> Place {
    let (role, epoch) = match &view.role {
        Role::Joining => ("joining", 0),
        Role::Follower { epoch, .. } => ("follower", epoch.0),
        Role::Candidate { epoch } => ("candidate", epoch.0),
        Role::Primary { epoch, .. } => ("primary", epoch.0),
        Role::Draining { epoch } => ("draining", epoch.0),
        Role::Blocked { .. } => ("blocked", 0),
        Role::Left => ("left", 0),
    };
    let connection = match view.connections.first().map(|Connection { state, .. }| state) {
        None => "",
        Some(ConnectionState::Connecting) => "connecting",
        Some(ConnectionState::Live) => "live",
        Some(ConnectionState::Degraded) => "degraded",
        Some(ConnectionState::Offline) => "offline",
        Some(ConnectionState::Paused) => "paused",
        Some(ConnectionState::Stopped(_)) => "stopped",
    };
    Place { role: role.to_owned(), epoch, connection: connection.to_owned() }
}
