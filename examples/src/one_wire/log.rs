//! Logs of what was published and what was delivered: fixed-size records, so that a killed writer leaves a log that
//! reads to its last whole record.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use super::control::Inject;

const RECORD_BYTES: usize = 32;
const EVENT: u64 = 1;
const GAP: u64 = 2;

/// One line of a log. Times are of [`now_ns`](super::clock::now_ns).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// An event was published (feed) or delivered (session).
    Event {
        /// The number the feed gave it.
        number: u64,
        /// Fingerprint of its payload.
        hash: u64,
        /// When.
        at_ns: u64,
    },
    /// The session was told that events may be missing here.
    Gap {
        /// When.
        at_ns: u64,
    },
}

impl Record {
    fn encode(self) -> [u8; RECORD_BYTES] {
        let words = match self {
            Self::Event { number, hash, at_ns } => [EVENT, number, hash, at_ns],
            Self::Gap { at_ns } => [GAP, 0, 0, at_ns],
        };
        let mut bytes = [0; RECORD_BYTES];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |i: usize| Some(u64::from_le_bytes(bytes.get(i * 8..i * 8 + 8)?.try_into().ok()?));
        match word(0)? {
            EVENT => Some(Self::Event { number: word(1)?, hash: word(2)?, at_ns: word(3)? }),
            GAP => Some(Self::Gap { at_ns: word(3)? }),
            _ => None,
        }
    }
}

/// Appends records. What [`flush`](Self::flush) returned for is safe from SIGKILL of the writer.
#[derive(Debug)]
pub struct LogWriter {
    file: File,
    buffer: Vec<u8>,
    tamper: Option<Tamper>,
}

/// A fault put into one session's log on purpose, to see the comparison fail.
#[derive(Debug)]
struct Tamper {
    inject: Inject,
    /// Events so far.
    seen: u32,
    held: Option<Record>,
}

/// The event of a tampered log that is dropped, repeated, or swapped with the next one.
const TAMPERED_EVENT: u32 = 100;

impl LogWriter {
    /// Creates the log; it must not exist.
    pub fn create(path: &Path, inject: Option<Inject>) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create_new(true).open(path)?;
        let tamper = inject.map(|inject| Tamper { inject, seen: 0, held: None });
        Ok(Self { file, buffer: Vec::new(), tamper })
    }

    /// Adds a record to the batch.
    pub fn push(&mut self, record: Record) {
        match &mut self.tamper {
            None => self.buffer.extend(record.encode()),
            Some(tamper) => tamper.push(record, &mut self.buffer),
        }
    }

    /// Hands the batch to the operating system in one write.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

impl Tamper {
    fn push(&mut self, record: Record, out: &mut Vec<u8>) {
        if matches!(record, Record::Gap { .. }) {
            return out.extend(record.encode());
        }
        self.seen += 1;
        match self.inject {
            Inject::Drop if self.seen == TAMPERED_EVENT => return,
            Inject::Repeat if self.seen == TAMPERED_EVENT => out.extend(record.encode()),
            Inject::Swap if self.seen == TAMPERED_EVENT => {
                self.held = Some(record);
                return;
            }
            Inject::Drop | Inject::Repeat | Inject::Swap => {}
        }
        out.extend(record.encode());
        if let Some(held) = self.held.take() {
            out.extend(held.encode());
        }
    }
}

/// Reads a whole log, leaving out a record that a killed writer cut short.
pub fn read_log(path: &Path) -> io::Result<Vec<Record>> {
    let bytes = std::fs::read(path)?;
    bytes
        .chunks_exact(RECORD_BYTES)
        .map(|chunk| {
            Record::decode(chunk)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown kind of record"))
        })
        .collect()
}

/// Follows a log that another process writes.
#[derive(Debug)]
pub struct Tail {
    file: File,
    rest: Vec<u8>,
    progress: Progress,
}

/// How far a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Events in it.
    pub events: u64,
    /// Gaps told in it.
    pub gaps: u64,
    /// Number of its latest event; 0 before the first.
    pub last: u64,
}

impl Tail {
    /// Opens a log at its beginning.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, rest: Vec::new(), progress: Progress::default() })
    }

    /// Reads what was added and tells how far the log is now.
    pub fn advance(&mut self) -> io::Result<Progress> {
        self.file.read_to_end(&mut self.rest)?;
        let whole = self.rest.len() - self.rest.len() % RECORD_BYTES;
        for chunk in self.rest[..whole].chunks_exact(RECORD_BYTES) {
            match Record::decode(chunk) {
                Some(Record::Event { number, .. }) => {
                    self.progress.events += 1;
                    self.progress.last = number;
                }
                Some(Record::Gap { .. }) => self.progress.gaps += 1,
                None => return Err(io::Error::new(io::ErrorKind::InvalidData, "unknown kind of record")),
            }
        }
        self.rest.drain(..whole);
        Ok(self.progress)
    }

    /// What the last look found.
    pub fn progress(&self) -> Progress {
        self.progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::one_wire::child::TempDir;

    fn event(number: u64) -> Record {
        Record::Event { number, hash: number * 7, at_ns: number * 1000 }
    }

    fn numbers(records: &[Record]) -> Vec<u64> {
        records
            .iter()
            .filter_map(|record| match record {
                Record::Event { number, .. } => Some(*number),
                Record::Gap { .. } => None,
            })
            .collect()
    }

    fn written(inject: Option<Inject>) -> Vec<u64> {
        let dir = TempDir::new("log").unwrap();
        let path = dir.path().join("events");
        let mut log = LogWriter::create(&path, inject).unwrap();
        for number in 1..=103 {
            log.push(event(number));
        }
        log.flush().unwrap();
        numbers(&read_log(&path).unwrap())
    }

    #[test]
    fn records_read_back_and_a_cut_record_is_left_out() {
        let dir = TempDir::new("log").unwrap();
        let path = dir.path().join("events");
        let records = [event(1), Record::Gap { at_ns: 5 }, event(2)];
        let mut log = LogWriter::create(&path, None).unwrap();
        records.into_iter().for_each(|record| log.push(record));
        log.flush().unwrap();
        assert_eq!(read_log(&path).unwrap(), records);
        OpenOptions::new().write(true).open(&path).unwrap().set_len(70).unwrap();
        assert_eq!(read_log(&path).unwrap(), records[..2]);
    }

    #[test]
    fn a_tail_follows_what_is_added() {
        let dir = TempDir::new("log").unwrap();
        let path = dir.path().join("events");
        let mut log = LogWriter::create(&path, None).unwrap();
        let mut tail = Tail::open(&path).unwrap();
        assert_eq!(tail.advance().unwrap(), Progress::default());
        log.push(event(9));
        log.push(Record::Gap { at_ns: 1 });
        log.flush().unwrap();
        assert_eq!(tail.advance().unwrap(), Progress { events: 1, gaps: 1, last: 9 });
    }

    #[test]
    fn faults_touch_one_event_only() {
        let whole: Vec<u64> = (1..=103).collect();
        assert_eq!(written(None), whole);
        let without = |n: u64| whole.iter().copied().filter(|m| *m != n).collect::<Vec<_>>();
        assert_eq!(written(Some(Inject::Drop)), without(100));
        let mut repeated = whole.clone();
        repeated.insert(100, 100);
        assert_eq!(written(Some(Inject::Repeat)), repeated);
        let mut swapped = whole.clone();
        swapped.swap(99, 100);
        assert_eq!(written(Some(Inject::Swap)), swapped);
    }
}
