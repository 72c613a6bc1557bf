//! Blocking work beside the actors: listings, kits, claims, the collector. Each step is one system call or one that
//! could as well be; a process may be stopped or killed before the next.

use std::time::Duration;

use paceline_proto::{
    election::{ClaimResult, ClaimSeen, Input, Listing, Lock},
    follower,
    id::{Epoch, Nonce},
    message::KitAddress,
};

use crate::{
    disk::{DbId, Linked, Pid},
    fact::Fact,
    mutant::Mutant,
    net::{Listener, Path},
    process::{FollowerMail, Kit, Run, Task},
    scenario::Point,
    world::{Event, World, log},
};

impl World {
    pub(super) fn start_task(&mut self, pid: Pid, task: Task) {
        let delay = self.random.micros(10, 150);
        let Some(process) = self.live(pid) else { return };
        process.next_task += 1;
        let id = process.next_task;
        process.tasks.insert(id, task);
        self.after(delay, Event::Task(pid, id));
    }

    pub(super) fn task_due(&mut self, pid: Pid, id: u64) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        match process.run {
            Run::Stopped => return process.parked.push(id),
            Run::Dying | Run::Dead => return,
            Run::Running => {}
        }
        let Some(task) = process.tasks.remove(&id) else { return };
        self.step += 1;
        log!(self, "{} task {task:?}", pid.0);
        let next = match task {
            Task::List { stage, highest, seen } => self.step_list(pid, stage, highest, seen),
            Task::MakeKit { for_claim } => self.finish_kit(pid, for_claim),
            Task::Claim { stage, epoch, kit, linked } => self.step_claim(pid, stage, epoch, kit, linked),
            Task::Collect { stage, epoch, names } => self.step_collect(pid, stage, epoch, names),
            Task::Adopt { stage, epoch, kit, segments } => self.step_adopt(pid, stage, epoch, kit, segments),
            Task::Commit(commit) => self.step_commit(pid, commit),
            Task::Fold(fold) => self.step_fold(pid, fold),
        };
        if let Some((delay, task)) = next
            && let Some(process) = self.live(pid)
        {
            process.tasks.insert(id, task);
            self.after(delay, Event::Task(pid, id));
        }
        self.exit_if_left(pid);
        self.wake(pid);
    }

    fn call(&mut self) -> Duration {
        self.random.micros(5, 200)
    }

    /// A sync of file or directory.
    pub(super) fn sync_time(&mut self) -> Duration {
        if self.random.chance(20) { self.random.millis(20, 300) } else { self.random.micros(100, 4000) }
    }

    fn step_list(
        &mut self,
        pid: Pid,
        stage: u8,
        highest: u64,
        seen: Option<ClaimSeen>,
    ) -> Option<(Duration, Task)> {
        match stage {
            0 => {
                let highest = self.disk.highest_claim();
                Some((self.call(), Task::List { stage: 1, highest, seen }))
            }
            1 => {
                let seen = (highest > 0).then(|| self.look_at_claim(pid, highest));
                Some((self.call(), Task::List { stage: 2, highest, seen }))
            }
            _ => {
                let (complete, carriers) = self.disk.highest_complete();
                let unread = carriers.iter().find(|carrier| !self.reads(pid, **carrier));
                let too_new = unread.and_then(|carrier| self.disk.databases.get(carrier));
                let too_new = too_new.map(|store| (store.schema, store.min_reader));
                let known = if self.is(Mutant::EpochByClaimsAlone) { 0 } else { complete };
                let listing = Listing { claim: seen, highest_complete: Epoch(known), too_new };
                self.mail_election(pid, Input::Listed(listing));
                self.point(pid, Point::Listed);
                None
            }
        }
    }

    /// Whether the build of `pid` reads this database.
    fn reads(&self, pid: Pid, database: DbId) -> bool {
        let (Some(process), Some(store)) = (self.processes.get(&pid), self.disk.databases.get(&database))
        else {
            return true;
        };
        store.min_reader <= process.program.schema || self.is(Mutant::OldBuildOverNewerStore)
    }

    fn look_at_claim(&self, pid: Pid, epoch: u64) -> ClaimSeen {
        let file = self.disk.claim(epoch);
        let lock = match file {
            None => Lock::Missing,
            Some(file) if file.lock.is_some() => Lock::Held,
            Some(_) => Lock::Free,
        };
        let whole = file.filter(|file| file.whole);
        ClaimSeen {
            epoch: Epoch(epoch),
            address: whole.map(|file| file.address.clone()),
            owner: whole.map(|file| file.owner),
            lock,
            readable: whole.is_none_or(|file| self.reads(pid, file.database)),
        }
    }

    pub(super) fn make_kit(&mut self, pid: Pid, for_claim: Option<Epoch>) {
        let Some(process) = self.live(pid) else { return };
        if let Some(kit) = process.kit.as_ref().filter(|_| for_claim.is_none()) {
            let address = kit.address.clone();
            return self.tell_kit(pid, address);
        }
        if process.making_kit && for_claim.is_none() {
            return;
        }
        process.making_kit = true;
        self.start_task(pid, Task::MakeKit { for_claim });
    }

    fn tell_kit(&mut self, pid: Pid, address: KitAddress) {
        self.mail_follower(pid, FollowerMail::In(Box::new(follower::Input::KitReady(address.clone()))));
        self.mail_election(pid, Input::KitMade(Ok(address)));
    }

    fn finish_kit(&mut self, pid: Pid, for_claim: Option<Epoch>) -> Option<(Duration, Task)> {
        let process = self.live(pid)?;
        process.making_kit = false;
        if self.disk.full {
            self.counters.add("kit_failed_disk_full");
            let why = "no space left on device".to_owned();
            match for_claim {
                Some(epoch) => {
                    self.mail_election(pid, Input::Claimed { epoch, result: ClaimResult::Failed(why) });
                }
                None => self.mail_election(pid, Input::KitMade(Err(why))),
            }
            return None;
        }
        let address = {
            let nonce = Nonce(self.random.id());
            KitAddress { socket: format!("{}.sock", nonce.short()), nonce }
        };
        let process = self.live(pid)?;
        let (session, schema, min_reader) =
            (process.session, process.program.schema, process.program.min_reader);
        let (inode, database) = self.disk.make_kit(session, pid, address.clone());
        if let Some(store) = self.disk.databases.get_mut(&database) {
            (store.schema, store.min_reader) = (schema, min_reader);
        }
        let listener = Listener { pid, nonce: address.nonce, path: Path::Present, backlog: [].into() };
        self.net.listeners.insert(address.socket.clone(), listener);
        let kit = Kit { inode, database, address: address.clone(), early: None };
        let process = self.live(pid)?;
        if let Some(epoch) = for_claim {
            // A kit that another task made meanwhile stays for the next time.
            return Some((Duration::from_micros(5), Task::Claim { stage: 0, epoch, kit, linked: 0 }));
        }
        if process.kit.is_some() {
            self.release_kit(&kit);
            return None;
        }
        process.kit = Some(kit);
        self.tell_kit(pid, address);
        None
    }

    pub(super) fn drop_kit(&mut self, pid: Pid) {
        if let Some(kit) = self.live(pid).and_then(|process| process.kit.take()) {
            self.release_kit(&kit);
        }
    }

    /// The process lets go of a kit: the socket closes, then the lock is free.
    pub(super) fn release_kit(&mut self, kit: &Kit) {
        self.close_listener(&kit.address.socket);
        if let Some(file) = self.disk.files.get_mut(&kit.inode) {
            file.lock = None;
        }
    }

    pub(super) fn begin_claim(&mut self, pid: Pid, epoch: Epoch) {
        let Some(process) = self.live(pid) else { return };
        match process.kit.take() {
            Some(kit) => self.start_task(pid, Task::Claim { stage: 0, epoch, kit, linked: 0 }),
            None => self.make_kit(pid, Some(epoch)),
        }
    }

    fn step_claim(
        &mut self,
        pid: Pid,
        stage: u8,
        epoch: Epoch,
        mut kit: Kit,
        linked: u64,
    ) -> Option<(Duration, Task)> {
        let result = match stage {
            0 => {
                if self.is(Mutant::ReadBeforeClaim) {
                    kit.early = Some(self.segments_to_adopt(epoch.0));
                    self.tell(&Fact::AdoptionRead { epoch: epoch.0, claimed: false });
                }
                return Some((self.call(), Task::Claim { stage: 1, epoch, kit, linked }));
            }
            1 => match self.disk.link_claim(kit.inode, epoch.0) {
                Linked::Exists => ClaimResult::Exists,
                Linked::Done => {
                    self.tell(&Fact::ClaimLinked { epoch: epoch.0, pid });
                    self.tell_unfenced();
                    self.point(pid, Point::ClaimLinked);
                    let linked = self.step;
                    let stage = if self.is(Mutant::NoRelistAfterLink) { 4 } else { 2 };
                    return Some((self.call(), Task::Claim { stage, epoch, kit, linked }));
                }
            },
            2 if self.disk.highest_claim() > epoch.0 => ClaimResult::Superseded,
            2 => {
                self.point(pid, Point::Relisted);
                return Some((self.call(), Task::Claim { stage: 3, epoch, kit, linked }));
            }
            3 if !self.disk.own_claim_stands(epoch.0, kit.inode) => ClaimResult::Superseded,
            _ => ClaimResult::Won,
        };
        match &result {
            ClaimResult::Won => self.claim_won(pid, epoch, kit, linked),
            ClaimResult::Exists => {
                self.counters.add("claim_lost_race");
                self.live(pid)?.kit = Some(kit);
            }
            ClaimResult::Superseded | ClaimResult::Failed(_) => {
                self.counters.add("claim_superseded");
                self.release_kit(&kit);
            }
        }
        self.mail_election(pid, Input::Claimed { epoch, result });
        None
    }

    fn claim_won(&mut self, pid: Pid, epoch: Epoch, kit: Kit, linked: u64) {
        log!(self, "{} won {epoch}", pid.0);
        if let Some(process) = self.live(pid) {
            process.won = Some((epoch.0, kit));
        }
        self.tell(&Fact::ClaimWon { epoch: epoch.0, pid, linked });
        self.tell_unfenced();
        self.point(pid, Point::ClaimWon);
    }

    fn step_collect(
        &mut self,
        pid: Pid,
        stage: u8,
        epoch: u64,
        mut names: Vec<u64>,
    ) -> Option<(Duration, Task)> {
        if stage == 0 {
            let mut listed: Vec<u64> = self.disk.claims.entries().keys().copied().collect();
            listed.truncate(listed.len().saturating_sub(self.scenario.claims_kept));
            if self.is(Mutant::ClaimsCollectedDescending) {
                listed.reverse();
            }
            // A pause before the first: a collector may sleep on an old list.
            let pause = self.random.micros(10, 30_000);
            return Some((pause, Task::Collect { stage: 1, epoch, names: listed }));
        }
        if names.is_empty() {
            self.collect_kits();
            return None;
        }
        let name = names.remove(0);
        let holder = self.disk.claim(name).and_then(|file| file.lock);
        if holder.is_some_and(|holder| self.processes.get(&holder).is_some_and(super::Process::alive)) {
            self.counters.add("claim_collected_past_zombie");
        }
        self.disk.unlink_claim(name);
        self.counters.add("claim_collected");
        self.tell_unfenced();
        self.point(pid, Point::ClaimCollected);
        Some((self.random.micros(5, 3000), Task::Collect { stage: 1, epoch, names }))
    }

    /// Lock-free kits whose database is not complete are nobody's.
    fn collect_kits(&mut self) {
        let files = &self.disk.files;
        let free = files.values().filter(|file| file.lock.is_none()).map(|file| file.database);
        let unused: Vec<_> = free
            .filter(|database| self.disk.names.get(*database).is_some())
            .filter(|database| self.disk.databases.get(database).is_some_and(|db| db.complete.is_none()))
            .collect();
        for database in unused {
            self.disk.names.unlink(database);
            self.counters.add("kit_collected");
        }
    }
}
