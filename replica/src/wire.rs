//! How messages are framed on a stream between an engine and a replica.
//!
//! Owns the bytes, in both directions. Promises that whatever a peer sends becomes either a message
//! whose parts fit each other or an error; never a panic, and never more memory than the limits. What
//! is too long is refused by the sender: the peer would have to end the connection, and again with
//! each one after it.
//!
//! ```text
//! 0       4         5      6       8     16         24        32      36         40
//! | magic | version | kind | flags | seq | position | subject | count | meta len | data len | …
//! 44         48           52
//! | meta crc | header crc | meta … | data …
//! ```
//! Little-endian. `position` is a block or region, `subject` a layer or generation. `meta` is JSON
//! for rare messages and packed numbers for frequent ones; `data` is whole blocks, each covered by
//! its own checksum in `meta`. The stream below may become TLS: nothing here depends on its kind.
//!
//! Version history: in `docs/wire.md`.

mod parts;

use std::rc::Rc;

use ankole_blockdev::disk::{Allocation, Buffer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::parts::*;
use crate::chain::index::{BlockSum, Blocks};
use crate::message::{Contents, MARK_REGIONS_MAX, Refusal, RegionSums, Reply, Request};
use crate::payload::{BlockData, Patch, Payload, Run};
use crate::regions::{PAGE_REGIONS_MAX, REGIONS_MAX, RegionPage, RegionSet};
use crate::types::{
    BLOCK_BYTES, BLOCKS_PER_REGION, BlockIndex, BlockRange, Epoch, Generation, LayerId, Region,
    VOLUME_BYTES_MAX,
};

pub const MAGIC: [u8; 4] = *b"ANKw";
pub const VERSION: u8 = 3;
pub const HEADER_BYTES: usize = 52;
/// A chain of 4096 layers as JSON fits; everything that is packed is shorter, however large the
/// volume is.
pub const META_BYTES_MAX: u32 = 4 << 20;
/// The largest request of a frontend (32 MiB) and the two blocks at its edges.
pub const DATA_BYTES_MAX: u32 = (32 << 20) + 2 * BLOCK_BYTES as u32;
/// Regions in one answer to `Changed`.
pub const CHANGED_REGIONS_MAX: usize = 16 << 10;
/// Regions in one `Clear`.
pub const CLEAR_REGIONS_MAX: usize = 4096;

const BLOCKS_MAX: u64 = VOLUME_BYTES_MAX / BLOCK_BYTES;
const FORCED: u16 = 1;
const CONTENTS: u16 = 1;
/// In `subject`: no layer.
const NO_LAYER: u64 = u64::MAX;
/// In `position`: there is no more.
const NO_MORE: u64 = u64::MAX;

/// Why bytes aren't a message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("it doesn't speak Ankole's protocol")]
    Magic,
    #[error("it speaks version {found} of the protocol, this program speaks {VERSION}")]
    Version { found: u8 },
    #[error("the header's checksum is wrong")]
    HeaderChecksum,
    #[error("the checksum of message kind {kind} is wrong")]
    BodyChecksum { kind: u8 },
    #[error("there is no message kind {0}")]
    Kind(u8),
    #[error("message kind {kind} is malformed: {problem}")]
    Malformed { kind: u8, problem: String },
    #[error("message kind {kind} is longer than allowed")]
    TooLong { kind: u8 },
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    flags: u16,
    pub seq: u64,
    position: u64,
    subject: u64,
    count: u32,
    pub meta_bytes: u32,
    pub data_bytes: u32,
    meta_crc: u32,
}

impl Header {
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        if bytes[..4] != MAGIC {
            return Err(WireError::Magic);
        }
        if bytes[4] != VERSION {
            return Err(WireError::Version { found: bytes[4] });
        }
        if crc32c::crc32c(&bytes[..48]) != le_u32(&bytes[48..]) {
            return Err(WireError::HeaderChecksum);
        }
        let header = Self {
            kind: bytes[5],
            flags: u16::from_le_bytes([bytes[6], bytes[7]]),
            seq: le_u64(&bytes[8..]),
            position: le_u64(&bytes[16..]),
            subject: le_u64(&bytes[24..]),
            count: le_u32(&bytes[32..]),
            meta_bytes: le_u32(&bytes[36..]),
            data_bytes: le_u32(&bytes[40..]),
            meta_crc: le_u32(&bytes[44..]),
        };
        if header.meta_bytes > META_BYTES_MAX || header.data_bytes > DATA_BYTES_MAX {
            return Err(WireError::TooLong { kind: header.kind });
        }
        Ok(header)
    }

    /// What follows it, in bytes.
    pub fn body_bytes(&self) -> usize {
        self.meta_bytes as usize + self.data_bytes as usize
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.kind;
        bytes[6..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.position.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.subject.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.count.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.meta_bytes.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.data_bytes.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.meta_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..48]);
        bytes[48..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// A frame ready to be sent.
#[derive(Debug)]
pub struct Frame {
    /// Header and meta.
    pub head: Vec<u8>,
    pub payload: Option<Rc<Payload>>,
}

impl Frame {
    fn new(
        mut header: Header,
        meta: &[u8],
        payload: Option<&Rc<Payload>>,
    ) -> Result<Self, WireError> {
        let data_bytes = payload.map_or(0, |payload| payload.data().len());
        if meta.len() > META_BYTES_MAX as usize || data_bytes > DATA_BYTES_MAX as usize {
            return Err(WireError::TooLong { kind: header.kind });
        }
        header.meta_bytes = meta.len() as u32;
        header.data_bytes = data_bytes as u32;
        header.meta_crc = crc32c::crc32c(meta);
        let mut head = Vec::with_capacity(HEADER_BYTES + meta.len());
        head.extend_from_slice(&header.encode());
        head.extend_from_slice(meta);
        Ok(Self { head, payload: payload.cloned() })
    }

    pub fn length_bytes(&self) -> usize {
        self.head.len() + self.data().len()
    }

    pub fn data(&self) -> &[u8] {
        self.payload.as_ref().map_or(&[], |payload| payload.data())
    }
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const ADVANCE: u8 = 2;
    pub(super) const WRITE: u8 = 3;
    pub(super) const ZERO: u8 = 4;
    pub(super) const READ: u8 = 5;
    pub(super) const READ_SNAPSHOT: u8 = 6;
    pub(super) const FLUSH: u8 = 7;
    pub(super) const SUMS: u8 = 8;
    pub(super) const OCCUPIED: u8 = 9;
    pub(super) const FETCH: u8 = 10;
    pub(super) const COPY: u8 = 11;
    pub(super) const VERIFIED: u8 = 12;
    pub(super) const CHAIN: u8 = 13;
    pub(super) const DESCRIBE_CHAIN: u8 = 14;
    pub(super) const CHANGED: u8 = 15;
    pub(super) const JOIN: u8 = 16;
    pub(super) const ADOPT_CHAIN: u8 = 17;
    pub(super) const READY: u8 = 18;
    pub(super) const PING: u8 = 19;
    pub(super) const BYE: u8 = 20;
    pub(super) const MAP: u8 = 21;
    pub(super) const STAMPS: u8 = 22;
    pub(super) const MARK: u8 = 23;
    pub(super) const PREPARE: u8 = 28;
    pub(super) const ABANDON: u8 = 29;
    pub(super) const READ_UNVERIFIED: u8 = 30;
    pub(super) const REPAIR: u8 = 31;
    pub(super) const CLEAR: u8 = 32;
    pub(super) const MARKED: u8 = 33;
    pub(super) const EPOCH: u8 = 34;

    pub(super) const DONE: u8 = 128;
    pub(super) const WELCOME: u8 = 129;
    pub(super) const BLOCKS: u8 = 130;
    pub(super) const PATCH: u8 = 131;
    pub(super) const SUMS_ARE: u8 = 132;
    pub(super) const REGIONS_ARE: u8 = 133;
    pub(super) const DIGEST: u8 = 134;
    pub(super) const CHAIN_IS: u8 = 135;
    pub(super) const CHANGED_ARE: u8 = 136;
    pub(super) const REFUSED: u8 = 137;
    pub(super) const MAP_IS: u8 = 138;
    pub(super) const ADOPTED: u8 = 139;
}

/// A list has a limit of its own, which both ends check.
fn within(kind: u8, entries: usize, most: usize) -> Result<(), WireError> {
    if entries <= most { Ok(()) } else { Err(WireError::TooLong { kind }) }
}

// ---- requests --------------------------------------------------------------------------------

/// An error if the message is longer than the peer takes.
pub fn encode_request(seq: u64, request: &Request<Rc<Payload>>) -> Result<Frame, WireError> {
    let header = |kind| Header { kind, seq, ..Header::default() };
    let json = |kind, body: Vec<u8>| Frame::new(header(kind), &body, None);
    let ranged = |kind, range: &BlockRange, forced: bool| Header {
        position: range.first.0,
        subject: range.count,
        flags: if forced { FORCED } else { 0 },
        ..header(kind)
    };
    let at = |kind, layer: &LayerId, region: &Region| Header {
        position: region.0,
        subject: layer.0.into(),
        ..header(kind)
    };
    let bare = |header| Frame::new(header, &[], None);
    match request {
        Request::Hello(hello) => json(kind::HELLO, to_json(hello)),
        Request::Advance(advance) => json(kind::ADVANCE, to_json(advance)),
        Request::Chain(op) => json(kind::CHAIN, to_json(op)),
        Request::Prepare(op) => json(kind::PREPARE, to_json(op)),
        Request::Abandon => bare(header(kind::ABANDON)),
        Request::AdoptChain(chain) => json(kind::ADOPT_CHAIN, to_json(chain)),
        Request::Write { range, forced, payload } => {
            let header = ranged(kind::WRITE, range, *forced);
            Frame::new(header, &payload.meta(), Some(payload))
        }
        Request::Zero { range, forced } => bare(ranged(kind::ZERO, range, *forced)),
        Request::Read { range } => bare(ranged(kind::READ, range, false)),
        Request::ReadUnverified { range } => bare(ranged(kind::READ_UNVERIFIED, range, false)),
        Request::Map { range } => bare(ranged(kind::MAP, range, false)),
        Request::ReadSnapshot { layer, range } => {
            let header = ranged(kind::READ_SNAPSHOT, range, false);
            Frame::new(header, &layer.0.to_le_bytes(), None)
        }
        Request::Flush => bare(header(kind::FLUSH)),
        Request::Sums { layer, region, contents } => {
            let flags = if *contents { CONTENTS } else { 0 };
            bare(Header { flags, ..at(kind::SUMS, layer, region) })
        }
        Request::Occupied { layer, from } => bare(at(kind::OCCUPIED, layer, from)),
        Request::Fetch { layer, region, blocks } => {
            Frame::new(at(kind::FETCH, layer, region), &blocks.to_bytes(), None)
        }
        Request::Copy { layer, region, payload } => {
            Frame::new(at(kind::COPY, layer, region), &payload.meta(), Some(payload))
        }
        Request::Verified { layer, region } => bare(at(kind::VERIFIED, layer, region)),
        Request::Repair { layer, region, payload } => {
            Frame::new(at(kind::REPAIR, layer, region), &payload.meta(), Some(payload))
        }
        Request::Clear { regions } => {
            within(kind::CLEAR, regions.len(), CLEAR_REGIONS_MAX)?;
            let meta: Vec<u8> = regions.iter().flat_map(|region| region.0.to_le_bytes()).collect();
            Frame::new(header(kind::CLEAR), &meta, None)
        }
        Request::Marked { from } => bare(Header { position: from.0, ..header(kind::MARKED) }),
        Request::DescribeChain => bare(header(kind::DESCRIBE_CHAIN)),
        Request::Changed { after, upto, from } => {
            let subject = after.map_or(NO_LAYER, |layer| layer.0.into());
            let header = Header { position: from.0, subject, ..header(kind::CHANGED) };
            Frame::new(header, &upto.0.to_le_bytes(), None)
        }
        Request::Join { layer } => bare(at(kind::JOIN, layer, &Region(0))),
        Request::Ready { generation, begun } => {
            let (position, subject) = (*begun, generation.0.get());
            bare(Header { position, subject, ..header(kind::READY) })
        }
        Request::Epoch(Epoch { begun, agreed }) => {
            bare(Header { position: *begun, subject: *agreed, ..header(kind::EPOCH) })
        }
        Request::Stamps { after, from } => {
            let subject = after.map_or(0, |generation| generation.0.get());
            bare(Header { position: from.0, subject, ..header(kind::STAMPS) })
        }
        Request::Mark { regions } => {
            within(kind::MARK, regions.len() as usize, MARK_REGIONS_MAX)?;
            Frame::new(header(kind::MARK), &pack_regions(regions), None)
        }
        Request::Ping => bare(header(kind::PING)),
        Request::Bye => bare(header(kind::BYE)),
    }
}

pub fn decode_request(
    header: &Header,
    meta: &[u8],
    data: Buffer,
) -> Result<Request<Rc<Payload>>, WireError> {
    let body = Body::check(header, meta, data)?;
    Ok(match header.kind {
        kind::HELLO => Request::Hello(body.json()?),
        kind::ADVANCE => Request::Advance(body.json()?),
        kind::CHAIN => Request::Chain(body.json()?),
        kind::PREPARE => Request::Prepare(body.json()?),
        kind::ABANDON => Request::Abandon,
        kind::ADOPT_CHAIN => Request::AdoptChain(body.json()?),
        kind::WRITE => {
            let (range, forced) = (body.range()?, body.forced());
            let blocks = body.blocks()?;
            if blocks.sums.len() as u64 != range.count {
                return Err(malformed(header.kind, "its data has another length than its range"));
            }
            Request::Write { range, forced, payload: Rc::new(Payload::Blocks(blocks)) }
        }
        kind::ZERO => Request::Zero { range: body.range()?, forced: body.forced() },
        kind::READ => Request::Read { range: body.readable_range()? },
        kind::READ_UNVERIFIED => Request::ReadUnverified { range: body.readable_range()? },
        kind::MAP => Request::Map { range: body.range()? },
        kind::READ_SNAPSHOT => {
            Request::ReadSnapshot { layer: body.layer_in_meta()?, range: body.readable_range()? }
        }
        kind::FLUSH => Request::Flush,
        kind::SUMS => {
            let contents = header.flags & CONTENTS != 0;
            Request::Sums { layer: body.layer()?, region: body.region()?, contents }
        }
        kind::OCCUPIED => Request::Occupied { layer: body.layer()?, from: body.region()? },
        kind::FETCH => {
            let bytes: &[u8; 32] =
                body.meta.try_into().map_err(|_| body.wrong("its set of blocks"))?;
            let blocks = Blocks::from_bytes(bytes);
            Request::Fetch { layer: body.layer()?, region: body.region()?, blocks }
        }
        kind::COPY => {
            let (layer, region) = (body.layer()?, body.region()?);
            Request::Copy { layer, region, payload: Rc::new(Payload::Patch(body.patch()?)) }
        }
        kind::VERIFIED => Request::Verified { layer: body.layer()?, region: body.region()? },
        kind::REPAIR => {
            let (layer, region) = (body.layer()?, body.region()?);
            Request::Repair { layer, region, payload: Rc::new(Payload::Patch(body.patch()?)) }
        }
        kind::CLEAR => Request::Clear { regions: body.regions()? },
        kind::MARKED => Request::Marked { from: body.region()? },
        kind::DESCRIBE_CHAIN => Request::DescribeChain,
        kind::CHANGED => Request::Changed {
            after: (header.subject != NO_LAYER).then(|| body.layer()).transpose()?,
            upto: body.layer_in_meta()?,
            from: body.region()?,
        },
        kind::JOIN => Request::Join { layer: body.layer()? },
        kind::READY => {
            let generation = header.subject.try_into().map_err(|_| body.wrong("generation 0"))?;
            Request::Ready { generation: Generation(generation), begun: header.position }
        }
        kind::EPOCH => Request::Epoch(Epoch { begun: header.position, agreed: header.subject }),
        kind::STAMPS => {
            let after = header.subject.try_into().ok().map(Generation);
            Request::Stamps { after, from: body.region()? }
        }
        kind::MARK => Request::Mark { regions: body.region_set(MARK_REGIONS_MAX)? },
        kind::PING => Request::Ping,
        kind::BYE => Request::Bye,
        unknown => return Err(WireError::Kind(unknown)),
    })
}

// ---- replies ---------------------------------------------------------------------------------

/// What is longer than the peer takes becomes a refusal.
pub fn encode_reply(seq: u64, reply: &Reply<Rc<Payload>>) -> Frame {
    try_encode_reply(seq, reply).unwrap_or_else(|error| {
        let message = format!("its answer can't be sent: {error}");
        let refusal = Reply::Refused(Refusal::Invalid { message });
        try_encode_reply(seq, &refusal).expect("a refusal is short")
    })
}

fn try_encode_reply(seq: u64, reply: &Reply<Rc<Payload>>) -> Result<Frame, WireError> {
    let header = |kind| Header { kind, seq, ..Header::default() };
    let json = |kind, body: Vec<u8>| Frame::new(header(kind), &body, None);
    match reply {
        Reply::Done => Frame::new(header(kind::DONE), &[], None),
        Reply::Welcome(welcome) => json(kind::WELCOME, to_json(welcome)),
        Reply::Chain(chain) => json(kind::CHAIN_IS, to_json(chain)),
        Reply::Adopted(adopted) => json(kind::ADOPTED, to_json(adopted)),
        Reply::Refused(refusal) => json(kind::REFUSED, to_json(refusal)),
        Reply::Data(payload) => {
            let kind = match **payload {
                Payload::Blocks(_) => kind::BLOCKS,
                Payload::Patch(_) => kind::PATCH,
                Payload::Map(_) => kind::MAP_IS,
            };
            Frame::new(header(kind), &payload.meta(), Some(payload))
        }
        Reply::Sums(sums) => Frame::new(header(kind::SUMS_ARE), &pack_region_sums(sums), None),
        Reply::Regions(RegionPage { regions, next }) => {
            within(kind::REGIONS_ARE, regions.len() as usize, PAGE_REGIONS_MAX)?;
            let position = next.map_or(NO_MORE, |region| region.0);
            let header = Header { position, ..header(kind::REGIONS_ARE) };
            Frame::new(header, &pack_regions(regions), None)
        }
        Reply::Digest(digest) => {
            Frame::new(Header { count: *digest, ..header(kind::DIGEST) }, &[], None)
        }
        Reply::Changed { regions, next } => {
            within(kind::CHANGED_ARE, regions.len(), CHANGED_REGIONS_MAX)?;
            let position = next.map_or(NO_MORE, |region| region.0);
            let mut meta = Vec::with_capacity(regions.len() * 40);
            for (region, blocks) in regions {
                meta.extend_from_slice(&region.0.to_le_bytes());
                meta.extend_from_slice(&blocks.to_bytes());
            }
            Frame::new(Header { position, ..header(kind::CHANGED_ARE) }, &meta, None)
        }
    }
}

pub fn decode_reply(
    header: &Header,
    meta: &[u8],
    data: Buffer,
) -> Result<Reply<Rc<Payload>>, WireError> {
    let body = Body::check(header, meta, data)?;
    Ok(match header.kind {
        kind::DONE => Reply::Done,
        kind::WELCOME => Reply::Welcome(body.json()?),
        kind::CHAIN_IS => Reply::Chain(body.json()?),
        kind::ADOPTED => Reply::Adopted(body.json()?),
        kind::REFUSED => Reply::Refused(body.json()?),
        kind::BLOCKS => Reply::Data(Rc::new(Payload::Blocks(body.blocks()?))),
        kind::PATCH => Reply::Data(Rc::new(Payload::Patch(body.patch()?))),
        kind::MAP_IS => Reply::Data(Rc::new(Payload::Map(body.map()?))),
        kind::SUMS_ARE => {
            let sums = unpack_region_sums(body.meta);
            Reply::Sums(Box::new(sums.ok_or_else(|| body.wrong("its sums of a region"))?))
        }
        kind::REGIONS_ARE => {
            let regions = body.region_set(PAGE_REGIONS_MAX)?;
            Reply::Regions(RegionPage { regions, next: body.next()? })
        }
        kind::DIGEST => Reply::Digest(header.count),
        kind::CHANGED_ARE => {
            if !body.meta.len().is_multiple_of(40) || body.meta.len() / 40 > CHANGED_REGIONS_MAX {
                return Err(body.wrong("its list of regions"));
            }
            let regions = body.meta.chunks_exact(40).map(|entry| {
                let blocks = Blocks::from_bytes(entry[8..40].try_into().expect("32 bytes"));
                (Region(le_u64(entry)), blocks)
            });
            let regions: Vec<_> = regions.collect();
            if regions.iter().any(|(region, _)| region.0 >= REGIONS_MAX) {
                return Err(body.wrong("its regions"));
            }
            Reply::Changed { regions, next: body.next()? }
        }
        unknown => return Err(WireError::Kind(unknown)),
    })
}
