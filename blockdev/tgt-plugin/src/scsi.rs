//! What a SCSI command asks of a disk; pure.
//!
//! Follows SBC-4 (INCITS 506) for the commands that tgtd leaves to its backing store. tgtd has
//! looked at ranges and protection before; it has taken offset and length of most commands out of
//! them already.

/// Operation codes that a backing store gets.
pub mod opcode {
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0a;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2a;
    pub const WRITE_VERIFY_10: u8 = 0x2e;
    pub const VERIFY_10: u8 = 0x2f;
    pub const PRE_FETCH_10: u8 = 0x34;
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub const WRITE_SAME_10: u8 = 0x41;
    pub const UNMAP: u8 = 0x42;
    pub const READ_16: u8 = 0x88;
    pub const COMPARE_AND_WRITE: u8 = 0x89;
    pub const WRITE_16: u8 = 0x8a;
    pub const ORWRITE_16: u8 = 0x8b;
    pub const WRITE_VERIFY_16: u8 = 0x8e;
    pub const VERIFY_16: u8 = 0x8f;
    pub const PRE_FETCH_16: u8 = 0x90;
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const READ_12: u8 = 0xa8;
    pub const WRITE_12: u8 = 0xaa;
    pub const WRITE_VERIFY_12: u8 = 0xae;
    pub const VERIFY_12: u8 = 0xaf;
}

/// Sense data of a command that failed: key, and additional code with its qualifier (SPC-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    pub key: u8,
    pub code: u16,
}

impl Sense {
    pub const READ_ERROR: Self = Self { key: 0x03, code: 0x1100 };
    pub const WRITE_ERROR: Self = Self { key: 0x03, code: 0x0c00 };
    pub const INVALID_COMMAND: Self = Self { key: 0x05, code: 0x2000 };
    pub const OUT_OF_RANGE: Self = Self { key: 0x05, code: 0x2100 };
    pub const INVALID_FIELD: Self = Self { key: 0x05, code: 0x2400 };
    pub const WRITE_PROTECTED: Self = Self { key: 0x07, code: 0x2700 };
    /// SPACE ALLOCATION FAILED WRITE PROTECT
    pub const NO_SPACE: Self = Self { key: 0x07, code: 0x2707 };
    pub const MISCOMPARE: Self = Self { key: 0x0e, code: 0x1d00 };
}

/// A command as tgtd hands it over.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    pub cdb: &'a [u8],
    /// Of the range that it names, in bytes.
    pub offset: u64,
    pub length: u64,
    pub block_bytes: u64,
    pub disk_bytes: u64,
    /// What the initiator has sent.
    pub sent: &'a [u8],
    /// Room for what it wants to read, in bytes.
    pub wanted: usize,
}

/// What is to be done for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    Nothing,
    /// Into the initiator's buffer.
    Read {
        offset: u64,
        length: usize,
    },
    Write {
        offset: u64,
        forced: bool,
    },
    /// Written, read back and compared.
    WriteAndVerify {
        offset: u64,
    },
    Flush,
    Discard(Vec<Range>),
    Zero(Range),
    /// Bytes of one block, again and again.
    Repeat(Range),
    /// What was sent is there.
    Compare {
        offset: u64,
    },
    /// If the first half of what was sent is there, the second takes its place.
    CompareAndWrite {
        offset: u64,
        half: usize,
    },
    /// What is there, or what was sent.
    Or {
        offset: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub offset: u64,
    pub length: u64,
}

impl Work {
    /// Nothing else may run meanwhile.
    pub fn is_exclusive(&self) -> bool {
        matches!(self, Self::CompareAndWrite { .. } | Self::Or { .. })
    }
}

/// Never panics, whatever the initiator has sent.
pub fn work_of(command: &Command<'_>) -> Result<Work, Sense> {
    let [code, flags, ..] = *command.cdb else { return Err(Sense::INVALID_COMMAND) };
    let offset = command.offset;
    let forced = flags & 0x08 != 0 && code >= opcode::READ_10; // FUA; six bytes have no room for it
    match code {
        opcode::READ_6 | opcode::READ_10 | opcode::READ_12 | opcode::READ_16 => {
            let length = command.wanted.min(usize::try_from(command.length).unwrap_or(usize::MAX));
            command.within(offset, length as u64)?;
            Ok(Work::Read { offset, length })
        }
        opcode::WRITE_6 | opcode::WRITE_10 | opcode::WRITE_12 | opcode::WRITE_16 => {
            command.within(offset, command.sent.len() as u64)?;
            Ok(Work::Write { offset, forced })
        }
        opcode::WRITE_VERIFY_10 | opcode::WRITE_VERIFY_12 | opcode::WRITE_VERIFY_16 => {
            command.within(offset, command.sent.len() as u64)?;
            Ok(Work::WriteAndVerify { offset })
        }
        opcode::VERIFY_10 | opcode::VERIFY_12 | opcode::VERIFY_16 => {
            command.within(offset, command.sent.len() as u64)?;
            match flags >> 1 & 3 {
                0 => Ok(Work::Nothing), // the medium is looked after without being asked
                1 => Ok(Work::Compare { offset }),
                _ => Err(Sense::INVALID_FIELD),
            }
        }
        opcode::PRE_FETCH_10 | opcode::PRE_FETCH_16 => {
            command.within(offset, command.length)?;
            Ok(Work::Nothing)
        }
        opcode::SYNCHRONIZE_CACHE_10 | opcode::SYNCHRONIZE_CACHE_16 => Ok(Work::Flush),
        opcode::UNMAP => unmap(command),
        opcode::WRITE_SAME_10 | opcode::WRITE_SAME_16 => write_same(command, flags),
        opcode::COMPARE_AND_WRITE => {
            let half = command.sent.len() / 2;
            if half as u64 != command.length || !command.sent.len().is_multiple_of(2) {
                return Err(Sense::INVALID_FIELD);
            }
            command.within(offset, half as u64)?;
            Ok(Work::CompareAndWrite { offset, half })
        }
        opcode::ORWRITE_16 => {
            command.within(offset, command.sent.len() as u64)?;
            Ok(Work::Or { offset })
        }
        _ => Err(Sense::INVALID_COMMAND),
    }
}

impl Command<'_> {
    fn within(&self, offset: u64, length: u64) -> Result<(), Sense> {
        let end = offset.checked_add(length);
        if end.is_some_and(|end| end <= self.disk_bytes) {
            Ok(())
        } else {
            Err(Sense::OUT_OF_RANGE)
        }
    }
}

/// UNMAP's parameter list: a header of 8 bytes, then descriptors of 16 (SBC-4, 5.35).
fn unmap(command: &Command<'_>) -> Result<Work, Sense> {
    if command.cdb.get(1).is_some_and(|flags| flags & 1 != 0) {
        return Err(Sense::INVALID_FIELD); // ANCHOR
    }
    let mut ranges = Vec::new();
    for descriptor in command.sent.get(8..).unwrap_or_default().chunks_exact(16) {
        let block = descriptor[..8].try_into().map_or(0, u64::from_be_bytes);
        let count = descriptor[8..12].try_into().map_or(0, u32::from_be_bytes);
        let offset = block.checked_mul(command.block_bytes).ok_or(Sense::OUT_OF_RANGE)?;
        let length = u64::from(count) * command.block_bytes;
        command.within(offset, length)?;
        if length > 0 {
            ranges.push(Range { offset, length });
        }
    }
    Ok(if ranges.is_empty() { Work::Nothing } else { Work::Discard(ranges) })
}

/// A count of zero means all blocks to the end.
fn write_same(command: &Command<'_>, flags: u8) -> Result<Work, Sense> {
    const ANCHOR: u8 = 1 << 4;
    const UNMAP: u8 = 1 << 3;
    const LOGICAL_AND_PHYSICAL: u8 = 0b110;
    const NO_DATA: u8 = 1;
    let offset = command.offset;
    let length = match command.length {
        0 => command.disk_bytes.checked_sub(offset).ok_or(Sense::OUT_OF_RANGE)?,
        length => length,
    };
    command.within(offset, length)?;
    let range = Range { offset, length };
    let has_no_data = flags & NO_DATA != 0 && command.cdb[0] == opcode::WRITE_SAME_16;
    if flags & (ANCHOR | LOGICAL_AND_PHYSICAL) != 0 {
        return Err(Sense::INVALID_FIELD);
    }
    let block = if has_no_data { &[][..] } else { command.sent };
    if !has_no_data && block.len() as u64 != command.block_bytes {
        return Err(Sense::INVALID_FIELD);
    }
    let is_zero = block.iter().all(|byte| *byte == 0);
    Ok(match (length, flags & UNMAP != 0, is_zero) {
        (0, _, _) => Work::Nothing,
        (_, true, true) => Work::Discard(vec![range]),
        (_, _, true) => Work::Zero(range),
        (_, _, false) => Work::Repeat(range),
    })
}

/// What the initiator is told of an error of the disk. `errno` is NBD's, which is Linux's.
pub fn sense_of(errno: i32, is_write: bool) -> Sense {
    match errno {
        libc::EPERM | libc::EROFS => Sense::WRITE_PROTECTED,
        libc::ENOSPC => Sense::NO_SPACE,
        libc::EINVAL => Sense::INVALID_FIELD,
        _ if is_write => Sense::WRITE_ERROR,
        _ => Sense::READ_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command<'a>(cdb: &'a [u8], sent: &'a [u8]) -> Command<'a> {
        Command {
            cdb,
            offset: 4096,
            length: 1024,
            block_bytes: 512,
            disk_bytes: 1 << 20,
            sent,
            wanted: 1024,
        }
    }

    #[test]
    fn a_write_is_forced_when_it_says_so_and_has_room_for_it() {
        let of = |cdb: &[u8]| work_of(&command(cdb, &[0; 1024]));
        assert_eq!(of(&[0x2a, 0x08]), Ok(Work::Write { offset: 4096, forced: true }));
        assert_eq!(of(&[0x8a, 0x00]), Ok(Work::Write { offset: 4096, forced: false }));
        assert_eq!(of(&[0x0a, 0x08]), Ok(Work::Write { offset: 4096, forced: false }));
    }

    #[test]
    fn unmap_takes_all_ranges_or_none() {
        let mut list = vec![0; 8];
        for (block, count) in [(8_u64, 2_u32), (100, 0), (200, 1)] {
            list.extend(block.to_be_bytes());
            list.extend(count.to_be_bytes());
            list.extend([0; 4]);
        }
        let ranges =
            vec![Range { offset: 4096, length: 1024 }, Range { offset: 102_400, length: 512 }];
        assert_eq!(work_of(&command(&[0x42, 0], &list)), Ok(Work::Discard(ranges)));
        list[8..16].copy_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(work_of(&command(&[0x42, 0], &list)), Err(Sense::OUT_OF_RANGE));
        assert_eq!(work_of(&command(&[0x42, 0], &[0; 3])), Ok(Work::Nothing));
    }

    #[test]
    fn write_same_of_zeroes_needs_no_data() {
        let range = Range { offset: 4096, length: 1024 };
        let of = |cdb: &[u8], sent: &[u8]| work_of(&command(cdb, sent));
        assert_eq!(of(&[0x93, 0x08], &[0; 512]), Ok(Work::Discard(vec![range])));
        assert_eq!(of(&[0x93, 0x00], &[0; 512]), Ok(Work::Zero(range)));
        assert_eq!(of(&[0x93, 0x01], &[]), Ok(Work::Zero(range)));
        assert_eq!(of(&[0x41, 0x00], &[7; 512]), Ok(Work::Repeat(range)));
        assert_eq!(of(&[0x41, 0x00], &[7; 100]), Err(Sense::INVALID_FIELD));
        assert_eq!(of(&[0x93, 0x10], &[0; 512]), Err(Sense::INVALID_FIELD));
    }

    #[test]
    fn no_command_panics() {
        for code in 0..=255 {
            for cdb in [&[code, 0xff][..], &[code, 0x02], &[code]] {
                for sent in [0, 1, 9, 24, 511, 512, 2048] {
                    let sent = vec![0xff; sent];
                    let with = Command { offset: u64::MAX - 5, ..command(cdb, &sent) };
                    let _ = work_of(&with);
                    let _ = work_of(&command(cdb, &sent));
                }
            }
        }
        assert_eq!(work_of(&command(&[], &[])), Err(Sense::INVALID_COMMAND));
    }
}
