//! Probing: what is claimed over, what is never claimed over, and who goes first.

mod election_support;

use election_support::{
    ANN, ME, OWNER, Rig, address, claim, claims, connected, events, listing, ms, ping, wishes,
};
use paceline_proto::{
    election::{ClaimResult, ClaimSeen, ConnectFailure, Effect, Input, Listing, Lock, Role, Target},
    event::{Cause, Event},
    id::Epoch,
    limits::{CLAIM_STAGGER, EOF_LOCK_WAIT, PROBE_TIMEOUT},
    message::{Rank, Refusal},
    program::ProtoRange,
};

#[test]
fn the_next_epoch_is_one_above_claims_and_stores() {
    let cases: [(Option<u64>, u64, u64); 5] =
        [(None, 0, 1), (None, 4, 5), (Some(1), 0, 2), (Some(7), 7, 8), (Some(7), 9, 10)];
    for (highest, complete, next) in cases {
        let mut rig = Rig::started();
        let claim = highest.map(|epoch| claim(epoch, Lock::Free));
        let effects =
            rig.feed(Input::Listed(Listing { claim, highest_complete: Epoch(complete), too_new: None }));
        assert_eq!(claims(&effects), [Epoch(next)], "claim {highest:?}, store {complete}");
        assert_eq!(rig.machine.role(), &Role::Candidate { epoch: Epoch(next) });
    }
}

#[test]
fn power_loss_keeps_claim_1_and_database_2() {
    // The name of claim 2 was lost: claiming 2 again would make two databases complete for one epoch.
    let mut rig = Rig::started();
    let claim = Some(claim(1, Lock::Free));
    let effects = rig.feed(Input::Listed(Listing { claim, highest_complete: Epoch(2), too_new: None }));
    assert_eq!(claims(&effects), [Epoch(3)]);
}

#[test]
fn power_loss_cut_the_claim_short() {
    let short = |lock| ClaimSeen { address: None, owner: None, ..claim(4, lock) };
    let listed = |lock| Input::Listed(Listing { claim: Some(short(lock)), ..listing(4, lock) });

    let mut rig = Rig::started();
    assert_eq!(claims(&rig.feed(listed(Lock::Free))), [Epoch(5)], "owner unknown and dead: claimed over");

    let mut rig = Rig::started();
    let effects = rig.feed(listed(Lock::Held));
    assert_eq!(events(&effects), ["owner_unreachable"]);
    assert!(rig.blocked());
    assert_eq!(wishes(rig.wait(ms(20))), [Effect::List], "looked at again, never claimed over");
    assert_eq!(events(&rig.feed(listed(Lock::Held))), Vec::<&str>::new(), "a lasting trouble is said once");
}

#[test]
fn sticky_primary_a_newcomer_never_displaces() {
    for rank in [Rank::Observer, Rank::Candidate, Rank::Preferred] {
        let mut rig = Rig::started_as(rank);
        let effects = rig.feed(Input::Listed(listing(3, Lock::Held)));
        let target = Target { address: address(3), epoch: Some(Epoch(3)) };
        assert_eq!(effects, [Effect::Connect { attempt: 1, target }]);
        let effects = rig.feed(Input::Welcomed { attempt: 1, epoch: Epoch(3), owner: OWNER });
        assert_eq!(
            effects,
            [
                Effect::Role(Role::Follower { epoch: Epoch(3), owner: OWNER }),
                Effect::Event(Event::Following { epoch: Epoch(3), owner: OWNER }),
            ]
        );
        assert_eq!((rig.machine.epoch(), rig.machine.attempt()), (Epoch(3), Some(1)));
        for _ in 0..100 {
            rig.heard = rig.now;
            rig.sleep(ms(250));
            let effects = rig.feed(Input::Ping(ping(&[])));
            assert_eq!(effects, [], "an idle follower wishes nothing");
        }
    }
}

#[test]
fn busy_is_alive() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(listing(3, Lock::Held)));
    assert_eq!(rig.feed(Input::Busy { attempt: 1, retry_ms: 80 }), []);
    assert_eq!(wishes(rig.wait(ms(79))), []);
    assert_eq!(wishes(rig.wait(ms(1))), [Effect::List]);
    // However long it wishes, this session looks again.
    let effects = rig.feed(Input::Listed(listing(3, Lock::Held)));
    let attempt = connected(&effects).unwrap();
    rig.feed(Input::Busy { attempt, retry_ms: u32::MAX });
    assert_eq!(wishes(rig.wait(ms(10_000))), [Effect::List]);
}

#[test]
fn nobody_listens_and_the_lock_tells() {
    for failure in [ConnectFailure::Refused, ConnectFailure::Closed, ConnectFailure::Missing] {
        let mut rig = Rig::started();
        rig.feed(Input::Listed(listing(3, Lock::Held)));
        let effects = rig.feed(Input::ConnectFailed { attempt: 1, failure: failure.clone() });
        assert_eq!(effects, [Effect::TestLock { epoch: Epoch(3) }], "{failure:?}");
        let effects = rig.feed(Input::LockTested { epoch: Epoch(3), lock: Lock::Free });
        assert_eq!(claims(&effects), [Epoch(4)], "{failure:?}");
        let effects = rig.feed(Input::Claimed { epoch: Epoch(4), result: ClaimResult::Won });
        let begin = Effect::Begin { epoch: Epoch(4), members: None, cause: Cause::Dead };
        assert_eq!(effects[..2], [begin, Effect::Adopt { epoch: Epoch(4) }]);
    }
}

#[test]
fn unreachable_is_never_taken_for_dead() {
    let cases = [
        ConnectFailure::Missing,
        ConnectFailure::Forbidden,
        ConnectFailure::Other("too many open files".into()),
    ];
    for failure in cases {
        let mut rig = Rig::started();
        for round in 0..50 {
            let effects = rig.feed(Input::Listed(listing(3, Lock::Held)));
            let attempt = connected(&effects).unwrap();
            rig.feed(Input::ConnectFailed { attempt, failure: failure.clone() });
            let effects = rig.feed(Input::LockTested { epoch: Epoch(3), lock: Lock::Held });
            let said = if round == 0 { vec!["owner_unreachable"] } else { vec![] };
            assert_eq!(events(&effects), said, "{failure:?}");
            assert!(rig.blocked());
            assert_eq!(wishes(rig.step()), [Effect::List]);
        }
        // It comes back.
        let effects = rig.feed(Input::Listed(listing(3, Lock::Held)));
        let attempt = connected(&effects).unwrap();
        rig.feed(Input::Welcomed { attempt, epoch: Epoch(3), owner: OWNER });
        assert!(matches!(rig.machine.role(), Role::Follower { .. }));
    }
}

#[test]
fn refused_with_the_lock_held_is_retried_without_a_word() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(listing(3, Lock::Held)));
    rig.feed(Input::ConnectFailed { attempt: 1, failure: ConnectFailure::Refused });
    // Perhaps it is dying: the lock is tested in small steps for a while.
    let start = rig.now;
    let mut tests = 0;
    loop {
        assert_eq!(rig.feed(Input::LockTested { epoch: Epoch(3), lock: Lock::Held }), []);
        let effects = rig.step();
        if effects == [Effect::List] {
            break;
        }
        assert_eq!(effects, [Effect::TestLock { epoch: Epoch(3) }]);
        assert!(rig.now.since(start) <= EOF_LOCK_WAIT);
        tests += 1;
    }
    assert!((15..=25).contains(&tests), "{tests} tests");
    assert_eq!(rig.machine.role(), &Role::Joining);
}

#[test]
fn retries_back_off_to_a_second() {
    let mut rig = Rig::started();
    let mut waits = Vec::new();
    for _ in 0..12 {
        let start = rig.now;
        rig.feed(Input::Listed(Listing { claim: Some(claim(3, Lock::Missing)), ..Listing::default() }));
        assert_eq!(rig.step(), [Effect::List]);
        waits.push(rig.now.since(start));
    }
    assert!(waits[0] <= ms(10) && waits[0] >= ms(5), "{waits:?}");
    assert!(waits[11] <= ms(1000) && waits[11] >= ms(500), "{waits:?}");
}

#[test]
fn a_missing_claim_is_not_a_free_lock() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(listing(3, Lock::Held)));
    rig.feed(Input::ConnectFailed { attempt: 1, failure: ConnectFailure::Refused });
    let effects = rig.feed(Input::LockTested { epoch: Epoch(3), lock: Lock::Missing });
    assert_eq!(effects, []);
    assert_eq!(rig.step(), [Effect::List]);
}

#[test]
fn store_too_new_is_never_claimed_over_but_followed() {
    let unreadable = |lock| Listing {
        claim: Some(ClaimSeen { readable: false, ..claim(3, lock) }),
        highest_complete: Epoch(3),
        too_new: None,
    };
    let newer = |lock| Listing { too_new: Some((9, 8)), ..listing(3, lock) };
    let cases: [fn(Lock) -> Listing; 2] = [unreadable, newer];
    for listing in cases {
        let mut rig = Rig::started();
        for _ in 0..20 {
            let effects = rig.feed(Input::Listed(listing(Lock::Free)));
            assert_eq!(claims(&effects), []);
            assert!(rig.blocked());
            assert_eq!(rig.step(), [Effect::List]);
        }
        let effects = rig.feed(Input::Listed(listing(Lock::Held)));
        let attempt = connected(&effects).expect("still tries to join");
        rig.feed(Input::Welcomed { attempt, epoch: Epoch(3), owner: OWNER });
        assert!(matches!(rig.machine.role(), Role::Follower { .. }));
        // Heir or not, it does not claim when the owner dies, nor when it is told to.
        rig.feed(Input::Ping(ping(&[ME])));
        assert_eq!(claims(&rig.feed(Input::Go { last: paceline_proto::id::Mark::ZERO })), []);
        let attempt = rig.attempt();
        assert_eq!(claims(&rig.feed(Input::Eof { attempt })), []);
        assert_eq!(wishes(rig.step()), [Effect::List]);
        assert_eq!(claims(&rig.feed(Input::Listed(listing(Lock::Free)))), []);
    }
    let mut rig = Rig::started();
    let effects = rig.feed(Input::Listed(newer(Lock::Free)));
    assert!(election_support::has_event(&effects, &Event::StoreTooNew { schema: 9, min_reader: 8 }));
}

#[test]
fn an_observer_waits_until_somebody_leads() {
    let mut rig = Rig::started_as(Rank::Observer);
    for _ in 0..20 {
        assert_eq!(rig.feed(Input::Listed(Listing::default())), []);
        assert_eq!(rig.step(), [Effect::List]);
        assert_eq!(rig.feed(Input::Listed(listing(2, Lock::Free))), []);
        assert_eq!(rig.step(), [Effect::List]);
    }
    assert_eq!(rig.machine.role(), &Role::Joining);
}

#[test]
fn silence_of_half_a_second_is_suspicion() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(listing(3, Lock::Held)));
    assert_eq!(rig.wait(PROBE_TIMEOUT - ms(1)), []);
    assert_eq!(events(&rig.wait(ms(1))), ["suspected"]);

    let mut rig = Rig::started();
    rig.feed(Input::Listed(listing(3, Lock::Held)));
    let effects = rig.feed(Input::ConnectFailed { attempt: 1, failure: ConnectFailure::Silent });
    assert_eq!(events(&effects), ["suspected"], "a full backlog");
}

#[test]
fn an_owner_that_refuses_is_alive() {
    let version = Refusal::Version { owner: ProtoRange { min: 7, max: 9 }, build: "9.0".into(), pid: 42 };
    for refusal in [version, Refusal::Full, Refusal::Proof, Refusal::Protocol("too long".into())] {
        let mut rig = Rig::started();
        rig.feed(Input::Listed(listing(3, Lock::Held)));
        let effects = rig.feed(Input::Refused { attempt: 1, refusal: refusal.clone() });
        let is_version = matches!(refusal, Refusal::Version { .. });
        let kind = if is_version { "version_refused" } else { "join_refused" };
        assert_eq!(events(&effects), [kind], "{refusal:?}");
        assert!(rig.blocked());
        assert_eq!(rig.step(), [Effect::List]);
    }
}

#[test]
fn a_listing_that_failed_says_nothing() {
    let mut rig = Rig::started();
    let effects = rig.feed(Input::ListFailed { why: "too many open files".into() });
    assert_eq!(claims(&effects), []);
    assert!(rig.blocked());
    assert_eq!(rig.step(), [Effect::List]);
}

#[test]
fn a_listing_that_never_comes_is_asked_for_again() {
    let mut rig = Rig::started();
    assert_eq!(rig.wait(ms(1_999)), []);
    assert_eq!(rig.wait(ms(1)), [Effect::List]);
}

#[test]
fn stale_answers_change_nothing() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(listing(3, Lock::Held)));
    let due = rig.machine.deadline();
    let stale = [
        Input::Listed(listing(2, Lock::Free)),
        Input::LockTested { epoch: Epoch(3), lock: Lock::Free },
        Input::Welcomed { attempt: 9, epoch: Epoch(3), owner: OWNER },
        Input::Busy { attempt: 9, retry_ms: 1 },
        Input::Refused { attempt: 9, refusal: Refusal::Full },
        Input::ConnectFailed { attempt: 9, failure: ConnectFailure::Refused },
        Input::Eof { attempt: 9 },
        Input::Claimed { epoch: Epoch(4), result: ClaimResult::Won },
        Input::Adopted { epoch: Epoch(4), result: Ok(1) },
        Input::Fenced { epoch: Epoch(4), why: String::new() },
    ];
    for input in stale {
        assert_eq!(rig.feed(input.clone()), [], "{input:?}");
        assert_eq!(rig.machine.deadline(), due, "{input:?}");
    }
}

#[test]
fn a_socket_that_answers_for_another_epoch_is_left() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(listing(3, Lock::Held)));
    let effects = rig.feed(Input::Welcomed { attempt: 1, epoch: Epoch(2), owner: OWNER });
    assert_eq!(effects, [Effect::Disconnect { attempt: 1 }]);
    assert_eq!(rig.step(), [Effect::List]);
}

#[test]
fn a_lost_claim_is_looked_into() {
    for result in [ClaimResult::Exists, ClaimResult::Superseded] {
        let mut rig = Rig::started();
        rig.feed(Input::Listed(Listing::default()));
        let effects = rig.feed(Input::Claimed { epoch: Epoch(1), result });
        assert_eq!(events(&effects), ["claim_lost"]);
        assert_eq!(wishes(effects), [Effect::List]);
        assert!(connected(&rig.feed(Input::Listed(listing(1, Lock::Held)))).is_some());
    }
}

#[test]
fn a_stale_listing_relinks_a_collected_name() {
    // The listing was made when 3 was the highest; meanwhile 4 to 30 reigned and 4 was collected, so the link of 4
    // succeeds: the second listing of the claim says so, and the claim counts for nothing.
    let mut rig = Rig::started();
    assert_eq!(claims(&rig.feed(Input::Listed(listing(3, Lock::Free)))), [Epoch(4)]);
    let effects = rig.feed(Input::Claimed { epoch: Epoch(4), result: ClaimResult::Superseded });
    assert_eq!(wishes(effects), [Effect::List]);
    let effects = rig.feed(Input::Listed(listing(30, Lock::Held)));
    assert!(connected(&effects).is_some());
    assert_eq!(claims(&effects), []);
}

#[test]
fn full_disk_at_claim() {
    let mut rig = Rig::started();
    for round in 0..10 {
        assert_eq!(claims(&rig.feed(Input::Listed(listing(3, Lock::Free)))), [Epoch(4)]);
        let result = ClaimResult::Failed("no space left on device".into());
        let effects = rig.feed(Input::Claimed { epoch: Epoch(4), result });
        let said = if round == 0 { vec!["claim_failed"] } else { vec![] };
        assert_eq!(events(&effects), said);
        assert_eq!(wishes(effects), []);
        assert!(rig.blocked());
        assert_eq!(wishes(rig.step()), [Effect::List]);
    }
    // Another session had a kit.
    let effects = rig.feed(Input::Listed(listing(4, Lock::Held)));
    let attempt = connected(&effects).unwrap();
    rig.feed(Input::Welcomed { attempt, epoch: Epoch(4), owner: ANN });
    assert_eq!(rig.machine.role(), &Role::Follower { epoch: Epoch(4), owner: ANN });
}

#[test]
fn one_that_knows_the_group_lets_the_heirs_go_first() {
    // It followed, its owner died, and so did the heirs: it waits at most two staggers and looks again.
    let mut rig = Rig::following(3, &[]);
    let attempt = rig.attempt();
    rig.feed(Input::Eof { attempt });
    assert_eq!(wishes(rig.step()), [Effect::List]);
    let start = rig.now;
    let mut looked = 0;
    loop {
        let effects = rig.feed(Input::Listed(listing(3, Lock::Free)));
        if claims(&effects) == [Epoch(4)] {
            break;
        }
        assert_eq!(effects, []);
        assert_eq!(rig.step(), [Effect::List], "perhaps one of them did");
        looked += 1;
    }
    let waited = rig.now.since(start);
    assert!(waited >= CLAIM_STAGGER && waited <= 2 * CLAIM_STAGGER, "{waited:?}");
    assert!((3..=5).contains(&looked));
}

#[test]
fn leaving_while_looking() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(listing(3, Lock::Held)));
    let effects = rig.feed(Input::Leave);
    assert_eq!(effects, [Effect::Disconnect { attempt: 1 }, Effect::Role(Role::Left), Effect::Left]);
    assert_eq!(rig.machine.deadline(), None);
    assert_eq!(rig.feed(Input::Start), []);
}

#[test]
fn leaving_while_claiming_waits_for_the_answer() {
    let mut rig = Rig::started();
    rig.feed(Input::Listed(Listing::default()));
    assert_eq!(rig.feed(Input::Leave), []);
    let effects = wishes(rig.feed(Input::Claimed { epoch: Epoch(1), result: ClaimResult::Won }));
    assert_eq!(effects[2..], [Effect::End { epoch: Epoch(1), close: true }, Effect::Left]);

    let mut rig = Rig::started();
    rig.feed(Input::Listed(Listing::default()));
    rig.feed(Input::Leave);
    let effects = wishes(rig.feed(Input::Claimed { epoch: Epoch(1), result: ClaimResult::Exists }));
    assert_eq!(effects, [Effect::DropKit, Effect::Left]);
}
