//! A node's planner: from its objects and what is true of them on this machine to actions. Pure: no
//! clock, no process, no disk. An engine, a replica and a job have a plan each; none looks at
//! another.

pub mod attachment;
pub mod engine;
pub mod facts;
pub mod job;
pub mod replica;
#[cfg(test)]
mod scenarios;
