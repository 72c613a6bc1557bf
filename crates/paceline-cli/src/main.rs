//! `paceline`: a coordinator for groups of short-lived processes, and the commands that ask, follow and steer a group.
//!
//! What goes to stdout is data, everything else goes to stderr; exit codes are those of [`failure::Failure`].

mod args;
mod cached;
mod configured;
mod doctor;
mod document;
mod events;
mod failure;
mod group;
mod listing;
mod looks;
mod promote;
mod run;
mod settings;
mod start;
mod status;
mod trace;
mod ui;
mod values;
mod watch;

use std::process::ExitCode;

use args::{Args, Command};
use clap::{CommandFactory, Parser};
use failure::Failure;
use settings::Settings;
use ui::Ui;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are data, everything else is usage; there is nobody to tell if that fails.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { failure::USAGE } else { 0 });
        }
    };
    let ui = Ui::of(&args);
    match carry_out(args, &ui) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            ui.failed(&failure);
            ExitCode::from(failure.code())
        }
    }
}

fn carry_out(args: Args, ui: &Ui) -> Result<(), Failure> {
    if let Command::Completions { shell } = args.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Args::command(), "paceline", &mut script);
        return ui.raw(&script);
    }
    let settings = match args.command {
        Command::Config { .. } | Command::Trust(_) => Settings::unchecked(&args)?,
        _ => Settings::find(&args)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("start: {error}")))?;
    runtime.block_on(async {
        match args.command {
            Command::Run(run) => run::run(&settings, run, ui).await,
            Command::Status => status::status(&settings, ui).await,
            Command::Sessions => listing::sessions(&settings, ui).await,
            Command::Queries => listing::queries(&settings, ui).await,
            Command::Get(get) => values::get(&settings, get, ui).await,
            Command::Set(set) => values::set(&settings, set, ui).await,
            Command::Invalidate(invalidate) => values::invalidate(&settings, invalidate, ui).await,
            Command::Refetch(refetch) => values::refetch(&settings, refetch, ui).await,
            Command::Watch(watch) => watch::watch(&settings, watch, ui).await,
            Command::Promote(promote) => promote::promote(&settings, promote, ui).await,
            Command::Events(events) => events::events(&settings, events, ui).await,
            Command::Doctor => doctor::doctor(&settings, ui).await,
            Command::Stats => events::stats(&settings, ui).await,
            Command::Trace(trace) => trace::trace(&settings, trace, ui).await,
            Command::Debug(debug) => events::debug(&settings, debug, ui).await,
            Command::Config { command } => configured::config(&settings, command, ui),
            Command::Trust(trust) => configured::trust(&settings, trust, ui),
            Command::Completions { .. } => Ok(()),
        }
    })
}
