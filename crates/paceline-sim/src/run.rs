//! One run: a seed and a scenario in, what happened out.

use crate::{counters::Counters, invariants::Violation, mutant::Mutant, scenario::Scenario, world::World};

/// What a run showed.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Its scenario.
    pub scenario: &'static str,
    /// The rule that was broken first, if any.
    pub violations: Vec<Violation>,
    /// What happened how often.
    pub counters: Counters,
    /// Virtual milliseconds.
    pub lasted_ms: u64,
    /// Steps of processes and tasks.
    pub steps: u64,
    /// Every step, if asked for.
    pub trace: Vec<String>,
}

impl Report {
    /// Nothing was broken.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }
}

/// How to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Break this rule.
    pub mutant: Option<Mutant>,
    /// Keep a line for every step.
    pub trace: bool,
}

/// Runs one seed: a chaos phase, a heal phase, the checks. The same arguments always give the same report.
pub fn run(seed: u64, scenario: &Scenario, options: Options) -> Report {
    let mut world = World::new(seed, scenario.clone(), options.mutant, options.trace);
    let start = world.now;
    world.run();
    Report {
        seed,
        scenario: scenario.name,
        violations: world.violations,
        counters: world.counters,
        lasted_ms: world.now.since(start).as_millis() as u64,
        steps: world.step,
        trace: world.lines,
    }
}
