//! How fast rebuilds go: a limit by configuration, and room for the frontend.
//!
//! ```text
//! idle      up to WINDOW regions on their way
//! in use    one at a time, then a pause of twice the time that it took: a third of what one takes
//! limit     a token bucket: bytes that are moved are paid for before the next region begins
//! ```
//! The pause follows the load, since a region takes longer on a busy machine. It has an upper
//! bound, so that a rebuild always goes on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::slots::{Slot, Slots};
use crate::types::REGION_BYTES;

/// Regions on their way at once: bounds memory, and what foreground I/O may have to wait behind.
const WINDOW: usize = 16;
/// The frontend counts as in use for so long after a request.
const IN_USE_FOR: Duration = Duration::from_millis(20);
const PAUSE_FACTOR: u32 = 2;
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// What the bucket holds, as time: a pause doesn't save up for more than that.
const BURST: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Throttle {
    /// Bytes per second.
    limit: Option<u64>,
    /// Until then all that was moved is paid for.
    paid_until: Instant,
    foreground_at: Option<Instant>,
    /// After a region that was copied while the frontend was in use.
    resume_at: Option<Instant>,
    /// A region would begin now, had the time come.
    refused_until: Option<Instant>,
    turn: usize,
}

impl Throttle {
    pub(super) fn new(now: Instant, limit: Option<u64>) -> Self {
        let limit = limit.map(|limit| limit.max(1));
        Self {
            limit,
            paid_until: now,
            foreground_at: None,
            resume_at: None,
            refused_until: None,
            turn: 0,
        }
    }

    pub(super) fn notice_foreground(&mut self, now: Instant) {
        self.foreground_at = Some(now);
    }

    fn is_in_use(&self, now: Instant) -> bool {
        self.foreground_at.is_some_and(|at| now < at + IN_USE_FOR)
    }

    /// Whether another region may begin while `running` are on their way.
    pub(super) fn admits(&mut self, now: Instant, running: usize) -> bool {
        if self.limit.is_some() {
            if now < self.paid_until {
                return self.refuse(self.paid_until);
            }
            // What wasn't used is saved only for a moment.
            self.paid_until = self.paid_until.max(now.checked_sub(BURST).unwrap_or(now));
        }
        if !self.is_in_use(now) {
            self.resume_at = None;
            return running < WINDOW;
        }
        match self.resume_at {
            _ if running > 0 => false, // its end is an event
            Some(at) if now < at => self.refuse(at),
            _ => true,
        }
    }

    fn refuse(&mut self, until: Instant) -> bool {
        self.refused_until = Some(self.refused_until.map_or(until, |before| before.min(until)));
        false
    }

    pub(super) fn forget_refusal(&mut self) {
        self.refused_until = None;
    }

    /// When [`admits`](Self::admits) says something else though nothing happens.
    pub(super) fn refused_until(&self) -> Option<Instant> {
        self.refused_until
    }

    /// A region begins; until it is known what it takes, all of it is paid for.
    pub(super) fn began(&mut self) {
        self.resume_at = None;
        self.paid_until += self.price(REGION_BYTES);
    }

    /// It was compared, so that what it takes is known.
    pub(super) fn compared(&mut self) {
        let refund = self.price(REGION_BYTES);
        self.paid_until = self.paid_until.checked_sub(refund).unwrap_or(self.paid_until);
    }

    /// What a region takes is known when it has been compared.
    pub(super) fn moves(&mut self, bytes: u64) {
        self.paid_until += self.price(bytes);
    }

    fn price(&self, bytes: u64) -> Duration {
        let Some(limit) = self.limit else { return Duration::ZERO };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(limit);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    pub(super) fn ended(&mut self, now: Instant, took: Duration) {
        if self.is_in_use(now) {
            self.resume_at = Some(now + (took * PAUSE_FACTOR).min(PAUSE_MAX));
        }
    }

    /// Takes turns among `slots`.
    pub(super) fn next_of(&mut self, slots: Slots) -> Option<Slot> {
        self.turn = self.turn.wrapping_add(1);
        slots.iter().nth(self.turn % slots.len().max(1))
    }
}

/// How fast it went lately.
#[derive(Debug)]
pub(super) struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

const SAMPLE_EVERY: Duration = Duration::from_millis(500);
const SAMPLES: usize = 10;

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { samples: VecDeque::from([(now, 0)]) }
    }

    /// `done_bytes` were done altogether by now.
    pub(super) fn note(&mut self, now: Instant, done_bytes: u64) {
        // The newest sample moves along until it is old enough for another one.
        let before = self.samples.len().checked_sub(2).and_then(|at| self.samples.get(at));
        if before.is_some_and(|(at, _)| now < *at + SAMPLE_EVERY) {
            self.samples.pop_back();
        }
        self.samples.push_back((now, done_bytes));
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
    }

    pub(super) fn bytes_per_second(&self) -> u64 {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return 0;
        };
        let elapsed_ms = last.0.saturating_duration_since(first.0).as_millis().max(1) as u64;
        (last.1 - first.1).saturating_mul(1000) / elapsed_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Begins a region whenever it may, each taking `takes`; returns how many in `time`.
    fn regions_in(throttle: &mut Throttle, start: Instant, time: Duration, busy: bool) -> u32 {
        let takes = Duration::from_millis(4);
        let (mut now, mut count) = (start, 0);
        while now < start + time {
            if busy {
                throttle.notice_foreground(now);
            }
            if throttle.admits(now, 0) {
                throttle.began();
                throttle.compared();
                throttle.moves(MIB);
                now += takes;
                if busy {
                    throttle.notice_foreground(now);
                }
                throttle.ended(now, takes);
                count += 1;
            } else {
                now += Duration::from_millis(1);
            }
        }
        count
    }

    #[test]
    fn a_limit_is_kept_over_time_and_a_pause_saves_no_more_than_a_moment() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start, Some(10 * MIB));
        let first = regions_in(&mut throttle, start, Duration::from_secs(2), false);
        assert!((18..=22).contains(&first), "{first} MiB in 2 s at 10 MiB/s");
        let later = start + Duration::from_secs(60);
        let second = regions_in(&mut throttle, later, Duration::from_secs(2), false);
        assert!((18..=22).contains(&second), "{second} MiB in 2 s after a minute's pause");
    }

    #[test]
    fn a_frontend_in_use_gets_two_thirds_and_the_rebuild_never_stops() {
        let start = Instant::now();
        let idle =
            regions_in(&mut Throttle::new(start, None), start, Duration::from_secs(1), false);
        let busy = regions_in(&mut Throttle::new(start, None), start, Duration::from_secs(1), true);
        assert!(busy * 2 <= idle && busy > 0, "{busy} while in use, {idle} alone");
    }

    /// A pause that nothing ends would leave the replica missing for ever.
    #[test]
    fn whatever_holds_it_up_has_an_end() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start, Some(MIB));
        throttle.notice_foreground(start);
        throttle.began();
        throttle.compared();
        throttle.moves(8 * MIB);
        throttle.ended(start, Duration::from_secs(3600));
        let mut now = start;
        while !throttle.admits(now, 0) {
            let until = throttle.refused_until().expect("it says when");
            assert!(now < until && until <= start + Duration::from_secs(9), "{:?}", until - start);
            throttle.forget_refusal();
            now = until;
        }
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let mut done = 0;
        for ms in 1..=20_000u64 {
            done += if ms < 10_000 { 1000 } else { 10 };
            rate.note(start + Duration::from_millis(ms), done);
        }
        let found = rate.bytes_per_second();
        assert!((9_000..11_000).contains(&found), "{found}");
    }
}
