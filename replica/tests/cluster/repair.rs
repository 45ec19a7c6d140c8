//! Marks that go, blocks that rot.

use std::collections::BTreeMap;
use std::time::Duration;

use ankole_blockdev::disk::{Buffer, Disk, Extent};
use ankole_replica::admin::ReplicaMode;
use ankole_replica::replication::{Config, End};
use ankole_replica::types::ReplicaId;

use super::harness::*;

/// Of the first group of regions, on all replicas.
fn marks(cluster: &Cluster) -> usize {
    let marks = |replica: &ReplicaId| {
        let path = cluster.dir.path().join(replica.to_string()).join("intent");
        let intent = std::fs::read(path).expect("the intent map");
        intent[..62 * 8].chunks_exact(8).filter(|entry| entry[0] & 1 == 1).count()
    };
    cluster.replicas().iter().map(marks).sum::<usize>()
}

async fn until_unmarked(cluster: &Cluster) {
    let none = async {
        while marks(cluster) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, none).await;
    in_time.unwrap_or_else(|_| panic!("{} marks are left", marks(cluster)));
}

/// What was written long ago isn't compared after a crash: the marks are gone, on all replicas,
/// without a detach.
#[test]
fn an_idle_volume_has_no_marks_and_a_crash_leaves_nothing_to_settle() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        let quick = |config| Config { clear_after: Duration::from_millis(200), ..config };
        let engine = cluster.start_engine_with(false, quick).await;
        // Several regions: the replicas mark the whole group.
        write(&engine, 0, &unlike(1, 3 << 20)).await;
        write(&engine, 3 << 20, &unlike(2, 1 << 20)).await;
        assert!(marks(&cluster) >= 3 * 4, "{} marks while it is written", marks(&cluster));
        until_unmarked(&cluster).await;
        // The engine is gone without a word, and the replicas with it.
        for replica in cluster.replicas() {
            cluster.kill_replica(&replica);
            cluster.start_replica(&replica).await;
        }
        let successor = cluster.start_engine(true).await;
        assert_eq!(successor.status().unsettled_bytes, 0);
        assert_eq!(read(&successor, 0, 3 << 20).await, unlike(1, 3 << 20));
        drop(engine);
    });
}

/// The client sees nothing of it, and the bad copies are good again: in the head and under a
/// snapshot, on one replica and on two.
#[test]
fn rotten_blocks_are_read_from_another_replica_and_repaired_where_they_are() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        let quick = |config| Config { clear_after: Duration::from_millis(100), ..config };
        let engine = cluster.start_engine_with(false, quick).await;
        let content = unlike(7, 2 << 20);
        write(&engine, 0, &content).await;
        engine.snapshot("s1".into(), BTreeMap::new()).await.expect("snapshot");
        let newer = unlike(9, 1 << 20);
        write(&engine, 0, &newer).await;
        engine.flush().await.expect("flush");
        let [r1, r2] = ["r1", "r2"].map(ReplicaId::from);
        let sealed = (1 << 20) + 7 * 4096; // the head doesn't have it
        cluster.damage(&r1, 1, "data", sealed);
        cluster.damage(&r1, 2, "data", 3 * 4096);
        cluster.damage(&r2, 2, "data", 3 * 4096);
        let mut expected = newer.clone();
        expected.extend_from_slice(&content[1 << 20..]);
        // Until all three have been asked, whichever turn it is.
        let repaired = async {
            while engine.status().repaired_blocks < 3 {
                for at in [0, 1 << 20] {
                    let found = read(&engine, at as u64, 1 << 20).await;
                    assert!(found == expected[at..at + (1 << 20)], "a rotten byte is returned");
                }
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, repaired).await;
        in_time.unwrap_or_else(|_| panic!("not repaired: {:#?}", engine.status()));
        assert_eq!(cluster.holds(&r1, 1, sealed), content[sealed as usize..][..4096]);
        for replica in [&r1, &r2] {
            assert_eq!(cluster.holds(replica, 2, 3 * 4096), newer[3 * 4096..][..4096]);
        }
        let status = engine.status();
        assert_eq!((status.repaired_blocks, status.damage.lost_bytes), (3, 0));
        let of = |replica: &ReplicaId| {
            let mut all = status.damage.replicas.iter();
            all.find(|it| it.replica == *replica).expect("it was damaged")
        };
        assert_eq!((of(&r1).repaired_blocks, of(&r2).repaired_blocks), (2, 1));
        let last = &of(&r2).last;
        assert_eq!((last.layer.0, last.offset_bytes, last.length_bytes), (2, 3 * 4096, 4096));
        assert!(of(&r2).repaired_from.is_some() && of(&r2).waiting_blocks == 0);
        assert!(status.replicas.iter().all(|replica| replica.mode == ReplicaMode::ReadWrite));
    });
}

/// A damaged index page takes all that the replica knows of a region: it is made anew, whole.
#[test]
fn a_damaged_index_page_is_made_anew_from_the_others() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        let engine = cluster.start_engine(false).await;
        let content = unlike(3, 2 << 20);
        write(&engine, 0, &content).await;
        let hole = Extent { offset_bytes: 40 * 4096, length_bytes: 20 * 4096 };
        drop(engine.trim(hole).await.expect("trim"));
        let mut expected = content.clone();
        expected[40 * 4096..60 * 4096].fill(0);
        engine.detach();
        assert_eq!(tokio::time::timeout(PATIENCE, engine.ended()).await, Ok(End::Detached));
        let r2 = ReplicaId::from("r2");
        cluster.kill_replica(&r2);
        for sector in [0, 2] {
            // Of region 0 what it has, of region 1 a part of the sums.
            cluster.damage(&r2, 1, "index", sector / 2 * 2048 + sector * 512 + 40);
        }
        cluster.start_replica(&r2).await;
        let engine = cluster.start_engine(false).await;
        let repaired = async {
            while engine.status().repaired_blocks < 2 * 256 {
                assert!(read(&engine, 0, 2 << 20).await == expected, "a copy differs");
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, repaired).await;
        in_time.unwrap_or_else(|_| panic!("not repaired: {:#?}", engine.status()));
        // It stands on its own.
        for other in ["r1", "r3"].map(ReplicaId::from) {
            cluster.kill_replica(&other);
        }
        assert!(read(&engine, 0, 2 << 20).await == expected, "what was repaired is wrong");
    });
}

/// Nobody has the block: its readers are told, the rest is read, and people see why.
#[test]
fn a_block_that_is_rotten_everywhere_fails_alone_until_it_is_written_anew() {
    run(async {
        let cluster = Cluster::new(2, false).await;
        let engine = cluster.start_engine(false).await;
        write(&engine, 0, &unlike(5, 1 << 20)).await;
        engine.detach();
        assert_eq!(tokio::time::timeout(PATIENCE, engine.ended()).await, Ok(End::Detached));
        for replica in cluster.replicas() {
            cluster.damage(&replica, 1, "data", 9 * 4096);
        }
        // Each lacks another one too: together they have it.
        let [r1, r2] = ["r1", "r2"].map(ReplicaId::from);
        cluster.damage(&r1, 1, "data", 20 * 4096);
        cluster.damage(&r2, 1, "data", 30 * 4096);
        let engine = cluster.start_engine(false).await;
        let found = read(&engine, 16 * 4096, 16 * 4096).await;
        assert!(found == unlike(5, 1 << 20)[16 * 4096..32 * 4096], "each had half of it");
        let at = Extent { offset_bytes: 9 * 4096, length_bytes: 4096 };
        let (result, _) = engine.read(at, Buffer::zeroed(4096)).await;
        let error = result.map(drop).expect_err("no replica can read it");
        assert_eq!(error.raw_os_error(), Some(5));
        until(&engine, |status| status.damage.lost_bytes == 4096).await;
        write(&engine, 9 * 4096, &unlike(6, 4096)).await;
        assert_eq!(read(&engine, 9 * 4096, 4096).await, unlike(6, 4096));
        until(&engine, |status| status.damage.lost.is_empty()).await;
    });
}

/// The third was away while the block rotted on the two others. It was read when the third was
/// back, but the two were never repaired: the next loss of the third was a loss of the block.
#[test]
fn what_nobody_could_read_is_repaired_from_a_replica_that_is_back() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        let quick = |config| Config { clear_after: Duration::from_millis(100), ..config };
        let engine = cluster.start_engine_with(false, quick).await;
        let content = unlike(4, 1 << 20);
        write(&engine, 0, &content).await;
        until_unmarked(&cluster).await; // or its rebuild would want to compare the block
        let r3 = ReplicaId::from("r3");
        cluster.kill_replica(&r3);
        until(&engine, |_| cluster.record.borrow().in_sync.len() == 2).await;
        for replica in ["r1", "r2"].map(ReplicaId::from) {
            cluster.damage(&replica, 1, "data", 9 * 4096);
        }
        let at = Extent { offset_bytes: 9 * 4096, length_bytes: 4096 };
        let (result, _) = engine.read(at, Buffer::zeroed(4096)).await;
        assert!(result.is_err(), "nobody who is here can read it");
        until(&engine, |status| status.damage.lost_bytes == 4096).await;
        cluster.start_replica(&r3).await;
        until(&engine, |status| {
            let older = status.replicas.iter().any(|replica| replica.is_older);
            assert!(!older, "who was only away isn't older: {status:?}");
            status.replicas.iter().all(|replica| replica.mode == ReplicaMode::ReadWrite)
        })
        .await;
        assert_eq!(engine.status().damage.lost_bytes, 4096, "nobody has asked it yet");
        let repaired = async {
            while engine.status().repaired_blocks < 2 {
                assert!(read(&engine, 0, 1 << 20).await == content, "a rotten byte is returned");
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, repaired).await;
        in_time.unwrap_or_else(|_| panic!("not repaired: {:#?}", engine.status()));
        assert_eq!(engine.status().damage.lost, []);
        cluster.kill_replica(&r3);
        assert!(read(&engine, 0, 1 << 20).await == content, "the two stand on their own");
    });
}

/// A block rots where nobody has compared it, while its replica is down, and gets a fresh checksum.
/// Its replica was back before it was missed: the mark went, and when the others were gone the
/// block was read as good.
#[test]
fn a_block_that_rots_while_its_replica_is_down_briefly_is_made_good_from_the_others() {
    run(async {
        let cluster = Cluster::new(2, false).await;
        let patient = |config| Config { rejoin_grace: PATIENCE, ..config };
        let engine = cluster.start_engine_with(false, patient).await;
        let content = unlike(8, 1 << 20);
        write(&engine, 0, &content).await;
        engine.flush().await.expect("flush");
        let set = cluster.record.borrow().generation;
        let r2 = ReplicaId::from("r2");
        cluster.kill_replica(&r2);
        cluster.damage(&r2, 1, "data", 5 * 4096);
        cluster.start_replica(&r2).await;
        let good = async {
            while cluster.holds(&r2, 1, 5 * 4096) != content[5 * 4096..][..4096] {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, good).await;
        in_time.unwrap_or_else(|_| panic!("it is rotten still: {:#?}", engine.status()));
        until_all_in_sync(&engine).await;
        until(&engine, |status| status.unsettled_bytes == 0).await;
        assert_eq!(cluster.record.borrow().generation, set, "it was never out of the set");
        cluster.kill_replica(&ReplicaId::from("r1"));
        assert!(each_alone_of(&cluster, engine, &r2).await.starts_with(&content));
    });
}
