//! What a replica's directory takes of its disk.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Of the files in it; it has no folders. Looks at each, so a disk that hangs makes it hang.
pub fn used_bytes(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        match entry?.metadata() {
            Ok(file) => bytes += file.blocks() * 512,
            // A layer was joined just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_take_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = fs::File::create(folder.path().join("sparse")).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(used_bytes(folder.path()).unwrap() < 1 << 20);
        fs::write(folder.path().join("full"), vec![1; 4 << 20]).unwrap();
        let used = used_bytes(folder.path()).unwrap();
        assert!((4 << 20..5 << 20).contains(&used), "{used}");
        assert!(used_bytes(&folder.path().join("missing")).is_err());
    }
}
