//! What the process of a job is told, and what it says: JSON in files that lie in one folder.
//!
//! ```text
//! spec.json      by its agent, before it is started       JobOrder
//! progress.json  by the process, once a second at most    JobProgress
//! result.json    by the process, as the last thing        JobResult
//! ```
//! One that was asked to end says nothing: who asked knows why.

use std::path::PathBuf;

use ankole_replica::admin::ReplicaAddress;
use serde::{Deserialize, Serialize};

use crate::backup::BackupView;
use crate::{ApiError, Name};

pub const SPEC_FILE: &str = "spec.json";
pub const PROGRESS_FILE: &str = "progress.json";
pub const RESULT_FILE: &str = "result.json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobOrder {
    /// Of the job's object: what lies there is this one's.
    pub uid: String,
    pub volume: VolumeAccess,
    pub work: Work,
    /// That it may take; more ends it.
    pub memory_bytes: u64,
}

/// An attached volume, and where it can be reached on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeAccess {
    pub name: Name,
    pub uid: String,
    /// Of its engine.
    pub admin: PathBuf,
    /// The unix socket that serves it over NBD, whatever its frontend is.
    pub nbd: PathBuf,
    /// Where they can be read.
    pub replicas: Vec<ReplicaAddress>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "work")]
pub enum Work {
    BackUp(BackupWork),
    /// Fills the volume, which holds nothing but what an earlier attempt has written.
    Restore {
        /// Of the backup.
        url: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupWork {
    /// Its name in the target.
    pub backup: Name,
    /// Without one, one of the backup's name is made.
    #[serde(default)]
    pub snapshot: Option<Name>,
    /// Its URL.
    pub target: String,
    /// Read and upload everything, over what is there: repairs damaged blocks.
    #[serde(default)]
    pub full: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "result")]
pub enum JobResult {
    Done {
        /// The backup that was made or restored.
        backup: BackupView,
    },
    Failed {
        error: ApiError,
    },
}
