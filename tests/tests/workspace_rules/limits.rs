//! docs/LIMITS.md says of each bound what happens there and which tests stand just inside and just outside. That the tests
//! exist is looked up by `.ci/requirements`.

use std::collections::BTreeSet;

use crate::text;

const DOCUMENT: &str = "docs/LIMITS.md";
const EVENTS: &str = "crates/paceline-proto/src/event.rs";

/// Files whose constants are all bounds, and those of whose constants the named ones are.
const SOURCES: [(&str, &[&str]); 8] = [
    ("crates/paceline-proto/src/limits.rs", &[]),
    ("crates/paceline-query/src/limits.rs", &[]),
    ("crates/paceline-store/src/limits.rs", &[]),
    ("crates/paceline-runtime/src/shell.rs", &["MAILBOX"]),
    ("crates/paceline-runtime/src/replica.rs", &["EVENT_QUEUE", "EVENT_QUEUE_BYTES"]),
    ("crates/paceline-runtime/src/observe.rs", &["EVENTS_KEPT"]),
    ("crates/paceline-runtime/src/trace.rs", &["RING_RECORDS"]),
    ("crates/paceline/src/session.rs", &["UPDATE_ATTEMPTS"]),
];

/// Sides of bounds that no test shows yet. None may be added.
const OPEN: usize = 3;

/// The cells of a row.
struct Row<'a> {
    limit: &'a str,
    of: &'a str,
    what: &'a str,
    tests: [&'a str; 2],
}

fn rows(document: &str) -> Vec<Row<'_>> {
    let cells =
        |line| -> Vec<_> { str::split(line, " | ").map(|cell| cell.trim_matches(['|', ' '])).collect() };
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| match cells(line)[..] {
        [limit, of, what, inside, outside] => {
            Row { limit: limit.trim_matches('`'), of, what, tests: [inside, outside] }
        }
        _ => panic!("not a row: {line}"),
    })
    .collect()
}

#[test]
fn every_bound_has_its_event_and_a_test_on_either_side() {
    let document = text(DOCUMENT);
    let rows = rows(&document);
    let listed: BTreeSet<&str> = rows.iter().map(|row| row.limit).collect();
    assert_eq!(listed.len(), rows.len(), "{DOCUMENT} has a limit twice");
    let declared: BTreeSet<String> =
        SOURCES.iter().flat_map(|(file, names)| constants(&text(file), names)).collect();
    assert!(declared.len() > 50, "the constants were not found: {declared:?}");
    let missing: Vec<_> = declared.iter().filter(|name| !listed.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "{DOCUMENT} lacks {missing:?}");
    let gone: Vec<_> = listed.iter().filter(|name| !declared.contains(**name)).collect();
    assert!(gone.is_empty(), "{DOCUMENT} has {gone:?}, which are no constants");

    let events = text(EVENTS);
    let mut open = 0;
    for Row { limit, of, what, tests } in &rows {
        assert!(!what.is_empty() && !of.is_empty(), "{limit}: what happens?");
        for event in what.split('`').skip(1).step_by(2).filter(|name| !name.chars().any(char::is_uppercase)) {
            assert!(events.contains(&format!("\"{event}\"")), "{limit}: there is no event {event}");
        }
        for test in tests {
            open += usize::from(*test == "open");
            assert!(*test == "open" || test.contains(".rs::"), "{limit}: {test} is no test");
        }
    }
    assert!(open <= OPEN, "{open} sides of bounds are open");
}

/// Names of the constants of a source, or of those wanted.
fn constants(source: &str, wanted: &[&str]) -> Vec<String> {
    let names = source.lines().filter_map(|line| {
        let line = line.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        line.strip_prefix("const ")?.split(':').next()
    });
    let found: Vec<String> =
        names.filter(|name| wanted.is_empty() || wanted.contains(name)).map(str::to_owned).collect();
    assert!(wanted.iter().all(|name| found.iter().any(|other| other == name)), "{wanted:?} moved");
    found
}
