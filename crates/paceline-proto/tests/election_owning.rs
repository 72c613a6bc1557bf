//! Owning: adoption, the fence, a failing store, and what an idle owner does.

mod election_support;

use election_support::{ANN, OWNER, Rig, address, claims, connected, events, listing, ms, ping, wishes};
use paceline_proto::{
    election::{ClaimResult, Effect, Input, Listing, Lock, Role},
    event::{Cause, Event},
    id::{Epoch, SessionId},
    limits::OWNER_GAP,
};

const THREE: Epoch = Epoch(3);
const FOUR: Epoch = Epoch(4);

fn primary(epoch: Epoch, adopted: bool) -> Role {
    Role::Primary { epoch, adopted }
}

fn store_failed(epoch: Epoch) -> Input {
    Input::StoreFailed { epoch, why: "fsync failed".into() }
}

#[test]
fn a_won_claim_serves_at_once_and_then_adopts() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(Listing::default()));
    let one = Epoch(1);
    let effects = rig.feed(Input::Claimed { epoch: one, result: ClaimResult::Won });
    assert_eq!(
        effects,
        [
            Effect::Begin { epoch: one, members: None, cause: Cause::First },
            Effect::Adopt { epoch: one },
            Effect::Event(Event::PrimaryElected { epoch: one, over: Cause::First }),
            Effect::Role(primary(one, false)),
        ]
    );
    let effects = rig.feed(Input::Adopted { epoch: one, result: Ok(12) });
    let adopted = Event::Adopted { epoch: one, rows: 12 };
    assert_eq!(effects, [Effect::Event(adopted), Effect::Role(primary(one, true))]);
    assert_eq!((rig.machine.epoch(), rig.machine.attempt(), rig.machine.deadline()), (one, None, None));
    assert_eq!(rig.feed(Input::Adopted { epoch: one, result: Ok(12) }), [], "once");
}

#[test]
fn a_store_that_cannot_be_adopted_leaves_a_serving_owner() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(listing(2, Lock::Free)));
    rig.feed(Input::Claimed { epoch: THREE, result: ClaimResult::Won });
    let effects = rig.feed(Input::Adopted { epoch: THREE, result: Err("two databases are complete".into()) });
    assert_eq!(events(&effects), ["adoption_failed"]);
    assert_eq!(wishes(effects), []);
    assert_eq!(rig.machine.role(), &primary(THREE, false));
    assert_eq!(rig.wait(ms(600_000)), [], "another claim would not heal it");
}

#[test]
fn a_frozen_owner_that_resumes_looks_at_its_fence_before_anything_else() {
    let mut rig = Rig::owning(3, &[]);
    rig.sleep(OWNER_GAP);
    assert_eq!(rig.feed(Input::Ping(ping(&[]))), [], "just inside");
    rig.sleep(OWNER_GAP + ms(1));
    let effects = rig.feed(Input::Promote { to: None });
    assert_eq!(effects[0], Effect::CheckFence { epoch: THREE }, "just outside");
    let effects = rig.feed(Input::Fenced { epoch: THREE, why: "claim 4 is there".into() });
    assert_eq!(
        effects,
        [
            Effect::End { epoch: THREE, close: false },
            Effect::Event(Event::Fenced { epoch: THREE, why: "claim 4 is there".into() }),
            Effect::Role(Role::Joining),
            Effect::List,
        ]
    );
    let effects = rig.feed(Input::Listed(listing(4, Lock::Held)));
    let attempt = connected(&effects).unwrap();
    rig.feed(Input::Welcomed { attempt, epoch: FOUR, owner: OWNER });
    assert_eq!(rig.machine.role(), &Role::Follower { epoch: FOUR, owner: OWNER });
}

#[test]
fn a_suspend_is_a_gap_too() {
    let mut rig = Rig::owning(3, &[]);
    let effects = rig.feed(Input::Suspended { ms: 150 });
    assert_eq!(wishes(effects), [Effect::CheckFence { epoch: THREE }]);
}

#[test]
fn a_fence_that_speaks_of_another_reign_is_ignored() {
    let mut rig = Rig::owning(3, &[]);
    assert_eq!(rig.feed(Input::Fenced { epoch: Epoch(2), why: String::new() }), []);
    assert_eq!(rig.machine.role(), &primary(THREE, true));
}

#[test]
fn somebody_who_says_it_took_over_is_checked() {
    let mut rig = Rig::owning(3, &[]);
    let effects = rig.feed(Input::Took { epoch: FOUR, to: Some(address(4)) });
    assert_eq!(effects, [Effect::CheckFence { epoch: THREE }]);
    assert_eq!(rig.feed(Input::Took { epoch: THREE, to: None }), []);
}

#[test]
fn a_failed_store_is_replaced_by_claiming_over_oneself() {
    let mut rig = Rig::owning(3, &[]);
    let effects = rig.feed(store_failed(THREE));
    assert_eq!(events(&effects), ["adoption_failed"]);
    assert_eq!(claims(&effects), [FOUR]);
    assert_eq!(rig.machine.role(), &primary(THREE, false), "serving, not acknowledging");
    let effects = wishes(rig.feed(Input::Claimed { epoch: FOUR, result: ClaimResult::Won }));
    let members = Some(ping(&[]).members);
    assert_eq!(
        effects,
        [
            Effect::End { epoch: THREE, close: false },
            Effect::Begin { epoch: FOUR, members, cause: Cause::Own },
            Effect::Adopt { epoch: FOUR },
        ]
    );
    rig.feed(Input::Adopted { epoch: FOUR, result: Ok(0) });
    assert_eq!(rig.machine.role(), &primary(FOUR, true));
    assert_eq!(rig.feed(store_failed(THREE)), [], "that store is gone already");
}

#[test]
fn the_own_new_claim_may_fence_before_its_answer_comes() {
    let mut rig = Rig::owning(3, &[]);
    rig.feed(store_failed(THREE));
    let effects = wishes(rig.feed(Input::Fenced { epoch: THREE, why: "claim 4 is there".into() }));
    assert_eq!(effects, [Effect::End { epoch: THREE, close: false }]);
    let effects = wishes(rig.feed(Input::Claimed { epoch: FOUR, result: ClaimResult::Won }));
    assert!(matches!(effects[0], Effect::Begin { epoch: FOUR, cause: Cause::Own, .. }));
}

#[test]
fn a_disk_without_room_for_a_new_store_leaves_a_read_only_owner_that_tries_again() {
    let mut rig = Rig::owning(3, &[]);
    rig.feed(store_failed(THREE));
    let full = || Input::Claimed { epoch: FOUR, result: ClaimResult::Failed("no space left".into()) };
    let effects = rig.feed(full());
    assert_eq!(events(&effects), ["claim_failed"]);
    assert_eq!(wishes(effects), []);
    assert_eq!(rig.machine.role(), &primary(THREE, false));
    let mut waits = Vec::new();
    for _ in 0..8 {
        let start = rig.now;
        assert_eq!(claims(&rig.step()), [FOUR]);
        waits.push(rig.now.since(start).as_secs());
        rig.feed(full());
    }
    assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300]);
    rig.step();
    rig.feed(Input::Claimed { epoch: FOUR, result: ClaimResult::Won });
    rig.feed(Input::Adopted { epoch: FOUR, result: Ok(0) });
    assert_eq!(rig.machine.role(), &primary(FOUR, true));
}

#[test]
fn a_store_that_fails_again_at_once_is_not_replaced_at_once() {
    let mut rig = Rig::owning(3, &[]);
    rig.feed(store_failed(THREE));
    rig.feed(Input::Claimed { epoch: FOUR, result: ClaimResult::Won });
    rig.sleep(ms(100));
    let effects = rig.feed(store_failed(FOUR));
    assert_eq!(claims(&effects), []);
    let start = rig.now;
    assert_eq!(claims(&rig.step()), [Epoch(5)]);
    assert_eq!(rig.now.since(start), ms(4_900));
}

#[test]
fn another_session_may_be_quicker_to_claim_over_a_failed_store() {
    let mut rig = Rig::owning(3, &[]);
    rig.feed(store_failed(THREE));
    let effects = rig.feed(Input::Claimed { epoch: FOUR, result: ClaimResult::Exists });
    assert_eq!(events(&effects), ["claim_lost", "fenced"]);
    assert_eq!(wishes(effects), [Effect::End { epoch: THREE, close: false }, Effect::List]);
}

#[test]
fn an_idle_owner_collects_about_once_a_minute_and_sets_no_timer() {
    let mut rig = Rig::owning(3, &[]);
    let mut collected = 0;
    for _ in 0..(300 * 5) {
        assert_eq!(rig.machine.deadline(), None);
        rig.sleep(ms(200));
        let effects = rig.feed(Input::Ping(ping(&[])));
        collected += effects.iter().filter(|e| **e == Effect::Collect { epoch: THREE }).count();
        assert!(effects.len() <= 1);
    }
    assert_eq!(collected, 5, "in five minutes");
}

#[test]
fn an_owner_that_is_not_adopted_collects_nothing() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(listing(2, Lock::Free)));
    rig.feed(Input::Claimed { epoch: THREE, result: ClaimResult::Won });
    for _ in 0..1_000 {
        rig.sleep(ms(200));
        assert_eq!(rig.feed(Input::Ping(ping(&[]))), []);
    }
}

#[test]
fn leaving_without_an_heir() {
    let mut rig = Rig::owning(3, &[]);
    let effects = rig.feed(Input::Leave);
    assert_eq!(
        effects,
        [
            Effect::End { epoch: THREE, close: true },
            Effect::Event(Event::SteppedDown { epoch: THREE }),
            Effect::Role(Role::Left),
            Effect::Left,
        ]
    );
}

#[test]
fn leaving_while_the_own_claim_is_unanswered() {
    let mut rig = Rig::owning(3, &[]);
    rig.feed(store_failed(THREE));
    assert_eq!(rig.feed(Input::Leave), []);
    let effects = wishes(rig.feed(Input::Claimed { epoch: FOUR, result: ClaimResult::Won }));
    assert_eq!(effects[0], Effect::End { epoch: THREE, close: false });
    assert_eq!(effects[3..], [Effect::End { epoch: FOUR, close: true }, Effect::Left]);

    let mut rig = Rig::owning(3, &[ANN]);
    rig.feed(store_failed(THREE));
    rig.feed(Input::Leave);
    let effects = rig.feed(Input::Claimed { epoch: FOUR, result: ClaimResult::Failed("full".into()) });
    let to: SessionId = ANN;
    assert_eq!(wishes(effects), [Effect::Drain { epoch: THREE, to }], "an heir brings its own store");
}
