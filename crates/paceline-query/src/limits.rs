//! Every bound of the data layer, with its reason.

use std::time::Duration;

/// Rules of one resource on the wire, bytes: hundreds of tags and polling rules, and a sixteenth of a frame.
pub const RULES_MAX: usize = 64 << 10;
/// The shortest interval of polling, deadline of a fetch and delay before a retry: nothing runs in a busy loop.
pub const INTERVAL_MIN: Duration = Duration::from_millis(1);
/// Retries of a fetch that somebody waits for: with a second between them, longer than anybody waits.
pub const RETRIES_MAX: u32 = 100;
/// Resources of a group: more than an application names, and few enough to look through for a new key.
pub const RESOURCES_MAX: usize = 4096;
/// Keys whose merged rules are remembered; past it all are worked out again.
pub const RULES_KEPT: usize = 65_536;
/// Sets of keys of one resource that one cascade tells apart; past it all its keys count as reached. Only names that wander
/// from place to place around a cycle make more than a few.
pub const AREAS_MAX: usize = 64;
/// Lines of a previewed cascade: some screens, and well inside a frame.
pub const CASCADE_LINES_MAX: usize = 1024;
/// Times that a fetch begins its attempt anew because a write, a push or an invalidation overtook it: once, so that a key which
/// changes all the time is not fetched for ever, and its callers are answered.
pub const RENEWALS_MAX: u32 = 1;
/// Windows that an endless burst of invalidations may stretch its gathering to: a second by the default.
pub const WINDOWS_MAX: u32 = 10;
/// A server's wish to wait is believed up to here: its slip must not silence a key for ever.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// No backoff of polling waits longer: a fault that is over is found within minutes.
pub const POLL_BACKOFF_MAX: Duration = Duration::from_secs(300);
/// After a takeover, the lack of a session that can fetch is no answer before: longer than suspicion and the way back of a
/// session that a killed primary left behind.
pub const RETURN_WAIT: Duration = Duration::from_secs(5);
/// Failures that the answer to a refetch of many tells in full: enough to see what is wrong, and far from a frame's bound.
pub const FAILURES_SHOWN: usize = 16;
/// Different wishes of one session for one key, told together: more than an application has views of one value, and within
/// the bytes that options may have.
pub const OPTIONS_MAX: usize = 12;

/// Bytes of one mutation's record.
pub const RECORD_BYTES: usize = 1 << 20;
/// Bytes of a scope's name.
pub const SCOPE_BYTES: usize = 1024;
