//! A backup that is being made, or was: its name is also that of the backup in its target.

use serde::{Deserialize, Serialize};

use super::job::{JobSpec, JobStatus};
use crate::Name;
use crate::job::{BackupWork, Work};
use crate::object::{Kind, Object, Spec};

pub type Backup = Object<BackupSpec>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupSpec {
    pub volume: Name,
    pub volume_uid: String,
    /// Whose agent makes it: that of the volume's engine.
    pub node: String,
    /// Without one, one of the backup's name is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Name>,
    /// Its URL.
    pub target: String,
    /// Read and upload everything, over what is there: repairs damaged blocks.
    #[serde(default)]
    pub full: bool,
    /// That keeps the volume attached, in its attachment.
    pub ticket: String,
}

impl Spec for BackupSpec {
    const KIND: Kind = Kind { name: "Backup", plural: "backups" };
    type Status = JobStatus;

    fn node(&self) -> Option<&str> {
        Some(&self.node)
    }
}

impl JobSpec for BackupSpec {
    const NOUN: &'static str = "backup";
    const FILLS_VOLUME: bool = false;

    fn volume(&self) -> &Name {
        &self.volume
    }
    fn volume_uid(&self) -> &str {
        &self.volume_uid
    }
    fn ticket(&self) -> &str {
        &self.ticket
    }
    fn work(&self, name: &Name) -> Work {
        Work::BackUp(BackupWork {
            backup: name.clone(),
            snapshot: self.snapshot.clone(),
            target: self.target.clone(),
            full: self.full,
        })
    }
    fn title(&self) -> String {
        format!("back up volume {} to {}", self.volume, self.target)
    }
}
