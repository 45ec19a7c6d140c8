//! What goes wrong, and for how long.

use super::*;

impl World {
    pub(super) fn fault_step(&mut self) {
        let wait = 2 * MS + self.rng.below(150 * MS);
        self.after(wait, "fault", Self::fault_step);
        if !self.faults || self.menu.is_empty() {
            return;
        }
        let at = self.rng.below(self.machines.len() as u64) as usize;
        let for_us =
            if self.rng.percent(70) { self.rng.below(30 * MS) } else { self.rng.below(600 * MS) };
        let (now, id) = (self.now_us(), self.newest);
        let kind = self.rng.pick(&self.menu.clone());
        self.tally.faults += 1;
        self.log(|| format!("fault {kind} at {at} for {for_us} us"));
        match kind {
            0 => self.break_some(|link| link.replica == at),
            1 => self.stop_replica(at, false, for_us),
            2 => self.stop_replica(at, true, for_us),
            3 => {
                for at in 0..self.machines.len() {
                    let away = self.rng.below(for_us + 1);
                    self.stop_replica(at, true, away);
                }
                if self.rng.percent(50) {
                    self.engine_gone(id, false);
                }
            }
            4 => {
                self.machines[at].hung_until = now + for_us;
                self.after(for_us, "goes on", |_| ()); // all machines are run after it
            }
            5 => {
                self.machines[at].trouble(|trouble| trouble.full = true);
                self.after(for_us, "room", move |world| {
                    world.machines[at].trouble(|trouble| trouble.full = false);
                });
            }
            6 => self.spoil_block(at, for_us),
            7 => {
                let recover = self.rng.percent(80);
                self.engine_gone(id, recover);
            }
            8 => {
                // The volume moves; the old engine lives on where nobody reaches it.
                let cut = self.rng.percent(70);
                self.engine(id).arbiter_cut_until = if cut { now + for_us } else { 0 };
                self.lost_ops.clear();
                self.start_engine(false);
            }
            9 => self.engine(id).arbiter_cut_until = now + for_us,
            10 => {
                self.engine(id).detaching = true;
                self.tell(id, |core, now| core.detach(now));
            }
            11 => {
                self.slow.insert(at, now + for_us);
            }
            12 => self.machines[at].trouble(|trouble| trouble.failing_writes = 1),
            13 => {
                self.unreachable.insert(at, now + for_us);
                self.break_some(|link| link.replica == at);
            }
            14 => self.machines[at].be_slow_until(now + for_us),
            _ => self.break_some(|_| true),
        }
    }

    /// A block that is there can't be read for a while.
    fn spoil_block(&mut self, at: usize, for_us: u64) {
        let machine = &self.machines[at];
        let files = machine.look(|store| store.layer_files(store.chain().head));
        let Ok((data, _)) = files else { return };
        let block = self.rng.pick(&TOUCHED) * SECTORS as u64;
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

/// Kinds of fault, see `fault_step`.
pub(super) const FAULTS: u64 = 16;
