//! How large everything is, before anything is done.

use std::time::Duration;

use ankole_api::ApiError;
use ankole_api::size::human;

const MIB: u64 = 1 << 20;
/// Below, ext4's own tables leave no room for thousands of files.
const SIZE_BYTES_MIN: u64 = 64 * MIB;
/// Logs, the manager's store, the processes' bookkeeping.
const BESIDES_BYTES: u64 = 64 * MIB;

/// ```text
/// 0                          5/8                                  1
/// | ext4, files of 1/3        | region of the write load (1/8) | - |     of the volume
/// ```
/// As root, on a kernel with ublk or nbd, the region is a file in the file system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) size_bytes: u64,
    pub(super) replicas: u8,
    pub(super) tree_bytes: u64,
    pub(super) filesystem_bytes: u64,
    pub(super) load_bytes: u64,
    /// Changed between the two backups.
    pub(super) change_bytes: u64,
}

impl Plan {
    pub(super) fn new(size_bytes: u64, replicas: u8) -> Result<Self, ApiError> {
        if size_bytes < SIZE_BYTES_MIN {
            let (size, least) = (human(size_bytes), human(SIZE_BYTES_MIN));
            return Err(ApiError::invalid(format!("a demo can't be made with {size}"))
                .next(format!("use --size {} or more", least.replace(' ', ""))));
        }
        Ok(Self {
            size_bytes,
            replicas,
            tree_bytes: size_bytes / 3,
            filesystem_bytes: (size_bytes / 8 * 5).next_multiple_of(MIB),
            load_bytes: (size_bytes / 8).next_multiple_of(MIB),
            change_bytes: size_bytes / 100,
        })
    }

    /// What one whole copy of the volume holds: files, the file system's tables, the load.
    pub(super) fn copy_bytes(&self) -> u64 {
        self.tree_bytes + self.size_bytes / 32 + self.load_bytes
    }

    /// The most that lies on the disk at one time.
    pub(super) fn need_bytes(&self) -> u64 {
        // Two volumes; one replica twice while it is rebuilt; image, backup and restored file.
        let copies = 2 * u64::from(self.replicas) + 1 + 3;
        copies * self.copy_bytes() + self.tree_bytes + 2 * self.change_bytes + BESIDES_BYTES
    }
}

/// What a step costs, about: seen on a small machine with two processors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) fixed_ms: u64,
    pub(super) bytes: fn(&Plan) -> u64,
    /// 0 if nothing depends on bytes.
    pub(super) mib_per_s: u64,
}

impl Cost {
    pub(super) fn estimate(&self, plan: &Plan) -> Duration {
        let mib = (self.bytes)(plan) / MIB;
        let moving_ms = (mib * 1000).checked_div(self.mib_per_s).unwrap_or(0);
        Duration::from_millis(self.fixed_ms + moving_ms)
    }
}

/// What it costs to end everything and remove the files.
pub(super) const END: Cost = Cost { fixed_ms: 500, bytes: Plan::need_bytes, mib_per_s: 500 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_is_too_small_is_refused_with_the_least_size() {
        let refused = Plan::new(SIZE_BYTES_MIN - 1, 3).unwrap_err();
        assert!(refused.next.unwrap().contains("--size 64MiB"));
        Plan::new(SIZE_BYTES_MIN, 3).unwrap();
    }

    /// The load must not touch the file system.
    #[test]
    fn the_parts_of_the_volume_do_not_overlap() {
        for size_bytes in [SIZE_BYTES_MIN, 66 * MIB, 1 << 30, 3 << 40] {
            let plan = Plan::new(size_bytes, 3).unwrap();
            assert!(plan.tree_bytes < plan.filesystem_bytes);
            assert!(plan.filesystem_bytes + plan.load_bytes <= size_bytes);
            assert!(plan.change_bytes <= plan.load_bytes);
        }
    }
}
