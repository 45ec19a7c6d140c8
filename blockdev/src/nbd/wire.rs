//! Numbers and messages of the NBD protocol, as in `doc/proto.md` of NetworkBlockDevice/nbd.
//!
//! Names are those of that document without the prefix `NBD_`. All fields are big-endian. Nothing
//! here decides anything: see `handshake`, `request` and `reply`.

use std::io;

/// "NBDMAGIC": the first eight bytes that a server sends.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": after it in a newstyle greeting, and before each option of a client.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Longest string of the protocol, in bytes ("string" in section "Naming").
pub const STRING_BYTES_MAX: usize = 4096;

/// Handshake flags of the server, and with the same numbers of the client.
pub mod handshake_flag {
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// What the export can do, sent at the end of the handshake.
pub mod transmission_flag {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

pub mod option_reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    /// Set in every reply that is an error.
    pub const IS_ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = IS_ERROR | 1;
    pub const ERR_POLICY: u32 = IS_ERROR | 2;
    pub const ERR_INVALID: u32 = IS_ERROR | 3;
    pub const ERR_UNKNOWN: u32 = IS_ERROR | 6;
    pub const ERR_TOO_BIG: u32 = IS_ERROR | 9;
}

pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const BLOCK_SIZE: u16 = 3;
}

pub mod command_flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
}

pub mod chunk {
    pub const FLAG_DONE: u16 = 1 << 0;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in the type of every chunk that reports an error.
    pub const IS_ERROR: u16 = 1 << 15;
    pub const ERROR: u16 = IS_ERROR | 1;
}

/// Flags of an extent in the metadata context [`BASE_ALLOCATION`].
pub mod state {
    pub const HOLE: u32 = 1 << 0;
    pub const ZERO: u32 = 1 << 1;
}

/// The one metadata context that the protocol defines.
pub const BASE_ALLOCATION: &str = "base:allocation";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    BlockStatus,
}

impl Command {
    pub fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => return None,
        })
    }

    pub fn to_wire(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
        }
    }
}

/// The error values that the protocol allows, which are Linux' numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    NotPermitted,
    Io,
    NoMemory,
    Invalid,
    NoSpace,
    Overflow,
    NotSupported,
    Shutdown,
}

impl Errno {
    pub fn to_wire(self) -> u32 {
        self.raw_os_error().unsigned_abs()
    }

    /// Unknown values count as `EINVAL`, as the section "Error values" wants it.
    pub fn from_wire(number: u32) -> Self {
        match i32::try_from(number) {
            Ok(libc::EPERM) => Self::NotPermitted,
            Ok(libc::EIO) => Self::Io,
            Ok(libc::ENOMEM) => Self::NoMemory,
            Ok(libc::ENOSPC) => Self::NoSpace,
            Ok(libc::EOVERFLOW) => Self::Overflow,
            Ok(libc::ENOTSUP) => Self::NotSupported,
            Ok(libc::ESHUTDOWN) => Self::Shutdown,
            _ => Self::Invalid,
        }
    }

    pub fn raw_os_error(self) -> i32 {
        match self {
            Self::NotPermitted => libc::EPERM,
            Self::Io => libc::EIO,
            Self::NoMemory => libc::ENOMEM,
            Self::Invalid => libc::EINVAL,
            Self::NoSpace => libc::ENOSPC,
            Self::Overflow => libc::EOVERFLOW,
            Self::NotSupported => libc::ENOTSUP,
            Self::Shutdown => libc::ESHUTDOWN,
        }
    }
}

/// What a client is told when a disk fails. `ENOTSUP` has a meaning of its own in the protocol
/// (only for fast zeroes), so a disk that can't do something is `EINVAL`.
impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EROFS) => Self::NotPermitted,
            Some(libc::ENOMEM) => Self::NoMemory,
            Some(libc::EINVAL | libc::EOPNOTSUPP) => Self::Invalid,
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::NoSpace,
            Some(libc::ESHUTDOWN) => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

/// What a client calls a request; only it knows what the bits mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

/// A request as it came, nothing of it checked but the magic.
///
/// ```text
/// 0       4       6      8        16       24       28
/// | magic | flags | type | cookie | offset | length |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRequest {
    pub flags: u16,
    /// A number that [`Command::from_wire`] may not know.
    pub command: u16,
    pub cookie: Cookie,
    pub offset_bytes: u64,
    pub length_bytes: u32,
}

impl RawRequest {
    pub const BYTES: usize = 28;

    /// `None` if these bytes don't start with the magic of a request.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: Cookie(fields.u64()?),
            offset_bytes: fields.u64()?,
            length_bytes: fields.u32()?,
        })
    }

    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.0.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset_bytes.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.length_bytes.to_be_bytes());
        bytes
    }
}

/// Takes fields from the front of a message; `None` when too few bytes are left.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its length before it; `None` too if it isn't UTF-8 or is longer than
    /// [`STRING_BYTES_MAX`].
    pub fn string(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        if length > STRING_BYTES_MAX {
            return None;
        }
        str::from_utf8(self.bytes(length)?).ok()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
