//! What this process may do.

use std::fs;

/// CAP_SYS_ADMIN: drivers' commands and mounts need it.
pub(crate) fn may_administrate() -> bool {
    has_capability(21)
}

/// CAP_IPC_LOCK: memory may be locked beyond the limit.
pub(crate) fn may_lock_memory() -> bool {
    has_capability(14)
}

/// By its bit in `include/uapi/linux/capability.h`.
fn has_capability(bit: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    effective.is_some_and(|bits| bits & (1 << bit) != 0)
}
