//! The ublk driver's interface, as Rust types and constants.
//!
//! Owns nothing but names: [`bindings`] is generated from `ublk_cmd.h` by `regenerate` and kept in
//! the tree, so that a build needs neither bindgen nor libclang. Promises the same names as the
//! crate of this name and version in the registry, because `libublk` is compiled against them.

#[expect(non_camel_case_types, reason = "the names are C's")]
#[rustfmt::skip]
mod bindings;

pub use bindings::*;

/// Reads what the kernel packs into `sqe->addr` for a buffer that it registers itself: the index
/// in bits 0..16, the flags in bits 16..24; the rest is reserved and left out.
#[inline(always)]
pub fn ublk_sqe_addr_to_auto_buf_reg(sqe_addr: u64) -> ublk_auto_buf_reg {
    let [index_low, index_high, flags, ..] = sqe_addr.to_le_bytes();
    let index = u16::from_le_bytes([index_low, index_high]);
    ublk_auto_buf_reg { index, flags, ..Default::default() }
}

/// The reverse, with the reserved fields in bits 24..32 and 32..64.
#[inline(always)]
pub fn ublk_auto_buf_reg_to_sqe_addr(buffer: &ublk_auto_buf_reg) -> u64 {
    u64::from(buffer.index)
        | u64::from(buffer.flags) << 16
        | u64::from(buffer.reserved0) << 24
        | u64::from(buffer.reserved1) << 32
}
