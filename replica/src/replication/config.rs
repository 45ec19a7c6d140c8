//! What an engine is told at its start, and the times and limits by which it judges others.

use std::time::Duration;

use crate::record::InstanceId;
use crate::types::ReplicaId;

/// What one engine process is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    pub volume: String,
    pub instance: InstanceId,
    pub replicas: Vec<ReplicaId>,
    /// A client of the engine before this one may still be waiting for answers.
    pub recover: bool,
    /// How long the open waits for a silent member that could be removed.
    pub open_timeout: Duration,
    /// How long a replica may owe an answer without giving any.
    pub replica_timeout: Duration,
    /// Pause before a lost connection is tried again.
    pub reconnect_after: Duration,
    /// How long the open waits for a member at whose address nobody listens: its process may still
    /// be starting.
    pub dead_timeout: Duration,
    /// How long a member whose link broke may take to come back before it is removed.
    pub rejoin_grace: Duration,
    /// How long a member may be far slower than all others, or a replica that is being rebuilt hold
    /// up what is written.
    pub slow_patience: Duration,
    /// Data that a replica which is being rebuilt may have been sent and not confirmed.
    pub backlog_bytes: u64,
    /// Replicas on this machine: read from these first.
    pub local: Vec<ReplicaId>,
    /// This process, so that replicas on the same machine learn of its death from the kernel.
    pub process: Option<u32>,
    /// What rebuilds may move, all of them together. `None`: what the frontend leaves them.
    pub rebuild_bytes_per_second: Option<u64>,
    /// A region that wasn't written for so long loses its mark.
    pub clear_after: Duration,
    /// While the volume is written, members agree on how far they are at least so often.
    pub epoch_every: Duration,
    /// After an unclean stop settling ends within so much work: of more regions than that allows,
    /// the least recently written lose their marks sooner.
    pub settle_within: Duration,
    /// However fast settling is, no more regions than these are marked.
    pub marked_regions_max: u64,
}

impl Config {
    pub fn new(volume: &str, instance: InstanceId, replicas: Vec<ReplicaId>) -> Self {
        Self {
            volume: volume.into(),
            instance,
            replicas,
            recover: false,
            open_timeout: Duration::from_secs(10),
            replica_timeout: Duration::from_secs(8),
            reconnect_after: Duration::from_millis(200),
            dead_timeout: Duration::from_secs(2),
            rejoin_grace: Duration::from_secs(1),
            slow_patience: Duration::from_secs(3),
            backlog_bytes: 32 << 20,
            local: Vec::new(),
            process: None,
            rebuild_bytes_per_second: None,
            epoch_every: super::epoch::EVERY,
            clear_after: Duration::from_secs(180),
            settle_within: Duration::from_secs(60),
            marked_regions_max: 64 << 10,
        }
    }
}
