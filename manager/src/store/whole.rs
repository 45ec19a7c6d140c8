//! Files that are there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ankole_backup::timestamp::Timestamp;

/// Written beside, synced, renamed into place.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = beside(path, ".new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&draft).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    match written.and_then(|()| put(&draft, path)) {
        Ok(()) => Ok(()),
        Err(error) => {
            // On a full disk what was written of it would only stand in the way.
            let _ = fs::remove_file(&draft);
            Err(error)
        }
    }
}

/// Gives what was made beside its name, durably.
pub(super) fn put(draft: &Path, path: &Path) -> io::Result<()> {
    fs::rename(draft, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Kept under another name, for whoever wants to look at it: `NAME.damaged-20261120-210244`.
pub(super) fn set_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    let digits = Timestamp::now().0.replace(['-', ':', 'Z'], "").replace('T', "-");
    let mut to = beside(path, &format!(".damaged-{digits}"));
    let mut number = 2;
    while fs::exists(&to)? {
        to = beside(path, &format!(".damaged-{digits}-{number}"));
        number += 1;
    }
    match put(path, &to) {
        Ok(()) => Ok(Some(to)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
