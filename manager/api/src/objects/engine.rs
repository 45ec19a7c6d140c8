//! The engine of a volume: on which node one may run, and what the agent there sees of it. One object
//! for each volume, by its name.

use std::path::PathBuf;

use ankole_replica::admin::{ReplicaAddress, ReplicaMode};
use ankole_replica::record::InstanceId;
use ankole_replica::types::ReplicaId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Condition;
use crate::object::{Kind, Object, Spec};
use crate::volume::Frontend;

pub type Engine = Object<EngineSpec>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineSpec {
    /// Its uid, so that the engine of another volume of that name is never taken for this one's.
    pub volume_uid: String,
    /// Empty: none.
    pub node: String,
    pub wanted: EngineWanted,
    #[serde(default)]
    pub frontend: Frontend,
    pub size_bytes: u64,
    /// Those that should exist, and where they are served.
    pub replicas: Vec<ReplicaAddress>,
    #[serde(default)]
    pub in_engine: bool,
    /// The binary; the agent's own if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// Rises with each upgrade: an engine that was started for an earlier turn hands over.
    #[serde(default)]
    pub turn: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum EngineWanted {
    Attached {
        read_only: bool,
    },
    /// It flushes and goes, as soon as nobody uses its device.
    Detached,
    /// None may run, and nothing else changes: a person chooses a copy.
    Still,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineStatus {
    /// None: the agent hasn't looked yet, or this was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<EnginePhase>,
    /// Whose agent says this.
    #[serde(default)]
    pub node: String,
    /// The generation of the spec that it had seen.
    #[serde(default)]
    pub observed_generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// Of the program that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Device path, or a URI that libnbd understands; only while it can be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// That the replicas have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<ReplicaSeen>,
    /// Since when requests wait, without a break.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_since: Option<Timestamp>,
    /// Since when it doesn't answer: all above is as it was then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_since: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EnginePhase {
    /// No process of it is on the node, nor a device.
    Ended,
    Starting,
    Attached,
    Ending,
}

/// What the engine says of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaSeen {
    pub replica: ReplicaId,
    pub mode: ReplicaMode,
}

impl Spec for EngineSpec {
    const KIND: Kind = Kind { name: "Engine", plural: "engines" };
    type Status = EngineStatus;

    fn node(&self) -> Option<&str> {
        Some(&self.node)
    }
}

impl Engine {
    /// Its agent has seen what is wanted now: what it says isn't of an earlier wish.
    pub fn is_observed(&self) -> bool {
        self.status.observed_generation == self.metadata.generation
    }

    /// Nothing of it is on its node and its agent will start none, by that agent's word.
    pub fn has_ended(&self) -> bool {
        let status = &self.status;
        !matches!(self.spec.wanted, EngineWanted::Attached { .. })
            && status.phase == Some(EnginePhase::Ended)
            && status.node == self.spec.node
            && self.is_observed()
    }
}

impl EngineStatus {
    pub fn has_readable_but(&self, one: &ReplicaId) -> bool {
        let mut others = self.replicas.iter().filter(|replica| replica.replica != *one);
        others.any(|replica| replica.mode == ReplicaMode::ReadWrite)
    }
}
