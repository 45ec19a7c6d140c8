//! A directory that is replaced by an older copy of itself: what may be taken back, and what must
//! then be noticed.

use ankole_replica::store::Store;
use ankole_replica::store::crash::Disk;

use super::*;

impl World {
    /// Now and then somebody copies a directory, as a snapshot of its disk would be.
    pub(super) fn save_copy(&mut self) {
        let at = self.rng.below(self.machines.len() as u64) as usize;
        let machine = &mut self.machines[at];
        if machine.rotten.is_none() && !machine.is_rolled_back && !machine.has_failed() {
            machine.saved = Some((machine.incarnation, machine.disk.after_kill()));
        }
    }

    /// The directory is what it was when it was copied. Only if the others have agreed on something
    /// since (what it lacks otherwise is marked there), and nobody else is needed elsewhere.
    pub(super) fn roll_back(&mut self, at: usize, away_us: u64) {
        let now = self.now_us();
        let cut_off = |until: &u64| *until > now;
        let undisturbed = !self.unreachable.values().any(cut_off)
            && !self.split.values().any(cut_off)
            && !self.slow.values().any(cut_off)
            && self.engines.values().filter(|engine| engine.alive).count() == 1;
        let machine = &self.machines[at];
        let Some((incarnation, copy)) = machine.saved.clone() else { return };
        if !undisturbed
            || incarnation != machine.incarnation
            || machine.rotten.is_some()
            || !self.can_do_without(at)
        {
            return;
        }
        let copy = machine.disk.put_back(&copy);
        let (begun, welcomed, synced) = look_into(&copy, |store| {
            let membership = store.membership();
            (membership.epoch.begun, store.fence(), membership.synced_gen)
        });
        if begun >= self.what_it_should_have_begun(at) {
            return;
        }
        self.log(|| format!("the directory of {at} is what it was, at epoch {begun}"));
        self.stop_replica(at, false, away_us);
        let machine = &mut self.machines[at];
        machine.disk = copy;
        (machine.welcomed, machine.synced) = (welcomed, synced);
        machine.is_rolled_back = true;
    }

    fn what_it_should_have_begun(&self, at: usize) -> u64 {
        let is_member = self.members().contains(&at);
        let (id, incarnation) = (&self.machines[at].id, self.machines[at].incarnation);
        let known = self.members().into_iter().filter(|other| *other != at).map(|other| {
            self.machines[other].look(|store| {
                let membership = store.membership();
                if is_member {
                    return membership.epoch.agreed;
                }
                let departed = membership.departed.iter();
                let it = |it: &&ankole_replica::message::Departed| {
                    it.member.replica == *id && it.member.incarnation == incarnation
                };
                departed.filter(it).map(|it| it.begun).max().unwrap_or(0)
            })
        });
        known.max().unwrap_or(0)
    }

    /// Rule 10b: an older copy never counts as the member that it was.
    pub(super) fn check_told_in_sync(&self, at: usize) {
        let machine = &self.machines[at];
        assert!(!machine.is_rolled_back, "an older copy of {at} counts as in sync (rule 10b)");
    }

    /// And nobody else counts as an older copy.
    pub(super) fn check_lost_for(&self, at: usize, reason: Option<&String>) {
        let is_called_so = reason.is_some_and(|reason| reason.contains("older copy"));
        let machine = &self.machines[at];
        assert!(
            machine.is_rolled_back || !is_called_so,
            "{at} is called an older copy of itself, and isn't: {reason:?}"
        );
    }

    /// A member that isn't what it was: the others are needed.
    pub(super) fn is_any_member_rolled_back(&self) -> bool {
        self.members().into_iter().any(|at| self.machines[at].is_rolled_back)
    }
}

fn look_into<T>(disk: &Disk, look: impl FnOnce(&Store<Disk>) -> T) -> T {
    let copy = disk.after_kill();
    let store = crate::machine::open(&copy);
    copy.observe(|| look(&store))
}
