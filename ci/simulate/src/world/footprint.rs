//! What a request touches while it is carried out: the engine may never have two on their way to
//! one replica that could overtake each other.

use super::*;

#[derive(Clone, Copy, Debug)]
pub(super) struct Footprint {
    layer: LayerId,
    range: BlockRange,
    exclusive: bool,
}

impl Footprint {
    pub(super) fn of(request: &Request<replication::Payload>, head: LayerId) -> Option<Self> {
        let (layer, range, exclusive) = match *request {
            Request::Write { range, .. } | Request::Zero { range, .. } => (head, range, true),
            Request::Read { range } | Request::Map { range } => (head, range, false),
            Request::Copy { layer, region, .. } => (layer, region.range(), true),
            Request::Sums { layer, region } | Request::Fetch { layer, region, .. } => {
                (layer, region.range(), false)
            }
            _ => return None,
        };
        Some(Self { layer, range, exclusive })
    }

    pub(super) fn conflicts_with(self, other: Self) -> bool {
        self.layer == other.layer
            && (self.exclusive || other.exclusive)
            && self.range.overlaps(other.range)
    }
}
