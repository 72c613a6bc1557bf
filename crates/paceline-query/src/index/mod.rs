//! Which keys there are, and which of them somebody subscribes to, by prefix.
//!
//! A tree with a node for each key and for each prefix of it that ends with a segment. A table leads from the bytes of a
//! prefix to its node, so that a look costs one hash of them, however many keys there are. Each node counts the members and
//! the active members at or under it and chains its children, and once more those with active members under them: walking
//! either kind touches nothing else. Marking a subtree notes a number at its node; whether a key is marked is asked on the way
//! up from it.
//!
//! Members come in the order of the tree, a node before what is under it, the children of a node from the newest to the
//! oldest: the same in every run with the same calls.

mod table;

use paceline_proto::id::Key;
use twox_hash::XxHash64;

use crate::key::segments_of;
use table::Table;

/// No node.
const NONE: u32 = u32::MAX;
const ROOT: u32 = 0;

/// The keys of a cache.
#[derive(Debug)]
pub struct Index {
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// Nodes by the bytes that lead to them.
    table: Table,
    seed: u64,
    generation: u64,
}

/// How many keys there are at or under a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// All.
    pub members: u32,
    /// Those somebody subscribes to.
    pub active: u32,
}

#[derive(Debug)]
struct Node {
    key: Key,
    parent: u32,
    is_member: bool,
    is_active: bool,
    count: Count,
    /// Children, and this node among those of its parent.
    all: Links,
    /// The same of nodes with active members.
    active: Links,
    /// When it and all under it were marked last.
    marked: u64,
    /// When it alone was marked last.
    marked_alone: u64,
}

#[derive(Debug, Clone, Copy)]
struct Links {
    first: u32,
    next: u32,
    previous: u32,
}

/// Which of the two chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chain {
    All,
    Active,
}

impl Index {
    /// Without keys. The seed keeps whoever chooses keys from choosing such that collide.
    pub fn new(seed: u64) -> Self {
        Self {
            nodes: vec![Node::new(Key::default(), NONE)],
            free: Vec::new(),
            table: Table::new(),
            seed,
            generation: 0,
        }
    }

    /// Adds a key, inactive. Whether it is new.
    pub fn insert(&mut self, key: &Key) -> bool {
        let node = self.node_or_new(key);
        if self.nodes[node as usize].is_member {
            return false;
        }
        self.nodes[node as usize].is_member = true;
        self.for_all_above(node, |count| count.members += 1);
        true
    }

    /// Removes a key. Whether it was there.
    pub fn remove(&mut self, key: &Key) -> bool {
        let Some(node) = self.member(key) else { return false };
        self.activate(node, false);
        self.nodes[node as usize].is_member = false;
        self.for_all_above(node, |count| count.members -= 1);
        let mut at = node;
        while at != ROOT && self.nodes[at as usize].count.members == 0 {
            let parent = self.nodes[at as usize].parent;
            self.unchain(Chain::All, at);
            let hash = self.hash(&self.nodes[at as usize].key.0);
            self.table.remove(hash, at);
            self.nodes[at as usize] = Node::new(Key::default(), NONE);
            self.free.push(at);
            at = parent;
        }
        true
    }

    /// Whether the key is there.
    pub fn contains(&self, key: &Key) -> bool {
        self.member(key).is_some()
    }

    /// Whether the key is there and somebody subscribes to it.
    pub fn is_active(&self, key: &Key) -> bool {
        self.member(key).is_some_and(|node| self.nodes[node as usize].is_active)
    }

    /// Somebody subscribes to the key, or nobody does any more. Whether that is something else than before.
    pub fn set_active(&mut self, key: &Key, active: bool) -> bool {
        self.member(key).is_some_and(|node| self.activate(node, active))
    }

    /// How many keys there are at or under a prefix; the empty one is a prefix of all.
    pub fn count(&self, prefix: &Key) -> Count {
        self.find(&prefix.0).map_or_else(Count::default, |node| self.nodes[node as usize].count)
    }

    /// The keys at or under a prefix.
    pub fn under(&self, prefix: &Key) -> impl Iterator<Item = &Key> {
        self.walk(Chain::All, prefix)
    }

    /// The active keys at or under a prefix.
    pub fn active_under(&self, prefix: &Key) -> impl Iterator<Item = &Key> {
        self.walk(Chain::Active, prefix)
    }

    /// Marks a key, and without `exact` all under it. The number of the mark: greater than those before.
    pub fn mark(&mut self, prefix: &Key, exact: bool) -> u64 {
        self.generation += 1;
        if let Some(node) = self.find(&prefix.0) {
            let node = &mut self.nodes[node as usize];
            *(if exact { &mut node.marked_alone } else { &mut node.marked }) = self.generation;
        }
        self.generation
    }

    /// The last mark, whatever it was for.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The last mark that reaches a key, which may be older than the key; 0 = none, or no such key. What was found right at
    /// one [`Index::generation`] was marked since exactly if this is greater.
    pub fn marked(&self, key: &Key) -> u64 {
        let Some(node) = self.member(key) else { return 0 };
        let alone = self.nodes[node as usize].marked_alone;
        self.way_up(node).map(|node| self.nodes[node as usize].marked).fold(alone, u64::max)
    }

    fn find(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.is_empty() {
            return Some(ROOT);
        }
        self.table.find(self.hash(bytes), |node| self.nodes[node as usize].key.0 == bytes)
    }

    fn member(&self, key: &Key) -> Option<u32> {
        self.find(&key.0).filter(|node| self.nodes[*node as usize].is_member)
    }

    fn hash(&self, bytes: &[u8]) -> u32 {
        (XxHash64::oneshot(self.seed, bytes) >> 32) as u32
    }

    fn node_or_new(&mut self, key: &Key) -> u32 {
        if let Some(node) = self.find(&key.0) {
            return node;
        }
        // A copy: the bytes may be a part of something much larger, which would be kept with them.
        let key = Key::copy_from(&key.0);
        let (mut parent, mut end) = (ROOT, 0);
        for segment in segments_of(&key.0) {
            end += segment.len();
            parent = match self.find(&key.0[..end]) {
                Some(node) => node,
                None => self.add(Key(key.0.slice(..end)), parent),
            };
        }
        parent
    }

    fn add(&mut self, key: Key, parent: u32) -> u32 {
        let hash = self.hash(&key.0);
        let node = Node::new(key, parent);
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        self.table.insert(hash, at);
        self.chain(Chain::All, at);
        at
    }

    fn activate(&mut self, node: u32, active: bool) -> bool {
        if self.nodes[node as usize].is_active == active {
            return false;
        }
        self.nodes[node as usize].is_active = active;
        let mut at = node;
        while at != NONE {
            let count = &mut self.nodes[at as usize].count.active;
            let before = *count;
            *count = if active { before + 1 } else { before - 1 };
            match (before, active) {
                (0, true) if at != ROOT => self.chain(Chain::Active, at),
                (1, false) if at != ROOT => self.unchain(Chain::Active, at),
                _ => {}
            }
            at = self.nodes[at as usize].parent;
        }
        true
    }

    fn way_up(&self, node: u32) -> impl Iterator<Item = u32> {
        let parent = |node: &u32| Some(self.nodes[*node as usize].parent).filter(|parent| *parent != NONE);
        std::iter::successors(Some(node), parent)
    }

    fn for_all_above(&mut self, node: u32, change: impl Fn(&mut Count)) {
        let mut at = node;
        while at != NONE {
            change(&mut self.nodes[at as usize].count);
            at = self.nodes[at as usize].parent;
        }
    }

    /// Puts a node in front of its siblings.
    fn chain(&mut self, chain: Chain, node: u32) {
        let parent = self.nodes[node as usize].parent;
        let next = std::mem::replace(&mut self.links_mut(chain, parent).first, node);
        let links = self.links_mut(chain, node);
        (links.next, links.previous) = (next, NONE);
        if next != NONE {
            self.links_mut(chain, next).previous = node;
        }
    }

    fn unchain(&mut self, chain: Chain, node: u32) {
        let Links { next, previous, .. } = *self.links_mut(chain, node);
        if next != NONE {
            self.links_mut(chain, next).previous = previous;
        }
        if previous == NONE {
            let parent = self.nodes[node as usize].parent;
            self.links_mut(chain, parent).first = next;
        } else {
            self.links_mut(chain, previous).next = next;
        }
        let links = self.links_mut(chain, node);
        (links.next, links.previous) = (NONE, NONE);
    }

    const fn links(&self, chain: Chain, node: u32) -> &Links {
        let node = &self.nodes.as_slice()[node as usize];
        match chain {
            Chain::All => &node.all,
            Chain::Active => &node.active,
        }
    }

    fn links_mut(&mut self, chain: Chain, node: u32) -> &mut Links {
        let node = &mut self.nodes[node as usize];
        match chain {
            Chain::All => &mut node.all,
            Chain::Active => &mut node.active,
        }
    }

    /// The members of a chain at or under a prefix.
    fn walk(&self, chain: Chain, prefix: &Key) -> impl Iterator<Item = &Key> {
        let top = self
            .find(&prefix.0)
            .filter(|top| chain == Chain::All || self.nodes[*top as usize].count.active > 0);
        let nodes = std::iter::successors(top, move |node| self.after(chain, *node, top?));
        nodes.map(|node| &self.nodes[node as usize]).filter_map(move |node| {
            let is_meant = node.is_member && (chain == Chain::All || node.is_active);
            is_meant.then_some(&node.key)
        })
    }

    /// The node that comes after another in the tree under `top`.
    fn after(&self, chain: Chain, node: u32, top: u32) -> Option<u32> {
        let first = self.links(chain, node).first;
        if first != NONE {
            return Some(first);
        }
        let mut at = node;
        while at != top {
            let next = self.links(chain, at).next;
            if next != NONE {
                return Some(next);
            }
            at = self.nodes[at as usize].parent;
        }
        None
    }
}

impl Node {
    const fn new(key: Key, parent: u32) -> Self {
        let alone = Links { first: NONE, next: NONE, previous: NONE };
        Self {
            key,
            parent,
            is_member: false,
            is_active: false,
            count: Count { members: 0, active: 0 },
            all: alone,
            active: alone,
            marked: 0,
            marked_alone: 0,
        }
    }
}
