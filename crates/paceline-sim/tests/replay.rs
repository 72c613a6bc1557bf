//! One seed, one run.

use paceline_sim::{Options, Scenario, run};

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..3 {
        for scenario in [Scenario::chaos(), Scenario::operations()] {
            let trace = |_| run(seed, &scenario, Options { trace: true, ..Options::default() }).trace;
            let (first, second) = (trace(1), trace(2));
            assert!(first.len() > 1000, "the run is too short to mean anything");
            assert!(first == second, "seed {seed} of {} gave two traces", scenario.name);
        }
    }
}

#[test]
fn another_seed_gives_another_trace() {
    let trace = |seed| run(seed, &Scenario::chaos(), Options { trace: true, ..Options::default() }).trace;
    assert!(trace(1) != trace(2));
}
