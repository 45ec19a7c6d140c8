//! From a raw request to one that can't be out of range or not allowed. Pure.

use super::handshake::Negotiated;
use super::wire::{Command, Errno, RawRequest, command_flag};
use super::{PAYLOAD_BYTES_MAX, STATUS_BYTES_MAX};
use crate::disk::{BLOCK_BYTES, Durability, Extent, SECTOR_BYTES};

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub size_bytes: u64,
    pub is_read_only: bool,
    pub negotiated: Negotiated,
}

/// A request that the disk can be asked as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Read(Extent),
    /// Its data is `Extent::length_bytes` long.
    Write(Extent, Durability),
    Flush,
    Trim(Extent, Durability),
    WriteZeroes(Extent, Durability),
    /// At most [`STATUS_BYTES_MAX`] long: a reply may tell less than was asked.
    BlockStatus {
        at: Extent,
        /// Only the first run is wanted.
        only_first: bool,
    },
}

impl Request {
    /// Checks everything the protocol lets a server check. [`Command::Disconnect`] never gets
    /// here: it is no request but the end of them.
    pub fn parse(raw: &RawRequest, terms: &Terms) -> Result<Self, Errno> {
        let command = Command::from_wire(raw.command).ok_or(Errno::Invalid)?;
        if raw.flags & !command.flags(terms) != 0 {
            return Err(Errno::Invalid);
        }
        if command == Command::Flush {
            // Offset and length are reserved; there are clients that set them.
            return Ok(Self::Flush);
        }
        if terms.is_read_only && command.is_write() {
            return Err(Errno::NotPermitted);
        }
        if command == Command::BlockStatus && !terms.negotiated.base_allocation {
            return Err(Errno::Invalid);
        }
        if command.has_payload() && raw.length_bytes > PAYLOAD_BYTES_MAX {
            return Err(command.too_long(terms));
        }
        let at = Extent::new(raw.offset_bytes, u64::from(raw.length_bytes))
            .filter(|at| at.is_within(terms.size_bytes))
            .ok_or(command.past_the_end())?;
        if at.length_bytes == 0 || !at.is_aligned_to(SECTOR_BYTES) {
            return Err(Errno::Invalid);
        }
        let durability = match raw.flags & command_flag::FUA {
            0 => Durability::Volatile,
            _ => Durability::ForcedUnitAccess,
        };
        match command {
            Command::Read => Ok(Self::Read(at)),
            Command::Write => Ok(Self::Write(at, durability)),
            Command::Trim => Ok(Self::Trim(at, durability)),
            Command::WriteZeroes => Ok(Self::WriteZeroes(at, durability)),
            Command::BlockStatus => Ok(Self::BlockStatus {
                at: Extent { length_bytes: at.length_bytes.min(STATUS_BYTES_MAX), ..at },
                only_first: raw.flags & command_flag::REQ_ONE != 0,
            }),
            Command::Flush | Command::Disconnect => Err(Errno::Invalid),
        }
    }

    /// Memory that the request may hold until its reply is written.
    pub fn memory_bytes(&self) -> u64 {
        /// Of one run: in the list that the disk returns, and in the reply.
        const RUN_BYTES: u64 = 32;
        match self {
            Self::Read(at) | Self::Write(at, _) => at.length_bytes,
            Self::BlockStatus { at, .. } => at.length_bytes.div_ceil(BLOCK_BYTES) * RUN_BYTES,
            Self::Flush | Self::Trim(..) | Self::WriteZeroes(..) => 0,
        }
    }
}

impl Command {
    /// Flags that mean something for this command. FUA is accepted everywhere: the protocol tells
    /// of clients that set it on reads.
    fn flags(self, terms: &Terms) -> u16 {
        let own = match self {
            Self::Read if terms.negotiated.structured_replies => command_flag::DF,
            // A hint that space be kept. Ankole's replicas store zeroes as a mark and reserve no
            // space, so it is accepted, and changes nothing.
            Self::WriteZeroes => command_flag::NO_HOLE,
            Self::BlockStatus => command_flag::REQ_ONE,
            _ => 0,
        };
        own | command_flag::FUA
    }

    fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }

    fn has_payload(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }

    /// `EOVERFLOW` invites to try again with less, but is allowed for structured reads only.
    fn too_long(self, terms: &Terms) -> Errno {
        match self {
            Self::Read if terms.negotiated.structured_replies => Errno::Overflow,
            _ => Errno::Invalid,
        }
    }

    fn past_the_end(self) -> Errno {
        match self {
            Self::Write | Self::WriteZeroes => Errno::NoSpace,
            _ => Errno::Invalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nbd::wire::Cookie;

    const TERMS: Terms = Terms {
        size_bytes: 64 << 30,
        is_read_only: false,
        negotiated: Negotiated { structured_replies: true, base_allocation: true },
    };

    fn raw(command: Command, flags: u16, offset_bytes: u64, length_bytes: u32) -> RawRequest {
        let command = command.to_wire();
        RawRequest { flags, command, cookie: Cookie(1), offset_bytes, length_bytes }
    }

    /// The numbers that the section "Error values" asks for.
    #[test]
    fn what_is_refused_is_refused_with_the_error_of_the_protocol() {
        use Command::{BlockStatus, Flush, Read, Trim, Write, WriteZeroes};
        let end = TERMS.size_bytes;
        let read_only = Terms { is_read_only: true, ..TERMS };
        let simple = Terms { negotiated: Negotiated::default(), ..TERMS };
        let cases = [
            (TERMS, raw(Read, 0, end, 512), Errno::Invalid),
            (TERMS, raw(Trim, 0, end, 512), Errno::Invalid),
            (TERMS, raw(BlockStatus, 0, end, 512), Errno::Invalid),
            (TERMS, raw(Write, 0, end, 512), Errno::NoSpace),
            (TERMS, raw(WriteZeroes, 0, end - 512, 1024), Errno::NoSpace),
            (TERMS, raw(Read, 0, u64::MAX - 511, 512), Errno::Invalid),
            (TERMS, raw(Read, 0, 1, 512), Errno::Invalid),
            (TERMS, raw(Write, 0, 0, 1), Errno::Invalid),
            (TERMS, raw(Read, 0, 0, 0), Errno::Invalid),
            (TERMS, raw(Read, 0, 0, PAYLOAD_BYTES_MAX + 512), Errno::Overflow),
            (simple, raw(Read, 0, 0, PAYLOAD_BYTES_MAX + 512), Errno::Invalid),
            (TERMS, raw(Write, 0, 0, PAYLOAD_BYTES_MAX + 512), Errno::Invalid),
            (TERMS, raw(Read, command_flag::NO_HOLE, 0, 512), Errno::Invalid),
            (TERMS, raw(Write, command_flag::DF, 0, 512), Errno::Invalid),
            (TERMS, raw(Flush, 1 << 7, 0, 0), Errno::Invalid),
            (TERMS, raw(WriteZeroes, 1 << 4, 0, 512), Errno::Invalid), // fast zero
            (simple, raw(Read, command_flag::DF, 0, 512), Errno::Invalid),
            (simple, raw(BlockStatus, 0, 0, 512), Errno::Invalid),
            (read_only, raw(Write, 0, 0, 512), Errno::NotPermitted),
            (read_only, raw(Trim, 0, 0, 512), Errno::NotPermitted),
            (read_only, raw(WriteZeroes, 0, end, 512), Errno::NotPermitted),
        ];
        for (terms, raw, errno) in cases {
            assert_eq!(Request::parse(&raw, &terms), Err(errno), "{raw:?}");
        }
        let unknown = RawRequest { command: 5, ..raw(Read, 0, 0, 512) };
        assert_eq!(Request::parse(&unknown, &TERMS), Err(Errno::Invalid));
    }

    #[test]
    fn what_needs_no_data_may_be_longer_than_a_payload() {
        let length_bytes = 1_u64 << 31;
        let at = Extent { offset_bytes: 4096, length_bytes };
        let zeroes = raw(Command::WriteZeroes, command_flag::NO_HOLE, 4096, 1 << 31);
        let expected = Request::WriteZeroes(at, Durability::Volatile);
        assert_eq!(Request::parse(&zeroes, &TERMS), Ok(expected));
        let trim = raw(Command::Trim, command_flag::FUA, 4096, 1 << 31);
        let expected = Request::Trim(at, Durability::ForcedUnitAccess);
        assert_eq!(Request::parse(&trim, &TERMS), Ok(expected));
        let status = raw(Command::BlockStatus, command_flag::REQ_ONE, 4096, 1 << 31);
        let at = Extent { length_bytes: STATUS_BYTES_MAX, ..at };
        let expected = Request::BlockStatus { at, only_first: true };
        assert_eq!(Request::parse(&status, &TERMS), Ok(expected));
    }

    proptest! {
        /// What a disk is asked without looking again.
        #[test]
        fn whatever_passes_lies_within_the_disk(
            command in 0_u16..9,
            flags in 0_u16..32,
            offset_bytes in prop_oneof![any::<u64>(), 0..TERMS.size_bytes + 4096],
            length_bytes in prop_oneof![any::<u32>(), (0_u32..1 << 17).prop_map(|n| n * 512)],
            is_read_only: bool,
        ) {
            let cookie = Cookie(0);
            let raw = RawRequest { flags, command, cookie, offset_bytes, length_bytes };
            let terms = Terms { is_read_only, ..TERMS };
            let Ok(request) = Request::parse(&raw, &terms) else { return Ok(()) };
            let (at, is_write) = match request {
                Request::Flush => return Ok(()),
                Request::Read(at) | Request::BlockStatus { at, .. } => (at, false),
                Request::Write(at, _)
                | Request::Trim(at, _)
                | Request::WriteZeroes(at, _) => (at, true),
            };
            prop_assert!(at.is_within(terms.size_bytes) && at.is_aligned_to(SECTOR_BYTES));
            prop_assert!(at.length_bytes > 0 && at.offset_bytes == offset_bytes);
            prop_assert!(!(is_write && is_read_only));
            prop_assert!(request.memory_bytes() <= u64::from(PAYLOAD_BYTES_MAX));
        }
    }
}
