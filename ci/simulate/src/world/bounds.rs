//! What may wait, leave or be held, and which fault explains it.
//!
//! Knows until when each replica was disturbed. Promises that three bounds hold at any time: how
//! long a request waits, who leaves the set, and what an engine owes a replica that is being rebuilt.

use ankole_replica::admin::RebuildStage;

use super::*;

/// A request of a client waits no longer than this after the last fault began, beside a member that
/// nothing disturbs: until who hangs is given up (200 ms), the others have answered a ping, the
/// arbiter its question (4 ms, and 20 ms more each time that it loses one), and the others an
/// `Advance`; or until a replica that is being rebuilt is given up (150 ms), and then that.
const WAIT_MAX_US: u64 = 600 * MS;
/// What an engine sends between two looks at what a target owes: a region of a copy, some writes.
const SENT_AT_ONCE_BYTES: u64 = 2 << 20;

#[derive(Default)]
pub(super) struct Strain {
    /// Until when each replica is disturbed, or was.
    disturbed_until_us: BTreeMap<usize, u64>,
    /// When each was made equal to the members.
    ready_us: BTreeMap<usize, u64>,
    /// What waited before had a reason that isn't one replica.
    excused_us: u64,
}

impl World {
    /// Something happens to a replica, or to what is between it and others.
    pub(super) fn disturb(&mut self, at: usize, for_us: u64) {
        let until_us = self.now_us() + for_us;
        let before_us = self.strain.disturbed_until_us.entry(at).or_default();
        *before_us = until_us.max(*before_us);
    }

    fn disturb_all(&mut self, for_us: u64) {
        (0..self.machines.len()).for_each(|at| self.disturb(at, for_us));
    }

    /// What a fault is a reason for.
    pub(super) fn note_fault(&mut self, fault: Fault, at: usize, for_us: u64) {
        let now = self.now_us();
        match fault {
            // It ends when something is written or synced there, whenever that is.
            Fault::WriteFails | Fault::SyncFails => self.disturb(at, 5_000 * MS),
            Fault::AllLosePower | Fault::AllKilled | Fault::AllLinksBreak => {
                self.disturb_all(for_us);
            }
            Fault::VolumeSplits => self.disturb(at, 150 * MS + for_us),
            Fault::MountsHidden => self.disturb(at, 3 * for_us),
            // No reason for a member to leave.
            Fault::EngineDies
            | Fault::EngineStops
            | Fault::VolumeMoves
            | Fault::Detached
            | Fault::ArbiterAway
            | Fault::OthersWanted
            | Fault::TwoAtOnce => {}
            _ => self.disturb(at, for_us),
        }
        let excused = match fault {
            Fault::DiskFull
            | Fault::DiskFillsUp
            | Fault::EngineStops
            | Fault::VolumeMoves
            | Fault::VolumeSplits
            | Fault::ArbiterAway => now + for_us,
            _ => now,
        };
        // Each who is disturbed may have to be given up, one after the other.
        self.strain.excused_us = self.strain.excused_us.max(excused);
    }

    fn is_disturbed(&self, at: usize) -> bool {
        self.strain.disturbed_until_us.get(&at).is_some_and(|until| *until >= self.now_us())
    }

    pub(super) fn note_ready(&mut self, at: usize) {
        self.strain.ready_us.insert(at, self.now_us());
    }

    /// Redundancy never shrinks for a reason that isn't a fault of who leaves.
    pub(super) fn check_leaves_for_a_fault(&self, at: usize) {
        if self.telling.is_some() || !self.faults {
            return; // stories disturb in their own ways
        }
        let machine = &self.machines[at];
        let ready_us = self.strain.ready_us.get(&at).copied().unwrap_or(0);
        let until_us = self.strain.disturbed_until_us.get(&at);
        let disturbed = until_us.is_some_and(|until| *until >= ready_us);
        assert!(
            disturbed
                || !self.wanted.contains(&at)
                || machine.has_failed()
                || machine.is_rolled_back
                || machine.rotten.is_some(),
            "{at} leaves the set, and nothing was wrong with it"
        );
    }

    /// Now and then.
    pub(super) fn check_bounds(&mut self) {
        self.check_owed();
        self.check_waits();
    }

    fn check_owed(&self) {
        for engine in self.engines.values().filter(|engine| engine.alive) {
            for peer in engine.core.status().peers {
                let is_target = peer.mode == ReplicaMode::WriteOnly
                    && peer.rebuild.is_some_and(|it| it.stage != RebuildStage::Adding);
                assert!(
                    !is_target || peer.owed_bytes <= BACKLOG_BYTES + SENT_AT_ONCE_BYTES,
                    "{} is being rebuilt, and owes {} bytes",
                    peer.replica,
                    peer.owed_bytes
                );
            }
        }
    }

    fn check_waits(&mut self) {
        let now = self.now_us();
        let hangs = self.telling.as_ref().is_some_and(|it| it.story == Story::AMemberHangs);
        let engine = &self.engines[&self.newest];
        let is_sound = |at: usize| {
            let machine = &self.machines[at];
            !self.is_disturbed(at)
                && machine.is_up()
                && machine.rotten.is_none()
                && !machine.has_failed()
        };
        let excused = !engine.alive
            || !engine.opened
            || engine.detaching
            || engine.arbiter_cut_until > now
            || self.wants_revert
            || self.telling.is_some() && !hangs
            || self.machines.iter().any(|machine| machine.disk.trouble().full)
            || !engine.core.status().full.is_empty() // asked again every second
            || !self.members().into_iter().any(is_sound);
        if excused {
            self.strain.excused_us = self.strain.excused_us.max(now);
            return;
        }
        let waiting = engine.ops.values().filter(|op| !op.answered);
        let Some(oldest) = waiting.min_by_key(|op| op.submitted_us) else { return };
        let since = oldest.submitted_us.max(self.strain.excused_us);
        let waits_us = now.saturating_sub(since);
        self.tally.longest_wait_us = self.tally.longest_wait_us.max(waits_us);
        let reasons = || engine.core.status().waiting;
        assert!(
            waits_us <= WAIT_MAX_US,
            "a request waits {} ms beside a sound member: {:?} {:?}",
            waits_us / MS,
            oldest.operation,
            reasons()
        );
    }
}
