//! What this process may do.

use std::fs;

/// CAP_SYS_ADMIN (bit 21, `include/uapi/linux/capability.h`): drivers' commands and mounts need it.
pub(crate) fn may_administrate() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    effective.is_some_and(|bits| bits & (1 << 21) != 0)
}
