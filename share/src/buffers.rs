//! The large buffers: a fixed number, for messages that move data. Memory doesn't grow with the clients.
//!
//! Who reads a large request takes one when the request has come in, waits for it if need be, and reads on
//! then; a reply that finds none is a short one. So nobody holds one while it waits for another. Some are for
//! requests only: clients that don't take their replies keep nobody from writing.

use crate::wire::record::{MARK_BYTES, RECORD_BYTES_MAX};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What each thread has of its own for messages that move no data.
pub const SMALL_BYTES: usize = 32 * 1024;
pub const LARGE_BYTES: usize = MARK_BYTES + RECORD_BYTES_MAX;

pub struct Buffers {
    count: usize,
    kept: Mutex<Kept>,
    given_back: Condvar,
}

struct Kept {
    idle: Vec<Vec<u8>>,
    /// How many more may be made.
    unmade: usize,
}

impl Buffers {
    pub fn new(count: usize) -> Self {
        let kept = Kept { idle: Vec::new(), unmade: count };
        Self { count, kept: Mutex::new(kept), given_back: Condvar::new() }
    }

    /// An empty one with room for the largest message.
    pub fn take(&self) -> Vec<u8> {
        let mut kept = self.lock();
        loop {
            if let Some(buffer) = kept.take() {
                return buffer;
            }
            kept = self.given_back.wait(kept).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// For a reply.
    pub fn try_take(&self) -> Option<Vec<u8>> {
        let mut kept = self.lock();
        let for_requests = self.count / 4;
        if kept.idle.len() + kept.unmade > for_requests { kept.take() } else { None }
    }

    fn give_back(&self, buffer: &mut Vec<u8>) {
        buffer.clear();
        if buffer.capacity() < LARGE_BYTES {
            return buffer.shrink_to(SMALL_BYTES);
        }
        let large = std::mem::take(buffer);
        let mut kept = self.lock();
        if kept.idle.len() + kept.unmade < self.count {
            kept.idle.push(large);
            self.given_back.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn take(&mut self) -> Option<Vec<u8>> {
        if let Some(buffer) = self.idle.pop() {
            return Some(buffer);
        }
        self.unmade = self.unmade.checked_sub(1)?;
        Some(Vec::with_capacity(LARGE_BYTES))
    }
}

/// What one thread reads into and writes from; large buffers in it go back, whatever happens.
pub struct Messages<'a> {
    buffers: &'a Buffers,
    pub request: Vec<u8>,
    pub reply: Vec<u8>,
}

impl<'a> Messages<'a> {
    pub fn new(buffers: &'a Buffers) -> Self {
        let small = || Vec::with_capacity(SMALL_BYTES);
        Self { buffers, request: small(), reply: small() }
    }

    pub fn clear_request(&mut self) {
        self.buffers.give_back(&mut self.request);
    }

    pub fn clear_reply(&mut self) {
        self.buffers.give_back(&mut self.reply);
    }
}

impl Drop for Messages<'_> {
    fn drop(&mut self) {
        self.clear_request();
        self.clear_reply();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_than_were_allowed() {
        let buffers = Buffers::new(2);
        let (mut one, _two) = (buffers.take(), buffers.take());
        assert!(buffers.try_take().is_none());
        one.push(7);
        buffers.give_back(&mut one);
        assert!(one.is_empty() && one.capacity() < LARGE_BYTES, "it is gone");
        let mut again = buffers.try_take().expect("it came back");
        assert!(again.is_empty());
        buffers.give_back(&mut again);
        buffers.give_back(&mut Vec::with_capacity(SMALL_BYTES));
        assert!(buffers.try_take().is_some() && buffers.try_take().is_none());
    }

    /// A client that asks for much and takes none of it must keep nobody from writing.
    #[test]
    fn replies_leave_some_for_requests() {
        let buffers = Buffers::new(4);
        let _replies = [(); 3].map(|()| buffers.try_take().expect("there are some"));
        assert!(buffers.try_take().is_none());
        buffers.take();
    }

    /// A reply can grow past a large buffer by itself: that must not make the pool larger.
    #[test]
    fn a_buffer_of_others_is_not_kept() {
        let buffers = Buffers::new(1);
        buffers.give_back(&mut Vec::with_capacity(LARGE_BYTES));
        assert!(buffers.try_take().is_some() && buffers.try_take().is_none());
    }
}
