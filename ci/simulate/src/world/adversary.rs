//! What goes wrong, and for how long.

use ankole_replica::admin::ReplicaMode;

use super::*;
use crate::machine::Stop;

impl World {
    pub(super) fn fault_step(&mut self) {
        let seldom = if self.is_seldom { 8 } else { 1 };
        let wait = 2 * MS + seldom * self.rng.below(150 * MS);
        self.after(wait, "fault", Self::fault_step);
        if !self.faults || self.menu.is_empty() {
            return;
        }
        let at = self.rng.below(self.machines.len() as u64) as usize;
        let for_us =
            if self.rng.percent(70) { self.rng.below(30 * MS) } else { self.rng.below(600 * MS) };
        self.replace_failed();
        self.inspect();
        if self.menu.contains(&Fault::RolledBack) && self.rng.percent(30) {
            self.save_copy();
        }
        let fault = self.rng.pick(&self.menu.clone());
        self.strike(fault, at, for_us);
        if self.menu.contains(&Fault::TwoAtOnce) && self.rng.percent(30) {
            let other = self.rng.below(self.machines.len() as u64) as usize;
            let fault = self.rng.pick(&self.menu.clone());
            self.strike(fault, other, for_us);
        }
    }

    fn strike(&mut self, fault: Fault, at: usize, for_us: u64) {
        let (now, id) = (self.now_us(), self.newest);
        // A second failure may take what was acknowledged.
        if self.is_anything_doomed() && !fault.keeps_members()
            || self.is_any_member_rolled_back() && !fault.keeps_witnesses()
        {
            return;
        }
        self.tally.faults += 1;
        self.log(|| format!("fault {fault:?} at {at} for {for_us} us"));
        self.note_fault(fault, at, for_us);
        match fault {
            Fault::LinksBreak => self.break_some(|link| link.replica == at),
            Fault::AllLinksBreak => self.break_some(|_| true),
            Fault::Unreachable => {
                self.unreachable.insert(at, now + for_us);
                self.break_some(|link| link.replica == at);
            }
            Fault::FarAway => {
                self.slow.insert(at, now + for_us);
            }
            Fault::Killed => self.stop_replica(at, false, for_us),
            Fault::AllKilled => self.stop_all(false, for_us),
            Fault::PowerLost => self.stop_replica(at, true, for_us),
            Fault::AllLosePower => {
                self.stop_all(true, for_us);
                if self.rng.percent(50) {
                    self.engine_gone(id, false);
                }
            }
            Fault::Hangs => {
                self.machines[at].hung_until = now + for_us;
                self.after(for_us, "goes on", |_| ()); // all machines are run after it
            }
            Fault::Crawls => self.machines[at].thread.crawl_until(now + for_us),
            Fault::DiskSlow => self.machines[at].be_slow_until(now + for_us),
            Fault::DiskFull => {
                self.machines[at].trouble(|trouble| trouble.full = true);
                self.make_room_after(at, for_us);
            }
            Fault::DiskFillsUp => {
                let full_in_calls = 1 + self.rng.below(200);
                self.machines[at].trouble(|trouble| trouble.full_in_calls = full_in_calls);
                self.make_room_after(at, for_us);
            }
            Fault::WriteFails => self.machines[at].trouble(|trouble| trouble.failing_writes = 1),
            Fault::SyncFails => {
                if self.can_do_without(at) {
                    self.machines[at].doomed = true;
                    self.machines[at].trouble(|trouble| trouble.failing_syncs = 1);
                }
            }
            Fault::BlockUnreadable => self.spoil_block(at, for_us),
            Fault::Rots => self.rot(at),
            Fault::PageLost => self.lose_page(at),
            Fault::MadeAnew => self.make_anew(at),
            Fault::RolledBack => self.roll_back(at, for_us),
            Fault::Remounted => {
                let seed = self.rng.number();
                self.stop_replica_by(at, Stop::Remount(seed), for_us);
            }
            // Its process has seen on which mount it is: no file system changes whether that is told.
            Fault::MountsHidden if !self.machines[at].is_up() => {}
            Fault::MountsHidden => {
                self.machines[at].disk.hide_mounts(true);
                self.stop_replica(at, false, for_us);
                self.after(3 * for_us, "mounts are seen", move |world| {
                    world.machines[at].disk.hide_mounts(false);
                });
            }
            Fault::EngineDies => {
                let recover = self.rng.percent(80);
                self.engine_gone(id, recover);
            }
            Fault::EngineStops => self.engines[&id].thread.stop_until(now + for_us),
            Fault::VolumeMoves => {
                let cut = self.rng.percent(70);
                self.engine(id).arbiter_cut_until = if cut { now + for_us } else { 0 };
                self.lost_ops.clear();
                self.start_engine(false);
            }
            Fault::VolumeSplits => self.split_brain(at, for_us),
            Fault::Detached => {
                self.engine(id).detaching = true;
                self.tell(id, |core, now| core.detach(now));
            }
            Fault::ArbiterAway => self.engine(id).arbiter_cut_until = now + for_us,
            Fault::OthersWanted => self.want_other_replicas(at),
            Fault::TwoAtOnce => {} // see `fault_step`
        }
    }

    fn stop_all(&mut self, power: bool, for_us: u64) {
        for at in 0..self.machines.len() {
            let away = self.rng.below(for_us + 1);
            self.stop_replica(at, power, away);
        }
    }

    /// The volume moves; the old engine keeps one replica, which the new one can't reach.
    fn split_brain(&mut self, kept: usize, for_us: u64) {
        // Long enough for the new one to open, and for both to be used.
        let (old, until) = (self.newest, self.now_us() + 150 * MS + for_us);
        let others = (0..self.machines.len()).filter(|it| *it != kept);
        self.split.extend(others.map(|other| ((old, other), until)));
        self.split.insert((old + 1, kept), until);
        self.engine(old).arbiter_cut_until = until;
        self.lost_ops.clear();
        self.start_engine(false);
        if self.rng.percent(50) {
            return self.break_some(|link| link.engine == old && link.replica != kept);
        }
        // Nobody tells the old engine: it believes in its connections until they time out.
        for link in self.links.values_mut() {
            link.broken |= link.engine == old && link.replica != kept;
        }
    }

    /// Somebody deletes the directory, and the agent makes it anew.
    fn make_anew(&mut self, at: usize) {
        if !self.can_do_without(at) {
            return;
        }
        // What an error on a disk does to the others would be the second failure.
        for machine in &mut self.machines {
            machine.trouble(|trouble| trouble.failing_writes = 0);
            machine.disk.heal();
        }
        self.format(at);
        self.machines[at].doomed = true;
    }

    fn format(&mut self, at: usize) {
        self.log(|| format!("the directory of {at} is made anew"));
        self.cut_off(at);
        self.removed.remove(&at);
        self.removed.values_mut().for_each(|(_, survivors)| survivors.retain(|it| *it != at));
        self.next_incarnation += 1;
        let (seed, incarnation) = (self.rng.number(), Incarnation(self.next_incarnation));
        let size_bytes = self.engines[&self.newest].core.status().chain.size_bytes();
        let size = Size { bytes: size_bytes.max(self.places.size_bytes), layers: 1 };
        self.machines[at].format(seed, incarnation, size);
        self.machines[at].start(self.tick);
    }

    /// What this replica holds may be lost for good without breaking any promise: another member
    /// has everything, is in use, and stays.
    pub(super) fn can_do_without(&self, at: usize) -> bool {
        let engine = &self.engines[&self.newest];
        if !engine.alive || !engine.opened || engine.detaching || engine.asks_for_change {
            return false;
        }
        let status = engine.core.status();
        let sound = |other: usize| {
            let machine = &self.machines[other];
            let mode = status.peers.iter().find(|peer| peer.replica == machine.id);
            other != at
                && machine.is_up()
                && machine.hung_until <= self.now_us()
                && machine.rotten.is_none()
                && !machine.lossy
                && machine.disk.trouble().failing_writes == 0
                && mode.is_some_and(|peer| peer.mode == ReplicaMode::ReadWrite)
                && machine.look(|store| store.continuous())
        };
        !self.is_anything_doomed() && self.members().into_iter().any(sound)
    }

    /// A member is gone for good, or soon will be: the others must not lose anything.
    fn is_anything_doomed(&self) -> bool {
        (0..self.machines.len()).any(|at| self.machines[at].doomed)
    }

    /// The set changes: who was to fail may be the only one that is left.
    pub(super) fn call_off_failures(&mut self) {
        for machine in &mut self.machines {
            if machine.disk.trouble().failing_syncs > 0 {
                machine.trouble(|trouble| trouble.failing_syncs = 0);
                machine.doomed = false;
            }
        }
    }

    /// A replica that failed for good gets a new directory once it isn't in the set any more.
    pub(super) fn replace_failed(&mut self) {
        if !self.engines[&self.newest].opened {
            return; // until then who left is still asked for what it has
        }
        for at in 0..self.machines.len() {
            let machine = &self.machines[at];
            if !machine.doomed || machine.disk.trouble().failing_syncs > 0 {
                continue;
            }
            let is_new = |member: &Member| member.incarnation == machine.incarnation;
            if machine.has_failed() {
                if !self.is_member(at) {
                    self.format(at);
                }
            } else if !self.is_member(at) || self.record.in_sync.iter().any(is_new) {
                self.machines[at].doomed = false;
            }
        }
    }

    /// A bit flips in what nobody is writing: a sealed layer.
    fn rot(&mut self, at: usize) {
        let bit = self.rng.below(8 * 512) as usize;
        if let Some(((data, _), nth)) = self.sealed_files(at) {
            self.machines[at].rot(&data, nth, bit, |_| true);
        }
    }

    /// The disk has lost a write: a page that was durable reads as zeroes.
    fn lose_page(&mut self, at: usize) {
        if let Some(((_, index), nth)) = self.sealed_files(at) {
            self.machines[at].lose_page(&index, nth, |_| true);
        }
    }

    /// Data and index of some sealed layer that hold anything, and a number. Nothing if nobody else
    /// has them, or not for sure.
    fn sealed_files(&mut self, at: usize) -> Option<((String, String), u64)> {
        let nth = self.rng.number();
        let alone = self.members().len() < 2;
        if alone || self.machines.iter().any(|machine| machine.rotten.is_some()) {
            return None;
        }
        let machine = &self.machines[at];
        let mut sealed: Vec<_> = machine.look(|store| {
            let chain = store.chain();
            let sealed = chain.layers.iter().filter(|layer| layer.id != chain.head);
            sealed.filter_map(|layer| store.layer_files(layer.id).ok()).collect()
        });
        sealed.retain(|(_, index)| !machine.disk.sectors_of(index).is_empty());
        (!sealed.is_empty()).then(|| (sealed.swap_remove(nth as usize % sealed.len()), nth))
    }

    fn make_room_after(&mut self, at: usize, us: u64) {
        self.after(us, "room", move |world| {
            world.machines[at].trouble(|trouble| {
                (trouble.full, trouble.full_in_calls) = (false, 0);
            });
        });
    }

    /// The volume gets another replica, or loses one.
    fn want_other_replicas(&mut self, at: usize) {
        if self.is_anything_doomed() {
            return;
        }
        if self.wanted.len() > 1 && self.rng.percent(50) {
            self.wanted.remove(&at);
            self.disturb(at, 0); // it may be wanted again before it has left
        } else if self.machines.len() < 5 && self.rng.percent(50) {
            let at = self.machines.len();
            self.next_incarnation += 1;
            let incarnation = Incarnation(self.next_incarnation);
            let (seed, id) = (self.rng.number(), replica_id(at));
            let size = Size { bytes: self.places.size_bytes, layers: 1 };
            let speed = self.rng.pick(&Speed::ALL);
            let new = Machine::new(&self.schedule, seed, id, incarnation, size, speed);
            self.machines.push(new);
            self.wanted.insert(at);
        } else {
            self.wanted.insert(at);
        }
        self.log(|| format!("wanted are {:?}", self.wanted));
        self.tell_wanted(self.newest);
    }

    /// A block that is there can't be read for a while. Not while a replica recovers from a crash:
    /// the sum of a block that can't be read then is lost.
    fn spoil_block(&mut self, at: usize, for_us: u64) {
        let engine = &self.engines[&self.newest];
        let machine = &self.machines[at];
        let settled = engine.opened && engine.core.status().unsettled_bytes == 0;
        if !settled || !machine.is_up() || !self.is_member(at) {
            return;
        }
        if !machine.look(|store| store.is_recovered()) {
            return; // the engine hasn't heard of its end yet
        }
        let files = machine.look(|store| store.layer_files(store.chain().head));
        let Ok((data, _)) = files else { return };
        let block = self.rng.pick(&self.places.touched) * SECTORS as u64;
        machine.disk.spoil(&data, block..block + SECTORS as u64);
        self.after(for_us, "good", move |world| world.machines[at].disk.heal());
    }

    pub(super) fn break_some(&mut self, which: impl Fn(&Link) -> bool) {
        let keys: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| !link.closed && which(link))
            .map(|it| *it.0)
            .collect();
        for key in keys {
            self.break_link(key);
        }
    }
}
