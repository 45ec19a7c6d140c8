//! Random histories of a volume, compared with whole copies of it.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use ankole_backup::block::CompressionMethod;
use ankole_backup::plan::BackupMode;
use ankole_backup::prune::{Collected, delete_backup, prune};
use ankole_backup::target::MemoryTarget;
use ankole_backup::*;
use common::*;
use proptest::prelude::*;

const VOLUME_UNITS: u64 = 64;

#[derive(Clone, Debug)]
enum Step {
    Write {
        unit: u64,
        units: u64,
        seed: u64,
    },
    /// Makes a snapshot; a name may come twice.
    Snapshot {
        name: usize,
    },
    /// The user deletes a snapshot: later increments can't be built on it.
    Forget {
        snapshot: usize,
    },
    BackUp {
        snapshot: usize,
        full: bool,
        workers: usize,
        stop_after: Option<u64>,
    },
    Delete {
        backup: usize,
    },
    Prune,
    Grow,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..VOLUME_UNITS, 1..12_u64, 0..6_u64)
            .prop_map(|(unit, units, seed)| Step::Write { unit, units, seed }),
        3 => (0..3_usize).prop_map(|name| Step::Snapshot { name }),
        1 => any::<usize>().prop_map(|snapshot| Step::Forget { snapshot }),
        4 => (0..3_usize, prop::bool::weighted(0.15), 1..4_usize,
              prop::option::weighted(0.2, 0..8_u64))
            .prop_map(|(snapshot, full, workers, stop_after)| {
                Step::BackUp { snapshot, full, workers, stop_after }
            }),
        2 => any::<usize>().prop_map(|backup| Step::Delete { backup }),
        1 => Just(Step::Prune),
        1 => Just(Step::Grow),
    ]
}

/// What each backup must restore to.
type Wanted = BTreeMap<String, Vec<u8>>;

/// Each has the size that the volume had then, however it has grown since.
fn check(target: &MemoryTarget, wanted: &Wanted) {
    for (backup, bytes) in wanted {
        assert!(restored(target, "vol", backup).unwrap() == *bytes, "{backup} differs");
    }
}

fn run(steps: &[Step], compression: CompressionMethod) {
    let target = MemoryTarget::default();
    let mut model = Model::new("vol", VOLUME_UNITS * UNIT);
    let mut wanted = Wanted::new();
    for (index, step) in steps.iter().enumerate() {
        match *step {
            Step::Write { unit, units, seed } => model.write(unit, units, seed),
            Step::Snapshot { name } => drop(model.snapshot(&format!("snap{name}"))),
            Step::Forget { snapshot } if !model.snapshots.is_empty() => {
                let gone = model.snapshots[snapshot % model.snapshots.len()].id.clone();
                model.snapshots.iter_mut().for_each(|s| s.forget(&gone));
            }
            Step::BackUp { snapshot, full, workers, stop_after } => {
                // Mostly the newest one, sometimes an older one.
                let Some(source) = model.snapshots.iter().rev().nth(snapshot) else { continue };
                let mut backup = request(&format!("b{index}"));
                backup.mode = if full { BackupMode::Full } else { BackupMode::Incremental };
                (backup.workers, backup.compression) = (workers, compression);
                let stop = |progress: Progress| {
                    let blocks = progress.blocks_new + progress.blocks_reused;
                    match stop_after {
                        Some(most) if blocks > most => ControlFlow::Break(()),
                        _ => ControlFlow::Continue(()),
                    }
                };
                match back_up(&target, source, &backup, &stop) {
                    Ok(_) => {
                        wanted.insert(backup.backup.to_string(), source.bytes.clone());
                    }
                    Err(Error::Cancelled) => {}
                    Err(Error::Shrank { stored_bytes: stored, .. }) => {
                        assert!(stored > source.bytes.len() as u64);
                    }
                    Err(error) => panic!("{}", told(&error)),
                }
            }
            Step::Delete { backup } if !wanted.is_empty() => {
                let gone = wanted.keys().nth(backup % wanted.len()).unwrap().clone();
                wanted.remove(&gone);
                let collected = delete_backup(&target, &name("vol"), &name(&gone), quick());
                assert!(matches!(collected, Ok(Collected::Blocks { .. })), "{collected:?}");
                check(&target, &wanted);
            }
            Step::Prune => match prune(&target, &name("vol"), quick()) {
                Ok(Collected::Blocks { kept, .. }) => {
                    let blocks = target.keys().iter().filter(|key| key.ends_with(".blk")).count();
                    assert_eq!(kept, blocks as u64);
                    check(&target, &wanted);
                }
                Err(Error::NoSuchVolume { .. }) => assert!(wanted.is_empty()),
                other => panic!("{other:?}"),
            },
            Step::Grow => model.grow(4 * SMALL_BLOCK),
            Step::Forget { .. } | Step::Delete { .. } => {}
        }
    }
    check(&target, &wanted);
    // Nothing is left once all backups are deleted, whatever happened before.
    for backup in wanted.keys() {
        delete_backup(&target, &name("vol"), &name(backup), quick()).unwrap();
    }
    if prune(&target, &name("vol"), quick()).is_ok() {
        let left = target.keys();
        assert_eq!(left.len(), 1, "only volume.cfg is left, not {left:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever the order of writes, snapshots, full and incremental backups, interruptions,
    /// deletions and growth: a backup restores to its snapshot's bytes. A failing case is printed
    /// and kept by proptest.
    #[test]
    fn every_backup_restores_to_its_snapshot(
        steps in prop::collection::vec(step(), 1..40),
        compression in prop::sample::select(vec![CompressionMethod::Lz4, CompressionMethod::None]),
    ) {
        run(&steps, compression);
    }
}

/// An increment that skipped zeroes would restore the bytes that were there before them.
#[test]
fn zeroes_written_over_data_are_in_the_increment() {
    let target = MemoryTarget::default();
    let mut model = Model::new("vol", VOLUME_UNITS * UNIT);
    model.write(0, 16, 1);
    back_up(&target, &model.snapshot("s1"), &request("b1"), &unobserved).unwrap();
    model.write(4, 4, 0);
    let report = back_up(&target, &model.snapshot("s2"), &request("b2"), &unobserved).unwrap();
    assert!(report.plan.is_incremental());
    assert_eq!((report.plan.offsets_bytes.len(), report.blocks_new), (1, 1));
    assert_eq!(restored(&target, "vol", "b2").unwrap(), model.bytes);
    assert_eq!(report.manifest.mappings().len(), 4, "an increment lists everything");
}

/// A full backup of a mostly empty volume neither reads nor lists what was never written.
#[test]
fn absent_blocks_are_not_read() {
    let target = MemoryTarget::default();
    let mut model = Model::new("vol", VOLUME_UNITS * UNIT);
    model.write(20, 1, 1);
    let report = back_up(&target, &model.snapshot("s1"), &request("b1"), &unobserved).unwrap();
    assert_eq!(report.plan.offsets_bytes, [20 / 4 * SMALL_BLOCK]);
    assert_eq!(restored(&target, "vol", "b1").unwrap(), model.bytes);
}

/// The user deletes snapshot `daily` and makes a new one of that name. By name, the second backup
/// would be an increment on a snapshot that isn't there any more, and silently wrong.
#[test]
fn a_snapshot_made_again_under_its_old_name_is_another_one() {
    let target = MemoryTarget::default();
    let mut model = Model::new("vol", VOLUME_UNITS * UNIT);
    model.write(0, 64, 1);
    let first = model.snapshot("daily");
    back_up(&target, &first, &request("b1"), &unobserved).unwrap();
    // The volume is thrown away and filled anew: same names, other bytes.
    let mut again = Model::new("vol", VOLUME_UNITS * UNIT);
    again.write(0, 64, 2);
    again.snapshot("daily");
    again.write(3, 1, 3);
    let second = again.snapshot("weekly");
    let report = back_up(&target, &second, &request("b2"), &unobserved).unwrap();
    assert!(!report.plan.is_incremental(), "{}", report.plan);
    assert_eq!(restored(&target, "vol", "b2").unwrap(), again.bytes);
}

#[test]
fn equal_blocks_are_stored_once_and_a_second_full_backup_uploads_nothing() {
    let target = MemoryTarget::default();
    let mut model = Model::new("vol", VOLUME_UNITS * UNIT);
    model.write(0, 64, 1);
    let snapshot = model.snapshot("s1");
    let mut wanted = request("b1");
    wanted.workers = 4;
    let report = back_up(&target, &snapshot, &wanted, &unobserved).unwrap();
    assert_eq!((report.blocks_new, report.blocks_reused), (1, 15));
    let report = back_up(&target, &snapshot, &request("b2"), &unobserved).unwrap();
    assert_eq!((report.blocks_new, report.uploaded_bytes), (0, 0));
}
