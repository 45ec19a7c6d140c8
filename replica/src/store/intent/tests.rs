use std::collections::BTreeMap;

use super::super::crash::{Disk, DiskFile, Faults, Random};
use super::super::storage::{FileKind, Storage};
use super::*;

const FIRST: Generation = Generation::FIRST;
const GIB: u64 = 1 << 30;

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime starts").block_on(test)
}

fn sound<T>(done: Result<T, IntentError>) -> T {
    done.unwrap_or_else(|error| match error {
        IntentError::Io(error) => panic!("{error}"),
        IntentError::Damaged { file, problem } => panic!("{file}: {problem}"),
    })
}

async fn make(disk: &Disk, volume_bytes: u64) -> Intent<DiskFile> {
    let file = disk.create("intent", FileKind::Metadata).expect("a new disk");
    file.preallocate(file_bytes(volume_bytes)).expect("there is room");
    file.sync().await.expect("a sound disk");
    let used = disk.create("intent.used", FileKind::Metadata).expect("a new disk");
    Used::make(&used, sectors(volume_bytes)).await.expect("a sound disk");
    disk.sync_dir().await.expect("a sound disk");
    sound(open(disk, volume_bytes).await)
}

async fn open(disk: &Disk, volume_bytes: u64) -> Result<Intent<DiskFile>, IntentError> {
    let file = |name| disk.open(name, FileKind::Metadata).expect("it is there");
    let used = Used::open(file("intent.used"), sectors(volume_bytes))?;
    Intent::open(file("intent"), used, volume_bytes).await
}

/// The file that is named and what is said of it.
async fn damage(disk: &Disk, volume_bytes: u64) -> (&'static str, String) {
    match open(disk, volume_bytes).await {
        Err(IntentError::Damaged { file, problem }) => (file, problem),
        Err(IntentError::Io(error)) => panic!("{error}"),
        Ok(_) => panic!("it must not open"),
    }
}

async fn write(intent: &Intent<DiskFile>, region: u64) {
    sound(intent.mark(|| std::iter::once(Region(region)), FIRST, Reach::Group).await);
}

fn marked(intent: &Intent<DiskFile>) -> Vec<u64> {
    sound(intent.marked()).into_iter().map(|(region, _)| region.0).collect()
}

/// Each of them paid a sync for each region before: random writes had a third of the speed of a
/// plain file, up to the last region and after each rest.
#[test]
fn random_writes_over_a_large_volume_pay_a_sync_for_a_group_not_for_a_region() {
    run(async {
        let disk = Disk::new(1);
        let intent = make(&disk, 8 * GIB).await;
        let mut random = Random::new(1);
        let before = disk.syncs();
        for _ in 0..10_000 {
            write(&intent, random.below(8 * GIB / REGION_BYTES)).await;
        }
        let syncs = disk.syncs() - before;
        // And one for every eight groups that were never used before.
        assert!(syncs <= 2 * 133 + 17, "{syncs} syncs for 133 groups");
    });
}

/// After a crash every marked region is read on all members.
#[test]
fn a_lone_write_marks_one_region_and_a_second_one_its_group() {
    run(async {
        let disk = Disk::new(1);
        let intent = make(&disk, GIB).await;
        for region in [3, 3, 200] {
            write(&intent, region).await;
        }
        assert_eq!(marked(&intent), [3, 200]);
        write(&intent, 60).await;
        assert_eq!(marked(&intent), (0..62).chain([200]).collect::<Vec<_>>());
        let both = || [1000, 1023].into_iter().map(Region);
        sound(intent.mark(both, FIRST, Reach::Named).await);
        write(&intent, 1023).await;
        assert_eq!(marked(&intent).len(), 65, "it was marked already");
        write(&intent, 1005).await;
        let last = 992..1024; // the volume ends within the group
        assert_eq!(marked(&intent), (0..62).chain([200]).chain(last).collect::<Vec<_>>());
    });
}

/// 370 regions a second were cleared with a read and a write for each.
#[test]
fn clearing_and_stamping_touch_a_run_of_sectors_at_once() {
    run(async {
        let disk = Disk::new(1);
        let intent = make(&disk, 64 * GIB).await;
        let all = || (0..16 * 1024).map(Region);
        sound(intent.mark(all, FIRST, Reach::Named).await);
        // 265 sectors are three runs of at most 128: a read and a write for each.
        let before = disk.calls();
        sound(intent.restamp(FIRST.next()).await);
        assert_eq!(disk.calls() - before, 3 * 2 + 1, "and a sync");
        sound(intent.clear(all()));
        assert_eq!(disk.calls() - before, 3 * 2 + 1 + 3 * 2);
        assert!(marked(&intent).is_empty());
    });
}

/// What a process and its disk went through, and what must be so at every sync: a region that may
/// be written is marked after a power cut, in the newest generation; a stamp outlives its mark.
#[test]
fn marks_are_durable_before_the_write_and_stamps_outlive_them() {
    const REGIONS: u64 = 200;
    for seed in 0..60 {
        println!("seed {seed}");
        run(async {
            let disk = Disk::new(seed);
            disk.set_slow(true);
            let intent = make(&disk, REGIONS * REGION_BYTES).await;
            let mut random = Random::new(seed);
            let mut generation = FIRST;
            // Of each region that may have been written: when it was marked, and whether still.
            let mut expected: BTreeMap<u64, (Generation, bool)> = BTreeMap::new();
            for _ in 0..40 {
                match random.below(8) {
                    0 => {
                        generation = generation.next();
                        sound(intent.restamp(generation).await);
                        let marked = expected.values_mut().filter(|(_, marked)| *marked);
                        marked.for_each(|(stamp, _)| *stamp = generation);
                    }
                    1..=2 => {
                        let group = random.below(REGIONS.div_ceil(62));
                        let group = group * 62..REGIONS.min(group * 62 + 62);
                        sound(intent.clear(group.clone().map(Region)));
                        expected.range_mut(group).for_each(|(_, (_, marked))| *marked = false);
                    }
                    _ => {
                        let [one, two] = [(); 2].map(|()| random.below(REGIONS));
                        let mark = |region| {
                            intent.mark(
                                move || std::iter::once(Region(region)),
                                generation,
                                Reach::Group,
                            )
                        };
                        let (done, other) = tokio::join!(mark(one), mark(two));
                        sound(done);
                        sound(other);
                        expected.extend([one, two].map(|region| (region, (generation, true))));
                    }
                }
                let left = disk.after_power_cut(random.number());
                let left = sound(open(&left, REGIONS * REGION_BYTES).await);
                let marks: BTreeMap<_, _> = sound(left.marked()).into_iter().collect();
                let stamps: BTreeMap<_, _> = sound(left.stamped_since(0)).into_iter().collect();
                for (region, (stamp, is_marked)) in &expected {
                    let region = Region(*region);
                    assert!(stamps.get(&region) >= Some(stamp), "{region:?} isn't remembered");
                    let found = marks.get(&region);
                    assert!(!is_marked || found >= Some(stamp), "{region:?} isn't marked");
                }
            }
        });
    }
}

/// A power cut in the first use of a sector must not look like one that turned to zero: the
/// replica would be rebuilt for nothing.
#[test]
fn a_power_cut_at_any_sync_leaves_a_map_that_opens_with_every_answered_mark() {
    const BYTES: u64 = 16 * GIB;
    for seed in 0..8 {
        for end_at_sync in 1..40 {
            println!("seed {seed}, sync {end_at_sync}");
            run(async {
                let disk = Disk::new(seed);
                disk.set_slow(true);
                let intent = make(&disk, BYTES).await;
                disk.set_faults(Faults { end_at_sync: Some(end_at_sync), ..Faults::default() });
                let mut random = Random::new(seed);
                let mut answered = Vec::new();
                loop {
                    let [one, two] = [(); 2].map(|()| random.below(BYTES / REGION_BYTES));
                    let mark =
                        |at| intent.mark(move || std::iter::once(Region(at)), FIRST, Reach::Group);
                    let (first, second) = tokio::join!(mark(one), mark(two));
                    answered.extend(first.is_ok().then_some(one));
                    answered.extend(second.is_ok().then_some(two));
                    if first.is_err() || second.is_err() {
                        break;
                    }
                }
                let left = disk.after_power_cut(random.number());
                let left = sound(open(&left, BYTES).await);
                let is_marked = |region: &u64| left.is_marked(Region(*region));
                assert!(answered.iter().all(is_marked), "a write was let go without a mark");
            });
        }
    }
}

/// A lost write, or an extent that turned to zero, was "nothing marked": a replica that had lost
/// writes counted as complete.
#[test]
fn a_sector_that_turned_to_zero_is_damage_and_named() {
    run(async {
        let disk = Disk::new(1);
        let intent = make(&disk, 600 * GIB).await;
        write(&intent, 62 * 9).await;
        sound(intent.clear([Region(62 * 9)].into_iter()));
        intent.sync().await.expect("a sound disk");
        let zeroes = [0; SECTOR_BYTES];
        let map = disk.after_kill();
        map.damage("intent", 9 * SECTOR_BYTES as u64, &zeroes);
        let (file, problem) = damage(&map, 600 * GIB).await;
        assert_eq!((file, &problem[..8]), ("intent", "sector 9"));
        map.damage("intent", 9 * SECTOR_BYTES as u64, &disk.bytes_of("intent")[8 * 512..][..512]);
        assert_eq!(damage(&map, 600 * GIB).await.1, "sector 9 isn't what was written");
        let used = disk.after_kill();
        used.damage("intent.used", SECTOR_BYTES as u64, &zeroes);
        let (file, problem) = damage(&used, 600 * GIB).await;
        assert_eq!((file, &problem[..8]), ("intent.used", "sector 1"));
    });
}

/// The part of it that grew wasn't written when the map was made.
#[test]
fn a_map_that_grew_opens_and_knows_what_is_used_in_both_parts() {
    run(async {
        let disk = Disk::new(1);
        let (small, large) = (100 * GIB, 1000 * GIB);
        let intent = make(&disk, small).await;
        write(&intent, 7).await;
        intent.extend(large).expect("there is room");
        intent.sync().await.expect("a sound disk");
        drop(sound(open(&disk.after_power_cut(1), small).await)); // the chain wasn't changed yet
        intent.resize(large);
        write(&intent, 900 << 10).await;
        let left = disk.after_power_cut(2);
        assert_eq!(marked(&sound(open(&left, large).await)), [7, 900 << 10]);
    });
}

/// The whole map of 64 TiB has 553 MB.
#[test]
fn opening_reads_what_was_written_not_what_the_volume_has() {
    run(async {
        let disk = Disk::new(1);
        let size = 64 << 40;
        let intent = make(&disk, size).await;
        let mut random = Random::new(1);
        let far: Vec<_> = (0..64).map(|_| random.below(size / REGION_BYTES)).collect();
        let written = (0..10 * GIB / REGION_BYTES).chain(far.iter().copied()).map(Region);
        sound(intent.mark(|| written.clone(), FIRST, Reach::Named).await);
        drop(intent);
        let before = disk.calls();
        let intent = sound(open(&disk, size).await);
        let calls = disk.calls() - before;
        assert_eq!(marked(&intent).len(), 10 * 1024 + 64);
        // Of each place where something is: where it is, and a read.
        assert!(calls <= 2 * (64 + 2) + 8, "{calls} calls");
    });
}

/// Nothing knows there what was used: all that holds something is.
#[test]
fn a_map_of_before_is_read_once_and_known_from_then_on() {
    run(async {
        let disk = Disk::new(1);
        let intent = make(&disk, 8 * GIB).await;
        write(&intent, 700).await;
        Used::make(&disk.open("intent.used", FileKind::Metadata).expect("there"), 133)
            .await
            .expect("a sound disk");
        assert_eq!(marked(&sound(open(&disk, 8 * GIB).await)), [700]);
        disk.damage("intent", 700 / 62 * SECTOR_BYTES as u64, &[0; SECTOR_BYTES]);
        assert_eq!(damage(&disk, 8 * GIB).await.0, "intent");
    });
}
