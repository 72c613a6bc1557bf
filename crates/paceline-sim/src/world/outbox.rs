//! The outbox actor and the database work it starts: adoption, group commits, folds.

use std::time::Duration;

use paceline_proto::{
    election::Input,
    hub,
    id::{Epoch, SessionId},
    limits::COMMIT_MAX,
    message::{Submit, SubmitOutcome},
};

use crate::{
    disk::Pid,
    fact::Fact,
    mutant::Mutant,
    process::{Commit, FenceCheck, Fold, Kit, OutboxMail, Task},
    scenario::Point,
    store::{Segment, reachable},
    world::{World, log},
};

impl World {
    pub(super) fn step_outbox(&mut self, pid: Pid) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(mail) = process.outbox_mail.pop_front() else { return };
        let outbox = &mut process.outbox;
        match mail {
            OutboxMail::Adopt { epoch, kit } => {
                outbox.epoch = epoch;
                outbox.kit = Some(kit.clone());
                outbox.away = true;
                outbox.ready = false;
                outbox.waiting.clear();
                outbox.draining = None;
                self.start_task(pid, Task::Adopt { stage: 0, epoch, kit, segments: Vec::new() });
            }
            OutboxMail::Store { epoch, submit } if epoch == outbox.epoch => outbox.waiting.push_back(submit),
            OutboxMail::Drain { epoch, to } if epoch == outbox.epoch => outbox.draining = Some(to),
            OutboxMail::Resume { epoch } if epoch == outbox.epoch => outbox.draining = None,
            OutboxMail::End { epoch } if epoch == outbox.epoch => {
                outbox.epoch = Epoch::NONE;
                outbox.ready = false;
                outbox.waiting.clear();
                outbox.draining = None;
                if let Some(kit) = outbox.kit.take() {
                    if outbox.away {
                        // The lock is released last: a commit under way still holds the database.
                        outbox.ended.push((epoch, kit));
                    } else {
                        self.release_kit(&kit);
                    }
                }
            }
            OutboxMail::TaskEnded
            | OutboxMail::Store { .. }
            | OutboxMail::Drain { .. }
            | OutboxMail::Resume { .. }
            | OutboxMail::End { .. } => {}
        }
        self.outbox_goes_on(pid);
    }

    /// Starts the next commit, or what waits for the database to be idle.
    fn outbox_goes_on(&mut self, pid: Pid) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let reign = process.outbox.epoch;
        let outbox = &mut process.outbox;
        if outbox.away || !process.outbox_mail.is_empty() || reign == Epoch::NONE {
            return;
        }
        if outbox.ready
            && !outbox.waiting.is_empty()
            && let Some(kit) = outbox.kit.clone()
        {
            outbox.away = true;
            let room = outbox.waiting.len().min(COMMIT_MAX);
            let batch: Vec<Submit> = outbox.waiting.drain(..room).collect();
            let commit = Commit {
                stage: 0,
                epoch: reign,
                database: kit.database,
                check: FenceCheck::new(reign.0, kit.inode),
                batch,
                outcomes: Vec::new(),
                rows: Vec::new(),
            };
            self.start_task(pid, Task::Commit(commit));
            return self.point(pid, Point::CommitBegun);
        }
        if !outbox.ready && !outbox.waiting.is_empty() {
            let unknown = SubmitOutcome::Unknown("the group's store cannot be written".to_owned());
            let results = outbox.waiting.drain(..).map(|submit| (submit.id, unknown.clone())).collect();
            self.mail_hub(pid, Some(reign), hub::Input::Stored(results));
        }
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if let Some(to) = process.outbox.draining.take() {
            self.drain_hub(pid, reign, to);
        }
        self.maybe_fold(pid);
    }

    fn drain_hub(&mut self, pid: Pid, epoch: Epoch, to: SessionId) {
        self.mail_hub(pid, Some(epoch), hub::Input::Drain { to });
    }

    /// The segments a reign adopts: the newest complete predecessor's own rows and what it adopted itself.
    pub(super) fn segments_to_adopt(&self, epoch: u64) -> Vec<Segment> {
        let predecessor = if self.is(Mutant::NoCompletenessMark) {
            let claim = self.disk.claims.entries().range(..epoch).next_back();
            claim.and_then(|(_, inode)| self.disk.files.get(inode)).map(|file| file.database)
        } else {
            self.disk.newest_complete_below(epoch).1.first().copied()
        };
        let found = predecessor.and_then(|id| self.disk.databases.get(&id).map(|database| (id, database)));
        let Some((id, database)) = found else { return Vec::new() };
        let bound = if self.is(Mutant::AdoptionWithoutBound) { u64::MAX } else { database.last_row() };
        let mut segments = vec![Segment { database: id, bound }];
        segments.extend(database.segments.iter().copied());
        segments
    }

    pub(super) fn step_adopt(
        &mut self,
        pid: Pid,
        stage: u8,
        epoch: Epoch,
        kit: Kit,
        segments: Vec<Segment>,
    ) -> Option<(Duration, Task)> {
        let unsynced = self.is(Mutant::CompleteBeforeDirectorySync);
        match stage {
            0 => {
                let segments = match kit.early.clone() {
                    Some(early) => early,
                    None => {
                        self.tell(&Fact::AdoptionRead { epoch: epoch.0, claimed: true });
                        self.segments_to_adopt(epoch.0)
                    }
                };
                self.point(pid, Point::AdoptionRead);
                let stage = if unsynced { 2 } else { 1 };
                Some((self.sync_time(), Task::Adopt { stage, epoch, kit, segments }))
            }
            1 => {
                // What is adopted may have been written by a process that died before its own sync.
                let sync_rows = !self.is(Mutant::AdoptedRowsUnsynced);
                for segment in segments.iter().filter(|_| sync_rows) {
                    if let Some(old) = self.disk.databases.get_mut(&segment.database) {
                        old.sync();
                    }
                }
                if !self.scenario.claims_sync_lies {
                    self.disk.claims.sync();
                }
                self.disk.names.sync();
                self.point(pid, Point::DirectoriesSynced);
                Some((self.sync_time(), Task::Adopt { stage: 2, epoch, kit, segments }))
            }
            2 => {
                let database = self.disk.databases.get_mut(&kit.database)?;
                let (owner, after_row) = (database.owner, database.last_row());
                let open = database.write();
                open.complete = Some(epoch.0);
                open.segments.clone_from(&segments);
                self.tell(&Fact::Written { database: kit.database, owner, by: pid, after_row });
                self.tell(&Fact::Completed { epoch: epoch.0, database: kit.database });
                self.point(pid, Point::CompleteWritten);
                Some((self.sync_time(), Task::Adopt { stage: 3, epoch, kit, segments }))
            }
            _ => {
                self.disk.databases.get_mut(&kit.database)?.sync();
                self.adopted(pid, epoch, &kit);
                None
            }
        }
    }

    fn adopted(&mut self, pid: Pid, epoch: Epoch, kit: &Kit) {
        let found = self.disk.names.get(kit.database).is_some();
        let rows = reachable(&self.disk, kit.database);
        self.counters.add_many("rows_adopted", rows.len() as u64);
        let result = if found { Ok(rows.len() as u64) } else { Err("its own database is gone".to_owned()) };
        let Some(process) = self.live(pid) else { return };
        if process.outbox.epoch == epoch {
            process.outbox.ready = found;
            process.outbox.high.clear();
            for id in rows.keys() {
                let high = process.outbox.high.entry(id.session).or_default();
                *high = (*high).max(id.seq);
            }
            process.outbox.known = rows.into_iter().map(|(id, (hash, _))| (id, hash)).collect();
            self.mail_election(pid, Input::Adopted { epoch, result });
            self.maybe_collect(pid, epoch);
        }
        self.task_ended(pid, epoch);
    }

    /// A run is shorter than the election's interval of collections: an owner that has adopted may collect at any time.
    fn maybe_collect(&mut self, pid: Pid, epoch: Epoch) {
        if self.random.chance(400) {
            self.start_task(pid, Task::Collect { stage: 0, epoch: epoch.0, names: Vec::new() });
        }
    }

    /// A task of a reign ended; that reign may be over, and another one under way.
    fn task_ended(&mut self, pid: Pid, epoch: Epoch) {
        let Some(process) = self.live(pid) else { return };
        let outbox = &mut process.outbox;
        outbox.away &= outbox.epoch != epoch;
        let ended = outbox.ended.extract_if(.., |(of, _)| *of == epoch).collect::<Vec<_>>();
        for (_, kit) in ended {
            self.release_kit(&kit);
        }
        self.mail_outbox(pid, OutboxMail::TaskEnded);
    }

    pub(super) fn step_commit(&mut self, pid: Pid, mut commit: Commit) -> Option<(Duration, Task)> {
        // Write, sync, fence, fence; or with the fence first.
        let order: [u8; 4] = if self.is(Mutant::FenceBeforeCommit) { [2, 3, 0, 1] } else { [0, 1, 2, 3] };
        let Some(&work) = order.get(usize::from(commit.stage)) else {
            self.committed(pid, commit);
            return None;
        };
        commit.stage += 1;
        match work {
            0 => {
                if !self.write_rows(pid, &mut commit) {
                    return None;
                }
                self.point(pid, Point::CommitWritten);
                Some((self.sync_time(), Task::Commit(commit)))
            }
            1 => {
                self.disk.databases.get_mut(&commit.database)?.sync();
                self.point(pid, Point::CommitSynced);
                Some((self.random.micros(2, 60), Task::Commit(commit)))
            }
            _ => {
                let done = self.fence_half(&mut commit.check);
                self.point(pid, if done { Point::FenceChecked } else { Point::FenceHalf });
                Some((self.random.micros(2, 60), Task::Commit(commit)))
            }
        }
    }

    /// Writes what is new of the batch; false if the disk refused.
    fn write_rows(&mut self, pid: Pid, commit: &mut Commit) -> bool {
        let full = self.disk.full && self.random.chance(500);
        let Some(process) = self.processes.get_mut(&pid) else { return false };
        let failed = std::mem::take(&mut process.write_error) || full;
        let outbox = &mut process.outbox;
        for submit in &commit.batch {
            let outcome = match outbox.known.get(&submit.id) {
                Some(hash) if *hash == submit.hash => SubmitOutcome::Acknowledged,
                Some(_) => SubmitOutcome::HashMismatch,
                None => {
                    let high = outbox.high.entry(submit.id.session).or_default();
                    if submit.id.seq == *high + 1 {
                        *high += 1;
                        outbox.known.insert(submit.id, submit.hash);
                        commit.rows.push((submit.id, submit.hash));
                        SubmitOutcome::Acknowledged
                    } else {
                        SubmitOutcome::Hole { expected: *high + 1 }
                    }
                }
            };
            commit.outcomes.push((submit.id, outcome));
        }
        // A failed write may have stored everything or nothing.
        if !failed || self.random.chance(500) {
            let Some(database) = self.disk.databases.get_mut(&commit.database) else { return false };
            let (owner, after_row) = (database.owner, database.last_row());
            let open = database.write();
            for (id, hash) in &commit.rows {
                open.push(*id, *hash);
            }
            self.tell(&Fact::Written { database: commit.database, owner, by: pid, after_row });
        }
        if failed {
            self.commit_failed(pid, commit);
        }
        !failed
    }

    fn commit_failed(&mut self, pid: Pid, commit: &Commit) {
        log!(self, "{} commit failed", pid.0);
        self.counters.add("commit_failed");
        let unknown = SubmitOutcome::Unknown("the write failed".to_owned());
        let results = commit.batch.iter().map(|submit| (submit.id, unknown.clone())).collect();
        if let Some(process) = self.live(pid)
            && process.outbox.epoch == commit.epoch
        {
            process.outbox.ready = false;
        }
        self.mail_hub(pid, Some(commit.epoch), hub::Input::Stored(results));
        self.mail_election(
            pid,
            Input::StoreFailed { epoch: commit.epoch, why: "the write failed".to_owned() },
        );
        self.task_ended(pid, commit.epoch);
    }

    fn committed(&mut self, pid: Pid, commit: Commit) {
        let mut outcomes = commit.outcomes;
        if commit.check.unfenced {
            for submit in &commit.batch {
                let acknowledged =
                    outcomes.iter().any(|(id, o)| *id == submit.id && *o == SubmitOutcome::Acknowledged);
                if acknowledged {
                    self.counters.add("acknowledged");
                    self.tell(&Fact::Acknowledged {
                        id: submit.id,
                        hash: submit.hash,
                        epoch: commit.epoch.0,
                        checked: commit.check.at,
                    });
                }
            }
        } else {
            for (_, outcome) in &mut outcomes {
                *outcome = SubmitOutcome::Moved;
            }
            self.counters.add_many("resumed_owner_nacked", outcomes.len() as u64);
        }
        self.mail_hub(pid, Some(commit.epoch), hub::Input::Stored(outcomes));
        if !commit.check.unfenced {
            if let Some(process) = self.live(pid)
                && process.outbox.epoch == commit.epoch
            {
                process.outbox.ready = false;
            }
            let why = "found after a commit".to_owned();
            self.mail_election(pid, Input::Fenced { epoch: commit.epoch, why });
        }
        self.task_ended(pid, commit.epoch);
    }

    fn maybe_fold(&mut self, pid: Pid) {
        let chance = if self.scenario.fold { 120 } else { 0 };
        if !self.random.chance(chance) {
            return;
        }
        let Some(process) = self.processes.get(&pid) else { return };
        let outbox = &process.outbox;
        let Some(kit) = outbox.kit.as_ref().filter(|_| outbox.ready && !outbox.away) else { return };
        let (epoch, database, inode) = (outbox.epoch, kit.database, kit.inode);
        let Some(segment) = self.disk.databases.get(&database).and_then(|db| db.segments.last().copied())
        else {
            return;
        };
        let check = FenceCheck::new(epoch.0, inode);
        if let Some(process) = self.processes.get_mut(&pid) {
            process.outbox.away = true;
        }
        self.start_task(pid, Task::Fold(Fold { stage: 0, database, segment, rows: Vec::new(), check }));
    }

    pub(super) fn step_fold(&mut self, pid: Pid, mut fold: Fold) -> Option<(Duration, Task)> {
        let stage = fold.stage;
        fold.stage += 1;
        match stage {
            0 => {
                let old = self
                    .disk
                    .names
                    .get(fold.segment.database)
                    .and(self.disk.databases.get(&fold.segment.database));
                let rows =
                    old.map(|old| old.rows.iter().filter(|row| row.number <= fold.segment.bound).copied());
                fold.rows = rows.into_iter().flatten().collect();
                Some((self.random.micros(20, 500), Task::Fold(fold)))
            }
            1 => {
                let database = self.disk.databases.get_mut(&fold.database)?;
                let (owner, after_row) = (database.owner, database.last_row());
                let open = database.write();
                for row in &fold.rows {
                    open.push(row.id, row.hash);
                }
                open.segments.retain(|segment| *segment != fold.segment);
                self.tell(&Fact::Written { database: fold.database, owner, by: pid, after_row });
                Some((self.sync_time(), Task::Fold(fold)))
            }
            2 => {
                self.disk.databases.get_mut(&fold.database)?.sync();
                self.counters.add("segment_folded");
                self.point(pid, Point::FoldSynced);
                Some((self.random.micros(2, 3000), Task::Fold(fold)))
            }
            3 | 4 => {
                self.fence_half(&mut fold.check);
                Some((self.random.micros(2, 100), Task::Fold(fold)))
            }
            _ => {
                if fold.check.unfenced || self.is(Mutant::PredecessorDeletedWhileFenced) {
                    self.disk.names.unlink(fold.segment.database);
                    self.counters.add("predecessor_removed");
                    self.tell(&Fact::StoresChanged);
                }
                self.task_ended(pid, Epoch(fold.check.epoch));
                None
            }
        }
    }
}
