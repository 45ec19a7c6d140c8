//! A volume that is being filled with a backup. The volume has `spec.fromBackup` and is `restoring`
//! until this is done, and nobody else gets in.

use serde::{Deserialize, Serialize};

use super::job::{JobSpec, JobStatus};
use crate::Name;
use crate::job::Work;
use crate::object::{Kind, Object, Spec};

pub type Restore = Object<RestoreSpec>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSpec {
    /// It was made for this, and holds nothing.
    pub volume: Name,
    pub volume_uid: String,
    /// Whose agent fills it: that of the volume's engine.
    pub node: String,
    /// Of the backup.
    pub url: String,
    /// That keeps the volume attached, in its attachment.
    pub ticket: String,
}

impl Spec for RestoreSpec {
    const KIND: Kind = Kind { name: "Restore", plural: "restores" };
    type Status = JobStatus;

    fn node(&self) -> Option<&str> {
        Some(&self.node)
    }
}

impl JobSpec for RestoreSpec {
    const NOUN: &'static str = "restore";
    const FILLS_VOLUME: bool = true;

    fn volume(&self) -> &Name {
        &self.volume
    }
    fn volume_uid(&self) -> &str {
        &self.volume_uid
    }
    fn ticket(&self) -> &str {
        &self.ticket
    }
    fn work(&self, _name: &Name) -> Work {
        Work::Restore { url: self.url.clone() }
    }
    fn title(&self) -> String {
        format!("restore {} to volume {}", self.url, self.volume)
    }
}
