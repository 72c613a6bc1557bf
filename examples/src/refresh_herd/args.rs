//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand};

/// Ten sessions hold one login when its access token ends, and a refresh token can be used once.
#[derive(Debug, Parser)]
#[command(name = "refresh_herd", args_conflicts_with_subcommands = true)]
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
    /// The server that issues tokens.
    #[command(hide = true)]
    Server(ServerArgs),
    /// The coordinator of the group.
    #[command(hide = true)]
    Coordinator(GroupArgs),
    /// One session.
    #[command(hide = true)]
    Tool(ToolArgs),
}

/// What is to be run.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct RunArgs {
    /// Sessions.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=256), value_name = "N")]
    pub processes: u32,
    /// Only the sessions that refresh each for themselves.
    #[arg(long)]
    pub without: bool,
    /// Print one JSON document instead of the summary.
    #[arg(long)]
    pub json: bool,
}

/// For the server.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerArgs {
    /// Where each request is written down.
    #[arg(long)]
    pub log: PathBuf,
}

/// For the coordinator.
#[derive(Debug, Clone, clap::Args)]
pub struct GroupArgs {
    /// Where the group is.
    #[arg(long)]
    pub state_dir: PathBuf,
    /// The configuration that declares the token.
    #[arg(long)]
    pub config: PathBuf,
}

/// For a session.
#[derive(Debug, Clone, clap::Args)]
pub struct ToolArgs {
    /// The server.
    #[arg(long)]
    pub address: SocketAddr,
    /// The file with the login that the sessions share.
    #[arg(long)]
    pub login: PathBuf,
    /// Where the group is; each for itself where it is left out.
    #[arg(long)]
    pub state_dir: Option<PathBuf>,
}
