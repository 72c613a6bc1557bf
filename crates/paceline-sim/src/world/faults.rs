//! Faults: what strikes whom, and how the kernel cleans up after the dead.

use std::{collections::BTreeSet, time::Duration};

use paceline_proto::{
    follower,
    id::Trace,
    message::{Ask, Rank},
};

use crate::{
    data,
    disk::Pid,
    fact::Fact,
    net::{ConnId, Path, Phase as ConnPhase},
    process::{ElectionMail, FollowerMail, Run, Waiting},
    world::{Event, Phase, World, log},
};

/// One fault.
type Strike = fn(&mut World);

impl World {
    pub(super) fn fault_tick(&mut self) {
        if self.phase != Phase::Chaos {
            return;
        }
        let next = self.random.millis(1, self.scenario.fault_ms * 2);
        self.after(next, Event::FaultTick);
        if !self.powered {
            return;
        }
        let f = self.scenario.faults;
        let table: [(u32, Strike); 18] = [
            (f.kill, Self::fault_kill),
            (f.kill_owner, Self::fault_kill_owner),
            (f.kill_heirs, Self::fault_kill_heirs),
            (f.stop, Self::fault_stop),
            (f.stop_owner, Self::fault_stop_owner),
            (f.starve, Self::fault_starve),
            (f.power, Self::fault_power),
            (f.suspend, Self::fault_suspend),
            (f.disk_full, Self::fault_disk_full),
            (f.write_error, Self::fault_write_error),
            (f.leave, Self::fault_leave),
            (f.promote, Self::fault_promote),
            (f.cut, Self::fault_cut),
            (f.slow_reader, Self::fault_slow_reader),
            (f.unreachable, Self::fault_unreachable),
            (f.feed_cut, Self::fault_feed_cut),
            (f.burst, Self::fault_burst),
            (f.set_back, Self::fault_set_back),
        ];
        let total: u32 = table.iter().map(|(weight, _)| *weight).sum();
        let mut drawn = self.random.below(u64::from(total)) as u32;
        for (weight, strike) in table {
            if drawn < weight {
                return strike(self);
            }
            drawn -= weight;
        }
    }

    /// Anybody who runs.
    pub(super) fn somebody(&mut self) -> Option<Pid> {
        let running: Vec<Pid> = self
            .processes
            .values()
            .filter(|process| process.run == Run::Running)
            .map(|process| process.pid)
            .collect();
        self.random.pick(&running).copied()
    }

    /// The owner of the highest reign that runs.
    pub(super) fn owner(&self) -> Option<Pid> {
        let owners =
            self.processes.values().filter(|process| process.run == Run::Running && process.owned.is_some());
        owners.max_by_key(|process| process.reign.map(|(epoch, _)| epoch)).map(|process| process.pid)
    }

    fn fault_kill(&mut self) {
        if let Some(pid) = self.somebody() {
            self.kill(pid);
        }
    }

    fn fault_kill_owner(&mut self) {
        if let Some(pid) = self.owner() {
            self.kill(pid);
        }
    }

    fn fault_kill_heirs(&mut self) {
        let Some(owner) = self.owner() else { return };
        let owned = self.processes.get(&owner).and_then(|process| process.owned.as_ref());
        let heirs = owned.map(|owned| owned.machine.heirs()).unwrap_or_default();
        let doomed: Vec<Pid> = self
            .processes
            .values()
            .filter(|process| heirs.iter().any(|heir| heir.session == process.session))
            .map(|process| process.pid)
            .chain([owner])
            .collect();
        if doomed.len() > 1 {
            self.counters.add("heirs_killed");
        }
        doomed.into_iter().for_each(|pid| self.kill(pid));
    }

    fn fault_stop(&mut self) {
        if let Some(pid) = self.somebody() {
            self.stop(pid);
        }
    }

    fn fault_stop_owner(&mut self) {
        if let Some(pid) = self.owner() {
            self.stop(pid);
        }
    }

    fn fault_starve(&mut self) {
        let length = self.random.millis(200, 4000);
        if let Some(pid) = self.somebody() {
            let now = self.now;
            if let Some(process) = self.processes.get_mut(&pid) {
                process.starved_until = now + length;
                process.starved_us = 300_000;
            }
        }
    }

    fn fault_power(&mut self) {
        log!(self, "power lost");
        self.counters.add("power_lost");
        for process in self.processes.values_mut() {
            process.run = Run::Dead;
            process.next_turn = None;
        }
        self.net.listeners.clear();
        self.net.conns.clear();
        self.disk.lose_power(&mut self.random);
        self.powered = false;
        self.owed_tokens.clear();
        self.tell(&Fact::PowerLost);
        self.processes.clear();
        let off = self.random.millis(200, 1500);
        self.after(off, Event::PowerOn);
    }

    pub(super) fn power_on(&mut self) {
        self.powered = true;
        for n in 0..self.scenario.sessions {
            let rank = if n < self.scenario.preferred { Rank::Preferred } else { Rank::Candidate };
            let delay = self.random.millis(0, 300);
            self.after(delay, Event::Start(rank));
        }
    }

    fn fault_suspend(&mut self) {
        let length = self.random.millis(500, 20_000);
        log!(self, "suspended for {length:?}");
        self.counters.add("suspended_machine");
        let ms = length.as_millis() as u64;
        self.shift_local_events(length);
        self.suspended_until = self.now + length;
        for process in self.processes.values_mut() {
            process.suspended_ms += ms;
            process.busy_until = process.busy_until + length;
        }
    }

    fn fault_disk_full(&mut self) {
        self.disk.full = true;
        let length = self.random.millis(300, 3000);
        self.after(length, Event::DiskRestored);
    }

    fn fault_write_error(&mut self) {
        if let Some(process) = self.owner().and_then(|pid| self.processes.get_mut(&pid)) {
            process.write_error = true;
        }
    }

    fn fault_leave(&mut self) {
        let Some(pid) = self.somebody() else { return };
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let rank = process.rank;
        process.election_mail.push_back(ElectionMail::Leave);
        self.counters.add("leave_asked");
        self.wake(pid);
        let delay = self.random.millis(50, 800);
        self.after(delay, Event::Start(rank));
    }

    fn fault_promote(&mut self) {
        let Some(pid) = self.somebody() else { return };
        let sessions: Vec<_> = self.processes.values().filter(|p| p.alive()).map(|p| p.session).collect();
        let to = if self.random.chance(500) { None } else { self.random.pick(&sessions).copied() };
        self.next_token += 1;
        let token = self.next_token;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.caller.waiting.insert(token, Waiting::Ask);
        let ask = follower::Input::Ask { token, ask: Ask::Promote(to), trace: Trace::NONE };
        self.counters.add("promote_asked");
        self.mail_follower(pid, FollowerMail::In(Box::new(ask)));
    }

    fn fault_cut(&mut self) {
        let linked: Vec<ConnId> = self
            .net
            .conns
            .iter()
            .filter(|(_, conn)| conn.linked && !conn.server_closed)
            .map(|(id, _)| *id)
            .collect();
        let Some(&id) = self.random.pick(&linked) else { return };
        self.counters.add("link_cut");
        let (a, b) = (self.random.micros(10, 20_000), self.random.micros(10, 20_000));
        let (now, keep_up, keep_down) =
            (self.now, self.random.below(4) as usize, self.random.below(8) as usize);
        let Some(conn) = self.net.conns.get_mut(&id) else { return };
        conn.up.cut(keep_up);
        conn.down.cut(keep_down);
        conn.up_waiting.clear();
        conn.down_waiting.clear();
        conn.up.close(now + a);
        conn.down.close(now + b);
        self.arm(id, crate::net::End::Client);
        self.arm(id, crate::net::End::Server);
    }

    fn fault_slow_reader(&mut self) {
        let followers: Vec<Pid> = self
            .processes
            .values()
            .filter(|process| process.run == Run::Running && process.owned.is_none())
            .map(|process| process.pid)
            .collect();
        let length = self.random.millis(500, 4000);
        let now = self.now;
        if let Some(process) =
            self.random.pick(&followers).copied().and_then(|pid| self.processes.get_mut(&pid))
        {
            process.slow_until = now + length;
        }
    }

    fn fault_unreachable(&mut self) {
        let Some(owner) = self.owner() else { return };
        let path = if self.random.chance(500) { Path::Removed } else { Path::Forbidden };
        let length = self.random.millis(100, 3000);
        let Some(socket) = self
            .processes
            .get(&owner)
            .and_then(|p| p.owned.as_ref())
            .map(|owned| owned.address.socket.clone())
        else {
            return;
        };
        if let Some(listener) = self.net.listeners.get_mut(&socket) {
            listener.path = path;
        }
        self.after(length, Event::PathRestored(socket));
    }

    fn fault_feed_cut(&mut self) {
        if !self.feeds.is_empty() {
            let feed = self.random.below(self.feeds.len() as u64) as usize;
            self.feed_hangs_up(feed);
        }
    }

    fn fault_burst(&mut self) {
        if self.feeds.is_empty() {
            return;
        }
        let feed = self.random.below(self.feeds.len() as u64) as usize;
        for _ in 0..self.scenario.burst {
            self.publish(feed);
        }
    }

    /// Only servers that replay nothing: a replayed message from before would undo it by its higher version.
    fn fault_set_back(&mut self) {
        let forgetful: Vec<usize> =
            (0..self.feeds.len()).filter(|feed| !self.feeds[*feed].kind.resumes()).collect();
        let Some(&feed) = self.random.pick(&forgetful) else { return };
        let key = self.random.below(self.feeds[feed].keys.len() as u64) as usize;
        let by = self.random.between(1, 3);
        if self.feeds[feed].set_back(key, by) {
            self.counters.add("set_back");
            self.fetch(feed, key);
        }
    }

    pub(super) fn kill(&mut self, pid: Pid) {
        let Some(process) = self.processes.get_mut(&pid).filter(|process| process.alive()) else { return };
        let rank = process.rank;
        log!(self, "{} killed", pid.0);
        self.counters.add("killed");
        let replaced = self.random.millis(50, 800);
        self.after(replaced, Event::Start(rank));
        // Memory is torn down before files close; locks and sockets go in no fixed order.
        let teardown =
            if self.random.chance(100) { self.random.millis(10, 100) } else { self.random.micros(100, 5000) };
        self.die(pid, teardown);
    }

    fn die(&mut self, pid: Pid, teardown: Duration) {
        let held = self.tokens_held(pid);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.run = Run::Dying;
        process.next_turn = None;
        let session = process.session;
        self.dead_tokens.extend(held);
        self.excuse_tokens();
        self.excuse_changes();
        self.tell(&Fact::Died { session });
        let (sockets, locks) = (self.random.micros(0, 20_000), self.random.micros(0, 20_000));
        self.after(teardown + sockets, Event::SocketsClose(pid));
        self.after(teardown + locks, Event::LocksFree(pid));
    }

    /// A session that left exits once everything it was doing is done.
    pub(super) fn exit_if_left(&mut self, pid: Pid) {
        let Some(process) = self.processes.get(&pid) else { return };
        if process.left && process.alive() && !process.has_work() && process.tasks.is_empty() {
            log!(self, "{} exits", pid.0);
            self.counters.add("left");
            self.die(pid, Duration::ZERO);
        }
    }

    pub(super) fn close_sockets(&mut self, pid: Pid) {
        let sockets: Vec<String> = self
            .net
            .listeners
            .iter()
            .filter(|(_, listener)| listener.pid == pid)
            .map(|(socket, _)| socket.clone())
            .collect();
        for socket in sockets {
            self.close_listener(&socket);
        }
        let ends: Vec<(ConnId, bool, bool)> = self
            .net
            .conns
            .iter()
            .map(|(id, conn)| (*id, conn.client == pid, conn.server == pid))
            .filter(|(_, client, server)| *client || *server)
            .collect();
        for (conn, client, server) in ends {
            if client {
                self.close_client_end(conn);
            }
            if server {
                self.close_server_end(conn);
            }
        }
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let upstreams: Vec<(usize, u64)> = process
            .upstreams
            .iter()
            .filter_map(|(feed, upstream)| upstream.conn.map(|conn| (*feed, conn)))
            .collect();
        for (feed, conn) in upstreams {
            let delay = self.random.micros(50, 1500);
            self.after(delay, Event::FeedDrop(feed, conn));
        }
    }

    pub(super) fn free_locks(&mut self, pid: Pid) {
        self.disk.release_locks(pid);
        if let Some(process) = self.processes.get_mut(&pid) {
            process.run = Run::Dead;
        }
        let closed = !self.net.conns.values().any(|conn| {
            (conn.client == pid && conn.phase != ConnPhase::Closed)
                || (conn.server == pid && !conn.server_closed)
        }) && !self.net.listeners.values().any(|listener| listener.pid == pid);
        if closed {
            // Nothing refers to it any more.
            self.processes.remove(&pid);
        }
    }

    pub(super) fn stop(&mut self, pid: Pid) {
        let Some(process) = self.processes.get_mut(&pid).filter(|process| process.run == Run::Running) else {
            return;
        };
        process.run = Run::Stopped;
        process.next_turn = None;
        log!(self, "{} stopped", pid.0);
        self.counters.add("stopped");
        self.excuse_tokens();
        let longest = if self.random.chance(300) { 400 } else { self.scenario.stop_ms };
        let length = self.random.millis(1, longest);
        self.after(length, Event::Continue(pid));
    }

    pub(super) fn continue_process(&mut self, pid: Pid) {
        let Some(process) = self.processes.get_mut(&pid).filter(|process| process.run == Run::Stopped) else {
            return;
        };
        process.run = Run::Running;
        process.busy_until = self.now;
        let parked = std::mem::take(&mut process.parked);
        log!(self, "{} continues", pid.0);
        for task in parked {
            let delay = self.random.micros(1, 2000);
            self.after(delay, Event::Task(pid, task));
        }
        // Which thread of it runs first is chance.
        let delay = self.random.micros(1, 2000);
        if let Some(process) = self.processes.get_mut(&pid) {
            process.busy_until = self.now + delay;
        }
        self.wake(pid);
    }

    /// Tokens of operations whose effect the session's process holds.
    pub(super) fn tokens_held(&self, pid: Pid) -> BTreeSet<u64> {
        let mut held = BTreeSet::new();
        if !self.scenario.operations {
            return held;
        }
        let Some(process) = self.processes.get(&pid) else { return held };
        let carried = process.follower.carry();
        let archived = carried.archive.iter().flat_map(|archive| archive.held.values());
        for value in carried.held.iter().chain(archived) {
            held.extend(data::tokens(&value.key, &value.value));
        }
        for (_, op) in &carried.ops {
            held.extend(data::operation_token(&op.operation));
        }
        if let Some(owned) = &process.owned {
            for key in data::token_keys(self.next_token) {
                if let Some(value) = owned.machine.get(&key) {
                    held.extend(data::tokens(&key, &value.value));
                }
            }
        }
        held
    }

    /// What nobody who runs holds any more is lost by more than one fault: it is owed no longer.
    pub(super) fn excuse_tokens(&mut self) {
        if self.owed_tokens.is_empty() {
            return;
        }
        let running: Vec<Pid> = self
            .processes
            .values()
            .filter(|process| process.run == Run::Running)
            .map(|process| process.pid)
            .collect();
        let held: BTreeSet<u64> = running.into_iter().flat_map(|pid| self.tokens_held(pid)).collect();
        let before = self.owed_tokens.len();
        self.owed_tokens.retain(|token| held.contains(token));
        self.counters.add_many("operations_excused", (before - self.owed_tokens.len()) as u64);
    }
}
