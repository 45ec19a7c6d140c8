//! The folders of replicas that lie on this machine's disks, whoever they belong to.

use std::fs;
use std::path::PathBuf;

/// By path. A disk that can't be listed is left out; the log says which.
pub fn all(disks: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in disks.iter().map(|disk| disk.join("replicas")) {
        match fs::read_dir(&folder) {
            Ok(entries) => {
                let folders = entries.flatten().map(|entry| entry.path());
                found.extend(folders.filter(|path| path.is_dir()));
            }
            Err(error) => tracing::warn!(folder = %folder.display(), %error, "can't be listed"),
        }
    }
    found.sort();
    found
}
