//! Owned, aligned memory for one request's data.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::{Pod, Zeroable};

/// Alignment that every direct I/O of Linux accepts, in bytes.
const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

// SAFETY: an array of bytes without padding (its size is a multiple of its alignment); any bit
// pattern, zero among them, is a value of it.
#[expect(unsafe_code, reason = "bytemuck's derive can't see that the alignment adds no padding")]
unsafe impl Zeroable for Page {}
// SAFETY: see above; it is `Copy` and has no interior mutability.
#[expect(unsafe_code, reason = "bytemuck's derive can't see that the alignment adds no padding")]
unsafe impl Pod for Page {}

/// Owned memory, aligned to 4 KiB, that moves into a request and comes back with it.
///
/// Ownership is what keeps io_uring and kernel-registered memory sound: a future that is dropped
/// leaves its buffer with whoever still needs it.
pub struct Buffer {
    pages: Box<[Page]>,
    length_bytes: usize,
}

impl Buffer {
    /// Memory that will be written in full before it is read: it holds zeroes, or what an earlier
    /// request of this process had in it. Costs neither clearing nor page faults if that one is done.
    pub fn for_data(length_bytes: usize) -> Self {
        let count = length_bytes.div_ceil(PAGE_BYTES).next_power_of_two();
        let Some(class) = class(count).filter(|_| length_bytes > 0) else {
            return Self::zeroed(length_bytes);
        };
        let spare = spares().take(class);
        let pages = spare.unwrap_or_else(|| bytemuck::zeroed_slice_box(count));
        Self { pages, length_bytes }
    }

    /// Memory of `length_bytes` zero bytes.
    pub fn zeroed(length_bytes: usize) -> Self {
        let pages = bytemuck::zeroed_slice_box(length_bytes.div_ceil(PAGE_BYTES));
        Self { pages, length_bytes }
    }

    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::for_data(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.pages)[..self.length_bytes]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.pages)[..self.length_bytes]
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.length_bytes)
    }
}

/// Runs of 1, 2, 4 … pages.
const CLASSES: usize = 9;
/// Memory that is kept for later requests, in bytes; together as much as some queues have in flight.
const SPARE_BYTES_MAX: usize = 16 << 20;

/// Memory of requests that are done. For all threads: a write's data is taken from the kernel by one
/// and given up by another.
struct Spares {
    runs: [Vec<Box<[Page]>>; CLASSES],
    bytes: usize,
}

static SPARES: Mutex<Spares> =
    Mutex::new(Spares { runs: [const { Vec::new() }; CLASSES], bytes: 0 });

fn spares() -> MutexGuard<'static, Spares> {
    // Whole at every step, whoever panicked elsewhere.
    SPARES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of runs with so many pages; None if none are kept.
fn class(count: usize) -> Option<usize> {
    let class = count.trailing_zeros() as usize;
    (count.is_power_of_two() && class < CLASSES).then_some(class)
}

impl Spares {
    fn take(&mut self, class: usize) -> Option<Box<[Page]>> {
        let run = self.runs[class].pop()?;
        self.bytes -= size_of_val(&*run);
        Some(run)
    }

    /// Gives it back if there is enough.
    fn keep(&mut self, run: Box<[Page]>) -> Option<Box<[Page]>> {
        let bytes = size_of_val(&*run);
        match class(run.len()) {
            Some(class) if self.bytes + bytes <= SPARE_BYTES_MAX => {
                self.bytes += bytes;
                self.runs[class].push(run);
                None
            }
            _ => Some(run),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let run = std::mem::take(&mut self.pages);
        if !run.is_empty() {
            let unwanted = spares().keep(run);
            drop(unwanted); // freed without the lock
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is asked for as zeroes must be zeroes, whatever memory was used before.
    #[test]
    fn memory_is_used_again_and_zeroes_are_still_zeroes() {
        for length_bytes in [1, 4096, 5000, 1 << 20, (1 << 20) + 1] {
            let mut used = Buffer::for_data(length_bytes);
            assert_eq!(used.len(), length_bytes);
            assert_eq!(used.as_ptr() as usize % PAGE_BYTES, 0);
            used.fill(7);
            drop(used);
            assert!(Buffer::zeroed(length_bytes).iter().all(|&byte| byte == 0));
        }
        assert_eq!(Buffer::for_data(0).len(), 0);
    }

    /// An engine that was busy once mustn't stay large for ever.
    #[test]
    fn no_more_is_kept_than_the_limit() {
        let mut spares = Spares { runs: [const { Vec::new() }; CLASSES], bytes: 0 };
        let run = |count| bytemuck::zeroed_slice_box::<Page>(count);
        let kept = (0..1000).filter(|_| spares.keep(run(256)).is_none()).count();
        assert_eq!((kept, spares.bytes), (16, SPARE_BYTES_MAX));
        assert!(spares.keep(run(3)).is_some(), "of no class");
        assert_eq!(spares.take(8).map(|run| run.len()), Some(256));
        assert!(spares.keep(run(1)).is_none());
        assert!(spares.take(1).is_none(), "two pages were never given");
    }

    /// Direct I/O fails with EINVAL on memory that isn't aligned.
    #[test]
    fn memory_is_aligned_and_has_the_length_asked_for() {
        for length_bytes in [0, 1, 512, 4096, 4097, 1 << 20] {
            let buffer = Buffer::zeroed(length_bytes);
            assert_eq!(buffer.len(), length_bytes);
            assert_eq!(buffer.as_ptr() as usize % PAGE_BYTES, 0);
            assert!(buffer.iter().all(|&byte| byte == 0));
        }
    }
}
