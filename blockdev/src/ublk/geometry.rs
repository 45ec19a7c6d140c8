//! What the kernel is told about the disk when the device is made; pure.

use libublk::sys::{
    UBLK_ATTR_FUA, UBLK_ATTR_READ_ONLY, UBLK_ATTR_VOLATILE_CACHE, UBLK_PARAM_TYPE_BASIC,
    UBLK_PARAM_TYPE_DISCARD, ublk_param_basic, ublk_param_discard, ublk_params,
};

use super::request::{REQUEST_BYTES_MAX, TRIM_BYTES_MAX};
use crate::disk::{BLOCK_BYTES, SECTOR_BYTES};

const SECTOR_SHIFT: u8 = SECTOR_BYTES.trailing_zeros() as u8;
const BLOCK_SHIFT: u8 = BLOCK_BYTES.trailing_zeros() as u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) size_bytes: u64,
    pub(super) is_read_only: bool,
}

impl Geometry {
    /// Logical sectors of 512 bytes for whoever insists, physical blocks of 4 KiB so that file
    /// systems choose them; a volatile cache, because a write is durable only after a flush.
    pub(super) fn params(self) -> ublk_params {
        let read_only = if self.is_read_only { UBLK_ATTR_READ_ONLY } else { 0 };
        ublk_params {
            types: UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD,
            basic: ublk_param_basic {
                attrs: UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA | read_only,
                logical_bs_shift: SECTOR_SHIFT,
                physical_bs_shift: BLOCK_SHIFT,
                io_opt_shift: BLOCK_SHIFT,
                io_min_shift: BLOCK_SHIFT,
                max_sectors: REQUEST_BYTES_MAX >> SECTOR_SHIFT,
                dev_sectors: self.size_bytes >> SECTOR_SHIFT,
                ..Default::default()
            },
            discard: ublk_param_discard {
                discard_granularity: BLOCK_BYTES as u32,
                max_discard_sectors: TRIM_BYTES_MAX >> SECTOR_SHIFT,
                max_write_zeroes_sectors: TRIM_BYTES_MAX >> SECTOR_SHIFT,
                max_discard_segments: 1, // the driver takes no other number
                ..Default::default()
            },
            ..Default::default()
        }
    }
}

/// Size of a device with these parameters, in bytes.
pub(super) fn size_bytes(params: &ublk_params) -> u64 {
    params.basic.dev_sectors.saturating_mul(SECTOR_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_is_told_the_size_the_cache_and_the_limits() {
        let params = Geometry { size_bytes: 64 << 20, is_read_only: false }.params();
        assert_eq!(size_bytes(&params), 64 << 20);
        assert_eq!(params.basic.attrs, UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA);
        assert_eq!((params.basic.logical_bs_shift, params.basic.physical_bs_shift), (9, 12));
        assert_eq!(params.basic.max_sectors * 512, REQUEST_BYTES_MAX);
        let read_only = Geometry { size_bytes: 4096, is_read_only: true }.params();
        assert_ne!(read_only.basic.attrs & UBLK_ATTR_READ_ONLY, 0);
    }
}
