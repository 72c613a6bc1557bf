mod common;
use paceline_sim::{Options, Scenario, run, Mutant};
#[test]
fn scratch() {
    let n: u64 = common::from_env("N").unwrap_or(300);
    for m in Mutant::ALL {
        if let Ok(w) = std::env::var("MU") { if !w.split(',').any(|w| format!("{m:?}").contains(w)) { continue } }
        for s in Scenario::batch() {
            if let Ok(w) = std::env::var("SCS") { if !w.split(',').any(|w| w == s.name) { continue } }
            let mut hits = 0; let mut first = vec![]; 
            for seed in 0..n { let r = run(seed, &s, Options { mutant: Some(m), trace: false }); if !r.is_clean() && run(seed, &s, Options::default()).is_clean() { hits += 1; if first.len() < 3 { first.push((seed, r.violations[0].to_string())) } } }
            if !first.is_empty() { println!("{m:?} {}: {hits}/{n}", s.name); for (seed, v) in first { println!("    {seed} {}", &v[..v.len().min(170)]) } }
        }
    }
}
