//! What the kernel says of a file, as the attributes of the protocol.

use super::super::{Attributes, Result};
use super::inodes::Inode;
use crate::wire::attributes::Time;
use crate::wire::status::Status;
use crate::wire::types::FileType;
use rustix::fd::BorrowedFd;
use rustix::fs::{AtFlags, Statx, StatxFlags};
use std::ffi::CStr;

pub fn statx(directory: BorrowedFd, name: &CStr) -> rustix::io::Result<Statx> {
    let how = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(directory, name, how, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

pub fn device(stat: &Statx) -> (u32, u32) {
    (stat.stx_dev_major, stat.stx_dev_minor)
}

pub fn changed_ns(stat: &Statx) -> u64 {
    let time = stat.stx_ctime;
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec.into())
}

pub fn kind(stat: &Statx) -> Result<FileType> {
    use rustix::fs::FileType as Kernel;
    match Kernel::from_raw_mode(stat.stx_mode.into()) {
        Kernel::RegularFile => Ok(FileType::Regular),
        Kernel::Directory => Ok(FileType::Directory),
        Kernel::Symlink => Ok(FileType::Symlink),
        Kernel::BlockDevice => Ok(FileType::BlockDevice),
        Kernel::CharacterDevice => Ok(FileType::CharacterDevice),
        Kernel::Fifo => Ok(FileType::Fifo),
        Kernel::Socket => Ok(FileType::Socket),
        _ => Err(Status::ServerFault),
    }
}

/// `changes` was read before `stat`: see [`Inode::change`].
pub fn attributes(stat: &Statx, changes: u64) -> Result<Attributes> {
    let time = |t: rustix::fs::StatxTimestamp| Time { seconds: t.tv_sec, nanoseconds: t.tv_nsec };
    let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    Ok(Attributes {
        kind: kind(stat)?,
        file_id: stat.stx_ino,
        mode: u32::from(stat.stx_mode) & 0o7777,
        links: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size_bytes: stat.stx_size,
        used_bytes: stat.stx_blocks * 512,
        device: (stat.stx_rdev_major, stat.stx_rdev_minor),
        change: Inode::change(changes, changed_ns(stat)),
        accessed: time(stat.stx_atime),
        modified: time(stat.stx_mtime),
        changed: time(stat.stx_ctime),
        created: has_birth.then(|| time(stat.stx_btime)),
    })
}
