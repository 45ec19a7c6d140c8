//! The core's state for people.

use super::core::{Core, Phase};
use super::damage::DamageStatus;
use super::peer::{Peer, PeerState};
use super::rebuild::RebuildStatus;
use crate::admin::ReplicaMode;
use crate::chain::ChainInfo;
use crate::types::{Generation, ReplicaId};

#[derive(Clone, Debug)]
pub struct CoreStatus {
    pub generation: Option<Generation>,
    pub serving: bool,
    pub peers: Vec<PeerStatus>,
    pub unsettled_bytes: u64,
    pub repaired_blocks: u64,
    pub unverified_bytes: u64,
    pub waiting: Vec<String>,
    pub damage: DamageStatus,
    /// Members whose disk is full while something waits for room there.
    pub full: Vec<ReplicaId>,
    pub chain: ChainInfo,
}

#[derive(Clone, Debug)]
pub struct PeerStatus {
    pub replica: ReplicaId,
    pub wanted: bool,
    pub mode: ReplicaMode,
    pub reason: Option<String>,
    /// It isn't what it was: its directory went back in time.
    pub is_older: bool,
    /// Data that was sent to it and isn't confirmed.
    pub owed_bytes: u64,
    pub rebuild: Option<RebuildStatus>,
    /// The last one that ended, complete or not.
    pub last_rebuild: Option<RebuildStatus>,
}

impl Core {
    /// The instance that this engine was granted the volume for.
    pub fn instance(&self) -> &crate::record::InstanceId {
        &self.config.instance
    }

    pub fn status(&self) -> CoreStatus {
        let peers = self.peers.iter().map(|peer| {
            let mode = match peer.state {
                PeerState::Live { .. } if peer.in_set.is_some() => ReplicaMode::ReadWrite,
                PeerState::WriteOnly | PeerState::Live { .. } => ReplicaMode::WriteOnly,
                _ => ReplicaMode::Error,
            };
            PeerStatus {
                replica: peer.id.clone(),
                wanted: peer.wanted,
                mode,
                reason: reason(peer).filter(|_| mode != ReplicaMode::ReadWrite),
                is_older: peer.is_older,
                owed_bytes: peer.owed_bytes,
                rebuild: self.rebuilds.status(peer.slot),
                last_rebuild: self.rebuilds.last_status(peer.slot),
            }
        });
        CoreStatus {
            generation: self.generation(),
            serving: matches!(self.phase, Phase::Serving),
            peers: peers.collect(),
            unsettled_bytes: self.settle.unsettled_bytes(),
            repaired_blocks: self.repairs.repaired_blocks(),
            unverified_bytes: self.repairs.unverified_bytes(),
            waiting: self.waits_for(),
            damage: self.damage_status(),
            full: self.full_disks().iter().map(|slot| self.peer(slot).id.clone()).collect(),
            chain: self.chain.clone(),
        }
    }

    fn waits_for(&self) -> Vec<String> {
        [
            self.failed_waits_for(),
            self.opening_waits_for(),
            self.membership_waits_for(),
            self.lease_waits_for(),
            self.chain_waits_for(),
            self.slow_waits_for(),
        ]
        .into_iter()
        .flatten()
        .chain(self.room_waits_for())
        .collect()
    }
}

/// Why a replica isn't live, in words.
fn reason(peer: &Peer) -> Option<String> {
    match &peer.state {
        PeerState::Welcomed(welcome) if welcome.continuous => {
            Some("it waits for the other replicas".into())
        }
        PeerState::Welcomed(_) => {
            Some("it may have lost acknowledged writes; it waits for the other replicas".into())
        }
        // It is here: why it was away says nothing of now.
        PeerState::WriteOnly | PeerState::Live { .. } => peer
            .is_older
            .then(|| "its directory was an older copy of itself: all of it is compared".into()),
        _ => peer.reason.clone(),
    }
}
