//! Who uses a block device. Stopping it under a mounted file system would shut that down with what
//! it had not written; a change of its content would destroy it.
//!
//! What may never happen: that another file system is asked for anything, since one whose server is
//! gone doesn't answer, and would hold up whoever wants to know.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// In words; nobody if it is empty. Blocks: the device may have to read. Processes of other
/// containers are seen only by one that shares the host's.
pub(crate) fn users(device: &Path) -> Vec<String> {
    let Some(number) = fs::metadata(device).ok().map(|node| node.rdev()) else { return Vec::new() };
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device);
    let mut users = Vec::new();
    if opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
        let parts = parts_of(&in_sys(number));
        users = match mounted_on(number) {
            Some(place) => vec![format!("mounted on {place}")],
            None if !parts.is_empty() => parts,
            None => vec!["held by a program, or by the kernel: mounted in a container".into()],
        };
    }
    users.extend(processes(device, number));
    users
}

fn in_sys(number: u64) -> PathBuf {
    format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number)).into()
}

/// The devices that are made of this one, as an encrypted one is, and where they are mounted.
fn parts_of(device: &Path) -> Vec<String> {
    let holders = fs::read_dir(device.join("holders")).into_iter().flatten().flatten();
    let described = holders.map(|holder| {
        let holder = holder.path();
        let mapped = fs::read_to_string(holder.join("dm/name"));
        let path = match &mapped {
            Ok(name) => Path::new("/dev/mapper").join(name.trim_end()),
            Err(_) => Path::new("/dev").join(holder.file_name().unwrap_or_default()),
        };
        let number = fs::read_to_string(holder.join("dev")).unwrap_or_default();
        let mounted = number.trim_end().split_once(':').and_then(|(major, minor)| {
            mounted_on(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
        });
        let mounted = mounted.map(|place| format!(", mounted on {place}")).unwrap_or_default();
        format!("part of {}{mounted}", path.display())
    });
    described.collect()
}

fn mounted_on(number: u64) -> Option<String> {
    let mounts = ["/proc/1/mountinfo", "/proc/self/mountinfo"].map(fs::read_to_string);
    mounts.iter().flatten().find_map(|mounts| mount_point(mounts, number)).map(str::to_owned)
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
fn processes(device: &Path, number: u64) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()) else {
            continue;
        };
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut files =
            files.map(|file| file.path()).filter(|file| may_be(file, device.file_name()));
        let is_it =
            |node: fs::Metadata| node.file_type().is_block_device() && node.rdev() == number;
        if files.any(|file| fs::metadata(file).is_ok_and(is_it)) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("open in {} (pid {pid})", name.trim_end()));
        }
    }
    found
}

/// By the name that the kernel remembers, for which it asks no file system. Nodes of devices are in
/// /dev, which is in memory; in a container too, as the name is counted from its own root. One that
/// was made elsewhere is found if it is called as the device is.
fn may_be(open_file: &Path, device: Option<&OsStr>) -> bool {
    fs::read_link(open_file).is_ok_and(|name| {
        name.starts_with("/dev") || device.is_some_and(|device| name.ends_with(device))
    })
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

    /// A hung server of a network file system once held up every detach of the node, since each
    /// open file of each process was asked what it is.
    #[test]
    fn requires_root_a_file_system_that_never_answers_holds_up_nobody() {
        let mounted = HungFileSystem::mount();
        let Ok(hung) = mounted else {
            // Root in a container may lack the privilege.
            return println!("SKIPPED: mount a FUSE file system: {}", mounted.err().unwrap());
        };
        let path_only = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(hung.root());
        let open_in_us = path_only.unwrap();
        let (done, finished) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(processes(Path::new("/dev/ublkb77"), 77)));
        let found = finished.recv_timeout(std::time::Duration::from_secs(20));
        drop((open_in_us, hung)); // frees the other thread, should it hang
        assert_eq!(found, Ok(vec![]));
    }

    /// FUSE whose server has begun and then does nothing. It ends with its server.
    struct HungFileSystem(std::process::Child);

    impl HungFileSystem {
        fn mount() -> Result<Self, String> {
            let script = "exec 9<>/dev/fuse && mount -i -t fuse \
                -o fd=9,rootmode=40000,user_id=0,group_id=0 hung /mnt && echo mounted && exec sleep 600";
            let mut command = std::process::Command::new("unshare");
            command.args(["--mount", "sh", "-c", script]).stdout(std::process::Stdio::piped());
            let mut server = command.spawn().map_err(|error| format!("unshare: {error}"))?;
            let mut said = String::new();
            let output = server.stdout.as_mut().expect("it is piped");
            let _ = std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut said);
            let server = Self(server);
            if said == "mounted\n" { Ok(server) } else { Err("see above".into()) }
        }

        fn root(&self) -> String {
            format!("/proc/{}/root/mnt", self.0.id())
        }
    }

    impl Drop for HungFileSystem {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
}
