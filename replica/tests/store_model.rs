//! Random operations against a model, and random crashes among them.

mod store;

use ankole_replica::store::crash::{Faults, Random};
use store::run;
use store::world::{Crash, World, random_ops};

/// More by hand: `ANKOLE_TEST_SEEDS=10000`. One again: `ANKOLE_TEST_SEED=17`.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    if let Some(seed) = number("ANKOLE_TEST_SEED") {
        return seed..seed + 1;
    }
    0..number("ANKOLE_TEST_SEEDS").unwrap_or(count)
}

/// Every view must read like a flat array, whatever was snapshotted, reverted, removed, joined.
#[test]
fn the_chain_reads_like_flat_arrays() {
    for seed in seeds(30) {
        println!("seed {seed}");
        run(async {
            let mut world = World::new(seed).await;
            world.disk.set_slow(seed % 2 == 1);
            for (index, op) in random_ops(seed, 80).iter().enumerate() {
                println!("  {index}: {op:?}");
                world.play(op).await.expect("a sound disk");
                if index % 10 == 9 {
                    world.check().await;
                }
            }
            world.check().await;
        });
    }
}

/// P1 and P2 on one replica: a process that is killed loses nothing that was answered, a machine
/// that loses power nothing that was flushed, at whichever call it happens and however often.
#[test]
fn crashes_at_random_calls_lose_only_what_they_may() {
    for seed in seeds(60) {
        println!("seed {seed}");
        run(async {
            let mut random = Random::new(seed ^ 0xc0ffee);
            let mut world = World::new(seed).await;
            for round in 0..4 {
                let end = 1 + random.below(2500);
                let faults = Faults { end_at_call: Some(end), ..Faults::default() };
                world.disk.set_faults(faults);
                for op in random_ops(seed * 100 + round, 60) {
                    println!("  {op:?}");
                    if let Err(error) = world.play(&op).await {
                        println!("  ended: {error}");
                        break;
                    }
                }
                let crash = if random.below(2) == 0 { Crash::Kill } else { Crash::PowerCut };
                println!("  {crash:?} at call {end}");
                world = world.crash(crash, random.number()).await;
            }
        });
    }
}
