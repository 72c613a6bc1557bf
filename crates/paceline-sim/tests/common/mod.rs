//! What the seed tests share: how many seeds, replay, and how a failure is shown.
#![allow(dead_code, clippy::print_stderr, reason = "each test file uses its part; the report is for people")]

use std::{fmt::Write as _, str::FromStr};

use paceline_sim::{Counters, Options, Report, Scenario, run};

/// Lines of a failing run's trace that are printed.
const TRACE_TAIL: usize = 4_000;

/// A number from the environment.
pub fn from_env<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Seeds for one of `scenarios` scenarios: `PACELINE_SEEDS` is the number over all of them.
pub fn seeds(each: u64, scenarios: u64) -> u64 {
    from_env::<u64>("PACELINE_SEEDS").map_or(each, |all| all.div_ceil(scenarios))
}

/// Failing seeds that are shown before a batch ends.
const FAILURES_SHOWN: usize = 10;

/// Runs `count` seeds from `PACELINE_SEED_FROM` (0) on, or `PACELINE_SEED` alone with its trace. No seed may end in a
/// violation.
pub fn clean(scenario: &Scenario, count: u64) -> Counters {
    let mut counters = Counters::default();
    let range = match from_env::<u64>("PACELINE_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let from = from_env("PACELINE_SEED_FROM").unwrap_or(0);
            from..from + count
        }
    };
    let replay = range.end - range.start == 1;
    let mut steps = 0;
    let mut failed = Vec::new();
    for seed in range {
        let report = run(seed, scenario, Options { trace: replay, ..Options::default() });
        if replay {
            eprintln!("{}", report.trace.join("\n"));
        }
        if !report.is_clean() {
            eprintln!("{}", failure(&report, scenario));
            failed.push(seed);
            assert!(failed.len() < FAILURES_SHOWN, "{}: seeds {failed:?}", scenario.name);
        }
        counters.merge(&report.counters);
        steps += report.steps;
    }
    eprintln!("{}: {count} seeds, {steps} steps\n{counters}", scenario.name);
    assert!(failed.is_empty(), "{}: seeds {failed:?}", scenario.name);
    counters
}

/// The failure with its seed and the end of its trace.
fn failure(report: &Report, scenario: &Scenario) -> String {
    let traced = run(report.seed, scenario, Options { trace: true, ..Options::default() });
    let from = traced.trace.len().saturating_sub(TRACE_TAIL);
    let mut text = String::new();
    if from_env::<u64>("PACELINE_SEED").is_none() && std::env::var_os("PACELINE_TRACE").is_some() {
        let _ = writeln!(text, "{}", traced.trace[from..].join("\n"));
    }
    let _ = writeln!(text, "scenario {:?}, PACELINE_SEED={}", scenario.name, report.seed);
    for violation in &report.violations {
        let _ = writeln!(text, "{violation}");
    }
    text
}
