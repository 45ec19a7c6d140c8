//! What `replica.meta` and `chain.meta` say.

use serde::{Deserialize, Serialize};

use super::two_slots::TwoSlotsKind;
use super::witness::Witness;
use crate::message::Departed;
use crate::process::ProcessIdentity;
use crate::record::InstanceId;
use crate::types::{Epoch, Fence, Generation, Incarnation, ReplicaId};

pub(super) const LOCK_FILE: &str = "lock";
pub(super) const INTENT_FILE: &str = "intent";
pub(super) const USED_FILE: &str = "intent.used";
/// Until it is whole.
pub(super) const NEW_USED_FILE: &str = "intent.used.new";
/// `replica.meta` gets this name last: without it the directory was never finished.
pub(super) const UNFINISHED_FILE: &str = "replica.meta.new";

pub(super) const REPLICA: TwoSlotsKind =
    TwoSlotsKind { file: "replica.meta", tag: *b"replica\0", slot_bytes: 64 << 10 };
/// 1 KiB for each of [`LAYERS_MAX`](crate::chain::LAYERS_MAX) layers.
pub(super) const CHAIN: TwoSlotsKind =
    TwoSlotsKind { file: "chain.meta", tag: *b"chain\0\0\0", slot_bytes: 4 << 20 };

/// Which copy of which volume a directory holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub volume: String,
    pub replica: ReplicaId,
    pub incarnation: Incarnation,
}

/// Where a replica is on its way into the in-sync set.
///
/// ```text
/// new ──▶ rebuilding ──▶ ready ──▶ member      any ──fdatasync or metadata failed──▶ failed
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    New,
    Rebuilding,
    /// Has everything, durably; may be added to the in-sync set.
    Ready,
    Member,
    /// For good.
    Failed,
}

/// What a replica knows of its place among the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub state: ReplicaState,
    /// Highest generation in which an engine said "you are in sync".
    pub synced_gen: Option<Generation>,
    /// The in-sync set then.
    pub synced_set: Vec<(ReplicaId, Incarnation)>,
    #[serde(default)]
    pub epoch: Epoch,
    /// Who has left the set, and hasn't been in it since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub departed: Vec<Departed>,
}

impl Membership {
    /// Of a directory that was just formatted.
    pub const NEW: Self = Self {
        state: ReplicaState::New,
        synced_gen: None,
        synced_set: Vec::new(),
        epoch: Epoch { begun: 0, agreed: 0 },
        departed: Vec::new(),
    };
}

/// To whom a read lease was lent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lessee {
    pub instance: InstanceId,
    /// On this machine; unknown for one that isn't.
    pub process: Option<ProcessIdentity>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReplicaMeta {
    pub(super) identity: Identity,
    pub(super) fence: Option<Fence>,
    /// Who may still count on a read lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lessee: Option<InstanceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lessee_process: Option<ProcessIdentity>,
    pub(super) membership: Membership,
    pub(super) witness: Option<Witness>,
    /// An I/O error since the witness was written: the disk may have lost more than it told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) doubt: Option<String>,
    pub(super) failure: Option<String>,
}

/// `layer-0000002a.data`
pub(super) fn data_name(file: u32) -> String {
    format!("layer-{file:08x}.data")
}

pub(super) fn index_name(file: u32) -> String {
    format!("layer-{file:08x}.index")
}

pub(super) fn pages_name(file: u32) -> String {
    format!("layer-{file:08x}.pages")
}

pub(super) fn names_of(file: u32) -> [String; 3] {
    [data_name(file), index_name(file), pages_name(file)]
}

/// Whether a file of this name belongs to a replica's layers, and to which.
pub(super) fn layer_file(name: &str) -> Option<u32> {
    let number = name.strip_prefix("layer-")?;
    let endings = [".data", ".index", ".pages"];
    let number = endings.iter().find_map(|ending| number.strip_suffix(ending))?;
    (number.len() == 8).then(|| u32::from_str_radix(number, 16).ok())?
}

pub(super) fn is_ours(name: &str) -> bool {
    let ours = [LOCK_FILE, INTENT_FILE, USED_FILE, NEW_USED_FILE, UNFINISHED_FILE, CHAIN.file];
    ours.contains(&name) || name == "probe.tmp" || layer_file(name).is_some()
}
