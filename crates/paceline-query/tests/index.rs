//! The index of keys, and filters over it, against a naive look at all keys.

use std::collections::BTreeMap;

use paceline_proto::{fetch::FetchStatus, id::Key};
use paceline_query::{
    filter::{Activity, Facts, Filter, matches},
    index::{Count, Index},
    key,
    key::QueryKey,
};
use proptest::{option, prelude::*};
use serde_json::{Value, json};

fn sorted<'a>(keys: impl Iterator<Item = &'a Key>) -> Vec<Key> {
    let mut keys: Vec<Key> = keys.cloned().collect();
    keys.sort_unstable();
    keys
}

fn index_of(keys: &[QueryKey]) -> Index {
    let mut index = Index::new(7);
    for key in keys {
        assert!(index.insert(&key.to_key()));
    }
    index
}

#[test]
fn members_are_found_by_prefix_and_counted() {
    let mut index =
        index_of(&[key!["a"], key!["a", 1], key!["a", 1, "x"], key!["a", 2], key!["b", { "c": 1 }]]);
    assert!(!index.insert(&key!["a", 1].to_key()), "known");
    assert!(index.set_active(&key!["a", 1, "x"].to_key(), true));
    assert!(!index.set_active(&key!["a", 1, "x"].to_key(), true), "active already");
    assert!(!index.set_active(&key!["b"].to_key(), true), "a prefix is no member");
    let a = key!["a"].to_key();
    assert_eq!(index.count(&a), Count { members: 4, active: 1 });
    assert_eq!(index.count(&Key::default()), Count { members: 5, active: 1 });
    assert_eq!(index.count(&key!["b"].to_key()), Count { members: 1, active: 0 });
    assert_eq!(index.count(&key!["c"].to_key()), Count::default());
    assert_eq!(sorted(index.active_under(&a)), [key!["a", 1, "x"].to_key()]);
    assert_eq!(
        sorted(index.under(&key!["a", 1].to_key())),
        [key!["a", 1].to_key(), key!["a", 1, "x"].to_key()]
    );
    assert_eq!(index.under(&Key::default()).count(), 5);
    let half = Key::copy_from(&a.0[..2]);
    assert_eq!(index.under(&half).count(), 0, "a prefix ends with a segment");

    assert!(index.remove(&key!["a", 1, "x"].to_key()), "an active one");
    assert!(!index.remove(&key!["a", 1, "x"].to_key()) && !index.remove(&key!["b"].to_key()));
    assert_eq!(index.count(&a), Count { members: 3, active: 0 });
    assert!(index.remove(&key!["b", { "c": 1 }].to_key()));
    assert_eq!(index.count(&key!["b"].to_key()), Count::default());
}

#[test]
fn members_come_in_the_order_of_the_tree_the_newest_child_first() {
    let mut index = index_of(&[key!["a", 1], key!["a", 2, "x"], key!["a"], key!["a", 3]]);
    let order = |index: &Index| index.under(&key!["a"].to_key()).cloned().collect::<Vec<_>>();
    let expected = [key!["a"], key!["a", 3], key!["a", 2, "x"], key!["a", 1]].map(|key| key.to_key());
    assert_eq!(order(&index), expected);
    for key in [key!["a", 3], key!["a", 1]] {
        index.set_active(&key.to_key(), true);
    }
    let active: Vec<Key> = index.active_under(&Key::default()).cloned().collect();
    assert_eq!(active, [key!["a", 1].to_key(), key!["a", 3].to_key()]);
}

#[test]
fn a_mark_reaches_what_is_under_it_and_nothing_beside() {
    let mut index = index_of(&[key!["a"], key!["a", 1], key!["a", 1, "x"], key!["b"]]);
    let marked = |index: &Index| {
        [key!["a"], key!["a", 1], key!["a", 1, "x"], key!["b"]].map(|key| index.marked(&key.to_key()))
    };
    assert_eq!(marked(&index), [0; 4]);
    assert_eq!(index.mark(&key!["a", 1].to_key(), false), 1);
    assert_eq!(marked(&index), [0, 1, 1, 0]);
    assert_eq!(index.mark(&key!["a"].to_key(), true), 2);
    assert_eq!(marked(&index), [2, 1, 1, 0], "exactly");
    assert_eq!(index.mark(&Key::default(), false), 3);
    assert_eq!(marked(&index), [3; 4], "all");
    index.mark(&key!["c"].to_key(), false);
    assert_eq!((index.generation(), marked(&index)), (4, [3; 4]), "nothing is there");
    assert_eq!(index.marked(&key!["c"].to_key()), 0);
}

#[test]
fn bytes_that_are_no_key_are_members_like_others() {
    let broken = Key::copy_from(&[5, 9, b'x']);
    let mut index = index_of(&[key!["a"]]);
    assert!(index.insert(&broken));
    assert_eq!(index.under(&Key::default()).count(), 2);
    assert!(index.remove(&broken) && !index.contains(&broken));
}

/// Published cases of TanStack Query's own tests of `partialMatchKey`: a key, a filter, whether they match.
#[test]
fn keys_match_in_part_as_the_published_cases_say() {
    for (key, filter, expected) in [
        (json!([{"a":{"b":"b"},"c":"c","d":[{"d":"d "}]}]), json!([{"a":{"b":"b"},"c":"c","d":[]}]), true),
        (json!([{"a":{"b":"b"},"c":"c","d":[]}]), json!([{"a":{"b":"b"},"c":"c","d":[{"d":"d "}]}]), false),
        (json!([1, 2, 3]), json!([1, 2]), true),
        (json!([null]), json!([{"a":{"b":"b"},"c":"c","d":[{"d":"d "}]}]), false),
        (json!([{"a":null,"c":"c","d":[]}]), json!([{"a":{"b":"b"},"c":"c","d":[{"d":"d "}]}]), false),
        (json!([{"a":{"b":"b"},"c":"c","d":[]}]), json!([null]), false),
        (json!([{"a":{"b":"b"},"c":"c","d":[]}]), json!([{"a":null,"c":"c","d":[{"d":"d "}]}]), false),
    ] {
        check_match(&key, &filter, expected);
    }
}

/// What version 5.108.0 answered for drawn pairs; `data/partial-match.mjs` writes the file.
#[test]
fn keys_match_in_part_as_tanstack_query_has_it() {
    let cases: Vec<(Value, Value, bool)> =
        serde_json::from_str(include_str!("data/partial-match.json")).expect("cases");
    assert!(cases.len() > 500);
    for (key, filter, expected) in cases {
        check_match(&key, &filter, expected);
    }
}

fn check_match(key: &Value, filter: &Value, expected: bool) {
    let read = |value: &Value| QueryKey::from_value(value).expect("a key");
    let (key, filter) = (read(key), read(filter));
    assert_eq!(matches(&key, &filter), expected, "{key} {filter}");
    let index = index_of(std::slice::from_ref(&key));
    let found = Filter { key: Some(&filter), ..Filter::default() }
        .select(&index, |_| unreachable!("no facts are asked"));
    assert_eq!(!found.is_empty(), expected, "{key} {filter} by the index");
}

#[test]
fn filters_combine_by_and() {
    let keys = [key!["a", 1], key!["a", 2], key!["a", 3], key!["b"]];
    let mut index = index_of(&keys);
    index.set_active(&keys[0].to_key(), true);
    index.set_active(&keys[1].to_key(), true);
    let facts = |key: &Key| Facts {
        stale: *key != keys[0].to_key(),
        fetch: if *key == keys[2].to_key() { FetchStatus::Fetching } else { FetchStatus::Idle },
    };
    let (a, two) = (key!["a"], keys[1].to_key());
    let not_two = |key: &Key| *key != two;
    let plain = Filter::default();
    let under_a = Filter { key: Some(&a), ..plain };
    for (filter, expected) in [
        (plain, vec![0, 1, 2, 3]),
        (under_a, vec![0, 1, 2]),
        (Filter { exact: true, ..under_a }, vec![]),
        (Filter { key: Some(&keys[1]), exact: true, ..plain }, vec![1]),
        (Filter { activity: Activity::Active, ..plain }, vec![0, 1]),
        (Filter { activity: Activity::Inactive, ..plain }, vec![2, 3]),
        (Filter { activity: Activity::Inactive, ..under_a }, vec![2]),
        (Filter { activity: Activity::Inactive, key: Some(&keys[1]), exact: true, ..plain }, vec![]),
        (Filter { stale: Some(true), ..under_a }, vec![1, 2]),
        (Filter { stale: Some(false), ..plain }, vec![0]),
        (Filter { stale: Some(true), activity: Activity::Active, ..under_a }, vec![1]),
        (Filter { fetch: Some(FetchStatus::Fetching), ..plain }, vec![2]),
        (Filter { fetch: Some(FetchStatus::Paused), ..plain }, vec![]),
        (Filter { predicate: Some(&not_two), stale: Some(true), ..under_a }, vec![2]),
    ] {
        let expected: Vec<Key> = expected.into_iter().map(|at: usize| keys[at].to_key()).collect();
        assert_eq!(filter.select(&index, facts), expected);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Insert(usize),
    Remove(usize),
    Activate(usize, bool),
    Mark(usize, bool),
}

fn step(keys: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..keys).prop_map(Step::Insert),
        2 => (0..keys).prop_map(Step::Remove),
        4 => (0..keys, any::<bool>()).prop_map(|(at, active)| Step::Activate(at, active)),
        2 => (0..keys, any::<bool>()).prop_map(|(at, exact)| Step::Mark(at, exact)),
    ]
}

fn segment() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!("a"),
        json!("b"),
        json!(1),
        json!(null),
        json!({"s":1}),
        json!({"s":1,"t":[1, 2]}),
        json!([]),
        json!([1]),
    ])
}

/// Keys that lie under each other, and the empty prefix at the end.
fn prefixes() -> impl Strategy<Value = Vec<Key>> {
    prop::collection::vec(prop::collection::vec(segment(), 1..4), 1..12).prop_map(|all| {
        let keys = all.iter().flat_map(|segments| (1..=segments.len()).map(|len| &segments[..len]));
        let keys = keys.map(|segments| QueryKey::new(segments).expect("a key").to_key());
        keys.chain([Key::default()]).collect()
    })
}

proptest! {
    #[test]
    fn the_index_is_a_naive_look_at_all_keys((prefixes, steps) in prefixes().prop_flat_map(|prefixes| {
        let steps = prop::collection::vec(step(prefixes.len()), 1..60);
        (Just(prefixes), steps)
    })) {
        let mut index = Index::new(0);
        // Of each key: active, the generation when it came, and whether it was marked since.
        let mut naive: BTreeMap<Key, (bool, u64, bool)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Insert(at) if prefixes[at].0.is_empty() => {}
                Step::Insert(at) => {
                    let new = !naive.contains_key(&prefixes[at]);
                    prop_assert_eq!(index.insert(&prefixes[at]), new);
                    naive.entry(prefixes[at].clone()).or_insert((false, index.generation(), false));
                }
                Step::Remove(at) => prop_assert_eq!(index.remove(&prefixes[at]), naive.remove(&prefixes[at]).is_some()),
                Step::Activate(at, active) => {
                    let known = naive.get_mut(&prefixes[at]);
                    let changes = known.is_some_and(|(is_active, ..)| std::mem::replace(is_active, active) != active);
                    prop_assert_eq!(index.set_active(&prefixes[at], active), changes);
                }
                Step::Mark(at, exact) => {
                    let before = index.generation();
                    prop_assert!(index.mark(&prefixes[at], exact) > before);
                    for (key, (.., marked)) in &mut naive {
                        *marked |= if exact { *key == prefixes[at] } else { prefixes[at].is_prefix_of(key) };
                    }
                }
            }
            for prefix in &prefixes {
                let under: Vec<(&Key, bool)> =
                    naive.iter().filter(|(key, _)| prefix.is_prefix_of(key)).map(|(key, state)| (key, state.0)).collect();
                let all: Vec<Key> = under.iter().map(|(key, _)| (*key).clone()).collect();
                let active: Vec<Key> = under.iter().filter(|(_, active)| *active).map(|(key, _)| (*key).clone()).collect();
                prop_assert_eq!(index.count(prefix), Count { members: all.len() as u32, active: active.len() as u32 });
                prop_assert_eq!(sorted(index.under(prefix)), all);
                prop_assert_eq!(sorted(index.active_under(prefix)), active);
                prop_assert_eq!(index.contains(prefix), naive.contains_key(prefix));
                prop_assert_eq!(index.is_active(prefix), naive.get(prefix).is_some_and(|(active, ..)| *active));
            }
            for (key, (_, came, marked)) in &naive {
                prop_assert_eq!(index.marked(key) > *came, *marked);
            }
        }
    }

    #[test]
    fn filters_select_what_a_naive_scan_finds(
        prefixes in prefixes(),
        active in any::<u64>(),
        filter in option::of(prop::collection::vec(segment(), 1..3)),
        exact in any::<bool>(),
        activity in prop::sample::select(vec![Activity::All, Activity::Active, Activity::Inactive]),
        stale in any::<Option<bool>>(),
        short in any::<bool>(),
    ) {
        let mut index = Index::new(0);
        let mut keys: Vec<Key> = prefixes.into_iter().filter(|key| !key.0.is_empty()).collect();
        keys.sort_unstable();
        keys.dedup();
        let is_active = |at: usize| active >> (at % 64) & 1 == 1;
        for (at, key) in keys.iter().enumerate() {
            index.insert(key);
            index.set_active(key, is_active(at));
        }
        let facts = |key: &Key| Facts { stale: key.0.len().is_multiple_of(2), fetch: FetchStatus::Idle };
        let is_short = |key: &Key| key.0.len() < 8;
        let filter = filter.map(|segments| QueryKey::new(&segments).expect("a key"));
        let predicate: Option<&dyn Fn(&Key) -> bool> = if short { Some(&is_short) } else { None };
        let meant = Filter { key: filter.as_ref(), exact, activity, stale, fetch: None, predicate };
        let expected: Vec<Key> = keys
            .iter()
            .enumerate()
            .filter(|(at, key)| {
                let whole = QueryKey::from_key(key).expect("a key");
                filter.as_ref().is_none_or(|filter| if exact { whole == *filter } else { matches(&whole, filter) })
                    && match activity {
                        Activity::All => true,
                        Activity::Active => is_active(*at),
                        Activity::Inactive => !is_active(*at),
                    }
                    && stale.is_none_or(|stale| stale == facts(key).stale)
                    && (!short || is_short(key))
            })
            .map(|(_, key)| key.clone())
            .collect();
        prop_assert_eq!(meant.select(&index, facts), expected);
    }
}
