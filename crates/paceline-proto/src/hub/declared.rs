//! What sessions declare for their group, compared item by item where it is not the same everywhere.
//!
//! Of an item the owner's declaration counts, and where the owner has none, that of who came first. Only a digest travels in
//! Hello; the items are asked for once digests differ.

use std::collections::{BTreeMap, btree_map};

use super::{Effect, Hub, links::Slot};
use crate::{
    event::Event,
    limits::{CHUNK_ITEMS, ITEM_TEXT_MAX, ITEMS_MAX},
    message::{DeclaredItem, Declarer, ItemConflict, ToSession},
};

/// What the session of a link declares.
#[derive(Debug)]
pub(super) struct Declaration {
    /// Of all of it, as Hello said; 0 = nothing.
    root: u64,
    /// When it declared resources, among the arrivals.
    pub(super) order: Option<u64>,
    wanted: bool,
    /// Everything came.
    whole: bool,
    /// By name.
    items: BTreeMap<String, DeclaredItem>,
    /// As the session was told.
    conflicts: Vec<ItemConflict>,
}

impl Declaration {
    pub(super) fn new(root: u64) -> Self {
        Self { root, order: None, wanted: false, whole: false, items: BTreeMap::new(), conflicts: Vec::new() }
    }
}

impl Hub {
    /// A session came: if not all declare the same, they are asked what they declare.
    pub(super) fn want_items(&mut self, out: &mut Vec<Effect>) {
        let declaring: Vec<(Slot, u64)> = self
            .links
            .iter()
            .map(|(slot, link)| (slot, link.declaration.root))
            .filter(|(_, root)| *root != 0)
            .collect();
        if declaring.iter().all(|(_, root)| *root == declaring[0].1) {
            return;
        }
        for (slot, _) in declaring {
            let Some(link) = self.links.get_mut(slot) else { continue };
            if !std::mem::replace(&mut link.declaration.wanted, true) {
                self.tell(slot, ToSession::WantItems, out);
            }
        }
    }

    pub(super) fn items_came(
        &mut self,
        slot: Slot,
        items: Vec<DeclaredItem>,
        end: bool,
        out: &mut Vec<Effect>,
    ) -> Result<(), &'static str> {
        let Some(link) = self.links.get_mut(slot) else { return Ok(()) };
        let declaration = &mut link.declaration;
        if !declaration.wanted || declaration.whole {
            return Err("items that nobody wanted");
        }
        if items.iter().any(|item| item.name.len().max(item.place.len()) > ITEM_TEXT_MAX) {
            return Err("an item with a name or a place that is too long");
        }
        declaration.items.extend(items.into_iter().map(|item| (item.name.clone(), item)));
        if declaration.items.len() > ITEMS_MAX {
            out.push(Effect::Event(Event::LimitReached { limit: "ITEMS_MAX" }));
            return Err("more items than a session may declare");
        }
        declaration.whole = end;
        if end {
            self.find_conflicts(out);
        }
        Ok(())
    }

    /// What sessions declare changed: tells those whose declarations do not count, of each conflict once.
    pub(super) fn find_conflicts(&mut self, out: &mut Vec<Effect>) {
        let mut declaring: Vec<Slot> =
            self.links.iter().filter(|(_, link)| link.declaration.wanted).map(|(slot, _)| slot).collect();
        declaring.sort_by_key(|slot| {
            self.links.get(*slot).map(|link| (link.remote, link.declaration.order.unwrap_or(link.arrival)))
        });
        let mut in_force = BTreeMap::<&str, (&DeclaredItem, Slot)>::new();
        let mut found = Vec::new();
        for slot in declaring {
            let Some(link) = self.links.get(slot) else { continue };
            if !link.declaration.whole {
                if link.remote {
                    continue;
                }
                // What the owner declares is on the way, and it counts.
                return;
            }
            let mut conflicts = Vec::new();
            for item in link.declaration.items.values() {
                match in_force.entry(&item.name) {
                    btree_map::Entry::Vacant(free) => {
                        free.insert((item, slot));
                    }
                    btree_map::Entry::Occupied(first) if first.get().0.digest == item.digest => {}
                    btree_map::Entry::Occupied(first) => {
                        let (other, at) = *first.get();
                        let (Some(ignored), Some(counts)) =
                            (self.declarer(slot, item), self.declarer(at, other))
                        else {
                            continue;
                        };
                        conflicts.push(ItemConflict { item: item.name.clone(), ignored, counts });
                    }
                }
            }
            conflicts.truncate(CHUNK_ITEMS);
            found.push((slot, conflicts));
        }
        for (slot, conflicts) in found {
            self.tell_conflicts(slot, conflicts, out);
        }
    }

    /// What sessions declare differently now, as far as one answer holds it.
    pub(super) fn conflicts(&self) -> Vec<ItemConflict> {
        self.links
            .iter()
            .flat_map(|(_, link)| &link.declaration.conflicts)
            .take(CHUNK_ITEMS)
            .cloned()
            .collect()
    }

    fn tell_conflicts(&mut self, slot: Slot, conflicts: Vec<ItemConflict>, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get_mut(slot) else { return };
        let before = std::mem::replace(&mut link.declaration.conflicts, conflicts.clone());
        let news: Vec<ItemConflict> =
            conflicts.into_iter().filter(|conflict| !before.contains(conflict)).collect();
        if news.is_empty() {
            return;
        }
        let event =
            |conflict: &ItemConflict| Effect::Event(Event::ConfigConflict(Box::new(conflict.clone())));
        out.extend(news.iter().map(event));
        self.tell(slot, ToSession::Conflicts(news), out);
    }

    fn declarer(&self, slot: Slot, item: &DeclaredItem) -> Option<Declarer> {
        let link = self.links.get(slot)?;
        Some(Declarer { session: link.session, pid: link.pid, place: item.place.clone() })
    }
}
