//! A few threads for many equal pieces of work.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use std::ops::ControlFlow;

use crate::error::Error;

pub const WORKERS_MAX: usize = 64;

/// Does `work` on every item by `workers` threads, each taking the next item when it is free, so
/// that no more than `workers` pieces are in memory. Results are in the order of `items`; after the
/// first error no piece is begun.
pub fn try_map<T: Sync, R: Send>(
    workers: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let run = || {
        let mut done = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { break };
            match work(item) {
                Ok(result) => done.push((index, result)),
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(done)
    };
    let workers = workers.clamp(1, WORKERS_MAX).min(items.len().max(1));
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut results = Vec::with_capacity(items.len());
    for outcome in outcomes {
        results.extend(outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
    }
    results.sort_unstable_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// How far a backup, restore or verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Uncompressed bytes of the blocks that are done, of those that are to do.
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Blocks of a backup that were stored; of a restore or verification, that were read.
    pub blocks_new: u64,
    /// Blocks that needn't be moved: in the target already, or known to be zero.
    pub blocks_reused: u64,
}

/// Is called after every block, by any worker; `Break` ends the work with [`Error::Cancelled`].
pub type OnProgress<'a> = &'a (dyn Fn(Progress) -> ControlFlow<()> + Sync);

/// For callers who don't look.
pub fn unobserved(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Counts what workers have done.
pub(crate) struct Tally<'a> {
    report: OnProgress<'a>,
    block_bytes: u64,
    blocks_total: u64,
    blocks_new: AtomicU64,
    blocks_reused: AtomicU64,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(report: OnProgress<'a>, block_bytes: u64, blocks: usize) -> Self {
        let blocks_total = blocks as u64;
        let (blocks_new, blocks_reused) = Default::default();
        Self { report, block_bytes, blocks_total, blocks_new, blocks_reused }
    }

    pub(crate) fn count(&self, is_new: bool) -> Result<(), Error> {
        let counter = if is_new { &self.blocks_new } else { &self.blocks_reused };
        counter.fetch_add(1, Ordering::Relaxed);
        match (self.report)(self.progress()) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        let blocks_new = self.blocks_new.load(Ordering::Relaxed);
        let blocks_reused = self.blocks_reused.load(Ordering::Relaxed);
        Progress {
            bytes_done: (blocks_new + blocks_reused) * self.block_bytes,
            bytes_total: self.blocks_total * self.block_bytes,
            blocks_new,
            blocks_reused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items_and_an_error_ends_it() {
        let items: Vec<u64> = (0..1000).collect();
        assert_eq!(try_map(4, &items, |item| Ok(*item * 2)).unwrap()[999], 1998);
        assert!(try_map(4, &[] as &[u64], |_| Ok(())).unwrap().is_empty());
        let begun = AtomicUsize::new(0);
        let result = try_map(2, &items, |item| {
            begun.fetch_add(1, Ordering::Relaxed);
            if *item == 3 { Err(Error::Cancelled) } else { Ok(()) }
        });
        assert!(matches!(result, Err(Error::Cancelled)));
        assert!(begun.into_inner() < 1000);
    }
}
