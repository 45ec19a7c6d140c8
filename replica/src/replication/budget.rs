//! How many regions may be marked: as many as settling compares within a bounded time after an
//! unclean stop, at the rate at which this engine settled last.
//!
//! Only what has data takes time, so bytes are counted and a region counts as full.

use std::time::{Duration, Instant};

use crate::types::REGION_BYTES;

/// Before anything was measured: what a hard disk reads in sequence.
const CAUTIOUS_BYTES_PER_SECOND: u64 = 150 << 20;
/// Less than this says nothing about the rate.
const SAMPLE_BYTES: u64 = 256 << 20;

#[derive(Debug)]
pub(super) struct Budget {
    bytes_per_second: u64,
    /// Since when settling has been going on, and what was compared in that time.
    running: Option<(Instant, u64)>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes_per_second: CAUTIOUS_BYTES_PER_SECOND, running: None }
    }
}

impl Budget {
    pub(super) fn settling_begins(&mut self, now: Instant) {
        self.running.get_or_insert((now, 0));
    }

    /// So much data of a region was found to be, or made, the same on all members.
    pub(super) fn compared(&mut self, bytes: u64) {
        if let Some((_, compared)) = &mut self.running {
            *compared += bytes;
        }
    }

    pub(super) fn settling_ends(&mut self, now: Instant) {
        let Some((since, bytes)) = self.running.take() else { return };
        let took = now.saturating_duration_since(since).as_secs_f64();
        if bytes >= SAMPLE_BYTES && took > 0.0 {
            self.bytes_per_second = (bytes as f64 / took) as u64;
        }
    }

    /// Regions that are compared within this time.
    pub(super) fn regions(&self, within: Duration) -> u64 {
        (self.bytes_per_second as f64 * within.as_secs_f64()) as u64 / REGION_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A slow disk would take many minutes for what a fast one does in one.
    #[test]
    fn the_bound_in_seconds_is_kept_at_the_rate_that_was_measured() {
        let start = Instant::now();
        let mut budget = Budget::default();
        assert_eq!(budget.regions(MINUTE), 60 * 150);
        budget.settling_begins(start);
        (0..1000).for_each(|_| budget.compared(REGION_BYTES));
        budget.settling_ends(start + Duration::from_secs(25));
        assert_eq!(budget.regions(MINUTE), 60 * 40);
    }

    /// Regions without data are compared in no time: the next ones may be full.
    #[test]
    fn settling_that_compared_next_to_nothing_says_nothing_about_the_rate() {
        let start = Instant::now();
        let mut budget = Budget::default();
        budget.settling_begins(start);
        (0..1000).for_each(|_| budget.compared(4096));
        budget.settling_ends(start + Duration::from_millis(3));
        assert_eq!(budget.regions(MINUTE), 60 * 150);
    }
}
