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
