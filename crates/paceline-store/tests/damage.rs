//! Directories that no owner left behind like that: each is reported, and none is taken for an older state.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::Path,
};

use common::*;
use paceline_proto::id::Epoch;
use paceline_store::{Durability, Inheritance, QueueDb, StoreError, inspect, reachable, remove, scan};

const A: u128 = 0xa;

/// Epoch 1 and 2 with a row each, both owners gone.
fn two_reigns(dir: &Path) {
    for epoch in 1..=2 {
        accept(&mut reign(dir, epoch), &[submit(A, epoch)]);
    }
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

fn truncate(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

fn execute(path: &Path, sql: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn a_damaged_newest_database_is_never_passed_over() {
    type Damage = fn(&Path);
    let table: [(&str, Damage); 9] = [
        ("emptied", |p| truncate(p, 0)),
        ("cut to half a page", |p| truncate(p, 2000)),
        ("cut to one page", |p| truncate(p, 4096)),
        ("cut below its reserve", |p| truncate(p, 1 << 19)),
        ("another file", |p| overwrite(p, 0, &[b'x'; 100])),
        ("garbage", |p| fs::write(p, vec![0xa5; 2 << 20]).unwrap()),
        ("foreign database", |p| {
            fs::remove_file(p).unwrap();
            execute(p, "CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(2000000));");
        }),
        ("log with a broken header", |p| overwrite(&p.with_extension("db-wal"), 3, &[0xff])),
        ("no tables", |p| execute(p, "DROP TABLE meta;")),
    ];
    for (name, damage) in table {
        let dir = tempfile::tempdir().unwrap();
        two_reigns(dir.path());
        let newest = kit_path(dir.path(), 2);
        damage(&newest);
        let refused = Inheritance::read(dir.path(), Epoch(3)).expect_err(name);
        assert!(
            matches!(&refused, StoreError::Corrupt { path, .. } if path.starts_with(dir.path())),
            "{name}: {refused}"
        );
        assert!(!refused.retryable(), "{name}");
        assert!(reachable(dir.path()).is_err(), "{name}");
        assert_eq!(scan(dir.path()).unwrap().problems.len(), 1, "{name}");
    }
}

#[test]
fn a_damaged_page_of_rows_is_an_error_not_a_shorter_queue() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = reign(dir.path(), 1);
    let batch: Vec<_> = (1..=400).map(|seq| submit(A, seq)).collect();
    accept(&mut db, &batch);
    db.maintain().unwrap();
    drop(db);
    let path = kit_path(dir.path(), 1);
    execute(&path, "PRAGMA wal_checkpoint(TRUNCATE);");
    let root: u64 = rusqlite::Connection::open(&path)
        .unwrap()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'rows'", [], |r| r.get::<_, i64>(0))
        .unwrap()
        .cast_unsigned();
    overwrite(&path, (root - 1) * 4096, &[0xee; 4096]);
    assert!(matches!(reachable(dir.path()), Err(StoreError::Corrupt { .. })));
}

#[test]
fn a_missing_segment_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    two_reigns(dir.path());
    let mut db = reign(dir.path(), 3);
    remove(&kit_path(dir.path(), 1)).unwrap();
    assert!(matches!(db.rows(None, 10), Err(StoreError::Io { .. })));
    let refused = db.commit(&[submit(A, 3)]).unwrap_err();
    assert!(matches!(refused, StoreError::Io { .. }));
    // Nothing was written, so the handle is not given up: the file may come back.
    assert!(!db.is_poisoned());
    assert!(reachable(dir.path()).is_err());
}

#[test]
fn two_databases_of_one_epoch_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    for nonce in [1, 2] {
        kit(dir.path(), nonce).adopt(&Inheritance::none(dir.path(), Epoch(7))).unwrap();
    }
    let refused = Inheritance::read(dir.path(), Epoch(8)).unwrap_err();
    assert!(matches!(refused, StoreError::TwoComplete { epoch: Epoch(7), .. }), "{refused}");
    assert_eq!(scan(dir.path()).unwrap().highest_complete, Epoch(7));
}

#[test]
fn a_newer_schema_is_refused_and_a_newer_kit_is_not() {
    let dir = tempfile::tempdir().unwrap();
    drop(reign(dir.path(), 1));
    drop(kit(dir.path(), 2));
    let newer =
        "UPDATE meta SET value = 9 WHERE key = 'schema'; UPDATE meta SET value = 8 WHERE key = 'min_reader';";
    execute(&kit_path(dir.path(), 2), newer);
    assert!(scan(dir.path()).unwrap().problems.is_empty());
    execute(&kit_path(dir.path(), 1), newer);
    // Its tables may look different too.
    execute(&kit_path(dir.path(), 1), "ALTER TABLE segments RENAME TO pieces; DROP TABLE rows;");
    let found = scan(dir.path()).unwrap();
    assert_eq!(found.too_new(), Some((9, 8)));
    assert_eq!(found.highest_complete, Epoch(1));
    for refused in
        [Inheritance::read(dir.path(), Epoch(2)).unwrap_err(), inspect(&kit_path(dir.path(), 1)).unwrap_err()]
    {
        assert!(matches!(refused, StoreError::TooNew { schema: 9, min_reader: 8, .. }), "{refused}");
    }
    // A newer schema that older builds may read is read.
    execute(&kit_path(dir.path(), 2), "UPDATE meta SET value = 1 WHERE key = 'min_reader';");
    assert_eq!(inspect(&kit_path(dir.path(), 2)).unwrap().schema, 9);
}

#[test]
fn impossible_segments_are_refused() {
    for values in
        ["(1, '../q-1.db', 0, 5)", "(1, 'q-../x.db', 0, 5)", "(2, 'q-1.db', 0, 5)", "(1, 'q-1.db', 5, 5)"]
    {
        let dir = tempfile::tempdir().unwrap();
        drop(reign(dir.path(), 2));
        execute(
            &kit_path(dir.path(), 2),
            &format!("INSERT INTO segments (epoch, file, after, upto) VALUES {values};"),
        );
        assert!(matches!(inspect(&kit_path(dir.path(), 2)), Err(StoreError::Corrupt { .. })), "{values}");
    }
}

#[test]
fn a_moved_database_is_noticed_by_the_next_commit() {
    type Move = fn(&Path, &Path);
    let table: [(&str, Move); 4] = [
        ("removed", |p, _| fs::remove_file(p).unwrap()),
        ("renamed", |p, dir| fs::rename(p, dir.join("elsewhere")).unwrap()),
        ("replaced", |p, dir| {
            fs::copy(p, dir.join("copy")).unwrap();
            fs::rename(dir.join("copy"), p).unwrap();
        }),
        ("log removed", |p, _| fs::remove_file(p.with_extension("db-wal")).unwrap()),
    ];
    for (name, change) in table {
        let dir = tempfile::tempdir().unwrap();
        let mut db = reign(dir.path(), 1);
        accept(&mut db, &[submit(A, 1)]);
        change(&kit_path(dir.path(), 1), dir.path());
        assert!(matches!(db.verify_path(), Err(StoreError::Moved { .. })), "{name}");
        let refused = db.commit(&[submit(A, 2)]).expect_err(name);
        assert!(refused.state_unknown() && matches!(refused, StoreError::Moved { .. }), "{name}: {refused}");
        assert!(matches!(db.commit(&[submit(A, 2)]), Err(StoreError::Poisoned { .. })), "{name}");
        assert!(matches!(db.maintain(), Err(StoreError::Poisoned { .. })), "{name}");
    }
}

#[test]
fn names_are_taken_once_and_have_one_form() {
    let dir = tempfile::tempdir().unwrap();
    let create = |name: &str| QueueDb::create(&dir.path().join(name), Durability::Power);
    for name in ["q-.db", "q-1.sqlite", "claims.db", "q-1"] {
        assert!(matches!(create(name), Err(StoreError::Name { .. })), "{name}");
    }
    fs::write(dir.path().join("q-1.db"), b"somebody's").unwrap();
    assert!(matches!(create("q-1.db"), Err(StoreError::Exists { .. })));
    assert_eq!(fs::read(dir.path().join("q-1.db")).unwrap(), b"somebody's");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left of the attempt");
}

#[test]
fn a_kit_that_cannot_be_finished_leaves_no_database() {
    let dir = tempfile::tempdir().unwrap();
    // Where the log should be.
    fs::create_dir(dir.path().join("q-1.db-wal")).unwrap();
    let failed = QueueDb::create(&dir.path().join("q-1.db"), Durability::Power).err().unwrap();
    assert!(matches!(failed, StoreError::Io { .. }), "{failed}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn leftovers_are_collected_and_work_in_progress_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let db = reign(dir.path(), 1);
    let path = |name: &str| dir.path().join(name);
    for name in ["q-7.db.new", "q-8.db-wal", "q-9.db-shm", "q-6.db.new"] {
        fs::write(path(name), b"x").unwrap();
    }
    let maker = File::open(path("q-6.db.new")).unwrap();
    maker.lock().unwrap();
    assert_eq!(db.discardable().unwrap(), [path("q-7.db.new"), path("q-8.db-wal"), path("q-9.db-shm")]);
    for leftover in db.discardable().unwrap() {
        remove(&leftover).unwrap();
    }
    assert!(db.discardable().unwrap().is_empty() && path("q-6.db.new").exists());
}

/// A takeover on a full disk: neither adoption nor the first commits may need a block the kit did not have.
#[test]
fn the_reserve_carries_adoption_and_commits() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    accept(&mut reign(dir.path(), 1), &[submit(A, 1)]);
    let path = kit_path(dir.path(), 2);
    let mut db = QueueDb::create(&path, Durability::Power).unwrap();
    let sizes = || {
        ["db", "db-wal", "db-shm"]
            .map(|e| fs::metadata(path.with_extension(e)).map(|m| (m.len(), m.blocks())).unwrap())
    };
    let before = sizes();
    assert!(before[0].0 >= 1 << 20 && before[1].0 >= 1 << 20, "{before:?}");
    assert!(before.iter().all(|(len, blocks)| blocks * 512 >= *len), "written, not sparse: {before:?}");
    db.adopt(&Inheritance::read(dir.path(), Epoch(2)).unwrap()).unwrap();
    for seq in 2..=150 {
        let mut submit = submit(A, seq);
        submit.payload = vec![b'x'; 4000].into();
        accept(&mut db, &[submit]);
        db.maintain().unwrap();
    }
    assert_eq!(sizes(), before);
    assert_eq!(db.counts().rows, 150);
}

#[test]
fn people_can_look_with_ordinary_tools() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = reign(dir.path(), 1);
    accept(&mut db, &[submit(A, 1)]);
    let looker = rusqlite::Connection::open(db.path()).unwrap();
    let count = || looker.query_row("SELECT count(*) FROM rows", [], |r| r.get::<_, i64>(0)).unwrap();
    assert_eq!(count(), 1);
    accept(&mut db, &[submit(A, 2)]);
    assert_eq!(count(), 2);
    // Somebody who writes is in the way, and is named as that.
    looker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = db.commit(&[submit(A, 3)]).unwrap_err();
    assert!(refused.retryable() && matches!(refused, StoreError::Busy { .. }));
    looker.execute_batch("ROLLBACK").unwrap();
    accept(&mut db, &[submit(A, 3)]);
    drop(looker);
    db.verify_path().unwrap();
}
