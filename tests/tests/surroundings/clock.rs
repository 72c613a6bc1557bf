//! The wall clock jumps, forwards and backwards. Nothing is decided by it.

use std::{fs, path::Path, process::Command};

use paceline_tests::{Peer, Scratch};
use serde_json::json;

use crate::{PEER, set_and_seen, skip, stored, submit};

/// Adds the seconds that a file holds to what the process sees of the wall clock; all other clocks are as they are.
const SHIFT: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long shift(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("TEST_CLOCK_SHIFT"), "r");
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}
int clock_gettime(clockid_t id, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, id, at);
    if (result == 0 && id == CLOCK_REALTIME) at->tv_sec += shift();
    return result;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec exact;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    at->tv_sec = exact.tv_sec;
    at->tv_usec = exact.tv_nsec / 1000;
    return result;
}
time_t time(time_t *out) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (out) *out = exact.tv_sec;
    return exact.tv_sec;
}
"#;

/// The library that shifts the clock, or nothing where there is no compiler.
fn library(dir: &Path) -> Option<std::path::PathBuf> {
    let (source, library) = (dir.join("shift.c"), dir.join("shift.so"));
    fs::write(&source, SHIFT).ok()?;
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    built.is_ok_and(|status| status.success()).then_some(library)
}

#[test]
#[cfg(target_os = "linux")]
fn jumps_of_the_wall_clock_replace_nobody_and_lose_nothing() {
    let tools = tempfile::tempdir().expect("a directory");
    let Some(library) = library(tools.path()) else {
        return skip("jumps_of_the_wall_clock_replace_nobody_and_lose_nothing", "needs a C compiler");
    };
    let shift = tools.path().join("seconds");
    let jump = |seconds: i64| fs::write(&shift, seconds.to_string()).expect("shift the clock");
    let scratch = Scratch::new("clock");
    let start = || {
        let mut command = Command::new(PEER);
        command.env("LD_PRELOAD", &library).env("TEST_CLOCK_SHIFT", &shift);
        let peer = Peer::start_by(command, scratch.path(), &[]);
        peer.joined();
        peer
    };
    jump(0);
    let (mut primary, mut heir) = (start(), start());
    primary.wait("the heir", |line| (line["ready_heirs"] == json!(1)).then_some(()));
    heir.tell(&json!({ "subscribe": ["k"] }));
    const YEAR: i64 = 365 * 24 * 3600;
    // Ten years on, back before 1970, and to where it was.
    for (n, years) in [(1, 10), (2, -100), (3, 0)] {
        jump(years * YEAR);
        set_and_seen(&mut primary, &[&heir], n);
        assert!(submit(&mut heir, &format!("in {years}"), 0).is_ok());
        let mut newcomer = start();
        assert!(newcomer.leave(), "a session that came and went");
        assert_eq!(paceline_tests::newest_claim(&scratch), (1, primary.pid()), "nobody was replaced");
    }
    jump(-100 * YEAR);
    primary.kill();
    heir.above(1);
    assert!(submit(&mut heir, "after", 0).is_ok());
    heir.kill();
    assert_eq!(stored(&scratch).into_keys().collect::<Vec<_>>(), ["after", "in -100", "in 0", "in 10"]);
}
