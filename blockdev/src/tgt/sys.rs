//! The unsafe file of this module: a child's way into a mount namespace of its own, and processes
//! that are known by a lock that they hold.

#![expect(unsafe_code, reason = "system calls without a wrapper in std")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{descriptors, reclaim};

/// `what` stands at `place` in what the child sees, and nowhere else. The child has a session of its
/// own, so that it outlives us, and memory is reclaimed as if it were one of our threads.
pub(super) fn in_own_namespace(command: &mut Command, what: &Path, place: &Path) -> io::Result<()> {
    let (what, place) = (c_path(what)?, c_path(place)?);
    let before_exec = move || {
        let _without = reclaim::set_io_flusher();
        descriptors::pass_on_none();
        // SAFETY: the calls take strings that end with a zero, and numbers.
        let done = unsafe {
            libc::setsid() >= 0
                && libc::unshare(libc::CLONE_NEWNS) == 0
                && mount(c"none", c"/", libc::MS_REC | libc::MS_SLAVE)
                && mount(&what, &place, libc::MS_BIND)
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure runs in the child after fork, where only async-signal-safe calls are
    // allowed: it makes plain system calls on memory that exists already, and takes no lock.
    unsafe { command.pre_exec(before_exec) };
    Ok(())
}

/// # Safety
/// None beyond that of a system call; it is unsafe to be called within that of its caller.
unsafe fn mount(what: &std::ffi::CStr, place: &std::ffi::CStr, flags: libc::c_ulong) -> bool {
    // SAFETY: the strings end with a zero, and the other pointers may be null.
    let done = unsafe {
        libc::mount(what.as_ptr(), place.as_ptr(), std::ptr::null(), flags, std::ptr::null())
    };
    done == 0
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// A process that can't be mistaken for another one with the same number.
#[derive(Debug)]
pub(super) struct Process(OwnedFd);

impl Process {
    /// Whoever holds a lock on the file by `lockf(3)`.
    pub(super) fn that_locks(file: &File) -> io::Result<Option<Self>> {
        let Some(pid) = lock_owner(file)? else { return Ok(None) };
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = match i32::try_from(fd) {
            Ok(fd) if fd >= 0 => fd,
            _ => {
                let error = io::Error::last_os_error();
                // Between the two calls it may have ended.
                return if error.raw_os_error() == Some(libc::ESRCH) {
                    Ok(None)
                } else {
                    Err(error)
                };
            }
        };
        // SAFETY: the descriptor was just made, and nothing else knows it.
        let process = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        // Another one may have got its number meanwhile; that one holds no lock.
        Ok((lock_owner(file)? == Some(pid)).then_some(process))
    }

    pub(super) fn kill(&self) -> io::Result<()> {
        let (fd, no_details) = (self.0.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: a null pointer stands for the details that a signal has by default.
        let done =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, no_details, 0) };
        let error = io::Error::last_os_error();
        match done {
            0 => Ok(()),
            _ if error.raw_os_error() == Some(libc::ESRCH) => Ok(()), // it has ended
            _ => Err(error),
        }
    }

    /// Waits for its end.
    pub(super) async fn ended(self) -> io::Result<()> {
        // SAFETY: the descriptor stays open as long as what owns it is registered.
        let process = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) }?;
        process.readable().await.map(drop)
    }
}

fn lock_owner(file: &File) -> io::Result<Option<libc::pid_t>> {
    // SAFETY: all its fields are numbers, for which zero stands.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_whence) =
        (libc::F_WRLCK as libc::c_short, libc::SEEK_SET as libc::c_short);
    // SAFETY: the structure is ours, and lives longer than the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_lock_and_not_when_it_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        // Not open while the child is made: it would close it, and with that let go of its lock.
        let owner =
            || Process::that_locks(&File::open(folder.path().join("lock")).unwrap()).unwrap();
        File::create_new(&path).unwrap();
        assert!(owner().is_none());
        let path = c_path(&path).unwrap();
        let lock = move || {
            // SAFETY: the string ends with a zero. The descriptor stays, and with it the lock.
            match unsafe {
                libc::lockf(libc::open(path.as_ptr(), libc::O_WRONLY), libc::F_TLOCK, 1)
            } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        let mut sleep = Command::new("sleep");
        // SAFETY: the closure makes two system calls on memory that exists already.
        let mut child = unsafe { sleep.arg("60").pre_exec(lock) }.spawn().unwrap();
        owner().expect("it is found").kill().unwrap();
        let end = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&end), Some(libc::SIGKILL));
        assert!(owner().is_none());
    }
}
