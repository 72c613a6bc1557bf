//! Optimistic layers: what is shown while operations are pending, done and taken back, in any order.

use bytes::Bytes;
use paceline_query::{
    layers::{Shown, fold},
    patch::{Op, Patch},
};
use proptest::{option, prelude::*};
use serde_json::{Value, json};

fn bytes(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

/// One key: its base and what lies over it.
struct Over {
    base: Option<Value>,
    layers: Vec<(&'static str, Patch)>,
}

impl Over {
    fn new(base: Value) -> Self {
        Self { base: Some(base), layers: Vec::new() }
    }

    fn lay(&mut self, name: &'static str, patch: Patch) {
        self.layers.push((name, patch));
    }

    fn take_back(&mut self, name: &str) {
        self.layers.retain(|(other, _)| *other != name);
    }

    /// The operation is done: the base has it.
    fn commit(&mut self, name: &str, base: Value) {
        self.take_back(name);
        self.base = Some(base);
    }

    fn shown(&self) -> Shown {
        let patches: Vec<Vec<u8>> = self.layers.iter().map(|(_, patch)| patch.to_bytes()).collect();
        fold(self.base.as_ref().map(bytes).as_ref(), patches.iter().map(Vec::as_slice))
    }

    /// All layers fit.
    fn value(&self) -> Value {
        let shown = self.shown();
        assert_eq!(shown.pending, self.layers.len(), "all fit");
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
    let mut over = Over::new(ids(&[1]));
    over.lay("a", prepend(2));
    assert_eq!(over.value(), ids(&[2, 1]));
    over.take_back("a");
    assert_eq!(over.value(), ids(&[1]));
    over.lay("b", prepend(3));
    over.commit("b", ids(&[33, 1]));
    assert_eq!(over.value(), ids(&[33, 1]), "what the server answered");
}

#[test]
fn two_concurrent_layers_are_taken_back_in_both_orders() {
    for (first, second, left) in [("a", "b", ids(&[3, 1])), ("b", "a", ids(&[2, 1]))] {
        let mut over = Over::new(ids(&[1]));
        over.lay("a", prepend(2));
        over.lay("b", prepend(3));
        assert_eq!(over.value(), ids(&[3, 2, 1]));
        over.take_back(first);
        assert_eq!(over.value(), left);
        over.take_back(second);
        assert_eq!(over.value(), ids(&[1]), "as if nothing had been");
    }
}

#[test]
fn one_succeeds_and_the_other_is_taken_back_in_both_orders() {
    for success_first in [true, false] {
        for (done, failed, left) in [("a", "b", ids(&[2, 1])), ("b", "a", ids(&[3, 1]))] {
            let mut over = Over::new(ids(&[1]));
            over.lay("a", prepend(2));
            over.lay("b", prepend(3));
            if success_first {
                over.commit(done, left.clone());
                over.take_back(failed);
            } else {
                over.take_back(failed);
                over.commit(done, left.clone());
            }
            assert_eq!(over.value(), left);
        }
    }
}

#[test]
fn a_later_layer_on_the_same_member_stays_on_top_until_it_is_decided() {
    let mut over = Over::new(json!({ "status": "new", "n": 1 }));
    over.lay("a", Patch::merge(json!({ "status": "checked" })));
    over.lay("b", Patch::merge(json!({ "status": "sent" })));
    over.commit("a", json!({ "status": "checked", "n": 2 }));
    assert_eq!(over.value(), json!({ "status": "sent", "n": 2 }));
    over.take_back("b");
    assert_eq!(over.value(), json!({ "status": "checked", "n": 2 }));
}

#[test]
fn a_base_that_comes_meanwhile_hides_no_layer() {
    let mut over = Over::new(json!({ "a": 1, "b": 1 }));
    over.lay("a", Patch::merge(json!({ "a": 2 })));
    // The response of a fetch that began before.
    over.base = Some(json!({ "a": 1, "b": 5 }));
    assert_eq!(over.value(), json!({ "a": 2, "b": 5 }));
    over.take_back("a");
    assert_eq!(over.value(), json!({ "a": 1, "b": 5 }));
}

#[test]
fn whole_values_are_layers_too() {
    let whole = |value: Value| Patch::Ops(vec![Op::Add { path: String::new(), value }]);
    let mut over = Over::new(json!({ "a": 1, "b": 1 }));
    over.lay("a", whole(json!({ "c": 1 })));
    assert_eq!(over.value(), json!({ "c": 1 }));
    over.take_back("a");
    assert_eq!(over.value(), json!({ "a": 1, "b": 1 }));
}

#[test]
fn a_key_without_a_value_may_have_layers() {
    assert_eq!(fold(None, []), Shown::default());
    let patch = Patch::append("", 1).to_bytes();
    assert_eq!(fold(None, [patch.as_slice()]), Shown { value: Some(bytes(&json!([1]))), pending: 1 });
}

#[test]
fn a_patch_that_does_not_fit_is_left_out_and_fits_again_later() {
    let test = Patch::Ops(vec![
        Op::Replace { path: "/n".into(), value: json!(2) },
        Op::Test { path: "/ok".into(), value: json!(true) },
    ]);
    let mut over = Over::new(json!({ "n": 1, "ok": false }));
    over.lay("a", test);
    over.lay("b", Patch::merge(json!({ "b": 1 })));
    let shown = |value, pending| Shown { value: Some(bytes(&value)), pending };
    assert_eq!(over.shown(), shown(json!({"b":1,"n":1,"ok":false}), 1));
    over.base = Some(json!({ "n": 1, "ok": true }));
    assert_eq!(over.shown(), shown(json!({"b":1,"n":2,"ok":true}), 2));
}

#[test]
fn what_is_no_json_is_shown_as_it_is() {
    let (broken, patch) = (Bytes::from_static(b"{"), Patch::append("", 1).to_bytes());
    assert_eq!(fold(Some(&broken), [patch.as_slice()]), Shown { value: Some(broken.clone()), pending: 0 });
    let base = Bytes::from_static(b" [1]");
    assert_eq!(fold(Some(&base), [b"no patch".as_slice()]), Shown { value: Some(base.clone()), pending: 0 });
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

proptest! {
    #[test]
    fn layers_are_patches_applied_one_after_another(
        base in option::weighted(0.8, value()),
        patches in prop::collection::vec(patch(), 0..8),
    ) {
        let (mut value, mut pending) = (base.as_ref().map(|base| base.to_string().into_bytes()), 0);
        for patch in &patches {
            if let Ok(next) = patch.apply(value.as_deref()) {
                (value, pending) = (Some(next), pending + 1);
            }
        }
        let patches: Vec<Vec<u8>> = patches.iter().map(Patch::to_bytes).collect();
        let shown = fold(base.as_ref().map(bytes).as_ref(), patches.iter().map(Vec::as_slice));
        prop_assert_eq!(shown, Shown { value: value.map(Bytes::from), pending });
    }

    #[test]
    fn when_all_are_taken_back_nothing_was(base in value(), patches in prop::collection::vec(patch(), 1..8), order in any::<u64>()) {
        const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let mut over = Over::new(base.clone());
        NAMES.into_iter().zip(&patches).for_each(|(name, patch)| over.lay(name, patch.clone()));
        while !over.layers.is_empty() {
            let name = over.layers[order as usize % over.layers.len()].0;
            let without: Vec<_> = over.layers.iter().filter(|(other, _)| *other != name).cloned().collect();
            let alone = Over { base: over.base.clone(), layers: without }.shown();
            over.take_back(name);
            prop_assert_eq!(over.shown(), alone, "as if {} had never been", name);
        }
        prop_assert_eq!(over.shown().value, Some(bytes(&base)));
    }
}
