//! The listening socket that a supervisor hands in, and that stays open while this process is away:
//! descriptor 3, as sd_listen_fds(3) has it.
#![allow(unsafe_code, reason = "a number becomes a descriptor that is owned")]

use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::FdFlags;
use rustix::net::sockopt;

const FIRST: i32 = 3;

/// Whether LISTEN_FDS and LISTEN_PID say that one is handed in to this process.
pub fn is_said(listen_fds: Option<&str>, listen_pid: Option<&str>) -> bool {
    let is = |said: Option<&str>, what: u32| said.and_then(|said| said.parse().ok()) == Some(what);
    is(listen_fds, 1) && is(listen_pid, std::process::id())
}

/// Called once, when it is said.
pub fn listener() -> io::Result<TcpListener> {
    // SAFETY: it is used for this one call, which fails if there is no such descriptor.
    rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(FIRST) }, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, since before this program began, by the word of who started it: nothing here has
    // opened it, and this is called once.
    let socket = unsafe { OwnedFd::from_raw_fd(FIRST) };
    if !sockopt::socket_acceptconn(&socket)?
        || sockopt::socket_type(&socket)? != rustix::net::SocketType::STREAM
    {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it doesn't listen"));
    }
    Ok(socket.into())
}
