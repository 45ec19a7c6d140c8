//! What a request touches while it is carried out: the engine may never have two on their way to
//! one replica that could overtake each other.

use ankole_replica::chain::index::Blocks;
use ankole_replica::types::Region;

use super::*;

#[derive(Clone, Copy, Debug)]
pub(super) struct Footprint {
    layer: LayerId,
    range: BlockRange,
    exclusive: bool,
}

impl Footprint {
    pub(super) fn of(request: &Request<replication::PayloadRef>, head: LayerId) -> Option<Self> {
        let (layer, range, exclusive) = match *request {
            Request::Write { range, .. } | Request::Zero { range, .. } => (head, range, true),
            Request::Read { range }
            | Request::ReadUnverified { range }
            | Request::Map { range } => (head, range, false),
            Request::Copy { layer, region, .. } => (layer, region.range(), true),
            Request::Sums { layer, region, .. } => (layer, region.range(), false),
            Request::Fetch { layer, region, blocks } => (layer, spanning(region, blocks)?, false),
            _ => return None,
        };
        Some(Self { layer, range, exclusive })
    }

    /// A repair touches the blocks that it brings. In a sealed layer it changes nothing that was
    /// readable before, so a rebuild may look there meanwhile: it finds the block bad, or good.
    pub(super) fn of_repair(request: &Request<Rc<Payload>>, head: LayerId) -> Option<Self> {
        let Request::Repair { layer, region, payload } = request else { return None };
        let Payload::Patch(patch) = &**payload else { return None };
        Some(Self {
            layer: *layer,
            range: spanning(*region, patch.blocks)?,
            exclusive: *layer == head,
        })
    }

    pub(super) fn conflicts_with(self, other: Self) -> bool {
        self.layer == other.layer
            && (self.exclusive || other.exclusive)
            && self.range.overlaps(other.range)
    }
}

/// The blocks and those between them.
fn spanning(region: Region, blocks: Blocks) -> Option<BlockRange> {
    let (first, last) = (blocks.slots().next()?, blocks.slots().last()?);
    let start = region.blocks().start + first as u64;
    Some(BlockRange::new(BlockIndex(start), (last - first + 1) as u64))
}
