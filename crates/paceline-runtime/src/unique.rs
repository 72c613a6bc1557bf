//! Numbers that nobody else has.

use std::time::SystemTime;

use paceline_ipc::clock;
use uuid::{NoContext, Timestamp, Uuid};

/// A new one, of 74 random bits behind the wall clock's time, which is for people who sort by it. A clock before 1970
/// counts as 1970.
pub fn unique() -> u128 {
    at(clock::wall())
}

fn at(time: SystemTime) -> u128 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, since.as_secs(), since.subsec_nanos())).as_u128()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_time_is_too_early_or_too_late() {
        let century = Duration::from_secs(100 * 365 * 24 * 3600);
        let epoch = SystemTime::UNIX_EPOCH;
        for time in [epoch - century, epoch, epoch + century, epoch + century * 100] {
            assert_ne!(at(time), at(time));
        }
        assert!(at(epoch) < at(epoch + Duration::from_millis(1)));
    }
}
