//! What a replica's directory means, without touching it: which layers there are, which of them
//! holds a block, and how an index page looks in bytes.
//!
//! Pure: no I/O, no clock, no task. The store does what this module decides.

pub mod index;
pub mod layer;
mod tree;

pub use layer::{LayerInfo, Seal};
pub use tree::{Chain, ChainChange, ChainError, ChainInfo, ChainOp, JoinPlan, LAYERS_MAX};
pub(crate) use tree::{Difference, Joining, Layer};
