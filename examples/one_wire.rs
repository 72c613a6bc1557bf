//! Many processes, one live connection, and a primary that is killed and frozen again and again while nothing is
//! missed.
//!
//! ```sh
//! cargo run --release --example one_wire
//! ```
//!
//! The parent starts a feed server (a process that admits one consumer) and N session processes that join one group.
//! One of them is elected primary and holds the connection; every session sees every event. Then the parent kills,
//! freezes and relieves primaries, and at the end compares what each session logged with what the feed logged.
//! The session itself, the part that uses Paceline, is `src/one_wire/session.rs`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

use std::process::ExitCode;

#[cfg(unix)]
fn main() -> ExitCode {
    use clap::Parser;
    use paceline_examples::one_wire::args::{Cli, Role};

    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match cli.role {
        None => runtime.block_on(parent(cli.run)),
        Some(Role::Feed(args)) => runtime.block_on(feed(args)),
        Some(Role::Session(args)) => runtime.block_on(session(args)),
    }
}

#[cfg(not(unix))]
fn main() -> ExitCode {
    eprintln!("this example freezes and kills processes by signals, which this system does not have");
    ExitCode::from(2)
}

#[cfg(unix)]
async fn parent(args: paceline_examples::one_wire::args::RunArgs) -> ExitCode {
    use paceline_examples::one_wire::{child, parent, report};

    if let Err(why) = args.validate() {
        eprintln!("{why}");
        return ExitCode::from(2);
    }
    let json = args.json;
    let mut interrupted = ExitCode::FAILURE;
    let outcome = parent::run(args, async { interrupted = child::interrupted().await }).await;
    let parent::Outcome { document, notes } = match outcome {
        Ok(Some(outcome)) => outcome,
        Ok(None) => return interrupted,
        Err(error) => return failed(&error),
    };
    if json {
        match serde_json::to_string(&document) {
            Ok(text) => println!("{text}"),
            Err(error) => return failed(&error),
        }
    } else {
        print!("{}", report::summary(&document, &notes));
    }
    if document.reasons.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(unix)]
async fn feed(args: paceline_examples::one_wire::args::FeedArgs) -> ExitCode {
    use paceline_examples::one_wire::{child, feed};

    child::die_with_parent();
    let options = feed::FeedOptions {
        rate: args.rate,
        resume: !args.no_resume,
        admit_all: args.admit_all,
        log: Some(args.log),
        ..feed::FeedOptions::default()
    };
    feed::run(options).await.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

#[cfg(unix)]
async fn session(args: paceline_examples::one_wire::args::SessionArgs) -> ExitCode {
    use paceline_examples::one_wire::{child, session};

    child::die_with_parent();
    session::run(args).await.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("one_wire: {error}");
    ExitCode::FAILURE
}
