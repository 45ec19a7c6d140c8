//! Commands to the kernel's driver nbd. They block, mostly briefly.
//!
//! Follows `include/uapi/linux/nbd-netlink.h`, and `drivers/block/nbd.c` of Linux 6.1 to 7.2 for what
//! it leaves open. What a device is connected to is read from /sys.

#![expect(unsafe_code, reason = "netlink sockets, for which std has no name")]

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use super::error::Unavailable;
use super::netlink::{self, Attributes, Message};
use crate::disk::SECTOR_BYTES;

/// Generic netlink's own family, which knows the others: `GENL_ID_CTRL`.
mod controller {
    pub(super) const FAMILY: u16 = 16;
    pub(super) const GET_FAMILY: u8 = 3;
    pub(super) const ATTRIBUTE_FAMILY_ID: u16 = 1;
    pub(super) const ATTRIBUTE_FAMILY_NAME: u16 = 2;
}

mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;
}

mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONNECTION_TIMEOUT: u16 = 8;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;
}

const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;
/// An answer is far shorter.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// The driver's control, over a socket of its own.
pub(super) struct Driver {
    socket: OwnedFd,
    family: u16,
    sequence: u32,
}

/// What a device is made with.
pub(super) struct Connect<'a> {
    pub(super) id: Option<u32>,
    pub(super) size_bytes: u64,
    /// As in the handshake of NBD.
    pub(super) transmission_flags: u16,
    /// So long requests wait for a new connection when all are gone; then they get `EIO`.
    pub(super) dead_connection: Duration,
    /// The kernel's ends.
    pub(super) sockets: &'a [OwnedFd],
    pub(super) identity: &'a str,
}

impl Driver {
    pub(super) fn open() -> Result<Self, Unavailable> {
        let socket = netlink_socket().map_err(Unavailable::Netlink)?;
        let mut driver = Self { socket, family: controller::FAMILY, sequence: 0 };
        let name = Attributes::default().text(controller::ATTRIBUTE_FAMILY_NAME, "nbd");
        let kind = controller::ATTRIBUTE_FAMILY_ID;
        match driver.ask(controller::GET_FAMILY, &name, kind) {
            Ok(Some(id)) => {
                let id = netlink::u16_at(&id, 0);
                driver.family =
                    id.ok_or_else(|| Unavailable::Netlink(io::ErrorKind::InvalidData.into()))?;
                Ok(driver)
            }
            Ok(None) => Err(Unavailable::NoDriver),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Unavailable::NoDriver),
            Err(error) => Err(Unavailable::Netlink(error)),
        }
    }

    /// Makes a device and returns its number. Its requests may come before this returns.
    pub(super) fn connect(&mut self, with: &Connect<'_>) -> io::Result<u32> {
        let mut attributes = with_sockets(with.sockets)
            .u64(attribute::SIZE_BYTES, with.size_bytes)
            .u64(attribute::BLOCK_SIZE_BYTES, SECTOR_BYTES)
            .u64(attribute::SERVER_FLAGS, with.transmission_flags.into())
            // A request that takes long is no reason to give up its connection.
            .u64(attribute::TIMEOUT, 0)
            .u64(attribute::DEAD_CONNECTION_TIMEOUT, with.dead_connection.as_secs())
            .text(attribute::BACKEND_IDENTIFIER, with.identity);
        if let Some(id) = with.id {
            attributes = attributes.u32(attribute::INDEX, id);
        }
        let id = self.ask(command::CONNECT, &attributes, attribute::INDEX)?;
        let id = id.and_then(|id| netlink::u32_at(&id, 0));
        id.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it doesn't say which"))
    }

    /// Gives the device new connections in place of dead ones. Those for which no dead one is
    /// found are closed without a word.
    pub(super) fn reconnect(
        &mut self,
        id: u32,
        identity: &str,
        sockets: &[OwnedFd],
    ) -> io::Result<()> {
        let attributes = with_sockets(sockets)
            .u32(attribute::INDEX, id)
            .text(attribute::BACKEND_IDENTIFIER, identity);
        self.ask(command::RECONFIGURE, &attributes, attribute::INDEX).map(drop)
    }

    /// Waits for requests in flight, so they must be served meanwhile.
    pub(super) fn resize(&mut self, id: u32, identity: &str, size_bytes: u64) -> io::Result<()> {
        let attributes = Attributes::default()
            .u32(attribute::INDEX, id)
            .u64(attribute::SIZE_BYTES, size_bytes)
            .u64(attribute::BLOCK_SIZE_BYTES, SECTOR_BYTES)
            .text(attribute::BACKEND_IDENTIFIER, identity);
        self.ask(command::RECONFIGURE, &attributes, attribute::INDEX).map(drop)
    }

    /// What is in flight gets `EIO`.
    pub(super) fn disconnect(&mut self, id: u32) -> io::Result<()> {
        let attributes = Attributes::default().u32(attribute::INDEX, id);
        self.ask(command::DISCONNECT, &attributes, attribute::INDEX).map(drop)
    }

    /// The value of an attribute of the reply, if there is one.
    fn ask(
        &mut self,
        command: u8,
        attributes: &Attributes,
        wanted: u16,
    ) -> io::Result<Option<Vec<u8>>> {
        self.sequence += 1;
        let request = netlink::request(self.family, self.sequence, command, attributes);
        let mut socket = fs::File::from(self.socket.try_clone()?);
        socket.write_all(&request)?;
        let (mut value, mut answer) = (None, vec![0; ANSWER_BYTES_MAX]);
        loop {
            let count = socket.read(&mut answer)?;
            for message in netlink::messages(&answer[..count], self.sequence) {
                match message {
                    Message::Done { errno: 0 } => return Ok(value),
                    Message::Done { errno } => return Err(io::Error::from_raw_os_error(errno)),
                    Message::Reply(reply) => {
                        value = netlink::attribute(reply, wanted).map(Vec::from).or(value);
                    }
                }
            }
        }
    }
}

fn with_sockets(sockets: &[OwnedFd]) -> Attributes {
    let list = sockets.iter().fold(Attributes::default(), |list, socket| {
        let fd = u32::try_from(socket.as_raw_fd()).expect("a descriptor isn't negative");
        list.nested(SOCKET_ITEM, Attributes::default().u32(SOCKET_FD, fd))
    });
    Attributes::default().nested(attribute::SOCKETS, list)
}

/// Bound to a port of the kernel's choice by its first use.
fn netlink_socket() -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    let fd = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_GENERIC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nothing else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_patience(socket.as_fd())?;
    Ok(socket)
}

/// No command takes so long unless the device is stuck.
fn set_patience(socket: BorrowedFd<'_>) -> io::Result<()> {
    let patience = libc::timeval { tv_sec: 30, tv_usec: 0 };
    // SAFETY: the value is a timeval of that length, and is only read during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn in_sys(id: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/sys/block/nbd{id}/{file}"))
}

/// What the device was connected with; None if it isn't.
pub(super) fn identity(id: u32) -> io::Result<Option<String>> {
    match fs::read_to_string(in_sys(id, "backend")) {
        Ok(text) => Ok(Some(text.trim_end_matches('\n').to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The device that was connected with this; None if there is none.
pub(super) fn find(wanted: &str) -> io::Result<Option<u32>> {
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("nbd")?.parse().ok());
        let Some(number) = number else { continue };
        match identity(number) {
            Ok(Some(found)) if found == wanted => return Ok(Some(number)),
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {} // it has just gone
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

pub(super) fn size_bytes(id: u32) -> io::Result<u64> {
    let sectors = fs::read_to_string(in_sys(id, "size"))?;
    let sectors: Option<u64> = sectors.trim().parse().ok();
    let size_bytes = sectors.and_then(|sectors| sectors.checked_mul(SECTOR_BYTES));
    size_bytes.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// After so long the driver looks whether a request's connection has been replaced, and sends it
/// again then.
pub(super) fn set_resend_interval(id: u32, interval: Duration) -> io::Result<()> {
    fs::write(in_sys(id, "queue/io_timeout"), interval.as_millis().to_string())
}
