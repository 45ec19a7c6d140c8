//! What the kernel asks, as a value; pure.
//!
//! Owns the mapping between the driver's descriptors and the trait [`Disk`](crate::disk::Disk).
//! Promises that a command which passes [`Command::check`] lies within the disk and is allowed.

use std::io;

use libublk::sys::{self, ublksrv_io_desc};

use crate::disk::{Buffer, Durability, Extent, SECTOR_BYTES};

/// Largest data of one request, in bytes. The kernel splits what is larger.
pub(super) const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Largest range of one discard or write-zeroes, in bytes: it bounds how long one request can keep
/// others out of its range.
pub(super) const TRIM_BYTES_MAX: u32 = 64 << 20;

/// A request's slot in its queue; the kernel reuses it once it has been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(pub(super) u16);

impl Tag {
    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

pub(super) struct Request {
    pub(super) tag: Tag,
    pub(super) command: Command,
    /// What is to be written, or room for what is to be read; empty for all else.
    pub(super) data: Buffer,
}

pub(super) struct Answer {
    pub(super) tag: Tag,
    /// What was read, or an empty buffer.
    pub(super) outcome: Result<Buffer, Errno>,
}

/// A positive error number of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub(super) i32);

impl From<&io::Error> for Errno {
    /// An error that no system call made is `EIO`: the block layer has no better word.
    fn from(error: &io::Error) -> Self {
        Self(error.raw_os_error().filter(|&errno| errno > 0).unwrap_or(libc::EIO))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read(Extent),
    Write(Extent, Durability),
    Flush,
    Trim(Extent),
    WriteZeroes(Extent, Durability),
}

impl Command {
    pub(super) fn parse(descriptor: &ublksrv_io_desc) -> Result<Self, Errno> {
        let extent = || {
            let offset_bytes = descriptor.start_sector.checked_mul(SECTOR_BYTES);
            let length_bytes = u64::from(descriptor.nr_sectors) * SECTOR_BYTES;
            offset_bytes
                .and_then(|offset_bytes| Extent::new(offset_bytes, length_bytes))
                .ok_or(Errno(libc::EINVAL))
        };
        let durability = match descriptor.op_flags & sys::UBLK_IO_F_FUA {
            0 => Durability::Volatile,
            _ => Durability::ForcedUnitAccess,
        };
        let command = match descriptor.op_flags & 0xff {
            sys::UBLK_IO_OP_READ => Self::Read(extent()?),
            sys::UBLK_IO_OP_WRITE => Self::Write(extent()?, durability),
            // Its sector is meaningless, and lies outside of the device as often as not.
            sys::UBLK_IO_OP_FLUSH => Self::Flush,
            sys::UBLK_IO_OP_DISCARD => Self::Trim(extent()?),
            sys::UBLK_IO_OP_WRITE_ZEROES => Self::WriteZeroes(extent()?, durability),
            _ => return Err(Errno(libc::EOPNOTSUPP)),
        };
        if command.data_bytes() > u64::from(REQUEST_BYTES_MAX) {
            return Err(Errno(libc::EINVAL));
        }
        Ok(command)
    }

    /// How much data travels with the command, either way.
    pub(super) fn data_bytes(self) -> u64 {
        match self {
            Self::Read(at) | Self::Write(at, _) => at.length_bytes,
            Self::Flush | Self::Trim(_) | Self::WriteZeroes(..) => 0,
        }
    }

    /// Whether a disk of this size can do it. Past the end is `ENOSPC` for what writes.
    pub(super) fn check(self, size_bytes: u64, is_read_only: bool) -> Result<(), Errno> {
        match self {
            Self::Flush => Ok(()),
            Self::Read(at) if at.is_within(size_bytes) => Ok(()),
            Self::Read(_) => Err(Errno(libc::EINVAL)),
            Self::Write(..) | Self::Trim(_) | Self::WriteZeroes(..) if is_read_only => {
                Err(Errno(libc::EROFS))
            }
            Self::Write(at, _) | Self::Trim(at) | Self::WriteZeroes(at, _) => {
                if at.is_within(size_bytes) { Ok(()) } else { Err(Errno(libc::ENOSPC)) }
            }
        }
    }
}

/// The number that tells the kernel how a request ended: bytes moved, or a negative error.
pub(super) fn result_code(outcome: Result<u64, Errno>) -> i32 {
    match outcome {
        Ok(bytes) => i32::try_from(bytes).expect("parse() has bounded the data of a request"),
        Err(Errno(errno)) => -errno,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn descriptor(op_flags: u32, start_sector: u64, nr_sectors: u32) -> ublksrv_io_desc {
        ublksrv_io_desc { op_flags, nr_sectors, start_sector, addr: 0 }
    }

    fn extent(offset_bytes: u64, length_bytes: u64) -> Extent {
        Extent { offset_bytes, length_bytes }
    }

    #[test]
    fn sectors_become_bytes_and_fua_becomes_durability() {
        let at = extent(8 * 512, 2 * 512);
        let parse = |op_flags| Command::parse(&descriptor(op_flags, 8, 2));
        assert_eq!(parse(0), Ok(Command::Read(at)));
        assert_eq!(parse(1), Ok(Command::Write(at, Durability::Volatile)));
        assert_eq!(parse(1 | 1 << 13), Ok(Command::Write(at, Durability::ForcedUnitAccess)));
        assert_eq!(parse(3), Ok(Command::Trim(at)));
        assert_eq!(parse(5), Ok(Command::WriteZeroes(at, Durability::Volatile)));
        assert_eq!(parse(5 | 1 << 15), Ok(Command::WriteZeroes(at, Durability::Volatile)));
    }

    /// A server that range-checked flushes made every fsync fail with EINVAL.
    #[test]
    fn flush_with_a_sector_outside_of_the_device_is_a_flush() {
        let flush = Command::parse(&descriptor(2, u64::MAX, 0)).unwrap();
        assert_eq!(flush, Command::Flush);
        assert_eq!(flush.check(0, true), Ok(()));
    }

    /// Zone commands and the removed WRITE_SAME must not be taken for something else.
    #[test]
    fn operations_that_no_disk_has_are_refused_as_unsupported() {
        for operation in (0..=255).filter(|operation| ![0, 1, 2, 3, 5].contains(operation)) {
            let refused = Command::parse(&descriptor(operation, 0, 8));
            assert_eq!(refused, Err(Errno(libc::EOPNOTSUPP)), "operation {operation}");
        }
    }

    #[test]
    fn past_the_end_is_no_space_for_a_write_and_invalid_for_a_read() {
        let (inside, outside) = (extent(0, 4096), extent(4096, 512));
        let write = |at| Command::Write(at, Durability::Volatile).check(4096, false);
        assert_eq!(write(inside), Ok(()));
        assert_eq!(write(outside), Err(Errno(libc::ENOSPC)));
        assert_eq!(Command::Read(outside).check(4096, false), Err(Errno(libc::EINVAL)));
        assert_eq!(Command::Trim(inside).check(4096, true), Err(Errno(libc::EROFS)));
    }

    #[test]
    fn errors_without_an_errno_are_told_as_eio() {
        assert_eq!(Errno::from(&io::Error::other("a checksum")), Errno(libc::EIO));
        assert_eq!(Errno::from(&io::Error::from_raw_os_error(libc::ENOSPC)), Errno(libc::ENOSPC));
        assert_eq!(Errno::from(&io::Error::from_raw_os_error(-5)), Errno(libc::EIO));
        assert_eq!(result_code(Err(Errno(libc::ENOSPC))), -libc::ENOSPC);
        assert_eq!(result_code(Ok(4096)), 4096);
    }

    proptest! {
        /// Whatever the descriptor holds, nothing panics, and what is let through fits the disk.
        #[test]
        fn any_descriptor_is_either_refused_or_within_the_disk(
            op_flags: u32,
            start_sector in prop_oneof![any::<u64>(), 0_u64..4096],
            nr_sectors in prop_oneof![any::<u32>(), 0_u32..4096],
            size_bytes in 0_u64..4 << 20,
        ) {
            let Ok(command) = Command::parse(&descriptor(op_flags, start_sector, nr_sectors))
            else { return Ok(()) };
            if command.check(size_bytes, false).is_err() { return Ok(()) }
            prop_assert!(result_code(Ok(command.data_bytes())) >= 0);
            match command {
                Command::Flush => {}
                Command::Read(at) | Command::Write(at, _) => {
                    prop_assert!(at.is_within(size_bytes));
                    prop_assert!(at.length_bytes <= u64::from(REQUEST_BYTES_MAX));
                }
                Command::Trim(at) | Command::WriteZeroes(at, _) => {
                    prop_assert!(at.is_within(size_bytes));
                }
            }
        }
    }
}
