//! The logs of engines and replicas, which live for years.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const BYTES_MAX: u64 = 10 << 20;

/// To append to. A long one of before makes room.
pub(super) fn open(path: &Path) -> io::Result<File> {
    trim(path)?;
    File::options().append(true).create(true).mode(0o600).open(path)
}

/// Moves what a long log has to `NAME.log.1`. Its process goes on writing at its new end, since it
/// appends; what it writes in that moment may be lost.
pub fn trim(path: &Path) -> io::Result<()> {
    if !fs::metadata(path).is_ok_and(|log| log.len() > BYTES_MAX) {
        return Ok(());
    }
    let (draft, old) = (path.with_extension("log.new"), path.with_extension("log.1"));
    let mut copy = OpenOptions::new();
    let mut copy = copy.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    let copied = io::copy(&mut File::open(path)?, &mut copy);
    let kept = copied.and_then(|_| fs::rename(&draft, old));
    if let Err(error) = &kept {
        tracing::warn!(path = %path.display(), %error, "its earlier lines are lost");
        let _ = fs::remove_file(&draft);
    }
    // Also then: the disk may be full, of it.
    File::options().write(true).open(path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// It was only shortened at the next start: an engine that lives a year filled the disk.
    #[test]
    fn a_long_log_is_shortened_while_its_process_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v1.engine.log");
        let mut process = open(&path).unwrap();
        trim(&path).unwrap();
        process.write_all(&vec![b'x'; BYTES_MAX as usize + 1]).unwrap();
        trim(&path).unwrap();
        process.write_all(b"on\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "on\n");
        let earlier = fs::metadata(folder.path().join("v1.engine.log.1")).unwrap();
        assert_eq!(earlier.len(), BYTES_MAX + 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
