//! What the scenarios share: rows that can be told apart, kits, reigns.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use paceline_proto::{
    id::{Epoch, MutationId, SessionId},
    message::Submit,
};
use paceline_store::{Durability, Inheritance, QueueDb, Row, SubmitResult};

pub fn id(session: u128, seq: u64) -> MutationId {
    MutationId { session: SessionId(session), seq }
}

/// The submit of (session, seq), the same one each time.
pub fn submit(session: u128, seq: u64) -> Submit {
    submit_as(session, seq, 0)
}

/// A submit whose hash differs with `variant`.
pub fn submit_as(session: u128, seq: u64, variant: u8) -> Submit {
    let mut hash = [variant; 16];
    hash[..8].copy_from_slice(&seq.to_be_bytes());
    Submit { id: id(session, seq), hash, payload: Bytes::from(format!("{session}/{seq}/{variant}")) }
}

pub fn kit_path(dir: &Path, nonce: u32) -> PathBuf {
    dir.join(format!("q-{nonce:08x}.db"))
}

pub fn kit(dir: &Path, nonce: u32) -> QueueDb {
    QueueDb::create(&kit_path(dir, nonce), Durability::Process).unwrap()
}

/// A reign from kit to acknowledging; the nonce is the epoch.
pub fn reign(dir: &Path, epoch: u64) -> QueueDb {
    let mut db = kit(dir, u32::try_from(epoch).unwrap());
    db.adopt(&Inheritance::read(dir, Epoch(epoch)).unwrap()).unwrap();
    db.verify_path().unwrap();
    db
}

/// Commits submits that must all be new.
pub fn accept(db: &mut QueueDb, batch: &[Submit]) {
    let results = db.commit(batch).unwrap();
    assert!(results.iter().all(|r| matches!(r, SubmitResult::Accepted { .. })), "{results:?}");
}

/// All reachable rows, in pages of three so that paging is used.
pub fn all_rows(db: &mut QueueDb) -> Vec<Row> {
    let mut rows = Vec::new();
    loop {
        let page = db.rows(rows.last().map(|r: &Row| r.origin), 3).unwrap();
        if page.is_empty() {
            return rows;
        }
        rows.extend(page);
    }
}

pub fn ids(rows: &[Row]) -> Vec<(u128, u64)> {
    rows.iter().map(|r| (r.id.session.0, r.id.seq)).collect()
}
