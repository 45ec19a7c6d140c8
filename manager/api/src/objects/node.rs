//! A machine: what it can do, its disks, and whether it lives.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Condition;
use crate::object::{Kind, Object, Spec};

pub type Node = Object<NodeSpec>;
pub type Lease = Object<LeaseSpec>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    /// New replicas may be placed here.
    #[serde(default = "yes")]
    pub allow_scheduling: bool,
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self { allow_scheduling: true }
    }
}

fn yes() -> bool {
    true
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Of the machine since it was started.
    #[serde(default)]
    pub boot_id: String,
    /// Where replicas can go, by their folders.
    #[serde(default)]
    pub disks: BTreeMap<PathBuf, DiskStatus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatus {
    pub capacity_bytes: u64,
    /// In steps of a hundredth of the capacity, so that a write to a volume isn't one to the store.
    pub free_bytes: u64,
}

/// That a node lives, renewed by its agent: the one thing that is written while nothing happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseSpec {
    pub renewed: Timestamp,
}

impl Spec for NodeSpec {
    const KIND: Kind = Kind { name: "Node", plural: "nodes" };
    type Status = NodeStatus;
}

impl Spec for LeaseSpec {
    const KIND: Kind = Kind { name: "Lease", plural: "leases" };
    type Status = ();
}
