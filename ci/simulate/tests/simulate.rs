//! The simulator's own promises, and the histories that found something.

use ankole_simulate::{FOUND, Options, run};

/// Without that, a failing seed can't be run again.
#[test]
fn the_same_seed_is_the_same_history() {
    for seed in 0..10 {
        let traces = [(); 2].map(|()| run(seed, Options::default()).trace);
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
}

/// Each of these seeds has found a bug.
#[test]
fn histories_that_went_wrong_once_go_well() {
    for (seed, what_broke) in FOUND {
        println!("seed {seed}: {what_broke}");
        assert_eq!(run(*seed, Options::default()).failure, None, "seed {seed}: {what_broke}");
    }
}
