//! What the requests of all clients of a server take together.
//!
//! Each client may always have some memory of its own; what it takes beyond comes from a pool that
//! all share. So clients that send half of large requests, or don't read their answers, hold up each
//! other's large requests, and nobody's small ones.

use std::cell::{Cell, RefCell};
use std::task::Waker;

/// For all clients.
pub(super) struct Pool {
    own_bytes: u64,
    free_bytes: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

/// What one client has of it, until dropped.
pub(super) struct Share<'a> {
    pool: &'a Pool,
    held_bytes: u64,
}

impl Pool {
    /// `own_bytes` for each client, and what they share.
    pub(super) fn new(own_bytes: u64, shared_bytes: u64) -> Self {
        Self { own_bytes, free_bytes: Cell::new(shared_bytes), waiting: RefCell::default() }
    }

    pub(super) fn share(&self) -> Share<'_> {
        Share { pool: self, held_bytes: 0 }
    }
}

impl Share<'_> {
    /// How much more it may hold.
    pub(super) fn room_bytes(&self) -> u64 {
        self.pool.own_bytes.saturating_sub(self.held_bytes) + self.pool.free_bytes.get()
    }

    /// It holds so much now: more than before only as far as there is room.
    pub(super) fn hold(&mut self, bytes: u64) {
        let shared_before = self.held_bytes.saturating_sub(self.pool.own_bytes);
        let shared_now = bytes.saturating_sub(self.pool.own_bytes);
        let free_bytes = (self.pool.free_bytes.get() + shared_before).checked_sub(shared_now);
        self.pool.free_bytes.set(free_bytes.expect("there was room for it"));
        self.held_bytes = bytes;
        if shared_now < shared_before {
            self.pool.waiting.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Wakes once when somebody has given something back.
    pub(super) fn wait(&self, waker: &Waker) {
        let mut waiting = self.pool.waiting.borrow_mut();
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.hold(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_hold_is_bounded_and_each_has_its_own() {
        let pool = Pool::new(10, 100);
        let (mut first, mut second) = (pool.share(), pool.share());
        assert_eq!(first.room_bytes(), 110);
        first.hold(110);
        assert_eq!((first.room_bytes(), second.room_bytes()), (0, 10));
        second.hold(10);
        assert_eq!(second.room_bytes(), 0);
        first.hold(60);
        assert_eq!((first.room_bytes(), second.room_bytes()), (50, 50));
        drop(first);
        assert_eq!(second.room_bytes(), 100);
    }
}
