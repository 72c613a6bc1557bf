//! What an invalidation reaches, as tables, and against a naive fixpoint over all keys.

use std::{collections::BTreeSet, sync::Arc};

use paceline_proto::{
    id::{Key, SessionId},
    limits::VALUE_MAX,
};
use paceline_query::{
    cascade::{Cascade, Root},
    filter,
    index::Index,
    key,
    key::QueryKey,
    limits::{AREAS_MAX, CASCADE_LINES_MAX},
    pattern::KeyPattern,
    resources::Resources,
    rules::{Defaults, Dependency, Resource},
};
use proptest::{option, prelude::*};
use serde_json::{Value, json};

fn resource(name: &str) -> Resource {
    Resource::new(name).expect("a name")
}

fn of(name: &str, pattern: Value) -> Resource {
    resource(name).pattern(KeyPattern::new(pattern.as_array().expect("a list")).expect("a pattern"))
}

fn on(segments: Value) -> Dependency {
    Dependency::Key(segments.as_array().expect("a list").clone())
}

fn declared(all: Vec<Resource>) -> Resources {
    let mut resources = Resources::new(Defaults::default());
    for resource in all {
        resources.declare(SessionId(1), Arc::new(resource), false);
    }
    resources
}

fn index_of(keys: &[QueryKey]) -> Index {
    let mut index = Index::new(1);
    keys.iter().for_each(|key| assert!(index.insert(&key.to_key())));
    index
}

fn root(key: &QueryKey, exact: bool) -> Root {
    Root::Key { key: key.to_key(), exact }
}

fn reached(resources: &mut Resources, keys: &[QueryKey], root: &Root) -> Vec<QueryKey> {
    let reached = Cascade::new(resources, root).keys(&index_of(keys));
    keys.iter().filter(|key| reached.contains(&key.to_key())).cloned().collect()
}

/// Lines as text: depth, cause, key or `-`, resource or `-`, and whether it would be fetched.
fn lines(resources: &mut Resources, keys: &[QueryKey], root: &Root) -> Vec<String> {
    let mut index = index_of(keys);
    index.set_active(&keys[keys.len() - 1].to_key(), true);
    let cascade = Cascade::new(resources, root);
    let lines = cascade.lines(&index, resources, |key| index.is_active(key));
    lines
        .iter()
        .map(|line| {
            let key = line
                .key
                .as_ref()
                .map_or("-".to_owned(), |key| QueryKey::from_key(key).expect("a key").to_string());
            let fetched = if line.refetches { " fetched" } else { "" };
            format!(
                "{} {}: {key} {}{fetched}",
                line.depth,
                line.cause,
                line.resource.as_deref().unwrap_or("-")
            )
        })
        .collect()
}

/// The resources of the example configuration that depend on something.
fn warehouse() -> Resources {
    declared(vec![
        of("license_packages", json!(["metrc", "packages", "{license}", "{filter}", ".."]))
            .tag("inventory")
            .depends_on(on(json!(["metrc", "package"])))
            .depends_on(Dependency::tag("licence-change")),
        resource("settings").tag("licence-change"),
        of("dashboard", json!(["dashboard", "{board}"])).depends_on(Dependency::tag("inventory")),
    ])
}

#[test]
fn keys_prefixes_and_tags_reach_what_depends_on_them_and_what_depends_on_that() {
    let list = key!["metrc", "packages", "A-1", "active"];
    let keys =
        [list.clone(), key!["metrc", "package", 7], key!["settings"], key!["dashboard", 1], key!["other"]];
    let all = |root: &Root| reached(&mut warehouse(), &keys, root);
    let from_package = vec![list.clone(), keys[1].clone(), keys[3].clone()];
    assert_eq!(all(&root(&key!["metrc", "package", 7], true)), from_package, "one element");
    assert_eq!(all(&root(&key!["metrc", "package"], false)), from_package, "all elements");
    assert_eq!(all(&root(&key!["metrc"], false)), from_package, "a prefix of what is depended on");
    assert_eq!(
        all(&root(&key!["metrc", "package", 8], true)),
        [list.clone(), keys[3].clone()],
        "an element that nobody ever fetched"
    );
    let by_tag = vec![list.clone(), keys[2].clone(), keys[3].clone()];
    assert_eq!(all(&root(&key!["settings"], true)), by_tag, "through the tag that it has");
    assert_eq!(all(&Root::Tag("licence-change".into())), by_tag);
    assert_eq!(all(&Root::Tag("inventory".into())), [list, keys[3].clone()]);
    assert_eq!(all(&root(&key!["dashboard"], false)), [keys[3].clone()], "nothing depends on it");
    assert_eq!(all(&Root::Tag("unknown".into())), []);
    assert_eq!(all(&root(&key!["nothing"], false)), []);
    let broken = Root::Key { key: Key::copy_from(&[99]), exact: false };
    assert_eq!(all(&broken), []);
}

#[test]
fn names_carry_over_from_what_is_depended_on() {
    let mut resources = declared(vec![
        of("list", json!(["list", "{site}"])).depends_on(on(json!(["item", "{site}", "{id}"]))),
        of("sum", json!(["sum", "{site}", "{unit}"])).depends_on(on(json!(["list", "{site}"]))),
        of("twice", json!(["twice", "{a}"])).depends_on(on(json!(["pair", "{a}", "{a}"]))),
    ]);
    let keys = [
        key!["list", 1],
        key!["list", 2],
        key!["sum", 1, "kg"],
        key!["sum", 1, "t"],
        key!["sum", 2, "kg"],
        key!["twice", 1],
        key!["twice", 2],
    ];
    let mut all = |root: &Root| reached(&mut resources, &keys, root);
    assert_eq!(all(&root(&key!["item", 1, 77], true)), [keys[0].clone(), keys[2].clone(), keys[3].clone()]);
    assert_eq!(all(&root(&key!["item", 2], false)), [keys[1].clone(), keys[4].clone()]);
    assert_eq!(all(&root(&key!["item"], true)), [], "shorter than what is depended on");
    assert_eq!(all(&root(&key!["item"], false)), keys[..5], "whatever the site");
    assert_eq!(all(&root(&key!["pair", 1, 1], true)), [keys[5].clone()]);
    assert_eq!(all(&root(&key!["pair", 1, 2], true)), [], "a name is one value");
    assert_eq!(all(&root(&key!["pair", 1], false)), [keys[5].clone()]);
    assert_eq!(all(&root(&key!["sum", 1, "kg"], true)), [keys[2].clone()], "not against the arrow");
}

#[test]
fn keys_match_in_part_at_the_root_and_in_dependencies() {
    let mut resources = declared(vec![
        of("count", json!(["count", "{filter}"])).depends_on(on(json!(["packages", "{filter}"]))),
        of("open", json!(["open"])).depends_on(on(json!(["packages", { "status": "active" }]))),
    ]);
    let active = key!["packages", { "status": "active", "page": 1 }];
    let keys = [
        active.clone(),
        key!["packages", { "status": "done" }],
        key!["count", { "status": "active", "page": 1 }],
        key!["count", { "status": "done" }],
        key!["open"],
    ];
    let part = key!["packages", { "status": "active" }];
    let from_active = vec![active.clone(), keys[2].clone(), keys[4].clone()];
    assert_eq!(reached(&mut resources, &keys, &root(&part, false)), from_active);
    assert_eq!(reached(&mut resources, &keys, &root(&active, true)), from_active);
    assert_eq!(
        reached(&mut resources, &keys, &root(&part, true)),
        [keys[4].clone()],
        "no key is exactly this"
    );
    assert_eq!(reached(&mut resources, &keys, &root(&keys[1], true)), [keys[1].clone(), keys[3].clone()]);
}

#[test]
fn the_preview_shows_depth_cause_and_who_would_be_fetched() {
    let keys = [
        key!["metrc", "package", 7],
        key!["metrc", "packages", "A-1", "active"],
        key!["metrc", "packages", "A-2", "active"],
        key!["dashboard", 1],
    ];
    assert_eq!(
        lines(&mut warehouse(), &keys, &root(&key!["metrc", "package", 7], true)),
        [
            r#"0 metrc/package/7: ["metrc","package",7] -"#,
            r#"1 metrc/package/7: ["metrc","packages","A-1","active"] license_packages"#,
            r#"1 metrc/package/7: ["metrc","packages","A-2","active"] license_packages"#,
            r#"2 tag inventory: ["dashboard",1] dashboard fetched"#,
        ]
    );
    assert_eq!(
        lines(&mut warehouse(), &keys[3..], &Root::Tag("licence-change".into())),
        [
            "0 tag licence-change: - settings",
            "1 tag licence-change: - license_packages",
            r#"2 tag inventory: ["dashboard",1] dashboard fetched"#,
        ],
        "resources without a key are on the way"
    );
    let odd = root(&key!["a/b", "7"], false);
    let mut resources = declared(vec![resource("late").depends_on(on(json!(["a/b"])))]);
    assert_eq!(
        lines(&mut resources, &[key!["late"]], &odd),
        [r#"1 ["a/b","7"]: ["late"] late fetched"#],
        "a cause without a short form is JSON"
    );
    let mut chain = declared(vec![
        resource("b").depends_on(on(json!(["a"]))),
        resource("c").depends_on(on(json!(["b"]))),
    ]);
    assert_eq!(
        lines(&mut chain, &[key!["c", 1]], &root(&key!["a"], false)),
        ["1 a: - b", r#"2 resource b: ["c",1] c fetched"#]
    );
}

#[test]
fn the_nearest_way_counts() {
    // d is one step away through the tag and three through the keys; the tag is looked at later.
    let mut resources = declared(vec![
        resource("a").tag("t"),
        resource("b").depends_on(on(json!(["a"]))),
        resource("c").depends_on(on(json!(["b"]))),
        resource("d").depends_on(on(json!(["c"]))).depends_on(Dependency::tag("t")),
    ]);
    let keys = [key!["a"], key!["b"], key!["c"], key!["d"]];
    let depths: Vec<String> = lines(&mut resources, &keys, &root(&keys[0], true))
        .iter()
        .map(|line| line.split(": ").next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(depths, ["0 a", "1 a", "1 tag t", "2 resource b"]);
}

#[test]
fn cycles_end() {
    let ring = |n: usize| format!("r{n}");
    let all: Vec<Resource> = (0..10)
        .map(|n| {
            resource(&ring(n)).depends_on(on(json!([ring((n + 9) % 10)]))).depends_on(on(json!([ring(n)])))
        })
        .collect();
    let keys: Vec<QueryKey> = (0..10).map(|n| key![ring(n), n]).collect();
    let mut resources = declared(all);
    for start in &keys {
        assert_eq!(reached(&mut resources, &keys, &root(start, true)), keys);
    }
    let mut tags = declared(vec![
        resource("a").tag("one").depends_on(Dependency::tag("two")),
        resource("b").tag("two").depends_on(Dependency::tag("one")),
    ]);
    assert_eq!(reached(&mut tags, &[key!["a"], key!["b"]], &Root::Tag("one".into())).len(), 2);
}

#[test]
fn deep_chains_are_walked_to_their_end() {
    let deep = 3000;
    let name = |n: usize| format!("r{n}");
    let mut all: Vec<Resource> = (1..deep)
        .map(|n| of(&name(n), json!([name(n), "{id}"])).depends_on(on(json!([name(n - 1), "{id}"]))))
        .collect();
    all.push(of(&name(0), json!([name(0), "{id}"])));
    let mut resources = declared(all);
    let keys: Vec<QueryKey> = (0..deep).flat_map(|n| [key![name(n), 1], key![name(n), 2]]).collect();
    let found = reached(&mut resources, &keys, &root(&key![name(0), 1], true));
    assert_eq!(found, (0..deep).map(|n| key![name(n), 1]).collect::<Vec<_>>());
    let index = index_of(&keys);
    let cascade = Cascade::new(&mut resources, &root(&key![name(2990), 1], true));
    let depths: Vec<u32> =
        cascade.lines(&index, &mut resources, |_| false).iter().map(|line| line.depth).collect();
    assert_eq!(depths, (0..10).collect::<Vec<_>>());
}

#[test]
fn dependencies_follow_the_declarations() {
    let mut resources = declared(vec![resource("a")]);
    let keys = [key!["a"], key!["b"]];
    assert_eq!(reached(&mut resources, &keys, &root(&keys[0], true)), keys[..1]);
    resources.declare(SessionId(2), Arc::new(resource("b").depends_on(on(json!(["a"])))), false);
    assert_eq!(reached(&mut resources, &keys, &root(&keys[0], true)), keys);
    resources.forget(SessionId(2));
    assert_eq!(reached(&mut resources, &keys, &root(&keys[0], true)), keys[..1]);
}

/// A resource of which `n` keys depend on one root key each, and so as many sets of its keys are told apart.
fn split(n: usize) -> Vec<QueryKey> {
    let fan = (0..n).fold(of("fan", json!(["fan", "{id}"])), |fan, at| {
        fan.depends_on(on(json!([format!("s{at}"), "{id}"])))
    });
    let mut all: Vec<Resource> = (0..n)
        .map(|at| of(&format!("s{at}"), json!([format!("s{at}"), at])).depends_on(on(json!(["root"]))))
        .collect();
    all.push(fan);
    let keys: Vec<QueryKey> = (0..=n).map(|at| key!["fan", at]).collect();
    reached(&mut declared(all), &keys, &root(&key!["root"], true))
}

#[test]
fn as_many_sets_of_keys_as_may_be_are_told_apart_and_one_more_counts_as_all() {
    assert_eq!(split(AREAS_MAX).len(), AREAS_MAX, "one key is not reached");
    assert_eq!(split(AREAS_MAX + 1).len(), AREAS_MAX + 2, "all are");
}

#[test]
fn a_preview_has_so_many_lines_and_bytes_and_no_more() {
    let count = |keys: usize, len: usize| {
        let keys: Vec<QueryKey> = (0..keys).map(|n| key!["a", n, "x".repeat(len)]).collect();
        let mut resources = declared(vec![]);
        Cascade::new(&mut resources, &root(&key!["a"], false))
            .lines(&index_of(&keys), &mut resources, |_| false)
    };
    assert_eq!(count(CASCADE_LINES_MAX, 1).len(), CASCADE_LINES_MAX);
    assert_eq!(count(CASCADE_LINES_MAX + 1, 1).len(), CASCADE_LINES_MAX);
    let long = count(CASCADE_LINES_MAX, 4000);
    let bytes: usize = long.iter().filter_map(|line| line.key.as_ref()).map(|key| key.0.len()).sum();
    assert!(bytes <= VALUE_MAX && bytes > VALUE_MAX - 16_384, "{bytes}");
}

/// Segments of the small world: scalars, and objects that have parts of each other.
fn world() -> Vec<Value> {
    vec![json!("a"), json!("b"), json!({"s":1}), json!({"t":1}), json!({"s":1,"t":1})]
}

fn universe() -> Vec<QueryKey> {
    let world = world();
    let one = world.iter().map(|a| vec![a.clone()]);
    let two = world.iter().flat_map(|a| world.iter().map(move |b| vec![a.clone(), b.clone()]));
    let three =
        two.clone().flat_map(|two| world.iter().map(move |c| [two.clone(), vec![c.clone()]].concat()));
    one.chain(two).chain(three).map(|segments| QueryKey::new(&segments).expect("a key")).collect()
}

fn segments(names: &'static [&'static str]) -> impl Strategy<Value = Vec<Value>> {
    let names: Vec<Value> = names.iter().map(|name| json!(name)).collect();
    let segment = prop_oneof![1 => prop::sample::select(world()), 1 => prop::sample::select(names)];
    prop::collection::vec(segment, 1..4)
}

fn pattern() -> impl Strategy<Value = KeyPattern> {
    (segments(&["{x}", "{y}", "{z}"]), any::<bool>()).prop_map(|(mut segments, open)| {
        let mut used = BTreeSet::new();
        // A name binds once; what would bind again is a literal.
        for segment in &mut segments {
            if segment.as_str().is_some_and(|text| text.starts_with('{') && !used.insert(text.to_owned())) {
                *segment = json!("a");
            }
        }
        segments.extend(open.then(|| json!("..")));
        KeyPattern::new(&segments).expect("a pattern")
    })
}

fn dependency() -> impl Strategy<Value = Dependency> {
    prop_oneof![
        4 => segments(&["{x}", "{y}", "{z}", "{w}"]).prop_map(Dependency::Key),
        1 => prop::sample::select(vec!["t", "u"]).prop_map(Dependency::tag),
    ]
}

fn declarations() -> impl Strategy<Value = Vec<Resource>> {
    let tag = option::weighted(0.3, prop::sample::select(vec!["t", "u"]));
    let one = (pattern(), prop::collection::vec(dependency(), 0..3), tag);
    prop::collection::vec(one, 1..6).prop_map(|all| {
        let named = all.into_iter().enumerate().map(|(n, (pattern, depends_on, tag))| {
            let resource = resource(&format!("r{n}")).pattern(pattern);
            let tagged = tag.into_iter().fold(resource, Resource::tag);
            depends_on.into_iter().fold(tagged, Resource::depends_on)
        });
        named.collect()
    })
}

fn any_root() -> impl Strategy<Value = Root> {
    prop_oneof![
        5 => (prop::sample::select(universe()), any::<bool>()).prop_map(|(key, exact)| root(&key, exact)),
        1 => prop::sample::select(vec!["t", "u"]).prop_map(|tag| Root::Tag(tag.into())),
    ]
}

/// Of each key of the universe, the least number of steps in which it is reached, by looking at all pairs of keys.
fn naive(all: &[Resource], universe: &[QueryKey], from: &Root) -> Vec<Option<u32>> {
    let has_tag = |key: &QueryKey, tag: &str| {
        all.iter().any(|one| one.pattern.bind(key).is_some() && one.tags.iter().any(|its| &**its == tag))
    };
    let mut depths: Vec<Option<u32>> = universe
        .iter()
        .map(|key| {
            let is_root = match from {
                Root::Tag(tag) => has_tag(key, tag),
                Root::Key { key: wanted, exact: true } => key.to_key() == *wanted,
                Root::Key { key: wanted, exact: false } => {
                    filter::matches(key, &QueryKey::from_key(wanted).expect("a key"))
                }
            };
            is_root.then_some(0)
        })
        .collect();
    for depth in 0.. {
        let now: Vec<&QueryKey> = universe
            .iter()
            .zip(&depths)
            .filter(|(_, reached)| **reached == Some(depth))
            .map(|(key, _)| key)
            .collect();
        let mut tags: BTreeSet<&str> =
            ["t", "u"].into_iter().filter(|tag| now.iter().any(|key| has_tag(key, tag))).collect();
        if let (Root::Tag(tag), 0) = (from, depth) {
            tags.insert(tag);
        }
        if now.is_empty() && tags.is_empty() {
            break;
        }
        for (key, reached) in universe.iter().zip(&mut depths).filter(|(_, reached)| reached.is_none()) {
            let depends = all.iter().any(|one| {
                let Some(bound) = one.pattern.bind(key) else { return false };
                one.depends_on.iter().any(|dependency| match dependency {
                    Dependency::Tag(tag) => tags.contains(&**tag),
                    Dependency::Key(template) => now.iter().any(|key| is_under(key, template, &bound)),
                })
            });
            *reached = depends.then_some(depth + 1);
        }
    }
    depths
}

fn is_under(key: &QueryKey, template: &[Value], bound: &std::collections::BTreeMap<String, Value>) -> bool {
    let segments = key.segments();
    template.len() <= segments.len()
        && template.iter().zip(&segments).all(|(wanted, found)| {
            match wanted.as_str().and_then(|text| text.strip_prefix('{')?.strip_suffix('}')) {
                Some(name) => bound.get(name).is_none_or(|value| value == found),
                None => {
                    let one = |value: &Value| QueryKey::new(std::slice::from_ref(value)).expect("a key");
                    filter::matches(&one(found), &one(wanted))
                }
            }
        })
}

proptest! {
    #[test]
    fn a_cascade_is_the_naive_fixpoint(all in declarations(), from in any_root(), cached in any::<[u64; 3]>()) {
        let universe = universe();
        let expected = naive(&all, &universe, &from);
        let mut resources = declared(all);
        // What is cached decides what is listed and nothing else.
        let is_cached = |at: usize| cached[at / 64] >> (at % 64) & 1 == 1;
        let keys: Vec<QueryKey> = universe.iter().enumerate().filter(|(at, _)| is_cached(*at)).map(|(_, key)| key.clone()).collect();
        let index = index_of(&keys);
        let cascade = Cascade::new(&mut resources, &from);
        let reached = cascade.keys(&index);
        let mut with_depth: Vec<(u32, Key)> = Vec::new();
        for (at, key) in universe.iter().enumerate().filter(|(at, _)| is_cached(*at)) {
            prop_assert_eq!(reached.contains(&key.to_key()), expected[at].is_some(), "{}", key);
            with_depth.extend(expected[at].map(|depth| (depth, key.to_key())));
        }
        let lines = cascade.lines(&index, &mut resources, |_| false);
        prop_assert!(lines.is_sorted_by_key(|line| line.depth));
        let mut listed: Vec<(u32, Key)> = lines.into_iter().filter_map(|line| Some((line.depth, line.key?))).collect();
        listed.sort_unstable();
        with_depth.sort_unstable();
        prop_assert_eq!(listed, with_depth);
    }
}
