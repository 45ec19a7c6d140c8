//! The file system that the data folder lies on.

use std::io;
use std::path::Path;

use ankole_api::node::{Area, Finding, Found};
use ankole_api::size::human;
use ankole_replica::types::VOLUME_BYTES_MAX;
use rustix::fs::{Mode, OFlags, StatFs};

use super::file_size::file_bytes_max;

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
    let largest = largest_volume(existing);
    match kind_of(&stat) {
        Kind::Good(kind) => {
            let detail = format!("{kind}, {free} free{}{largest}", abilities(existing));
            finding(Found::Yes, detail, None)
        }
        Kind::Memory(_) => finding(
            Found::Problem,
            format!("in memory, {free} free: gone after a reboot"),
            Some("use a folder on ext4 or XFS"),
        ),
        Kind::Btrfs => finding(
            Found::Problem,
            format!("btrfs, {free} free: copies on write what Ankole writes in place"),
            Some("use a folder on ext4 or XFS"),
        ),
        Kind::Network => finding(
            Found::Problem,
            "a network file system: its failures aren't those of a disk".into(),
            Some("use a folder on a local ext4 or XFS"),
        ),
        Kind::Overlay => finding(
            Found::Problem,
            format!("overlay, {free} free: the layers of a container{largest}"),
            Some("mount a volume of the host that is ext4 or XFS"),
        ),
        Kind::Unknown(magic) => finding(
            Found::Problem,
            format!("a file system that wasn't tried ({magic:#x}), {free} free{largest}"),
            Some("use a folder on ext4 or XFS"),
        ),
    }
}

enum Kind {
    Good(&'static str),
    Memory(&'static str),
    Btrfs,
    Network,
    Overlay,
    Unknown(u64),
}

/// By the magic numbers of linux/magic.h.
fn kind_of(stat: &StatFs) -> Kind {
    match stat.f_type as u64 & 0xffff_ffff {
        0xef53 => Kind::Good("ext4"),
        0x5846_5342 => Kind::Good("XFS"),
        0x0102_1994 => Kind::Memory("tmpfs"),
        0x8584_58f6 => Kind::Memory("ramfs"),
        0x9123_683e => Kind::Btrfs,
        0x6969 | 0xff53_4d42 | 0xfe53_4d42 => Kind::Network,
        0x794c_7630 => Kind::Overlay,
        magic => Kind::Unknown(magic),
    }
}

/// In a word or two.
pub fn file_system_of(folder: &Path) -> String {
    match rustix::fs::statfs(folder).as_ref().map(kind_of) {
        Ok(Kind::Good(name) | Kind::Memory(name)) => name.into(),
        Ok(Kind::Btrfs) => "btrfs".into(),
        Ok(Kind::Network) => "a network file system".into(),
        Ok(Kind::Overlay) => "overlay".into(),
        Ok(Kind::Unknown(magic)) => format!("file system {magic:#x}"),
        Err(error) => error.to_string(),
    }
}

/// Only if it is smaller than what a volume may have anyway.
fn largest_volume(folder: &Path) -> String {
    match file_bytes_max(folder) {
        Ok(most) if most < VOLUME_BYTES_MAX => format!(", volumes of at most {}", human(most)),
        _ => String::new(),
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

/// Of the file system.
pub fn capacity_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
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
