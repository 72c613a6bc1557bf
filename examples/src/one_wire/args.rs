//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};

use super::control::Inject;

/// Many processes, one live connection, and a primary that is killed and frozen while nothing is missed.
#[derive(Debug, Parser)]
#[command(name = "one_wire", args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What this process is; the parent if not given.
    #[command(subcommand)]
    pub role: Option<Role>,
    /// For the parent.
    #[command(flatten)]
    pub run: RunArgs,
}

/// A child's part.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// The feed server.
    #[command(hide = true)]
    Feed(FeedArgs),
    /// One session of the group.
    #[command(hide = true)]
    Session(SessionArgs),
}

/// What is to be run.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// Session processes.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "N")]
    pub sessions: u32,
    /// Primaries to kill (SIGKILL); each is replaced by a new session.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub kills: u32,
    /// Primaries to freeze (SIGSTOP) and to resume later.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub stops: u32,
    /// Polite handovers.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub handovers: u32,
    /// Messages a second that the feed publishes.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    pub rate: u32,
    /// How long to run at least; the run goes on until the faults asked for have been done.
    #[arg(long, default_value = "20s", value_parser = duration, value_name = "TIME")]
    pub duration: Duration,
    /// Fixes the schedule of faults; printed if not given.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Print one JSON document instead of the summary.
    #[arg(long)]
    pub json: bool,
    /// Let the feed forget what nobody heard: it cannot resume, and sends a snapshot on connect.
    #[arg(long, conflicts_with = "url")]
    pub no_resume: bool,
    /// The same sessions, each on its own: no group, no faults, as many connections as sessions.
    #[arg(long)]
    pub without: bool,
    /// Another WebSocket feed of JSON messages, instead of the built-in one.
    #[arg(long, value_name = "ws://…")]
    pub url: Option<String>,
    /// Where that feed's messages carry their position, an ascending number, for example `$.seq`.
    #[arg(long, requires = "url", value_name = "PATH")]
    pub position_path: Option<String>,
    /// Query parameter by which that feed resumes after a position, for example `since`.
    #[arg(long, requires = "position_path", value_name = "NAME")]
    pub resume_query: Option<String>,
    /// Lets one session falsify its log, to see the verdict fail.
    #[arg(long, hide = true)]
    pub inject: Option<Inject>,
    /// Keep logs and state, and say where they are.
    #[arg(long, hide = true)]
    pub keep: bool,
}

impl RunArgs {
    /// Checks what the flags mean together.
    ///
    /// # Errors
    /// A text for the user.
    pub fn validate(&self) -> Result<(), String> {
        if !self.without && self.sessions < 2 && self.kills + self.stops + self.handovers > 0 {
            return Err("faults need at least two sessions, one to fall and one to take over: \
                 give --sessions 2 or more, or --kills 0 --stops 0 --handovers 0"
                .to_owned());
        }
        Ok(())
    }

    /// Whether the upstream can resume from a position.
    pub fn resumable(&self) -> bool {
        match self.url {
            Some(_) => self.resume_query.is_some(),
            None => !self.no_resume,
        }
    }
}

/// How the feed process is started.
#[derive(Debug, Clone, clap::Args)]
pub struct FeedArgs {
    /// Messages a second.
    #[arg(long)]
    pub rate: u32,
    /// Where published messages are logged.
    #[arg(long)]
    pub log: PathBuf,
    /// Forget what nobody heard.
    #[arg(long)]
    pub no_resume: bool,
    /// Admit every consumer.
    #[arg(long)]
    pub admit_all: bool,
}

/// How a session process is started.
#[derive(Debug, Clone, clap::Args)]
pub struct SessionArgs {
    /// Name shown to people.
    #[arg(long)]
    pub name: String,
    /// Group to join.
    #[arg(long)]
    pub group: String,
    /// Where the group keeps its state.
    #[arg(long)]
    pub state_dir: PathBuf,
    /// Where delivered events are logged.
    #[arg(long)]
    pub log: PathBuf,
    /// The upstream.
    #[arg(long)]
    pub url: String,
    /// The upstream is not the built-in feed.
    #[arg(long)]
    pub foreign: bool,
    /// Path of the position in a message.
    #[arg(long)]
    pub position_path: Option<String>,
    /// Query parameter by which the upstream resumes.
    #[arg(long)]
    pub resume_query: Option<String>,
    /// Falsifies the log.
    #[arg(long)]
    pub inject: Option<Inject>,
}

/// Reads `20s`, `1500ms`, `2m` or a plain number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let n: f64 = digits.parse().map_err(|_| "a time looks like 20s, 1500ms or 2m".to_owned())?;
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        _ => return Err("units of time are ms, s and m".to_owned()),
    };
    Duration::try_from_secs_f64(n * unit).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<RunArgs, String> {
        let cli = Cli::try_parse_from([&["one_wire"], args].concat()).map_err(|error| error.to_string())?;
        cli.run.validate()?;
        Ok(cli.run)
    }

    #[test]
    fn without_flags_it_is_the_main_job() {
        let run = parse(&[]).unwrap();
        assert_eq!((run.sessions, run.kills, run.stops, run.handovers, run.rate), (8, 10, 3, 3, 1000));
        assert_eq!(run.duration, Duration::from_secs(20));
        assert!(run.resumable() && !run.json && !run.without);
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert!(duration("7h").is_err() && duration("s").is_err() && duration("-1s").is_err());
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        assert!(parse(&["--sessions", "1"]).unwrap_err().contains("two sessions"));
        assert!(parse(&["--sessions", "1", "--without"]).is_ok());
        assert!(parse(&["--url", "ws://127.0.0.1:1", "--no-resume"]).is_err());
        assert!(parse(&["--resume-query", "since"]).is_err());
        assert!(!parse(&["--url", "ws://127.0.0.1:1"]).unwrap().resumable());
    }
}
