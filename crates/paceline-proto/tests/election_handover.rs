//! Draining: polite handovers, aborted ones, and sessions that leave.

mod election_support;

use election_support::{ANN, BOB, ME, Rig, address, connected_to, events, heir, ms, ping, wishes};
use paceline_proto::{
    election::{Effect, Input, Role, Target},
    event::Event,
    id::{Epoch, Mark, Offset, SessionId},
    limits::HANDOVER_TIMEOUT,
    message::{Heir, Ping, Rank},
    program::Age,
};

const THREE: Epoch = Epoch(3);
const LAST: Mark = Mark::new(THREE, Offset(40));

/// Without the fence checks that a long silence brings.
fn calm(effects: Vec<Effect>) -> Vec<Effect> {
    wishes(effects).into_iter().filter(|e| *e != Effect::CheckFence { epoch: THREE }).collect()
}

fn drain(to: SessionId) -> [Effect; 1] {
    [Effect::Drain { epoch: THREE, to }]
}

/// An owner whose heir was told to claim.
fn asked(heirs: &[SessionId], input: Input) -> Rig {
    let mut rig = Rig::owning(3, heirs);
    assert_eq!(wishes(rig.feed(input)), drain(heirs[0]));
    assert_eq!(rig.feed(Input::Drained { last: LAST }), [Effect::SendGo { to: heirs[0], last: LAST }]);
    rig
}

#[test]
fn promote_hands_over_and_follows() {
    let mut rig = Rig::owning(3, &[ANN, BOB]);
    let effects = rig.feed(Input::Promote { to: Some(BOB) });
    assert_eq!(
        effects,
        [
            Effect::Event(Event::HandoverStarted { to: BOB }),
            Effect::Role(Role::Draining { epoch: THREE }),
            Effect::Drain { epoch: THREE, to: BOB },
        ]
    );
    rig.feed(Input::Drained { last: LAST });
    let effects = rig.feed(Input::Took { epoch: Epoch(4), to: Some(address(8)) });
    assert_eq!(events(&effects), ["stepped_down"]);
    let target = Target { address: address(8), epoch: Some(Epoch(4)) };
    assert_eq!(
        wishes(effects),
        [
            Effect::SendMoved { epoch: Epoch(4), to: address(8) },
            Effect::End { epoch: THREE, close: false },
            Effect::Connect { attempt: 1, target },
        ]
    );
    rig.feed(Input::Welcomed { attempt: 1, epoch: Epoch(4), owner: BOB });
    assert_eq!(rig.machine.role(), &Role::Follower { epoch: Epoch(4), owner: BOB });
}

#[test]
fn promote_without_a_name_takes_the_first_that_is_ready() {
    let mut rig = Rig::owning(3, &[]);
    let heirs = vec![Heir { current: false, ..heir(ANN) }, heir(BOB)];
    rig.feed(Input::Ping(Ping { heirs, ..ping(&[]) }));
    assert_eq!(wishes(rig.feed(Input::Promote { to: None })), drain(BOB));
}

#[test]
fn promote_to_one_that_is_not_ready_is_refused() {
    let unready: [Vec<Heir>; 4] = [
        vec![],
        vec![heir(BOB)],
        vec![Heir { current: false, ..heir(ANN) }],
        vec![Heir { kit: None, ..heir(ANN) }],
    ];
    for heirs in unready {
        let mut rig = Rig::owning(3, &[]);
        rig.feed(Input::Ping(Ping { heirs: heirs.clone(), ..ping(&[]) }));
        let effects = rig.feed(Input::Promote { to: Some(ANN) });
        assert_eq!(events(&effects), ["handover_aborted"], "{heirs:?}");
        assert!(
            matches!(wishes(effects).as_slice(), [Effect::RefusePromote { .. }]),
            "whoever asked is answered"
        );
        assert_eq!(rig.machine.role(), &Role::Primary { epoch: THREE, adopted: true });
    }
    let mut rig = Rig::following(3, &[]);
    assert_eq!(events(&rig.feed(Input::Promote { to: None })), ["handover_aborted"], "does not lead");
    let mut rig = Rig::owning(3, &[ANN]);
    rig.feed(Input::Promote { to: None });
    assert_eq!(events(&rig.feed(Input::Promote { to: None })), ["handover_aborted"], "under way already");
}

#[test]
fn the_heirs_kit_says_where_it_is_if_took_does_not() {
    let mut rig = asked(&[ANN], Input::Promote { to: None });
    let effects = rig.feed(Input::Took { epoch: Epoch(4), to: None });
    assert!(connected_to(&effects, &heir(ANN).kit.unwrap()).is_some());
}

#[test]
fn handover_aborted() {
    let mut rig = asked(&[ANN], Input::Promote { to: None });
    for _ in 0..4 {
        rig.sleep(HANDOVER_TIMEOUT / 5);
        assert_eq!(rig.feed(Input::Ping(ping(&[ANN]))), []);
    }
    assert_eq!(rig.wait(HANDOVER_TIMEOUT / 5 - ms(1)), []);
    // The fence first: the answer, if it fails, comes before anything else.
    assert_eq!(rig.wait(ms(1)), [Effect::CheckFence { epoch: THREE }]);
    let effects = rig.wait(ms(1));
    assert_eq!(events(&effects), ["handover_aborted"]);
    assert_eq!(wishes(effects), [Effect::ResumeReign { epoch: THREE }]);
    assert_eq!(rig.machine.role(), &Role::Primary { epoch: THREE, adopted: true });

    // The heir claims after all: only the files count.
    let effects = rig.feed(Input::Took { epoch: Epoch(4), to: Some(address(8)) });
    assert_eq!(effects, [Effect::CheckFence { epoch: THREE }]);
}

#[test]
fn a_heir_that_claimed_in_the_last_moment_is_not_resumed_over() {
    let mut rig = asked(&[ANN], Input::Promote { to: None });
    rig.wait(HANDOVER_TIMEOUT);
    let effects = rig.feed(Input::Fenced { epoch: THREE, why: "claim 4 is there".into() });
    assert_eq!(wishes(effects), [Effect::End { epoch: THREE, close: false }, Effect::List]);
}

#[test]
fn a_hub_that_does_not_become_quiet_aborts_too() {
    let mut rig = Rig::owning(3, &[ANN]);
    rig.feed(Input::Promote { to: None });
    assert_eq!(calm(rig.wait(HANDOVER_TIMEOUT + ms(1))), [Effect::ResumeReign { epoch: THREE }]);
    assert_eq!(rig.feed(Input::Drained { last: LAST }), [], "too late");
}

#[test]
fn took_before_go_is_checked() {
    let mut rig = Rig::owning(3, &[ANN]);
    rig.feed(Input::Promote { to: None });
    let effects = rig.feed(Input::Took { epoch: Epoch(4), to: Some(address(8)) });
    assert_eq!(effects, [Effect::CheckFence { epoch: THREE }]);
}

#[test]
fn leaving_hands_over_first() {
    let mut rig = asked(&[ANN], Input::Leave);
    let effects = wishes(rig.feed(Input::Took { epoch: Epoch(4), to: Some(address(8)) }));
    assert_eq!(
        effects,
        [
            Effect::SendMoved { epoch: Epoch(4), to: address(8) },
            Effect::End { epoch: THREE, close: false },
            Effect::Left,
        ]
    );
}

#[test]
fn leaving_tries_another_heir_and_then_just_ends() {
    let mut rig = asked(&[ANN, BOB], Input::Leave);
    let effects = calm(rig.wait(HANDOVER_TIMEOUT + ms(1)));
    assert_eq!(effects, [Effect::ResumeReign { epoch: THREE }, Effect::Drain { epoch: THREE, to: BOB }]);
    let effects = calm(rig.wait(HANDOVER_TIMEOUT + ms(1)));
    assert_eq!(effects, [Effect::End { epoch: THREE, close: true }, Effect::Left]);
}

#[test]
fn leaving_in_the_middle_of_a_promotion() {
    let mut rig = asked(&[ANN], Input::Promote { to: None });
    assert_eq!(rig.feed(Input::Leave), []);
    let effects = wishes(rig.feed(Input::Took { epoch: Epoch(4), to: Some(address(8)) }));
    assert_eq!(effects.last(), Some(&Effect::Left));

    let mut rig = asked(&[ANN], Input::Promote { to: None });
    rig.feed(Input::Leave);
    rig.feed(Input::Ping(ping(&[])));
    let effects = calm(rig.wait(HANDOVER_TIMEOUT + ms(1)));
    assert_eq!(effects, [Effect::End { epoch: THREE, close: true }, Effect::Left], "nobody else is ready");

    let mut rig = asked(&[ANN], Input::Leave);
    let effects = wishes(rig.feed(Input::Fenced { epoch: THREE, why: "claim 4 is there".into() }));
    assert_eq!(effects, [Effect::End { epoch: THREE, close: false }, Effect::Left]);
}

#[test]
fn a_store_that_fails_in_a_handover_is_replaced_when_that_fails() {
    let mut rig = asked(&[ANN], Input::Promote { to: None });
    let effects = rig.feed(Input::StoreFailed { epoch: THREE, why: "fsync failed".into() });
    assert_eq!(effects, [], "the heir brings a new one");
    let effects = calm(rig.wait(HANDOVER_TIMEOUT + ms(1)));
    assert_eq!(effects, [Effect::ResumeReign { epoch: THREE }, Effect::Claim { epoch: Epoch(4) }]);
}

#[test]
fn adoption_may_end_in_a_handover() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(election_support::listing(2, paceline_proto::election::Lock::Free)));
    rig.feed(Input::Claimed { epoch: THREE, result: paceline_proto::election::ClaimResult::Won });
    rig.feed(Input::Ping(ping(&[ANN])));
    assert_eq!(wishes(rig.feed(Input::Promote { to: None })), drain(ANN));
    assert_eq!(events(&rig.feed(Input::Adopted { epoch: THREE, result: Ok(1) })), ["adopted"]);
    rig.wait(HANDOVER_TIMEOUT + ms(1));
    assert_eq!(rig.machine.role(), &Role::Primary { epoch: THREE, adopted: true });
}

#[test]
fn a_preferred_session_gets_a_polite_handover_once_it_is_ready() {
    let preferred = |current| Heir { rank: Rank::Preferred, current, ..heir(BOB) };
    let pinged = |heirs| Input::Ping(Ping { heirs, ..ping(&[]) });
    let mut rig = Rig::owning(3, &[]);
    assert_eq!(rig.feed(pinged(vec![heir(ANN), preferred(false)])), []);
    assert_eq!(wishes(rig.feed(pinged(vec![heir(ANN), preferred(true)]))), drain(BOB));
    // It does not claim: not again at once.
    rig.wait(HANDOVER_TIMEOUT + ms(1));
    let start = rig.now;
    while calm(rig.feed(pinged(vec![preferred(true)]))).is_empty() {
        rig.sleep(ms(250));
    }
    let waited = rig.now.since(start);
    assert!(waited > ms(28_000) && waited <= ms(30_000), "{waited:?}");
}

#[test]
fn a_preferred_owner_stays() {
    let mut rig = Rig::started_as(Rank::Preferred);
    rig.feed(Input::Listed(election_support::listing(2, paceline_proto::election::Lock::Free)));
    rig.feed(Input::Claimed { epoch: THREE, result: paceline_proto::election::ClaimResult::Won });
    rig.feed(Input::Adopted { epoch: THREE, result: Ok(0) });
    let heirs = vec![Heir { rank: Rank::Preferred, ..heir(BOB) }];
    assert_eq!(rig.feed(Input::Ping(Ping { heirs, ..ping(&[]) })), []);
    assert_eq!(rig.machine.role(), &Role::Primary { epoch: THREE, adopted: true });
    let heirs = vec![heir(ME)];
    rig.feed(Input::Ping(Ping { heirs, ..ping(&[]) }));
    assert_eq!(events(&rig.feed(Input::Promote { to: None })), ["handover_aborted"], "not to itself");
}

fn aged(age: Age) -> Heir {
    Heir { age, ..heir(BOB) }
}

fn pinged(heirs: Vec<Heir>) -> Input {
    Input::Ping(Ping { heirs, ..ping(&[]) })
}

#[test]
fn a_newer_build_gets_a_polite_handover_once_it_is_ready_and_others_do_not() {
    let mut rig = Rig::owning(3, &[]);
    for age in [Age::Older, Age::Same, Age::Apart] {
        assert_eq!(rig.feed(pinged(vec![aged(age)])), [], "{age:?}");
    }
    let unready = [Heir { current: false, ..aged(Age::Newer) }, Heir { kit: None, ..aged(Age::Newer) }];
    for heir in unready {
        assert_eq!(rig.feed(pinged(vec![heir])), []);
    }
    assert_eq!(wishes(rig.feed(pinged(vec![heir(ANN), aged(Age::Newer)]))), drain(BOB));
    // It does not claim: not again at once.
    rig.wait(HANDOVER_TIMEOUT + ms(1));
    let start = rig.now;
    while calm(rig.feed(pinged(vec![aged(Age::Newer)]))).is_empty() {
        rig.sleep(ms(250));
    }
    let waited = rig.now.since(start);
    assert!(waited > ms(28_000) && waited <= ms(30_000), "{waited:?}");
}

#[test]
fn a_reign_that_was_handed_over_goes_to_a_newer_build_only_after_a_while() {
    let mut rig = Rig::following(2, &[ME]);
    rig.feed(Input::Go { last: Mark::new(Epoch(2), Offset(9)) });
    rig.feed(Input::Claimed { epoch: THREE, result: paceline_proto::election::ClaimResult::Won });
    rig.feed(Input::Adopted { epoch: THREE, result: Ok(0) });
    assert_eq!(rig.machine.role(), &Role::Primary { epoch: THREE, adopted: true });
    let start = rig.now;
    while calm(rig.feed(pinged(vec![aged(Age::Newer)]))).is_empty() {
        rig.sleep(ms(250));
    }
    let waited = rig.now.since(start);
    assert!(waited > ms(29_000) && waited <= ms(30_000), "{waited:?}");
}

#[test]
fn an_older_coordinator_is_not_handed_the_wire_of_a_newer_build() {
    let preferred = |age| Heir { rank: Rank::Preferred, ..aged(age) };
    let mut rig = Rig::owning(3, &[]);
    assert_eq!(rig.feed(pinged(vec![preferred(Age::Older)])), []);
    assert_eq!(wishes(rig.feed(pinged(vec![preferred(Age::Apart)]))), drain(BOB), "preferred all the same");
    // A coordinator gives way to a newer coordinator only.
    let mut rig = Rig::started_as(Rank::Preferred);
    rig.feed(Input::Listed(election_support::listing(2, paceline_proto::election::Lock::Free)));
    rig.feed(Input::Claimed { epoch: THREE, result: paceline_proto::election::ClaimResult::Won });
    rig.feed(Input::Adopted { epoch: THREE, result: Ok(0) });
    assert_eq!(rig.feed(pinged(vec![aged(Age::Newer), preferred(Age::Same)])), []);
    assert_eq!(wishes(rig.feed(pinged(vec![preferred(Age::Newer)]))), drain(BOB));
}
