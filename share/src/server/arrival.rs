//! Waits for what a client still has to send, without a buffer for it: the kernel keeps it meanwhile.
#![allow(unsafe_code, reason = "SO_RCVLOWAT has no safe wrapper")]

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// True: so many bytes have come in, or all that the kernel will keep, or the client has ended the
/// connection. False: the time is over.
pub fn wait_for(stream: &TcpStream, bytes: usize, time: Duration) -> io::Result<bool> {
    wake_at(stream, bytes)?;
    let time = Timespec::try_from(time).map_err(|_| Errno::INVAL)?;
    let come = match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&time)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    };
    wake_at(stream, 1)?;
    come
}

/// A wait for the stream ends when so much can be read; the kernel makes room for it.
fn wake_at(stream: &TcpStream, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).map_err(|_| Errno::INVAL)?;
    // SAFETY: the kernel reads an int of the size that is told, which lives during the call.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
