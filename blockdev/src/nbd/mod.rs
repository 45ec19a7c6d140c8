//! A disk as a Network Block Device, for clients on a unix or TCP socket.
//!
//! Follows `doc/proto.md` of NetworkBlockDevice/nbd: fixed newstyle handshake, structured replies,
//! block status. Owns the server ([`serve`]) and a client ([`Client`]) that is a
//! [`Disk`](crate::disk::Disk) again. All of it runs on one thread; `docs/design/0001` has the
//! picture, the limits and what was not chosen.
//!
//! Promises: replies leave only when the disk has answered, and a disk's
//! [`Hold`](crate::disk::Hold) is kept until the reply is with the socket; a request that was
//! begun is finished, whatever becomes of its client; memory is limited, that of one client and that
//! of all, and a client that hangs or sends garbage harms only its own connection.
//!
//! ```text
//! handshake ─▶ request ─▶ intake ┐                          P: no I/O, no clock, no task
//!     P           P          P   ├─▶ connection ─▶ server   I: sockets
//! wire (P) ─────────────▶ reply P┘       I            I
//! ```

mod client;
mod connection;
pub mod handshake;
pub mod intake;
mod listener;
mod memory;
pub mod reply;
pub mod request;
mod server;
mod stream;
pub mod wire;

pub use client::{Client, ConnectError};
pub use listener::{ListenError, Listener, TcpExposure};
pub(crate) use server::transmit;
pub use server::{Export, Limits, serve};

/// Longest data of one request, in bytes: what the protocol asks every server to take.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Requests of this unit need no read-modify-write below.
pub const BLOCK_BYTES_PREFERRED: u32 = crate::disk::BLOCK_BYTES as u32;
/// Block status tells of this much at once, so that the list of runs stays below 8 MiB.
pub const STATUS_BYTES_MAX: u64 = 1 << 30;
