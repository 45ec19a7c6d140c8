//! A mount namespace of a server's own.
//!
//! When the last process of a namespace ends, the kernel unmounts what is mounted there, and writes
//! back what is dirty: to our device, which nobody serves any more if that process was its server.
//! So a server leaves the namespace that it was started in. Nor may it keep what it found there:
//! a volume that is unmounted where people see it must not stay mounted here.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::tgt;

/// Before any other thread is started. Needs CAP_SYS_ADMIN.
pub fn enter_own() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is unmounted outside goes here too, where mounts propagate; nothing goes the other way.
    let follow = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, follow, None::<&str>)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for place in mounts.lines().rev().filter_map(of_volume) {
        if let Err(error) = umount2(place.as_str(), MntFlags::MNT_DETACH) {
            tracing::warn!(place, %error, "a mounted volume stays in this server's namespace");
        }
    }
    Ok(())
}

/// Where a line of `proc_pid_mountinfo(5)` mounts a volume, whosever it is.
fn of_volume(line: &str) -> Option<String> {
    let mut fields = line.split(' ').skip(2);
    let device = Path::new("/sys/dev/block").join(fields.next()?);
    let place = fields.nth(1)?;
    is_on_volume(&device).then(|| unescaped(place))
}

/// One of our drivers' devices, or one that is made of it, as an encrypted one is.
fn is_on_volume(device: &Path) -> bool {
    let Ok(real) = fs::canonicalize(device) else { return false };
    let name = real.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let below = fs::read_dir(real.join("slaves")).into_iter().flatten().flatten();
    name.starts_with("ublkb")
        || name.starts_with("nbd")
        || tgt::is_ours(&real)
        || below.into_iter().any(|below| is_on_volume(&below.path()))
}

/// Space, tab, line feed and backslash are written as `\` and three octal digits.
fn unescaped(place: &str) -> String {
    [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", r"\")]
        .into_iter()
        .fold(place.to_owned(), |place, (code, character)| place.replace(code, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_with_spaces_are_found_again() {
        assert_eq!(unescaped(r"/mnt/my\040data\134x"), r"/mnt/my data\x");
    }

    #[test]
    fn what_is_no_volume_stays() {
        assert_eq!(of_volume("22 1 0:21 / /proc rw - proc proc rw"), None);
        assert_eq!(of_volume("garbage"), None);
    }
}
