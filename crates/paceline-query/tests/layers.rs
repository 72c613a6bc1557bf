//! Optimistic layers: what is shown while mutations are pending, done and taken back, in any order.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use paceline_proto::id::{Key, MutationId, SessionId};
use paceline_query::{
    key,
    layers::{Layers, LayersError, Shown},
    limits::{LAYERS_BYTES, LAYERS_MAX},
    patch::{Op, Patch},
};
use proptest::{option, prelude::*};
use serde_json::{Value, json};

const A: MutationId = MutationId { session: SessionId(1), seq: 1 };
const B: MutationId = MutationId { session: SessionId(2), seq: 1 };

fn bytes(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

/// One key, its base, and its layers.
struct World {
    layers: Layers,
    key: Key,
    base: Option<Bytes>,
}

impl World {
    fn new(base: Value) -> Self {
        Self { layers: Layers::default(), key: key!["list"].to_key(), base: Some(bytes(&base)) }
    }

    fn add(&mut self, mutation: MutationId, patch: Patch) {
        assert_eq!(self.layers.add(mutation, &self.key, vec![patch]), Ok(true));
    }

    fn succeed(&mut self, mutation: MutationId, answered: Option<Value>) {
        let answered = answered.iter().map(|value| (self.key.clone(), bytes(value))).collect();
        let base = self.base.clone();
        let bases = self.layers.succeed(mutation, &answered, |_| base.clone());
        assert_eq!(bases.keys().collect::<Vec<_>>(), [&self.key]);
        self.base = bases[&self.key].clone().or_else(|| self.base.clone());
    }

    fn fail(&mut self, mutation: MutationId) {
        assert_eq!(self.layers.fail(mutation), BTreeSet::from([self.key.clone()]));
    }

    fn shown(&self) -> Value {
        let shown = self.layers.shown(&self.key, self.base.as_ref());
        assert_eq!(shown.pending, self.layers.pending(&self.key).count(), "all fit");
        shown.value.map_or(Value::Null, |value| serde_json::from_slice(&value).expect("JSON"))
    }
}

/// Puts an item in front of the list.
fn prepend(id: u64) -> Patch {
    Patch::prepend("", json!({ "id": id }))
}

fn ids(ids: &[u64]) -> Value {
    ids.iter().map(|id| json!({ "id": id })).collect()
}

#[test]
fn success_replaces_the_base_and_failure_drops_the_layer() {
    let mut world = World::new(ids(&[1]));
    world.add(A, prepend(2));
    assert_eq!((world.shown(), world.base.clone()), (ids(&[2, 1]), Some(bytes(&ids(&[1])))));
    world.fail(A);
    assert_eq!(world.shown(), ids(&[1]));
    world.add(B, prepend(3));
    world.succeed(B, Some(ids(&[33, 1])));
    assert_eq!(world.shown(), ids(&[33, 1]), "what the server answered");
    world.add(A, prepend(4));
    world.succeed(A, None);
    assert_eq!(world.shown(), ids(&[4, 33, 1]), "the patch, where it answered nothing");
    assert_eq!(world.layers.keys().count(), 0);
}

#[test]
fn two_concurrent_mutations_are_taken_back_in_both_orders() {
    for (first, left) in [(A, ids(&[3, 1])), (B, ids(&[2, 1]))] {
        let mut world = World::new(ids(&[1]));
        world.add(A, prepend(2));
        world.add(B, prepend(3));
        assert_eq!(world.shown(), ids(&[3, 2, 1]));
        world.fail(first);
        assert_eq!(world.shown(), left);
        world.fail(if first == A { B } else { A });
        assert_eq!(world.shown(), ids(&[1]), "as if nothing had been");
    }
}

#[test]
fn one_succeeds_and_the_other_is_taken_back_in_both_orders() {
    for success_first in [true, false] {
        for (done, failed, left) in [(A, B, ids(&[2, 1])), (B, A, ids(&[3, 1]))] {
            for answered in [None, Some(left.clone())] {
                let mut world = World::new(ids(&[1]));
                world.add(A, prepend(2));
                world.add(B, prepend(3));
                if success_first {
                    world.succeed(done, answered.clone());
                    assert_eq!(world.layers.pending(&world.key).collect::<Vec<_>>(), [failed]);
                    world.fail(failed);
                } else {
                    world.fail(failed);
                    world.succeed(done, answered.clone());
                }
                assert_eq!(world.shown(), left);
            }
        }
    }
}

#[test]
fn a_later_mutation_of_the_same_member_stays_on_top_until_it_is_decided() {
    let mut world = World::new(json!({ "status": "new", "n": 1 }));
    world.add(A, Patch::merge(json!({ "status": "checked" })));
    world.add(B, Patch::merge(json!({ "status": "sent" })));
    world.succeed(A, Some(json!({ "status": "checked", "n": 2 })));
    assert_eq!(world.shown(), json!({ "status": "sent", "n": 2 }));
    world.fail(B);
    assert_eq!(world.shown(), json!({ "status": "checked", "n": 2 }));
}

#[test]
fn a_base_that_comes_meanwhile_hides_no_pending_mutation() {
    let mut world = World::new(json!({ "a": 1, "b": 1 }));
    world.add(A, Patch::merge(json!({ "a": 2 })));
    // The response of a fetch that began before.
    world.base = Some(bytes(&json!({ "a": 1, "b": 5 })));
    assert_eq!(world.shown(), json!({ "a": 2, "b": 5 }));
    world.fail(A);
    assert_eq!(world.shown(), json!({ "a": 1, "b": 5 }));
}

#[test]
fn whole_values_are_layers_too() {
    let whole = |value: Value| Patch::Ops(vec![Op::Add { path: String::new(), value }]);
    let mut world = World::new(json!({ "a": 1, "b": 1 }));
    world.add(A, whole(json!({ "c": 1 })));
    assert_eq!(world.shown(), json!({ "c": 1 }));
    // A function of what is shown runs at the caller; its result is the layer.
    let next = world.shown()["c"].as_u64().map(|c| c + 1);
    world.add(B, whole(json!({ "c": next })));
    assert_eq!(world.shown(), json!({ "c": 2 }));
    world.fail(B);
    world.fail(A);
    assert_eq!(world.shown(), json!({ "a": 1, "b": 1 }));
}

#[test]
fn a_key_without_a_value_may_have_layers() {
    let (mut layers, key) = (Layers::default(), key!["new"].to_key());
    assert_eq!(layers.shown(&key, None), Shown::default());
    assert_eq!(layers.add(A, &key, vec![Patch::append("", 1)]), Ok(true));
    assert_eq!(layers.shown(&key, None).value, Some(bytes(&json!([1]))));
    layers.fail(A);
    assert_eq!(layers.shown(&key, None), Shown::default());
}

#[test]
fn a_patch_that_does_not_fit_is_told_and_fits_again_later() {
    let (mut layers, key) = (Layers::default(), key!["a"].to_key());
    let test = Patch::Ops(vec![
        Op::Replace { path: "/n".into(), value: json!(2) },
        Op::Test { path: "/ok".into(), value: json!(true) },
    ]);
    assert_eq!(layers.add(A, &key, vec![test]), Ok(true));
    assert_eq!(layers.add(B, &key, vec![Patch::merge(json!({ "b": 1 }))]), Ok(true));
    let shown = |base: &Value| layers.shown(&key, Some(&bytes(base)));
    let unfit = shown(&json!({ "n": 1, "ok": false }));
    assert_eq!(
        (unfit.value, unfit.pending, unfit.unfit),
        (Some(bytes(&json!({"b":1,"n":1,"ok":false}))), 1, vec![A])
    );
    let fits = shown(&json!({ "n": 1, "ok": true }));
    assert_eq!(
        (fits.value, fits.pending, fits.unfit),
        (Some(bytes(&json!({"b":1,"n":2,"ok":true}))), 2, vec![])
    );
    let broken = Bytes::from_static(b"{");
    let shown = layers.shown(&key, Some(&broken));
    assert_eq!(
        (shown.value, shown.pending, shown.unfit),
        (Some(broken), 0, vec![A, B]),
        "a base that is no JSON"
    );
    let base = json!({ "n": 1, "ok": false });
    let bases = layers.succeed(A, &BTreeMap::new(), |_| Some(bytes(&base)));
    assert_eq!(bases, BTreeMap::from([(key, None)]), "the base stays where the patch does not fit");
}

#[test]
fn a_mutation_of_several_keys_is_settled_in_all_of_them() {
    let (one, two, three) = (key!["one"].to_key(), key!["two"].to_key(), key!["three"].to_key());
    let mut layers = Layers::default();
    for key in [&one, &two] {
        assert_eq!(layers.add(A, key, vec![Patch::append("", 1), Patch::append("", 2)]), Ok(true));
        assert_eq!(layers.add(B, key, vec![Patch::append("", 3)]), Ok(true));
    }
    assert_eq!(layers.add(A, &one, vec![Patch::append("", 9)]), Ok(false), "made known again by a new owner");
    assert_eq!(layers.shown(&one, None).value, Some(bytes(&json!([1, 2, 3]))));
    assert_eq!(layers.pending(&one).collect::<Vec<_>>(), [A, B]);
    let answered =
        BTreeMap::from([(two.clone(), bytes(&json!(["two"]))), (three.clone(), bytes(&json!(["three"])))]);
    let bases = layers.succeed(A, &answered, |_| None);
    let expected = [(&one, json!([1, 2])), (&two, json!(["two"])), (&three, json!(["three"]))];
    assert_eq!(bases, expected.map(|(key, value)| (key.clone(), Some(bytes(&value)))).into());
    assert_eq!(layers.fail(B), BTreeSet::from([one, two]));
    assert_eq!((layers.fail(A), layers.fail(B)), (BTreeSet::new(), BTreeSet::new()), "settled already");
}

#[test]
fn as_many_layers_as_may_be_lie_over_a_key_and_not_one_more() {
    let mut layers = Layers::default();
    let (key, other) = (key!["a"].to_key(), key!["b"].to_key());
    let mutation = |seq: usize| MutationId { session: SessionId(1), seq: seq as u64 };
    for seq in 0..LAYERS_MAX {
        assert_eq!(layers.add(mutation(seq), &key, vec![Patch::append("", seq)]), Ok(true));
    }
    let one_more = mutation(LAYERS_MAX);
    assert_eq!(layers.add(one_more, &key, vec![Patch::append("", 0)]), Err(LayersError::Count));
    assert_eq!(layers.shown(&key, None).pending, LAYERS_MAX);
    assert_eq!(layers.add(one_more, &other, vec![Patch::append("", 0)]), Ok(true), "another key has room");
    layers.fail(mutation(0));
    assert_eq!(layers.add(one_more, &key, vec![Patch::append("", 0)]), Ok(true), "now there is room");
}

#[test]
fn layers_take_as_many_bytes_as_may_be_and_not_one_more() {
    let mut layers = Layers::default();
    let key = |n: usize| key!["a", n].to_key();
    let around = Patch::append("", "").to_bytes().len();
    let patch = |len: usize| vec![Patch::append("", "x".repeat(len - around))];
    let half = LAYERS_BYTES / 2;
    assert_eq!(layers.add(A, &key(0), patch(half)), Ok(true));
    assert_eq!(layers.add(B, &key(0), patch(half + 1)), Err(LayersError::Bytes));
    assert_eq!(layers.add(B, &key(1), patch(half)), Ok(true));
    layers.succeed(A, &BTreeMap::new(), |_| None);
    assert_eq!(layers.add(A, &key(2), patch(half)), Ok(true), "what is settled takes none");
}

#[derive(Debug, Clone)]
enum Step {
    Add { mutation: u64, key: usize, patch: Patch },
    Base { key: usize, value: Option<Value> },
    Succeed { mutation: u64, answered: Vec<(usize, Value)> },
    Fail { mutation: u64 },
}

fn value() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!({}),
        json!({"a":1,"l":[{"id":1}]}),
        json!({"b":2}),
        json!([{"id":2}]),
        json!(7),
    ])
}

fn patch() -> impl Strategy<Value = Patch> {
    prop_oneof![
        prop::sample::select(vec![json!({"a":3}), json!({"b":null}), json!({"l":[]})]).prop_map(Patch::Merge),
        (0_u64..4).prop_map(|id| Patch::prepend("/l", json!({ "id": id }))),
        (0_u64..4).prop_map(|id| Patch::remove_where("/l", "id", id)),
        Just(Patch::Ops(vec![
            Op::Replace { path: "/a".into(), value: json!(5) },
            Op::Test { path: "/b".into(), value: json!(2) },
        ])),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0_u64..4, 0_usize..2, patch()).prop_map(|(mutation, key, patch)| Step::Add { mutation, key, patch }),
        2 => (0_usize..2, option::weighted(0.8, value())).prop_map(|(key, value)| Step::Base { key, value }),
        2 => (0_u64..4, prop::collection::vec((0_usize..2, value()), 0..2))
            .prop_map(|(mutation, answered)| Step::Succeed { mutation, answered }),
        2 => (0_u64..4).prop_map(|mutation| Step::Fail { mutation }),
    ]
}

/// One list of all that is pending, folded anew for each look.
#[derive(Default)]
struct Naive {
    pending: Vec<(u64, usize, Patch)>,
    bases: [Option<Vec<u8>>; 2],
}

impl Naive {
    fn fold(&self, key: usize, meant: impl Fn(u64) -> bool) -> (Option<Vec<u8>>, usize, Vec<u64>) {
        let (mut value, mut fits, mut unfit) = (self.bases[key].clone(), 0, Vec::new());
        for (mutation, _, patch) in self.pending.iter().filter(|(by, on, _)| *on == key && meant(*by)) {
            match patch.apply(value.as_deref()) {
                Ok(next) => (value, fits) = (Some(next), fits + 1),
                Err(_) => unfit.push(*mutation),
            }
        }
        (value, fits, unfit)
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Add { mutation, key, patch } => {
                if !self.pending.iter().any(|(by, on, _)| by == mutation && on == key) {
                    self.pending.push((*mutation, *key, patch.clone()));
                }
            }
            Step::Base { key, value } => {
                self.bases[*key] = value.as_ref().map(|value| value.to_string().into())
            }
            Step::Succeed { mutation, answered } => {
                self.bases = [0, 1].map(|key| self.fold(key, |by| by == *mutation).0);
                for (key, value) in answered {
                    self.bases[*key] = Some(value.to_string().into());
                }
                self.pending.retain(|(by, ..)| by != mutation);
            }
            Step::Fail { mutation } => self.pending.retain(|(by, ..)| by != mutation),
        }
    }
}

proptest! {
    #[test]
    fn layers_are_a_naive_fold_of_what_is_pending(steps in prop::collection::vec(step(), 1..40)) {
        let keys = [key!["one"].to_key(), key!["two"].to_key()];
        let id = |seq: u64| MutationId { session: SessionId(1), seq };
        let mut layers = Layers::default();
        let mut bases: [Option<Bytes>; 2] = [None, None];
        let mut naive = Naive::default();
        for step in steps {
            naive.apply(&step);
            match step {
                Step::Add { mutation, key, patch } => {
                    prop_assert!(layers.add(id(mutation), &keys[key], vec![patch]).is_ok());
                }
                Step::Base { key, value } => bases[key] = value.as_ref().map(bytes),
                Step::Succeed { mutation, answered } => {
                    let answered = answered.iter().map(|(key, value)| (keys[*key].clone(), bytes(value))).collect();
                    let at = |key: &Key| keys.iter().position(|one| one == key);
                    let before = bases.clone();
                    let new = layers.succeed(id(mutation), &answered, |key| before[at(key)?].clone());
                    for (key, value) in new {
                        if let (Some(at), Some(value)) = (at(&key), value) {
                            bases[at] = Some(value);
                        }
                    }
                }
                Step::Fail { mutation } => drop(layers.fail(id(mutation))),
            }
            for (at, key) in keys.iter().enumerate() {
                let Shown { value, pending, unfit } = layers.shown(key, bases[at].as_ref());
                let unfit: Vec<u64> = unfit.into_iter().map(|mutation| mutation.seq).collect();
                prop_assert_eq!((value.map(|value| value.to_vec()), pending, unfit), naive.fold(at, |_| true));
            }
        }
    }

    #[test]
    fn when_all_failed_nothing_was(base in value(), patches in prop::collection::vec(patch(), 1..8), order in any::<u64>()) {
        let mut world = World::new(base.clone());
        for (seq, patch) in patches.iter().enumerate() {
            world.add(MutationId { session: SessionId(1), seq: seq as u64 }, patch.clone());
        }
        let mut left: Vec<u64> = (0..patches.len() as u64).collect();
        while !left.is_empty() {
            let seq = left.remove(order as usize % left.len());
            world.fail(MutationId { session: SessionId(1), seq });
        }
        prop_assert_eq!(world.shown(), base);
    }
}
