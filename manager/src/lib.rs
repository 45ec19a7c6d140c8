//! The control plane of Ankole and its command line.
//!
//! ```text
//! cli ──client──▶ http ──▶ service ──▶ store ◀── controllers ──▶ agent ──▶ engine, replica processes
//!                                        ▲                                      │
//!                                        └──────────── arbiter socket ◀─────────┘
//! ```
//! What users want goes into the store and nowhere else; the controllers make it true. So a crash
//! of any part, this one included, leaves nothing that the next pass of a controller doesn't see.

pub mod backup_job;
pub mod cli;
mod clock;
pub mod controllers;
pub mod handed_in;
pub mod http;
pub mod manager;
pub mod opening;
pub mod records;
pub mod roles;
pub mod schedule;
pub mod service;
pub mod store;

pub use ankole_agent as agent;
pub use ankole_api as api;
pub use ankole_client as client;
