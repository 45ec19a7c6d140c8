//! Ways to show a volume, best first.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use ankole_blockdev::device::Driver;
use ankole_blockdev::kernel_nbd;
use ankole_blockdev::ublk::{self, Unavailable};

use super::tools::find_program;
use super::{Area, Finding, Found};
use crate::api::error::chain;

/// Whether one more device can be made.
pub fn can_serve(driver: Driver) -> bool {
    match driver {
        Driver::Ublk => ublk::has_room().is_ok(),
        Driver::Nbd => kernel_nbd::is_available().is_ok(),
    }
}

/// Why no device can be made now, and what to do about it.
pub fn obstacle(driver: Driver) -> Option<Finding> {
    (!can_serve(driver)).then(|| match driver {
        Driver::Ublk => ublk(),
        Driver::Nbd => kernel_nbd(),
    })
}

pub fn look(search_path: &OsStr) -> Vec<Finding> {
    let socket = "NBD on a unix socket; needs no driver";
    vec![ublk(), kernel_nbd(), tgt(search_path), finding("socket", Found::Yes, socket.into())]
}

fn finding(name: &str, found: Found, detail: String) -> Finding {
    Finding::new(Area::Frontend, name, found, detail)
}

fn ublk() -> Finding {
    match ublk::is_available() {
        Ok(features) => {
            let mut can = vec!["takes devices over after a crash"];
            can.push(match features.can_resize() {
                true => "grows them in use",
                false => "growing needs a re-attach",
            });
            let room = ublk::room(features);
            let most = room.most.map_or("no limit".into(), |most| format!("at most {most}"));
            let detail = format!(
                "features {:#x}: {}; {} devices, {most}",
                features.bits(),
                can.join(", "),
                room.used
            );
            match room.is_nearly_full() {
                false => finding("ublk", Found::Yes, detail),
                true => finding("ublk", Found::Problem, detail).next(format!(
                    "as root: echo {} > /sys/module/ublk_drv/parameters/ublks_max",
                    room.used.saturating_mul(2).max(64)
                )),
            }
        }
        Err(Unavailable::NoDriver) if fs::exists("/sys/module/ublk_drv").unwrap_or(false) => {
            finding(
                "ublk",
                Found::Missing,
                "the driver is there, its /dev/ublk-control isn't".into(),
            )
            .next("in a container: mount the node's /dev")
        }
        Err(Unavailable::NoDriver) if kernel_has("ublk_drv") => {
            finding("ublk", Found::Missing, "the driver isn't loaded".into())
                .next("as root: modprobe ublk_drv")
        }
        Err(Unavailable::NoDriver) => {
            finding("ublk", Found::Missing, "this kernel has no driver ublk_drv".into())
                .next("use a kernel with CONFIG_BLK_DEV_UBLK, or another frontend")
        }
        Err(error @ Unavailable::NoAccess(_)) => {
            finding("ublk", Found::Missing, chain(&error)).next("run ankole as root")
        }
        Err(error) => finding("ublk", Found::Missing, chain(&error))
            .next("use another kernel, or another frontend"),
    }
}

fn kernel_nbd() -> Finding {
    match kernel_nbd::is_available() {
        Ok(()) => finding("nbd", Found::Yes, "the driver nbd answers".into()),
        Err(kernel_nbd::Unavailable::NoDriver) if kernel_has("nbd") => {
            finding("nbd", Found::Missing, "the driver nbd isn't loaded".into())
                .next("as root: modprobe nbd nbds_max=0")
        }
        Err(kernel_nbd::Unavailable::NoDriver) => {
            finding("nbd", Found::Missing, "this kernel has no driver nbd".into())
                .next("use a kernel with CONFIG_BLK_DEV_NBD, or another frontend")
        }
        Err(error @ kernel_nbd::Unavailable::NoPrivilege) => {
            finding("nbd", Found::Missing, chain(&error)).next("run ankole as root")
        }
        Err(error) => finding("nbd", Found::Missing, chain(&error)).next("use another frontend"),
    }
}

/// Looked for, but not built yet: nobody should install it for us.
fn tgt(search_path: &OsStr) -> Finding {
    let programs = ["tgtd", "tgtadm", "iscsiadm", "iscsid"];
    let there = programs.into_iter().filter(|name| find_program(name, search_path).is_some());
    let there = there.collect::<Vec<_>>().join(", ");
    let found =
        if there.is_empty() { "nothing of it is here".into() } else { format!("{there} are here") };
    finding("tgt", Found::Missing, format!("iSCSI isn't built yet; {found}"))
        .next("use another frontend")
}

/// A module that could be loaded, or is built in.
pub(super) fn kernel_has(module: &str) -> bool {
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
}
