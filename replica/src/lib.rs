//! One copy of a volume on a disk, and how the copies stay equal.
//!
//! ```text
//! engine ─▶ replication (pure) ─▶ stream, wire ─▶ server ─▶ service ─▶ store ─▶ chain (pure)
//! ```

pub mod admin;
pub mod chain;
pub mod checksum;
pub mod engine;
pub mod inspect;
pub mod lease;
pub mod listen;
pub mod message;
pub mod mutation;
pub mod payload;
pub mod process;
pub mod reader;
pub mod record;
pub mod regions;
pub mod replication;
pub mod salvage;
pub mod server;
mod service;
pub mod store;
mod stream;
pub mod types;
pub mod wire;

/// Of the program. A debug build says that it is one: it is another program than the release.
pub const VERSION: &str = if cfg!(debug_assertions) {
    concat!(env!("CARGO_PKG_VERSION"), "+debug")
} else {
    env!("CARGO_PKG_VERSION")
};
