//! The checksum of a block of data: 32 bits, made where the client's data is first held, passed on
//! and kept beside the data, checked at every read.
//!
//! It isn't a CRC. A block that ends with a CRC32C of its own, as ext4's extent blocks do
//! (`struct ext4_extent_tail` in the kernel's `fs/ext4/ext4_extents.h`), has the same CRC32C
//! whatever else is in it: the residue. (Five versions of one extent block of a growing file, as
//! Linux 6.18 wrote them: all have 4b86a2f8.) An older version of such a block that a lost write or
//! a power cut leaves in place would pass. XXH3 isn't linear: no checksum that clients keep in their
//! data cancels it.
//!
//! 32 bits find damage; they don't tell that two blocks are equal. For that the data is read and
//! [`fingerprint`] compared.

use twox_hash::{XxHash3_64, XxHash3_128};

use crate::mutation::{self, Mutation};

/// The checksum of a block of zeroes.
pub const ZERO_BLOCK_SUM: u32 = 0x48c6_89ba;

/// The low 32 bits of XXH3-64.
pub fn of_block(block: &[u8]) -> u32 {
    if mutation::is_on(Mutation::ChecksumIsCrc) {
        return crc32c::crc32c(block) ^ 0x98f9_4189 ^ ZERO_BLOCK_SUM; // that of zeroes is the same
    }
    XxHash3_64::oneshot(block) as u32
}

/// XXH3-128: blocks are taken for equal if theirs are.
pub fn fingerprint(block: &[u8]) -> u128 {
    if mutation::is_on(Mutation::ChecksumIsCrc) {
        return of_block(block).into();
    }
    XxHash3_128::oneshot(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_zeroes_has_the_checksum_that_is_looked_for() {
        assert_eq!(of_block(&[0; 4096]), ZERO_BLOCK_SUM);
    }

    /// After an engine's crash two replicas with different versions of such a block were found
    /// equal, and after a power cut the older version came back.
    #[test]
    fn blocks_that_end_with_their_own_crc_have_different_checksums() {
        let version = |fill: u8| {
            let mut block = [fill; 4096];
            let crc = crc32c::crc32c(&block[..4092]);
            block[4092..].copy_from_slice(&crc.to_le_bytes());
            block
        };
        assert_eq!(crc32c::crc32c(&version(1)), crc32c::crc32c(&version(2)), "the residue");
        assert_ne!(of_block(&version(1)), of_block(&version(2)));
    }
}
