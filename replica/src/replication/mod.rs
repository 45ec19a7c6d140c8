//! The engine's replication core: pure. Events go in, actions come out, time is an argument.
//!
//! Owns the order of overlapping requests, who must confirm what before it is acknowledged, and
//! how the in-sync set changes. Follows `docs/replication-rules.md`. Promises:
//!
//! - a request is acknowledged only when every member of the set has confirmed it; a member that
//!   fails is first removed from the arbiter's record, and every survivor has made that durable;
//! - a range is read only after it is the same on all members;
//! - a flush is answered only after all members have synced what was acknowledged before it;
//! - a fenced engine answers nothing any more.
//!
//! What may never happen: I/O, a look at the clock, or an iteration whose order depends on a hash.
//!
//! ```text
//! frontend ──submit──▶ ┌──────────────────────────────┐ ──Complete──▶ frontend
//! replicas ──answered▶ │ Core: io  settle  rebuild    │ ──Send──────▶ replicas
//! arbiter  ──changed─▶ │       membership  chain_work │ ──Change────▶ arbiter
//! clock    ──tick────▶ └──────────────────────────────┘ ──End───────▶ process
//! ```

mod action;
mod backlog;
mod budget;
mod chain_work;
mod clear;
mod closing;
mod config;
mod core;
mod damage;
mod epoch;
mod failed;
mod fan_out;
mod flush;
mod hedge;
mod io;
mod joins;
mod latency;
mod lease;
mod locks;
mod lost;
mod marks;
mod membership;
mod opening;
mod peer;
mod read;
mod rebuild;
mod repair;
mod room;
mod settle;
mod slots;
mod status;
mod write;

pub use action::{
    Action, Destination, End, Failure, IoId, Job, JobId, LinkId, Operation, PayloadRef, TransferId,
};
pub use config::Config;
pub use core::Core;
pub use damage::{DamageNews, DamageStatus, DamagedBlocks, LastDamage, ReplicaDamage};
pub use rebuild::RebuildStatus;
pub use room::waits_for_room;
pub use slots::{SLOTS_MAX, Slot};
pub use status::{CoreStatus, PeerStatus};
