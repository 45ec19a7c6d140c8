//! Snapshots of a volume. The chain of layers owns them; these are its words about itself.

pub use ankole_replica::admin::SnapshotStatus;
use serde::{Deserialize, Serialize};

use super::Name;

/// What `POST /v1/volumes/V/snapshots` takes; without a name it gets one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotRequest {
    #[serde(default)]
    pub name: Option<Name>,
}

/// The chain of one volume: its snapshots, oldest first, and what its head stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Chain {
    pub volume: Name,
    pub snapshots: Vec<SnapshotStatus>,
    pub head_bytes: u64,
    pub head_parent: Option<String>,
}
