//! Following: what happens when the owner ends, moves, or hands over; and the kit of an heir.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod election_support;

use std::time::Duration;

use election_support::{
    ANN, BOB, HEIR_PREPARES, ME, OWNER, Rig, address, claims, connected, connected_to, events, heir, listing,
    ms, ping, wishes,
};
use paceline_proto::{
    election::{ClaimResult, ConnectFailure, Effect, Input, Listing, Lock, Role, Target},
    event::Cause,
    id::{Epoch, Mark, Offset, SessionId},
    limits::{EOF_FOLLOWER_WAIT, EOF_LOCK_WAIT},
    message::{Heir, Ping, Rank},
};

const THREE: Epoch = Epoch(3);

fn kit_of(session: SessionId) -> paceline_proto::message::KitAddress {
    heir(session).kit.unwrap()
}

fn free(rig: &mut Rig) -> Vec<Effect> {
    rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Free })
}

#[test]
fn the_first_heir_claims_at_once() {
    let mut rig = Rig::following(3, &[ME, ANN]);
    let attempt = rig.attempt();
    assert_eq!(wishes(rig.feed(Input::Eof { attempt })), [Effect::TestLock { epoch: THREE }]);
    assert_eq!(wishes(free(&mut rig)), [Effect::Claim { epoch: Epoch(4) }]);
    let effects = rig.feed(Input::Claimed { epoch: Epoch(4), result: ClaimResult::Won });
    let members = Some(ping(&[]).members);
    assert_eq!(
        wishes(effects),
        [Effect::Begin { epoch: Epoch(4), members, cause: Cause::Dead }, Effect::Adopt { epoch: Epoch(4) }]
    );
    assert_eq!(rig.machine.role(), &Role::Primary { epoch: Epoch(4), adopted: false });
}

#[test]
fn the_lock_may_be_released_a_little_later_than_eof() {
    let mut rig = Rig::following(3, &[ME]);
    let attempt = rig.attempt();
    rig.feed(Input::Eof { attempt });
    let mut waits = Vec::new();
    for _ in 0..4 {
        assert_eq!(rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Held }), []);
        let start = rig.now;
        assert_eq!(rig.step(), [Effect::TestLock { epoch: THREE }]);
        waits.push(rig.now.since(start));
    }
    let micros = |n| Duration::from_micros(n);
    assert_eq!(waits, [micros(200), micros(400), micros(800), micros(1000)]);
    assert_eq!(claims(&free(&mut rig)), [Epoch(4)]);
}

#[test]
fn eof_with_the_lock_held_is_looked_into_after_a_while() {
    // The owner dropped the link, or closed it as a zombie: it lives.
    let mut rig = Rig::following(3, &[ME]);
    let attempt = rig.attempt();
    let start = rig.now;
    rig.feed(Input::Eof { attempt });
    loop {
        let effects = wishes(rig.feed(Input::LockTested { epoch: THREE, lock: Lock::Held }));
        if effects == [Effect::List] {
            break;
        }
        assert_eq!(effects, []);
        rig.step();
    }
    assert_eq!(rig.now.since(start), EOF_LOCK_WAIT);
    let effects = rig.feed(Input::Listed(listing(3, Lock::Held)));
    let attempt = connected(&effects).expect("joins again");
    rig.feed(Input::Welcomed { attempt, epoch: THREE, owner: OWNER });
    assert_eq!(rig.machine.role(), &Role::Follower { epoch: THREE, owner: OWNER });
}

#[test]
fn the_second_heir_waits_in_the_backlog_of_the_first() {
    let mut rig = Rig::following(3, &[ANN, ME]);
    let attempt = rig.attempt();
    let effects = wishes(rig.feed(Input::Eof { attempt }));
    let target = Target { address: kit_of(ANN), epoch: None };
    assert_eq!(effects, [Effect::Connect { attempt: 2, target }]);
    // The first one is quicker.
    let effects = rig.feed(Input::Welcomed { attempt: 2, epoch: Epoch(4), owner: ANN });
    assert_eq!(wishes(effects), [], "no heir of the new owner, so its claim is not looked at");
    assert_eq!(rig.machine.role(), &Role::Follower { epoch: Epoch(4), owner: ANN });

    // The first one is dead as well.
    let mut rig = Rig::following(3, &[ANN, ME]);
    let attempt = rig.attempt();
    rig.feed(Input::Eof { attempt });
    assert_eq!(rig.wait(ms(4)), []);
    assert_eq!(rig.wait(ms(1)), [Effect::TestLock { epoch: THREE }]);
    assert_eq!(claims(&free(&mut rig)), [Epoch(4)]);
    let effects = wishes(rig.feed(Input::Claimed { epoch: Epoch(4), result: ClaimResult::Won }));
    assert_eq!(effects[0], Effect::Disconnect { attempt: 2 });
    assert!(matches!(effects[1], Effect::Begin { .. }));
}

#[test]
fn a_welcome_during_the_own_claim_is_followed_once_the_claim_is_lost() {
    let mut rig = Rig::following(3, &[ANN, ME]);
    let attempt = rig.attempt();
    rig.feed(Input::Eof { attempt });
    rig.step();
    assert_eq!(claims(&free(&mut rig)), [Epoch(4)]);
    assert_eq!(rig.feed(Input::Welcomed { attempt: 2, epoch: Epoch(4), owner: ANN }), []);
    let effects = rig.feed(Input::Claimed { epoch: Epoch(4), result: ClaimResult::Exists });
    assert_eq!(events(&effects), ["claim_lost", "following"]);
    assert_eq!(rig.attempt(), 2);
}

#[test]
fn heirs_that_hold_everything_go_before_those_that_do_not() {
    let mut rig = Rig::following(3, &[]);
    let heirs = vec![Heir { current: false, ..heir(ANN) }, heir(ME)];
    rig.feed(Input::Ping(Ping { heirs, ..ping(&[]) }));
    let attempt = rig.attempt();
    assert_eq!(wishes(rig.feed(Input::Eof { attempt })), [Effect::TestLock { epoch: THREE }]);
}

#[test]
fn others_wait_in_the_backlog_and_look_themselves_a_little_later() {
    for rank in [Rank::Candidate, Rank::Observer] {
        let mut rig = Rig::following_as(rank, 3, &[ANN, BOB]);
        let attempt = rig.attempt();
        let effects = wishes(rig.feed(Input::Eof { attempt }));
        assert_eq!(connected_to(&effects, &kit_of(ANN)), Some(2));
        assert_eq!(rig.wait(EOF_FOLLOWER_WAIT - ms(1)), []);
        assert_eq!(rig.wait(ms(1)), [Effect::List]);
        // Nothing is claimed yet: the attempt stays.
        let effects = rig.feed(Input::Listed(listing(3, Lock::Free)));
        assert_eq!(wishes(effects), []);
        let effects = wishes(rig.feed(Input::Welcomed { attempt: 2, epoch: Epoch(4), owner: ANN }));
        assert_eq!(effects, [], "{rank:?}");
        assert_eq!((rig.machine.epoch(), rig.attempt()), (Epoch(4), 2));
    }
}

#[test]
fn the_attempt_ahead_is_the_one_when_its_claim_shows() {
    let mut rig = Rig::following(3, &[ANN, BOB]);
    let attempt = rig.attempt();
    rig.feed(Input::Eof { attempt });
    rig.step();
    let mut claim = election_support::claim(4, Lock::Held);
    claim.address = Some(kit_of(ANN));
    let listed = Listing { claim: Some(claim), ..listing(4, Lock::Held) };
    assert_eq!(rig.feed(Input::Listed(listed)), [], "it waits there already");
    rig.feed(Input::Welcomed { attempt: 2, epoch: Epoch(4), owner: ANN });
    assert_eq!(rig.attempt(), 2);
}

#[test]
fn the_attempt_ahead_is_dropped_when_a_higher_claim_points_elsewhere() {
    let mut rig = Rig::following(3, &[ANN, BOB]);
    let attempt = rig.attempt();
    rig.feed(Input::Eof { attempt });
    rig.step();
    let effects = rig.feed(Input::Listed(listing(4, Lock::Held)));
    assert_eq!(effects[0], Effect::Disconnect { attempt: 2 });
    assert_eq!(connected_to(&effects, &address(4)), Some(3));
}

#[test]
fn whichever_welcomes_first_wins_and_the_other_is_dropped() {
    // The old owner only dropped the link: two attempts are open.
    let open = || {
        let mut rig = Rig::following(3, &[ANN, BOB]);
        let attempt = rig.attempt();
        rig.feed(Input::Eof { attempt });
        rig.step();
        let effects = rig.feed(Input::Listed(listing(3, Lock::Held)));
        assert_eq!(connected(&effects), Some(3));
        rig
    };
    let mut rig = open();
    let effects = rig.feed(Input::Welcomed { attempt: 3, epoch: THREE, owner: OWNER });
    assert_eq!(effects[0], Effect::Disconnect { attempt: 2 });
    assert_eq!(rig.attempt(), 3);
    // The dropped one was welcomed before the shell heard of it: whatever the link is now, begin again.
    let effects = rig.feed(Input::Welcomed { attempt: 2, epoch: Epoch(4), owner: ANN });
    let both = [Effect::Disconnect { attempt: 2 }, Effect::Disconnect { attempt: 3 }, Effect::List];
    assert_eq!(wishes(effects), both);

    let mut rig = open();
    let effects = rig.feed(Input::Welcomed { attempt: 2, epoch: Epoch(4), owner: ANN });
    assert_eq!(effects[0], Effect::Disconnect { attempt: 3 });
    assert_eq!(rig.attempt(), 2);
}

#[test]
fn a_failed_attempt_ahead_is_forgotten() {
    let mut rig = Rig::following(3, &[ANN]);
    let attempt = rig.attempt();
    rig.feed(Input::Eof { attempt });
    rig.feed(Input::ConnectFailed { attempt: 2, failure: ConnectFailure::Missing });
    assert_eq!(wishes(rig.step()), [Effect::List]);
    assert_eq!(rig.feed(Input::Welcomed { attempt: 2, epoch: Epoch(4), owner: ANN }), []);
}

#[test]
fn an_owner_that_accepts_and_ends_at_once_is_asked_less_and_less() {
    let mut rig = Rig::started();
    let mut waits = Vec::new();
    for _ in 0..8 {
        let effects = rig.feed(Input::Listed(listing(3, Lock::Held)));
        let attempt = connected(&effects).unwrap();
        rig.feed(Input::Welcomed { attempt, epoch: THREE, owner: OWNER });
        rig.feed(Input::Eof { attempt });
        let start = rig.now;
        rig.step();
        waits.push(rig.now.since(start));
    }
    assert_eq!((waits[0], waits[7]), (ms(10), ms(1000)), "{waits:?}");
}

#[test]
fn an_owner_that_closes_is_as_good_as_dead() {
    let mut rig = Rig::following(3, &[ME]);
    let attempt = rig.attempt();
    let effects = wishes(rig.feed(Input::OwnerClosed));
    assert_eq!(effects, [Effect::Disconnect { attempt }, Effect::TestLock { epoch: THREE }]);
    assert_eq!(claims(&free(&mut rig)), [Epoch(4)]);
}

#[test]
fn moved_is_followed_at_once() {
    let mut rig = Rig::following(3, &[]);
    let attempt = rig.attempt();
    let effects = rig.feed(Input::Moved { epoch: Epoch(4), to: kit_of(ANN) });
    let target = Target { address: kit_of(ANN), epoch: Some(Epoch(4)) };
    assert_eq!(wishes(effects), [Effect::Disconnect { attempt }, Effect::Connect { attempt: 2, target }]);
    let effects = wishes(rig.feed(Input::Welcomed { attempt: 2, epoch: Epoch(4), owner: ANN }));
    assert_eq!(effects, []);

    // It died at once: look into it.
    let mut rig = Rig::following(3, &[]);
    rig.feed(Input::Moved { epoch: Epoch(4), to: kit_of(ANN) });
    let effects = rig.feed(Input::ConnectFailed { attempt: 2, failure: ConnectFailure::Refused });
    assert_eq!(wishes(effects), [Effect::TestLock { epoch: Epoch(4) }]);
    rig.feed(Input::LockTested { epoch: Epoch(4), lock: Lock::Free });
    assert_eq!(wishes(rig.step()), [Effect::List]);

    // A stale word about a former reign is ignored.
    let mut rig = Rig::following(3, &[]);
    assert_eq!(rig.feed(Input::Moved { epoch: THREE, to: kit_of(ANN) }), []);
}

#[test]
fn an_heir_claims_when_told_and_says_so() {
    let mut rig = Rig::following(3, &[ME]);
    let old = rig.attempt();
    let last = Mark::new(THREE, Offset(17));
    assert_eq!(wishes(rig.feed(Input::Go { last })), [Effect::Claim { epoch: Epoch(4) }]);
    let effects = wishes(rig.feed(Input::Claimed { epoch: Epoch(4), result: ClaimResult::Won }));
    let members = Some(ping(&[]).members);
    assert_eq!(
        effects,
        [
            Effect::Begin { epoch: Epoch(4), members, cause: Cause::HandedOver },
            Effect::SendTook { epoch: Epoch(4) },
            Effect::Adopt { epoch: Epoch(4) },
        ]
    );
    // The old connection carries Took, so it is left to its owner to end, for a while.
    assert_eq!(rig.wait(ms(999)), []);
    let woken = [Effect::CheckFence { epoch: Epoch(4) }, Effect::Disconnect { attempt: old }];
    assert_eq!(rig.wait(ms(1)), woken);
}

#[test]
fn a_go_that_cannot_be_met_leaves_all_as_it_was() {
    let mut rig = Rig::following(3, &[ME]);
    rig.feed(Input::Go { last: Mark::ZERO });
    let result = ClaimResult::Failed("no space left on device".into());
    let effects = rig.feed(Input::Claimed { epoch: Epoch(4), result });
    assert_eq!(events(&effects), ["claim_failed"]);
    assert_eq!(wishes(effects), []);
    assert_eq!(rig.machine.role(), &Role::Follower { epoch: THREE, owner: OWNER });

    let mut observer = Rig::following_as(Rank::Observer, 3, &[ME]);
    assert_eq!(observer.feed(Input::Go { last: Mark::ZERO }), []);
}

#[test]
fn an_heir_makes_a_kit_and_drops_it_a_while_after_it_is_one_no_more() {
    let without = |session| Heir { kit: None, ..heir(session) };
    let asks = |heir| Input::Ping(Ping { heirs: vec![heir], ..ping(&[]) });
    let mut rig = Rig::following(3, &[]);
    assert_eq!(rig.feed(Input::Heir(true)), []);
    assert_eq!(rig.wait(HEIR_PREPARES - ms(1)), [], "the group has better use for the processors");
    assert_eq!(rig.wait(ms(1)), [Effect::MakeKit]);
    assert_eq!(rig.feed(asks(without(ME))), [], "it is being made");
    assert_eq!(rig.feed(Input::KitMade(Ok(address(9)))), []);
    assert_eq!(rig.feed(asks(without(ME))), [], "the owner has not heard of it yet");
    rig.sleep(ms(1_000));
    assert_eq!(rig.feed(asks(without(ME))), [Effect::MakeKit], "it should have: tell it again");
    rig.feed(Input::KitMade(Ok(address(9))));
    assert_eq!(rig.feed(asks(heir(ME))), []);

    assert_eq!(rig.feed(asks(heir(ANN))), []);
    rig.sleep(ms(9_999));
    assert_eq!(rig.feed(asks(heir(ANN))), []);
    rig.sleep(ms(1));
    assert_eq!(rig.feed(asks(heir(ANN))), [Effect::DropKit]);
    assert_eq!(rig.feed(asks(heir(ANN))), []);
}

#[test]
fn a_kit_that_cannot_be_made_is_tried_again() {
    let mut rig = Rig::following(3, &[]);
    rig.feed(Input::Heir(true));
    rig.wait(HEIR_PREPARES);
    let full = || Input::KitMade(Err("no space left on device".into()));
    assert_eq!(events(&rig.feed(full())), ["claim_failed"]);
    assert_eq!(rig.feed(Input::Heir(true)), []);
    rig.sleep(ms(1_000));
    assert_eq!(rig.feed(Input::Heir(true)), [Effect::MakeKit]);
    assert_eq!(events(&rig.feed(full())), Vec::<&str>::new(), "said once");
}

#[test]
fn the_kit_of_a_lost_claim_serves_the_next_appointment() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(Listing::default()));
    rig.feed(Input::Claimed { epoch: Epoch(1), result: ClaimResult::Exists });
    let effects = rig.feed(Input::Listed(listing(1, Lock::Held)));
    let attempt = connected(&effects).unwrap();
    rig.feed(Input::Welcomed { attempt, epoch: Epoch(1), owner: OWNER });
    rig.feed(Input::Heir(true));
    assert_eq!(rig.wait(HEIR_PREPARES), [Effect::MakeKit], "the shell answers with the one it has");
}

#[test]
fn observers_make_no_kit() {
    let mut rig = Rig::following_as(Rank::Observer, 3, &[ME]);
    assert_eq!(rig.feed(Input::Heir(true)), []);
}

/// A follower whose owner's claim was never looked at.
fn moved() -> Rig {
    let mut rig = Rig::following(3, &[]);
    rig.feed(Input::Moved { epoch: Epoch(4), to: kit_of(ANN) });
    rig.feed(Input::Welcomed { attempt: 2, epoch: Epoch(4), owner: ANN });
    rig
}

#[test]
fn a_link_whose_claim_was_never_looked_at_is_looked_at_before_claiming() {
    let mut rig = moved();
    assert_eq!(rig.feed(Input::Ping(ping(&[ME]))), []);
    assert_eq!(rig.wait(HEIR_PREPARES), [Effect::List]);
    assert_eq!(rig.feed(Input::Ping(ping(&[ME]))), [], "the answer is under way");
    // It was lost: it is asked for again.
    let mut asked = Vec::new();
    for _ in 0..10 {
        asked.extend(rig.wait(ms(200)));
        rig.heard = rig.now;
        rig.feed(Input::Ping(ping(&[ME])));
    }
    assert_eq!(asked, [Effect::List]);
    let attempt = rig.attempt();
    assert_eq!(wishes(rig.feed(Input::Eof { attempt })), [Effect::List]);
    assert_eq!(claims(&rig.feed(Input::Listed(listing(4, Lock::Free)))), [Epoch(5)]);
}

#[test]
fn an_heir_makes_its_kit_when_it_knows_that_it_may_claim() {
    let looking = || {
        let mut rig = moved();
        rig.feed(Input::Heir(true));
        assert_eq!(rig.wait(HEIR_PREPARES), [Effect::List]);
        rig
    };
    assert_eq!(looking().feed(Input::Listed(listing(4, Lock::Held))), [Effect::MakeKit]);

    // A newer build wrote the store: this session never claims over it, and shows no kit.
    let mut rig = looking();
    let listed = Listing { too_new: Some((9, 9)), ..listing(4, Lock::Held) };
    assert_eq!(rig.feed(Input::Listed(listed)), []);
    assert_eq!(rig.feed(Input::Ping(ping(&[ME]))), []);

    // It is an heir no more when the answer comes.
    let mut rig = looking();
    rig.feed(Input::Heir(false));
    assert_eq!(rig.feed(Input::Listed(listing(4, Lock::Held))), []);

    // Appointed and dismissed at once, it does nothing.
    let mut rig = moved();
    rig.feed(Input::Heir(true));
    rig.feed(Input::Heir(false));
    assert_eq!(rig.wait(HEIR_PREPARES), []);
}

#[test]
fn leaving_as_follower() {
    let mut rig = Rig::following(3, &[ME]);
    rig.feed(Input::KitMade(Ok(address(9))));
    assert_eq!(wishes(rig.feed(Input::Leave)), [Effect::DropKit, Effect::Left]);
    assert_eq!(rig.feed(Input::KitMade(Ok(address(9)))), [Effect::DropKit], "made too late");
}
