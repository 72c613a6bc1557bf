//! The clocks of the machine.

use std::time::{Duration, SystemTime};

use paceline_proto::time::Time;
use rustix::time::{ClockId, clock_gettime};

#[cfg(any(target_os = "linux", target_os = "android"))]
const COUNTS_SUSPEND: ClockId = ClockId::Boottime;
/// On macOS this clock counts suspend; elsewhere it is the best there is.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const COUNTS_SUSPEND: ClockId = ClockId::Monotonic;

/// A pause between the readings of two clocks that is short enough to ignore.
const READING_TOGETHER: Duration = Duration::from_micros(100);
const READING_ATTEMPTS: usize = 8;

/// Now, on the clock that never goes back and counts suspend.
pub fn boottime() -> Time {
    Time(nanoseconds(COUNTS_SUSPEND))
}

/// The wall clock, for people to read. May jump; nothing decides by it.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// The wall clock's time at an instant of the clock that never goes back, for people to read.
pub fn wall_of(time: Time) -> SystemTime {
    let (now, wall) = (boottime(), wall());
    wall.checked_sub(now.since(time)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// How long the machine has been suspended since it booted; always zero where the system does not tell.
///
/// Exact to about 0.1 ms (the two clocks are not read at one instant): compare the growth with a threshold of
/// milliseconds.
pub fn suspend_total() -> Duration {
    let mut best = (u64::MAX, 0);
    for _ in 0..READING_ATTEMPTS {
        let before = nanoseconds(ClockId::Monotonic);
        let with_suspend = nanoseconds(COUNTS_SUSPEND);
        let spread = nanoseconds(ClockId::Monotonic).saturating_sub(before);
        if spread < best.0 {
            best = (spread, with_suspend.saturating_sub(before + spread / 2));
        }
        if u128::from(spread) <= READING_TOGETHER.as_nanos() {
            break;
        }
    }
    Duration::from_nanos(best.1)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Neither part of a clock that counts from boot is negative.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + u64::from(time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_go_back() {
        let mut last = boottime();
        for _ in 0..1000 {
            let now = boottime();
            assert!(now >= last);
            last = now;
        }
        assert!(last > Time::ZERO);
    }

    #[test]
    fn suspend_never_exceeds_the_time_since_boot() {
        assert!(Time::ZERO + suspend_total() <= boottime());
    }
}
