//! Managers and agents in a simulated cluster: a history from a seed.
//!
//! Real are the planners of volumes and nodes, the manager's memory, the objects, the rules by which a
//! store changes them, and those by which a record changes. Simulated are machines, processes, disks
//! and engines.
//!
//! ```text
//! users ─▶ store ◀─▶ two managers          each hears late, plans, writes; both at once
//!            ▲
//!            └────▶ agents ─▶ machines     processes, directories; off, hung, cut off, unmounted
//! ```
//! What must hold: an engine that opens finds every acknowledged write; of two engines one writes;
//! nothing that may hold data is formatted, set aside or removed but by the word of its object; when
//! nothing goes wrong any more, all that is wanted comes true, and then nothing is written.

mod agent;
mod engine;
mod large;
mod machine;
mod manager;
mod random;
mod store;
mod world;

pub use large::Large;
pub use world::{Ended, failover, history};
