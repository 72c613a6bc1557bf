//! Commands of this build where a build that they do not understand leads, or led.

mod common;

use common::Scratch;
use paceline::{ProtoRange, Session};

/// A primary of a later build, in this process.
fn primary(scratch: &Scratch, proto: (u16, u16)) -> Session {
    let session = Session::builder("default").state_dir(scratch.path()).label("later").stand_for(|program| {
        program.build = "app 9".to_owned();
        program.proto = ProtoRange { min: proto.0, max: proto.1 };
        (program.schema, program.min_reader) = (9, 9);
    });
    session.join_blocking().expect("it joins")
}

#[test]
fn commands_name_both_builds_where_the_primary_speaks_another_protocol() {
    let scratch = Scratch::new();
    let later = primary(&scratch, (8, 9));
    for arguments in
        [&["status"][..], &["sessions"], &["get", "a"], &["set", "a", "1"], &["watch", "a"], &["run"]]
    {
        let ended = scratch.run(arguments);
        assert_eq!(ended.code, 4, "{arguments:?}: {}", ended.err);
        for part in [
            "\"app 9\"",
            &format!("process {}", std::process::id()),
            concat!("\"paceline ", env!("CARGO_PKG_VERSION"), "\""),
            "protocols 8 to 9",
            "protocol 1",
            "update the program of process",
        ] {
            assert!(ended.err.contains(part), "{arguments:?}: {part} is not in {}", ended.err);
        }
    }
    let doctor = scratch.run(&["doctor", "--json"]);
    assert_eq!(doctor.code, 10, "{}", doctor.err);
    let report: serde_json::Value = serde_json::from_str(&doctor.out).expect("a document");
    let kinds: Vec<_> =
        report["findings"].as_array().expect("findings").iter().map(|it| &it["kind"]).collect();
    assert_eq!(kinds, ["version"]);
    later.leave_blocking().expect("it leaves");
}

#[test]
fn a_group_that_a_newer_build_left_is_not_led_by_this_one() {
    let scratch = Scratch::new();
    let later = primary(&scratch, (1, 9));
    assert_eq!(scratch.run(&["status"]).code, 0, "it is understood while it leads");
    // Its store is complete once it takes a mutation.
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(later.submit_raw("kept")).expect("acknowledged");
    later.leave_blocking().expect("it leaves");
    let claims = || std::fs::read_dir(scratch.group().join("claims")).expect("claims").count();
    let before = claims();
    for arguments in [&["run"][..], &["set", "a", "1"]] {
        let ended = scratch.run(arguments);
        assert_eq!(ended.code, 4, "{arguments:?}: {}", ended.err);
        assert!(ended.err.contains("newer build"), "{arguments:?}: {}", ended.err);
    }
    assert_eq!(claims(), before, "nobody claimed");
}
