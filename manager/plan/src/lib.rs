//! What is to be done, from what is wanted and what was seen: pure, without a file, a process or a
//! clock.
//!
//! ```text
//!  all objects ──▶ manager ── Known ──▶ volume::plan ──▶ writes to objects
//!  objects of a node, facts of the node ──▶ node::{engine, replica}::plan ──▶ actions, a status
//! ```
//! The two never speak to each other but by objects: a manager names nodes and says what may be done
//! there, an agent does it and says what is so.

pub mod manager;
pub mod node;
pub mod volume;
