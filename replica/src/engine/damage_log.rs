//! Damage in the log: at most so many lines a minute, and how many were left out.

use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::replication::{DamageNews, DamagedBlocks};
use crate::types::BLOCK_BYTES;

const LINES_MAX: u64 = 20;
const WINDOW: Duration = Duration::from_secs(60);

/// A disk that rots has more bad blocks than anybody reads lines.
#[derive(Debug, Default)]
pub(super) struct DamageLog {
    /// Of the present window.
    begun: Option<Instant>,
    lines: u64,
}

impl DamageLog {
    pub(super) fn tell(
        &mut self,
        now: Instant,
        volume: &str,
        damaged: &DamagedBlocks,
        news: &DamageNews,
    ) {
        self.tell_left_out(now, volume);
        let Some(range) = damaged.range().filter(|_| self.admits(now)) else { return };
        let (layer, blocks) = (damaged.layer.0, damaged.blocks.count());
        let offset_bytes = range.first.0 * BLOCK_BYTES;
        match news {
            DamageNews::Found { replica } => warn!(volume, %replica, layer, offset_bytes, blocks,
                "a replica can't read what it holds: another one is asked, and it is repaired"),
            DamageNews::Repaired { replica, from } => {
                info!(volume, %replica, %from, layer, offset_bytes, blocks, "blocks are repaired");
            }
            DamageNews::Lost => error!(
                volume,
                layer,
                offset_bytes,
                blocks,
                "no replica can read these blocks; restore them from a backup or write them anew"
            ),
            DamageNews::Overwritten => info!(
                volume,
                layer, offset_bytes, blocks, "blocks that no replica could read were written anew"
            ),
        }
    }

    /// When a window is over.
    pub(super) fn tell_left_out(&mut self, now: Instant, volume: &str) {
        if let Some(left_out) = self.end_window(now) {
            warn!(volume, left_out, "more was damaged or repaired than was logged");
        }
    }

    fn admits(&mut self, now: Instant) -> bool {
        self.begun.get_or_insert(now);
        self.lines += 1;
        self.lines <= LINES_MAX
    }

    /// How many lines it hadn't room for, if there are such.
    fn end_window(&mut self, now: Instant) -> Option<u64> {
        self.begun.filter(|begun| now >= *begun + WINDOW)?;
        let lines = std::mem::take(self).lines;
        lines.checked_sub(LINES_MAX).filter(|left_out| *left_out > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_rots_gets_a_number_of_lines_and_the_rest_is_counted() {
        let (start, mut log) = (Instant::now(), DamageLog::default());
        let admitted = (0..1000).filter(|_| log.admits(start)).count();
        assert_eq!(admitted as u64, LINES_MAX);
        assert_eq!(log.end_window(start + WINDOW / 2), None, "the window isn't over");
        assert_eq!(log.end_window(start + WINDOW), Some(1000 - LINES_MAX));
        assert!(log.admits(start + WINDOW));
        assert_eq!(log.end_window(start + 3 * WINDOW), None, "nothing was left out");
    }
}
