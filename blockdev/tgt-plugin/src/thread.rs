//! Threads inside tgtd.

#![expect(unsafe_code, reason = "signal masks, for which std has no name")]

use std::io;
use std::thread::JoinHandle;

/// tgtd waits for its signals in one thread, and counts on it that no other takes them.
pub(crate) fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let before = block_signals();
    let spawned = std::thread::Builder::new().name(name.into()).stack_size(256 << 10).spawn(body); // it begins with the mask of this thread
    set_signals(&before);
    spawned
}

fn block_signals() -> libc::sigset_t {
    // SAFETY: both sets are ours; `all` is filled before it is read, `before` by the call.
    unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    }
}

fn set_signals(mask: &libc::sigset_t) {
    // SAFETY: the mask was filled by `pthread_sigmask`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}
