//! Backups, and the jobs that make and restore them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ApiError, Name};

/// What `POST /v1/backups` takes. Without a snapshot, one is made for it; without a target, the
/// one that is named `default` or, if there is but one, that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackupRequest {
    pub volume: Name,
    #[serde(default)]
    pub snapshot: Option<Name>,
    /// A URL, or the name of a target.
    #[serde(default)]
    pub target: Option<String>,
    /// Read and upload everything, over what is there: repairs damaged blocks.
    #[serde(default)]
    pub full: bool,
}

/// What `POST /v1/restores` takes: the volume is made anew with the backup's size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoreRequest {
    pub url: String,
    pub volume: Name,
    pub replicas: u8,
}

/// A backup that lies in a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupView {
    pub name: String,
    pub volume: String,
    /// Empty, as all that follows the URL, unless the backup is complete.
    pub snapshot: String,
    pub state: BackupState,
    /// `TARGET?backup=NAME&volume=NAME`, as Longhorn writes it.
    pub url: String,
    /// RFC 3339, in UTC.
    pub created: String,
    pub size_bytes: u64,
    /// What this backup alone had to upload.
    pub new_bytes: u64,
    pub labels: std::collections::BTreeMap<String, String>,
    /// Longhorn's backing image, whose bytes the backup lacks. Empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub backing_image: String,
    /// Why it can't be read. Empty: it can.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobProgress {
    pub done_bytes: u64,
    pub total_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BackupState {
    Complete,
    /// Complete, but over a backing image of Longhorn: it can't be restored here.
    NeedsImage,
    /// Being made, or left by a maker that died.
    InProgress,
    /// Its manifest is damaged.
    Unreadable,
}

impl fmt::Display for BackupState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Complete => "complete",
            Self::NeedsImage => "needs image",
            Self::InProgress => "in progress",
            Self::Unreadable => "unreadable",
        })
    }
}

/// Work that outlives one request. The newest that have ended are remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    pub id: u64,
    /// What it does, in words.
    pub title: String,
    pub progress: JobProgress,
    /// What it waits for, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<String>,
    #[serde(flatten)]
    pub state: JobState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "state")]
pub enum JobState {
    Running,
    Done {
        /// The backup that was made or restored.
        backup: BackupView,
    },
    Failed {
        error: ApiError,
    },
}
