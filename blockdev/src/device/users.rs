//! Who uses a block device. Stopping it under a mounted file system would shut that down with what
//! it had not written; a change of its content would destroy it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// In words; nobody if it is empty. Blocks: the device may have to read. Processes of other
/// containers are seen only by one that shares the host's.
pub(crate) fn users(device: &Path) -> Vec<String> {
    let Some(number) = fs::metadata(device).ok().map(|node| node.rdev()) else { return Vec::new() };
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device);
    let mut users = Vec::new();
    if opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
        let mounts = ["/proc/1/mountinfo", "/proc/self/mountinfo"].map(fs::read_to_string);
        let places = mounts.iter().flatten().find_map(|mounts| mount_point(mounts, number));
        users.push(match places {
            Some(place) => format!("mounted on {place}"),
            None => "held by a program, or by the kernel: mounted in a container, or part of another device".into(),
        });
    }
    users.extend(processes(number));
    users
}

/// Of the first mount of a device (`proc_pid_mountinfo(5)`: the third field, and the fifth).
fn mount_point(mounts: &str, number: u64) -> Option<&str> {
    let device = format!("{}:{}", libc::major(number), libc::minor(number));
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == device).then(|| fields.nth(1)).flatten()
    })
}

/// Those that have it open.
fn processes(number: u64) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()) else {
            continue;
        };
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let is_it =
            |node: fs::Metadata| node.file_type().is_block_device() && node.rdev() == number;
        if files.map(|file| fs::metadata(file.path())).any(|file| file.is_ok_and(is_it)) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("open in {} (pid {pid})", name.trim_end()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_device() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      30 22 43:96 / /mnt/my\\040data rw shared:1 - ext4 /dev/nbd3 rw\n";
        assert_eq!(mount_point(mounts, libc::makedev(43, 96)), Some("/mnt/my\\040data"));
        assert_eq!(mount_point(mounts, libc::makedev(43, 9)), None);
        assert_eq!(mount_point("", 0), None);
    }

    #[test]
    fn what_is_not_there_is_used_by_nobody() {
        assert_eq!(users(Path::new("/dev/no-such-device")), Vec::<String>::new());
    }
}
