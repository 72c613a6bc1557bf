mod common;
use paceline_sim::{Mutant, Options, Point, Scenario, run};
#[test]
fn scratch() {
    let n: u64 = common::from_env("N").unwrap_or(300);
    for m in Mutant::ALL {
        if let Ok(w) = std::env::var("MU") {
            if !format!("{m:?}").contains(&w) {
                continue;
            }
        }
        for (name, focus) in [
            ("fence", None),
            ("fence", Some(Point::FenceHalf)),
            ("fence", Some(Point::ClaimCollected)),
            ("fence", Some(Point::Listed)),
            ("fence", Some(Point::FoldSynced)),
            ("fence", Some(Point::CommitSynced)),
            ("fence", Some(Point::FenceChecked)),
            ("power", None),
            ("lost claims", None),
            ("chaos", None),
            ("kills", None),
            ("operations", None),
            ("upstreams", None),
            ("slow readers", None),
        ] {
            let mut s = Scenario::batch().into_iter().find(|s| s.name == name).unwrap();
            s.focus = focus;
            if std::env::var_os("NOFEED").is_some() {
                s.feeds.clear();
                s.operations = false;
                if name != "lost claims" && name != "power" {
                    continue;
                }
            }
            let mut hits = 0;
            let mut first = None;
            for seed in 0..n {
                let r = run(seed, &s, Options { mutant: Some(m), trace: false });
                if !r.is_clean() {
                    hits += 1;
                    if first.is_none() {
                        first = Some((seed, r.violations[0].clone(), r.steps))
                    }
                }
            }
            if let Some((seed, v, st)) = first {
                println!("{m:?} {name} {focus:?}: {hits}/{n}, first {seed} ({st} steps) {v}");
            }
        }
    }
}
