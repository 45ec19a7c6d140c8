//! What this node can do, found by looking and not by versions; never by trying what could harm.
//!
//! ```text
//! frontends   which of them can show a volume here, and what is missing for the others
//! system      the kernel, limits, and what else on the node meets our devices
//! tools       programs that users and the demo want
//! disk        the file system of the data folder, and how large a file can be there
//! watch       what becomes of the frontends while a node runs
//! ```

mod disk;
mod file_size;
mod frontends;
mod system;
mod tools;
mod watch;

use std::ffi::OsStr;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use disk::{file_system_of, free_bytes};
pub use file_size::file_bytes_max;
pub use frontends::{can_serve, look as frontends, obstacle};
pub use watch::{Capability, INTERVAL, Watch};

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
    fn new(area: Area, name: &str, found: Found, detail: impl Into<String>) -> Self {
        Self { area, name: name.into(), found, detail: detail.into(), next: None }
    }

    fn next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }
}

/// `search_path` is PATH.
pub fn check(data: &Path, search_path: &OsStr) -> Vec<Finding> {
    let mut findings = frontends::look();
    findings.extend(system::look(search_path));
    findings.extend(tools::look(search_path));
    findings.push(disk::look(data));
    findings
}
