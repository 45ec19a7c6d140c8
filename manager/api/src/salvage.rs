//! A volume that no member can open: what its directories tell, and what a person would choose.

use ankole_replica::record::Record;
use ankole_replica::salvage::{Choice, Exhibit, Turn};
use ankole_replica::types::{Generation, ReplicaId};
use serde::{Deserialize, Serialize};

use super::Name;
use super::volume::Frontend;

/// `GET /v1/volumes/V/salvage`, and the answer to `POST`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SalvageView {
    pub volume: Name,
    /// What the directories are compared with, if it isn't lost; after a salvage, the new one.
    pub record: Option<Record>,
    /// One for each replica of the volume, in their order.
    pub replicas: Vec<Exhibit>,
    pub turn: Turn,
    /// Why nothing can be salvaged now, in words; nothing if it can.
    pub refused: Option<String>,
    pub choice: Choice,
    pub done: bool,
}

/// What `POST /v1/volumes/V/salvage` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SalvageRequest {
    /// The best, if there is none.
    #[serde(default)]
    pub replica: Option<ReplicaId>,
    /// Take it although a newer copy exists, or existed, somewhere.
    #[serde(default)]
    pub accept_stale: bool,
    /// Of the record that the person has seen: another one is refused.
    #[serde(default)]
    pub expected: Option<Generation>,
}

/// What `POST /v1/recoveries/V` takes; what could be recovered is a [`SalvageView`] without a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoveryRequest {
    /// The best, if there is none.
    #[serde(default)]
    pub replica: Option<ReplicaId>,
    /// Take it although a newer copy exists, or existed, somewhere.
    #[serde(default)]
    pub accept_stale: bool,
    /// The directories don't tell how the volume was shown.
    #[serde(default)]
    pub frontend: Frontend,
}
