//! When to try again. Requirement W3: the first attempt at once, then uniform in [0, min(base·2ⁿ, cap)] with n = failures
//! so far − 1; n is forgotten only after a stable minute, so that a server that accepts and drops is not hammered.

use std::time::Duration;

use paceline_proto::time::Time;

use crate::random::Random;

/// After a refusal because another consumer is still connected (409), its end is near: try soon, three times.
pub const OCCUPIED_RETRIES: [Duration; 3] =
    [Duration::from_millis(5), Duration::from_millis(10), Duration::from_millis(20)];

/// The numbers of a backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffSpec {
    /// Upper bound of the first delay.
    pub base: Duration,
    /// Upper bound of any delay.
    pub cap: Duration,
    /// A connection that lived so long forgets the failures before it.
    pub reset_after: Duration,
}

impl Default for BackoffSpec {
    fn default() -> Self {
        Self { base: Duration::from_secs(1), cap: Duration::from_secs(30), reset_after: Duration::from_secs(60) }
    }
}

/// The state of a backoff.
#[derive(Debug, Clone)]
pub struct Backoff {
    spec: BackoffSpec,
    failures: u32,
    occupied: usize,
    opened: Option<Time>,
    /// The one immediate attempt after a loss was made since the last stable connection.
    hurried: bool,
    random: Random,
}

impl Backoff {
    /// No failure so far.
    pub const fn new(spec: BackoffSpec, random: Random) -> Self {
        Self { spec, failures: 0, occupied: 0, opened: None, hurried: false, random }
    }

    /// Failures since the last stable connection.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// The connection opened.
    pub const fn opened(&mut self, now: Time) {
        self.opened = Some(now);
        self.occupied = 0;
    }

    /// An open connection ended: the next attempt is made at once, unless that was done already since the last stable
    /// connection; then it counts as a failure.
    pub fn lost(&mut self, now: Time, floor: Duration) -> Duration {
        self.forget_if_stable(now);
        if self.failures == 0 && !std::mem::replace(&mut self.hurried, true) {
            return floor;
        }
        self.failed(now, floor)
    }

    /// An attempt failed: how long to wait. `floor` is what the server or the close code
    /// asks for at least.
    pub fn failed(&mut self, now: Time, floor: Duration) -> Duration {
        self.forget_if_stable(now);
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        let jittered = self.random.up_to(u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX));
        Duration::from_nanos(jittered).max(floor)
    }

    /// The server has another consumer still: 5, 10, 20 ms, then as any failure.
    pub fn occupied(&mut self, now: Time) -> Duration {
        match OCCUPIED_RETRIES.get(self.occupied) {
            Some(delay) => {
                self.occupied += 1;
                *delay
            }
            None => self.failed(now, Duration::ZERO),
        }
    }

    /// The upper bound of the next delay.
    fn bound(&self) -> Duration {
        // 2^15 seconds is beyond any cap in use, and no overflow.
        self.spec.base.saturating_mul(1 << self.failures.min(15)).min(self.spec.cap)
    }

    fn forget_if_stable(&mut self, now: Time) {
        if self.opened.take().is_some_and(|opened| now.since(opened) >= self.spec.reset_after) {
            self.failures = 0;
            self.hurried = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff(seed: u64) -> Backoff {
        Backoff::new(BackoffSpec::default(), Random::new(seed))
    }

    #[test]
    fn delays_are_uniform_below_a_doubling_bound_with_a_cap() {
        for (failures, bound_ms) in [(0, 1000), (1, 2000), (2, 4000), (4, 16000), (5, 30000), (40, 30000)] {
            let mut longest = Duration::ZERO;
            let mut shortest = Duration::MAX;
            for seed in 0..200 {
                let mut backoff = backoff(seed);
                for _ in 0..failures {
                    backoff.failed(Time(0), Duration::ZERO);
                }
                let delay = backoff.failed(Time(0), Duration::ZERO);
                longest = longest.max(delay);
                shortest = shortest.min(delay);
            }
            let bound = Duration::from_millis(bound_ms);
            assert!(longest <= bound && longest > bound * 9 / 10, "{failures}: {longest:?}");
            assert!(shortest < bound / 10, "{failures}: {shortest:?}");
        }
    }

    #[test]
    fn failures_are_forgotten_after_a_stable_minute_and_not_before() {
        let minute = Duration::from_secs(60);
        for (lived, failures) in [(minute - Duration::from_nanos(1), 4), (minute, 1)] {
            let mut backoff = backoff(1);
            for _ in 0..3 {
                backoff.failed(Time(0), Duration::ZERO);
            }
            backoff.opened(Time(0));
            backoff.failed(Time(0) + lived, Duration::ZERO);
            assert_eq!(backoff.failures(), failures, "{lived:?}");
        }
    }

    #[test]
    fn a_server_with_another_consumer_is_tried_soon_three_times() {
        let mut backoff = backoff(3);
        let delays: Vec<Duration> = (0..3).map(|_| backoff.occupied(Time(0))).collect();
        assert_eq!(delays, OCCUPIED_RETRIES);
        assert_eq!(backoff.failures(), 0);
        backoff.occupied(Time(0));
        assert_eq!(backoff.failures(), 1);
    }

    #[test]
    fn a_loss_is_followed_by_one_attempt_at_once_until_a_stable_minute() {
        let mut backoff = backoff(5);
        backoff.opened(Time(0));
        assert_eq!(backoff.lost(Time(1), Duration::ZERO), Duration::ZERO);
        assert_eq!(backoff.failures(), 0);
        backoff.opened(Time(2));
        backoff.lost(Time(3), Duration::ZERO);
        assert_eq!(backoff.failures(), 1);
        backoff.opened(Time(4));
        assert_eq!(backoff.lost(Time(4) + Duration::from_secs(60), Duration::ZERO), Duration::ZERO);
        assert_eq!(backoff.failures(), 0);
    }

    #[test]
    fn the_floor_wins_upward() {
        let floor = Duration::from_secs(7);
        assert!((0..50).all(|seed| backoff(seed).failed(Time(0), floor) == floor));
    }
}
