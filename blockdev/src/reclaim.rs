//! Threads that the kernel may need to free memory: a dirty page of a file system on our device is
//! only free once we have written it.

#![expect(unsafe_code, reason = "system calls without a wrapper in std")]

use std::io;

use crate::privilege;

/// From the kernel's `include/uapi/linux/prctl.h`; the crate libc doesn't have it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Tells the kernel that this thread's work may be what frees memory, so that an allocation of its
/// own never waits for a write-back that it would itself have to serve, and that it is slowed down
/// only for what is dirty on the devices it writes to itself. Threads and processes that it starts
/// from now on inherit that. Needs CAP_SYS_RESOURCE.
pub fn set_io_flusher() -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    match unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What this process has in memory stays there, from now on: its code, which would otherwise be the
/// first thing to be thrown away when memory is short, as it can be read again, and again. What was
/// never touched takes none. Needs CAP_IPC_LOCK; with a limit instead, later allocations could fail.
pub fn keep_in_memory() -> io::Result<()> {
    if !privilege::may_lock_memory() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let what = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: the call takes numbers only.
    match unsafe { libc::mlockall(what) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
