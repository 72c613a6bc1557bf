//! When to try again, and when by another transport. Requirement W3: the first attempt at once, then uniform in
//! [0, min(base·2ⁿ, cap)] with n = failures so far − 1; n is forgotten only after a stable minute, so that a server that
//! accepts and drops is not hammered. After five failures, or two connections that each lived under five seconds, it is
//! the next transport's turn.

use std::time::Duration;

use paceline_proto::time::Time;

use crate::random::Random;

/// After a refusal because another consumer is still connected (409), its end is near: try soon, three times.
pub const OCCUPIED_RETRIES: [Duration; 3] =
    [Duration::from_millis(5), Duration::from_millis(10), Duration::from_millis(20)];

/// Connections that end sooner count against the transport …
pub const SHORT_LIFE: Duration = Duration::from_secs(5);
/// … and so many of them in a row are enough.
pub const SHORT_LIVES: u32 = 2;

/// How a delay is drawn below its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jitter {
    /// Uniform from zero to the bound: the clients of a server that failed do not come back at one instant.
    Full,
    /// The bound itself.
    None,
}

/// The numbers of a backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffSpec {
    /// Upper bound of the first delay.
    pub base: Duration,
    /// Upper bound of any delay.
    pub cap: Duration,
    /// A connection that lived so long forgets the failures before it.
    pub reset_after: Duration,
    /// How delays are drawn.
    pub jitter: Jitter,
    /// Failures in a row after which the next transport is tried.
    pub fallback_after: u32,
}

impl Default for BackoffSpec {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(1),
            cap: Duration::from_secs(30),
            reset_after: Duration::from_secs(60),
            jitter: Jitter::Full,
            fallback_after: 5,
        }
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
    /// Failures and short lives since the transport was last good for something.
    against: Against,
    random: Random,
}

#[derive(Debug, Clone, Copy, Default)]
struct Against {
    failures: u32,
    short_lives: u32,
}

impl Backoff {
    /// No failure so far.
    pub const fn new(spec: BackoffSpec, random: Random) -> Self {
        let against = Against { failures: 0, short_lives: 0 };
        Self { spec, failures: 0, occupied: 0, opened: None, hurried: false, against, random }
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

    /// The connection was closed from this side, which says nothing about the server.
    pub fn closed(&mut self, now: Time) {
        self.forget_if_stable(now);
    }

    /// An open connection ended: the next attempt is made at once, unless that was done already since the last stable
    /// connection; then it counts as a failure. `floor` as in [`Backoff::failed`].
    pub fn lost(&mut self, now: Time, floor: Duration) -> Duration {
        if self.opened.is_some_and(|opened| now.since(opened) < SHORT_LIFE) {
            self.against.short_lives = self.against.short_lives.saturating_add(1);
        } else {
            self.against = Against::default();
        }
        self.forget_if_stable(now);
        if self.failures == 0 && !std::mem::replace(&mut self.hurried, true) {
            return floor;
        }
        self.delay(floor)
    }

    /// An attempt failed: how long to wait. `floor` is what the server or the close code asks for at least.
    pub fn failed(&mut self, now: Time, floor: Duration) -> Duration {
        self.forget_if_stable(now);
        self.against.failures = self.against.failures.saturating_add(1);
        self.delay(floor)
    }

    /// Whether it is the next transport's turn; the count begins anew with it.
    pub fn take_switch(&mut self) -> bool {
        let due =
            self.against.failures >= self.spec.fallback_after || self.against.short_lives >= SHORT_LIVES;
        if due {
            self.against = Against::default();
        }
        due
    }

    /// When a connection that stays open is stable: its failures can be forgotten by [`Backoff::settle`].
    pub fn settles_at(&self) -> Option<Time> {
        let has_past = self.failures > 0 || self.hurried;
        self.opened.filter(|_| has_past).map(|opened| opened + self.spec.reset_after)
    }

    /// Forgets the failures of a connection that has been open long enough. Whether there were any.
    pub fn settle(&mut self, now: Time) -> bool {
        let settled = self.settles_at().is_some_and(|at| now >= at);
        if settled {
            self.failures = 0;
            self.hurried = false;
        }
        settled
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

    /// Uniform between the two.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let room = u64::try_from(most.saturating_sub(least).as_nanos()).unwrap_or(u64::MAX);
        least + Duration::from_nanos(self.random.up_to(room))
    }

    fn delay(&mut self, floor: Duration) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        let drawn = match self.spec.jitter {
            Jitter::Full => {
                let bound = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
                Duration::from_nanos(self.random.up_to(bound))
            }
            Jitter::None => bound,
        };
        drawn.max(floor)
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
    fn the_next_transport_has_its_turn_after_five_failures_or_two_short_lives() {
        let mut machine = backoff(1);
        for turn in [false, false, false, false, true, false] {
            machine.failed(Time(0), Duration::ZERO);
            assert_eq!(machine.take_switch(), turn);
        }
        for (lived, turn) in [(SHORT_LIFE - Duration::from_nanos(1), true), (SHORT_LIFE, false)] {
            let mut machine = backoff(1);
            for turn in [false, turn] {
                machine.opened(Time(0));
                machine.lost(Time(0) + lived, Duration::ZERO);
                assert_eq!(machine.take_switch(), turn, "{lived:?}");
            }
        }
        // A longer life in between clears the transport of what was held against it.
        let mut machine = backoff(1);
        for lived in [1, 5, 1] {
            machine.opened(Time(0));
            machine.lost(Time(0) + Duration::from_secs(lived), Duration::ZERO);
            assert!(!machine.take_switch(), "{lived}");
        }
    }

    #[test]
    fn an_open_connection_settles_once() {
        let mut machine = backoff(1);
        machine.opened(Time(0));
        assert_eq!(machine.settles_at(), None, "there is nothing to forget");
        machine.failed(Time(0), Duration::ZERO);
        machine.opened(Time(7));
        let minute = Time(7) + Duration::from_secs(60);
        assert_eq!(machine.settles_at(), Some(minute));
        assert!(!machine.settle(Time(minute.0 - 1)));
        assert!(machine.settle(minute));
        assert_eq!((machine.failures(), machine.settles_at()), (0, None));
    }

    #[test]
    fn without_jitter_a_delay_is_its_bound() {
        let spec = BackoffSpec { jitter: Jitter::None, ..BackoffSpec::default() };
        let mut machine = Backoff::new(spec, Random::new(1));
        let delays: Vec<u64> = (0..7).map(|_| machine.failed(Time(0), Duration::ZERO).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn the_floor_wins_upward() {
        let floor = Duration::from_secs(7);
        assert!((0..50).all(|seed| backoff(seed).failed(Time(0), floor) == floor));
    }
}
