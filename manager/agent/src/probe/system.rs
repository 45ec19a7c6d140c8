//! The kernel, its limits, and what else on the node meets our devices.

use std::ffi::OsStr;
use std::fs;

use ankole_api::node::{Area, Finding, Found};
use ankole_blockdev::program;

use super::frontends::kernel_has;

/// An engine and its replicas need some; each client and each replica's layer some more.
const OPEN_FILES_MIN: u64 = 4096;

pub(super) fn look(search_path: &OsStr) -> Vec<Finding> {
    vec![
        kernel(),
        open_files(),
        mount_propagation(),
        multipathd(search_path),
        dm_crypt(),
        nfs_client(search_path),
    ]
}

fn finding(name: &str, found: Found, detail: impl Into<String>) -> Finding {
    Finding::new(Area::System, name, found, detail)
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    finding("kernel", Found::Yes, format!("Linux {}", release.trim()))
}

fn open_files() -> Finding {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    match most {
        Some(most) if most < OPEN_FILES_MIN => {
            finding("open-files", Found::Problem, format!("a process may have {most} open"))
                .next(format!("raise the hard limit (ulimit -Hn) to at least {OPEN_FILES_MIN}"))
        }
        Some(most) => finding("open-files", Found::Yes, format!("a process may have {most} open")),
        None => finding("open-files", Found::Yes, "without limit"),
    }
}

/// Whether what is mounted in a container can be seen on the node, and the other way round.
fn mount_propagation() -> Finding {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    match propagation_of_root(&mounts) {
        Some(true) => finding("mounts", Found::Yes, "the root is shared: mounts propagate"),
        Some(false) => {
            finding("mounts", Found::Missing, "the root is private: no mount propagates")
                .next("on a node of Kubernetes: mount --make-rshared /")
        }
        None => finding("mounts", Found::Missing, "/proc/self/mountinfo doesn't tell")
            .next("mount /proc"),
    }
}

/// `proc_pid_mountinfo(5)`: the fifth field is the mount point, the seventh begins the optional ones.
fn propagation_of_root(mounts: &str) -> Option<bool> {
    let root = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/"))?;
    let optional = root.split(' ').skip(6).take_while(|field| *field != "-");
    Some(optional.into_iter().any(|field| field.starts_with("shared:")))
}

/// It takes every new disk for one of its own, and a disk that it holds can't be mounted.
fn multipathd(search_path: &OsStr) -> Finding {
    if program::find_in(search_path, "multipathd").is_none() {
        return finding("multipathd", Found::Yes, "not installed: nothing takes our devices");
    }
    let settings = fs::read_to_string("/etc/multipath.conf").unwrap_or_default();
    match settings.contains("ublk") && settings.contains("nbd") {
        true => finding("multipathd", Found::Yes, "/etc/multipath.conf names ublk and nbd"),
        false => finding("multipathd", Found::Problem, "it may take devices for paths of its own")
            .next("blacklist { devnode \"^(ublkb|nbd)[0-9]*\" } in /etc/multipath.conf"),
    }
}

fn dm_crypt() -> Finding {
    match fs::exists("/sys/module/dm_crypt").unwrap_or(false) || kernel_has("dm_crypt") {
        true => finding("dm-crypt", Found::Yes, "volumes can be encrypted (LUKS2)"),
        false => finding("dm-crypt", Found::Missing, "this kernel can't encrypt volumes")
            .next("use a kernel with CONFIG_DM_CRYPT"),
    }
}

fn nfs_client(search_path: &OsStr) -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has_driver = known.split_whitespace().any(|name| name == "nfs4") || kernel_has("nfsv4");
    match (has_driver, program::find_in(search_path, "mount.nfs4")) {
        (true, Some(_)) => finding("nfs", Found::Yes, "shared volumes can be mounted"),
        (true, None) => {
            finding("nfs", Found::Missing, "mount.nfs4 isn't installed; for shared volumes")
                .next("apt-get install nfs-common")
        }
        (false, _) => {
            finding("nfs", Found::Missing, "this kernel has no NFSv4 client; for shared volumes")
                .next("use a kernel with CONFIG_NFS_V4")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_that_was_mounted_last_says_whether_mounts_propagate() {
        let shared = "1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n";
        let private = "2 1 8:2 / / rw,relatime - overlay overlay rw\n";
        assert_eq!(propagation_of_root(shared), Some(true));
        assert_eq!(propagation_of_root(&[shared, private].concat()), Some(false));
        assert_eq!(propagation_of_root("garbage\n"), None);
    }
}
