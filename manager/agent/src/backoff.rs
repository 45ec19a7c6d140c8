//! How long to leave alone what failed: not at all the first time, then longer and longer. Pure.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);
/// What lived this long was well; its failure is a first one. Short, since every second of it may be
/// one in which a volume's clients wait for an engine that was killed twice.
const WELL: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
    not_before: Option<Instant>,
}

impl Backoff {
    pub fn failed(&mut self, now: Instant, lived: Duration) {
        if lived >= WELL {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause(self.failures));
    }

    /// For what is tried by the clock alone: never at once.
    pub fn failed_now(&mut self) -> Duration {
        self.failed(Instant::now(), Duration::ZERO);
        pause(self.failures.max(2))
    }

    pub fn hold_off(&self, now: Instant) -> Option<Duration> {
        self.not_before.map(|then| then.saturating_duration_since(now)).filter(|d| !d.is_zero())
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }
}

fn pause(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        n => FIRST.saturating_mul(1 << (n - 2).min(10)).min(LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One SIGKILL must not cost the user a pause; a program that can't start must not eat a CPU.
    #[test]
    fn the_first_failure_is_free_and_the_pauses_grow_to_a_bound() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        let pauses = [(); 12].map(|()| {
            backoff.failed(now, Duration::from_secs(1));
            backoff.hold_off(now).unwrap_or_default().as_millis()
        });
        let seen = [0, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000, 30000, 30000];
        assert_eq!(pauses, seen);
        backoff.failed(now, WELL);
        assert_eq!(backoff.hold_off(now), None);
    }
}
