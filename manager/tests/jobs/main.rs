//! Backups and restores as processes: they live and die for themselves, and what came of them is known.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

#[path = "../common/mod.rs"]
mod common;

mod node;
mod process;
