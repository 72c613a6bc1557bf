//! The parent: runs both ways, one after the other, each with a server of its own.

use std::{io, path::Path, time::Duration};

use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};

use super::{
    args::RunArgs,
    report::{Arm, Document},
    server::{Listening, Logged},
    tool::Said,
};
use crate::one_wire::child::{ChildProcess, TempDir};

/// Far more than a child takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the whole example.
///
/// # Errors
/// When files or processes cannot be made, or a child says nothing. Processes that do not get the answer are no error but
/// counted.
pub async fn run(args: RunArgs) -> io::Result<Outcome> {
    let dir = TempDir::new("api-budget")?;
    let mut failures = Vec::new();
    let without = arm(args, dir.path(), "without", &mut failures).await?;
    let with = if args.without { None } else { Some(arm(args, dir.path(), "with", &mut failures).await?) };
    Ok(Outcome { document: Document::new(with, without), failures })
}

/// What a run ended with.
#[derive(Debug)]
pub struct Outcome {
    /// The document.
    pub document: Document,
    /// Why processes did not get the answer.
    pub failures: Vec<String>,
}

async fn arm(args: RunArgs, dir: &Path, name: &str, failures: &mut Vec<String>) -> io::Result<Arm> {
    let log = dir.join(format!("{name}.log"));
    let quota = args.quota.to_string();
    let (_server, mut lines) = start::<Listening>(&["server", "--log", text(&log)?, "--quota", &quota])?;
    let Listening { listening } = said(&mut lines).await?;
    let address = listening.to_string();
    let mut tool = vec!["tool", "--address", &address];
    let state = dir.join("state");
    let mut coordinator = None;
    if name == "with" {
        std::fs::create_dir(&state)?;
        let (child, mut lines) = start::<Said>(&["coordinator", "--state-dir", text(&state)?])?;
        if let Some(error) = said(&mut lines).await?.error {
            return Err(io::Error::other(error));
        }
        coordinator = Some(child);
        tool.extend(["--state-dir", text(&state)?]);
    }
    // All at once, as a script does that starts them in the background.
    let started: Vec<_> = (0..args.processes).map(|_| start::<Said>(&tool)).collect::<io::Result<_>>()?;
    let mut got = 0;
    for (_child, mut lines) in started {
        match said(&mut lines).await?.error {
            None => got += 1,
            Some(error) => failures.push(format!("{name}: {error}")),
        }
    }
    drop(coordinator);
    let logged = std::fs::read_to_string(&log)?;
    let logged: Vec<Logged> = logged.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(Arm::new(args.processes.into(), got, &logged))
}

/// What a child says.
pub(crate) type Lines<T> = UnboundedReceiver<Option<T>>;

/// A child, which ends when it is dropped, and what it says.
pub(crate) fn start<T: DeserializeOwned + Send + 'static>(
    args: &[&str],
) -> io::Result<(ChildProcess, Lines<T>)> {
    let (says, lines) = unbounded_channel();
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let child = ChildProcess::spawn(&args, move |line| {
        // Nobody may listen any more.
        let _ = says.send(line);
    })?;
    Ok((child, lines))
}

/// What a child says next.
pub(crate) async fn said<T>(lines: &mut Lines<T>) -> io::Result<T> {
    let line = timeout(LIMIT, lines.recv()).await;
    let line = line.map_err(|_| io::Error::other(format!("a child said nothing for {LIMIT:?}")))?;
    line.flatten().ok_or_else(|| io::Error::other("a child ended without a word"))
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::other("the directory for temporary files has no readable name"))
}
