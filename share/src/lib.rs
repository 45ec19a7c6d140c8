//! A tree of files as an NFSv4 export. See the README.

pub mod buffers;
pub mod metrics;
pub mod ops;
pub mod policy;
pub mod serve;
pub mod server;
pub mod state;
pub mod tree;
pub mod wire;
