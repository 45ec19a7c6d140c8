//! Where objects are kept: the small part of an API server that the control plane needs.
//!
//! ```text
//! typed ──▶ trait Store ◀── memory             what a write does is decided in one place,
//! cache ──▶      │          embedded            rules, of one object at a time; state keeps
//!                ▼          (Kubernetes)        all objects and what happened last
//!     rules ──▶ state
//! ```
//! Every change has a version that is never used again. A write names the version that it saw and is
//! refused when that isn't the present one: of two writers who read the same, one wins and the other
//! looks again. Who wants to know what changes lists once and watches from there.
//!
//! What may never happen: a write is answered before it is durable (where the backend is), a write
//! undoes another that its writer hasn't seen, a watcher misses a change without being told, one
//! object that can't be read hides another.
#![deny(clippy::significant_drop_in_scrutinee)] // a guard in a `match` lives through its arms

mod cache;
pub mod embedded;
mod error;
mod memory;
mod raw;
mod rules;
mod selector;
mod shared;
mod state;
mod store;
mod typed;

pub use cache::{Cache, Changes};
pub use embedded::EmbeddedStore;
pub use error::StoreError;
pub use memory::MemoryStore;
pub use raw::{Json, Raw};
pub use rules::{OBJECT_BYTES_MAX, Precondition, Stamp, Write};
pub use selector::Selector;
pub use state::{
    After, Batch, Change, HISTORY_BYTES_MAX, HISTORY_CHANGES_MAX, OBJECTS_BYTES_MAX, Since, State,
    Written,
};
pub use store::{Event, Events, List, Store, Unreadable};
pub use typed::Listed;
