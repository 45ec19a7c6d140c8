//! The file system that the data folder lies on.

use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::{Area, Finding, Found};
use crate::api::size::human;

pub(super) fn look(data: &Path) -> Finding {
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
    let good =
        |kind| finding(Found::Yes, format!("{kind}, {free} free{}", abilities(existing)), None);
    // Magic numbers of linux/magic.h.
    match stat.f_type as u64 & 0xffff_ffff {
        0xef53 => good("ext4"),
        0x5846_5342 => good("XFS"),
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

/// Tried on files without a name, which go when they are closed. Says nothing where none can be made.
fn abilities(folder: &Path) -> String {
    let unnamed = |flags| {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | flags;
        rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)
    };
    let (Ok(from), Ok(to)) = (unnamed(OFlags::empty()), unnamed(OFlags::empty())) else {
        return String::new();
    };
    let direct = if unnamed(OFlags::DIRECT).is_ok() { "O_DIRECT" } else { "no O_DIRECT" };
    let reflink = rustix::fs::ioctl_ficlone(&to, &from).is_ok();
    let reflink = if reflink { "reflinks" } else { "no reflinks" };
    format!(", {direct}, {reflink}")
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
    fn a_data_folder_that_is_not_made_yet_is_judged_by_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let found = look(&folder.path().join("not/yet"));
        assert_eq!(found.found, look(folder.path()).found);
        assert!(!found.detail.is_empty());
    }
}
