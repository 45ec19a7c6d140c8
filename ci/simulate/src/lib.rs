//! A volume in a simulated world: one seed is one history.
//!
//! ```text
//! client ─▶ engines (the real core) ─▶ network ─▶ replicas (the real server and store) ─▶ disks
//!                  └─▶ arbiter                                       adversary: all of these
//! ```

mod history;
mod machine;
mod schedule;
mod tasks;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use world::Tally;
use world::World;

/// How a history went.
pub struct Outcome {
    pub seed: u64,
    /// The same for every run of the seed.
    pub trace: u64,
    pub tally: Tally,
    /// What was wrong, if anything was.
    pub failure: Option<String>,
}

/// Runs the history of a seed.
pub fn run(seed: u64, verbose: bool) -> Outcome {
    let mut world = World::new(seed);
    world.verbose = verbose;
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    let failure = ended.err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without words".into())
    });
    let outcome = Outcome { seed, trace: world.trace, tally: world.tally, failure };
    if outcome.failure.is_some() {
        // Futures that were cut off in the middle of a panic may not be dropped in peace.
        std::mem::forget(world);
    }
    outcome
}
