//! A set of processors, as `libublk` keeps it.
//!
//! `libublk` depends on the crate `bitmaps`, which is under the MPL-2.0, for this one type. Ours has
//! the same name and the few methods that `libublk` calls, so that the tree stays permissive; it
//! replaces the other through `[patch]` in the workspace's manifest. Written for that use alone.

/// Bits that are kept, whatever `SIZE` is.
const CAPACITY: usize = 1024;

/// Numbers below `SIZE`, which is at most 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bitmap<const SIZE: usize> {
    /// Number `n` is bit `n % 8` of byte `n / 8`: the kernel's `cpumask` on a little-endian machine.
    bytes: [u8; CAPACITY / 8],
}

impl<const SIZE: usize> Bitmap<SIZE> {
    /// The empty set.
    pub fn new() -> Self {
        const { assert!(SIZE <= CAPACITY) };
        Self { bytes: [0; CAPACITY / 8] }
    }

    /// Puts `index` in or takes it out; tells whether it was in. Panics past `SIZE`.
    pub fn set(&mut self, index: usize, value: bool) -> bool {
        assert!(index < SIZE, "{index} is past the set's {SIZE}");
        let (byte, bit) = (index / 8, 1 << (index % 8));
        let was = self.bytes[byte] & bit != 0;
        if value {
            self.bytes[byte] |= bit;
        } else {
            self.bytes[byte] &= !bit;
        }
        was
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..SIZE.div_ceil(8)]
    }
}

impl<const SIZE: usize> Default for Bitmap<SIZE> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const SIZE: usize> IntoIterator for Bitmap<SIZE> {
    type Item = usize;
    type IntoIter = std::vec::IntoIter<usize>;

    /// Ascending.
    fn into_iter(self) -> Self::IntoIter {
        let is_in = |index: &usize| self.bytes[index / 8] >> (index % 8) & 1 == 1;
        (0..SIZE).filter(is_in).collect::<Vec<_>>().into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_out_in_order_and_lies_where_the_kernel_looks() {
        let mut set = Bitmap::<1024>::new();
        for index in [1023, 0, 9, 9] {
            set.set(index, true);
        }
        assert!(set.set(0, false));
        assert_eq!(set.into_iter().collect::<Vec<_>>(), [9, 1023]);
        assert_eq!(set.as_bytes().len(), 128);
        assert_eq!((set.as_bytes()[1], set.as_bytes()[127]), (2, 128));
    }
}
