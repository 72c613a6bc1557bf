//! Intervals of the election alone, the backoff of its retries, and what restrains claims over living owners.

use std::time::Duration;

use crate::{
    limits::{SUSPICION_CAP, SUSPICION_DECAY, SUSPICION_TICK, SUSPICION_TICKS, USURP_INTERVAL},
    time::Time,
};

/// The second heir waits so long after EOF: the first one's claim takes about a millisecond.
pub(super) const HEIR_STAGGER: Duration = Duration::from_millis(5);
/// First wait between two tests of a lock that may be released any moment …
pub(super) const LOCK_STEP_MIN: Duration = Duration::from_micros(200);
/// … and the longest.
pub(super) const LOCK_STEP_MAX: Duration = Duration::from_millis(1);
/// While a session lets better placed ones claim first, it looks so often whether one did.
pub(super) const STAGGER_STEP: Duration = Duration::from_millis(10);
/// First wait of a retry: a killed process of 1 GiB needs 100 ms to let go of its lock, so start well below.
pub(super) const RETRY_MIN: Duration = Duration::from_millis(10);
/// Longest wait of a retry: a person who waits for a join looks again about every second.
pub(super) const RETRY_MAX: Duration = Duration::from_secs(1);
/// A full owner's wish is kept within these bounds.
pub(super) const BUSY_MIN: Duration = Duration::from_millis(10);
/// See [`BUSY_MIN`].
pub(super) const BUSY_MAX: Duration = Duration::from_secs(10);
/// A listing or lock test that is not answered by then is asked for again.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// A fence that fails is reported before this passed, because the shell answers before its next input.
pub(super) const FENCE_WAIT: Duration = Duration::from_millis(1);
/// Even the first heir waits so long before it claims over a silent owner: the deadline brings a last look at the link.
pub(super) const LAST_LOOK: Duration = Duration::from_millis(1);
/// An heir makes ready so long after it was appointed: the group has just lost its owner, and its updates need the
/// processors more.
pub(super) const PREPARE_AFTER: Duration = Duration::from_millis(10);
/// A kit made in vain is kept so long for the next appointment.
pub(super) const KIT_KEPT: Duration = Duration::from_secs(10);
/// The owner learns of a kit within two pings; if its pings show none after so long, it is told again.
pub(super) const KIT_RETRY: Duration = Duration::from_secs(1);
/// An idle owner collects old files so often.
pub(super) const COLLECT_INTERVAL: Duration = Duration::from_secs(60);
/// A handover to a preferred session that failed is not tried again before.
pub(super) const PREFERRED_INTERVAL: Duration = Duration::from_secs(30);
/// A reign that was handed over is not handed to a newer build before: where builds come one after the other, the wire moves
/// seldom.
pub(super) const UPGRADE_INTERVAL: Duration = Duration::from_secs(30);
/// An owner whose store failed claims over itself at most so often …
pub(super) const RENEW_MIN: Duration = Duration::from_secs(5);
/// … and where that fails, less and less, down to this: a full disk is emptied by people.
pub(super) const RENEW_MAX: Duration = Duration::from_secs(300);

/// Doublings after which a longer suspicion would pass its cap in any case; keeps the shift small.
const LEVEL_MAX: u32 = 8;

/// SplitMix64: spreads retries; carries no secret.
#[derive(Debug, Clone)]
pub(super) struct SplitMix(u64);

impl SplitMix {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = u64::try_from(high.saturating_sub(low).as_nanos()).unwrap_or(u64::MAX);
        low + Duration::from_nanos(self.next() % span.saturating_add(1).max(1))
    }
}

/// `min · 2ⁿ` up to `max`.
pub(super) fn doubled(min: Duration, max: Duration, n: u32) -> Duration {
    min.saturating_mul(1u32.checked_shl(n.min(31)).unwrap_or(u32::MAX)).min(max)
}

/// What keeps a session from claiming over living owners again and again under load.
#[derive(Debug, Clone, Default)]
pub(super) struct Restraint {
    claimed: Option<Time>,
    level: u32,
    raised: Time,
}

impl Restraint {
    /// On-time ticks wanted before the direct probe.
    pub(super) fn ticks(&self, now: Time) -> u32 {
        let cap = u32::try_from(SUSPICION_CAP.as_nanos() / SUSPICION_TICK.as_nanos()).unwrap_or(u32::MAX);
        (SUSPICION_TICKS << self.level(now)).min(cap)
    }

    /// When the next claim without proof of death may be made, if not now.
    pub(super) fn until(&self, now: Time) -> Option<Time> {
        self.claimed.map(|at| at + USURP_INTERVAL).filter(|&until| until > now)
    }

    /// A claim without proof of death is being made.
    pub(super) fn note_claim(&mut self, now: Time) {
        self.claimed = Some(now);
    }

    /// It was won.
    pub(super) fn note_won(&mut self, now: Time) {
        self.level = (self.level(now) + 1).min(LEVEL_MAX);
        self.raised = now;
    }

    fn level(&self, now: Time) -> u32 {
        if now.since(self.raised) >= SUSPICION_DECAY { 0 } else { self.level }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn suspicion_doubles_up_to_its_cap_and_decays_in_a_minute() {
        let start = Time(1_000);
        let mut restraint = Restraint::default();
        assert_eq!(restraint.ticks(start), 22);
        restraint.note_won(start);
        assert_eq!(restraint.ticks(start), 44);
        assert_eq!(restraint.ticks(start + 59 * S), 44, "just inside the decay");
        assert_eq!(restraint.ticks(start + 60 * S), 22, "just outside");
        for _ in 0..20 {
            restraint.note_won(start);
        }
        assert_eq!(restraint.ticks(start), 300, "15 s of 50 ms ticks");
    }

    #[test]
    fn one_claim_without_proof_in_five_seconds() {
        let start = Time(7);
        let mut restraint = Restraint::default();
        assert_eq!(restraint.until(start), None);
        restraint.note_claim(start);
        assert_eq!(restraint.until(start + 4 * S), Some(start + 5 * S));
        assert_eq!(restraint.until(start + 5 * S), None);
    }

    #[test]
    fn doubling_stops_at_the_bound() {
        let ms = Duration::from_millis;
        let waits: Vec<_> = (0..9).map(|n| doubled(RETRY_MIN, RETRY_MAX, n)).collect();
        assert_eq!(waits[..3], [ms(10), ms(20), ms(40)]);
        assert_eq!(waits[7..], [ms(1000), ms(1000)]);
        assert_eq!(doubled(RETRY_MIN, RETRY_MAX, u32::MAX), RETRY_MAX);
    }

    #[test]
    fn spread_stays_in_its_bounds_and_depends_on_the_seed_only() {
        let (mut a, mut b) = (SplitMix::new(3), SplitMix::new(3));
        for _ in 0..1000 {
            let wait = a.between(LOCK_STEP_MIN, LOCK_STEP_MAX);
            assert!((LOCK_STEP_MIN..=LOCK_STEP_MAX).contains(&wait));
            assert_eq!(wait, b.between(LOCK_STEP_MIN, LOCK_STEP_MAX));
        }
        assert_eq!(a.between(S, S), S);
    }
}
