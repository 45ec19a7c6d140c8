//! The folders of replicas that lie on this machine's disks, whoever they belong to.

use std::path::PathBuf;
use std::{fmt, fs};

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

/// What was set aside of a replica has this in its name, and the time after it.
pub const SET_ASIDE: &str = ".damaged-";

/// `3 directories of replicas (v1-r1, v1-r2, v1-r3)`
pub struct Named<'a>(pub &'a [PathBuf]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMED_MAX: usize = 4;
        let names = self.0.iter().filter_map(|path| path.file_name());
        let names: Vec<_> = names.take(NAMED_MAX).map(|name| name.to_string_lossy()).collect();
        let more = if self.0.len() > NAMED_MAX { ", …" } else { "" };
        let noun = if self.0.len() == 1 { "directory" } else { "directories" };
        write!(f, "{} {noun} of replicas ({}{more})", self.0.len(), names.join(", "))
    }
}

/// A line about those that no volume knows, with the next step.
pub fn nobodys(orphans: &[PathBuf]) -> String {
    let is_aside = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().contains(SET_ASIDE))
    };
    let next = match orphans.iter().find(|path| !is_aside(path)) {
        Some(_) => "ankole volume recover --dry-run shows what they hold".into(),
        None => {
            let first = orphans.first().map(|path| path.display().to_string()).unwrap_or_default();
            format!(
                "they were set aside: ankole replica inspect {first} shows what one holds, and they can be removed"
            )
        }
    };
    format!("{}: no volume knows them; {next}", Named(orphans))
}
