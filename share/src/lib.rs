//! A tree of files as an NFSv4 export. See the README.

pub mod state;
pub mod tree;
pub mod wire;
