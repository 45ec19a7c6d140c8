//! What this node can do, found by looking and not by versions; never by trying what could harm.
//!
//! ```text
//! frontends   which of them can show a volume here, and what is missing for the others
//! drivers     which of them could make one more device now, asked once for many volumes
//! system      the kernel, limits, and what else on the node meets our devices
//! tools       programs that users and the demo want
//! disk        the file system of the data folder, and how large a file can be there
//! watch       what becomes of the frontends while a node runs
//! ```

mod disk;
mod drivers;
mod file_size;
mod frontends;
mod system;
mod tools;
mod watch;

use std::ffi::OsStr;
use std::path::Path;

use ankole_api::node::Finding;

pub use disk::{capacity_bytes, file_system_of, free_bytes};
pub use drivers::{DRIVERS, Drivers};
pub use file_size::file_bytes_max;
pub use frontends::{can_serve, look as frontends, obstacle};
pub use watch::{INTERVAL, Watch};

/// `search_path` is PATH.
pub fn check(data: &Path, search_path: &OsStr) -> Vec<Finding> {
    let mut findings = frontends::look();
    findings.extend(system::look(search_path));
    findings.extend(tools::look(search_path));
    findings.push(disk::look(data));
    findings
}
