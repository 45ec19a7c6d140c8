//! One copy of a volume on a disk, and how the copies stay equal.

pub mod chain;
pub mod store;
pub mod types;
