//! Small files that are there whole or not at all, also after a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Takes the place of what is there; only its owner can read it. One writer at a time.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = beside(path, ".new");
    remove_if_there(&draft)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let placed = written.and_then(|()| put(&draft, path));
    if placed.is_err() {
        // On a full disk what was written of it would only stand in the way.
        let _ = fs::remove_file(&draft);
    }
    placed
}

/// Gives what was made beside it its name, durably.
pub fn put(draft: &Path, path: &Path) -> io::Result<()> {
    fs::rename(draft, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// The same path with more at its end.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The one line of a file that isn't one of several; None if there is no file.
pub fn read_line(path: &Path) -> io::Result<Option<String>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    match text.strip_suffix('\n') {
        Some(line) if !line.trim().is_empty() => Ok(Some(line.into())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty or was cut short")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.addr");
        // What a writer that was killed has left, with the mode of before.
        fs::write(beside(&path, ".new"), "half").unwrap();
        fs::write(&path, "old and longer\n").unwrap();
        write(&path, b"new\n").unwrap();
        assert_eq!(read_line(&path).unwrap().as_deref(), Some("new"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// A token of which half was written let in whoever guessed the rest; an empty one, everybody.
    #[test]
    fn an_empty_file_or_one_cut_short_is_an_error_and_a_missing_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert_eq!(read_line(&path).unwrap(), None);
        for text in ["", "\n", "0123456789"] {
            fs::write(&path, text).unwrap();
            assert!(read_line(&path).is_err(), "{text:?}");
        }
    }
}
