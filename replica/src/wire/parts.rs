//! What messages are made of: bodies with their checksums, blocks, sums, patches, sets.

use super::*;

/// A frame whose meta part has its checksum.
pub(super) struct Body<'a> {
    pub(super) header: &'a Header,
    pub(super) meta: &'a [u8],
    pub(super) data: Buffer,
}

impl<'a> Body<'a> {
    pub(super) fn check(
        header: &'a Header,
        meta: &'a [u8],
        data: Buffer,
    ) -> Result<Self, WireError> {
        let fits =
            meta.len() == header.meta_bytes as usize && data.len() == header.data_bytes as usize;
        if !fits || crc32c::crc32c(meta) != header.meta_crc {
            return Err(WireError::BodyChecksum { kind: header.kind });
        }
        Ok(Self { header, meta, data })
    }

    pub(super) fn wrong(&self, problem: &str) -> WireError {
        malformed(self.header.kind, problem)
    }

    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, WireError> {
        serde_json::from_slice(self.meta).map_err(|error| self.wrong(&error.to_string()))
    }

    pub(super) fn forced(&self) -> bool {
        self.header.flags & FORCED != 0
    }

    pub(super) fn range(&self) -> Result<BlockRange, WireError> {
        let (first, count) = (self.header.position, self.header.subject);
        match first.checked_add(count) {
            Some(end) if count > 0 && end <= BLOCKS_MAX => {
                Ok(BlockRange::new(BlockIndex(first), count))
            }
            _ => Err(self.wrong("its range is empty or past the largest volume")),
        }
    }

    /// A range whose data fits into one answer.
    pub(super) fn readable_range(&self) -> Result<BlockRange, WireError> {
        let range = self.range()?;
        if range.length_bytes() > DATA_BYTES_MAX.into() {
            return Err(WireError::TooLong { kind: self.header.kind });
        }
        Ok(range)
    }

    pub(super) fn layer(&self) -> Result<LayerId, WireError> {
        self.header.subject.try_into().map(LayerId).map_err(|_| self.wrong("its layer"))
    }

    pub(super) fn layer_in_meta(&self) -> Result<LayerId, WireError> {
        let bytes = self.meta.try_into().map_err(|_| self.wrong("its layer"))?;
        Ok(LayerId(u32::from_le_bytes(bytes)))
    }

    pub(super) fn region(&self) -> Result<Region, WireError> {
        let region = Region(self.header.position);
        if region.0 < REGIONS_MAX {
            Ok(region)
        } else {
            Err(self.wrong("its region is past the largest volume"))
        }
    }

    pub(super) fn region_set(&self, at_most: usize) -> Result<RegionSet, WireError> {
        let regions = unpack_regions(self.meta, at_most);
        regions.ok_or_else(|| self.wrong("its set of regions"))
    }

    /// Where a list goes on.
    pub(super) fn next(&self) -> Result<Option<Region>, WireError> {
        if self.header.position == NO_MORE { Ok(None) } else { self.region().map(Some) }
    }

    pub(super) fn regions(&self) -> Result<Vec<Region>, WireError> {
        if !self.meta.len().is_multiple_of(8) || self.meta.len() / 8 > CLEAR_REGIONS_MAX {
            return Err(self.wrong("its list of regions"));
        }
        let regions = self.meta.chunks_exact(8).map(|entry| Region(le_u64(entry)));
        let regions: Vec<Region> = regions.collect();
        let possible = |region: &Region| region.0 < REGIONS_MAX;
        if regions.iter().all(possible) { Ok(regions) } else { Err(self.wrong("its regions")) }
    }

    pub(super) fn blocks(self) -> Result<BlockData, WireError> {
        if !self.meta.len().is_multiple_of(4) {
            return Err(self.wrong("its sums"));
        }
        let kind = self.header.kind;
        let sums = self.meta.chunks_exact(4).map(le_u32).collect();
        let blocks = BlockData { sums, data: Rc::new(self.data) };
        if blocks.is_sound() { Ok(blocks) } else { Err(WireError::BodyChecksum { kind }) }
    }

    pub(super) fn map(self) -> Result<Vec<Run>, WireError> {
        if !self.meta.len().is_multiple_of(8) {
            return Err(self.wrong("its map"));
        }
        let runs = self.meta.chunks_exact(8).map(|entry| {
            let packed = le_u64(entry);
            let allocation = if packed & 1 == 1 { Allocation::Zero } else { Allocation::Data };
            Run { blocks: packed >> 1, allocation }
        });
        let runs: Vec<Run> = runs.collect();
        let possible = |run: &Run| (1..=BLOCKS_MAX).contains(&run.blocks);
        if runs.iter().all(possible) { Ok(runs) } else { Err(self.wrong("its map")) }
    }

    pub(super) fn patch(self) -> Result<Patch, WireError> {
        let kind = self.header.kind;
        let Some((fixed, sums)) = self.meta.split_at_checked(36) else {
            return Err(self.wrong("its patch"));
        };
        let sums = unpack_sums(sums).ok_or_else(|| self.wrong("its sums"))?;
        let patch = Patch {
            blocks: Blocks::from_bytes(fixed[..32].try_into().expect("32 bytes")),
            digest: le_u32(&fixed[32..]),
            sums,
            data: Rc::new(self.data),
        };
        if patch.is_sound() { Ok(patch) } else { Err(WireError::BodyChecksum { kind }) }
    }
}

impl Payload {
    pub(super) fn data(&self) -> &[u8] {
        match self {
            Self::Blocks(blocks) => &blocks.data,
            Self::Patch(patch) => &patch.data,
            Self::Map(_) => &[],
        }
    }

    pub(super) fn meta(&self) -> Vec<u8> {
        match self {
            Self::Blocks(blocks) => blocks.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect(),
            Self::Patch(patch) => {
                let mut meta = patch.blocks.to_bytes().to_vec();
                meta.extend_from_slice(&patch.digest.to_le_bytes());
                meta.extend_from_slice(&pack_sums(&patch.sums));
                meta
            }
            Self::Map(runs) => runs.iter().flat_map(pack_run).collect(),
        }
    }
}

/// Eight bytes: the number of blocks, and in the lowest bit whether they are zero.
pub(super) fn pack_run(run: &Run) -> [u8; 8] {
    (run.blocks << 1 | u64::from(run.allocation == Allocation::Zero)).to_le_bytes()
}

pub(super) const ABSENT: u8 = 0;
pub(super) const ZERO: u8 = 1;
pub(super) const DATA: u8 = 2;
pub(super) const UNVERIFIED: u8 = 3;

/// Five bytes for each block: its kind and its checksum.
pub(super) fn pack_sums(sums: &[BlockSum]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(sums.len() * 5);
    for sum in sums {
        let (kind, sum) = match *sum {
            BlockSum::Absent => (ABSENT, 0),
            BlockSum::Zero => (ZERO, 0),
            BlockSum::Data { sum, verified: true } => (DATA, sum),
            BlockSum::Data { sum, verified: false } => (UNVERIFIED, sum),
        };
        bytes.push(kind);
        bytes.extend_from_slice(&u32::to_le_bytes(sum));
    }
    bytes
}

pub(super) fn unpack_sums(bytes: &[u8]) -> Option<Vec<BlockSum>> {
    if !bytes.len().is_multiple_of(5) {
        return None;
    }
    let sums = bytes.chunks_exact(5).map(|entry| {
        let sum = le_u32(&entry[1..]);
        Some(match entry[0] {
            ABSENT => BlockSum::Absent,
            ZERO => BlockSum::Zero,
            DATA => BlockSum::Data { sum, verified: true },
            UNVERIFIED => BlockSum::Data { sum, verified: false },
            _ => return None,
        })
    });
    sums.collect()
}

/// The sums of all blocks; then, if contents were asked for, which blocks can't be read, and the
/// hashes of those that have data.
pub(super) fn pack_region_sums(sums: &RegionSums) -> Vec<u8> {
    let mut bytes = pack_sums(&sums.blocks);
    if let Some(contents) = &sums.contents {
        bytes.extend_from_slice(&contents.unreadable.to_bytes());
        let has_data = |(sum, _): &(&BlockSum, &u128)| matches!(sum, BlockSum::Data { .. });
        for (_, hash) in sums.blocks.iter().zip(&contents.hashes).filter(has_data) {
            bytes.extend_from_slice(&hash.to_le_bytes());
        }
    }
    bytes
}

pub(super) fn unpack_region_sums(bytes: &[u8]) -> Option<RegionSums> {
    let (blocks, rest) = bytes.split_at_checked(BLOCKS_PER_REGION as usize * 5)?;
    let blocks = unpack_sums(blocks)?;
    if rest.is_empty() {
        return Some(RegionSums { blocks, contents: None });
    }
    let (unreadable, rest) = rest.split_first_chunk::<32>()?;
    let (hashes, []) = rest.as_chunks() else { return None };
    let mut hashes = hashes.iter().map(|hash| u128::from_le_bytes(*hash));
    let hashes_of_all: Option<Vec<u128>> = blocks
        .iter()
        .map(|sum| if matches!(sum, BlockSum::Data { .. }) { hashes.next() } else { Some(0) })
        .collect();
    let contents = Contents { hashes: hashes_of_all?, unreadable: Blocks::from_bytes(unreadable) };
    hashes.next().is_none().then_some(RegionSums { blocks, contents: Some(contents) })
}

/// Of one run of neighbouring regions: the first, and how many there are.
pub(super) const RUN_BYTES: usize = 8;

pub(super) fn pack_regions(regions: &RegionSet) -> Vec<u8> {
    let mut bytes = Vec::new();
    for run in regions.runs() {
        bytes.extend_from_slice(&(run.start as u32).to_le_bytes());
        bytes.extend_from_slice(&((run.end - run.start) as u32).to_le_bytes());
    }
    bytes
}

/// Runs ascend and have gaps between them, as a set shows them.
pub(super) fn unpack_regions(bytes: &[u8], at_most: usize) -> Option<RegionSet> {
    let (runs, []) = bytes.as_chunks::<RUN_BYTES>() else { return None };
    let (mut regions, mut least, mut room) = (RegionSet::new(), 0, at_most as u64);
    for run in runs {
        let (first, count) = (u64::from(le_u32(run)), u64::from(le_u32(&run[4..])));
        if first < least || count == 0 || first + count > REGIONS_MAX {
            return None;
        }
        room = room.checked_sub(count)?;
        regions.insert_run(first..first + count);
        least = first + count + 1;
    }
    regions.pack();
    Some(regions)
}

pub(super) fn to_json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("messages have no maps with keys that aren't text")
}

pub(super) fn malformed(kind: u8, problem: &str) -> WireError {
    WireError::Malformed { kind, problem: problem.to_owned() }
}

/// The number in the first four bytes, which are there.
pub(super) fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().expect("the caller has four"))
}

/// The number in the first eight bytes, which are there.
pub(super) fn le_u64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("the caller has eight"))
}
