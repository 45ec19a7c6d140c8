//! What users and programs see: the kinds of objects, their names and sizes, and the errors.
//!
//! Pure: no I/O. Objects that the store keeps have a `spec` (what is wanted, written by users) and
//! a `status` (what is true and must survive a restart, written by the manager); what can be seen
//! again at any time isn't stored but put together into a view. Everything here is JSON with names
//! in camelCase, and sizes in bytes.

pub mod attachment;
pub mod backup;
pub mod error;
pub mod job;
pub mod name;
pub mod node;
pub mod object;
pub mod objects;
pub mod replica;
pub mod salvage;
#[cfg(test)]
mod shapes;
pub mod size;
pub mod snapshot;
pub mod target;
pub mod volume;
pub mod why;

pub use error::{ApiError, ErrorKind};
pub use name::Name;
