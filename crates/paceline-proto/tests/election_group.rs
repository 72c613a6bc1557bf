//! Several sessions: each schedule ends with one owner and everybody following it.

mod election_support;

use election_support::{group::Group, ms};
use paceline_proto::{election::Input, event::Event, id::Epoch, message::Rank};

/// So many candidates, joined and at rest.
fn settled(sessions: usize, seed: u64) -> Group {
    let mut group = Group::new(seed);
    for _ in 0..sessions {
        group.join(Rank::Candidate);
    }
    group.settle(ms(1_000));
    group.run(ms(600));
    group
}

#[test]
fn sixty_four_sessions_start_at_one_instant() {
    for seed in 0..20 {
        let group = settled(64, seed);
        assert_eq!(group.epoch(), Epoch(1), "seed {seed}");
    }
}

#[test]
fn a_killed_primary_is_replaced_by_its_heir() {
    for seed in 0..20 {
        let mut group = settled(6, seed);
        for round in 2..20 {
            let owner = group.owner().unwrap();
            group.kill(owner);
            let took = group.settle(ms(2_000));
            assert!(took <= ms(60), "seed {seed}: {took:?}");
            assert_eq!(group.epoch(), Epoch(round), "seed {seed}: one epoch for each death");
            group.join(Rank::Candidate);
            group.settle(ms(1_000));
            group.run(ms(600));
        }
        assert_eq!(group.count("suspected"), 0, "seed {seed}");
    }
}

#[test]
fn primary_and_both_heirs_are_killed() {
    for seed in 0..50 {
        let mut group = settled(8, seed);
        let owner = group.owner().unwrap();
        let heirs: Vec<_> = group.living().filter(|&n| n != owner).take(2).collect();
        group.kill(owner);
        heirs.into_iter().for_each(|heir| group.kill(heir));
        let took = group.settle(ms(2_000));
        assert!(took <= ms(200), "seed {seed}: {took:?}");
    }
}

#[test]
fn a_frozen_primary_is_replaced_in_two_seconds_and_comes_back_fenced() {
    for seed in 0..20 {
        let mut group = settled(8, seed);
        for _ in 0..6 {
            let owner = group.owner().unwrap();
            group.freeze(owner);
            let took = group.settle(ms(5_000));
            assert!(took <= ms(2_200), "seed {seed}: {took:?}");
            let fenced = group.count("fenced");
            group.thaw(owner);
            group.settle(ms(1_000));
            assert_eq!(group.count("fenced"), fenced + 1, "seed {seed}");
            group.run(ms(600));
        }
    }
}

#[test]
fn the_whole_group_sleeps_and_nobody_is_replaced() {
    for seed in 0..20 {
        let mut group = settled(8, seed);
        let everybody: Vec<_> = group.living().collect();
        everybody.iter().for_each(|&n| group.freeze(n));
        group.run(ms(3_600_000));
        everybody.iter().for_each(|&n| group.tell(n, Input::Suspended { ms: 3_600_000 }));
        everybody.iter().for_each(|&n| group.thaw(n));
        group.run(ms(10_000));
        assert_eq!(group.epoch(), Epoch(1), "seed {seed}");
        group.settle(ms(1));
    }
}

#[test]
fn followers_that_were_stopped_replace_nobody() {
    for seed in 0..200 {
        let mut group = settled(4, seed);
        let owner = group.owner().unwrap();
        let followers: Vec<_> = group.living().filter(|&n| n != owner).collect();
        // Their suspicion is nearly complete when they are stopped too; then the owner goes on, and later they do.
        group.freeze(owner);
        let pause = group.draw(1_640);
        group.run(ms(pause));
        followers.iter().for_each(|&n| group.freeze(n));
        group.thaw(owner);
        let pause = group.draw(5_000);
        group.run(ms(300 + pause));
        followers.iter().for_each(|&n| group.thaw(n));
        group.run(ms(10_000));
        assert_eq!(group.epoch(), Epoch(1), "seed {seed}");
        group.settle(ms(1));
    }
}

#[test]
fn polite_handovers() {
    for seed in 0..20 {
        let mut group = settled(6, seed);
        for round in 2..12 {
            let owner = group.owner().unwrap();
            group.tell(owner, Input::Promote { to: None });
            group.run(ms(1));
            let took = group.settle(ms(1_000));
            assert!(took <= ms(20), "seed {seed}: {took:?}");
            assert_eq!(group.epoch(), Epoch(round), "seed {seed}");
            group.run(ms(600));
        }
        assert_eq!(group.count("handover_aborted"), 0, "seed {seed}");
    }
}

#[test]
fn everybody_leaves_one_by_one() {
    for seed in 0..20 {
        let mut group = settled(6, seed);
        while let Some(owner) = group.owner() {
            group.tell(owner, Input::Leave);
            group.run(ms(1));
            if group.living().next().is_none() {
                break;
            }
            group.settle(ms(2_000));
            group.run(ms(600));
        }
        assert_eq!(group.living().count(), 0, "seed {seed}");
    }
}

#[test]
fn power_loss_keeps_claim_1_and_database_2() {
    for seed in 0..20 {
        let mut group = settled(4, seed);
        let owner = group.owner().unwrap();
        group.kill(owner);
        group.settle(ms(1_000));
        assert_eq!(group.epoch(), Epoch(2));
        group.power_loss(Epoch(1));
        for _ in 0..4 {
            group.join(Rank::Candidate);
        }
        group.settle(ms(1_000));
        assert_eq!(group.epoch(), Epoch(3), "seed {seed}: epoch 2 is not used again");
    }
}

#[test]
fn a_coordinator_gets_the_lead_politely_and_a_newcomer_does_not() {
    for seed in 0..20 {
        let mut group = settled(4, seed);
        group.join(Rank::Candidate);
        group.run(ms(5_000));
        assert_eq!(group.epoch(), Epoch(1), "seed {seed}: sticky");
        let coordinator = group.join(Rank::Preferred);
        group.run(ms(2_000));
        assert_eq!(group.owner(), Some(coordinator), "seed {seed}");
        assert_eq!(group.epoch(), Epoch(2), "seed {seed}");
        group.run(ms(60_000));
        assert_eq!(group.epoch(), Epoch(2), "seed {seed}: and keeps it");
    }
}

#[test]
fn observers_wait_for_a_candidate() {
    let mut group = Group::new(1);
    for _ in 0..5 {
        group.join(Rank::Observer);
    }
    group.run(ms(30_000));
    assert_eq!(group.epoch(), Epoch::NONE);
    group.join(Rank::Candidate);
    group.settle(ms(1_100));
}

#[test]
fn random_faults_and_then_calm() {
    let mut usurped = 0;
    let mut aborted = 0;
    for seed in 0..300 {
        let mut group = settled(5, seed);
        for _ in 0..25 {
            let living: Vec<_> = group.living().collect();
            let frozen: Vec<_> =
                (0..group.nodes.len()).filter(|&n| group.nodes[n].alive && group.nodes[n].frozen).collect();
            let any = living.get(usize::try_from(group.draw(8)).unwrap()).copied();
            let owner = group.owner().or(any);
            match (group.draw(9), any, owner) {
                (0 | 1, _, Some(n)) if living.len() > 2 => group.kill(n),
                (2, Some(n), _) if living.len() > 2 => group.kill(n),
                (3, _, Some(n)) | (4, Some(n), _) => group.freeze(n),
                (5, _, _) => frozen.iter().for_each(|&n| group.thaw(n)),
                (6, _, Some(n)) => group.tell(n, Input::Promote { to: None }),
                (7, Some(n), _) if living.len() > 2 => group.tell(n, Input::Leave),
                _ => drop(group.join(Rank::Candidate)),
            }
            let pause = group.draw(1_500);
            group.run(ms(if pause < 700 { pause % 30 } else { pause }));
        }
        for n in 0..group.nodes.len() {
            if group.nodes[n].alive && group.nodes[n].frozen {
                group.thaw(n);
            }
        }
        if group.living().next().is_none() {
            group.join(Rank::Candidate);
        }
        group.run(ms(1));
        let took = group.settle(ms(30_000));
        assert!(took <= ms(20_000), "seed {seed}: {took:?}");
        group.run(ms(3_000));
        let epoch = group.epoch();
        group.run(ms(10_000));
        assert_eq!(group.epoch(), epoch, "seed {seed}: at rest");
        usurped += group
            .events
            .iter()
            .filter(|(_, e)| {
                matches!(e, Event::PrimaryElected { over: paceline_proto::event::Cause::Silent, .. })
            })
            .count();
        aborted += group.count("handover_aborted");
    }
    assert!(usurped > 0 && aborted > 0, "usurped {usurped}, aborted {aborted}");
}
