//! The range lock: overlapping operations take turns, so that all replicas see them in one order.
//!
//! Writes, discards and copies are exclusive, reads are shared. First come, first served: an
//! operation waits for every earlier one that it conflicts with, held or waiting, so that a stream
//! of reads can't starve a write.

use std::collections::VecDeque;

use crate::types::BlockRange;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    Shared,
    Exclusive,
}

/// Who holds or wants a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockId(pub u64);

#[derive(Clone, Copy, Debug)]
struct Lock {
    id: LockId,
    range: BlockRange,
    mode: LockMode,
}

impl Lock {
    fn conflicts_with(&self, other: &Self) -> bool {
        (self.mode == LockMode::Exclusive || other.mode == LockMode::Exclusive)
            && self.range.overlaps(other.range)
    }
}

/// All locks of one volume. Few enough (the frontend's queue depth) that a scan beats a tree.
#[derive(Debug, Default)]
pub struct RangeLocks {
    held: Vec<Lock>,
    waiting: VecDeque<Lock>,
    next_id: u64,
}

impl RangeLocks {
    /// Asks for a range. `true`: it is held now; otherwise [`release`](Self::release) of the last
    /// lock in its way names it.
    pub fn acquire(&mut self, range: BlockRange, mode: LockMode) -> (LockId, bool) {
        let id = LockId(self.next_id);
        self.next_id += 1;
        let lock = Lock { id, range, mode };
        let free = self.is_free(range, mode);
        if free {
            self.held.push(lock);
        } else {
            self.waiting.push_back(lock);
        }
        (id, free)
    }

    /// Whether such a lock would be held at once.
    pub fn is_free(&self, range: BlockRange, mode: LockMode) -> bool {
        let lock = Lock { id: LockId(self.next_id), range, mode };
        !self.held.iter().chain(&self.waiting).any(|other| lock.conflicts_with(other))
    }

    /// Gives a lock back, held or waiting; returns those that are held from now on, oldest first.
    pub fn release(&mut self, id: LockId) -> Vec<LockId> {
        match self.held.iter().position(|lock| lock.id == id) {
            Some(at) => {
                self.held.swap_remove(at);
            }
            None => self.waiting.retain(|lock| lock.id != id),
        }
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let mut granted = Vec::new();
        let mut still_waiting = VecDeque::with_capacity(self.waiting.len());
        for lock in self.waiting.drain(..) {
            let blocked =
                self.held.iter().chain(&still_waiting).any(|other| lock.conflicts_with(other));
            if blocked {
                still_waiting.push_back(lock);
            } else {
                self.held.push(lock);
                granted.push(lock.id);
            }
        }
        self.waiting = still_waiting;
        granted
    }

    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::BlockIndex;

    fn blocks(first: u64, count: u64) -> BlockRange {
        BlockRange::new(BlockIndex(first), count)
    }

    #[test]
    fn reads_share_a_range_and_a_write_waits_for_all_of_them() {
        let mut locks = RangeLocks::default();
        let (first, free) = locks.acquire(blocks(0, 8), LockMode::Shared);
        assert!(free);
        let (second, free) = locks.acquire(blocks(4, 8), LockMode::Shared);
        assert!(free);
        let (write, free) = locks.acquire(blocks(7, 1), LockMode::Exclusive);
        assert!(!free);
        assert_eq!(locks.release(first), []);
        assert_eq!(locks.release(second), [write]);
    }

    /// Without that, a busy reader keeps a writer waiting for ever.
    #[test]
    fn a_read_does_not_overtake_a_write_that_waits() {
        let mut locks = RangeLocks::default();
        let (held, _) = locks.acquire(blocks(0, 1), LockMode::Shared);
        let (write, _) = locks.acquire(blocks(0, 1), LockMode::Exclusive);
        let (late, free) = locks.acquire(blocks(0, 1), LockMode::Shared);
        assert!(!free);
        assert_eq!(locks.release(held), [write]);
        assert_eq!(locks.release(write), [late]);
    }

    #[test]
    fn a_waiter_that_gives_up_lets_those_behind_it_go() {
        let mut locks = RangeLocks::default();
        let (held, _) = locks.acquire(blocks(0, 2), LockMode::Shared);
        let (write, _) = locks.acquire(blocks(0, 1), LockMode::Exclusive);
        let (read, _) = locks.acquire(blocks(0, 1), LockMode::Shared);
        assert_eq!(locks.release(write), [read]);
        assert_eq!(locks.release(held), []);
    }

    proptest! {
        /// Held locks never conflict, conflicting ones are granted in the order in which they were
        /// asked for, and everyone gets their turn.
        #[test]
        fn conflicting_locks_take_turns_in_order(
            wishes in prop::collection::vec((0u64..16, 1u64..6, any::<bool>()), 1..60),
            releases in prop::collection::vec(any::<prop::sample::Index>(), 200),
        ) {
            let mut locks = RangeLocks::default();
            let mut asked = Vec::new();
            let mut held = Vec::new();
            let mut granted = Vec::new();
            let mut releases = releases.into_iter();
            for (first, count, exclusive) in wishes {
                let mode = if exclusive { LockMode::Exclusive } else { LockMode::Shared };
                let (id, free) = locks.acquire(blocks(first, count), mode);
                asked.push(Lock { id, range: blocks(first, count), mode });
                if free { held.push(id); granted.push(id); }
                if held.len() > 3 && let Some(pick) = releases.next() {
                    let id = held.remove(pick.index(held.len()));
                    let more = locks.release(id);
                    granted.extend(&more);
                    held.extend(more);
                }
            }
            while let Some(id) = held.pop() {
                let more = locks.release(id);
                granted.extend(&more);
                held.extend(more);
            }
            prop_assert!(locks.is_idle());
            prop_assert_eq!(granted.len(), asked.len());
            let turn = |id: LockId| granted.iter().position(|&other| other == id).expect("granted");
            for (at, early) in asked.iter().enumerate() {
                for late in &asked[at + 1..] {
                    prop_assert!(!early.conflicts_with(late) || turn(early.id) < turn(late.id));
                }
            }
        }
    }
}
