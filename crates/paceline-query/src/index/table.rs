//! A table of numbers by hash: open addressing, at most half full, nothing left behind by what is removed. It iterates over
//! nothing, so that the order of hashes is seen by nobody.

/// An empty slot.
const EMPTY: u32 = u32::MAX;
const SLOTS_MIN: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: u32,
    number: u32,
}

/// Numbers other than `u32::MAX`, each put in once.
#[derive(Debug)]
pub(super) struct Table {
    /// A power of two.
    slots: Vec<Slot>,
    len: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { slots: vec![Slot { hash: 0, number: EMPTY }; SLOTS_MIN], len: 0 }
    }

    /// The number with this hash that is meant.
    pub(super) fn find(&self, hash: u32, is_meant: impl Fn(u32) -> bool) -> Option<u32> {
        let mut at = self.home(hash);
        loop {
            let slot = self.slots[at];
            if slot.number == EMPTY {
                return None;
            }
            if slot.hash == hash && is_meant(slot.number) {
                return Some(slot.number);
            }
            at = self.after(at);
        }
    }

    /// Puts in a number that is not there.
    pub(super) fn insert(&mut self, hash: u32, number: u32) {
        if (self.len + 1) * 2 > self.slots.len() {
            let larger = vec![Slot { hash: 0, number: EMPTY }; self.slots.len() * 2];
            let old = std::mem::replace(&mut self.slots, larger);
            old.into_iter().filter(|slot| slot.number != EMPTY).for_each(|slot| self.put(slot));
        }
        self.put(Slot { hash, number });
        self.len += 1;
    }

    /// Takes out a number that is there.
    pub(super) fn remove(&mut self, hash: u32, number: u32) {
        let mut gap = self.home(hash);
        while self.slots[gap].number != number {
            if self.slots[gap].number == EMPTY {
                return;
            }
            gap = self.after(gap);
        }
        self.len -= 1;
        // Those behind come forward if the gap lies on their way from home, so that no look stops short of them.
        let mut at = gap;
        loop {
            self.slots[gap].number = EMPTY;
            loop {
                at = self.after(at);
                if self.slots[at].number == EMPTY {
                    return;
                }
                if self.way(self.home(self.slots[at].hash), at) >= self.way(gap, at) {
                    break;
                }
            }
            self.slots[gap] = self.slots[at];
            gap = at;
        }
    }

    fn put(&mut self, slot: Slot) {
        let mut at = self.home(slot.hash);
        while self.slots[at].number != EMPTY {
            at = self.after(at);
        }
        self.slots[at] = slot;
    }

    const fn home(&self, hash: u32) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    const fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }

    /// Steps from one slot to another.
    const fn way(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_are_found_while_they_are_in(steps in prop::collection::vec((0_u32..40, any::<bool>()), 1..200), few in 1_u32..40) {
            // Few hashes, at the end of the slots and at their beginning, so that numbers are in each other's way.
            let hash = |number: u32| (number % few).wrapping_sub(few / 2);
            let mut table = Table::new();
            let mut naive = BTreeMap::new();
            for (number, add) in steps {
                match (add, naive.remove(&number)) {
                    (true, None) => {
                        table.insert(hash(number), number);
                        naive.insert(number, ());
                    }
                    (true, Some(())) => drop(naive.insert(number, ())),
                    (false, Some(())) => table.remove(hash(number), number),
                    (false, None) => {}
                }
                for number in 0..40 {
                    let found = table.find(hash(number), |found| found == number);
                    prop_assert_eq!(found, naive.contains_key(&number).then_some(number));
                }
                prop_assert_eq!(table.len, naive.len());
            }
        }
    }
}
