//! What runs on this machine: folders, processes, and what the node can do.

pub mod admin;
pub mod arbiter;
pub mod backoff;
pub mod device_link;
pub mod disk_usage;
mod fate;
pub mod format;
pub mod growth;
pub mod kill;
pub mod last_words;
pub mod layout;
mod living;
pub mod logs;
pub mod node;
pub mod pidfile;
pub mod probe;
pub mod replica_folders;
pub mod set_aside;
mod sockets;
mod spawn;
pub mod supervisor;
pub mod usage;

pub use layout::Layout;
pub use supervisor::{LocalSupervisor, Part, Process, ProcessName, ProcessSpec, Supervisor};
