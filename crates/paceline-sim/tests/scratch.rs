mod common;
use paceline_sim::{Mutant, Options, Scenario, run};
#[test]
fn scratch() {
    let name = std::env::var("SC").unwrap_or_default();
    let mut scenario = Scenario::batch().into_iter().find(|s| s.name == name).unwrap();
    if std::env::var_os("NOFEED").is_some() {
        scenario.feeds.clear();
        scenario.operations = false;
    }
    let n: u64 = common::from_env("N").unwrap_or(50);
    let start: u64 = common::from_env("S").unwrap_or(0);
    let mut c = paceline_sim::Counters::default();
    let mut bad = 0;
    let mut steps = 0;
    for seed in start..start + n {
        let tr = std::env::var_os("TR").is_some();
        let r = run(seed, &scenario, Options { trace: tr, mutant: Mutant::ALL.into_iter().find(|m| std::env::var("MUT").is_ok_and(|w| format!("{m:?}") == w)) });
        if tr {
            println!("{}", r.trace.join("\n"));
        }
        c.merge(&r.counters);
        steps += r.steps;
        if !r.is_clean() {
            bad += 1;
            println!("seed {seed} at {} ms: {}", r.lasted_ms, r.violations[0]);
        }
    }
    println!("bad {bad}, steps {steps}\n{c}");
}
