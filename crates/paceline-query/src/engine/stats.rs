//! What the engine counts.

use std::time::Duration;

use paceline_proto::time::Time;

/// Counters of a reign.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Attempts that sessions were asked to make.
    pub requests: u64,
    /// Fetches that brought a value, or found the held one right.
    pub ok: u64,
    /// Fetches that did not.
    pub failed: u64,
    /// Of all fetches those that nobody waited for.
    pub background: u64,
    /// When the last one ended.
    pub last: Option<Time>,
    /// Bytes of values that were fetched.
    pub bytes: u64,
    /// Questions answered by a value that was held.
    pub hits: u64,
    /// Their bytes.
    pub hit_bytes: u64,
    /// Questions that needed a fetch.
    pub misses: u64,
    /// Of them those that shared one.
    pub joined: u64,
    /// How long fetches took.
    pub durations: Durations,
}

impl Stats {
    pub(super) fn ended(&mut self, now: Time, took: Duration, ok: bool, background: bool) {
        self.ok += u64::from(ok);
        self.failed += u64::from(!ok);
        self.background += u64::from(background);
        self.last = Some(now);
        self.durations.add(took);
    }

    /// Fetches that ended.
    pub const fn total(&self) -> u64 {
        self.ok + self.failed
    }

    /// Requests that sharing saved: questions that a held value or somebody else's fetch answered.
    pub const fn saved_requests(&self) -> u64 {
        self.hits + self.joined
    }
}

/// Durations in buckets that each are an eighth wider than what lies below them: a percentile is right within 12.5 %.
#[derive(Debug, Clone)]
pub struct Durations {
    buckets: [u64; BUCKETS],
    count: u64,
    sum: Duration,
}

/// Microseconds up to 2³⁶ (19 hours) in eight buckets to the power of two, and the first eight alone.
const BUCKETS: usize = 8 + 33 * 8;

impl Default for Durations {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], count: 0, sum: Duration::ZERO }
    }
}

impl Durations {
    fn add(&mut self, took: Duration) {
        let bucket = bucket(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.buckets[bucket] += 1;
        self.count += 1;
        self.sum = self.sum.saturating_add(took);
    }

    /// The mean.
    pub fn average(&self) -> Option<Duration> {
        u32::try_from(self.count).ok().filter(|count| *count > 0).map(|count| self.sum / count)
    }

    /// What so many of a hundred do not exceed, rounded up to the bucket.
    pub fn percentile(&self, percent: u64) -> Option<Duration> {
        let rank = (self.count * percent).div_ceil(100).max(1);
        let mut below = 0;
        let at = self.buckets.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(Duration::from_micros(upper(at)))
    }
}

fn bucket(us: u64) -> usize {
    if us < 8 {
        return us as usize;
    }
    let power = us.ilog2();
    let eighth = (us >> (power - 3)) & 7;
    (8 + (power as usize - 3) * 8 + eighth as usize).min(BUCKETS - 1)
}

/// The greatest number of a bucket.
fn upper(bucket: usize) -> u64 {
    if bucket < 8 {
        return bucket as u64;
    }
    let (power, eighth) = ((bucket - 8) / 8, (bucket - 8) as u64 % 8);
    ((8 + eighth + 1) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_they_are_named_for() {
        for us in (0..100_000).chain([1 << 20, (1 << 30) + 12_345, u64::MAX >> 30]) {
            let at = bucket(us);
            assert!(us <= upper(at) && (at == 0 || us > upper(at - 1)), "{us} in {at}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_right_within_an_eighth() {
        let mut durations = Durations::default();
        assert_eq!((durations.average(), durations.percentile(50)), (None, None));
        (1..=1000).for_each(|ms| durations.add(Duration::from_millis(ms)));
        assert_eq!(durations.average(), Some(Duration::from_micros(500_500)));
        for (percent, ms) in [(50, 500), (95, 950), (99, 990), (100, 1000)] {
            let exact = Duration::from_millis(ms);
            let found = durations.percentile(percent).unwrap();
            assert!(found >= exact && found <= exact * 9 / 8, "{percent}: {found:?}");
        }
    }
}
