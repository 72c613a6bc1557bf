//! Every wrong protocol is caught: within a bounded number of seeds one breaks an invariant, and the right protocol passes
//! that very seed. The seed each search begins with is the one that caught the mutant last.

mod common;

use paceline_sim::{Mutant, Options, Point, Scenario, run};

/// Seeds a search may take.
const BOUND: u64 = 400;

/// Finds a seed at which `mutant` breaks one of `expected`.
#[allow(clippy::print_stderr, reason = "the seed found is for people")]
fn caught(mutant: Mutant, scenario: &Scenario, first: u64, expected: &[&str]) {
    for seed in first..first + BOUND {
        let report = run(seed, scenario, Options { mutant: Some(mutant), ..Options::default() });
        let Some(violation) = report.violations.first() else { continue };
        eprintln!("{mutant:?} is caught at seed {seed} of {:?}: {violation}", scenario.name);
        assert!(expected.contains(&violation.invariant), "seed {seed} breaks another rule: {violation}");
        let right = run(seed, scenario, Options::default());
        assert!(right.is_clean(), "without {mutant:?}, seed {seed} is not clean: {:?}", right.violations);
        return;
    }
    panic!("{mutant:?} survived seeds {first}..{} of {:?}", first + BOUND, scenario.name);
}

fn stopping_at(point: Point) -> Scenario {
    Scenario { focus: Some(point), ..Scenario::fence() }
}

#[test]
fn fence_without_second_half() {
    caught(Mutant::FenceWithoutSecondHalf, &Scenario::fence(), 4, &["I1", "I3"]);
}

#[test]
fn fence_halves_swapped() {
    caught(Mutant::FenceHalvesSwapped, &stopping_at(Point::FenceHalf), 17, &["I1", "I3"]);
}

#[test]
fn claims_collected_descending() {
    caught(Mutant::ClaimsCollectedDescending, &Scenario::fence(), 0, &["I1", "I2", "I3"]);
}

#[test]
fn no_relist_after_link() {
    caught(Mutant::NoRelistAfterLink, &stopping_at(Point::Listed), 5, &["I1", "I2", "I3"]);
}

#[test]
fn adoption_without_bound() {
    caught(Mutant::AdoptionWithoutBound, &stopping_at(Point::FenceHalf), 6, &["I1", "I4"]);
}

#[test]
fn read_before_claim() {
    caught(Mutant::ReadBeforeClaim, &Scenario::fence(), 0, &["I1", "I4"]);
}

#[test]
fn no_completeness_mark() {
    caught(Mutant::NoCompletenessMark, &Scenario::fence(), 1, &["I1"]);
}

#[test]
fn fence_before_commit() {
    caught(Mutant::FenceBeforeCommit, &stopping_at(Point::FenceChecked), 0, &["I1", "I3"]);
}

#[test]
fn predecessor_deleted_while_fenced() {
    caught(Mutant::PredecessorDeletedWhileFenced, &stopping_at(Point::FenceChecked), 12, &["I1"]);
}

#[test]
fn epoch_by_claims_alone() {
    caught(Mutant::EpochByClaimsAlone, &Scenario::lost_claims(), 0, &["I1", "I2"]);
}

#[test]
fn complete_before_directory_sync() {
    caught(Mutant::CompleteBeforeDirectorySync, &Scenario::power(), 0, &["I1", "I2"]);
}

#[test]
fn adopted_rows_unsynced() {
    caught(Mutant::AdoptedRowsUnsynced, &Scenario::power(), 34, &["I1"]);
}

#[test]
fn resume_at_best_position() {
    caught(Mutant::ResumeAtBestPosition, &Scenario::chaos(), 1, &["I11"]);
}

#[test]
fn newer_events_before_tail() {
    caught(Mutant::NewerEventsBeforeTail, &Scenario::kills(), 3, &["I11"]);
}

#[test]
fn no_dedupe_by_position() {
    caught(Mutant::NoDedupeByPosition, &Scenario::chaos(), 1, &["I11"]);
}

#[test]
fn frames_dropped_at_once() {
    caught(Mutant::FramesDroppedAtOnce, &Scenario::kills(), 0, &["I11"]);
}

#[test]
fn no_gap() {
    caught(Mutant::NoGap, &Scenario::kills(), 0, &["I11"]);
}

#[test]
fn volatile_acknowledged_when_written() {
    caught(Mutant::VolatileAcknowledgedWhenWritten, &Scenario::operations(), 0, &["volatile"]);
}

#[test]
fn conflation_drops_operation_ids() {
    caught(Mutant::ConflationDropsOperationIds, &Scenario::operations(), 1, &["volatile"]);
}

#[test]
fn reset_not_remembered() {
    caught(Mutant::ResetNotRemembered, &Scenario::upstreams(), 3, &["I7", "liveness"]);
}

#[test]
fn old_build_over_newer_store() {
    caught(Mutant::OldBuildOverNewerStore, &Scenario::builds(), 0, &["builds"]);
}

/// A mutant without a test would prove nothing.
#[test]
fn every_mutant_has_its_test() {
    let source = include_str!("mutants.rs");
    for mutant in Mutant::ALL {
        assert!(source.contains(&format!("caught(Mutant::{mutant:?},")), "{mutant:?} has no test");
    }
}

#[test]
fn layers_not_told_anew() {
    caught(Mutant::LayersNotToldAnew, &Scenario::layers(), 0, &["liveness"]);
}

#[test]
fn layers_stay() {
    caught(Mutant::LayersStay, &Scenario::layers(), 0, &["liveness"]);
}

#[test]
fn fetches_not_shared() {
    caught(Mutant::FetchesNotShared, &Scenario::queries(), 0, &["one flight"]);
}

#[test]
fn overtaken_responses_kept() {
    caught(Mutant::OvertakenResponsesKept, &Scenario::queries(), 0, &["freshness", "liveness"]);
}
