//! What an attached volume's engine says of its replicas, of what they couldn't read and of what
//! waits: as conditions.

use std::time::Duration;

use ankole_replica::admin::{EngineStatus, LayerRange, ReplicaDamage, ReplicaMode, ReplicaStatus};
use ankole_replica::replication::waits_for_room;

use super::EnginePlan;

use ankole_api::objects::{Condition, Engine};
use ankole_api::size::human;
use ankole_api::volume::Reason;

/// A disk that has lost a block may lose more: what was repaired is told for so long.
const REPAIRS_ARE_TOLD: Duration = Duration::from_secs(24 * 3600);
/// Lost ranges that a message names.
const RANGES_MAX: usize = 4;

impl EnginePlan {
    pub(super) fn tell_trouble(&mut self, engine: &Engine, status: &EngineStatus) {
        self.tell_lost(engine, status);
        for damage in &status.damage.replicas {
            self.tell_damaged(damage);
        }
        for replica in &status.replicas {
            self.tell_absent(replica);
        }
        for replica in &status.full {
            let name = engine.name();
            let full = Condition::new(Reason::DiskFull, waits_for_room(replica)).of(replica);
            self.note(full.next(format!(
                "free some space on the disk of {}, or remove snapshots: ankole snapshot ls {name}",
                replica
            )));
        }
        let is_told = |text: &&String| self.conditions.iter().any(|it| it.message == **text);
        let untold: Vec<_> =
            status.waiting.iter().filter(|text| !is_told(text)).map(String::as_str).collect();
        if !untold.is_empty() {
            self.note(Condition::new(Reason::RequestsWait, untold.join("; ")));
        }
    }

    fn tell_lost(&mut self, engine: &Engine, status: &EngineStatus) {
        let damage = &status.damage;
        if damage.lost.is_empty() {
            return;
        }
        let named: Vec<_> = damage.lost.iter().take(RANGES_MAX).map(place).collect();
        let more = if damage.lost.len() > RANGES_MAX { ", and more" } else { "" };
        let message = format!(
            "no replica that is in sync can read {} of volume {}: {}{more}; requests there get errors",
            human(damage.lost_bytes),
            engine.name(),
            named.join(", ")
        );
        let next = "restore them from a backup (ankole backup restore), or write those bytes anew: they are good then";
        // Nothing is more important.
        self.conditions.insert(0, Condition::new(Reason::DataLost, message).next(next));
    }

    fn tell_damaged(&mut self, damage: &ReplicaDamage) {
        let ReplicaDamage { replica, waiting_blocks, repaired_blocks, last, .. } = damage;
        let last = place(last);
        if *waiting_blocks > 0 {
            let message = format!(
                "replica {replica} can't read {waiting_blocks} block(s), such as {last}; others are asked, and it is repaired"
            );
            self.note(Condition::new(Reason::ReplicaCorrupt, message).of(replica));
        }
        let is_recent = damage.ago_s < REPAIRS_ARE_TOLD.as_secs();
        if let Some(from) = damage.repaired_from.as_ref().filter(|_| is_recent) {
            let message = format!(
                "replica {replica} couldn't read {repaired_blocks} block(s), the last {last}: repaired from {from}"
            );
            let next =
                format!("look for errors of the disk of {replica} (the kernel's log, smartctl)");
            self.note(Condition::new(Reason::ReplicaRepaired, message).of(replica).next(next));
        }
    }

    /// Unless more is known of it than its engine can know.
    fn tell_absent(&mut self, absent: &ReplicaStatus) {
        let replica = &absent.replica;
        let (what, reason) = match absent.mode {
            ReplicaMode::ReadWrite => return,
            _ if absent.is_older => ("is out of sync", Reason::ReplicaOlder),
            ReplicaMode::Error => ("is out of service", Reason::ReplicaAbsent),
            ReplicaMode::WriteOnly => ("is rebuilt", Reason::ReplicaRebuilt),
        };
        let why = absent.reason.as_ref().map_or(String::new(), |why| format!(": {why}"));
        self.note(Condition::new(reason, format!("replica {replica} {what}{why}")).of(replica));
    }
}

/// `4 KiB at byte 36864 of snapshot s1 (layer 1)`
fn place(range: &LayerRange) -> String {
    let LayerRange { layer, snapshot, offset_bytes, length_bytes } = range;
    let length = human(*length_bytes);
    match snapshot {
        Some(name) => format!("{length} at byte {offset_bytes} of snapshot {name} ({layer})"),
        None => format!("{length} at byte {offset_bytes} of {layer}"),
    }
}
