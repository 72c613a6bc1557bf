mod common;
use paceline_sim::{Options, Scenario, run};
#[test]
fn crowd() {
    let mut c = paceline_sim::Counters::default();
    let mut st = 0;
    for seed in 0..20 {
        let mut s = Scenario::crowd(64);
        s.feeds.clear();
        let r = run(seed, &s, Options::default());
        c.merge(&r.counters);
        st += r.steps;
        if !r.is_clean() {
            println!("{seed} {} ms {}", r.lasted_ms, r.violations[0])
        }
    }
    println!("{st}\n{c}");
}
#[test]
fn busy() {
    let mut s = Scenario::busy(600_000);
    s.feeds.clear();
    s.operations = false;
    for seed in 0..2 {
        let r = run(seed, &s, Options::default());
        println!("{seed} {} steps {} ms {:?} {}", r.steps, r.lasted_ms, r.violations, r.counters);
    }
}
