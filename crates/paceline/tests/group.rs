//! Who is in the group: principals, labels, observers, heirs, presence, and the state of the wire.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Feed, block_on, builder, comes_back, group_is, has_heir, join, leads, scratch};
use paceline::{ConnectionState, Error, Presence, Role, Route, key};

#[test]
fn another_principal_is_another_group() {
    let dir = scratch();
    let of = |principal: &str| builder(dir.path()).principal(principal).join_blocking().unwrap();
    let (ann, also_ann, bob) = (of("ann"), of("ann"), of("bob"));
    ann.set_blocking(key!["k"], &1).unwrap();
    let mut seen = also_ann.query(key!["k"]).subscribe::<u64>();
    comes_back("her value", move || while seen.changed_blocking().unwrap().data() != Some(&1) {});
    bob.set_blocking(key!["other"], &2).unwrap();
    assert_eq!(bob.query(key!["k"]).subscribe::<u64>().current().data(), None);
    group_is(&bob, "a group of his own", |view| leads(view) && view.members.len() == 1);
    let plain = join(dir.path());
    group_is(&plain, "a group without a principal", |view| leads(view) && view.members.len() == 1);
}

#[test]
fn labels_are_shown_to_all() {
    let dir = scratch();
    let named = builder(dir.path()).label("a window").join_blocking().unwrap();
    let unnamed = join(dir.path());
    let own = format!("pid {}", std::process::id());
    for session in [&named, &unnamed] {
        let own = own.clone();
        group_is(session, "both labels", move |view| {
            let labels: Vec<&str> = view.members.iter().map(|member| member.label.as_str()).collect();
            labels.len() == 2 && labels.contains(&"a window") && labels.contains(&own.as_str())
        });
    }
}

#[test]
fn an_observer_follows_and_is_never_asked_to_lead() {
    let dir = scratch();
    let primary = join(dir.path());
    let observer = builder(dir.path()).observer().join_blocking().unwrap();
    group_is(&observer, "its place", |view| matches!(view.role, Role::Follower { .. }));
    group_is(&primary, "both", |view| view.members.len() == 2);
    assert!(primary.group().current().heirs.is_empty(), "an observer is no heir");
    for to in [None, Some(observer.id())] {
        let refused = block_on(primary.group().promote(to));
        assert!(matches!(refused, Err(Error::Rejected(_))), "{refused:?}");
    }
    assert!(leads(&primary.group().current()), "nothing changed");
    let mut seen = observer.query(key!["k"]).subscribe::<u64>();
    observer.set_blocking(key!["k"], &1).unwrap();
    comes_back("its own value", move || while seen.changed_blocking().unwrap().data() != Some(&1) {});
}

#[test]
fn a_preferred_session_is_handed_the_lead_and_a_newcomer_is_not() {
    let dir = scratch();
    let first = join(dir.path());
    let newcomer = join(dir.path());
    has_heir(&first);
    assert!(leads(&first.group().current()), "a newcomer displaces nobody");
    let preferred = builder(dir.path()).preferred().join_blocking().unwrap();
    group_is(&preferred, "the lead", leads);
    group_is(&first, "its place", |view| matches!(view.role, Role::Follower { .. }));
    let handed = preferred.group().event_counts();
    assert_eq!(handed.get("fenced"), None);
    drop(newcomer);
}

#[test]
fn promote_hands_over_and_every_session_sees_who_leads() {
    let dir = scratch();
    let first = join(dir.path());
    let second = join(dir.path());
    let third = join(dir.path());
    group_is(&first, "two heirs", |view| {
        view.heirs.iter().filter(|heir| heir.current && heir.kit.is_some()).count() == 2
    });
    block_on(third.group().promote(Some(second.id()))).unwrap();
    group_is(&second, "the lead", leads);
    for session in [&first, &third] {
        let leader = second.id();
        group_is(
            session,
            "who leads",
            move |view| matches!(view.role, Role::Follower { owner, .. } if owner == leader),
        );
    }
}

#[test]
fn presence_reaches_the_primary_and_is_kept_across_a_change_of_it() {
    let dir = scratch();
    let first = join(dir.path());
    let second = join(dir.path());
    has_heir(&first);
    let told = |session: &paceline::Session| {
        session.group().event_counts().get("presence_changed").copied().unwrap_or(0)
    };
    let before = told(&first);
    second.presence(Presence { visible: false, focused: false, active: false, battery: Some(40) });
    // An answer to a question comes after everything that was told before it.
    second.set_blocking(key!["k"], &1).unwrap();
    assert_eq!(told(&first), before + 1);
    let id = second.id();
    let shown = move |session: &paceline::Session| {
        session.runtime().observer().recent().iter().rev().find_map(|(_, event)| {
            let text = event.to_string();
            (event.kind() == "presence_changed" && text.contains(&id.short().to_string())).then_some(text)
        })
    };
    assert!(shown(&first).unwrap().ends_with("on battery, 40 %"), "{:?}", shown(&first));
    first.leave_blocking().unwrap();
    group_is(&second, "the lead", leads);
    assert!(shown(&second).unwrap().ends_with("on battery, 40 %"), "told again in its Hello");
}

#[test]
fn the_state_of_the_wire_is_everybodys() {
    let feed = Feed::start(&["1"]);
    let dir = scratch();
    let with_wire = || builder(dir.path()).upstream(feed.upstream().route(Route::event("numbers")));
    let sessions = [with_wire().join_blocking().unwrap(), with_wire().join_blocking().unwrap()];
    for session in &sessions {
        group_is(session, "a live upstream", |view| {
            view.connections.iter().any(|c| &*c.upstream == "feed" && c.state == ConnectionState::Live)
        });
    }
}
