//! Which process made a claim, and whether it was seen stopped.

use std::fs;

/// A process for as long as the machine runs: its number alone is given to another process after its death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ProcessMark {
    /// Process id in the process's own namespace.
    pub pid: u32,
    /// When it started, in clock ticks after boot; 0 where the system does not tell.
    pub start_time: u64,
    /// Random number of this boot; 0 where the system does not tell.
    pub boot_id: u128,
}

impl ProcessMark {
    /// This process.
    pub fn own() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            start_time: status_of(pid).map_or(0, |status| status.start_time),
            boot_id: boot_id().unwrap_or(0),
        }
    }
}

/// Whether the process is stopped (by a signal or a debugger).
///
/// A hint that may spare a claimer its penalty, **never** a proof of anything: the process may run again by the time
/// the answer is read. `None` = unknown: another boot, another process by now, another namespace, or no `/proc`.
pub fn is_stopped(mark: &ProcessMark) -> Option<bool> {
    let known = mark.start_time != 0 && mark.boot_id != 0;
    if !known || boot_id() != Some(mark.boot_id) {
        return None;
    }
    let status = status_of(mark.pid)?;
    (status.start_time == mark.start_time).then_some(matches!(status.state, 'T' | 't'))
}

struct Status {
    state: char,
    start_time: u64,
}

fn status_of(pid: u32) -> Option<Status> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 3 and 22 of `/proc/<pid>/stat`. The name in field 2 may itself hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<Status> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(Status { state, start_time })
}

/// Random number of the boot that runs; `None` where the system does not tell.
pub fn boot_id() -> Option<u128> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_shift_the_fields() {
        let tail = "S 1 2 2 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1";
        let status = parse_stat(&format!("42 (a) b) {tail}")).unwrap();
        assert_eq!((status.state, status.start_time), ('S', 987_654));
        assert!(parse_stat("42 (cut").is_none());
        assert!(parse_stat("42 (cut) S 1 2").is_none());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_running_process_is_not_stopped_and_a_stranger_is_unknown() {
        let own = ProcessMark::own();
        assert_eq!(is_stopped(&own), Some(false));
        assert_eq!(
            is_stopped(&ProcessMark { start_time: own.start_time + 1, ..own }),
            None,
            "number given again"
        );
        assert_eq!(is_stopped(&ProcessMark { boot_id: own.boot_id ^ 1, ..own }), None, "another boot");
        assert_eq!(is_stopped(&ProcessMark::default()), None, "nothing known");
    }
}
