//! The replication core under a seeded adversary: a failing seed is a whole history, and becomes a
//! test. `ANKOLE_SEEDS=N` runs N fresh seeds, `ANKOLE_SEED=S` runs one and says what happens.

#[path = "replication/history.rs"]
mod history;
#[path = "replication/model.rs"]
mod model;
#[path = "replication/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use world::World;

fn run(seed: u64) -> u64 {
    break_a_rule();
    let mut world = World::new(seed);
    world.verbose = std::env::var("ANKOLE_SEED").is_ok();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
        eprintln!("seed {seed} failed, trace {:016x}; ANKOLE_SEED={seed} tells more", world.trace);
        std::panic::resume_unwind(panic);
    }
    world.trace
}

/// In a build with the feature `mutations`, `ANKOLE_MUTATION=Name` says which rule is broken.
fn break_a_rule() {
    #[cfg(feature = "mutations")]
    if let Ok(name) = std::env::var("ANKOLE_MUTATION") {
        use ankole_replica::mutation::{Mutation, set};
        let named = |mutation: &&Mutation| format!("{mutation:?}") == name;
        set(Some(*Mutation::ALL.iter().find(named).expect("a mutation of this name")));
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// Without that, a failing seed can't be run again.
#[test]
fn the_same_seed_is_the_same_history() {
    for seed in 0..5 {
        assert_eq!(run(seed), run(seed));
    }
}

/// Each of these seeds has found a bug.
#[test]
fn histories_that_went_wrong_once_go_well() {
    for (seed, what_broke) in FOUND {
        println!("seed {seed}: {what_broke}");
        run(*seed);
    }
}

const FOUND: &[(u64, &str)] = &[
    (2, "a rebuilt replica synced before it had a write that was acknowledged without it"),
    (13, "an open whose chains were alike waited for an unrelated event"),
    (17, "a write overlapped a fetch of a rebuild that was given up"),
    (26, "a write was acknowledged before the survivors knew that a member was out"),
    (31, "a late description of the chain: the next change got the number of one that was done"),
    (47, "a member that was removed while it came back stayed live outside the set"),
    (52, "a detach never ended, since a lost last member was not connected again"),
    (94, "a write that the last member failed reached the one that was being rebuilt"),
    (145, "a member that was lost in a snapshot's flush came back without having flushed"),
    (159, "the last member failed a write while the arbiter was asked to add another"),
    (246, "an older Advance that was answered late hid a newer one"),
    (1122, "a write failed while one of its edges was still on its way"),
    (20_682, "the chain was asked for twice, and the second answer came during the next change"),
    (20_980, "members with and without a change of the chain came back in one session"),
];

/// Every seed is a world with its own mix of faults: no acknowledged write is lost or comes back
/// as an older one, and when the faults stop all replicas are members again.
#[test]
fn no_mix_of_faults_loses_a_write_or_stops_the_volume_for_good() {
    if let Some(seed) = number("ANKOLE_SEED") {
        run(seed);
        return;
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let base = number("ANKOLE_BASE").unwrap_or(clock.as_micros() as u64);
    let count = number("ANKOLE_SEEDS").unwrap_or(300);
    println!("{count} seeds from {base}");
    let failed = (base..base + count).filter(|seed| catch_unwind(|| run(*seed)).is_err());
    let failed: Vec<_> = failed.collect();
    assert!(failed.is_empty(), "{} of {count} seeds failed: {failed:?}", failed.len());
}
