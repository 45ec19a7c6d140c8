//! How often each operation was done, and how long it took. Counted without a lock.

use crate::wire::arguments::Number;
use crate::wire::status::OK;
use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Powers of two of microseconds, up to half a minute; the last one has what took longer.
const BUCKETS: usize = 26;
const NUMBERS: usize = Number::LAST as usize + 1;

pub struct Metrics {
    operations: [Operation; NUMBERS],
}

struct Operation {
    failed: AtomicU64,
    nanoseconds: AtomicU64,
    /// How many took less than 2^n µs, and not less than half of that.
    took: [AtomicU64; BUCKETS],
}

/// Of one operation. Quantiles are the ends of their buckets: at most twice the real ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    pub operation: Number,
    pub count: u64,
    pub failed: u64,
    pub mean: Duration,
    pub median: Duration,
    pub p99: Duration,
}

impl Default for Metrics {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        let operation =
            |_| Operation { failed: zero(), nanoseconds: zero(), took: array::from_fn(|_| zero()) };
        Self { operations: array::from_fn(operation) }
    }
}

impl Metrics {
    pub fn count(&self, operation: Number, status: u32, took: Duration) {
        let counted = &self.operations[operation as usize];
        let microseconds = took.as_micros() as u64;
        let bucket = (u64::BITS - microseconds.leading_zeros()) as usize;
        counted.took[bucket.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
        counted.nanoseconds.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        if status != OK {
            counted.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Of what was done at all.
    pub fn figures(&self) -> Vec<Figures> {
        let all = self.operations.iter().enumerate();
        all.filter_map(|(number, counted)| counted.figures(Number::new(number as u32)?)).collect()
    }

    /// A line for each operation.
    pub fn log(&self) {
        for Figures { operation, count, failed, mean, median, p99 } in self.figures() {
            tracing::info!(?operation, count, failed, ?mean, ?median, ?p99);
        }
    }
}

impl Operation {
    fn figures(&self, operation: Number) -> Option<Figures> {
        let took = self.took.each_ref().map(|bucket| bucket.load(Ordering::Relaxed));
        let count = took.iter().sum::<u64>();
        let quantile = |percent: u64| {
            let mut left = (count * percent).div_ceil(100);
            let bucket = took.iter().position(|&here| {
                let is_here = here >= left;
                left = left.saturating_sub(here);
                is_here
            });
            Duration::from_micros(1 << bucket.unwrap_or(BUCKETS - 1))
        };
        (count > 0).then(|| Figures {
            operation,
            count,
            failed: self.failed.load(Ordering::Relaxed),
            mean: Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed) / count),
            median: quantile(50),
            p99: quantile(99),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_counted_with_the_time_that_it_took() {
        let metrics = Metrics::default();
        let us = Duration::from_micros;
        (0..98).for_each(|_| metrics.count(Number::Read, OK, us(3)));
        metrics.count(Number::Read, 5, us(1000));
        metrics.count(Number::Read, OK, us(5000));
        metrics.count(Number::RemoveXattr, OK, Duration::from_secs(1 << 20));
        let read = Figures {
            operation: Number::Read,
            count: 100,
            failed: 1,
            mean: us(62) + Duration::from_nanos(940),
            median: us(4),
            p99: us(1024),
        };
        let figures = metrics.figures();
        assert_eq!(figures[0], read);
        assert_eq!((figures.len(), figures[1].median), (2, us(1 << 25)));
    }
}
