//! Reigns that follow each other: what is adopted, what stays invisible, what folds.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::*;
use paceline_proto::id::Epoch;
use paceline_store::{
    FoldLimit, Inheritance, Mark, RowState, SubmitResult, inspect, reachable, remove, scan,
};

const A: u128 = 0xa;
const B: u128 = 0xb;

#[test]
fn one_batch_answers_each_submit() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = reign(dir.path(), 1);
    let batch = [
        submit(A, 1),
        submit(A, 2),
        submit(B, 2),
        submit(A, 1),
        submit_as(A, 2, 9),
        submit(B, 1),
        submit(A, 0),
        submit(A, 3),
    ];
    assert_eq!(
        db.commit(&batch).unwrap(),
        [
            SubmitResult::Accepted { row: 1 },
            SubmitResult::Accepted { row: 2 },
            SubmitResult::Hole { expected: 1 },
            SubmitResult::Duplicate,
            SubmitResult::HashMismatch,
            SubmitResult::Accepted { row: 3 },
            SubmitResult::Hole { expected: 3 },
            SubmitResult::Accepted { row: 4 },
        ]
    );
    assert_eq!(
        db.commit(&[submit(A, 3), submit(B, 3)]).unwrap(),
        [SubmitResult::Duplicate, SubmitResult::Hole { expected: 2 }]
    );
    let rows = all_rows(&mut db);
    assert_eq!(ids(&rows), [(A, 1), (A, 2), (B, 1), (A, 3)]);
    assert_eq!(rows[2].payload, submit(B, 1).payload);
    assert_eq!(rows[2].hash, submit(B, 1).hash);
}

#[test]
fn duplicates_and_holes_are_seen_across_epochs() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = reign(dir.path(), 1);
    accept(&mut first, &[submit(A, 1), submit(A, 2), submit(B, 1)]);
    drop(first);
    let mut second = reign(dir.path(), 2);
    accept(&mut second, &[submit(A, 3)]);
    drop(second);
    let mut third = reign(dir.path(), 3);
    assert_eq!(
        third
            .commit(&[
                submit(A, 2),
                submit_as(A, 2, 7),
                submit(A, 3),
                submit(A, 5),
                submit(A, 4),
                submit(B, 3)
            ])
            .unwrap(),
        [
            SubmitResult::Duplicate,
            SubmitResult::HashMismatch,
            SubmitResult::Duplicate,
            SubmitResult::Hole { expected: 4 },
            SubmitResult::Accepted { row: 1 },
            SubmitResult::Hole { expected: 2 },
        ]
    );
    assert_eq!(ids(&all_rows(&mut third)), [(A, 1), (A, 2), (B, 1), (A, 3), (A, 4)]);
    let counts = third.counts();
    assert_eq!((counts.rows, counts.inherited, counts.segments), (5, 4, 2));
}

/// Owner 1 commits after its successor read: it will find itself fenced, and nobody may ever see the row.
#[test]
fn rows_beyond_the_bound_stay_invisible() {
    let dir = tempfile::tempdir().unwrap();
    let mut stale = reign(dir.path(), 1);
    accept(&mut stale, &[submit(A, 1)]);
    let mut second = kit(dir.path(), 2);
    let inheritance = Inheritance::read(dir.path(), Epoch(2)).unwrap();
    accept(&mut stale, &[submit(A, 2), submit(B, 1)]);
    let adopted = second.adopt(&inheritance).unwrap();
    assert_eq!((adopted.predecessor, adopted.rows, adopted.segments), (Some(Epoch(1)), 1, 1));
    accept(&mut stale, &[submit(B, 2)]);
    assert_eq!(ids(&all_rows(&mut second)), [(A, 1)]);
    // What the stale owner stored does not make a resubmit a duplicate, and is shadowed by what comes after.
    accept(&mut second, &[submit_as(A, 2, 1), submit(B, 1)]);
    assert_eq!(second.commit(&[submit(A, 2)]).unwrap(), [SubmitResult::HashMismatch]);
    drop(stale);
    let mut third = reign(dir.path(), 3);
    assert_eq!(ids(&all_rows(&mut third)), [(A, 1), (A, 2), (B, 1)]);
    assert_eq!(all_rows(&mut third)[1].hash, submit_as(A, 2, 1).hash);
    let again = third.commit(&[submit_as(A, 2, 1), submit(A, 2), submit(B, 3)]).unwrap();
    assert_eq!(
        again,
        [SubmitResult::Duplicate, SubmitResult::HashMismatch, SubmitResult::Hole { expected: 2 }]
    );
    while !third.segments().is_empty() {
        third.fold(FoldLimit { rows: 1, bytes: 0 }).unwrap();
    }
    assert_eq!(ids(&all_rows(&mut third)), [(A, 1), (A, 2), (B, 1)]);
}

/// 42 reads and stops, 43 reads and reigns, 42 goes on: 44 must adopt 43, not the database that completed last.
#[test]
fn a_late_adoption_of_a_lower_epoch_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = reign(dir.path(), 41);
    accept(&mut first, &[submit(A, 1)]);
    let mut late = kit(dir.path(), 42);
    let late_inheritance = Inheritance::read(dir.path(), Epoch(42)).unwrap();
    let mut third = reign(dir.path(), 43);
    accept(&mut third, &[submit(A, 2)]);
    late.adopt(&late_inheritance).unwrap();
    accept(&mut late, &[submit(A, 2), submit(A, 3)]);
    assert!(matches!(
        Inheritance::read(dir.path(), Epoch(42)),
        Err(paceline_store::StoreError::Superseded { complete: Epoch(43), .. })
    ));
    let mut fourth = reign(dir.path(), 44);
    assert_eq!(ids(&all_rows(&mut fourth)), [(A, 1), (A, 2)]);
}

#[test]
fn folding_keeps_order_and_frees_files() {
    let dir = tempfile::tempdir().unwrap();
    for epoch in 1..=4 {
        let mut db = reign(dir.path(), epoch);
        let batch: Vec<_> = (1..=5).map(|i| submit(A, 5 * (epoch - 1) + i)).collect();
        accept(&mut db, &batch);
    }
    let mut db = reign(dir.path(), 5);
    accept(&mut db, &[submit(A, 21), submit(B, 1)]);
    let expected: Vec<_> = (1..=21).map(|seq| (A, seq)).chain([(B, 1)]).collect();
    assert!(db.discardable().unwrap().is_empty());

    let folded = db.fold(FoldLimit { rows: 7, bytes: 1 << 20 }).unwrap();
    assert_eq!((folded.rows, folded.left), (7, 3));
    assert_eq!(folded.dropped, ["q-00000001.db"]);
    assert_eq!(db.discardable().unwrap(), [kit_path(dir.path(), 1)]);
    assert_eq!(ids(&all_rows(&mut db)), expected);
    // A successor of the half-folded state sees the same.
    let mut db = reign(dir.path(), 6);
    assert_eq!(ids(&all_rows(&mut db)), expected);
    assert_eq!(db.commit(&[submit(A, 6), submit(A, 21)]).unwrap(), [SubmitResult::Duplicate; 2]);

    while db.fold(FoldLimit { rows: 4, bytes: 1 << 20 }).unwrap().left > 0 {}
    accept(&mut db, &[submit(A, 22)]);
    let expected: Vec<_> = expected.into_iter().chain([(A, 22)]).collect();
    assert_eq!(ids(&all_rows(&mut db)), expected);
    let discardable = db.discardable().unwrap();
    assert_eq!(discardable, (1..=5).map(|n| kit_path(dir.path(), n)).collect::<Vec<_>>());
    discardable.iter().for_each(|path| remove(path).unwrap());
    assert_eq!(ids(&all_rows(&mut db)), expected);
    drop(db);
    assert_eq!(ids(&reachable(dir.path()).unwrap().rows), expected);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn a_fold_copies_what_its_limit_allows() {
    for (rows, bytes, copied) in
        [(3, 1 << 20, 3), (0, 1 << 20, 1), (9, 0, 1), (9, 12, 2), (9, 13, 3), (9, 1 << 20, 6)]
    {
        let dir = tempfile::tempdir().unwrap();
        for epoch in 1..=2 {
            let batch: Vec<_> = (1..=3).map(|i| submit(A, 3 * (epoch - 1) + i)).collect();
            assert!(batch.iter().all(|s| s.payload.len() == 6));
            accept(&mut reign(dir.path(), epoch), &batch);
        }
        let mut db = reign(dir.path(), 3);
        assert_eq!(db.fold(FoldLimit { rows, bytes }).unwrap().rows, copied, "{rows} rows, {bytes} bytes");
    }
}

/// The stale owner folds after its successor read: its copies lie beyond the bound, the originals still count.
#[test]
fn a_stale_fold_shows_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = reign(dir.path(), 1);
    accept(&mut first, &[submit(A, 1), submit(A, 2)]);
    let mut stale = reign(dir.path(), 2);
    accept(&mut stale, &[submit(B, 1)]);
    let mut third = kit(dir.path(), 3);
    let inheritance = Inheritance::read(dir.path(), Epoch(3)).unwrap();
    assert_eq!(stale.fold(FoldLimit::default()).unwrap().rows, 2);
    third.adopt(&inheritance).unwrap();
    assert_eq!(ids(&all_rows(&mut third)), [(A, 1), (A, 2), (B, 1)]);
    drop((first, stale, third));
    assert_eq!(ids(&reachable(dir.path()).unwrap().rows), [(A, 1), (A, 2), (B, 1)]);
}

#[test]
fn rows_that_were_answered_unknown_can_be_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = reign(dir.path(), 1);
    accept(&mut db, &[submit(A, 1)]);
    let durable = db.last_durable();
    accept(&mut db, &[submit(A, 2)]);
    let mut own = kit(dir.path(), 2);
    let mut inheritance = Inheritance::read(dir.path(), Epoch(2)).unwrap();
    inheritance.forget_beyond(durable);
    own.adopt(&inheritance).unwrap();
    assert_eq!(ids(&all_rows(&mut own)), [(A, 1)]);
    accept(&mut own, &[submit(A, 2)]);
}

#[test]
fn an_empty_predecessor_is_not_named() {
    let dir = tempfile::tempdir().unwrap();
    drop(reign(dir.path(), 1));
    drop(reign(dir.path(), 2));
    let db = reign(dir.path(), 3);
    assert!(db.segments().is_empty());
    assert_eq!(db.discardable().unwrap().len(), 2);
    let seen = inspect(db.path()).unwrap();
    assert_eq!((seen.complete, seen.rows, seen.segments.len()), (Some(Epoch(3)), 0, 0));
}

#[test]
fn a_database_belongs_to_one_epoch_only() {
    use paceline_store::StoreError;
    let dir = tempfile::tempdir().unwrap();
    let mut db = kit(dir.path(), 1);
    assert!(matches!(db.commit(&[submit(A, 1)]), Err(StoreError::NotAdopted { .. })));
    assert!(matches!(db.discardable(), Err(StoreError::NotAdopted { .. })));
    assert!(scan(dir.path()).unwrap().complete.is_empty());
    db.adopt(&Inheritance::none(dir.path(), Epoch(1))).unwrap();
    let again = db.adopt(&Inheritance::none(dir.path(), Epoch(2)));
    assert!(matches!(again, Err(StoreError::AlreadyAdopted { epoch: Epoch(1), .. })));
    assert!(matches!(Inheritance::read(dir.path(), Epoch(1)), Err(StoreError::Superseded { .. })));
}

#[test]
fn at_the_cap_a_fold_still_gives_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = reign(dir.path(), 1);
    accept(&mut first, &[submit(A, 1)]);
    drop(first);
    let mut db = reign(dir.path(), 2);
    db.set_disk_cap(1);
    assert!(matches!(db.commit(&[submit(A, 2)]), Err(paceline_store::StoreError::CapReached { .. })));
    let before = db.counts();
    assert_eq!(db.fold(FoldLimit::default()).unwrap().left, 0);
    let after = db.counts();
    let bytes = |counts: paceline_store::Counts| counts.own_bytes + counts.inherited_bytes;
    assert!(bytes(after) < bytes(before), "{before:?} {after:?}");
    assert_eq!(after.rows, 1);
}

#[test]
fn a_full_quota_refuses_and_stays_usable() {
    use paceline_store::StoreError;
    let dir = tempfile::tempdir().unwrap();
    let mut db = reign(dir.path(), 1);
    let used = db.counts().own_bytes;
    db.set_disk_cap(used + submit(A, 1).payload.len() as u64 - 1);
    let refused = db.commit(&[submit(A, 1)]).unwrap_err();
    assert!(
        matches!(refused, StoreError::CapReached { .. }) && refused.retryable() && !refused.state_unknown()
    );
    db.set_disk_cap(used + submit(A, 1).payload.len() as u64);
    accept(&mut db, &[submit(A, 1)]);
    // A duplicate stores nothing and is answered even then.
    db.set_disk_cap(0);
    assert_eq!(db.commit(&[submit(A, 1)]).unwrap(), [SubmitResult::Duplicate]);
    // What became of it is stored in any case: nothing else ever makes room.
    let mark = Mark { id: id(A, 1), state: RowState::Done, details: "{}".into() };
    db.store(&[], &[mark]).unwrap();
    assert_eq!(all_rows(&mut db).last().map(|row| row.state), Some(RowState::Done));
}
