//! The planner that the standalone runs on today: one node is all there is, so a volume's object, its
//! directories and its processes are seen at once. [`crate::volume`] and [`crate::node`] take over from
//! it when the standalone has objects with an envelope; nothing is added here.
//!
//! ```text
//! Volume ──validate──▶ Wanted ─┐
//!                              ├─plan─▶ Plan: actions, conditions, when to look again
//! a node's facts ────▶ Seen ───┘
//! ```

pub mod action;
pub mod attachment;
pub mod plan;
#[cfg(test)]
mod scenarios;
pub mod seen;
pub mod validate;
