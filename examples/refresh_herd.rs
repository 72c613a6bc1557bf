//! Ten sessions hold one login when its access token ends.
//!
//! ```sh
//! cargo run --release --example refresh_herd
//! ```
//!
//! First each refreshes for itself: all use the same refresh token, and the server, which takes one only once, ends the login
//! for all of them. Then they are sessions of one group: one refreshes, and all go on. What is counted is what the server, a
//! process of its own, wrote into its log. The part that uses Paceline is `src/refresh_herd/tool.rs`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

use std::process::ExitCode;

#[cfg(unix)]
fn main() -> ExitCode {
    use clap::Parser;
    use paceline_examples::{
        one_wire::child,
        refresh_herd::{
            args::{Cli, Role},
            server, tool,
        },
    };

    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let Some(role) = cli.role else { return runtime.block_on(parent(cli.run)) };
    child::die_with_parent();
    let ended = runtime.block_on(async {
        match role {
            Role::Server(args) => server::run(args).await,
            Role::Coordinator(args) => tool::coordinator(args).await,
            Role::Tool(args) => tool::run(args).await,
        }
    });
    ended.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

#[cfg(not(unix))]
fn main() -> ExitCode {
    eprintln!("this example ends its processes by signals, which this system does not have");
    ExitCode::from(2)
}

#[cfg(unix)]
async fn parent(args: paceline_examples::refresh_herd::args::RunArgs) -> ExitCode {
    use paceline_examples::{one_wire::child, refresh_herd::parent};

    let outcome = tokio::select! {
        outcome = parent::run(args) => outcome,
        code = child::interrupted() => return code,
    };
    let parent::Outcome { document, failures } = match outcome {
        Ok(outcome) => outcome,
        Err(error) => return failed(&error),
    };
    for (failure, times) in failures {
        eprintln!("refresh_herd: {failure} ({times} times)");
    }
    if args.json {
        match serde_json::to_string(&document) {
            Ok(text) => println!("{text}"),
            Err(error) => return failed(&error),
        }
    } else {
        print!("{}", document.summary());
    }
    if document.verdict == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("refresh_herd: {error}");
    ExitCode::FAILURE
}
