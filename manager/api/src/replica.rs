//! One copy of a volume, as a user sees it.

use std::fmt;
use std::path::PathBuf;

use ankole_replica::admin::Progress;
use ankole_replica::types::ReplicaId;
use serde::{Deserialize, Serialize};

use super::Name;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaView {
    pub volume: Name,
    pub replica: ReplicaId,
    pub mode: Mode,
    /// The arbiter's record counts it as having every acknowledged write.
    pub in_sync: bool,
    pub node: String,
    pub directory: PathBuf,
    /// Where it is served now.
    pub address: Option<String>,
    pub pid: Option<u32>,
    /// That it takes of its disk, with its snapshots, as of some seconds ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Why it isn't in sync, in words.
    pub reason: Option<String>,
    pub rebuild: Option<Progress>,
    /// Of the rebuild, if it goes on as fast as it went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuild_seconds_left: Option<u64>,
}

/// None as long as nothing can be said.
pub fn seconds_left(rebuild: &Progress) -> Option<u64> {
    let left = rebuild.total_bytes.checked_sub(rebuild.done_bytes)?;
    (rebuild.bytes_per_second > 0).then(|| left.div_ceil(rebuild.bytes_per_second))
}

/// The engine's word while there is one that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    #[serde(rename = "RW")]
    ReadWrite,
    #[serde(rename = "WO")]
    WriteOnly,
    #[serde(rename = "ERR")]
    Error,
    /// No engine says anything about it.
    #[serde(rename = "-")]
    None,
}

impl From<ankole_replica::admin::ReplicaMode> for Mode {
    fn from(mode: ankole_replica::admin::ReplicaMode) -> Self {
        use ankole_replica::admin::ReplicaMode;
        match mode {
            ReplicaMode::ReadWrite => Self::ReadWrite,
            ReplicaMode::WriteOnly => Self::WriteOnly,
            ReplicaMode::Error => Self::Error,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ReadWrite => "RW",
            Self::WriteOnly => "WO",
            Self::Error => "ERR",
            Self::None => "-",
        })
    }
}
