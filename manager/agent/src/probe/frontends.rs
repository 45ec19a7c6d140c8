//! Ways to show a volume, best first.

use std::fs;
use std::path::Path;

use ankole_api::error::chain;
use ankole_api::node::{Area, Finding, Found};
use ankole_blockdev::device::Driver;
use ankole_blockdev::kernel_nbd;
use ankole_blockdev::tgt;
use ankole_blockdev::ublk::{self, Unavailable};

/// Whether one more device can be made.
pub fn can_serve(driver: Driver) -> bool {
    match driver {
        Driver::Ublk => ublk::has_room().is_ok(),
        Driver::Nbd => kernel_nbd::is_available().is_ok(),
        Driver::Tgt => tgt::is_available().is_ok() && has_initiator(),
    }
}

/// Why no device can be made now, and what to do about it.
pub fn obstacle(driver: Driver) -> Option<Finding> {
    (!can_serve(driver)).then(|| match driver {
        Driver::Ublk => ublk(),
        Driver::Nbd => kernel_nbd(),
        Driver::Tgt => tgt(),
    })
}

pub fn look() -> Vec<Finding> {
    let socket = "NBD on a unix socket; needs no driver";
    vec![ublk(), kernel_nbd(), tgt(), finding("socket", Found::Yes, socket.into())]
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

fn tgt() -> Finding {
    let missing = |why: String| finding("tgt", Found::Missing, why);
    match tgt::is_available() {
        Ok(()) if has_initiator() => {
            finding("tgt", Found::Yes, "tgtd and iscsiadm are here, and iscsid answers".into())
        }
        Ok(()) => missing("this kernel has no driver iscsi_tcp".into())
            .next("use a kernel with CONFIG_ISCSI_TCP, or another frontend"),
        Err(error) => {
            let next = match error {
                tgt::Unavailable::NoProgram(_) => "apt-get install tgt open-iscsi",
                tgt::Unavailable::NoPlugin => {
                    "build it: cargo build --release -p ankole-tgt-plugin"
                }
                tgt::Unavailable::NoInitiator => "as root: systemctl start iscsid",
                tgt::Unavailable::NoPrivilege => "run ankole as root",
            };
            missing(chain(&error)).next(next)
        }
    }
}

/// The kernel's side of iSCSI, which iscsid loads when it is needed.
fn has_initiator() -> bool {
    Path::new("/sys/class/iscsi_transport/tcp").exists() || kernel_has("iscsi_tcp")
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
