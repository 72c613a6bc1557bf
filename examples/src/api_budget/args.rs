//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};

/// Twenty short-lived processes want the same answer of an API that allows few requests.
#[derive(Debug, Parser)]
#[command(name = "api_budget", args_conflicts_with_subcommands = true)]
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
    /// The API.
    #[command(hide = true)]
    Server(ServerArgs),
    /// The coordinator of the group.
    #[command(hide = true)]
    Coordinator(GroupArgs),
    /// One short-lived process.
    #[command(hide = true)]
    Tool(ToolArgs),
}

/// What is to be run.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct RunArgs {
    /// Processes.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=256), value_name = "N")]
    pub processes: u32,
    /// Requests that the API answers in a window of two seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "N")]
    pub quota: u32,
    /// Only the processes that ask each for themselves.
    #[arg(long)]
    pub without: bool,
    /// Print one JSON document instead of the summary.
    #[arg(long)]
    pub json: bool,
}

/// For the API.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerArgs {
    /// Where each request is written down.
    #[arg(long)]
    pub log: PathBuf,
    /// Requests answered in a window.
    #[arg(long)]
    pub quota: u32,
}

/// For a member of the group.
#[derive(Debug, Clone, clap::Args)]
pub struct GroupArgs {
    /// Where the group is.
    #[arg(long)]
    pub state_dir: PathBuf,
}

/// For a short-lived process.
#[derive(Debug, Clone, clap::Args)]
pub struct ToolArgs {
    /// The API.
    #[arg(long)]
    pub address: std::net::SocketAddr,
    /// Where the group is; each for itself where it is left out.
    #[arg(long)]
    pub state_dir: Option<PathBuf>,
}

/// The time in which a quota is used up.
pub const WINDOW: Duration = Duration::from_secs(2);
