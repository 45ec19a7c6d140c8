//! Histories of a cluster that go well; `cluster --seeds N --from X` runs more.

use ankole_cluster::{Ended, failover, history};

#[test]
fn histories_from_seeds() {
    all_went_well((0..300).map(history));
}

#[test]
fn the_volumes_of_a_machine_that_dies_or_hangs_are_attached_elsewhere() {
    all_went_well((0..20).flat_map(|seed| [false, true].map(|hangs| failover(seed, hangs))));
}

fn all_went_well(histories: impl Iterator<Item = Ended>) {
    let wrong: Vec<_> = histories.filter(|ended| !ended.wrong.is_empty()).collect();
    let told = wrong.iter().map(|ended| format!("seed {}: {}", ended.seed, ended.wrong.join("; ")));
    assert!(wrong.is_empty(), "{}", told.collect::<Vec<_>>().join("\n"));
}

#[test]
fn the_same_seed_is_the_same_history() {
    assert_eq!(history(7).log, history(7).log);
}
