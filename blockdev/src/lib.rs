//! A volume as a block device on the node.
//!
//! Owns the trait [`Disk`](disk::Disk), the frontends that serve any disk to a client, and the
//! disks that wrap other disks. Promises that a request which reaches a `Disk` lies within it.
//! A byte that a client sent never causes a panic here.

pub mod accept;
mod blocking;
pub mod descriptors;
pub mod device;
pub mod disk;
pub mod hash;
pub mod kernel_nbd;
pub mod namespace;
pub mod nbd;
mod privilege;
pub mod program;
pub mod reclaim;
pub mod tgt;
pub mod ublk;
pub mod unix_socket;
