use std::collections::BTreeMap;

use super::super::crash::{Disk, DiskFile, Random};
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
        IntentError::Damaged(problem) => panic!("{problem}"),
    })
}

fn make(disk: &Disk, volume_bytes: u64) -> Intent<DiskFile> {
    let file = disk.create("intent", FileKind::Metadata).expect("a new disk");
    file.preallocate(file_bytes(volume_bytes)).expect("there is room");
    sound(Intent::open(file, volume_bytes))
}

fn open(disk: &Disk, volume_bytes: u64) -> Intent<DiskFile> {
    sound(Intent::open(disk.open("intent", FileKind::Metadata).expect("there"), volume_bytes))
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
        let intent = make(&disk, 8 * GIB);
        let mut random = Random::new(1);
        let before = disk.syncs();
        for _ in 0..10_000 {
            write(&intent, random.below(8 * GIB / REGION_BYTES)).await;
        }
        let syncs = disk.syncs() - before;
        assert!(syncs <= 2 * 133, "{syncs} syncs for 133 groups");
    });
}

/// After a crash every marked region is read on all members.
#[test]
fn a_lone_write_marks_one_region_and_a_second_one_its_group() {
    run(async {
        let disk = Disk::new(1);
        let intent = make(&disk, GIB);
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
        let intent = make(&disk, 64 * GIB);
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
            let intent = make(&disk, REGIONS * REGION_BYTES);
            intent.sync().await.expect("a sound disk");
            disk.sync_dir().await.expect("a sound disk");
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
                let left = open(&disk.after_power_cut(random.number()), REGIONS * REGION_BYTES);
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
