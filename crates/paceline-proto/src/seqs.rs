//! A set of sequence numbers that stays small: ascending runs, mostly one.

/// Runs of one set. A run ends where an operation changed nothing (a lost compare-and-set, a patch that did not fit), was
/// lost with its owner, or is not here yet: a new owner gets them key by key. Beyond this many the oldest hole is taken
/// for applied.
const RUNS_MAX: usize = 1024;

/// Sequence numbers as ascending, disjoint, inclusive runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seqs {
    runs: Vec<(u64, u64)>,
}

impl Seqs {
    pub(crate) fn contains(&self, seq: u64) -> bool {
        self.runs.iter().rev().any(|&(first, last)| (first..=last).contains(&seq))
    }

    #[cfg(test)]
    fn insert(&mut self, seq: u64) {
        self.insert_run(seq, seq);
    }

    pub(crate) fn insert_run(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let (mut first, mut last) = (first, last);
        let touches = |run: &(u64, u64)| run.0 <= last.saturating_add(1) && first <= run.1.saturating_add(1);
        let from = self.runs.iter().position(touches);
        if let Some(from) = from {
            let upto = self.runs.iter().rposition(touches).map_or(from, |at| at);
            first = first.min(self.runs[from].0);
            last = last.max(self.runs[upto].1);
            self.runs.splice(from..=upto, [(first, last)]);
        } else {
            let at = self.runs.partition_point(|run| run.1 < first);
            self.runs.insert(at, (first, last));
        }
        if self.runs.len() > RUNS_MAX {
            self.close_oldest_hole();
        }
    }

    pub(crate) fn close_oldest_hole(&mut self) {
        if self.runs.len() > 1 {
            let first = self.runs.remove(0).0;
            self.runs[0].0 = first;
        }
    }

    pub(crate) fn remove(&mut self, seq: u64) {
        let Some(at) = self.runs.iter().position(|&(first, last)| (first..=last).contains(&seq)) else {
            return;
        };
        let (first, last) = self.runs.remove(at);
        if seq < last {
            self.runs.insert(at, (seq + 1, last));
        }
        if first < seq {
            self.runs.insert(at, (first, seq - 1));
        }
    }

    pub(crate) fn runs(&self) -> &[(u64, u64)] {
        &self.runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(seqs: &[u64]) -> Seqs {
        let mut set = Seqs::default();
        seqs.iter().for_each(|&seq| set.insert(seq));
        set
    }

    #[test]
    fn neighbours_join_in_any_order() {
        assert_eq!(of(&[3, 1, 2]).runs(), [(1, 3)]);
        assert_eq!(of(&[1, 2, 5, 4, 9]).runs(), [(1, 2), (4, 5), (9, 9)]);
        assert_eq!(of(&[1, 3, 5, 2, 4]).runs(), [(1, 5)]);
        assert!(of(&[1, 3]).contains(3));
        assert!(!of(&[1, 3]).contains(2));
    }

    #[test]
    fn a_run_swallows_those_inside_it() {
        let mut set = of(&[2, 5, 9, 20]);
        set.insert_run(4, 10);
        assert_eq!(set.runs(), [(2, 2), (4, 10), (20, 20)]);
        set.insert_run(u64::MAX, u64::MAX);
        assert!(set.contains(u64::MAX));
    }

    #[test]
    fn a_removed_number_leaves_a_hole() {
        let mut set = of(&[1, 2, 3, 4, 9]);
        set.remove(3);
        assert_eq!(set.runs(), [(1, 2), (4, 4), (9, 9)]);
        set.remove(9);
        set.remove(1);
        set.remove(7);
        assert_eq!(set.runs(), [(2, 2), (4, 4)]);
    }

    #[test]
    fn one_run_too_many_closes_the_oldest_hole() {
        let full: Vec<u64> = (0..RUNS_MAX as u64).map(|n| n * 2).collect();
        let mut set = of(&full);
        assert_eq!(set.runs().len(), RUNS_MAX);
        assert!(!set.contains(1));
        set.insert(4 * RUNS_MAX as u64);
        assert_eq!(set.runs().len(), RUNS_MAX);
        assert!(set.contains(1));
        assert!(!set.contains(3));
    }
}
