//! Anything may happen in any order; in the end everybody agrees, and every event came once, in order, or a Gap was shown.
//! `PROPTEST_CASES=n` runs more of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod hub_net;

use std::{collections::BTreeMap, time::Duration};

use hub_net::*;
use paceline_proto::{hub::ChannelSpec, id::*, message::*};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Action {
    /// The server sends this many messages: each an event and a value of one of its keys.
    Publish {
        key: u8,
        count: u8,
    },
    Subscribe {
        node: u8,
        key: u8,
    },
    Unsubscribe {
        node: u8,
        key: u8,
    },
    Set {
        node: u8,
    },
    Merge {
        node: u8,
    },
    Invalidate {
        node: u8,
    },
    /// Lays a layer over the key that is merged into.
    Lay {
        node: u8,
    },
    /// Ends the session's oldest layer.
    End {
        node: u8,
        commit: bool,
    },
    Join,
    Cut {
        node: u8,
    },
    Lose {
        node: u8,
    },
    Deaf {
        node: u8,
    },
    Mute {
        node: u8,
    },
    Block {
        node: u8,
    },
    Hear {
        node: u8,
        messages: u8,
    },
    Speak {
        node: u8,
        messages: u8,
    },
    Recover {
        node: u8,
    },
    /// The owner dies and a survivor takes over; all join at once or later.
    TakeOver {
        by: u8,
        dead_found: bool,
        join: bool,
    },
    JoinAll,
    FeedAnswers {
        eager: bool,
    },
    Pass {
        ms: u16,
    },
    Flow,
}

fn action() -> impl Strategy<Value = Action> {
    let node = || 0..8_u8;
    prop_oneof![
        6 => (0..3_u8, 1..6_u8).prop_map(|(key, count)| Action::Publish { key, count }),
        2 => (node(), 0..3_u8).prop_map(|(node, key)| Action::Subscribe { node, key }),
        1 => (node(), 0..3_u8).prop_map(|(node, key)| Action::Unsubscribe { node, key }),
        1 => node().prop_map(|node| Action::Set { node }),
        2 => node().prop_map(|node| Action::Merge { node }),
        1 => node().prop_map(|node| Action::Invalidate { node }),
        2 => node().prop_map(|node| Action::Lay { node }),
        2 => (node(), any::<bool>()).prop_map(|(node, commit)| Action::End { node, commit }),
        1 => Just(Action::Join),
        1 => node().prop_map(|node| Action::Cut { node }),
        1 => node().prop_map(|node| Action::Lose { node }),
        2 => node().prop_map(|node| Action::Deaf { node }),
        1 => node().prop_map(|node| Action::Mute { node }),
        1 => node().prop_map(|node| Action::Block { node }),
        2 => (node(), 1..9_u8).prop_map(|(node, messages)| Action::Hear { node, messages }),
        2 => (node(), 1..9_u8).prop_map(|(node, messages)| Action::Speak { node, messages }),
        2 => node().prop_map(|node| Action::Recover { node }),
        3 => (node(), any::<bool>(), any::<bool>())
            .prop_map(|(by, dead_found, join)| Action::TakeOver { by, dead_found, join }),
        2 => Just(Action::JoinAll),
        1 => any::<bool>().prop_map(|eager| Action::FeedAnswers { eager }),
        3 => (0..800_u16).prop_map(|ms| Action::Pass { ms }),
        4 => Just(Action::Flow),
    ]
}

struct World {
    net: Net,
    next_id: u64,
    patches: u64,
    /// Merges whose caller was told that an heir holds them, and that no death since then could lose.
    acknowledged: Vec<String>,
    open: BTreeMap<(u64, u64), String>,
    layers: BTreeMap<(u64, u64), String>,
    /// No layer of these may be seen any more.
    taken_back: Vec<String>,
}

const FEED_KEYS: [&str; 3] = ["a", "b", "c"];

impl World {
    fn new(spec: ChannelSpec, begun: bool) -> Self {
        let mut net = Net::group(spec, 4);
        for id in 1..=4 {
            net.subscribe(id, &["m"], true);
        }
        if begun {
            // Without a position nobody can resume anywhere.
            net.publish(vec![event("1")]);
        }
        net.rest();
        Self {
            net,
            next_id: 5,
            patches: 0,
            acknowledged: Vec::new(),
            open: BTreeMap::new(),
            layers: BTreeMap::new(),
            taken_back: Vec::new(),
        }
    }

    fn pick(&self, node: u8) -> u64 {
        let ids: Vec<u64> = self.net.nodes.keys().copied().collect();
        ids[usize::from(node) % ids.len()]
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Publish { key, count } => {
                for _ in 0..count {
                    let n = self.net.feed.log.len() + 1;
                    let name = FEED_KEYS[usize::from(key)];
                    self.net.publish(vec![event(&n.to_string()), set(name, &n.to_string())]);
                }
            }
            Action::Subscribe { node, key } => {
                let id = self.pick(node);
                self.net.subscribe(id, &[FEED_KEYS[usize::from(key)]], false);
            }
            Action::Unsubscribe { node, key } => {
                let (id, name) = (self.pick(node), FEED_KEYS[usize::from(key)]);
                let input = paceline_proto::follower::Input::Unsubscribe(hub_net::key(name));
                self.net.follower_in(id, input);
                self.net.node(id).shown.remove(&hub_net::key(name));
            }
            Action::Set { node } => {
                let id = self.pick(node);
                self.net.set_op(id, "s", "x");
            }
            Action::Merge { node } => {
                let id = self.pick(node);
                self.patches += 1;
                let patch = format!("<{}>", self.patches);
                let token = self.net.merge_op(id, "m", &patch);
                self.open.insert((id, token), patch);
            }
            Action::Invalidate { node } => {
                let id = self.pick(node);
                self.net.op(id, Operation::Invalidate { key: key(""), exact: false });
            }
            Action::Lay { node } => {
                let id = self.pick(node);
                self.patches += 1;
                let patch = format!("<{}>", self.patches);
                let layer = self.net.lay(id, "m", &patch);
                assert!(self.net.node(id).value("m").unwrap().contains(&patch), "an own layer shows at once");
                self.layers.insert((id, layer), patch);
            }
            Action::End { node, commit } => {
                let id = self.pick(node);
                let Some(layer) = self.layers.keys().find(|(of, _)| *of == id).copied() else { return };
                let Some(patch) = self.layers.remove(&layer) else { return };
                if commit {
                    let token = self.net.commit(id, layer.1, "m", &patch);
                    self.open.insert((id, token), patch);
                } else {
                    self.net.take_back(id, layer.1);
                    assert!(
                        !self.net.node(id).value("m").unwrap_or_default().contains(&patch),
                        "nor any longer"
                    );
                    self.taken_back.push(patch);
                }
            }
            Action::Join => {
                if self.net.nodes.len() < 7 {
                    let id = self.next_id;
                    self.next_id += 1;
                    self.net.add(id);
                    self.net.subscribe(id, &["m"], true);
                    self.net.link(id);
                }
            }
            Action::Cut { node } => self.unless_owner(node, |net, id| net.cut(id)),
            Action::Lose { node } => self.unless_owner(node, |net, id| net.lose(id)),
            Action::Deaf { node } => self.unless_owner(node, |net, id| net.node(id).deaf = true),
            Action::Mute { node } => self.unless_owner(node, |net, id| net.node(id).mute = true),
            Action::Block { node } => self.unless_owner(node, |net, id| net.node(id).blocked = true),
            Action::Hear { node, messages } => {
                let id = self.pick(node);
                self.net.step_down(id, messages.into());
            }
            Action::Speak { node, messages } => {
                let id = self.pick(node);
                self.net.step_up(id, messages.into());
            }
            Action::Recover { node } => {
                let id = self.pick(node);
                let node = self.net.node(id);
                (node.deaf, node.mute, node.blocked) = (false, false, false);
                if node.link.is_none() {
                    self.net.link(id);
                }
            }
            Action::TakeOver { by, dead_found, join } => self.take_over(by, dead_found, join),
            Action::JoinAll => self.net.join_all(),
            Action::FeedAnswers { eager } => self.net.feed.eager = eager,
            Action::Pass { ms } => self.net.pass(Duration::from_millis(ms.into())),
            Action::Flow => self.net.flow(),
        }
        self.collect_answers();
    }

    fn unless_owner(&mut self, node: u8, act: impl Fn(&mut Net, u64)) {
        let id = self.pick(node);
        if id != self.net.owner && self.net.nodes[&id].link.is_some() {
            act(&mut self.net, id);
        }
    }

    fn take_over(&mut self, by: u8, dead_found: bool, join: bool) {
        if self.net.nodes.len() < 3 {
            return;
        }
        let owner = self.net.owner;
        let heirs: Vec<u64> = self
            .net
            .nodes
            .keys()
            .copied()
            .filter(|id| *id != owner && self.net.is_current_heir(*id))
            .collect();
        let epoch = self.net.epoch;
        let joined = |node: &Node| node.follower.is_synced() && node.follower.epoch().0 == epoch;
        let all_joined = self.net.nodes.values().all(joined);
        self.net.kill_owner();
        self.collect_answers();
        // What only the dead knew is lost; and an owner that somebody had no time to join cannot have learned from them.
        if heirs.is_empty() || !all_joined {
            self.acknowledged.clear();
        }
        self.open.retain(|(id, _), _| *id != owner);
        let id = self.pick(by);
        self.net.take_over(id);
        if dead_found {
            self.net.find_dead();
        }
        if join {
            self.net.join_all();
        }
    }

    fn collect_answers(&mut self) {
        for (id, node) in &mut self.net.nodes {
            for (token, outcome) in node.ops.drain(..) {
                let patch = self.open.remove(&(*id, token));
                if let (Some(patch), OpOutcome::Applied { volatile: false, .. }) = (patch, outcome) {
                    self.acknowledged.push(patch);
                }
            }
        }
    }

    fn heal(&mut self) {
        self.net.feed.eager = true;
        for node in self.net.nodes.values_mut() {
            (node.deaf, node.mute, node.blocked) = (false, false, false);
        }
        self.net.flow();
        self.net.find_dead();
        self.net.join_all();
        self.net.pass(Duration::from_secs(12));
        self.net.join_all();
        self.net.rest();
        let n = self.net.feed.log.len() + 1;
        self.net.publish(vec![event(&n.to_string())]);
        self.net.rest();
        self.collect_answers();
    }

    fn check_agreement(&self) {
        for (id, node) in &self.net.nodes {
            assert_eq!(node.broken, None, "session {id}");
            assert!(node.follower.is_synced(), "session {id} is not in step");
            assert_eq!(node.follower.pending(), 0, "session {id} waits for an answer");
            for (key, shown) in node.shown.iter().filter(|(key, _)| **key != hub_net::key("m")) {
                let held = self.net.hub().get(key).map(|held| &held.value);
                assert_eq!(Some(shown), held, "session {id}, {key:?}");
            }
            let base = self.net.hub().get(&key("m"));
            let base = base.map(|held| String::from_utf8(held.value.to_vec()).unwrap()).unwrap_or_default();
            let layers: String = self.net.layers("m").into_iter().map(|(_, patch)| patch).collect();
            assert_eq!(node.value("m").unwrap_or_default(), base + &layers, "session {id}");
            let last = self.net.feed.log.len().to_string();
            assert_eq!(node.delivered.last(), Some(&last), "session {id}: {:?}", node.delivered);
        }
        assert_eq!(self.net.count("peer_refused"), 0, "{:?}", self.net.events);
    }

    fn check_events(&self, gaps_allowed: bool) {
        for (id, node) in &self.net.nodes {
            let mut gaps = node.gaps.iter();
            let (mut last, mut open, mut lost_upto) = (0, true, 0);
            for data in &node.delivered {
                if data == "gap" {
                    let gap = gaps.next();
                    // Where a session begins that nothing was delivered to, nobody can name.
                    let unknown = last == 0 && gap.is_some_and(|gap| gap.after.is_none());
                    assert!(
                        gaps_allowed || unknown,
                        "session {id} was shown a gap: {:?} {:?}",
                        node.delivered,
                        node.gaps
                    );
                    match gap.and_then(|gap| gap.upto.clone()) {
                        Some(Position::Seq { offset, .. }) => lost_upto = lost_upto.max(offset),
                        _ => open = true,
                    }
                    continue;
                }
                let n: u64 = data.parse().unwrap();
                assert!(n > last, "session {id} got {n} after {last}: {:?}", node.delivered);
                let told = open || n == last + 1 || n <= lost_upto + 1;
                assert!(told, "session {id} misses events before {n}: {:?} {:?}", node.delivered, node.gaps);
                (last, open) = (n, false);
            }
        }
    }

    /// Everybody who subscribed to a key of the feed sees the last value that it was given.
    fn check_feed_values(&self) {
        let mut latest: BTreeMap<&str, String> = BTreeMap::new();
        for (n, changes) in self.net.feed.log.iter().enumerate() {
            for change in changes {
                if let Change::Set { key, .. } = change {
                    let name = FEED_KEYS.iter().find(|name| hub_net::key(name) == *key).unwrap();
                    latest.insert(name, (n + 1).to_string());
                }
            }
        }
        for (id, node) in &self.net.nodes {
            for name in FEED_KEYS {
                let stale = node.follower.get(&key(name)).is_some_and(|held| held.invalidated);
                if let Some(shown) = node.value(name).filter(|_| !stale) {
                    assert_eq!(Some(&shown), latest.get(name), "session {id}, key {name}");
                }
            }
        }
    }

    /// What the owner knows of layers is what the living laid and have not ended; no view ever had an operation twice.
    fn check_layers(&mut self) {
        self.layers.retain(|(id, _), _| self.net.nodes.contains_key(id));
        let mut open: Vec<(u64, String)> =
            self.layers.iter().map(|((id, _), patch)| (*id, patch.clone())).collect();
        let mut known = self.net.layers("m");
        open.sort();
        known.sort();
        assert_eq!(known, open);
        for (id, node) in &self.net.nodes {
            for (_, shown) in &node.folded {
                for patch in shown.split_inclusive('>') {
                    assert_eq!(shown.matches(patch).count(), 1, "session {id} showed {patch} twice: {shown}");
                }
            }
            for patch in &self.taken_back {
                assert!(!node.value("m").unwrap_or_default().contains(patch), "session {id} shows {patch}");
            }
        }
    }

    fn check_merges(&self) {
        let value = self.net.hub().get(&key("m")).map(|held| String::from_utf8(held.value.to_vec()).unwrap());
        let value = value.unwrap_or_default();
        for n in 1..=self.patches {
            let patch = format!("<{n}>");
            assert!(value.matches(&patch).count() <= 1, "{patch} took effect twice: {value}");
        }
        for patch in &self.acknowledged {
            assert!(value.contains(patch), "{patch} was acknowledged and is lost: {value}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn a_resumable_channel_never_shows_a_gap(actions in proptest::collection::vec(action(), 1..60)) {
        let mut world = World::new(resumable(), true);
        actions.iter().for_each(|action| world.act(action));
        world.heal();
        world.check_agreement();
        world.check_events(false);
        world.check_feed_values();
        world.check_merges();
        world.check_layers();
    }

    #[test]
    fn a_channel_that_cannot_resume_loses_nothing_in_silence(
        actions in proptest::collection::vec(action(), 1..60),
        dense in any::<bool>(),
        begun in any::<bool>(),
    ) {
        let mut world = World::new(unresumable(dense), begun);
        actions.iter().for_each(|action| world.act(action));
        world.heal();
        world.check_agreement();
        world.check_events(true);
        world.check_merges();
        world.check_layers();
    }

    #[test]
    fn a_channel_without_positions_repeats_or_loses_only_around_a_gap(
        actions in proptest::collection::vec(action(), 1..60),
        begun in any::<bool>(),
    ) {
        let mut world = World::new(unresumable(false), begun);
        world.net.feed.numbered = false;
        actions.iter().for_each(|action| world.act(action));
        world.heal();
        world.check_agreement();
        world.check_merges();
        world.check_layers();
    }
}
