//! Any order of claims, adoptions, late commits, folds, removals and deaths against a model that simply copies lists.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::BTreeMap;

use common::*;
use paceline_proto::{
    id::{Epoch, MutationId},
    message::Submit,
};
use paceline_store::{
    FoldLimit, Inheritance, Mark, QueueDb, RowState, StoreError, SubmitResult, inspect, reachable, remove,
};
use proptest::prelude::*;

/// `back` chooses an owner: 0 is the one that claimed last.
#[derive(Debug, Clone)]
enum Op {
    Claim,
    /// Claim, read, commits of the one replaced, adopt.
    Takeover {
        late: Vec<(u8, Kind)>,
    },
    Read {
        back: usize,
    },
    Adopt {
        back: usize,
    },
    Commit {
        back: usize,
        batch: Vec<(u8, Kind)>,
        marks: Vec<u8>,
    },
    Fold {
        back: usize,
        rows: usize,
    },
    Maintain {
        back: usize,
    },
    Collect {
        back: usize,
    },
    Die {
        back: usize,
    },
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Next,
    /// Of one that is stored.
    Repeat(u8),
    OtherHash(u8),
    Skip,
}

fn op() -> impl Strategy<Value = Op> {
    let back = || prop_oneof![6 => Just(0usize), 3 => Just(1), 1 => 2..4usize];
    let kind = prop_oneof![
        6 => Just(Kind::Next),
        1 => any::<u8>().prop_map(Kind::Repeat),
        1 => any::<u8>().prop_map(Kind::OtherHash),
        1 => Just(Kind::Skip),
    ];
    let marks = || proptest::collection::vec(any::<u8>(), 0..4);
    let batch = || proptest::collection::vec((0..3u8, kind.clone()), 1..6);
    prop_oneof![
        2 => Just(Op::Claim),
        3 => batch().prop_map(|late| Op::Takeover { late }),
        4 => back().prop_map(|back| Op::Read { back }),
        4 => back().prop_map(|back| Op::Adopt { back }),
        9 => (back(), batch(), marks()).prop_map(|(back, batch, marks)| Op::Commit { back, batch, marks }),
        3 => (back(), 1..6usize).prop_map(|(back, rows)| Op::Fold { back, rows }),
        1 => back().prop_map(|back| Op::Maintain { back }),
        2 => back().prop_map(|back| Op::Collect { back }),
        1 => back().prop_map(|back| Op::Die { back }),
    ]
}

type Known = Vec<(MutationId, [u8; 16], RowState)>;

struct Owner {
    epoch: Epoch,
    db: Option<QueueDb>,
    read: Option<(Inheritance, Known)>,
    /// What its database shows once it is complete.
    known: Option<Known>,
}

struct World {
    dir: tempfile::TempDir,
    owners: Vec<Owner>,
    acknowledged: BTreeMap<MutationId, [u8; 16]>,
}

impl World {
    fn new() -> Self {
        let mut world =
            Self { dir: tempfile::tempdir().unwrap(), owners: Vec::new(), acknowledged: BTreeMap::new() };
        for op in [Op::Claim, Op::Read { back: 0 }, Op::Adopt { back: 0 }] {
            world.apply(&op);
        }
        world
    }

    fn index(&self, back: usize) -> usize {
        (self.owners.len() - 1).saturating_sub(back)
    }

    fn newest(&self) -> Option<&Owner> {
        self.owners.iter().rev().find(|o| o.known.is_some())
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Claim => {
                let n = self.owners.len() as u64 + 1;
                let db = kit(self.dir.path(), u32::try_from(n).unwrap());
                self.owners.push(Owner { epoch: Epoch(n), db: Some(db), read: None, known: None });
            }
            Op::Takeover { ref late } => {
                self.apply(&Op::Claim);
                self.apply(&Op::Read { back: 0 });
                self.apply(&Op::Commit { back: 1, batch: late.clone(), marks: vec![0, 1] });
                self.apply(&Op::Adopt { back: 0 });
            }
            Op::Read { back } => self.read(self.index(back)),
            Op::Adopt { back } => self.adopt(self.index(back)),
            Op::Commit { back, ref batch, ref marks } => self.commit(self.index(back), batch, marks),
            Op::Fold { back, rows } => {
                let i = self.index(back);
                let newest = self.newest().map(|o| o.epoch) == Some(self.owners[i].epoch);
                let Some(db) = self.live(i) else { return };
                match db.fold(FoldLimit { rows, bytes: 1 << 20 }) {
                    Ok(folded) => assert!(folded.rows <= rows),
                    Err(e) => assert!(!newest, "{e}"),
                }
            }
            Op::Maintain { back } => {
                let i = self.index(back);
                if let Some(db) = self.live(i) {
                    let _ = db.maintain();
                }
            }
            Op::Collect { back } => {
                let i = self.index(back);
                let fenced = i + 1 < self.owners.len();
                let Some(db) = self.live(i) else { return };
                let found = db.discardable().unwrap();
                if !fenced {
                    found.iter().for_each(|path| remove(path).unwrap());
                }
            }
            Op::Die { back } => {
                let i = self.index(back);
                self.owners[i].db = None;
            }
        }
    }

    /// The database of a complete owner that lives.
    fn live(&mut self, i: usize) -> Option<&mut QueueDb> {
        let owner = &mut self.owners[i];
        owner.known.as_ref()?;
        owner.db.as_mut()
    }

    fn read(&mut self, i: usize) {
        let owner = &self.owners[i];
        if owner.db.is_none() || owner.known.is_some() {
            return;
        }
        let epoch = owner.epoch;
        match Inheritance::read(self.dir.path(), epoch) {
            Ok(inheritance) => {
                let known = self.newest().and_then(|o| o.known.clone()).unwrap_or_default();
                assert_eq!(inheritance.rows(), known.len() as u64);
                self.owners[i].read = Some((inheritance, known));
            }
            Err(StoreError::Superseded { .. }) => assert!(self.newest().unwrap().epoch > epoch),
            Err(e) => panic!("{e}"),
        }
    }

    fn adopt(&mut self, i: usize) {
        let owner = &mut self.owners[i];
        let (Some(db), Some((inheritance, known)), None) = (&mut owner.db, owner.read.take(), &owner.known)
        else {
            return;
        };
        db.adopt(&inheritance).unwrap();
        db.verify_path().unwrap();
        owner.known = Some(known);
    }

    fn commit(&mut self, i: usize, batch: &[(u8, Kind)], marks: &[u8]) {
        let fenced = i + 1 < self.owners.len();
        let Owner { db: Some(db), known: Some(known), .. } = &mut self.owners[i] else { return };
        let mut after = known.clone();
        let (submits, expected): (Vec<Submit>, Vec<bool>) =
            batch.iter().map(|&(session, kind)| Self::expect(&mut after, session, kind)).unzip();
        let marks = Self::marks(&mut after, marks);
        match db.store(&submits, &marks) {
            Ok(results) => {
                for ((submit, stored), result) in submits.iter().zip(expected).zip(results) {
                    let yes = matches!(result, SubmitResult::Accepted { .. } | SubmitResult::Duplicate);
                    assert_eq!(yes, stored, "{submit:?}: {result:?}");
                    if yes && !fenced {
                        self.acknowledged.insert(submit.id, submit.hash);
                    }
                }
                *known = after;
            }
            // Its own file or one it names was removed by a successor.
            Err(e) => assert!(fenced, "{e}"),
        }
    }

    /// Marks of mutations that are stored.
    fn marks(known: &mut Known, picks: &[u8]) -> Vec<Mark> {
        let ids: Vec<_> = known.iter().filter(|row| row.2 == RowState::Queued).map(|row| row.0).collect();
        let states = [RowState::Sending, RowState::Again, RowState::Done, RowState::Reopened];
        let mark = |pick: &u8| {
            let id = *ids.get(usize::from(*pick) % ids.len().max(1))?;
            let state = states[usize::from(*pick) % states.len()];
            known.push((id, [0; 16], state));
            Some(Mark { id, state, details: "{}".into() })
        };
        picks.iter().filter_map(mark).collect()
    }

    /// Makes a submit, applies it to `known`, and says whether it must be found stored.
    fn expect(known: &mut Known, session: u8, kind: Kind) -> (Submit, bool) {
        let session = u128::from(session);
        let high =
            known.iter().filter(|(id, ..)| id.session.0 == session).map(|(id, ..)| id.seq).max().unwrap_or(0);
        // Stale owners store other bytes under the same ids.
        let variant = u8::try_from(known.len() % 200).unwrap();
        match kind {
            Kind::Next => {
                let submit = submit_as(session, high + 1, variant);
                known.push((submit.id, submit.hash, RowState::Queued));
                (submit, true)
            }
            Kind::Skip => (submit(session, high + 2), false),
            Kind::Repeat(pick) | Kind::OtherHash(pick) => {
                let is_of = |row: &&(MutationId, _, RowState)| {
                    row.0.session.0 == session && row.2 == RowState::Queued
                };
                let of_session: Known = known.iter().filter(is_of).copied().collect();
                if of_session.is_empty() {
                    return (submit(session, 2), false);
                }
                let (id, hash, _) = of_session[usize::from(pick) % of_session.len()];
                let same = matches!(kind, Kind::Repeat(_));
                let hash = if same { hash } else { [0xff; 16] };
                (Submit { id, hash, payload: "again".into() }, same)
            }
        }
    }

    fn check(&mut self) {
        let newest = self.newest().map(|o| o.epoch);
        for owner in &mut self.owners {
            if let (Some(db), Some(known)) = (&mut owner.db, &owner.known) {
                // A named file may be gone for all but the newest; what is shown must be right for all.
                let readable = db.rows(None, 1).is_ok();
                assert!(readable || Some(owner.epoch) != newest);
                if readable {
                    let shown: Known = all_rows(db).iter().map(|r| (r.id, r.hash, r.state)).collect();
                    assert_eq!(&shown, known, "epoch {}", owner.epoch);
                    assert_eq!(db.counts().rows, known.len() as u64);
                    if let Some((id, ..)) = known.last() {
                        let of: Known = db.of(*id).unwrap().iter().map(|r| (r.id, r.hash, r.state)).collect();
                        let expected: Known = known.iter().filter(|row| row.0 == *id).copied().collect();
                        assert_eq!(of, expected);
                    }
                }
            }
        }
        let found = reachable(self.dir.path()).unwrap();
        let newest = self.newest().unwrap();
        assert_eq!(found.epoch, newest.epoch);
        let shown: Known = found.rows.iter().map(|r| (r.id, r.hash, r.state)).collect();
        assert_eq!(Some(&shown), newest.known.as_ref());
        let queued = shown.into_iter().filter(|row| row.2 == RowState::Queued);
        let shown: BTreeMap<_, _> = queued.map(|(id, hash, _)| (id, hash)).collect();
        for (id, hash) in &self.acknowledged {
            assert_eq!(shown.get(id), Some(hash), "{id:?} was acknowledged");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 32,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn acknowledged_rows_are_reachable_exactly_once(ops in proptest::collection::vec(op(), 1..40)) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
            world.check();
        }
        let newest = world.newest().unwrap().epoch;
        let path = kit_path(world.dir.path(), u32::try_from(newest.0).unwrap());
        prop_assert_eq!(inspect(&path).unwrap().complete, Some(newest));
    }
}
