//! The kernel's file handles, and ours around them.
//!
//! ```text
//! | version 1 (1) | kernel's type (4, little-endian) | kernel's handle (up to 50) | MAC (8) |
//! ```
//! The MAC's key lives on the file system: a client can't make up a handle of a file that it hasn't been
//! led to, and handles stay good wherever the file system is served from.
#![allow(unsafe_code, reason = "the two system calls have no safe wrapper")]

use crate::wire::types::FileHandle;
use hmac::{Hmac, KeyInit, Mac};
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use sha2::Sha256;
use std::ffi::CStr;

const VERSION: u8 = 1;
const KERNEL_BYTES_MAX: usize = FileHandle::BYTES_MAX - HEAD_BYTES - MAC_BYTES;
const HEAD_BYTES: usize = 5;
const MAC_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelHandle {
    kind: i32,
    len: u8,
    bytes: [u8; KERNEL_BYTES_MAX],
}

/// As the kernel wants it: its `struct file_handle` with room behind.
#[repr(C)]
struct Raw {
    bytes: u32,
    kind: i32,
    handle: [u8; KERNEL_BYTES_MAX],
}

impl KernelHandle {
    /// Of `name` in `directory`, or with an empty name of the file itself. A symlink isn't followed.
    pub fn of(directory: BorrowedFd, name: &CStr) -> Result<Self, Errno> {
        let mut raw = Raw { bytes: KERNEL_BYTES_MAX as u32, kind: 0, handle: [0; _] };
        let mut mount_id = 0;
        // SAFETY: the name ends with a NUL, `raw` has the layout of a `file_handle` with as much room as
        // it says, and both outlive the call.
        let result = unsafe {
            libc::name_to_handle_at(
                directory.as_raw_fd(),
                name.as_ptr(),
                (&raw mut raw).cast(),
                &mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        if result == -1 {
            return Err(last_error());
        }
        Ok(Self { kind: raw.kind, len: raw.bytes as u8, bytes: raw.handle })
    }

    /// The file of this handle, on the file system that `mount` is on. Needs CAP_DAC_READ_SEARCH.
    pub fn open(&self, mount: BorrowedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut raw = Raw { bytes: self.len.into(), kind: self.kind, handle: self.bytes };
        // SAFETY: as above; the kernel reads no more than `raw.bytes` of the handle.
        let fd = unsafe {
            libc::open_by_handle_at(
                mount.as_raw_fd(),
                (&raw mut raw).cast(),
                (flags | OFlags::CLOEXEC).bits() as i32,
            )
        };
        if fd == -1 {
            return Err(last_error());
        }
        // SAFETY: the kernel has just made it, for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

pub(super) fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Makes handles for the wire, and knows its own.
pub struct Seal(Hmac<Sha256>);

impl Seal {
    pub fn new(key: &[u8; 32]) -> Self {
        Self(Hmac::new_from_slice(key).expect("a key may have any length"))
    }

    pub fn seal(&self, kernel: &KernelHandle) -> FileHandle {
        let mut bytes = [0; FileHandle::BYTES_MAX];
        let end = HEAD_BYTES + kernel.len as usize;
        bytes[0] = VERSION;
        bytes[1..HEAD_BYTES].copy_from_slice(&kernel.kind.to_le_bytes());
        bytes[HEAD_BYTES..end].copy_from_slice(&kernel.bytes[..kernel.len.into()]);
        let mac = self.0.clone().chain_update(&bytes[..end]).finalize().into_bytes();
        bytes[end..end + MAC_BYTES].copy_from_slice(&mac[..MAC_BYTES]);
        FileHandle::new(&bytes[..end + MAC_BYTES]).expect("it is no longer than the longest")
    }

    /// `None`: we haven't made it.
    pub fn unseal(&self, handle: FileHandle) -> Option<KernelHandle> {
        let (signed, mac) = handle.as_bytes().split_last_chunk::<MAC_BYTES>()?;
        self.0.clone().chain_update(signed).verify_truncated_left(mac).ok()?;
        let (head, kernel) = signed.split_first_chunk::<HEAD_BYTES>()?;
        let (&version, kind) = head.split_first()?;
        if version != VERSION {
            return None;
        }
        let mut bytes = [0; KERNEL_BYTES_MAX];
        bytes.get_mut(..kernel.len())?.copy_from_slice(kernel);
        let kind = i32::from_le_bytes(kind.try_into().ok()?);
        Some(KernelHandle { kind, len: kernel.len() as u8, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that guesses inode numbers must not reach a file by them.
    #[test]
    fn a_handle_with_any_bit_changed_is_not_ours() {
        let seal = Seal::new(&[7; 32]);
        let kernel = KernelHandle { kind: 1, len: 8, bytes: [3; KERNEL_BYTES_MAX] };
        let good = seal.seal(&kernel);
        let opened = seal.unseal(good).unwrap();
        assert_eq!((opened.kind, &opened.bytes[..8]), (1, &[3; 8][..]));
        for bit in 0..good.as_bytes().len() * 8 {
            let mut bytes = good.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(seal.unseal(FileHandle::new(&bytes).unwrap()).is_none(), "bit {bit}");
        }
        assert!(Seal::new(&[8; 32]).unseal(good).is_none(), "of another file system");
        assert!(seal.unseal(FileHandle::new(b"").unwrap()).is_none());
    }
}
