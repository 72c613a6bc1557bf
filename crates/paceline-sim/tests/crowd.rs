//! Sixty-four sessions start at one instant: one of them leads, nobody else passes a fence, everybody joins.

mod common;

use common::{clean, seeds};
use paceline_sim::Scenario;

#[test]
fn sixty_four_sessions_start_at_one_instant() {
    let count = seeds(200, 1).min(200);
    let counters = clean(&Scenario::crowd(64), count);
    assert!(counters.get("epochs") >= count, "every seed uses an epoch");
    assert!(counters.get("claim_lost_race") > 0, "the starts never collided");
}
