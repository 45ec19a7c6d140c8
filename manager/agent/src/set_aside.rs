//! Directories of replicas that nobody uses any more: renamed beside, kept, removed by the user.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::replica_folders::SET_ASIDE;

/// `v1-r2` becomes `v1-r2.damaged-20261120-210244`.
pub fn set_aside(directory: &Path) -> io::Result<()> {
    let to = aside(directory, &Timestamp::now());
    tracing::warn!(from = %directory.display(), to = %to.display(), "a directory is set aside");
    fs::rename(directory, &to)?;
    let parent = directory.parent().unwrap_or(Path::new("."));
    fs::File::open(parent)?.sync_all()
}

/// What was set aside of this directory and is still there, oldest first.
pub fn earlier(directory: &Path) -> Vec<PathBuf> {
    let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
        return Vec::new();
    };
    let prefix = format!("{}{SET_ASIDE}", name.to_string_lossy());
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let entries = entries.filter(|it| it.file_name().to_string_lossy().starts_with(&prefix));
    let mut found: Vec<_> = entries.map(|entry| entry.path()).collect();
    found.sort();
    found
}

fn aside(directory: &Path, now: &Timestamp) -> PathBuf {
    let mut path = directory.as_os_str().to_owned();
    path.push(format!("{SET_ASIDE}{}", now.strftime("%Y%m%d-%H%M%S")));
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_has_the_time_in_its_name() {
        let now = "2026-11-20T21:02:44Z".parse().unwrap();
        let path = aside(Path::new("/disk/v1-r2"), &now);
        assert_eq!(path, Path::new("/disk/v1-r2.damaged-20261120-210244"));
    }

    #[test]
    fn a_directory_is_found_under_its_new_name_and_others_are_not() {
        let disk = tempfile::tempdir().unwrap();
        let directory = disk.path().join("v1-r2");
        for other in ["v1-r1", "v1-r2", "v1-r1.damaged-20261120-210244"] {
            fs::create_dir(disk.path().join(other)).unwrap();
        }
        assert_eq!(earlier(&directory), Vec::<PathBuf>::new());
        set_aside(&directory).unwrap();
        assert!(!directory.exists());
        assert_eq!(earlier(&directory).len(), 1);
    }
}
