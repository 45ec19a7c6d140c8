//! Cuts the power of a volume's machines, and looks whether what was flushed is still there.
//!
//! ```text
//! client ──▶ engine ──▶ three replicas ──▶ recording directories │ images
//!   └─▶ oracle (pure): what must be there            └─▶ the cut: what may be left
//!                └───────────────▶ check ◀───────────────┘
//! ```

pub mod admin;
pub mod arbiter;
pub mod campaign;
pub mod case;
pub mod client;
pub mod cluster;
pub mod image;
pub mod images;
pub mod inspect;
pub mod machine;
pub mod oracle;
pub mod process;
pub mod recorded;
pub mod recording;
pub mod sector;
pub mod workload;
pub mod write_log;
