//! What runs on this machine: folders, processes, and what the node can do.

pub mod admin;
pub mod format;
pub mod layout;
pub mod pidfile;
pub mod probe;
mod spawn;
pub mod supervisor;

pub use layout::Layout;
pub use supervisor::{LocalSupervisor, Part, Process, ProcessName, ProcessSpec, Supervisor};
