//! Batches of seeds over every scenario. `PACELINE_SEEDS=10000` runs so many over all of them; `PACELINE_SEED=n` replays
//! one and prints its trace.

mod common;

use common::{clean, from_env, seeds};
use paceline_sim::{Counters, Scenario};

/// Seeds of each scenario where nothing else is asked for.
const QUICK: u64 = 200;
const SCENARIOS: u64 = 12;
/// Seeds of a scenario in which what happens in one seed of a hundred must happen.
const MANY: u64 = 1_000;

fn batch(scenario: &Scenario, happens: &[&str]) {
    let counters = clean(scenario, seeds(QUICK, SCENARIOS));
    if from_env::<u64>("PACELINE_SEED").is_none() {
        sometimes(&counters, happens);
    }
}

/// A batch in which it never happened has not tested it.
fn sometimes(counters: &Counters, happens: &[&str]) {
    for name in happens {
        assert!(counters.get(name) > 0, "{name} never happened:\n{counters}");
    }
}

#[test]
fn calm() {
    batch(&Scenario::calm(), &["operation_held_by_heir", "acknowledged", "heir_current", "delivered"]);
}

#[test]
fn chaos() {
    batch(
        &Scenario::chaos(),
        &[
            "usurped_while_alive",
            "resumed_owner_nacked",
            "handover_aborted",
            "tail_pulled",
            "claim_collected_past_zombie",
            "gap_shown_upstream",
            "power_lost",
            "suspended_machine",
            "commit_failed",
            "kit_failed_disk_full",
            "reign_handed_over",
            "stale_frames_echoed",
        ],
    );
}

#[test]
fn layers() {
    batch(
        &Scenario::layers(),
        &[
            "layer_committed",
            "layer_taken_back",
            "layers_taken_back",
            "reign_over_dead",
            "usurped_while_alive",
        ],
    );
}

#[test]
fn queries() {
    batch(
        &Scenario::queries(),
        &["fetch_begun", "fetcher_died", "server_silent", "invalidated", "written", "reign_over_dead"],
    );
}

#[test]
fn kills() {
    batch(
        &Scenario::kills(),
        &["reign_over_dead", "heirs_killed", "rows_adopted", "claim_lost_race", "reset_found"],
    );
}

#[test]
fn upstreams() {
    let mut happens = vec!["gap_shown_upstream", "upstream_conflict", "consumer_silent"];
    if seeds(QUICK, SCENARIOS) >= MANY {
        happens.push("tail_pulled");
    }
    batch(&Scenario::upstreams(), &happens);
}

#[test]
fn fence() {
    batch(
        &Scenario::fence(),
        &[
            "usurped_while_alive",
            "resumed_owner_nacked",
            "claim_collected_past_zombie",
            "claim_superseded",
            "predecessor_removed",
        ],
    );
}

#[test]
fn power() {
    batch(&Scenario::power(), &["power_lost", "rows_adopted"]);
}

#[test]
fn lost_claims() {
    batch(&Scenario::lost_claims(), &["power_lost", "rows_adopted"]);
}

#[test]
fn operations() {
    batch(&Scenario::operations(), &["operation_held_by_heir", "operation_adopted", "winner_republished"]);
}

#[test]
fn slow_readers() {
    batch(
        &Scenario::slow_readers(),
        &["follower_conflated", "follower_caught_up", "gap_shown_slow_reader", "channel_rewound"],
    );
}

#[test]
fn builds() {
    batch(&Scenario::builds(), &["reign_handed_over", "reign_over_dead", "store_too_new", "rows_adopted"]);
}
