//! A machine kept busy by two spinning processes: everybody is late, nobody is replaced.

mod common;

use common::clean;
use paceline_sim::Scenario;

#[test]
fn nobody_is_replaced_in_ten_minutes_of_load() {
    let counters = clean(&Scenario::busy(600_000), 2);
    assert!(counters.get("suspected") > 0, "the load was too light to make anybody suspicious");
}
