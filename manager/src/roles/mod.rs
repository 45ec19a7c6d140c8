//! What one process of the binary is: the parts put together.

pub mod demo;
pub mod engine;
pub mod replica;
pub mod standalone;
