//! What an engine and a replica say to each other, apart from how it is framed.
//!
//! The same messages pass through a socket (`wire`) and, for a replica inside the engine's process,
//! through memory. `P` stands for a message's bulk data: the pure core knows only its number, the
//! shells hold the bytes.

use serde::{Deserialize, Serialize};

use crate::chain::index::{BlockSum, Blocks};
use crate::chain::{ChainInfo, ChainOp};
use crate::record::{InstanceId, Member};
use crate::regions::{RegionPage, RegionSet};
use crate::types::{
    BLOCKS_PER_REGION, BlockRange, Epoch, Fence, Generation, Incarnation, LayerId, Region,
    ReplicaId,
};

/// From the engine (or a reader) to a replica. A list that may grow with the volume is asked for, and
/// told, in pages: from a region on, as far as one message or one turn of work goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Request<P> {
    Hello(Box<Hello>),
    /// The record has a new generation: make it and the set durable, stamp marked regions with it.
    Advance(Box<Advance>),
    Write {
        range: BlockRange,
        forced: bool,
        payload: P,
    },
    Zero {
        range: BlockRange,
        forced: bool,
    },
    /// The volume as it is now.
    Read {
        range: BlockRange,
    },
    /// The same, where nobody has a block whose checksum was compared: what there is will do.
    ReadUnverified {
        range: BlockRange,
    },
    /// Which blocks of the volume are zero.
    Map {
        range: BlockRange,
    },
    /// The volume as it was at a sealed layer.
    ReadSnapshot {
        layer: LayerId,
        range: BlockRange,
    },
    Flush,
    /// What one layer itself holds of a region; with `contents` its data is read and hashed.
    Sums {
        layer: LayerId,
        region: Region,
        contents: bool,
    },
    /// Regions of which a layer holds anything, from one on.
    Occupied {
        layer: LayerId,
        from: Region,
    },
    /// Some blocks as one layer itself holds them.
    Fetch {
        layer: LayerId,
        region: Region,
        blocks: Blocks,
    },
    /// Makes blocks of one layer what the payload says.
    Copy {
        layer: LayerId,
        region: Region,
        payload: P,
    },
    /// All members have the same checksums for the region's blocks: trust them.
    Verified {
        layer: LayerId,
        region: Region,
    },
    /// Puts a peer's blocks in place of bad ones. Answered when they were read back.
    Repair {
        layer: LayerId,
        region: Region,
        payload: P,
    },
    /// Every write in these regions is on all members, synced, and none runs: end their marks.
    Clear {
        regions: Vec<Region>,
    },
    /// Which regions are marked, from one on.
    Marked {
        from: Region,
    },
    /// Takes the room that the change will need, durably, and changes nothing else: so that what is
    /// begun on one can be done on all. Again is ok; another one takes its place.
    Prepare(Box<ChainOp>),
    /// What was prepared won't be done: gives its room back.
    Abandon,
    Chain(Box<ChainOp>),
    DescribeChain,
    /// Blocks present or zero in the layers after one snapshot (or from the oldest layer on) up to
    /// another, beginning at a region.
    Changed {
        after: Option<LayerId>,
        upto: LayerId,
        from: Region,
    },
    /// Join a removed layer to its child; answered when done.
    Join {
        layer: LayerId,
    },
    /// To one that is rebuilt: take these layers. What it has of them it keeps, the others are
    /// empty and filled by `Copy`; layers that aren't named go.
    AdoptChain(Box<ChainInfo>),
    /// Regions written in a generation after this one, marked or not; without it, ever. From a
    /// region on.
    Stamps {
        after: Option<Generation>,
        from: Region,
    },
    /// To one that is rebuilt: mark these regions, at most [`MARK_REGIONS_MAX`], with the session's
    /// generation.
    Mark {
        regions: RegionSet,
    },
    /// Sync everything and become fit to be added, as one that has begun this epoch.
    Ready {
        generation: Generation,
        begun: u64,
    },
    /// Make these durable, where they are higher (rule 10b).
    Epoch(Epoch),
    Ping,
    /// Everything is flushed and equal everywhere: clear all marks.
    Bye,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    pub volume: String,
    pub replica: ReplicaId,
    pub role: Role,
    /// Absent for a reader, which fences nobody.
    pub claim: Option<Claim>,
}

/// An engine's claim to be the one that writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    pub fence: Fence,
    pub instance: InstanceId,
    /// Of the directory that the record means; absent for a replica that isn't in the record.
    pub incarnation: Option<Incarnation>,
    /// The engine's process id: with it, a replica on the same machine learns of its death from the
    /// kernel and needs no lease to run out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// In the record's in-sync set.
    Member,
    /// To be rebuilt.
    WriteOnly,
    /// Reads sealed layers, which nobody changes: a backup.
    Reader,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Advance {
    pub generation: Generation,
    pub in_sync: Vec<Member>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub departed: Vec<Departed>,
}

/// A replica that was removed from the set. If it is still what it was, it has begun this epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departed {
    pub member: Member,
    pub begun: u64,
}

/// From a replica.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply<P> {
    Done,
    Welcome(Box<Welcome>),
    /// To `Read` and `ReadSnapshot`: blocks. To `Map`: a map. To `Fetch`: a patch, of
    /// which the core gets the digest as `Digest`.
    Data(P),
    Sums(Box<RegionSums>),
    /// To `Occupied`, `Marked` and `Stamps`.
    Regions(RegionPage),
    /// To `Copy`: over what the layer now holds of the region, see [`RegionSums::digest`].
    Digest(u32),
    Chain(Box<ChainInfo>),
    Adopted(Box<Adopted>),
    /// `next` is where to ask on, if there may be more.
    Changed {
        regions: Vec<(Region, Blocks)>,
        next: Option<Region>,
    },
    Refused(Refusal),
}

/// The state in which a replica was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    pub incarnation: Incarnation,
    pub size_bytes: u64,
    /// Can't have lost a write that it answered.
    pub continuous: bool,
    pub synced_generation: Option<Generation>,
    /// The highest fence before this session's.
    #[serde(default)]
    pub seen: Option<Fence>,
    #[serde(default)]
    pub epoch: Epoch,
    #[serde(default)]
    pub departed: Vec<Departed>,
    /// How many regions are marked; which, `Marked` tells.
    pub marked_regions: u64,
    /// At how many of them its process hasn't looked since it began: sums may be made from what the
    /// disk has there (rule 20).
    #[serde(default)]
    pub unrecovered_regions: u64,
    pub chain: ChainInfo,
    /// How long the read lease lasts from here on, in milliseconds; every answer renews it.
    pub lease_ms: u32,
}

/// Where the layers of a replica that adopted a chain may differ from those of the members. One
/// that isn't named is equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Adopted {
    /// Only in regions that were written since the replica was last in sync.
    pub in_the_set: Vec<LayerId>,
    /// In any region.
    pub anywhere: Vec<LayerId>,
}

/// Why a replica didn't do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "refusal")]
pub enum Refusal {
    #[error("it has seen {}/{}, which is newer", .seen.generation, .seen.session.0)]
    StaleGeneration {
        seen: Fence,
        /// When it was last told that it is in sync, and with whom: if no newer engine was granted
        /// the volume, the record was rolled back, and this tells to what (rule 8).
        synced_generation: Option<Generation>,
        synced_set: Vec<Member>,
    },
    /// Another engine may still read: ask again after this time, with a newer session.
    #[error("another engine may still read there for {ms} ms")]
    LeaseBusy { ms: u32 },
    #[error("it is {found}, not {expected}")]
    WrongIdentity { found: String, expected: String },
    #[error("its disk failed: {message}")]
    Failed { message: String },
    #[error("its disk is full")]
    NoSpace,
    #[error("it can't read {message}")]
    BadBlocks {
        message: String,
        /// Which they are; not all, if they are too many.
        #[serde(default)]
        regions: Vec<BadRegion>,
    },
    #[error("the checksum of some of its blocks was never compared")]
    Unverified,
    #[error("its disk answered: {message}")]
    Io { message: String },
    #[error("it refused the request: {message}")]
    Invalid { message: String },
}

/// Blocks of one region that a replica can't give, in the layer that holds them there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BadRegion {
    pub layer: LayerId,
    pub region: Region,
    pub blocks: Blocks,
    /// The index page is damaged: what the layer has of the region isn't known.
    pub index: bool,
}

/// Regions that a refusal names at most.
pub const BAD_REGIONS_MAX: usize = 256;
/// Regions of one `Mark`: all of them are durable when it is answered.
pub const MARK_REGIONS_MAX: usize = 16 << 10;

/// What one layer itself holds of one region, to be compared with what another replica holds.
///
/// Equal checksums of 32 bits don't mean equal blocks when millions are compared, so what is to be
/// found equal is read, and longer hashes of it are compared, see [`checksum`](crate::checksum).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionSums {
    /// What the index says of each block of the region.
    pub blocks: Vec<BlockSum>,
    pub contents: Option<Contents>,
}

/// What the data of a region's blocks is, if that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// XXH3-128 of each block that has data; 0 for others.
    pub hashes: Vec<u128>,
    /// Those that can't be read, or don't have their checksum.
    pub unreadable: Blocks,
}

impl RegionSums {
    /// Nothing is there.
    pub fn absent() -> Self {
        let blocks = vec![BlockSum::Absent; BLOCKS_PER_REGION as usize];
        Self { blocks, contents: None }
    }

    /// CRC32C over the kind and checksum of each block: shows that what was copied was recorded.
    pub fn digest(&self) -> u32 {
        self.blocks.iter().fold(0, |crc, block| match *block {
            BlockSum::Absent => crc32c::crc32c_append(crc, &[0]),
            BlockSum::Zero => crc32c::crc32c_append(crc, &[1]),
            BlockSum::Data { sum, .. } => {
                let [a, b, c, d] = sum.to_le_bytes();
                crc32c::crc32c_append(crc, &[2, a, b, c, d])
            }
        })
    }

    /// Whether two copies of a block are known to be alike; how sure each is of its checksum
    /// doesn't matter.
    pub fn is_like(&self, block: usize, other: &Self) -> bool {
        if !self.blocks[block].is_like(other.blocks[block]) {
            return false;
        }
        let is_data = matches!(self.blocks[block], BlockSum::Data { .. });
        !is_data || self.hash(block).is_some_and(|hash| other.hash(block) == Some(hash))
    }

    fn hash(&self, block: usize) -> Option<u128> {
        let contents = self.contents.as_ref()?;
        (!contents.unreadable.has(block)).then(|| contents.hashes[block])
    }

    /// Data blocks that can't be read there.
    pub fn unreadable(&self) -> Blocks {
        self.contents.as_ref().map_or(Blocks::NONE, |contents| contents.unreadable)
    }
}

impl BlockSum {
    /// Whether two copies of the block have the same checksum, which equal blocks have.
    pub fn is_like(self, other: Self) -> bool {
        match (self, other) {
            (Self::Data { sum: a, .. }, Self::Data { sum: b, .. }) => a == b,
            (a, b) => a == b,
        }
    }

    pub fn is_unverified(self) -> bool {
        matches!(self, Self::Data { verified: false, .. })
    }
}

impl ChainInfo {
    /// Of a volume that hasn't been opened.
    pub fn empty() -> Self {
        Self { layers: Vec::new(), head: LayerId(0), last_op: crate::types::ChainOpId(0) }
    }

    pub fn layer(&self, id: LayerId) -> Option<&crate::chain::LayerInfo> {
        self.layers.iter().find(|layer| layer.id == id)
    }

    /// The volume's size, which is the head's; zero before it was opened.
    pub fn size_bytes(&self) -> u64 {
        self.layer(self.head).map_or(0, |head| head.size_bytes)
    }
}

impl<P> Request<P> {
    /// The same request with another kind of bulk data; `None` if `map` has none.
    pub fn try_map_payload<Q>(self, map: impl FnOnce(P) -> Option<Q>) -> Option<Request<Q>> {
        Some(match self {
            Self::Write { range, forced, payload } => {
                Request::Write { range, forced, payload: map(payload)? }
            }
            Self::Copy { layer, region, payload } => {
                Request::Copy { layer, region, payload: map(payload)? }
            }
            Self::Repair { layer, region, payload } => {
                Request::Repair { layer, region, payload: map(payload)? }
            }
            Self::ReadUnverified { range } => Request::ReadUnverified { range },
            Self::Clear { regions } => Request::Clear { regions },
            Self::Marked { from } => Request::Marked { from },
            Self::Hello(hello) => Request::Hello(hello),
            Self::Advance(advance) => Request::Advance(advance),
            Self::Zero { range, forced } => Request::Zero { range, forced },
            Self::Read { range } => Request::Read { range },
            Self::Map { range } => Request::Map { range },
            Self::ReadSnapshot { layer, range } => Request::ReadSnapshot { layer, range },
            Self::Flush => Request::Flush,
            Self::Sums { layer, region, contents } => Request::Sums { layer, region, contents },
            Self::Occupied { layer, from } => Request::Occupied { layer, from },
            Self::Fetch { layer, region, blocks } => Request::Fetch { layer, region, blocks },
            Self::Verified { layer, region } => Request::Verified { layer, region },
            Self::Prepare(op) => Request::Prepare(op),
            Self::Abandon => Request::Abandon,
            Self::Chain(op) => Request::Chain(op),
            Self::DescribeChain => Request::DescribeChain,
            Self::Changed { after, upto, from } => Request::Changed { after, upto, from },
            Self::Join { layer } => Request::Join { layer },
            Self::AdoptChain(chain) => Request::AdoptChain(chain),
            Self::Stamps { after, from } => Request::Stamps { after, from },
            Self::Mark { regions } => Request::Mark { regions },
            Self::Ready { generation, begun } => Request::Ready { generation, begun },
            Self::Epoch(epoch) => Request::Epoch(epoch),
            Self::Ping => Request::Ping,
            Self::Bye => Request::Bye,
        })
    }
}

impl<P> Reply<P> {
    /// The reply as the core sees it; `None` if it carries data.
    pub fn without_data(self) -> Option<Reply<()>> {
        Some(match self {
            Self::Data(_) => return None,
            Self::Done => Reply::Done,
            Self::Welcome(welcome) => Reply::Welcome(welcome),
            Self::Sums(sums) => Reply::Sums(sums),
            Self::Regions(page) => Reply::Regions(page),
            Self::Digest(digest) => Reply::Digest(digest),
            Self::Chain(chain) => Reply::Chain(chain),
            Self::Adopted(adopted) => Reply::Adopted(adopted),
            Self::Changed { regions, next } => Reply::Changed { regions, next },
            Self::Refused(refusal) => Reply::Refused(refusal),
        })
    }
}
