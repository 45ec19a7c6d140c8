//! Threads that the kernel may need to free memory: a dirty page of a file system on our device is
//! only free once we have written it.

#![expect(unsafe_code, reason = "system calls without a wrapper in std")]

use std::io;

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
