//! The control plane of Ankole and its command line.
//!
//! ```text
//! cli ──client──▶ http ──▶ service ──▶ objects ◀──▶ manager, agent ──▶ engine, replica processes
//!                                         ▲                                   │
//!                                         └────────── arbiter socket ◀────────┘
//! ```
//! What users want goes into objects and nowhere else; manager and agent make it true. So a crash of
//! any part, this one included, leaves nothing that the next pass doesn't see.

pub mod backup_job;
pub mod cli;
mod clock;
pub mod handed_in;
pub mod http;
pub mod manager;
pub mod opening;
pub mod roles;
pub mod service;

pub use ankole_agent as agent;
pub use ankole_api as api;
pub use ankole_client as client;
