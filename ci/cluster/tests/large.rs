//! The cost of a manager follows what happens, never what there is.

use std::sync::Mutex;
use std::time::Duration;

use ankole_api::volume::{Robustness, State};
use ankole_cluster::Large;
use ankole_replica::admin::ReplicaMode;

const NODES: usize = 1000;
const VOLUMES: usize = 10_000;
const MEMORY_BYTES_MAX: u64 = 600 << 20;

/// Memory is the process's.
static ALONE: Mutex<()> = Mutex::new(());

/// Of this thread.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    Duration::from_nanos(first.expect("time on a processor, in ns"))
}

fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = text.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.expect("the process has memory") << 10
}

#[test]
fn a_thousand_nodes_with_ten_thousand_volumes() {
    let _alone = ALONE.lock();
    let mut large = Large::new(VOLUMES, NODES);
    for volume in large.volumes() {
        assert_eq!(volume.status.state, Some(State::Attached), "{volume:?}");
        assert_eq!(volume.status.robustness, Some(Robustness::Healthy), "{volume:?}");
    }
    let memory = memory_bytes();
    println!("store and manager: {} MiB", memory >> 20);
    assert!(memory < MEMORY_BYTES_MAX, "{memory}");

    let (writes, passes) = (large.writes(), large.manager.passes);
    large.rest(20);
    assert_eq!(large.writes(), writes, "nothing happens");
    assert_eq!(large.manager.passes, passes, "nothing happens");

    // Each node has the engines of ten volumes, and two replicas of twenty others.
    large.die(7);
    large.rest(5);
    let (passes, writes) = (large.manager.passes - passes, large.writes() - writes);
    println!("a node's death: {passes} passes, {writes} writes");
    let own = 3 * (VOLUMES / NODES) as u64;
    assert!((own..=6 * own).contains(&passes), "{passes} passes for {own} volumes");
    assert!(writes <= 4 * own, "{writes} writes for {own} volumes");
}

/// Ten times as many volumes with an event each are ten times the work: a slope of one, and a little
/// for caches that are too small.
#[test]
fn an_event_costs_the_same_among_many() {
    let _alone = ALONE.lock();
    let cost = |volumes: usize| {
        let mut large = Large::new(volumes, NODES);
        let rounds = (0..3).map(|_| {
            let before = cpu_time();
            for mode in [ReplicaMode::Error, ReplicaMode::ReadWrite] {
                for volume in 0..volumes {
                    large.disturb(volume, mode);
                    large.turn();
                }
            }
            cpu_time() - before
        });
        rounds.min().unwrap()
    };
    let (few, many) = (cost(VOLUMES / 10), cost(VOLUMES));
    let slope = (many.as_secs_f64() / few.as_secs_f64()).log10();
    println!("{few:?} for {} volumes, {many:?} for {VOLUMES}: slope {slope:.2}", VOLUMES / 10);
    assert!(slope <= 1.1, "{few:?} and {many:?}: slope {slope:.2}");
}
