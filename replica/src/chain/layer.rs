//! What is known about a layer beside its blocks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{Generation, LayerId};

/// A layer as it is shown to the engine and to people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    pub id: LayerId,
    /// The next older layer; the oldest has none.
    pub parent: Option<LayerId>,
    /// `None` for the head.
    pub seal: Option<Seal>,
    /// Deleted by the user; its blocks stay until they are joined to its child.
    pub removed: bool,
    /// The volume's size when the layer was the head; larger for the head only by an expansion.
    pub size_bytes: u64,
    /// What its data takes on the disk. Not part of the layer's identity: replicas may differ.
    pub data_bytes: u64,
}

/// What a snapshot is given when the head becomes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    pub name: Option<String>,
    pub created_unix_s: u64,
    /// By a user, not by the system.
    pub user_created: bool,
    pub labels: BTreeMap<String, String>,
    /// When the engine cut here; without it, which cut it was isn't known. An engine that dies may
    /// have told one replica alone, and the next one gives the same layer number to another cut:
    /// only layers of one number and one generation are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
}
