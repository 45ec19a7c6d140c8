//! A copy of a volume: on which node and disk it shall be, and what its agent sees there. Its name is
//! `VOLUME-ID`.

use std::path::PathBuf;

use ankole_replica::types::{Generation, Incarnation, ReplicaId};
use serde::{Deserialize, Serialize};

use super::{Condition, Volume};
use crate::Name;
use crate::name::{NAME_LENGTH_MAX, NameError};
use crate::object::{Kind, Object, Spec};
use crate::volume::Transport;

pub type Replica = Object<ReplicaSpec>;

/// The folder of a disk where all replicas are.
pub const REPLICAS: &str = "replicas";
/// Its directory is there until its agent has removed it.
pub const DIRECTORY_FINALIZER: &str = "ankole.io/directory";
/// A person wants the directory with this incarnation to be made anew from the others.
pub const REBUILD: &str = "ankole.io/rebuild";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaSpec {
    pub volume: Name,
    pub volume_uid: String,
    /// Within the volume: `r1`.
    pub id: ReplicaId,
    pub node: String,
    /// The disk's folder on that node.
    pub disk: PathBuf,
    /// Its folder's name there. In the spec, since a lost status must not lose where the data is.
    pub folder: String,
    pub size_bytes: u64,
    #[serde(default)]
    pub transport: Transport,
    /// It lives in the engine's process and has none of its own.
    #[serde(default)]
    pub in_engine: bool,
    /// Whether an engine may want it now.
    pub served: bool,
    pub make: Make,
    /// When it goes, what may hold data stays: nobody knows what it is worth.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_data: bool,
}

/// When its agent may make its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Make {
    /// It holds acknowledged data, or may: what is missing is missing.
    Never,
    /// If nothing that may hold data is there.
    IfNothing,
    /// Also if this one is there, which is set aside then: others have its data.
    InPlaceOf(Incarnation),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// None: the agent hasn't looked yet, or this was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ReplicaPhase>,
    /// Chosen by the agent when it is made, and then the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Of what lies in the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
    /// The newest generation that it has seen, as of the last time that its agent looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_generation: Option<Generation>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ReplicaPhase {
    /// It lies there, and no process serves it.
    Stopped,
    Served,
    Ending,
    /// Its directory isn't there.
    Missing,
    /// Whether it is there can't be told.
    Unreadable,
    /// Its files can't be opened.
    Damaged,
    /// Something else lies where it should be made.
    Occupied,
}

impl Spec for ReplicaSpec {
    const KIND: Kind = Kind { name: "Replica", plural: "replicas" };
    type Status = ReplicaStatus;

    fn node(&self) -> Option<&str> {
        Some(&self.node)
    }
}

impl ReplicaSpec {
    pub fn directory(&self) -> PathBuf {
        self.disk.join(REPLICAS).join(&self.folder)
    }
}

/// Of its object. A volume's name may leave no room for it: then its end is one of the uid instead.
pub fn name_of(volume: &Volume, id: &ReplicaId) -> Result<Name, NameError> {
    let whole = format!("{}-{id}", volume.name());
    whole.parse().or_else(|_| {
        let end = format!("-{:.8}-{id}", volume.metadata.uid);
        let room = NAME_LENGTH_MAX.saturating_sub(end.len());
        format!("{:.room$}{end}", &**volume.name()).parse()
    })
}

impl ReplicaStatus {
    /// Whether it lies there and can be opened, as far as its agent knows.
    pub fn is_there(&self) -> bool {
        use ReplicaPhase::{Ending, Served, Stopped};
        self.incarnation.is_some() && matches!(self.phase, Some(Stopped | Served | Ending))
    }
}
