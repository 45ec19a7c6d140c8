//! The unsafe file of this module: system calls for which the standard library has no name.

#![expect(unsafe_code, reason = "system calls without a wrapper in std")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use io_uring::IoUring;
use libublk::io::{UblkDev, UblkQueue, with_task_io_ring, with_task_io_ring_mut};
use libublk::sys::ublksrv_io_desc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Another handle to the library's ring of this thread: readable when it has completions.
pub(super) fn ring() -> io::Result<AsyncFd<OwnedFd>> {
    let handle = with_task_io_ring(|ring| {
        // SAFETY: the descriptor belongs to `ring`, which is borrowed until this returns.
        unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }.try_clone_to_owned()
    })?;
    // SAFETY: the descriptor stays open as long as what owns it is registered.
    let registered = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) };
    Ok(registered?)
}

/// Another handle to the device's /dev/ublkcN, which the kernel lets be opened only once. Both become
/// non-blocking, which they are anyway: a ring hands what may block to threads of its own.
pub(super) fn character_device(device: &UblkDev) -> io::Result<File> {
    // SAFETY: the descriptor belongs to `device`, which is borrowed until this returns.
    let borrowed = unsafe { BorrowedFd::borrow_raw(device.tgt.fds[0].as_raw_fd()) };
    let handle = borrowed.try_clone_to_owned()?;
    // SAFETY: the call takes numbers only, and the descriptor is open.
    if unsafe { libc::fcntl(handle.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(File::from(handle))
}

/// Ends a queue whose commands are still with the kernel. The queue's destructor would wait for
/// them for ever; its ring takes them back, once it and all handles to it are closed. Only the mapping
/// of the descriptors has to go by hand, else the device would count as open. The rest is leaked.
pub(super) fn abandon(queue: UblkQueue<'_>) {
    let descriptors = std::ptr::from_ref(queue.get_iod(0)).cast_mut();
    let length_bytes = queue.get_depth() as usize * size_of::<ublksrv_io_desc>();
    std::mem::forget(queue);
    // SAFETY: the queue had mapped its descriptors, `depth` of them, at the first one's address;
    // nothing refers to them now that it is forgotten, and its destructor won't unmap them again.
    let result = unsafe { libc::munmap(descriptors.cast(), length_bytes) };
    debug_assert_eq!(result, 0);
    match IoUring::new(1) {
        Ok(empty) => drop(with_task_io_ring_mut(|ring| std::mem::replace(ring, empty))),
        Err(error) => tracing::warn!(%error, "the device is left when this process ends"),
    }
}
