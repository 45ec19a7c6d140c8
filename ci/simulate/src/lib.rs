//! A volume in a simulated world: one seed is one history.
//!
//! ```text
//! client ─▶ engines (the real core) ─▶ network ─▶ replicas (the real server and store) ─▶ disks
//!                  └─▶ arbiter                                       adversary: all of these
//! ```

mod found;
mod history;
mod machine;
mod schedule;
mod tasks;
mod thread;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ankole_replica::mutation;
pub use ankole_replica::mutation::Mutation;
pub use found::FOUND;
use world::World;
pub use world::{Story, Tally};

/// What is told of a history, and how closely it is watched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub verbose: bool,
    /// All snapshots are looked at after every event. A replica that is looked at after a crash
    /// recovers earlier than it would have, so this is another history than the same seed without.
    pub pedantic: bool,
    /// A rule that is broken on purpose.
    pub mutation: Option<Mutation>,
    /// Only this story; without, the seed decides whether one is told and which.
    pub story: Option<Story>,
}

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
pub fn run(seed: u64, options: Options) -> Outcome {
    mutation::set(options.mutation);
    let story = options.story.or_else(|| Story::of(seed, options.mutation));
    // What they read doesn't show that another rule is broken; it only takes time.
    let is_read = options.mutation.is_none_or(|mutation| mutation.rule() == "readers");
    let mut world = World::new(seed, story, is_read);
    (world.verbose, world.pedantic) = (options.verbose, options.pedantic);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    let failure = ended.err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without words".into())
    });
    mutation::set(None);
    let outcome = Outcome { seed, trace: world.trace, tally: world.tally, failure };
    if outcome.failure.is_some() {
        // Futures that were cut off in the middle of a panic may not be dropped in peace.
        std::mem::forget(world);
    }
    outcome
}

/// How a broken rule was noticed.
pub struct Caught {
    pub seeds: u64,
    /// The seed and what was seen; `None`: nothing, in all of them.
    pub by: Option<(u64, String)>,
}

/// Runs histories with a rule broken until one fails, at most `limit`.
pub fn hunt(mutation: Mutation, from: u64, limit: u64) -> Caught {
    let options = Options { mutation: Some(mutation), ..Options::default() };
    for seeds in 1..=limit {
        let seed = from + seeds - 1;
        if let Some(why) = run(seed, options).failure {
            return Caught { seeds, by: Some((seed, why)) };
        }
    }
    Caught { seeds: limit, by: None }
}
