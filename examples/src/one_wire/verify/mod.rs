//! Compares what the sessions logged with what was published. Pure: logs in, counts and reasons out.

mod reference;
mod takeover;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use self::{
    reference::Reference,
    takeover::{Latency, Takeover, latency, percentile},
};
use super::{log::Record, message::Versioned};

/// What the sessions are held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The upstream can resume, so a session that lives to the end has every event since its join. Without it a loss
    /// is allowed where the session was told of a gap, and so is a repetition there.
    pub resumable: bool,
}

/// One session's log.
#[derive(Debug, Clone)]
pub struct SessionLog {
    /// How the session is named in reasons.
    pub name: String,
    /// When it had joined and subscribed; `None` if it never did.
    pub joined_ns: Option<u64>,
    /// Whether it lived to the end of the run.
    pub survived: bool,
    /// What it logged, in its order.
    pub records: Vec<Record>,
}

/// What the comparison counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Events logged.
    pub delivered: u64,
    /// Losses (of one event or of several in a row) that the session was not told of.
    pub gaps: u64,
    /// Losses that it was told of.
    pub gaps_reported: u64,
    /// Events delivered again.
    pub duplicates: u64,
    /// Events delivered after a later one.
    pub reordered: u64,
    /// Events whose payload is not what was published.
    pub altered: u64,
    /// Events that were never published.
    pub unknown: u64,
    /// Gaps told where nothing was lost.
    pub needless_gaps: u64,
}

impl Tally {
    /// Adds the counts of another session.
    pub fn add(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.gaps += other.gaps;
        self.gaps_reported += other.gaps_reported;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.altered += other.altered;
        self.unknown += other.unknown;
        self.needless_gaps += other.needless_gaps;
    }
}

/// Events missing between two that were delivered: places `from..to` of the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hole {
    from: usize,
    to: usize,
    told: bool,
}

/// Compares one session's log with the reference, adding to `reasons` what speaks against it.
pub fn check_session(
    reference: &Reference,
    log: &SessionLog,
    rules: Rules,
    reasons: &mut Vec<String>,
) -> Tally {
    let mut walk = Walk::new(reference, log, rules);
    for record in &log.records {
        walk.step(*record);
    }
    let mut tally = walk.tally;
    let delivered = walk.delivered;
    let mut holes = walk.holes;
    if log.survived && walk.next < reference.len() {
        holes.push(Hole { from: walk.next, to: reference.len(), told: walk.gap_told });
    } else {
        tally.needless_gaps += u64::from(walk.gap_told);
    }
    for hole in &holes {
        if delivered[hole.from..hole.to].iter().all(|delivered| *delivered) {
            tally.needless_gaps += u64::from(hole.told);
        } else if hole.told {
            tally.gaps_reported += 1;
        } else {
            tally.gaps += 1;
        }
    }
    let lost = |hole: &Hole| (hole.from..hole.to).find(|place| !delivered[*place]);
    let first_lost =
        holes.iter().filter(|hole| !hole.told).find_map(lost).map(|place| reference.number(place));
    judge(log, &tally, first_lost, rules, reasons);
    tally
}

/// The way through one session's log.
struct Walk<'a> {
    reference: &'a Reference,
    rules: Rules,
    tally: Tally,
    delivered: Vec<bool>,
    /// The place of the reference that is to come.
    next: usize,
    /// A gap was told since the last event.
    gap_told: bool,
    /// Events up to here may come again, because a gap was told.
    may_repeat: bool,
    holes: Vec<Hole>,
}

impl<'a> Walk<'a> {
    fn new(reference: &'a Reference, log: &SessionLog, rules: Rules) -> Self {
        // Nothing from before its join is owed to a session, but it may begin earlier. Where it is not known when an
        // event was published, a session begins with its first one.
        let joined_ns = log.joined_ns.filter(|_| reference.exact_times());
        let next = joined_ns.map_or(reference.len(), |joined| reference.first_after(joined));
        Self {
            reference,
            rules,
            tally: Tally::default(),
            delivered: vec![false; reference.len()],
            next,
            gap_told: false,
            may_repeat: false,
            holes: Vec::new(),
        }
    }

    fn step(&mut self, record: Record) {
        match record {
            Record::Gap { .. } => {
                self.tally.needless_gaps += u64::from(self.gap_told);
                self.gap_told = true;
                self.may_repeat = !self.rules.resumable;
            }
            Record::Event { number, hash, .. } => {
                let first = self.tally.delivered == 0;
                self.tally.delivered += 1;
                match self.reference.find(number) {
                    Some(place) => self.event(place, hash, first),
                    None => self.tally.unknown += 1,
                }
            }
        }
    }

    fn event(&mut self, place: usize, hash: u64, first: bool) {
        self.tally.altered += u64::from(self.reference.hash(place) != hash);
        if first && place < self.next {
            self.next = place;
        }
        let again = self.delivered[place];
        self.delivered[place] = true;
        if place < self.next {
            if again && !self.may_repeat {
                self.tally.duplicates += 1;
            } else if !again {
                self.tally.reordered += 1;
            }
            return;
        }
        if place > self.next {
            self.holes.push(Hole { from: self.next, to: place, told: self.gap_told });
        } else {
            self.tally.needless_gaps += u64::from(self.gap_told);
        }
        self.gap_told = false;
        self.may_repeat = false;
        self.next = place + 1;
    }
}

fn judge(log: &SessionLog, tally: &Tally, first_lost: Option<u64>, rules: Rules, reasons: &mut Vec<String>) {
    let mut against = |n: u64, what: &str| {
        if n > 0 {
            reasons.push(format!("{}: {what}: {n}", log.name));
        }
    };
    let from = first_lost.map_or(String::new(), |number| format!(" (the first at event {number})"));
    against(tally.gaps, &format!("losses without a gap event{from}"));
    against(tally.duplicates, "events delivered twice");
    against(tally.reordered, "events delivered out of order");
    against(tally.altered, "events with an altered payload");
    against(tally.unknown, "events that were never published");
    if rules.resumable && log.survived {
        against(tally.gaps_reported, "losses with a gap event, though the upstream can resume");
    }
    if log.survived && tally.delivered == 0 {
        reasons.push(format!("{}: no event was delivered", log.name));
    }
}

/// Compares the final value of each key, adding to `reasons` what differs. A session that was sent equal content
/// again may go on showing the version it had it from first.
pub fn check_values(
    name: &str,
    published: &BTreeMap<String, Versioned>,
    shown: &BTreeMap<String, Versioned>,
    reasons: &mut Vec<String>,
) {
    for (key, value) in published {
        match shown.get(key) {
            Some(held) if held.data == value.data && held.version <= value.version => {}
            Some(held) => reasons.push(format!(
                "{name}: query {key} shows {} of version {}, the feed ended with {} of version {}",
                held.data, held.version, value.data, value.version
            )),
            None => reasons.push(format!("{name}: query {key} shows nothing")),
        }
    }
}
