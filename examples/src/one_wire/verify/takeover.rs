//! How long a takeover kept the sessions waiting.

use super::{Reference, SessionLog};
use crate::one_wire::{log::Record, schedule::FaultKind};

/// A fault that was injected, and who lived through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takeover {
    /// What was done to the primary.
    pub kind: FaultKind,
    /// When the signal or the request was sent.
    pub signal_ns: u64,
    /// When the new primary was known and updates flowed in all survivors.
    pub settled_ns: u64,
    /// Indexes of the logs of the sessions that were members before and after, the target of a signal left out.
    pub survivors: Vec<usize>,
}

/// What a takeover cost, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Signal → delivery, in the last surviving session, of the first update published after it, less the wait for
    /// that publication.
    pub last_ns: u64,
    /// The same in the first surviving session.
    pub first_ns: u64,
    /// The longest that any update published until the group had settled took to reach the last surviving session.
    pub worst_ns: u64,
}

/// Measures a takeover; `None` if some survivor got nothing that was published after the signal.
///
/// Where the first update after the signal was lost (the upstream cannot resume), the first one that was delivered
/// stands for it, and the wait for it counts. Where the time of publication is not known, the longest silence that a
/// session went through between signal and settling stands for the takeover.
pub fn latency(reference: &Reference, logs: &[SessionLog], takeover: &Takeover) -> Option<Latency> {
    let mut bounds: Option<Latency> = None;
    for index in &takeover.survivors {
        let records = &logs.get(*index)?.records;
        let one = if reference.exact_times() {
            from_publication(reference, records, takeover)?
        } else {
            let ns = longest_silence(records, takeover)?;
            Latency { last_ns: ns, first_ns: ns, worst_ns: ns }
        };
        bounds = Some(bounds.map_or(one, |all| Latency {
            last_ns: all.last_ns.max(one.last_ns),
            first_ns: all.first_ns.min(one.first_ns),
            worst_ns: all.worst_ns.max(one.worst_ns),
        }));
    }
    bounds
}

fn from_publication(reference: &Reference, records: &[Record], takeover: &Takeover) -> Option<Latency> {
    let first = reference.first_after(takeover.signal_ns);
    let end = reference.first_after(takeover.settled_ns).max(first + 1);
    let published_ns = (first < reference.len()).then(|| reference.at_ns(first))?;
    let mut earliest: Option<(usize, u64)> = None;
    let mut worst_ns = 0;
    for record in records {
        let Record::Event { number, at_ns, .. } = *record else { continue };
        let Some(place) = reference.find(number).filter(|place| *place >= first) else { continue };
        if earliest.is_none_or(|(other, _)| place < other) {
            earliest = Some((place, at_ns));
        }
        if place < end {
            worst_ns = worst_ns.max(at_ns.saturating_sub(reference.at_ns(place)));
        }
    }
    let ns = earliest?.1.saturating_sub(published_ns);
    Some(Latency { last_ns: ns, first_ns: ns, worst_ns: worst_ns.max(ns) })
}

fn longest_silence(records: &[Record], takeover: &Takeover) -> Option<u64> {
    let mut before = takeover.signal_ns;
    let mut longest = None;
    for record in records {
        let Record::Event { at_ns, .. } = *record else { continue };
        if at_ns < takeover.signal_ns {
            continue;
        }
        longest = longest.max(Some(at_ns.saturating_sub(before)));
        before = at_ns;
        if at_ns > takeover.settled_ns {
            break;
        }
    }
    longest
}

/// The smallest value that `percent` of `values` do not exceed (nearest rank); `None` without values.
pub fn percentile(values: &[u64], percent: u32) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent as usize).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}
