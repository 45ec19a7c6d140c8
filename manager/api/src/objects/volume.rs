//! The volume: what is wanted of it, and what is durable about it.

use ankole_replica::record::Record;
use serde::{Deserialize, Serialize};

use super::Condition;
use crate::object::{Kind, Object, Spec};
use crate::volume::{Attachment, Device, EngineProgram, Frontend, Robustness, State, Transport};

pub type Volume = Object<VolumeSpec>;

/// Its data is there: the volume ends when nothing of it is left on any node.
pub const DATA_FINALIZER: &str = "ankole.io/data";
/// Nothing was ever written: the mark is there from before the first replica is made until there is
/// a first record. A volume with data and without either has lost its record.
pub const UNFORMATTED: &str = "ankole.io/unformatted";
/// What fills it has filled it, and whatever is in it now is its users'.
pub const RESTORED: &str = "ankole.io/restored";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSpec {
    /// That is wanted; never less than there is. The engine follows while the volume is attached.
    pub size_bytes: u64,
    pub replicas: u8,
    #[serde(default)]
    pub frontend: Frontend,
    #[serde(default)]
    pub transport: Transport,
    /// The one replica lives inside the engine's process.
    #[serde(default)]
    pub in_engine: bool,
    #[serde(default)]
    pub engine: EngineProgram,
    /// The backup that fills it. Nobody else gets in before it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_backup: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// Who is in sync, and who may write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<Record>,
    /// How it is shown to clients by the engine that the record names; changes with the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// Whose agent may name an engine in the record. Changed by the manager only, when the node
    /// before has no engine of it any more, or is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// That the replicas have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub robustness: Option<Robustness>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// What there is of a volume's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded<'a> {
    /// It was just made: nothing on any node knows it.
    New,
    /// Its replicas are being made for the first time.
    Unformatted,
    As(&'a Record),
    /// There may be data, and nobody says who has it.
    Lost,
}

impl Spec for VolumeSpec {
    const KIND: Kind = Kind { name: "Volume", plural: "volumes" };
    type Status = VolumeStatus;
}

impl Volume {
    pub fn recorded(&self) -> Recorded<'_> {
        if let Some(record) = &self.status.record {
            Recorded::As(record)
        } else if self.metadata.annotations.contains_key(UNFORMATTED) {
            Recorded::Unformatted
        } else if self.metadata.finalizers.contains(DATA_FINALIZER) {
            Recorded::Lost
        } else {
            Recorded::New
        }
    }

    pub fn is_being_restored(&self) -> bool {
        self.spec.from_backup.is_some() && !self.metadata.annotations.contains_key(RESTORED)
    }

    /// That its users have.
    pub fn size_bytes(&self) -> u64 {
        self.status.size_bytes.unwrap_or(self.spec.size_bytes)
    }

    /// What this device of it is marked with in the kernel, or a new one will be. A name can be another
    /// volume's, so that the name alone, with which a version before marked the device that the attachment
    /// names, tells nothing of any other.
    pub fn identity_of(&self, device: Option<Device>) -> String {
        let before = self.status.attachment.as_ref().and_then(|attachment| attachment.device);
        match device {
            Some(_) if device == before => self.name().to_string(),
            _ => format!("{}.{}", self.name(), self.metadata.uid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A restore of a cluster brings the object back without its status, and `kubectl apply` of one
    /// that was saved too: its marks say that there is data.
    #[test]
    fn a_volume_that_lost_its_status_is_not_new() {
        let spec = r#"{"sizeBytes": 2097152, "replicas": 3}"#;
        let mut volume = Volume::new("v1".parse().unwrap(), serde_json::from_str(spec).unwrap());
        assert_eq!(volume.recorded(), Recorded::New);
        volume.metadata.finalizers.insert(DATA_FINALIZER.into());
        volume.metadata.annotations.insert(UNFORMATTED.into(), String::new());
        assert_eq!(volume.recorded(), Recorded::Unformatted);
        let record = Record::first(Vec::new());
        volume.status.record = Some(record.clone());
        assert_eq!(volume.recorded(), Recorded::As(&record));
        volume.metadata.annotations.clear();
        volume.status = VolumeStatus::default();
        assert_eq!(volume.recorded(), Recorded::Lost);
    }
}
