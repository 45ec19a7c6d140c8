//! How fast each replica answers, and what follows from that: whom to read from, when to ask a
//! second one, and when a slow member is worse than none. Pure arithmetic.
//!
//! Latencies are smoothed as TCP does it (RFC 6298: a mean, and a mean deviation). Writes and reads
//! are kept apart: all members get the same writes, so these can be compared; reads go to whoever is
//! fast, so they say little about the others.

use std::time::{Duration, Instant};

use super::slots::{Slot, Slots};

/// Fewer answers than this say nothing.
const SAMPLES_MIN: u32 = 16;
/// A member is too slow when it takes this many times as long as every other.
const TIMES_SLOWER: u32 = 20;
/// Whoever answers a write within this time is fast enough, whatever the others do.
const FAST_ENOUGH: Duration = Duration::from_millis(50);
/// No read is asked for twice before this time.
const HEDGE_AFTER_MIN: Duration = Duration::from_millis(5);
/// The same while little is known.
const HEDGE_AFTER_UNKNOWN: Duration = Duration::from_millis(100);
const HEDGE_AFTER_MAX: Duration = Duration::from_secs(1);

/// A smoothed latency.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latency {
    samples: u32,
    mean: Duration,
    deviation: Duration,
}

impl Latency {
    pub(super) fn add(&mut self, sample: Duration) {
        if self.samples == 0 {
            (self.mean, self.deviation) = (sample, sample / 2);
        } else {
            let off = sample.abs_diff(self.mean);
            self.deviation = (self.deviation * 3 + off) / 4;
            self.mean = (self.mean * 7 + sample) / 8;
        }
        self.samples = self.samples.saturating_add(1);
    }

    fn known(&self) -> Option<Duration> {
        (self.samples >= SAMPLES_MIN).then_some(self.mean)
    }
}

/// What is known of one replica.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latencies {
    pub(super) reads: Latency,
    pub(super) writes: Latency,
    /// Since when it has been too slow without a break.
    slow_since: Option<Instant>,
}

impl Latencies {
    /// After this time a second member is asked for the same data: few reads take so long.
    pub(super) fn hedge_after(&self) -> Duration {
        match self.reads.known() {
            Some(mean) => {
                let most = (mean + self.reads.deviation * 4).max(mean * 2);
                most.clamp(HEDGE_AFTER_MIN, HEDGE_AFTER_MAX)
            }
            None => HEDGE_AFTER_UNKNOWN,
        }
    }

    /// How long a read takes there, or at least as long as one has been owed.
    pub(super) fn read_latency(&self, owed: Option<Duration>) -> Option<Duration> {
        Some(self.reads.known()?.max(owed.unwrap_or_default()))
    }

    /// A new connection: what was measured on the old one says little.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// A member as [`too_slow`] looks at it.
pub(super) struct Runner<'a> {
    pub(super) slot: Slot,
    pub(super) latencies: &'a mut Latencies,
    /// How long the oldest write or flush has waited for its confirmation.
    pub(super) waiting: Option<Duration>,
}

/// Who has been more than [`TIMES_SLOWER`] slower than every other member for `patience`.
pub(super) fn too_slow(
    now: Instant,
    runners: &mut [Runner<'_>],
    patience: Duration,
) -> Option<Slot> {
    let mut found = None;
    for at in 0..runners.len() {
        let others = || (0..runners.len()).filter(move |other| *other != at);
        // All others must be known, and the slowest of them counts.
        let slowest = others()
            .map(|other| runners[other].latencies.writes.known())
            .collect::<Option<Vec<_>>>()
            .and_then(|others| others.into_iter().max());
        let mine = runners[at].latencies.writes.known().max(runners[at].waiting);
        let is_slow = match (mine, slowest) {
            (Some(mine), Some(slowest)) => mine > (slowest * TIMES_SLOWER).max(FAST_ENOUGH),
            _ => false,
        };
        let runner = &mut runners[at];
        let since = if is_slow { Some(runner.latencies.slow_since.unwrap_or(now)) } else { None };
        runner.latencies.slow_since = since;
        if since.is_some_and(|since| now >= since + patience) {
            found = Some(runner.slot);
        }
    }
    found
}

/// From whom to read: who is on this machine, else the fastest, in turns when that isn't clear.
/// `turn` counts reads; `readers` isn't empty.
pub(super) fn choose_reader(
    readers: Slots,
    is_local: impl Fn(Slot) -> bool,
    mean: impl Fn(Slot) -> Option<Duration>,
    turn: usize,
) -> Slot {
    let local: Slots = readers.iter().filter(|slot| is_local(*slot)).collect();
    let fastest = readers.iter().filter_map(&mean).min();
    // Now and then anybody: else one that was slow once would never be measured again.
    if turn % 64 == 63 {
        return nth_of(readers, turn / 64);
    }
    // A local disk that takes far longer than a remote one is in trouble.
    let sound = |slot: &Slot| match (mean(*slot), fastest) {
        (Some(mine), Some(fastest)) => mine <= fastest * 4,
        _ => true,
    };
    let local: Slots = local.iter().filter(sound).collect();
    if !local.is_empty() {
        return nth_of(local, turn);
    }
    let alike = |slot: &Slot| match (mean(*slot), fastest) {
        (Some(mine), Some(fastest)) => mine <= fastest * 3 / 2,
        _ => true,
    };
    nth_of(readers.iter().filter(alike).collect(), turn)
}

fn nth_of(readers: Slots, nth: usize) -> Slot {
    readers.iter().nth(nth % readers.len()).expect("taken modulo the length")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const PATIENCE: Duration = Duration::from_secs(3);

    fn measured(write: Duration, read: Duration, samples: u32) -> Latencies {
        let mut latencies = Latencies::default();
        for _ in 0..samples {
            latencies.writes.add(write);
            latencies.reads.add(read);
        }
        latencies
    }

    /// Looks once in 100 ms for `ms`; who is found first, and when.
    fn watch(all: &mut [Latencies], waiting: &[Option<Duration>], ms: u32) -> Option<(Slot, u32)> {
        let start = Instant::now();
        (0..ms).step_by(100).find_map(|at| {
            let mut runners: Vec<_> = all
                .iter_mut()
                .zip(waiting)
                .zip(0..)
                .map(|((latencies, waiting), slot)| Runner {
                    slot: Slot(slot),
                    latencies,
                    waiting: *waiting,
                })
                .collect();
            let found = too_slow(start + MS * at, &mut runners, PATIENCE);
            found.map(|slot| (slot, at))
        })
    }

    #[test]
    fn a_member_that_is_twenty_times_slower_for_three_seconds_is_found_then() {
        let mut all =
            [measured(2 * MS, MS, 50), measured(90 * MS, MS, 50), measured(3 * MS, MS, 50)];
        assert_eq!(watch(&mut all, &[None; 3], 10_000), Some((Slot(1), 3000)));
    }

    /// One whose disk hangs gives no sample: what it owes speaks for it.
    #[test]
    fn a_member_that_owes_an_answer_for_long_counts_as_that_slow() {
        let mut all = [measured(MS, MS, 50), measured(MS, MS, 50)];
        let owed = [None, Some(400 * MS)];
        assert_eq!(watch(&mut all, &owed, 10_000), Some((Slot(1), 3000)));
    }

    #[test]
    fn all_slow_together_or_little_measured_is_nobodys_fault() {
        let mut slow = [measured(900 * MS, MS, 50), measured(400 * MS, MS, 50)];
        assert_eq!(watch(&mut slow, &[None; 2], 20_000), None);
        let mut unknown = [measured(MS, MS, 3), measured(900 * MS, MS, 50)];
        assert_eq!(watch(&mut unknown, &[None; 2], 20_000), None);
        let mut alone = [measured(900 * MS, MS, 50)];
        assert_eq!(watch(&mut alone, &[Some(PATIENCE)], 20_000), None);
    }

    /// Against a disk in memory every real one is slow.
    #[test]
    fn who_is_fast_enough_stays_however_fast_the_others_are() {
        let mut all = [measured(MS / 10, MS, 50), measured(40 * MS, MS, 50)];
        assert_eq!(watch(&mut all, &[None; 2], 20_000), None);
    }

    #[test]
    fn a_break_starts_the_patience_anew() {
        let start = Instant::now();
        let mut all = [measured(MS, MS, 50), measured(MS, MS, 50)];
        let look = |at: u32, owed: Option<Duration>, all: &mut [Latencies; 2]| {
            let [a, b] = all;
            let a = Runner { slot: Slot(0), latencies: a, waiting: None };
            let b = Runner { slot: Slot(1), latencies: b, waiting: owed };
            too_slow(start + MS * at, &mut [a, b], PATIENCE)
        };
        assert_eq!(look(0, Some(100 * MS), &mut all), None);
        assert_eq!(look(2000, None, &mut all), None);
        assert_eq!(look(3500, Some(100 * MS), &mut all), None);
        assert_eq!(look(6500, Some(100 * MS), &mut all), Some(Slot(1)));
    }

    fn shares(all: &[Latencies], local: Option<u8>) -> Vec<usize> {
        let readers: Slots = (0..all.len() as u8).map(Slot).collect();
        let mut counts = vec![0; all.len()];
        for turn in 0..6400 {
            let is_local = |slot: Slot| Some(slot.0) == local;
            let chosen = choose_reader(
                readers,
                is_local,
                |slot| all[usize::from(slot.0)].read_latency(None),
                turn,
            );
            counts[usize::from(chosen.0)] += 1;
        }
        counts
    }

    #[test]
    fn reads_go_to_the_local_copy_else_to_the_fast_ones_in_turns() {
        let alike = [measured(MS, MS, 50), measured(MS, MS * 5 / 4, 50), measured(MS, 4 * MS, 50)];
        let counts = shares(&alike, None);
        assert!(counts[0] > 3000 && counts[1] > 3000, "{counts:?}");
        assert!((1..100).contains(&counts[2]), "the slow one is measured now and then: {counts:?}");
        let counts = shares(&alike, Some(1));
        assert!(counts[1] > 6300, "{counts:?}");
        let counts = shares(&[measured(MS, 10 * MS, 50), measured(MS, MS, 50)], Some(0));
        assert!(counts[1] > 6300, "a local disk in trouble is left alone: {counts:?}");
    }

    #[test]
    fn a_second_copy_is_asked_only_when_a_read_takes_longer_than_almost_all() {
        assert_eq!(measured(MS, MS, 3).hedge_after(), HEDGE_AFTER_UNKNOWN);
        let steady = measured(MS, 10 * MS, 100).hedge_after();
        assert!(steady > 10 * MS && steady < 30 * MS, "{steady:?}");
        assert_eq!(measured(MS, MS / 10, 100).hedge_after(), HEDGE_AFTER_MIN);
    }
}
