//! Programs that are installed on this node.

use std::ffi::OsStr;
use std::path::PathBuf;

/// Where a user's PATH may not lead.
const OF_ADMINISTRATORS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// In this process's PATH, and where it may not lead.
pub fn find(name: &str) -> Option<PathBuf> {
    find_in(&std::env::var_os("PATH").unwrap_or_default(), name)
}

/// In that PATH, and where it may not lead.
pub fn find_in(search_path: &OsStr, name: &str) -> Option<PathBuf> {
    let folders = std::env::split_paths(search_path).chain(OF_ADMINISTRATORS.map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}
