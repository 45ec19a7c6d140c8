//! A model of fencing and membership: `docs/replication-rules.md`, rules 1–7, 9, 10, 10a, and the
//! procedures Open, Remove, Rebuild and Promote, for one block, three replicas and two engines.
//!
//! It owns a second, much smaller telling of the rules than the replication core's: every step that
//! engines, replicas, arbiter, clients and faults can take next, whatever the time. The search visits
//! every state that any sequence of such steps leads to, so what it says of a configuration is proved,
//! not sampled: the simulator tests the code, this tests the rules. Each rule has a switch; with it
//! off, the search must find how a promise breaks.
//!
//! | read | beside |
//! | --- | --- |
//! | [`rules`] | the list of rules that can be switched off |
//! | [`state`] | §1, durable state; what is remembered of a world, and the properties |
//! | [`protocol`] | §2 and §5: when each step can happen and what it does |
//! | [`step`] | the steps, and how they are told |
//! | [`history`] | I6: which answers one register could have given |
//! | [`configurations`] | how much world each search has |
//! | [`pack`], [`explore`] | how millions of states are visited; no rule is in there |
//!
//! What it doesn't say:
//! - Nothing of several blocks, sub-block writes, snapshots, disks that are full or lie, or of how long
//!   things take: that is the simulator's.
//! - Settling, copying, a FLUSH and a round of pings are one step each. Halves of them are the
//!   simulator's too. A FLUSH that fails (rule 10's other half) isn't there.
//! - A candidate's confirmations are waited for from the end of the copy on, a little earlier than
//!   Promote 2 asks.
//! - Safety only: that things go on (I11) isn't asked.
//! - After the power loss of all members it expects no more than P1.
#![forbid(unsafe_code)]

pub mod configurations;
pub mod explore;
pub mod history;
pub mod pack;
pub mod protocol;
pub mod rules;
pub mod state;
pub mod step;
pub mod values;
