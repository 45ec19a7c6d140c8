//! What a client sees through deaths and returns.

use std::collections::BTreeMap;
use std::time::Duration;

use ankole_blockdev::disk::{Buffer, Disk, Durability, Extent};
use ankole_replica::replication::End;
use ankole_replica::types::ReplicaId;

use super::harness::*;

#[test]
fn what_is_written_is_read_whole_blocks_sectors_and_zeroes() {
    for in_process in [true, false] {
        run(async {
            let cluster = Cluster::new(if in_process { 1 } else { 3 }, in_process).await;
            let engine = cluster.start_engine(false).await;
            assert_eq!(engine.size_bytes(), SIZE_BYTES);
            write(&engine, 0, &bytes(1, 8192)).await;
            write(&engine, 512, &bytes(9, 1024)).await; // within a block
            write(&engine, 4096 + 3584, &bytes(5, 1024)).await; // over a border
            let mut expected = bytes(1, 8192);
            expected[512..1536].copy_from_slice(&bytes(9, 1024));
            expected[7680..].copy_from_slice(&bytes(5, 1024)[..512]);
            assert_eq!(read(&engine, 0, 8192).await, expected);
            assert_eq!(read(&engine, 8192, 512).await, bytes(5, 1024)[512..]);
            engine.flush().await.expect("flush");
            let at = Extent { offset_bytes: 1024, length_bytes: 4096 + 512 };
            drop(engine.write_zeroes(at, Durability::Volatile).await.expect("zeroes"));
            expected[1024..1024 + 4608].fill(0);
            assert_eq!(read(&engine, 0, 8192).await, expected);
            drop(engine.trim(Extent { offset_bytes: 0, length_bytes: 6000 }).await.expect("trim"));
            expected[..4096].fill(0);
            assert_eq!(read(&engine, 0, 8192).await, expected);
        });
    }
}

/// Asked while it opened, an engine answered that there is no such snapshot, and would have made
/// a second one of a name that exists.
#[test]
fn an_engine_that_opens_does_not_say_that_a_snapshot_is_gone() {
    run(async {
        let cluster = Cluster::new(2, false).await;
        let engine = cluster.start_engine(false).await;
        engine.snapshot("s1".into(), BTreeMap::new()).await.expect("snapshot");
        let engine = cluster.begin_engine(true, |config| config);
        assert!(engine.snapshot("s1".into(), BTreeMap::new()).await.is_err(), "name is taken");
        let engine = cluster.begin_engine(true, |config| config);
        engine.remove_snapshot("s1").await.expect("it is there");
    });
}

/// Zeroes that begin or end within a block were three requests, of which the first kept its range
/// while the others waited behind a write that waited for that range: all of them hung for ever.
#[test]
fn zeroes_within_blocks_and_writes_over_their_edges_all_end() {
    run(async {
        let cluster = Cluster::new(2, false).await;
        let engine = cluster.start_engine(false).await;
        let zeroes = Extent { offset_bytes: 512, length_bytes: 16 << 10 };
        let over = |offset_bytes| Extent { offset_bytes, length_bytes: 8 << 10 };
        for _ in 0..50 {
            let zero = engine.write_zeroes(zeroes, Durability::Volatile);
            let write =
                |at: Extent| engine.write(at, Buffer::zeroed(8 << 10), Durability::Volatile);
            let (first, last) = (write(over(0)), write(over(12 << 10)));
            let zero_and_release = async { zero.await.map(drop) };
            let first_and_release = async { first.await.map(drop) };
            let last_and_release = async { last.await.map(drop) };
            let all =
                async { tokio::try_join!(zero_and_release, first_and_release, last_and_release) };
            let done = tokio::time::timeout(PATIENCE, all).await;
            done.expect("none waits for another for ever").expect("all are done");
        }
    });
}

/// It was stopped for a while, and nobody asked it for anything after that: it kept its device.
#[test]
fn an_idle_engine_ends_when_it_has_a_successor() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        let idle = cluster.start_engine(false).await;
        let _successor = cluster.start_engine(false).await;
        let end = tokio::time::timeout(PATIENCE, idle.ended()).await.expect("it is told");
        assert!(matches!(end, End::Fenced(_)), "{end:?}");
    });
}

/// The old engine is gone without a word: its successor finds the same bytes on all members.
#[test]
fn a_new_engine_reads_what_the_one_before_it_was_told_is_written() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        let engine = cluster.start_engine(false).await;
        write(&engine, 1 << 20, &bytes(7, 1 << 20)).await;
        let successor = cluster.start_engine(true).await;
        assert_eq!(read(&successor, 1 << 20, 1 << 20).await, bytes(7, 1 << 20));
        // The older one is refused for ever, by every replica, and ends without an answer.
        let at = Extent { offset_bytes: 0, length_bytes: 4096 };
        let late = engine.write(at, Buffer::zeroed(4096), Durability::Volatile);
        let late = tokio::time::timeout(Duration::from_millis(500), late).await;
        assert!(late.is_err(), "a fenced engine answered a write");
        let late = engine.read(at, Buffer::zeroed(4096));
        let late = tokio::time::timeout(Duration::from_millis(500), late).await;
        assert!(late.is_err(), "a fenced engine answered a read");
        assert!(matches!(engine.ended().await, End::Fenced(_)));
    });
}

#[test]
fn after_a_clean_detach_nothing_is_left_to_settle() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        let engine = cluster.start_engine(false).await;
        write(&engine, 0, &bytes(3, 65536)).await;
        engine.detach();
        assert_eq!(tokio::time::timeout(PATIENCE, engine.ended()).await, Ok(End::Detached));
        let engine = cluster.start_engine(false).await;
        assert_eq!(engine.status().unsettled_bytes, 0);
        assert_eq!(read(&engine, 0, 65536).await, bytes(3, 65536));
    });
}

#[test]
fn a_snapshot_keeps_what_was_and_a_revert_brings_it_back() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        let engine = cluster.start_engine(false).await;
        write(&engine, 0, &bytes(1, 8192)).await;
        engine.snapshot("s1".into(), BTreeMap::new()).await.expect("snapshot");
        write(&engine, 4096, &bytes(2, 8192)).await;
        engine.snapshot("s2".into(), BTreeMap::new()).await.expect("snapshot");
        write(&engine, 0, &bytes(3, 4096)).await;
        assert!(engine.snapshot("s1".into(), BTreeMap::new()).await.is_err(), "name is taken");
        engine.revert("s1").await.expect("revert");
        assert_eq!(read(&engine, 0, 8192).await, bytes(1, 8192));
        assert_eq!(read(&engine, 8192, 4096).await, [0; 4096]);
        engine.revert("s2").await.expect("the branch left behind is still there");
        assert_eq!(read(&engine, 4096, 8192).await, bytes(2, 8192));
        engine.remove_snapshot("s1").await.expect("remove");
        assert_eq!(read(&engine, 0, 4096).await, bytes(1, 4096)[..4096]);
        let names: Vec<_> = engine.status().snapshots.into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["s2"]);
    });
}

/// Two of three replicas are lost one after the other while a client writes: no write fails, and
/// those that come back are filled and count again.
#[test]
fn replicas_that_leave_are_rebuilt_while_the_client_goes_on() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        let engine = cluster.start_engine(false).await;
        write(&engine, 0, &bytes(1, 4 << 20)).await;
        engine.snapshot("s1".into(), BTreeMap::new()).await.expect("snapshot");
        write(&engine, 2 << 20, &bytes(2, 4 << 20)).await;
        for lost in ["r2", "r1"] {
            let lost = ReplicaId::from(lost);
            cluster.kill_replica(&lost);
            write(&engine, 8 << 20, &bytes(4, 1 << 20)).await;
            engine.flush().await.expect("flush");
            assert_eq!(cluster.record.borrow().in_sync.len(), 2);
            cluster.start_replica(&lost).await;
            write(&engine, 3 << 20, &bytes(6, 1 << 20)).await;
            until_all_in_sync(&engine).await;
        }
        let expected = [(0, 1), (2 << 20, 2), (8 << 20, 4), (3 << 20, 6)];
        let mut content = vec![0; SIZE_BYTES as usize];
        for (at, seed) in expected {
            let length = if seed <= 2 { 4 << 20 } else { 1 << 20 };
            content[at..at + length].copy_from_slice(&bytes(seed, length));
        }
        for _ in 0..3 {
            assert!(read(&engine, 0, SIZE_BYTES as usize).await == content, "a copy differs");
        }
    });
}
