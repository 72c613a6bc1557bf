//! Suspicion: a frozen owner is replaced, a slow one is not, and a session that sleeps or starves replaces nobody.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod election_support;

use election_support::{
    ANN, BOB, ME, OWNER, Rig, claims, connected, connected_to, events, heir, listing, ms, ping, wishes,
};
use paceline_proto::{
    election::{ClaimResult, ConnectFailure, Effect, Input, Listing, Lock, Role, Target},
    event::Cause,
    id::Epoch,
    limits::{CLAIM_STAGGER, SUSPICION_AFTER, SUSPICION_TICK, SUSPICION_TICKS, TICK_LATE, USURP_INTERVAL},
    message::Rank,
};

const THREE: Epoch = Epoch(3);

/// Follows an owner that says nothing any more, up to the direct probe; returns its token.
fn probing(rig: &mut Rig) -> u64 {
    let effects = rig.wait(SUSPICION_AFTER);
    assert_eq!(events(&effects), ["suspected"]);
    let effects = rig.wait(SUSPICION_TICK * SUSPICION_TICKS);
    let probe = connected_to(&effects, &election_support::address(3)).expect("the direct probe");
    assert_eq!(effects.last(), Some(&Effect::LookAtOwner { epoch: THREE }));
    probe
}

/// From the silent probe to the claim.
fn claiming(rig: &mut Rig) -> Vec<Epoch> {
    assert_eq!(rig.wait(ms(500)), [Effect::TestLock { epoch: THREE }]);
    rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Held });
    let effects = rig.step();
    assert_eq!(effects, [Effect::List]);
    claims(&rig.feed(Input::Listed(listing(3, Lock::Held))))
}

#[test]
fn a_frozen_owner_is_claimed_over_after_two_seconds() {
    let mut rig = Rig::following(3, &[ME]);
    let (start, old) = (rig.now, rig.attempt());
    let probe = probing(&mut rig);
    rig.feed(Input::OwnerStopped(true));
    assert_eq!(claiming(&mut rig), [Epoch(4)]);
    assert_eq!(rig.now.since(start), ms(300 + 1100 + 500 + 1));
    let effects = wishes(rig.feed(Input::Claimed { epoch: Epoch(4), result: ClaimResult::Won }));
    assert_eq!(effects[0], Effect::Disconnect { attempt: old });
    assert!(matches!(effects[1], Effect::Begin { cause: Cause::Silent, .. }));
    assert!(probe > old);
}

#[test]
fn suspicion_begins_when_the_bound_is_passed() {
    let mut rig = Rig::following(3, &[]);
    assert_eq!(rig.wait(SUSPICION_AFTER - ms(1)), []);
    assert_eq!(events(&rig.wait(ms(1))), ["suspected"]);

    // One deadline, moved along by what was heard.
    let mut rig = Rig::following(3, &[]);
    for _ in 0..20 {
        let effects = rig.wait(ms(250));
        assert_eq!(effects, []);
        rig.heard = rig.now;
    }
}

#[test]
fn any_frame_clears_the_suspicion_up_to_the_last_look() {
    // In the ticks.
    let mut rig = Rig::following(3, &[ME]);
    rig.wait(ms(1000));
    rig.heard = rig.now;
    assert_eq!(events(&rig.wait(ms(50))), ["suspicion_cleared"]);
    assert_eq!(rig.machine.role(), &Role::Follower { epoch: THREE, owner: OWNER });

    // In the probe, which is dropped.
    let mut rig = Rig::following(3, &[ME]);
    let probe = probing(&mut rig);
    let effects = rig.feed(Input::Ping(ping(&[ME])));
    assert_eq!(effects[0], Effect::Disconnect { attempt: probe });

    // A millisecond before the claim.
    let mut rig = Rig::following(3, &[ME]);
    probing(&mut rig);
    rig.wait(ms(500));
    rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Held });
    rig.heard = rig.now;
    assert_eq!(events(&rig.step()), ["suspicion_cleared"]);
    // The count began anew.
    assert_eq!(claims(&rig.wait(ms(1500))), []);
}

#[test]
fn late_ticks_do_not_count() {
    let just_inside = TICK_LATE;
    let just_outside = TICK_LATE + ms(1);
    let mut rig = Rig::following(3, &[ME]);
    let effects = rig.wait_late(ms(2_500), just_inside);
    assert!(effects.contains(&Effect::LookAtOwner { epoch: THREE }), "late, but not too late");

    let mut rig = Rig::following(3, &[ME]);
    let effects = rig.wait_late(ms(60_000), just_outside);
    assert_eq!(wishes(effects), [], "a minute without one tick on time");
}

#[test]
fn everybody_late_under_load_usurps_nobody() {
    // Primary and watcher starve alike: a frame a second instead of four, but hardly an own tick on time either.
    let mut rig = Rig::following(3, &[ME]);
    for _ in 0..600 {
        let effects = rig.wait_late(ms(1_000), ms(40));
        assert_eq!(claims(&effects), []);
        rig.heard = rig.now;
    }
}

#[test]
fn ticks_are_accumulated_so_that_a_loaded_machine_gets_there() {
    let mut rig = Rig::following(3, &[ME]);
    rig.wait(SUSPICION_AFTER);
    let mut effects = Vec::new();
    for round in 0..(2 * SUSPICION_TICKS) {
        let late = if round % 2 == 0 { ms(0) } else { ms(40) };
        rig.now = rig.machine.deadline().unwrap() + late;
        effects.extend(rig.feed(Input::Deadline { heard: rig.heard }));
    }
    assert!(effects.contains(&Effect::LookAtOwner { epoch: THREE }));
}

#[test]
fn the_one_that_slept_suspects_nobody_before_it_listened() {
    // The machine was suspended: everybody was silent.
    let mut rig = Rig::following(3, &[ME]);
    rig.sleep(ms(3_600_000));
    rig.heard = rig.now - ms(3_599_900);
    assert_eq!(events(&rig.feed(Input::Suspended { ms: 3_600_000 })), ["suspended"]);
    assert_eq!(wishes(rig.wait(SUSPICION_AFTER - ms(1))), []);

    // It slept within its suspicion: the ticks begin anew, an open probe says nothing.
    let mut rig = Rig::following(3, &[ME]);
    let probe = probing(&mut rig);
    rig.sleep(ms(60_000));
    let effects = rig.feed(Input::Suspended { ms: 60_000 });
    assert_eq!(wishes(effects), [Effect::Disconnect { attempt: probe }]);
    assert_eq!(wishes(rig.wait(SUSPICION_TICK * (SUSPICION_TICKS - 1))), []);
    assert!(connected(&rig.wait(SUSPICION_TICK)).is_some(), "a whole suspicion later");

    // It was stopped alone: one late tick, then what lies in its socket.
    let mut rig = Rig::following(3, &[ME]);
    rig.sleep(ms(60_000));
    let effects = rig.feed(Input::Deadline { heard: rig.heard });
    assert_eq!(events(&effects), ["suspected"]);
    let effects = rig.feed(Input::Ping(ping(&[ME])));
    assert_eq!(events(&effects), ["suspicion_cleared"]);
}

#[test]
fn one_that_was_stopped_in_its_suspicion_reads_before_it_claims() {
    // In the probe.
    let mut rig = Rig::following(3, &[ME]);
    probing(&mut rig);
    rig.sleep(ms(500) + TICK_LATE + ms(1));
    assert_eq!(rig.feed(Input::Deadline { heard: rig.heard }), [], "just outside");
    rig.sleep(ms(1));
    assert_eq!(events(&rig.feed(Input::Ping(ping(&[ME])))), ["suspicion_cleared"]);

    let mut rig = Rig::following(3, &[ME]);
    probing(&mut rig);
    rig.sleep(ms(500) + TICK_LATE);
    let effects = rig.feed(Input::Deadline { heard: rig.heard });
    assert_eq!(effects, [Effect::TestLock { epoch: THREE }], "just inside");

    // In the stagger.
    rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Held });
    rig.sleep(ms(60_000));
    assert_eq!(rig.feed(Input::Deadline { heard: rig.heard }), []);

    // Before the listing came.
    assert_eq!(rig.step(), [Effect::List]);
    rig.sleep(ms(251));
    assert_eq!(rig.feed(Input::Listed(listing(3, Lock::Held))), [], "just outside");
    assert_eq!(rig.step(), [Effect::List]);
    rig.sleep(ms(250));
    assert_eq!(claims(&rig.feed(Input::Listed(listing(3, Lock::Held)))), [Epoch(4)], "just inside");
}

#[test]
fn an_answer_to_the_probe_is_life() {
    let mut rig = Rig::following(3, &[ME]);
    let (old, probe) = (rig.attempt(), probing(&mut rig));
    let effects = rig.feed(Input::Welcomed { attempt: probe, epoch: THREE, owner: OWNER });
    assert_eq!(effects[0], Effect::Disconnect { attempt: old });
    assert_eq!(events(&effects), ["suspicion_cleared", "following"]);
    assert_eq!(rig.attempt(), probe, "the connection that is known to work");

    let mut rig = Rig::following(3, &[ME]);
    let (old, probe) = (rig.attempt(), probing(&mut rig));
    let effects = rig.feed(Input::Busy { attempt: probe, retry_ms: 100 });
    assert_eq!(events(&effects), ["suspicion_cleared"]);
    assert_eq!(rig.attempt(), old);
    // Quiet since the answer, not since before.
    assert_eq!(wishes(rig.wait(SUSPICION_AFTER - ms(1))), []);
}

#[test]
fn a_late_welcome_still_counts() {
    let mut rig = Rig::following(3, &[ME]);
    let probe = probing(&mut rig);
    rig.wait(ms(500));
    rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Held });
    let effects = rig.feed(Input::Welcomed { attempt: probe, epoch: THREE, owner: OWNER });
    assert_eq!(events(&effects), ["suspicion_cleared", "following"]);
}

#[test]
fn a_probe_that_finds_nobody_never_claims_over_a_held_lock() {
    let cases = [
        (ConnectFailure::Missing, 1),
        (ConnectFailure::Forbidden, 1),
        (ConnectFailure::Other("too many open files".into()), 1),
        (ConnectFailure::Refused, 0),
        (ConnectFailure::Closed, 0),
    ];
    for (failure, said) in cases {
        let mut rig = Rig::following(3, &[ME]);
        let probe = probing(&mut rig);
        let effects = rig.feed(Input::ConnectFailed { attempt: probe, failure: failure.clone() });
        assert_eq!(effects, [Effect::TestLock { epoch: THREE }]);
        let effects = rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Held });
        assert_eq!(events(&effects).len(), said, "{failure:?}");
        let start = rig.now;
        while rig.now.since(start) < ms(1_000) {
            // Whatever it asks, the files say the same.
            rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Held });
            assert_eq!(claims(&rig.feed(Input::Listed(listing(3, Lock::Held)))), [], "{failure:?}");
            assert_eq!(claims(&rig.step()), [], "{failure:?}");
        }
        // Still linked: a frame, and all is well.
        assert_eq!(events(&rig.feed(Input::Ping(ping(&[ME])))), ["suspicion_cleared"]);
    }
}

#[test]
fn a_free_lock_is_death() {
    let mut rig = Rig::following(3, &[ME]);
    let (old, probe) = (rig.attempt(), probing(&mut rig));
    rig.wait(ms(500));
    let effects = wishes(rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Free }));
    let dropped = [Effect::Disconnect { attempt: probe }, Effect::Disconnect { attempt: old }, Effect::List];
    assert_eq!(effects, dropped);
    let effects = rig.feed(Input::Listed(listing(3, Lock::Free)));
    assert_eq!(claims(&effects), [Epoch(4)], "the first heir does not wait");
}

#[test]
fn a_missing_claim_is_neither_dead_nor_silent() {
    let mut rig = Rig::following(3, &[ME]);
    probing(&mut rig);
    rig.wait(ms(500));
    let effects = wishes(rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Missing }));
    assert_eq!(effects.last(), Some(&Effect::List), "the files say who came after");
}

#[test]
fn eof_while_suspecting() {
    let mut rig = Rig::following(3, &[ME]);
    let (old, probe) = (rig.attempt(), probing(&mut rig));
    let effects = wishes(rig.feed(Input::Eof { attempt: old }));
    assert_eq!(effects, [Effect::Disconnect { attempt: probe }, Effect::TestLock { epoch: THREE }]);
}

#[test]
fn candidates_stagger_by_place() {
    let stagger = |heirs| {
        let mut rig = Rig::following(3, heirs);
        probing(&mut rig);
        rig.wait(ms(500));
        rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Held });
        rig.machine.deadline().unwrap().since(rig.now)
    };
    assert_eq!(stagger(&[ME, ANN]), ms(1));
    assert_eq!(stagger(&[ANN, ME]), CLAIM_STAGGER);
    let third = stagger(&[ANN, BOB]);
    assert!(third >= CLAIM_STAGGER && third <= 2 * CLAIM_STAGGER, "{third:?}");
}

#[test]
fn the_successor_is_found_through_its_kit() {
    let mut rig = Rig::following(3, &[ANN, BOB]);
    let old = rig.attempt();
    let effects = rig.wait(SUSPICION_AFTER + SUSPICION_TICK * SUSPICION_TICKS);
    let ahead = connected_to(&effects, &heir(ANN).kit.unwrap()).expect("waits in the first heir's backlog");
    let probe = connected_to(&effects, &election_support::address(3)).unwrap();
    let effects = rig.feed(Input::Welcomed { attempt: ahead, epoch: Epoch(4), owner: ANN });
    assert_eq!(effects[..2], [Effect::Disconnect { attempt: probe }, Effect::Disconnect { attempt: old }]);
    assert_eq!(rig.machine.role(), &Role::Follower { epoch: Epoch(4), owner: ANN });
}

#[test]
fn a_claim_seen_before_the_own_one_is_followed() {
    let mut rig = Rig::following(3, &[ANN, ME]);
    let old = rig.attempt();
    probing_with_ahead(&mut rig);
    rig.wait(ms(500));
    rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Held });
    rig.step();
    let effects = wishes(rig.feed(Input::Listed(listing(4, Lock::Held))));
    assert!(effects.contains(&Effect::Disconnect { attempt: old }));
    let target = Target { address: election_support::address(4), epoch: Some(Epoch(4)) };
    assert!(effects.iter().any(|e| matches!(e, Effect::Connect { target: t, .. } if *t == target)));
}

fn probing_with_ahead(rig: &mut Rig) {
    let effects = rig.wait(SUSPICION_AFTER + SUSPICION_TICK * SUSPICION_TICKS);
    assert_eq!(effects.last(), Some(&Effect::LookAtOwner { epoch: THREE }));
}

/// Usurps the living owner of 3, is fenced by a successor, and follows that one's reign `epoch`.
fn after_usurping(epoch: u64) -> Rig {
    let mut rig = Rig::following(3, &[ME]);
    probing(&mut rig);
    assert_eq!(claiming(&mut rig), [Epoch(4)]);
    rig.feed(Input::Claimed { epoch: Epoch(4), result: ClaimResult::Won });
    rig.feed(Input::Fenced { epoch: Epoch(4), why: "claim 5 is there".into() });
    let effects = rig.feed(Input::Listed(listing(epoch, Lock::Held)));
    let attempt = connected(&effects).unwrap();
    rig.feed(Input::Welcomed { attempt, epoch: Epoch(epoch), owner: OWNER });
    rig.feed(Input::Ping(ping(&[ME])));
    rig.heard = rig.now;
    rig
}

#[test]
fn claims_over_the_living_are_held_back_and_suspicion_doubles() {
    let mut rig = after_usurping(5);
    let start = rig.now;
    let effects = rig.wait(SUSPICION_AFTER + SUSPICION_TICK * (2 * SUSPICION_TICKS));
    assert!(effects.contains(&Effect::LookAtOwner { epoch: Epoch(5) }), "44 ticks");
    assert!(rig.now.since(start) >= ms(2_500));
    // The first claim was 3 ms before `start`; until 5 s passed there is no second.
    let mut claimed = Vec::new();
    while claimed.is_empty() {
        let effects = rig.step();
        let input = match wishes(effects).last() {
            Some(Effect::TestLock { epoch }) => Input::LockTested { epoch: *epoch, lock: Lock::Held },
            Some(Effect::List) => Input::Listed(listing(5, Lock::Held)),
            _ => continue,
        };
        claimed = claims(&rig.feed(input));
    }
    let waited = rig.now.since(start);
    assert!(waited >= USURP_INTERVAL - ms(10) && waited <= USURP_INTERVAL + ms(1_100), "{waited:?}");
}

#[test]
fn a_stopped_owner_spares_both_penalties() {
    let mut rig = Rig::following(3, &[ME]);
    probing(&mut rig);
    rig.feed(Input::OwnerStopped(true));
    assert_eq!(claiming(&mut rig), [Epoch(4)]);
    rig.feed(Input::Claimed { epoch: Epoch(4), result: ClaimResult::Won });
    rig.feed(Input::Fenced { epoch: Epoch(4), why: "claim 5 is there".into() });
    let effects = rig.feed(Input::Listed(listing(3, Lock::Held)));
    let attempt = connected(&effects).unwrap();
    rig.feed(Input::Welcomed { attempt, epoch: THREE, owner: OWNER });
    rig.feed(Input::Ping(ping(&[ME])));
    rig.heard = rig.now;
    probing(&mut rig);
    assert_eq!(claiming(&mut rig), [Epoch(4)], "after 22 ticks, and within 5 s");
}

#[test]
fn observers_watch_and_never_claim() {
    let mut rig = Rig::following_as(Rank::Observer, 3, &[]);
    let start = rig.now;
    let mut listings = 0;
    while rig.now.since(start) < ms(20_000) {
        let effects = rig.step();
        assert_eq!(claims(&effects), []);
        if effects.contains(&Effect::TestLock { epoch: THREE }) {
            let effects = rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Held });
            assert!(effects.contains(&Effect::List), "perhaps somebody else did");
            assert_eq!(wishes(rig.feed(Input::Listed(listing(3, Lock::Held)))), []);
            listings += 1;
        }
    }
    assert!(listings > 5);
    let effects = wishes(rig.feed(Input::Listed(listing(4, Lock::Held))));
    assert!(connected(&effects).is_some(), "somebody did: {effects:?}");
}

#[test]
fn a_newcomer_at_a_frozen_owner() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(listing(3, Lock::Held)));
    assert_eq!(events(&rig.wait(ms(500))), ["suspected"]);
    // While it counts, it looks whether somebody replaced the owner.
    let effects = wishes(rig.wait(ms(300)));
    assert_eq!(effects, [Effect::List]);
    assert_eq!(rig.feed(Input::Listed(listing(3, Lock::Held))), []);
    // The owner was only late: its Welcome to the first attempt counts.
    let effects = rig.feed(Input::Welcomed { attempt: 1, epoch: THREE, owner: OWNER });
    assert_eq!(events(&effects), ["suspicion_cleared", "following"]);

    let mut rig = Rig::started();
    rig.feed(Input::Listed(listing(3, Lock::Held)));
    rig.wait(ms(800));
    let effects = wishes(rig.feed(Input::Listed(listing(4, Lock::Held))));
    assert_eq!(effects[0], Effect::Disconnect { attempt: 1 });
    assert_eq!(connected(&effects), Some(2), "somebody did");
}

#[test]
fn a_claim_that_is_too_new_is_found_before_claiming() {
    let mut rig = Rig::following(3, &[ME]);
    probing(&mut rig);
    rig.wait(ms(500));
    rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Held });
    rig.step();
    let effects = rig.feed(Input::Listed(Listing { too_new: Some((9, 8)), ..listing(3, Lock::Held) }));
    assert_eq!(claims(&effects), []);
    // A store above the living owner's epoch: its fence would not see the claim.
    let mut rig = Rig::following(3, &[ME]);
    probing(&mut rig);
    rig.wait(ms(500));
    rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Held });
    rig.step();
    let effects = rig.feed(Input::Listed(Listing { highest_complete: Epoch(7), ..listing(3, Lock::Held) }));
    assert_eq!(claims(&effects), []);
}
