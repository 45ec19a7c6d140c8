//! The node that a standalone runs on, as it is shown (`GET /v1/node`), and what was found on it
//! (`ankole check`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    pub name: String,
    /// Ways to show a volume, best first, as they were a few seconds ago.
    pub frontends: Vec<Capability>,
    /// Places for replicas.
    #[serde(default)]
    pub disks: Vec<DiskView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskView {
    pub path: PathBuf,
    /// None of it if the disk can't be asked.
    pub capacity_bytes: Option<u64>,
    pub free_bytes: Option<u64>,
    /// By the replicas of this server's volumes, as of some seconds ago.
    pub used_bytes: u64,
    pub replicas: u32,
}

/// A frontend, as it was last looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capability {
    #[serde(flatten)]
    pub finding: Finding,
    /// It could show volumes since this process began, and can't any more.
    pub lost: bool,
    /// Since when it can or can't, in seconds of Unix time.
    pub since_unix_s: u64,
}

/// One thing that was looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub area: Area,
    pub name: String,
    pub found: Found,
    pub detail: String,
    /// What to do about it.
    pub next: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Area {
    /// Best first: `auto` takes the first that is there.
    Frontend,
    System,
    Tool,
    Disk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Found {
    Yes,
    /// Something else serves, or it is needed for some work only.
    Missing,
    /// Data or speed suffer.
    Problem,
}

impl Finding {
    pub fn new(area: Area, name: &str, found: Found, detail: impl Into<String>) -> Self {
        Self { area, name: name.into(), found, detail: detail.into(), next: None }
    }

    #[must_use]
    pub fn next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }
}
