//! How large a file can be on a file system: each has its own limit (ext4: 16 TiB with blocks of
//! 4 KiB), and a replica's layer is a file as large as its volume.
//!
//! Found by trying, on a file without a name that takes no room and goes when it is closed: so the
//! answer is that of the file system's present format, of what lies below it, and of this process's
//! own limit.

use std::fs::File;
use std::io;
use std::path::Path;

use ankole_replica::types::{VOLUME_BYTES_MAX, VOLUME_UNIT_BYTES};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, getrlimit};

/// In whole units of a volume's size, and not more than the largest volume has. `folder` is on the
/// file system that is asked.
pub fn file_bytes_max(folder: &Path) -> io::Result<u64> {
    let scratch = scratch(folder)?;
    let own_limit = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
    largest(|bytes| {
        // Beyond its own limit a process gets a signal.
        Ok(bytes <= own_limit && can_have(&scratch, bytes)?)
    })
}

fn can_have(file: &File, bytes: u64) -> io::Result<bool> {
    match file.set_len(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error),
    }
}

/// The largest number of whole units that `fits`; whatever is smaller fits too.
fn largest(mut fits: impl FnMut(u64) -> io::Result<bool>) -> io::Result<u64> {
    let (mut good, mut bad) = (0, VOLUME_BYTES_MAX / VOLUME_UNIT_BYTES + 1);
    if fits(VOLUME_BYTES_MAX)? {
        return Ok(VOLUME_BYTES_MAX);
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle * VOLUME_UNIT_BYTES)? {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Ok(good * VOLUME_UNIT_BYTES)
}

/// Where there are no files without a name, it loses it at once.
fn scratch(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => tempfile_in(folder),
        Err(error) => Err(error.into()),
    }
}

fn tempfile_in(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!(".ankole-probe-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_size_that_fits_is_found_exactly_and_never_above_a_volumes_own_limit() {
        for units in [0, 1, 2, 8_388_607, 8_388_608, VOLUME_BYTES_MAX / VOLUME_UNIT_BYTES] {
            let limit = units * VOLUME_UNIT_BYTES;
            for slack in [0, VOLUME_UNIT_BYTES - 1] {
                let found = largest(|bytes| Ok(bytes <= limit + slack)).unwrap();
                assert_eq!(found, limit);
            }
        }
        assert_eq!(largest(|_| Ok(true)).unwrap(), VOLUME_BYTES_MAX);
    }

    #[test]
    fn trying_takes_no_room_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(file_bytes_max(folder.path()).unwrap() > 1 << 30);
        drop(tempfile_in(folder.path()).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_and_no_limit() {
        assert!(file_bytes_max(Path::new("/nowhere/at/all")).is_err());
    }
}
