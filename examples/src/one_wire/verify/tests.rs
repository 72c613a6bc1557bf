use super::*;
use crate::one_wire::schedule::FaultKind;

const RESUMABLE: Rules = Rules { resumable: true };
const LOSSY: Rules = Rules { resumable: false };

/// The hash that event `number` is published with.
fn hash(number: u64) -> u64 {
    number * 31
}

fn event(number: u64) -> Record {
    Record::Event { number, hash: hash(number), at_ns: number * 1000 + 5 }
}

const GAP: Record = Record::Gap { at_ns: 0 };

/// Events 1 to 10, number n published at n µs.
fn feed() -> Reference {
    let records: Vec<_> =
        (1..=10).map(|n| Record::Event { number: n, hash: hash(n), at_ns: n * 1000 }).collect();
    Reference::from_feed(&records)
}

/// A session that joined just before event 3 was published and lived to the end.
fn session(records: Vec<Record>) -> SessionLog {
    SessionLog { name: "s1".into(), joined_ns: Some(2500), survived: true, records }
}

fn events(numbers: impl IntoIterator<Item = u64>) -> Vec<Record> {
    numbers.into_iter().map(event).collect()
}

fn check(log: &SessionLog, rules: Rules) -> (Tally, Vec<String>) {
    let mut reasons = Vec::new();
    let tally = check_session(&feed(), log, rules, &mut reasons);
    (tally, reasons)
}

#[track_caller]
fn clean(log: &SessionLog, rules: Rules, delivered: u64) {
    let (tally, reasons) = check(log, rules);
    assert_eq!(reasons, [] as [String; 0]);
    assert_eq!(tally, Tally { delivered, ..Tally::default() });
}

#[track_caller]
fn faulty(log: &SessionLog, rules: Rules, expected: Tally) {
    let (tally, reasons) = check(log, rules);
    assert_eq!(tally, expected);
    assert_eq!(reasons.len(), 1, "{reasons:?}");
}

#[test]
fn everything_since_the_join_is_clean() {
    clean(&session(events(3..=10)), RESUMABLE, 8);
    clean(&session(events(3..=10)), LOSSY, 8);
    // What came before the join may come, but is not owed.
    clean(&session(events(2..=10)), RESUMABLE, 9);
}

#[test]
fn a_dropped_event_is_a_silent_gap() {
    let log = session(events((3..=10).filter(|n| *n != 6)));
    faulty(&log, RESUMABLE, Tally { delivered: 7, gaps: 1, ..Tally::default() });
    faulty(&log, LOSSY, Tally { delivered: 7, gaps: 1, ..Tally::default() });
}

#[test]
fn losses_are_counted_in_runs() {
    let log = session(events([3, 6, 7, 10]));
    faulty(&log, RESUMABLE, Tally { delivered: 4, gaps: 2, ..Tally::default() });
}

#[test]
fn a_repeated_event_is_a_duplicate() {
    let mut records = events(3..=10);
    records.insert(4, event(6));
    faulty(&session(records), RESUMABLE, Tally { delivered: 9, duplicates: 1, ..Tally::default() });
}

#[test]
fn swapped_events_are_reordered_and_nothing_is_lost() {
    let mut records = events(3..=10);
    records.swap(3, 4);
    faulty(&session(records), RESUMABLE, Tally { delivered: 8, reordered: 1, ..Tally::default() });
}

#[test]
fn a_loss_with_a_gap_event_is_reported() {
    let mut records = events([3, 4, 8, 9, 10]);
    records.insert(2, GAP);
    let tally = Tally { delivered: 5, gaps_reported: 1, ..Tally::default() };
    let (found, reasons) = check(&session(records.clone()), LOSSY);
    assert_eq!((found, reasons), (tally, Vec::new()));
    // Where the upstream can resume, a survivor must not lose anything, told or not.
    faulty(&session(records.clone()), RESUMABLE, tally);
    // A gap told elsewhere does not excuse the loss.
    let elsewhere = [&[GAP], &records[..2], &records[3..]].concat();
    faulty(&session(elsewhere), LOSSY, Tally { delivered: 5, gaps: 1, needless_gaps: 1, ..Tally::default() });
}

#[test]
fn around_a_gap_events_may_repeat_only_where_the_upstream_cannot_resume() {
    let mut records = events([3, 4, 5, 6, 5, 6, 7, 8, 9, 10]);
    records.insert(4, GAP);
    let (tally, reasons) = check(&session(records.clone()), LOSSY);
    assert_eq!(reasons, [] as [String; 0]);
    assert_eq!(tally, Tally { delivered: 10, needless_gaps: 1, ..Tally::default() });
    faulty(
        &session(records),
        RESUMABLE,
        Tally { delivered: 10, duplicates: 2, needless_gaps: 1, ..Tally::default() },
    );
}

#[test]
fn a_repetition_is_excused_up_to_the_first_new_event_only() {
    let mut records = events([3, 4, 5, 6, 7, 4, 8, 9, 10]);
    records.insert(2, GAP);
    let expected = Tally { delivered: 9, duplicates: 1, needless_gaps: 1, ..Tally::default() };
    faulty(&session(records), LOSSY, expected);
}

#[test]
fn an_altered_payload_is_seen() {
    let mut records = events(3..=10);
    records[2] = Record::Event { number: 5, hash: 1, at_ns: 0 };
    faulty(&session(records), RESUMABLE, Tally { delivered: 8, altered: 1, ..Tally::default() });
}

#[test]
fn an_invented_event_is_seen() {
    let mut records = events(3..=10);
    records.push(event(11));
    faulty(&session(records), RESUMABLE, Tally { delivered: 9, unknown: 1, ..Tally::default() });
}

#[test]
fn a_missing_tail_counts_for_survivors_only() {
    let mut log = session(events(3..=8));
    faulty(&log, RESUMABLE, Tally { delivered: 6, gaps: 1, ..Tally::default() });
    log.survived = false;
    clean(&log, RESUMABLE, 6);
}

#[test]
fn a_missing_head_counts_from_the_join() {
    faulty(&session(events(5..=10)), RESUMABLE, Tally { delivered: 6, gaps: 1, ..Tally::default() });
}

#[test]
fn a_survivor_that_got_nothing_is_told_off() {
    let (tally, reasons) = check(&session(Vec::new()), LOSSY);
    assert_eq!(tally, Tally { gaps: 1, ..Tally::default() });
    assert_eq!(reasons.len(), 2, "{reasons:?}");
}

#[test]
fn the_reference_of_a_foreign_feed_is_what_the_sessions_got() {
    let odd = Record::Event { number: 2, hash: 99, at_ns: 1 };
    let logs = [events([1, 2, 3]), vec![odd, event(3)], events([2, 5])];
    let reference = Reference::from_sessions(logs.iter().map(Vec::as_slice));
    assert_eq!(reference.len(), 4);
    let place = reference.find(2).unwrap();
    assert_eq!((reference.hash(place), reference.at_ns(place)), (hash(2), 1));
    assert_eq!(reference.find(4), None);
}

#[test]
fn with_a_foreign_feed_a_session_begins_with_its_first_event() {
    // Event 3 reached another session late: that says nothing about when it was published.
    let logs = [session(events(4..=6)), session(vec![event(3), event(4), event(5), event(6)])];
    let reference = Reference::from_sessions(logs.iter().map(|log| log.records.as_slice()));
    let mut reasons = Vec::new();
    for log in &logs {
        check_session(&reference, log, RESUMABLE, &mut reasons);
    }
    assert_eq!(reasons, [] as [String; 0]);
    check_session(&reference, &session(events([4, 6])), RESUMABLE, &mut reasons);
    assert_eq!(reasons, ["s1: losses without a gap event (the first at event 5): 1"]);
}

fn versioned(version: u64, n: u64) -> Versioned {
    Versioned { version, data: serde_json::json!(n) }
}

#[test]
fn final_values_must_be_those_of_the_feed() {
    let published =
        BTreeMap::from([("cpu".to_owned(), versioned(3, 1)), ("load".to_owned(), versioned(2, 1))]);
    let verdict = |shown: &BTreeMap<_, _>| {
        let mut reasons = Vec::new();
        check_values("s1", &published, shown, &mut reasons);
        reasons
    };
    assert_eq!(verdict(&published), [] as [String; 0]);
    let with = |key: &str, value: Versioned| {
        let mut shown = published.clone();
        shown.insert(key.to_owned(), value);
        shown
    };
    // Equal content that came again: the version may be that of its first time.
    assert_eq!(verdict(&with("cpu", versioned(2, 1))), [] as [String; 0]);
    assert_eq!(
        verdict(&with("cpu", versioned(2, 5))),
        ["s1: query cpu shows 5 of version 2, the feed ended with 1 of version 3"]
    );
    assert_eq!(verdict(&with("cpu", versioned(3, 2))).len(), 1);
    assert_eq!(verdict(&with("cpu", versioned(4, 1))).len(), 1);
    assert_eq!(verdict(&BTreeMap::new()).len(), 2);
}

fn delivered(at: &[(u64, u64)]) -> SessionLog {
    session(
        at.iter().map(|(number, at_ns)| Record::Event { number: *number, hash: 0, at_ns: *at_ns }).collect(),
    )
}

fn takeover(survivors: &[usize]) -> Takeover {
    let kind = FaultKind::Sigkill;
    Takeover { kind, signal_ns: 4500, settled_ns: 7500, survivors: survivors.to_vec() }
}

#[test]
fn a_takeover_lasts_from_the_first_publication_after_the_signal_to_its_last_delivery() {
    let logs = [
        delivered(&[(4, 4100), (5, 5300), (6, 6900), (7, 7100)]),
        delivered(&[(4, 4100), (5, 5700), (6, 6200), (7, 7100)]),
        delivered(&[(4, 4100), (5, 9999)]),
    ];
    let measured = latency(&feed(), &logs, &takeover(&[0, 1]));
    assert_eq!(measured, Some(Latency { last_ns: 700, first_ns: 300, worst_ns: 900 }));
}

#[test]
fn a_lost_first_update_is_stood_for_by_the_next_delivered_one() {
    let logs = [delivered(&[(4, 4100), (7, 7200)])];
    let measured = latency(&feed(), &logs, &takeover(&[0]));
    assert_eq!(measured, Some(Latency { last_ns: 2200, first_ns: 2200, worst_ns: 2200 }));
}

#[test]
fn a_survivor_that_got_nothing_more_has_no_takeover() {
    assert_eq!(latency(&feed(), &[delivered(&[(4, 4100)])], &takeover(&[0])), None);
}

#[test]
fn without_times_of_publication_the_longest_silence_counts() {
    let logs = [delivered(&[(4, 4100), (5, 5500), (6, 7000), (7, 8100)])];
    let reference = Reference::from_sessions(logs.iter().map(|log| log.records.as_slice()));
    let measured = latency(&reference, &logs, &takeover(&[0]));
    assert_eq!(measured, Some(Latency { last_ns: 1500, first_ns: 1500, worst_ns: 1500 }));
}

#[test]
fn percentiles_are_by_nearest_rank() {
    let values: Vec<u64> = (1..=200).rev().collect();
    assert_eq!(percentile(&values, 50), Some(100));
    assert_eq!(percentile(&values, 99), Some(198));
    assert_eq!(percentile(&values, 100), Some(200));
    assert_eq!(percentile(&[7], 50), Some(7));
    assert_eq!(percentile(&[], 50), None);
}
