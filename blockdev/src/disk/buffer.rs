//! Owned, aligned memory for one request's data.

use std::fmt;
use std::ops::{Deref, DerefMut};

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
    /// Memory of `length_bytes` zero bytes.
    pub fn zeroed(length_bytes: usize) -> Self {
        let pages = bytemuck::zeroed_slice_box(length_bytes.div_ceil(PAGE_BYTES));
        Self { pages, length_bytes }
    }

    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
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

#[cfg(test)]
mod tests {
    use super::*;

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
