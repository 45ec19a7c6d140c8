//! What is to be done about a volume, from what is wanted and what was seen: pure, without a file, a
//! process or a clock.
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
