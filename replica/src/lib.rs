//! One copy of a volume on a disk, and how the copies stay equal.

pub mod admin;
pub mod arbiter;
pub mod chain;
pub mod message;
pub mod replication;
pub mod types;
