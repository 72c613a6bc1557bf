//! Which rules a key has, as sessions declare resources, disagree and leave.

use std::{sync::Arc, time::Duration};

use paceline_proto::id::{Key, SessionId};
use paceline_query::{
    key,
    key::QueryKey,
    limits::{RESOURCES_MAX, RULES_KEPT},
    pattern::KeyPattern,
    resources::{Declared, Resources},
    rules::{
        Defaults, Dependency, NetworkMode, Poll, PollStep, Resource, Retry, Source, Staleness, Triggers,
    },
};
use proptest::prelude::*;
use serde_json::{Value, json};

const ONE: SessionId = SessionId(1);
const TWO: SessionId = SessionId(2);
const THREE: SessionId = SessionId(3);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn minutes(minutes: u64) -> Staleness {
    Staleness::After(seconds(60 * minutes))
}

fn resource(name: &str) -> Resource {
    Resource::new(name).expect("a name")
}

fn pattern(segments: Value) -> KeyPattern {
    KeyPattern::new(segments.as_array().expect("a list")).expect("a pattern")
}

fn declare(resources: &mut Resources, session: SessionId, resource: &Resource) -> Declared {
    resources.declare(session, Arc::new(resource.clone()), false)
}

fn declared(all: &[Resource]) -> Resources {
    let mut resources = Resources::new(Defaults::default());
    for resource in all {
        assert_eq!(declare(&mut resources, ONE, resource), Declared::Changed);
    }
    resources
}

fn stale(resources: &mut Resources, key: QueryKey) -> Staleness {
    resources.rules(&key.to_key()).stale
}

/// The table of the source, as it is written there.
fn table() -> Vec<(&'static str, Staleness)> {
    vec![
        ("node", Staleness::Never),
        ("process", minutes(5)),
        ("rule", minutes(10)),
        ("office", minutes(30)),
        ("workflow", minutes(15)),
        ("notification", Staleness::After(seconds(30))),
        ("settings", minutes(2)),
        ("system_health", Staleness::Always),
        ("workflow_status", Staleness::Always),
    ]
}

fn resources_of(table: &[(&str, Staleness)]) -> Resources {
    declared(&table.iter().map(|(name, stale)| resource(name).stale(*stale)).collect::<Vec<_>>())
}

#[test]
fn the_staleness_table_holds_as_it_is_written() {
    let mut resources = resources_of(&table());
    for (name, expected) in table() {
        assert_eq!(stale(&mut resources, key![name]), expected, "{name}");
        assert_eq!(
            stale(&mut resources, key![name, 7, { "open": true }]),
            expected,
            "{name} and a key under it"
        );
    }
    for other in [key!["nodes"], key!["nod"], key![7], key!["proc", "node"]] {
        assert_eq!(stale(&mut resources, other), Staleness::Always, "what no resource names has the default");
    }
}

#[test]
fn every_kind_of_staleness_is_a_rule() {
    for expected in [minutes(2), Staleness::Never, Staleness::Always, Staleness::Static] {
        let mut resources = resources_of(&[("a", expected)]);
        assert_eq!(stale(&mut resources, key!["a", 1]), expected);
    }
}

#[test]
fn profiles_change_the_table_and_nothing_else() {
    let dev =
        [("process", minutes(1)), ("rule", minutes(2)), ("notification", Staleness::After(seconds(10)))];
    let prod = [("process", minutes(10)), ("rule", minutes(30)), ("notification", minutes(1))];
    for profile in [dev, prod] {
        let mut merged = table();
        for (name, stale) in &mut merged {
            if let Some((_, changed)) = profile.iter().find(|(changed, _)| changed == name) {
                *stale = *changed;
            }
        }
        let mut resources = resources_of(&merged);
        for (name, plain) in table() {
            let expected =
                profile.iter().find(|(changed, _)| *changed == name).map_or(plain, |(_, stale)| *stale);
            assert_eq!(stale(&mut resources, key![name, "x"]), expected, "{name}");
        }
    }
}

#[test]
fn an_action_beats_its_resource_and_the_more_specific_pattern_wins() {
    let mut all = table();
    all.extend([("process.list", minutes(2)), ("rule.search", Staleness::After(seconds(30)))]);
    let mut resources = resources_of(&all);
    for (key, expected) in [
        (key!["process", "list"], minutes(2)),
        (key!["process", "list", { "page": 2 }], minutes(2)),
        (key!["process", 7], minutes(5)),
        (key!["process"], minutes(5)),
        (key!["rule", "search", "text"], Staleness::After(seconds(30))),
        (key!["rule", "searches"], minutes(10)),
    ] {
        assert_eq!(stale(&mut resources, key.clone()), expected, "{key}");
    }
    let named = resource("one").pattern(pattern(json!(["process", "{id}"]))).stale(minutes(7));
    assert_eq!(declare(&mut resources, ONE, &named), Declared::Changed);
    assert_eq!(stale(&mut resources, key!["process", 7]), minutes(7), "a name beats the dots");
    assert_eq!(stale(&mut resources, key!["process", "list"]), minutes(2), "a literal beats a name");
    assert_eq!(stale(&mut resources, key!["process", 7, 8]), minutes(5), "longer than the pattern");
}

#[test]
fn defaults_and_resources_override_in_both_directions() {
    let short = Triggers { subscribe: false, focus: true, reconnect: false };
    let retry = Retry { times: 9, base: seconds(2), cap: seconds(4), jitter: false };
    let open = resource("process");
    let said = resource("process.list")
        .stale(Staleness::Static)
        .gc(Duration::MAX)
        .refetch_on(short)
        .network(NetworkMode::Always)
        .retry(retry)
        .deadline(seconds(5));
    for defaults in [
        Defaults::default(),
        Defaults { stale: Staleness::Never, gc: Duration::ZERO, deadline: seconds(1), ..Defaults::default() },
    ] {
        let mut resources = Resources::new(defaults.clone());
        declare(&mut resources, ONE, &open);
        declare(&mut resources, ONE, &said);
        for key in [key!["other"], key!["process", 7]] {
            let rules = resources.rules(&key.to_key());
            assert_eq!(
                (rules.stale, rules.gc, rules.refetch_on, rules.network, rules.retry, rules.deadline),
                (
                    defaults.stale,
                    defaults.gc,
                    defaults.refetch_on,
                    defaults.network,
                    defaults.retry,
                    defaults.deadline
                )
            );
        }
        let rules = resources.rules(&key!["process", "list"].to_key());
        assert_eq!(
            (rules.stale, rules.gc, rules.refetch_on, rules.network, rules.retry, rules.deadline),
            (Staleness::Static, Duration::MAX, short, NetworkMode::Always, retry, seconds(5))
        );
    }
}

#[test]
fn what_a_resource_leaves_open_comes_from_the_next_and_tags_add_up() {
    let list = Poll::every(seconds(2));
    let mut resources = declared(&[
        resource("all")
            .pattern(pattern(json!(["{kind}", ".."])))
            .gc(seconds(1))
            .stale(minutes(9))
            .tag("any")
            .critical(),
        resource("process").stale(minutes(5)).tag("work").tag("any").depends_on(Dependency::tag("site")),
        resource("process.list")
            .poll(list.clone())
            .tag("lists")
            .depends_on(Dependency::tag("rule"))
            .cancellable(),
    ]);
    let rules = resources.rules(&key!["process", "list", 1].to_key());
    assert_eq!(rules.name().map(|name| &**name), Some("process.list"));
    assert_eq!((rules.stale, rules.gc), (minutes(5), seconds(1)));
    assert_eq!(rules.tags, ["any", "lists", "work"].map(Arc::from));
    assert!(rules.critical && rules.cancellable);
    assert_eq!(rules.poll().map(|(poll, _)| poll), Some(&list));
    let tags: Vec<_> = rules.dependencies().map(|(dependency, _)| dependency.clone()).collect();
    assert_eq!(tags, [Dependency::tag("rule"), Dependency::tag("site")]);
    let plain = resources.rules(&key!["process", 7].to_key());
    assert!(plain.critical && !plain.cancellable && plain.poll().is_none());
}

#[test]
fn names_are_bound_by_the_resource_that_speaks_of_them() {
    let polled = Poll::otherwise(PollStep::Stop)
        .when("key.id == 7".parse().expect("a condition"), PollStep::Every(seconds(1)));
    let mut resources = declared(&[
        resource("outer").pattern(pattern(json!(["job", "{id}", ".."]))).poll(polled),
        resource("inner").pattern(pattern(json!(["job", "{job}", "step", "{id}"]))),
    ]);
    let rules = resources.rules(&key!["job", 7, "step", 9].to_key());
    assert_eq!(rules.name().map(|name| &**name), Some("inner"));
    assert_eq!(json!(rules.resources[0].bound), json!({"job":7,"id":9}));
    let (_, bound) = rules.poll().expect("the outer one polls");
    assert_eq!(json!(bound), json!({"id":7}), "the rule and its names come from one resource");
}

#[test]
fn equally_specific_resources_count_by_name() {
    let mut resources = declared(&[
        resource("b").pattern(pattern(json!(["x", "{one}"]))).stale(minutes(2)),
        resource("a").pattern(pattern(json!(["x", "{two}"]))).stale(minutes(1)),
    ]);
    assert_eq!(stale(&mut resources, key!["x", 0]), minutes(1));
}

#[test]
fn the_first_declaration_counts_while_it_is_there() {
    let (first, other) = (resource("a").stale(minutes(1)), resource("a").stale(minutes(2)));
    let mut resources = Resources::new(Defaults::default());
    assert_eq!(declare(&mut resources, ONE, &first), Declared::Changed);
    assert_eq!(declare(&mut resources, TWO, &first), Declared::Known);
    assert_eq!(declare(&mut resources, THREE, &other), Declared::Known);
    assert_eq!(stale(&mut resources, key!["a"]), minutes(1));
    assert!(!resources.forget(ONE), "the second session declared the same");
    assert_eq!(stale(&mut resources, key!["a"]), minutes(1));
    assert!(resources.forget(TWO));
    assert_eq!(stale(&mut resources, key!["a"]), minutes(2), "the first that is still there");
    assert!(resources.forget(THREE));
    assert_eq!(stale(&mut resources, key!["a"]), Staleness::Always);
    assert_eq!(resources.iter().count(), 0);
}

#[test]
fn a_session_may_change_its_mind() {
    let mut resources = Resources::new(Defaults::default());
    declare(&mut resources, ONE, &resource("a").stale(minutes(1)));
    let before = (resources.generation(), stale(&mut resources, key!["a"]));
    assert_eq!(declare(&mut resources, ONE, &resource("a").stale(minutes(2))), Declared::Changed);
    assert_eq!((before.1, stale(&mut resources, key!["a"])), (minutes(1), minutes(2)));
    assert!(resources.generation() > before.0);
    let now = resources.generation();
    assert_eq!(declare(&mut resources, TWO, &resource("a").stale(minutes(2))), Declared::Known);
    assert_eq!(resources.generation(), now, "rules that are in use stay as they are");
}

#[test]
fn who_can_fetch_is_known_by_resource() {
    let plain = Arc::new(resource("a"));
    let mut resources = Resources::new(Defaults::default());
    let source = |resources: &mut Resources| {
        let rules = resources.rules(&key!["a", 1].to_key());
        (rules.source.clone(), rules.fetcher.clone().map(|name| name.to_string()))
    };
    let fetchers = |resources: &Resources| resources.fetchers("a").collect::<Vec<_>>();
    resources.declare(ONE, plain.clone(), false);
    assert_eq!((source(&mut resources), fetchers(&resources)), ((Source::None, None), vec![]));
    assert_eq!(resources.declare(TWO, plain.clone(), true), Declared::Changed);
    assert_eq!(
        source(&mut resources),
        (Source::Closure, Some("a".into())),
        "a session brought its own fetcher"
    );
    assert_eq!(resources.declare(THREE, plain.clone(), true), Declared::Known);
    assert_eq!(fetchers(&resources), [TWO, THREE]);
    resources.forget(TWO);
    assert_eq!((source(&mut resources).0, fetchers(&resources)), (Source::Closure, vec![THREE]));
    let served = resource("a").source(Source::Server("main".into()));
    assert_eq!(
        declare(&mut resources, TWO, &served),
        Declared::Changed,
        "no conflict: who fetches is no rule"
    );
    assert_eq!(source(&mut resources).0, Source::Server("main".into()));
    let deaf = resource("a.b").source(Source::None);
    declare(&mut resources, ONE, &deaf);
    let rules = resources.rules(&key!["a", "b"].to_key());
    assert_eq!(
        (&rules.source, &rules.fetcher),
        (&Source::None, &None),
        "nobody, though the resource above is fetched"
    );
    assert_eq!(resources.fetchers("unknown").count(), 0);
}

#[test]
fn keys_that_are_none_have_the_defaults() {
    let mut resources = declared(&[resource("a").stale(minutes(1))]);
    let broken = Key::copy_from(&[&*key!["a"].to_key().0, &[5, 9]].concat());
    let rules = resources.rules(&broken);
    assert!(rules.resources.is_empty() && rules.stale == Staleness::Always);
}

#[test]
fn a_group_has_so_many_resources_and_not_one_more() {
    let mut resources = Resources::new(Defaults::default());
    for n in 0..RESOURCES_MAX {
        let one = resource(&format!("r{n}")).pattern(pattern(json!([n]))).stale(minutes(1));
        assert_eq!(declare(&mut resources, ONE, &one), Declared::Changed);
    }
    assert_eq!(stale(&mut resources, key![RESOURCES_MAX - 1]), minutes(1));
    assert_eq!(declare(&mut resources, TWO, &resource("one-more")), Declared::Full);
    assert_eq!(stale(&mut resources, key!["one-more"]), Staleness::Always);
    let known = resource("r0").pattern(pattern(json!([0]))).stale(minutes(1));
    assert_eq!(declare(&mut resources, TWO, &known), Declared::Known, "what is known is no more");
}

#[test]
fn rules_are_remembered_up_to_a_bound_and_right_beyond_it() {
    let mut resources = declared(&[resource("a").pattern(pattern(json!(["a", "{id}"]))).stale(minutes(1))]);
    let first = key!["a", 0].to_key();
    let rules = resources.rules(&first);
    for n in 1..RULES_KEPT {
        resources.rules(&key!["a", n].to_key());
    }
    assert!(Arc::ptr_eq(&rules, &resources.rules(&first)), "still remembered");
    resources.rules(&key!["a", RULES_KEPT].to_key());
    let again = resources.rules(&first);
    assert!(!Arc::ptr_eq(&rules, &again) && rules == again, "worked out anew");
}

/// What a session does.
#[derive(Debug, Clone)]
enum Step {
    Declare { session: u128, name: usize, variant: usize, fetches: bool },
    Forget { session: u128 },
}

/// Two forms of each of four resources whose keys overlap.
fn variant(name: usize, variant: usize) -> Resource {
    let segments =
        [json!(["a", ".."]), json!(["a", "{x}"]), json!(["a", "{x}", "b", ".."]), json!(["{y}", "b", ".."])];
    let named =
        resource(&format!("r{name}")).pattern(pattern(segments[(name + variant) % 4].clone())).tag("t");
    match variant {
        0 => named.stale(minutes(name as u64)),
        1 => named.gc(seconds(name as u64)).source(Source::Server("s".into())).tag("u"),
        _ => named.stale(Staleness::Never).deadline(seconds(name as u64 + 1)).critical(),
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0_u128..3, 0_usize..4, 0_usize..3, any::<bool>()).prop_map(|(session, name, variant, fetches)| {
            Step::Declare { session, name, variant, fetches }
        }),
        1 => (0_u128..3).prop_map(|session| Step::Forget { session }),
    ]
}

/// The declarations that are there, in order, and the rules read off them anew for each key.
#[derive(Default)]
struct Naive(Vec<(u128, Resource, bool)>);

impl Naive {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Declare { session, name, variant: which, fetches } => {
                let new = (*session, variant(*name, *which), *fetches);
                match self.0.iter_mut().find(|(by, resource, _)| by == session && resource.name == new.1.name)
                {
                    Some(old) => *old = new,
                    None => self.0.push(new),
                }
            }
            Step::Forget { session } => self.0.retain(|(by, ..)| by != session),
        }
    }

    fn of(&self, key: &QueryKey) -> (Staleness, Duration, Duration, bool, Source, Vec<Arc<str>>) {
        let mut names: Vec<&str> = self.0.iter().map(|(_, resource, _)| &*resource.name).collect();
        names.sort_unstable();
        names.dedup();
        let mut matching: Vec<(&Resource, Option<Source>)> = names
            .iter()
            .filter_map(|name| {
                let all: Vec<_> = self.0.iter().filter(|(_, resource, _)| &*resource.name == *name).collect();
                all[0].1.pattern.bind(key)?;
                let served = all.iter().find_map(|(_, resource, _)| resource.source.clone());
                let closure = all.iter().any(|(.., fetches)| *fetches).then_some(Source::Closure);
                Some((&all[0].1, served.or(closure)))
            })
            .collect();
        matching.sort_by(|(one, _), (two, _)| {
            let by_pattern = two.pattern.specificity().cmp(&one.pattern.specificity());
            by_pattern.then_with(|| one.name.cmp(&two.name))
        });
        let mut tags: Vec<Arc<str>> = matching.iter().flat_map(|(one, _)| one.tags.clone()).collect();
        tags.sort_unstable();
        tags.dedup();
        let defaults = Defaults::default();
        (
            matching.iter().find_map(|(one, _)| one.stale).unwrap_or(defaults.stale),
            matching.iter().find_map(|(one, _)| one.gc).unwrap_or(defaults.gc),
            matching.iter().find_map(|(one, _)| one.deadline).unwrap_or(defaults.deadline),
            matching.iter().any(|(one, _)| one.critical),
            matching.iter().find_map(|(_, source)| source.clone()).unwrap_or(Source::None),
            tags,
        )
    }
}

proptest! {
    #[test]
    fn rules_are_those_of_a_naive_look_at_all_declarations(steps in prop::collection::vec(step(), 1..24)) {
        let mut resources = Resources::new(Defaults::default());
        let mut naive = Naive::default();
        let keys = [key!["a"], key!["a", 1], key!["a", "b"], key!["a", 1, "b"], key!["a", 1, "b", 2], key!["c", "b", 3], key![1]];
        for step in steps {
            naive.apply(&step);
            match step {
                Step::Declare { session, name, variant: which, fetches } => {
                    let _ = resources.declare(SessionId(session), Arc::new(variant(name, which)), fetches);
                }
                Step::Forget { session } => drop(resources.forget(SessionId(session))),
            }
            for key in &keys {
                let rules = resources.rules(&key.to_key());
                let found = (rules.stale, rules.gc, rules.deadline, rules.critical, rules.source.clone(), rules.tags.clone());
                prop_assert_eq!(found, naive.of(key), "{}", key);
            }
        }
    }
}
