//! The one clock that the feed, the sessions and the parent share.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds on a clock that all processes of this boot read alike, and that counts suspend where the system has
/// such a clock.
pub fn now_ns() -> u64 {
    #[cfg(target_os = "linux")]
    let clock = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = ClockId::Monotonic;
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
