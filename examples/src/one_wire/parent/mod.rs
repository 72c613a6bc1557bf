//! The parent: starts everything, injects the faults, and compares what was delivered with what was published.

mod faults;
mod judge;

use std::{io, time::Duration};

use tokio::time::Instant;

use self::faults::places;
use super::{
    args::RunArgs,
    child::TempDir,
    clock::now_ns,
    control::SessionCommand,
    fleet::{Fleet, Life},
    report::Document,
    verify::{Takeover, check_values},
};

/// Time for processes to start and to join.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Time for the last events and values to arrive.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What a run ended with.
#[derive(Debug)]
pub struct Outcome {
    /// The document.
    pub document: Document,
    /// Things worth knowing that do not decide the verdict.
    pub notes: Vec<String>,
}

/// Runs the whole example; `None` if `interrupted` came first. No process and no file of it is left afterwards.
///
/// # Errors
/// If files or processes cannot be made. A run that shows a fault of the runtime is no error but a failed verdict.
pub async fn run(args: RunArgs, interrupted: impl Future<Output = ()>) -> io::Result<Option<Outcome>> {
    let dir = TempDir::new("one-wire")?;
    std::fs::create_dir(dir.path().join("state"))?;
    let mut parent = Parent {
        fleet: Fleet::new(args.clone(), dir.path()),
        seed: args.seed.unwrap_or_else(|| now_ns() % 1_000_000),
        args,
        takeovers: Vec::new(),
        fenced_returns: 0,
        survivors: Vec::new(),
        start_ns: 0,
        end_ns: 0,
    };
    let worked = tokio::select! {
        worked = parent.work() => Some(worked),
        () = interrupted => None,
    };
    parent.fleet.end().await;
    match worked {
        None => Ok(None),
        Some(Err(error)) => Err(error),
        Some(Ok(())) => {
            if parent.args.keep {
                parent.fleet.tell(&format!("kept: {}", dir.keep().display()));
            }
            parent.judge().map(Some)
        }
    }
}

struct Parent {
    args: RunArgs,
    seed: u64,
    fleet: Fleet,
    takeovers: Vec<Takeover>,
    fenced_returns: u32,
    /// Sessions that lived to the end.
    survivors: Vec<usize>,
    start_ns: u64,
    end_ns: u64,
}

impl Parent {
    async fn work(&mut self) -> io::Result<()> {
        self.fleet.tell(&format!("seed {}", self.seed));
        if self.start().await? {
            self.faults().await?;
            self.finish().await;
        }
        Ok(())
    }

    /// Starts feed and sessions, and waits until all of them have joined; false if they do not.
    async fn start(&mut self) -> io::Result<bool> {
        let fleet = &mut self.fleet;
        if self.args.url.is_none() {
            fleet.start_feed()?;
            if !fleet.until(START_LIMIT, Fleet::feed_listens).await {
                fleet.failures.push("the feed does not listen".to_owned());
                return Ok(false);
            }
        }
        for _ in 0..self.args.sessions {
            fleet.start_session()?;
        }
        let sessions = self.args.sessions as usize;
        let joined = fleet
            .until(START_LIMIT, |fleet| {
                let flows = fleet.running().iter().all(|index| fleet.members[*index].progress().events > 0);
                fleet.running().len() == sessions && fleet.primary().is_some() && flows
            })
            .await;
        if !joined {
            let places = places(fleet);
            fleet.failures.push(format!("not all sessions joined: {places}"));
        }
        fleet.tell(&format!("{} sessions joined", fleet.running().len()));
        self.start_ns = now_ns();
        Ok(joined)
    }

    /// Stops the feed, lets the last events arrive, asks for the values shown, and lets everybody leave.
    async fn finish(&mut self) {
        self.end_ns = now_ns();
        let fleet = &mut self.fleet;
        let members = fleet.running();
        self.survivors.clone_from(&members);
        fleet.pause_feed().await;
        fleet.until(END_LIMIT, |fleet| fleet.paused.is_some() || !fleet.has_feed()).await;
        let farthest = members.iter().map(|index| fleet.members[*index].progress().last).max();
        // A foreign feed does not pause: there, all sessions must get as far as any of them is now.
        let last = fleet.paused.as_ref().map(|paused| paused.seq).or(farthest).unwrap_or_default();
        // What does not arrive shows in the comparison.
        fleet
            .until(END_LIMIT, |fleet| {
                members.iter().all(|index| fleet.members[*index].progress().last >= last)
            })
            .await;
        self.final_values(&members).await;
        let fleet = &mut self.fleet;
        for index in &members {
            fleet.command(*index, SessionCommand::Leave).await;
        }
        let left = |fleet: &Fleet| members.iter().all(|index| fleet.members[*index].life != Life::Leaving);
        if !fleet.until(END_LIMIT, left).await {
            let places = places(fleet);
            fleet.failures.push(format!("not all sessions left: {places}"));
        }
    }

    /// Asks for the values shown until they are those of the feed; what stays different shows in the comparison.
    async fn final_values(&mut self, members: &[usize]) {
        let Some(paused) = self.fleet.paused.clone() else { return };
        let end = Instant::now() + END_LIMIT;
        loop {
            for index in members {
                self.fleet.command(*index, SessionCommand::Final).await;
            }
            let answered = |fleet: &Fleet| members.iter().all(|index| fleet.members[*index].values.is_some());
            let answered = self.fleet.until(END_LIMIT, answered).await;
            let equal = |index: &usize| {
                let member = &self.fleet.members[*index];
                let mut reasons = Vec::new();
                let shown = member.values.clone().unwrap_or_default();
                check_values(&member.name, &paused.values, &shown, &mut reasons);
                reasons.is_empty()
            };
            if !answered || members.iter().all(equal) || Instant::now() >= end {
                return;
            }
            self.fleet.until(Duration::from_millis(50), |_| false).await;
        }
    }
}
