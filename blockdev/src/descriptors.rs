//! What a process that we start gets of our open files: nothing.

#![expect(unsafe_code, reason = "a system call without a wrapper in std")]

/// For a child between fork and exec: but for its standard input and outputs it starts with no open
/// file, not even one that we were given by whoever started us. What we open ourselves is closed by
/// an exec anyway. Safe to be called there: it makes one system call.
pub fn pass_on_none() {
    // SAFETY: the call takes numbers only. Before Linux 5.11 it fails, and changes nothing.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
}
