//! What this node can do, found by looking and not by versions; never by trying what could harm.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use ankole_blockdev::device::Driver;
use ankole_blockdev::kernel_nbd;
use serde::{Deserialize, Serialize};

use crate::api::size::human;

/// One thing that was looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub area: Area,
    pub name: String,
    pub found: Found,
    pub detail: String,
    /// What to do about it.
    pub next: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Area {
    Frontend,
    Tool,
    Disk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Found {
    Yes,
    /// Something else serves, or it is needed for some work only.
    Missing,
    /// Data or speed suffer.
    Problem,
}

/// `search_path` is PATH.
pub fn check(data: &Path, search_path: &OsStr) -> Vec<Finding> {
    let mut findings = vec![ublk(), kernel_nbd()];
    findings.push(Finding {
        area: Area::Frontend,
        name: "socket".into(),
        found: Found::Yes,
        detail: "NBD on a unix socket; needs no driver".into(),
        next: None,
    });
    findings.extend(TOOLS.iter().map(|tool| tool.look(search_path)));
    findings.push(data_filesystem(data));
    findings
}

pub fn can_serve(driver: Driver) -> bool {
    match driver {
        Driver::Ublk => ublk().found == Found::Yes,
        Driver::Nbd => kernel_nbd::is_available().is_ok(),
    }
}

/// Opens the control device and nothing more: adding a device just to see has crashed kernels.
fn ublk() -> Finding {
    let path = "/dev/ublk-control";
    let opened = File::options().read(true).write(true).open(path);
    let (found, detail, next) = match opened.map_err(|error| error.kind()) {
        Ok(_) => (Found::Yes, format!("{path} opens"), None),
        Err(io::ErrorKind::PermissionDenied) => {
            let next = Some("run ankole as root".into());
            (Found::Missing, format!("{path} may not be opened"), next)
        }
        Err(_) if kernel_has("ublk_drv") => {
            let next = Some("as root: modprobe ublk_drv".into());
            (Found::Missing, "the driver isn't loaded".into(), next)
        }
        Err(_) => {
            let next = Some("use a kernel with CONFIG_BLK_DEV_UBLK, or the frontend socket".into());
            (Found::Missing, "this kernel has no driver ublk_drv".into(), next)
        }
    };
    Finding { area: Area::Frontend, name: "ublk".into(), found, detail, next }
}

fn kernel_nbd() -> Finding {
    let (found, detail, next) = if Path::new("/sys/module/nbd").exists() {
        (Found::Yes, "the driver nbd is loaded", None)
    } else if kernel_has("nbd") {
        (Found::Missing, "the driver nbd isn't loaded", Some("as root: modprobe nbd".into()))
    } else {
        (Found::Missing, "this kernel has no driver nbd", None)
    };
    Finding { area: Area::Frontend, name: "nbd".into(), found, detail: detail.into(), next }
}

/// A module that could be loaded, or is built in.
fn kernel_has(module: &str) -> bool {
    let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") else { return false };
    let folder = Path::new("/lib/modules").join(release.trim());
    ["modules.dep", "modules.builtin"].iter().any(|list| {
        fs::read_to_string(folder.join(list)).is_ok_and(|text| lists_module(&text, module))
    })
}

/// Lines are paths such as `kernel/drivers/block/nbd.ko.xz:`, in modules.dep with dependencies.
fn lists_module(text: &str, module: &str) -> bool {
    text.lines().any(|line| {
        let path = line.split(':').next().unwrap_or(line);
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split_once(".ko").is_some_and(|(name, _)| name.replace('-', "_") == module)
    })
}

struct Tool {
    name: &'static str,
    package: &'static str,
    purpose: &'static str,
}

/// Nothing here is needed to serve a volume.
const TOOLS: [Tool; 5] = [
    Tool { name: "mke2fs", package: "e2fsprogs", purpose: "make ext4, also in the demo" },
    Tool { name: "mkfs.xfs", package: "xfsprogs", purpose: "make XFS" },
    Tool { name: "nbdcopy", package: "libnbd-bin", purpose: "copy to and from a volume's socket" },
    Tool { name: "qemu-img", package: "qemu-utils", purpose: "import and export disk images" },
    Tool { name: "fio", package: "fio", purpose: "measure" },
];

impl Tool {
    fn look(&self, search_path: &OsStr) -> Finding {
        let place = find_program(self.name, search_path);
        let (found, detail) = match &place {
            Some(path) => (Found::Yes, path.display().to_string()),
            None => (Found::Missing, format!("not found; would {}", self.purpose)),
        };
        let next = place.is_none().then(|| format!("apt-get install {}", self.package));
        Finding { area: Area::Tool, name: self.name.into(), found, detail, next }
    }
}

/// In PATH, and where a user's PATH may not lead.
pub fn find_program(name: &str, search_path: &OsStr) -> Option<PathBuf> {
    let folders =
        std::env::split_paths(search_path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

fn data_filesystem(data: &Path) -> Finding {
    let existing = data.ancestors().find(|path| path.exists() && !path.as_os_str().is_empty());
    let existing = existing.unwrap_or(Path::new("."));
    let name = data.display().to_string();
    let finding = |found, detail: String, next: Option<&str>| Finding {
        area: Area::Disk,
        name: name.clone(),
        found,
        detail,
        next: next.map(Into::into),
    };
    let stat = match rustix::fs::statfs(existing) {
        Ok(stat) => stat,
        Err(error) => return finding(Found::Problem, error.to_string(), None),
    };
    let free = human(free_bytes(existing).unwrap_or(0));
    // Magic numbers of linux/magic.h.
    match stat.f_type as u64 & 0xffff_ffff {
        0xef53 => finding(Found::Yes, format!("ext4, {free} free"), None),
        0x5846_5342 => finding(Found::Yes, format!("XFS, {free} free"), None),
        0x0102_1994 | 0x8584_58f6 => finding(
            Found::Problem,
            format!("in memory, {free} free: gone after a reboot"),
            Some("use a folder on ext4 or XFS"),
        ),
        0x9123_683e => finding(
            Found::Problem,
            format!("btrfs, {free} free: copies on write what Ankole writes in place"),
            Some("use a folder on ext4 or XFS"),
        ),
        0x6969 | 0xff53_4d42 | 0xfe53_4d42 => finding(
            Found::Problem,
            "a network file system: its failures aren't those of a disk".into(),
            Some("use a folder on a local ext4 or XFS"),
        ),
        0x794c_7630 => finding(
            Found::Problem,
            format!("overlay, {free} free: the layers of a container"),
            Some("mount a volume of the host that is ext4 or XFS"),
        ),
        magic => finding(
            Found::Problem,
            format!("a file system that wasn't tried ({magic:#x}), {free} free"),
            Some("use a folder on ext4 or XFS"),
        ),
    }
}

/// For users without privileges.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_by_their_whole_name() {
        let text =
            "kernel/drivers/block/xnbd.ko.xz:\nkernel/drivers/block/ublk-drv.ko: kernel/nbd.ko\n";
        assert!(lists_module(text, "ublk_drv"));
        assert!(!lists_module(text, "nbd"));
    }

    #[test]
    fn a_data_folder_that_is_not_made_yet_is_judged_by_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let found = data_filesystem(&folder.path().join("not/yet"));
        assert_eq!(found.found, data_filesystem(folder.path()).found);
        assert!(!found.detail.is_empty());
    }

    #[test]
    fn a_tool_that_is_missing_names_its_package() {
        let tool = Tool { name: "no-such-tool", package: "some-package", purpose: "x" };
        let finding = tool.look(OsStr::new("/nowhere"));
        assert_eq!(finding.found, Found::Missing);
        assert_eq!(finding.next.as_deref(), Some("apt-get install some-package"));
    }
}
