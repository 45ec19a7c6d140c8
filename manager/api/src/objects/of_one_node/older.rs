//! What stores of formats 1 and 2 have of a volume.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ankole_replica::record::Record;
use ankole_replica::types::ReplicaId;
use serde::{Deserialize, Serialize};

use crate::Name;
use crate::attachment::Ticket;
use crate::volume::{Attachment, EngineProgram, Frontend, Transport};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    pub name: Name,
    /// Random, made with the volume: tells it from every other of its name.
    pub uid: String,
    pub spec: VolumeSpec,
    pub status: VolumeStatus,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSpec {
    /// That is wanted; never less than there is. The engine follows while the volume is attached.
    pub size_bytes: u64,
    pub replicas: u8,
    pub frontend: Frontend,
    pub transport: Transport,
    /// The one replica lives inside the engine's process.
    pub in_engine: bool,
    #[serde(default)]
    pub engine: EngineProgram,
    /// Replicas that are to be made anew from the others, each until it has an empty directory.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub rebuild: BTreeSet<ReplicaId>,
    /// Attached while there is any.
    pub tickets: Vec<Ticket>,
    /// Set once and never taken back: everything of the volume goes.
    pub deleting: bool,
}

/// What is true of a volume and can't be seen again after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// None until all replicas are formatted, or if it was lost: see `unformatted`.
    pub record: Option<Record>,
    /// Since the volume was made until there is a first record. Without this mark a record that
    /// isn't there was lost, and what the directories hold is left as it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unformatted: bool,
    /// That the replicas have, as far as it is known; those of before have what is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Chosen when the volume is made.
    pub places: Vec<Place>,
    /// There since the first engine of an attachment was granted, until nothing of it is left.
    pub attachment: Option<Attachment>,
}

impl Volume {
    /// That its users have.
    pub fn size_bytes(&self) -> u64 {
        self.status.size_bytes.unwrap_or(self.spec.size_bytes)
    }
}

/// Where a replica of a volume lies: part of the volume's status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    pub replica: ReplicaId,
    pub directory: PathBuf,
    /// Of 127.0.0.1, if it is served over TCP; a socket otherwise.
    pub port: Option<u16>,
}
