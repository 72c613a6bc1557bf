//! Coordinators: started by many at once, leaving by themselves, handed over, killed.

mod common;

use common::{Ended, Running, Scratch, check, signal, until};
use rustix::process::Signal;

/// How often the herd is started.
fn repeats() -> usize {
    std::env::var("PACELINE_REPEATS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

#[test]
fn sixteen_commands_at_once_start_one_coordinator_that_leaves_nothing_behind() {
    for round in 0..repeats() {
        let scratch = Scratch::new();
        let children: Vec<_> = (0..16)
            .map(|n| scratch.command(&["set", &format!("key/{n}"), "1"]).spawn().expect("start"))
            .collect();
        let ended: Vec<Ended> = children
            .into_iter()
            .map(|child| Ended::new(child.wait_with_output().expect("its end")))
            .collect();
        for one in &ended {
            assert_eq!(one.code, 0, "round {round}: {}", one.err);
        }
        let started = ended.iter().filter(|one| one.err.contains("started a coordinator")).count();
        assert_eq!(started, 1, "round {round}");
        assert_eq!(scratch.processes().len(), 1, "round {round}: one coordinator");
        let queries = scratch.json(&["queries"]);
        assert_eq!(
            queries["queries"].as_array().expect("a list").len(),
            16,
            "round {round}: nothing is lost"
        );

        until("the coordinator leaves", || scratch.processes().is_empty());
        for folder in ["s", "sessions", "kits"] {
            let left = std::fs::read_dir(scratch.group().join(folder)).expect("a folder").count();
            assert_eq!(left, 0, "round {round}: {folder} is empty");
        }
        assert_eq!(scratch.run(&["status"]).code, 3);
    }
}

#[test]
fn a_coordinator_in_the_background_has_a_session_of_its_own_and_no_stdio() {
    let scratch = Scratch::new();
    let started = scratch.run(&["set", "a", "1"]);
    let [pid] = scratch.processes()[..] else { panic!("one coordinator") };
    assert!(started.err.contains(&format!("process {pid}")), "{}", started.err);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let session = stat.rsplit_once(") ").expect("stat").1.split(' ').nth(3).expect("a session");
    assert_eq!(session, pid.to_string());
    let target = |fd: u32| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).expect("open");
    assert_eq!(target(0).to_str(), Some("/dev/null"));
    assert_eq!(target(1).to_str(), Some("/dev/null"));
    assert_eq!(target(2), scratch.group().join("run.log"));
    let log = std::fs::read_to_string(scratch.group().join("run.log")).expect("a log");
    assert!(log.contains("leads epoch 1"), "{log}");
}

#[test]
fn a_coordinator_that_cannot_start_says_why() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.group()).expect("a directory");
    std::fs::write(scratch.group().join("run.log"), "").expect("a file");
    let readonly = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(scratch.group(), readonly).expect("open it to others");
    let ended = scratch.run(&["set", "a", "1"]);
    assert_eq!(ended.code, 6);
    assert!(ended.err.contains("chmod") && ended.err.contains("default"), "{}", ended.err);
}

/// Comes back when a coordinator that nobody used has left after this time: one that began before it and was to go as early
/// would be gone.
fn one_that_is_not_used_has_left(idle_exit: &str) {
    let elsewhere = Scratch::new();
    let mut unused = Running::start(elsewhere.command(&["run", "--json", "--idle-exit", idle_exit]));
    assert_eq!(unused.end().0, Some(0));
}

#[test]
fn a_group_in_use_is_not_left_and_a_used_one_only_after_its_time() {
    let scratch = Scratch::new();
    let watch = Running::start(scratch.command(&["watch", "a", "--json"]));
    until("a coordinator", || scratch.processes().len() == 1);
    scratch.run(&["set", "a", "1"]);
    watch.wait("the value", |line| (line["value"] == 1).then_some(()));
    let before = scratch.processes();
    one_that_is_not_used_has_left("500ms");
    assert_eq!(scratch.processes(), before, "the watch keeps it");
    drop(watch);
    until("the coordinator leaves", || scratch.processes().is_empty());
}

#[test]
fn a_coordinator_that_is_told_to_end_hands_over_and_leaves_no_socket() {
    for told in [Signal::TERM, Signal::HUP, Signal::INT] {
        let scratch = Scratch::new();
        let mut first = scratch.coordinator();
        let mut second = scratch.coordinator();
        until("an heir that holds the value", || scratch.json(&["set", "a", "1"])["volatile"] == false);
        first.signal(told);
        assert_eq!(first.end().0, Some(0));
        assert_eq!(scratch.json(&["get", "a"])["value"], 1);
        assert_eq!(scratch.json(&["status"])["primary"]["pid"], second.pid());
        second.signal(told);
        assert_eq!(second.end().0, Some(0));
        assert_eq!(std::fs::read_dir(scratch.group().join("s")).expect("sockets").count(), 0);
    }
}

/// A SIGCONT without a stop changes nothing; behind a stop that nobody announced the coordinator finds itself replaced.
#[test]
fn a_coordinator_that_goes_on_leads_or_follows_as_the_group_has_it() {
    let scratch = Scratch::new();
    let first = scratch.coordinator();
    let second = scratch.coordinator();
    until("an heir that holds the value", || scratch.json(&["set", "a", "1"])["volatile"] == false);
    for coordinator in [&first, &second] {
        coordinator.signal(Signal::CONT);
    }
    assert_eq!(scratch.json(&["set", "a", "2"])["volatile"], false);
    assert_eq!(scratch.json(&["status"])["primary"]["pid"], first.pid(), "it leads as before");
    first.signal(Signal::STOP);
    second.wait("the takeover", |line| (line["kind"] == "primary_elected").then_some(()));
    assert_eq!(scratch.json(&["get", "a"])["value"], 2, "what an heir held is there");
    first.signal(Signal::CONT);
    first.wait("its return", |line| (line["kind"] == "following").then_some(()));
    assert_eq!(scratch.json(&["status"])["primary"]["pid"], second.pid());
}

#[test]
fn a_coordinator_that_the_terminal_stops_hands_over_first_and_comes_back() {
    let scratch = Scratch::new();
    let first = scratch.coordinator();
    let second = scratch.coordinator();
    until("an heir", || scratch.json(&["set", "a", "1"])["volatile"] == false);
    first.signal(Signal::TSTP);
    second.wait("the handover", |line| {
        (line["kind"] == "primary_elected").then(|| line["text"].as_str().expect("text").to_owned())
    });
    until("the stop", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", first.pid())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    });
    assert_eq!(scratch.json(&["get", "a"])["value"], 1, "the group goes on");
    first.signal(Signal::CONT);
    first.wait("its return", |line| (line["kind"] == "following").then_some(()));
}

#[test]
fn a_watch_survives_every_coordinator_and_starts_a_new_one() {
    let scratch = Scratch::new();
    let first = scratch.coordinator();
    let second = scratch.coordinator();
    scratch.run(&["set", "orders/1", "12"]);
    let mut command = scratch.command(&["watch", "packages/7", "--json"]);
    command.env("PACELINE_IDLE_EXIT", "never");
    let mut watch = Running::start(command);
    scratch.run(&["set", "packages/7", "41"]);
    watch.wait("the value", |line| {
        check("watch", line);
        (line["value"] == 41).then_some(())
    });
    let (pids, mut first, mut second) = ([first.pid(), second.pid()], first, second);
    for pid in pids {
        signal(pid, Signal::KILL);
    }
    first.child.wait().expect("its end");
    second.child.wait().expect("its end");
    let led = watch.wait("a new primary", |line| {
        check("watch", line);
        let new = line["event"] == "primary" && pids.iter().all(|pid| line["pid"] != *pid);
        new.then(|| line["pid"].clone())
    });
    watch.wait("what is lost", |line| {
        check("watch", line);
        let recovered = line["event"] == "recovered";
        recovered.then(|| {
            assert_eq!((&line["lost"], &line["kept"]), (&serde_json::json!(["orders/1"]), &true.into()))
        })
    });
    let pid = u32::try_from(led.as_u64().expect("a pid")).expect("a pid");
    assert!(scratch.processes().contains(&pid), "the watch started it");
    assert_eq!(scratch.json(&["get", "packages/7"])["value"], 41, "the watch held it");
    watch.signal(Signal::INT);
    let (code, words) = watch.end();
    assert_eq!(code, Some(130));
    assert!(words.contains("started a coordinator"), "{words}");
}

#[test]
fn a_coordinator_leaves_when_nobody_uses_it_only_where_that_is_set() {
    let scratch = Scratch::new();
    let mut set = Running::start(scratch.command(&["run", "--json"]));
    assert_eq!(set.end().0, Some(0), "PACELINE_IDLE_EXIT says so");
    let mut command = scratch.command(&["run", "--json"]);
    let running = Running::start({
        command.env_remove("PACELINE_IDLE_EXIT");
        command
    });
    running.wait("the coordinator", |line| (line["kind"] == "ready").then_some(()));
    one_that_is_not_used_has_left("500ms");
    assert_eq!(scratch.json(&["status"])["primary"]["pid"], running.pid(), "by default it stays");
}

#[test]
fn coordinators_do_not_count_as_users_of_each_other() {
    for second in ["300ms", "never"] {
        let scratch = Scratch::new();
        let mut leads = Running::start(scratch.command(&["run", "--json", "--idle-exit", "300ms"]));
        leads.wait("its lead", |line| (line["kind"] == "adopted").then_some(()));
        let mut other = Running::start(scratch.command(&["run", "--json", "--idle-exit", second]));
        let (code, words) = leads.end();
        assert_eq!(code, Some(0), "{words}");
        assert!(words.contains("nobody uses the group"), "{words}");
        if second == "never" {
            assert_eq!(scratch.json(&["status"])["primary"]["pid"], other.pid(), "who stays leads");
            other.signal(Signal::HUP);
        }
        assert_eq!(other.end().0, Some(0));
        assert_eq!(std::fs::read_dir(scratch.group().join("s")).expect("sockets").count(), 0);
        assert!(scratch.processes().is_empty());
    }
}

#[test]
fn coordinators_stay_for_a_user() {
    let scratch = Scratch::new();
    // It starts a coordinator that leaves after 500 ms, and is its user from the beginning.
    let mut watch = Running::start(scratch.command(&["watch", "a", "--json"]));
    let mut leads = serde_json::Value::Null;
    until("the watch in its group", || {
        let sessions = scratch.run(&["sessions", "--json"]);
        if sessions.code == 0 && sessions.out.contains("paceline watch") {
            leads = scratch.json(&["status"])["primary"]["pid"].clone();
        }
        leads.is_u64()
    });
    let mut other = Running::start(scratch.command(&["run", "--json", "--idle-exit", "300ms"]));
    other.wait("the second", |line| (line["kind"] == "ready").then_some(()));
    // As long as the first may take, and longer than the second.
    one_that_is_not_used_has_left("500ms");
    assert!(other.child.try_wait().expect("its state").is_none(), "one is the heir");
    assert_eq!(scratch.json(&["status"])["primary"]["pid"], leads, "one leads");
    watch.signal(Signal::INT);
    assert_eq!(watch.end().0, Some(130));
    assert_eq!(other.end().0, Some(0));
    until("the end of all", || scratch.processes().is_empty());
}

#[test]
fn lines_of_a_coordinator_fit_their_schema() {
    let scratch = Scratch::new();
    let mut coordinator = Running::start(scratch.command(&["run", "--json", "--idle-exit", "never"]));
    coordinator.wait("its store", |line| {
        check("run", line);
        (line["kind"] == "adopted").then_some(())
    });
    coordinator.signal(Signal::TERM);
    assert_eq!(coordinator.end().0, Some(0));
}
