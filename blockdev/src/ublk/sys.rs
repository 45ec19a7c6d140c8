//! The unsafe file of this module: three calls for which the standard library has no name.

#![expect(unsafe_code, reason = "system calls without a wrapper in std")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libublk::io::UblkDev;

/// From the kernel's <linux/prctl.h>; the crate libc doesn't have it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// A counter in the kernel that a ring can poll: writing rings, reading silences.
pub(super) fn event_fd() -> io::Result<File> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nothing else knows it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Another handle to the device's /dev/ublkcN, which the kernel lets be opened only once.
pub(super) fn character_device(device: &UblkDev) -> io::Result<File> {
    // SAFETY: the descriptor belongs to `device`, which is borrowed until this returns.
    let borrowed = unsafe { BorrowedFd::borrow_raw(device.tgt.fds[0].as_raw_fd()) };
    Ok(File::from(borrowed.try_clone_to_owned()?))
}

/// Tells the kernel that this thread's work may be what frees memory, so that an allocation of its
/// own never waits for a write-back that it would itself have to serve. Needs CAP_SYS_RESOURCE.
pub(super) fn set_io_flusher() -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    match unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
