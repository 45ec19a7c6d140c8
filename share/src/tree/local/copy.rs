//! What the kernel copies, or shares, between two files.
#![allow(unsafe_code, reason = "the request to share has no safe wrapper")]

use super::super::Result;
use crate::wire::status::Status;
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::Errno;

/// How many bytes, fewer only at the source's end; as the caller that this thread acts as.
pub fn copy(
    (source, target): (BorrowedFd, BorrowedFd),
    from: u64,
    to: u64,
    length: u64,
) -> Result<u64> {
    let mut copied = 0;
    while copied < length {
        let (mut at, mut into) = (from + copied, to + copied);
        let left = (length - copied) as usize;
        match rustix::fs::copy_file_range(source, Some(&mut at), target, Some(&mut into), left) {
            Ok(0) => break,
            Ok(more) => copied += more as u64,
            Err(Errno::INTR) => {}
            // What was copied is answered; the next request meets the error.
            Err(_) if copied > 0 => break,
            // Not by this file system.
            Err(Errno::XDEV | Errno::NOSYS) => return Err(Status::NotSupp),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(copied)
}

pub fn clone_range(
    (source, target): (BorrowedFd, BorrowedFd),
    from: u64,
    to: u64,
    length: u64,
) -> Result<()> {
    let range = libc::file_clone_range {
        src_fd: source.as_raw_fd().into(),
        src_offset: from,
        src_length: length,
        dest_offset: to,
    };
    // SAFETY: both files are open until it returns, and it reads `range`, which has the layout that goes with
    // this request.
    let result = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONERANGE, &raw const range) };
    match result {
        0 => Ok(()),
        _ => match super::handles::last_error() {
            Errno::NOTTY | Errno::NOSYS => Err(Status::NotSupp),
            errno => Err(errno.into()),
        },
    }
}
