//! What the agent and the command line ask of a running engine, and what it answers: one line of
//! JSON each way, over the engine's admin socket. Requests of one connection are answered in order.
//!
//! Who watches is told without asking: a status at first and whenever something that matters has
//! changed, for counters alone every five seconds at most, and `alive` after each second in which nothing has. Nothing else
//! is answered on that connection. An engine that doesn't know `watch` answers an error.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::InstanceId;
use crate::types::{Generation, LayerId, ReplicaId};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "request")]
pub enum Request {
    Status,
    /// From now on a line at least each second, until the connection is closed.
    Watch,
    /// Answered once the snapshot exists on every member.
    Snapshot {
        name: String,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    },
    /// Refused while a client is connected to the frontend.
    Revert {
        name: String,
    },
    /// Answered once the snapshot can't be read any more; its space is freed in the background.
    RemoveSnapshot {
        name: String,
    },
    Expand {
        size_bytes: u64,
    },
    /// The replicas that should exist. One that isn't in sync is rebuilt; one that is no longer
    /// named leaves, unless it is the last.
    SetReplicas {
        replicas: Vec<ReplicaAddress>,
    },
    /// Drains, flushes, says goodbye to the replicas and ends the process.
    Detach,
    /// The same, but leaves the device to the next engine: its requests wait in the kernel.
    HandOver,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "answer")]
pub enum Answer {
    Ok,
    Status(Box<EngineStatus>),
    /// To who watches: all is as it was.
    Alive,
    /// `kind` is for decisions, `message` for people.
    Error {
        kind: ErrorKind,
        message: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ErrorKind {
    NotFound,
    /// Exists already, is in use, or the volume's state doesn't allow it.
    Conflict,
    Invalid,
    Failed,
}

/// Where a replica is served: `unix:PATH`, `tcp:ADDRESS:PORT` (loopback until there is TLS), or
/// `dir:PATH` for one inside the engine's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaAddress {
    pub replica: ReplicaId,
    pub address: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineStatus {
    pub volume: String,
    /// Of the engine's program; unknown of those that don't say it yet.
    #[serde(default)]
    pub version: Option<String>,
    pub instance: InstanceId,
    pub generation: Generation,
    pub size_bytes: u64,
    /// Device path, or a URI that libnbd understands; none until the volume can be used.
    pub endpoint: Option<String>,
    pub replicas: Vec<ReplicaStatus>,
    /// After an unclean stop: what must still be made equal before it may be read.
    pub unsettled_bytes: u64,
    /// Blocks that a replica couldn't read and was given by another one, since the engine started.
    #[serde(default)]
    pub repaired_blocks: u64,
    /// Bytes that were being written in a crash and that no second replica could confirm.
    #[serde(default)]
    pub unverified_bytes: u64,
    #[serde(default)]
    pub damage: Damage,
    /// Replicas that are in sync and whose disk is full, while writes wait for room there.
    #[serde(default)]
    pub full: Vec<ReplicaId>,
    /// What the volume waits for, in words; empty when it waits for nothing.
    pub waiting: Vec<String>,
    pub clients: u32,
    pub snapshots: Vec<SnapshotStatus>,
    /// Bytes of the head's own data.
    pub head_bytes: u64,
    pub head_parent: Option<String>,
    pub requests: RequestCounts,
}

impl EngineStatus {
    /// Whether another replica than this one can be read.
    pub fn has_readable_but(&self, one: &ReplicaId) -> bool {
        let mut others = self.replicas.iter().filter(|replica| replica.replica != *one);
        others.any(|replica| replica.mode == ReplicaMode::ReadWrite)
    }

    /// Whether any replica can be read: without one every request waits.
    pub fn has_readable(&self) -> bool {
        self.replicas.iter().any(|replica| replica.mode == ReplicaMode::ReadWrite)
    }
}

/// What replicas couldn't read since the engine started, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    /// Those that couldn't read something.
    pub replicas: Vec<ReplicaDamage>,
    /// What no replica that is in sync can read: the first ranges of it.
    pub lost: Vec<LayerRange>,
    /// Of all such ranges.
    pub lost_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaDamage {
    pub replica: ReplicaId,
    /// Blocks that wait for their repair.
    pub waiting_blocks: u64,
    pub repaired_blocks: u64,
    /// Where it was found or repaired last, from the first bad block to the last.
    pub last: LayerRange,
    /// Who had it; none as long as that isn't repaired.
    pub repaired_from: Option<ReplicaId>,
    /// How long ago that was.
    pub ago_s: u64,
}

/// A range of the volume, in one layer of its chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerRange {
    pub layer: LayerId,
    /// Of the layer, if it is one that users see; none is the head, or a snapshot that was removed.
    pub snapshot: Option<String>,
    pub offset_bytes: u64,
    pub length_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    pub replica: ReplicaId,
    pub address: String,
    pub mode: ReplicaMode,
    /// Why it isn't in sync, in words.
    pub reason: Option<String>,
    /// Its directory is an older copy of itself: it isn't what it was when it was in sync.
    #[serde(default)]
    pub is_older: bool,
    pub rebuild: Option<Progress>,
    /// The last one that ended since the engine started, complete or not.
    #[serde(default)]
    pub last_rebuild: Option<Progress>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaMode {
    /// In sync: takes writes and may be read.
    #[serde(rename = "RW")]
    ReadWrite,
    /// Being rebuilt: takes writes, isn't read.
    #[serde(rename = "WO")]
    WriteOnly,
    #[serde(rename = "ERR")]
    Error,
}

/// How far a rebuild is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Compared, and found or made equal; in whole regions of 1 MiB.
    pub done_bytes: u64,
    /// Of those that may differ; 0 until that is known.
    pub total_bytes: u64,
    /// Of `done_bytes`, in the last seconds.
    pub bytes_per_second: u64,
    /// Data that differed and was moved.
    #[serde(default)]
    pub moved_bytes: u64,
    /// At the present rate; none while nothing moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<u64>,
    /// The replica was last in sync then, and only what was written since is looked at. None:
    /// everything is, since it never was in sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Generation>,
    #[serde(default)]
    pub stage: RebuildStage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RebuildStage {
    /// It takes over the chain, and layers that the others have joined are joined.
    #[default]
    Beginning,
    /// Which regions may differ is found out.
    Gathering,
    Copying,
    /// All is equal, and made durable.
    Syncing,
    /// The arbiter is asked to record it.
    Adding,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    pub name: String,
    pub layer: LayerId,
    /// Name of the snapshot below it that still exists.
    pub parent: Option<String>,
    pub created_unix_s: u64,
    pub labels: BTreeMap<String, String>,
    /// Bytes of the layer's own data.
    pub data_bytes: u64,
    pub size_bytes: u64,
}

/// Requests answered since the engine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestCounts {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
    pub failed: u64,
}
