//! Owners in processes of their own, frozen and killed at any moment.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use common::*;
use paceline_proto::{id::Epoch, message::Submit};
use paceline_store::{Durability, FoldLimit, Inheritance, QueueDb, SubmitResult, reachable, remove};
use rustix::{
    fs::{FlockOperation, fcntl_lock},
    process::{Pid, Signal, WaitOptions, kill_process, waitpid},
};

const ROLE: &str = "PACELINE_STORE_TEST_ROLE";
const DIR: &str = "PACELINE_STORE_TEST_DIR";
const EPOCH: &str = "PACELINE_STORE_TEST_EPOCH";
const A: u128 = 0xa;

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n> {line}").unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: the other end of the others, in its own process.
#[test]
fn child() {
    let Ok(role) = env::var(ROLE) else { return };
    let dir = PathBuf::from(env::var(DIR).unwrap());
    let epoch = Epoch(env::var(EPOCH).unwrap().parse().unwrap());
    match role.as_str() {
        "reign" => {
            let end = serve(&dir, epoch).unwrap_err();
            say(&end);
        }
        "transaction" => stand_in_transaction(&dir, epoch),
        "every lock" => hold_every_lock(&dir),
        other => panic!("no such role: {other}"),
    }
}

fn claim(dir: &Path, epoch: Epoch) -> PathBuf {
    dir.join(format!("claim-{epoch}"))
}

/// A reign with rows, folds and removals; ends with the reason.
fn serve(dir: &Path, epoch: Epoch) -> Result<(), String> {
    let fenced = || claim(dir, epoch.next()).exists();
    let error = |e| format!("error {e}");
    let mut db = QueueDb::create(&kit_path(dir, u32::try_from(epoch.0).unwrap()), Durability::Process)
        .map_err(error)?;
    File::create_new(claim(dir, epoch)).unwrap();
    let inheritance = Inheritance::read(dir, epoch).map_err(error)?;
    db.adopt(&inheritance).map_err(error)?;
    db.verify_path().map_err(error)?;
    loop {
        let probe = db.commit(&[submit(A, u64::MAX)]).map_err(error)?;
        let [SubmitResult::Hole { expected }] = probe[..] else { panic!("{probe:?}") };
        let batch: Vec<_> = (expected..expected + 1 + expected % 3).map(|seq| row_of(epoch, seq)).collect();
        db.commit(&batch).map_err(error)?;
        if fenced() {
            return Err("fenced".into());
        }
        say(&format!("ok {} {}", expected, batch.len()));
        if expected % 4 == 0 {
            db.fold(FoldLimit { rows: 5, bytes: 1 << 20 }).map_err(error)?;
            db.maintain().map_err(error)?;
            let discardable = db.discardable().map_err(error)?;
            if fenced() {
                return Err("fenced".into());
            }
            discardable.iter().try_for_each(|path| remove(path)).map_err(error)?;
        }
    }
}

/// The payload says who stored it, so that a row cannot pass for its namesake of another epoch.
fn row_of(epoch: Epoch, seq: u64) -> Submit {
    let mut hash = [0; 16];
    hash[..8].copy_from_slice(&seq.to_be_bytes());
    hash[8..].copy_from_slice(&epoch.0.to_be_bytes());
    Submit { id: id(A, seq), hash, payload: format!("{epoch}").into() }
}

/// Stores three rows and then stays inside a write transaction.
fn stand_in_transaction(dir: &Path, epoch: Epoch) {
    let mut db = reign(dir, epoch.0);
    accept(&mut db, &[submit(A, 1), submit(A, 2), submit(A, 3)]);
    let conn = rusqlite::Connection::open(db.path()).unwrap();
    conn.execute_batch("BEGIN IMMEDIATE; UPDATE rows SET state = 0;").unwrap();
    say("ready");
    loop {
        std::thread::park();
    }
}

/// Holds every lock SQLite knows, as a process frozen while it repairs the index or closes the database would.
fn hold_every_lock(dir: &Path) {
    let path = kit_path(dir, 1);
    let files = ["db", "db-shm"]
        .map(|e| File::options().read(true).write(true).open(path.with_extension(e)).unwrap());
    for file in &files {
        fcntl_lock(file, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
    say("ready");
    loop {
        std::thread::park();
    }
}

struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Process {
    fn start(role: &str, dir: &Path, epoch: u64) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(DIR, dir)
            .env(EPOCH, epoch.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next line the role said; `None` when the process is gone.
    fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // A line cut by SIGKILL says nothing.
            if let Some(said) = line.strip_prefix("> ").and_then(|l| l.strip_suffix('\n')) {
                return Some(said.into());
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn freeze(&self) {
        self.signal(Signal::STOP);
        let status = waitpid(Some(Pid::from_child(&self.child)), WaitOptions::UNTRACED).unwrap().unwrap().1;
        assert!(status.stopped(), "{status:?}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_frozen_transaction_does_not_block_adoption() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = Process::start("transaction", dir.path(), 1);
    assert_eq!(owner.hear().as_deref(), Some("ready"));
    owner.freeze();
    // It does hold SQLite's write lock.
    let other = rusqlite::Connection::open(kit_path(dir.path(), 1)).unwrap();
    other.busy_timeout(std::time::Duration::ZERO).unwrap();
    let busy = other.execute_batch("BEGIN IMMEDIATE").unwrap_err();
    assert_eq!(busy.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy));
    let mut successor = reign(dir.path(), 2);
    assert_eq!(ids(&all_rows(&mut successor)), [(A, 1), (A, 2), (A, 3)]);
    accept(&mut successor, &[submit(A, 4)]);
}

#[test]
fn no_lock_at_all_blocks_adoption() {
    let dir = tempfile::tempdir().unwrap();
    accept(&mut reign(dir.path(), 1), &[submit(A, 1), submit(A, 2)]);
    let mut holder = Process::start("every lock", dir.path(), 0);
    assert_eq!(holder.hear().as_deref(), Some("ready"));
    holder.freeze();
    // An ordinary reader waits in vain.
    let other = rusqlite::Connection::open(kit_path(dir.path(), 1)).unwrap();
    other.busy_timeout(std::time::Duration::ZERO).unwrap();
    assert!(other.query_row("SELECT count(*) FROM rows", [], |_| Ok(())).is_err());
    let mut successor = reign(dir.path(), 2);
    assert_eq!(ids(&all_rows(&mut successor)), [(A, 1), (A, 2)]);
    while successor.fold(FoldLimit::default()).unwrap().left > 0 {}
    assert_eq!(ids(&all_rows(&mut successor)), [(A, 1), (A, 2)]);
}

/// What the owners said was acknowledged: sequence number to epoch.
#[derive(Default)]
struct Promises(BTreeMap<u64, u64>);

impl Promises {
    fn note(&mut self, epoch: u64, said: &str) -> bool {
        let words: Vec<_> = said.split(' ').collect();
        let ["ok", first, count] = words[..] else { return false };
        let (first, count): (u64, u64) = (first.parse().unwrap(), count.parse().unwrap());
        for seq in first..first + count {
            assert_eq!(self.0.insert(seq, epoch), None, "{seq} was acknowledged twice");
        }
        true
    }

    fn check(&self, dir: &Path) {
        let rows = reachable(dir).unwrap().rows;
        let seqs: Vec<_> = rows.iter().map(|r| r.id.seq).collect();
        assert_eq!(seqs, (1..=rows.len() as u64).collect::<Vec<_>>(), "each once, in order");
        for (seq, epoch) in &self.0 {
            let row = &rows[usize::try_from(*seq).unwrap() - 1];
            assert_eq!(row.payload, epoch.to_string(), "row {seq}");
        }
    }
}

/// Owner after owner is killed, or replaced while it goes on, or frozen and let go when others have reigned, each at
/// no particular moment.
#[test]
fn what_was_acknowledged_survives_kills_and_freezes() {
    const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
    let dir = tempfile::tempdir().unwrap();
    let mut promises = Promises::default();
    let mut replaced: Vec<(u64, Process)> = Vec::new();
    let (mut random, mut fenced) = (SEED, 0);
    for epoch in 1..=40 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut owner = Process::start("reign", dir.path(), epoch);
        for _ in 0..=random % 24 {
            let said = owner.hear().expect("it reigns until it is stopped");
            assert!(promises.note(epoch, &said), "{said}");
        }
        match random >> 8 & 3 {
            0 => {
                owner.signal(Signal::KILL);
                while let Some(said) = owner.hear() {
                    assert!(promises.note(epoch, &said), "{said}");
                }
            }
            1 => {
                owner.freeze();
                replaced.push((epoch, owner));
            }
            _ => replaced.push((epoch, owner)),
        }
        if replaced.first().is_some_and(|(e, _)| e + 2 <= epoch) {
            fenced += come_back(&mut promises, replaced.remove(0));
        }
        // What a replaced owner said and was not heard yet is checked later.
        promises.check(dir.path());
    }
    // The last one reigns on: nobody claimed over it.
    for owner in replaced.into_iter().filter(|(e, _)| *e < 40) {
        fenced += come_back(&mut promises, owner);
    }
    promises.check(dir.path());
    assert!(fenced > 5, "{fenced} owners came back to find themselves fenced");
}

/// Lets a replaced owner go on. It must find out by itself that it was replaced.
fn come_back(promises: &mut Promises, (epoch, mut owner): (u64, Process)) -> u32 {
    owner.signal(Signal::CONT);
    let mut end = String::new();
    while let Some(said) = owner.hear() {
        if !promises.note(epoch, &said) {
            end = said;
        }
    }
    // Where its files were folded and removed meanwhile it learns it from an error.
    assert!(end == "fenced" || end.starts_with("error "), "{end}");
    1
}
