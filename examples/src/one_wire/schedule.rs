//! Which faults come when: fixed by the seed.

use std::time::Duration;

use serde::Serialize;

/// What is done to the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Killed (SIGKILL); another session is started afterwards.
    Sigkill,
    /// Frozen (SIGSTOP) and resumed (SIGCONT) after another one has taken over.
    Sigstop,
    /// Asked to hand over.
    Polite,
}

/// How a polite handover is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// Another session is promoted.
    Promote,
    /// The primary leaves the group; another session is started afterwards.
    Leave,
}

/// A fault to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Earliest time since the start of the run.
    pub due: Duration,
    /// What happens.
    pub kind: FaultKind,
    /// For polite ones.
    pub handover: Handover,
    /// Free choice: whom to promote, how long to stay frozen.
    pub choice: u64,
}

/// Faults in the order in which they are to happen, spread over `duration`.
pub fn schedule(seed: u64, kills: u32, stops: u32, handovers: u32, duration: Duration) -> Vec<Fault> {
    let mut random = SplitMix(seed);
    let mut kinds = Vec::new();
    for (kind, n) in
        [(FaultKind::Sigkill, kills), (FaultKind::Sigstop, stops), (FaultKind::Polite, handovers)]
    {
        kinds.extend(std::iter::repeat_n(kind, n as usize));
    }
    for end in (1..kinds.len()).rev() {
        kinds.swap(end, random.below(end as u64 + 1) as usize);
    }
    let slot = duration / (u32::try_from(kinds.len()).unwrap_or(u32::MAX).saturating_add(1));
    let mut polite = random.below(2);
    let mut faults = Vec::new();
    for (i, kind) in (1_u32..).zip(kinds) {
        let handover = if polite.is_multiple_of(2) { Handover::Promote } else { Handover::Leave };
        polite += u64::from(kind == FaultKind::Polite);
        let jitter = slot.mul_f64(random.below(500) as f64 / 1000.0);
        faults.push(Fault { due: slot * i - jitter, kind, handover, choice: random.next() });
    }
    faults
}

/// A generator that is the same on every machine.
#[derive(Debug, Clone)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_fixes_the_schedule_and_another_changes_it() {
        let of = |seed| schedule(seed, 10, 3, 3, Duration::from_secs(20));
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn the_schedule_holds_what_was_asked_for_in_time() {
        for seed in 0..50 {
            let faults = schedule(seed, 10, 3, 4, Duration::from_secs(20));
            let count = |kind| faults.iter().filter(|fault| fault.kind == kind).count();
            assert_eq!(
                [count(FaultKind::Sigkill), count(FaultKind::Sigstop), count(FaultKind::Polite)],
                [10, 3, 4]
            );
            assert!(faults.is_sorted_by(|a, b| a.due < b.due), "seed {seed}");
            assert!(faults.iter().all(|fault| fault.due < Duration::from_secs(20)), "seed {seed}");
            let leaves =
                |fault: &&Fault| fault.kind == FaultKind::Polite && fault.handover == Handover::Leave;
            assert_eq!(faults.iter().filter(leaves).count(), 2, "seed {seed}");
        }
        assert_eq!(schedule(1, 0, 0, 0, Duration::from_secs(1)), []);
    }
}
