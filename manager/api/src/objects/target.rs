//! A named place for backups.

use serde::{Deserialize, Serialize};

use crate::object::{Kind, Object, Spec};

pub type BackupTarget = Object<BackupTargetSpec>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupTargetSpec {
    pub url: String,
}

impl Spec for BackupTargetSpec {
    const KIND: Kind = Kind { name: "BackupTarget", plural: "backuptargets" };
    type Status = ();
}
