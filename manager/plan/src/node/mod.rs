//! A node's planner: from its objects and what is true of them on this machine to actions. Pure: no
//! clock, no process, no disk. An engine and a replica have a plan each; neither looks at the other.

pub mod engine;
pub mod facts;
pub mod replica;
#[cfg(test)]
mod scenarios;
