//! Twenty short-lived processes want the same answer of an API that allows few requests.
//!
//! ```sh
//! cargo run --release --example api_budget
//! ```
//!
//! First each asks for itself: the quota is used up at once, the API answers 429 and asks to wait, and some give up. Then
//! they are sessions of one group: one request, and the other nineteen share its answer. What is counted is what the API,
//! a process of its own, wrote into its log. The part that uses Paceline is `src/api_budget/tool.rs`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

use std::process::ExitCode;

#[cfg(unix)]
fn main() -> ExitCode {
    use clap::Parser;
    use paceline_examples::{
        api_budget::{
            args::{Cli, Role},
            server, tool,
        },
        one_wire::child,
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
async fn parent(args: paceline_examples::api_budget::args::RunArgs) -> ExitCode {
    use paceline_examples::{api_budget::parent, one_wire::child};

    let outcome = tokio::select! {
        outcome = parent::run(args) => outcome,
        code = child::interrupted() => return code,
    };
    let parent::Outcome { document, failures } = match outcome {
        Ok(outcome) => outcome,
        Err(error) => return failed(&error),
    };
    failures.iter().for_each(|failure| eprintln!("api_budget: {failure}"));
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
    eprintln!("api_budget: {error}");
    ExitCode::FAILURE
}
