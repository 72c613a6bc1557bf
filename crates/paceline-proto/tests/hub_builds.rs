//! Links of builds that differ: which version they use, who is heir, who is turned away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod hub_net;

use hub_net::{Net, resumable, session};
use paceline_proto::{
    hub::Part,
    id::LinkId,
    message::{Refusal, ToSession},
    program::{Age, Program, ProtoRange, Release},
};

/// A session of the release 0.`minor`.0 that speaks `min` to `max`.
fn program(id: u64, minor: u16, min: u16, max: u16) -> Program {
    Program {
        release: Release { major: 0, minor, patch: 0 },
        proto: ProtoRange { min, max },
        ..Program::new(format!("app {minor}"), id as u32)
    }
}

/// Session 1 of this program leads a reign, the others join in their order.
fn group(programs: &[Program]) -> Net {
    let mut net = Net::new(resumable());
    net.end_hub();
    net.node(1).program = programs[0].clone();
    net.take_over_knowing(1, None);
    for (n, program) in programs.iter().enumerate().skip(1) {
        join(&mut net, n as u64 + 1, program.clone());
    }
    net.rest();
    net
}

fn join(net: &mut Net, id: u64, program: Program) {
    net.add(id);
    net.node(id).program = program;
    net.join(id);
}

fn heirs(net: &Net) -> Vec<(u64, Age)> {
    let number = |wanted| (1..=9).find(|n| session(*n) == wanted).unwrap();
    net.hub().heirs().iter().map(|heir| (number(heir.session), heir.age)).collect()
}

#[test]
fn each_connection_uses_the_highest_version_that_both_ends_speak() {
    let net = group(&[program(1, 5, 1, 3), program(2, 4, 1, 2), program(3, 6, 3, 9), program(4, 5, 1, 3)]);
    let spoken: Vec<u16> = [1, 2, 3, 4].map(|id| net.link_info(id).proto).to_vec();
    assert_eq!(spoken, [3, 2, 3, 3]);
}

#[test]
fn who_speaks_no_common_version_is_turned_away_and_nobody_else_notices() {
    let mut net = group(&[program(1, 5, 2, 3), program(2, 5, 2, 3)]);
    let joined = net.hub().links().count();
    net.add(3);
    net.node(3).program = program(3, 1, 1, 1);
    net.link(3);
    let link: LinkId = net.node(3).link.unwrap();
    let parts = net.hub.as_mut().unwrap().write(link, usize::MAX).unwrap();
    let [Part::Message(ToSession::Refused(Refusal::Version { owner, build, pid }))] = &parts[..] else {
        panic!("{parts:?}");
    };
    assert_eq!((*owner, build.as_str(), *pid), (ProtoRange { min: 2, max: 3 }, "app 5", 1));
    assert_eq!(net.count("peer_refused"), 1);
    let refused = net.events.iter().find(|event| event.kind() == "peer_refused").unwrap().to_string();
    for part in ["\"app 1\"", "process 3", "protocol 1", "protocols 2 to 3"] {
        assert!(refused.contains(part), "{part} is not in {refused}");
    }
    assert_eq!(net.hub().links().count(), joined);
}

#[test]
fn newer_builds_that_all_can_follow_become_heirs_first() {
    let old = program(2, 4, 1, 2);
    let mut net = group(&[program(1, 5, 1, 3), old.clone(), program(3, 5, 1, 3)]);
    assert_eq!(heirs(&net), [(2, Age::Older), (3, Age::Same)], "in the order of their arrival");
    join(&mut net, 4, program(4, 6, 2, 4));
    net.rest();
    assert_eq!(heirs(&net), [(2, Age::Older), (4, Age::Newer)]);
    // One that the older session could not follow is no better than the others.
    join(&mut net, 5, program(5, 7, 3, 5));
    net.rest();
    assert_eq!(heirs(&net), [(2, Age::Older), (4, Age::Newer)]);
    // The older one is gone: nobody holds the newest up any more.
    net.cut(2);
    net.rest();
    assert_eq!(heirs(&net), [(4, Age::Newer), (5, Age::Newer)]);
}

#[test]
fn a_newer_build_that_some_session_cannot_follow_stands_apart() {
    let net = group(&[program(1, 5, 1, 3), program(2, 7, 3, 5), program(3, 4, 1, 2)]);
    assert_eq!(heirs(&net), [(2, Age::Apart), (3, Age::Older)]);
}

#[test]
fn who_could_not_read_the_store_is_no_heir() {
    let owner = Program { schema: 3, min_reader: 2, ..program(1, 5, 1, 3) };
    let reads = |schema, id| Program { schema, ..program(id, 5, 1, 3) };
    let net = group(&[owner, reads(1, 2), reads(2, 3), reads(3, 4)]);
    assert_eq!(heirs(&net), [(3, Age::Same), (4, Age::Same)]);
}
