//! How large the volume is, and the few blocks of it that are used.

use ankole_replica::types::VOLUME_BYTES_MAX;

use super::*;

/// Where clients write: around the borders of regions.
pub(super) const HOT: [u64; 8] = [0, 1, 3, 254, 255, 256, 258, 510];
/// What they touch there.
const TOUCHED_NEAR: [u64; 17] =
    [0, 1, 2, 3, 4, 5, 6, 254, 255, 256, 257, 258, 259, 260, 261, 510, 511];
/// The smallest volume: the regions of those, and six more.
const BYTES_MIN: u64 = 4 * VOLUME_UNIT_BYTES;
/// Layers, in a history that begins with many.
const LAYERS_MAX: u32 = 1000;

pub(super) struct Places {
    pub(super) size_bytes: u64,
    /// How many layers there are at first.
    pub(super) layers: u32,
    /// Written now and then, in regions that are clean most of the time. The last one is the
    /// volume's last block.
    pub(super) cold: [u64; 4],
    /// Blocks that may have been written: what the checks look at.
    pub(super) touched: Vec<u64>,
}

impl Places {
    /// Half of all volumes are as small as can be, so that all of them is looked at.
    pub(super) fn random(rng: &mut Rng, story: Option<Story>) -> Self {
        let is_huge = story == Some(Story::VolumeIsHuge);
        let is_small = rng.percent(50) && !is_huge;
        let steps = u64::from((VOLUME_BYTES_MAX / BYTES_MIN).ilog2());
        let power = BYTES_MIN
            << match (is_small, is_huge) {
                (true, _) => 0,
                (_, true) => steps,
                _ => rng.below(steps + 1),
            };
        let more = if is_small { 0 } else { rng.below(power / VOLUME_UNIT_BYTES) };
        // Stories may need a larger one.
        let most =
            if story.is_some() && !is_huge { VOLUME_BYTES_MAX / 2 } else { VOLUME_BYTES_MAX };
        let size_bytes = (power + more * VOLUME_UNIT_BYTES).min(most);
        let blocks = size_bytes / BLOCK_BYTES;
        let cold = if is_small {
            [600, 900, 1300, 1700]
        } else {
            let far =
                |rng: &mut Rng, nth| 600 + (nth * (blocks - 600) + rng.below(blocks - 600)) / 3;
            [far(rng, 0), far(rng, 1), far(rng, 2).min(blocks - 2), blocks - 1]
        };
        let layers =
            if rng.percent(3) { LAYERS_MAX >> rng.below(u64::from(LAYERS_MAX.ilog2())) } else { 1 };
        let touched: BTreeSet<u64> = TOUCHED_NEAR.into_iter().chain(cold).collect();
        let touched = touched.into_iter().collect();
        Self { size_bytes, layers, cold, touched }
    }
}
