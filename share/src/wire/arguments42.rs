//! The arguments of the operations that minor version 2 added (RFC 7862, 15; RFC 8276, 8.4).

use super::arguments::{Number, name, stateid};
use super::types::{IO_BYTES_MAX, StateId};
use super::xdr::{Decoded, Decoder, Malformed};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation42<'a> {
    Allocate(Region),
    Clone(Copy),
    Copy {
        copy: Copy,
        /// The source is at a server that is named: not read further.
        from_other_server: bool,
    },
    Deallocate(Region),
    IoAdvise(Region),
    ReadPlus {
        stateid: StateId,
        offset: u64,
        count: u32,
    },
    Seek {
        stateid: StateId,
        offset: u64,
        /// The number of a kind of content.
        what: u32,
    },
    GetXattr(&'a [u8]),
    SetXattr {
        when: SetXattr,
        name: &'a [u8],
        value: &'a [u8],
    },
    ListXattrs {
        cookie: u64,
        reply_bytes_max: u32,
    },
    RemoveXattr(&'a [u8]),
}

impl Operation42<'_> {
    pub fn changes_files(&self) -> bool {
        match self {
            Self::Allocate(_)
            | Self::Clone(_)
            | Self::Copy { .. }
            | Self::Deallocate(_)
            | Self::SetXattr { .. }
            | Self::RemoveXattr(_) => true,
            Self::IoAdvise(_)
            | Self::ReadPlus { .. }
            | Self::Seek { .. }
            | Self::GetXattr(_)
            | Self::ListXattrs { .. } => false,
        }
    }
}

/// Bytes of a file that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub stateid: StateId,
    pub offset: u64,
    pub length: u64,
}

/// From the saved file to the current one; a length of zero is "to the end".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    pub source: StateId,
    pub target: StateId,
    pub source_offset: u64,
    pub target_offset: u64,
    pub length: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetXattr {
    Always,
    /// Only if it isn't there yet.
    Create,
    /// Only if it is there.
    Replace,
}

impl<'a> Operation42<'a> {
    /// `None`: known, and not served.
    pub fn decode(number: Number, body: &mut Decoder<'a>) -> Decoded<Option<Self>> {
        use Number as N;
        Ok(Some(match number {
            N::Allocate => Self::Allocate(Region::decode(body)?),
            N::Clone => Self::Clone(Copy::decode(body)?),
            N::Copy => {
                let copy = Copy::decode(body)?;
                // How it would be liked: each answer says how it was done.
                let (_consecutive, _synchronous) = (body.bool()?, body.bool()?);
                Self::Copy { copy, from_other_server: body.u32()? > 0 }
            }
            N::Deallocate => Self::Deallocate(Region::decode(body)?),
            N::IoAdvise => {
                let region = Region::decode(body)?;
                for _ in 0..body.count(8)? {
                    body.u32()?; // hints
                }
                Self::IoAdvise(region)
            }
            N::ReadPlus => {
                Self::ReadPlus { stateid: stateid(body)?, offset: body.u64()?, count: body.u32()? }
            }
            N::Seek => {
                Self::Seek { stateid: stateid(body)?, offset: body.u64()?, what: body.u32()? }
            }
            N::GetXattr => Self::GetXattr(name(body)?),
            N::SetXattr => Self::SetXattr {
                when: match body.u32()? {
                    0 => SetXattr::Always,
                    1 => SetXattr::Create,
                    2 => SetXattr::Replace,
                    _ => return Err(Malformed),
                },
                name: name(body)?,
                value: body.opaque(IO_BYTES_MAX as usize)?,
            },
            N::ListXattrs => Self::ListXattrs { cookie: body.u64()?, reply_bytes_max: body.u32()? },
            N::RemoveXattr => Self::RemoveXattr(name(body)?),
            _ => return Ok(None),
        }))
    }
}

impl Region {
    fn decode(body: &mut Decoder) -> Decoded<Self> {
        Ok(Self { stateid: stateid(body)?, offset: body.u64()?, length: body.u64()? })
    }
}

impl Copy {
    fn decode(body: &mut Decoder) -> Decoded<Self> {
        Ok(Self {
            source: stateid(body)?,
            target: stateid(body)?,
            source_offset: body.u64()?,
            target_offset: body.u64()?,
            length: body.u64()?,
        })
    }
}
