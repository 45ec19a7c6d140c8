//! Replicas that were away, and what a rebuild moves.

use std::collections::BTreeMap;

use ankole_blockdev::disk::Disk;
use ankole_replica::admin::{EngineStatus, ReplicaMode};
use ankole_replica::replication::End;
use ankole_replica::types::ReplicaId;

use super::harness::*;

/// A replica that was away dropped everything and got the whole volume again: hours for a reboot.
#[test]
fn a_replica_that_was_away_gets_only_the_blocks_that_changed() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        let engine = cluster.start_engine(false).await;
        let mut content = bytes(1, SIZE_BYTES as usize);
        write(&engine, 0, &content).await;
        engine.snapshot("old".into(), BTreeMap::new()).await.expect("snapshot");
        write(&engine, 0, &bytes(2, 8 << 20)).await;
        patched(&mut content, 0, &bytes(2, 8 << 20));
        engine.detach(); // so that nothing of that is marked any more
        assert_eq!(tokio::time::timeout(PATIENCE, engine.ended()).await, Ok(End::Detached));
        let engine = cluster.start_engine(false).await;
        let away = ReplicaId::from("r3");
        cluster.kill_replica(&away);
        let changes =
            [(5 * BLOCK, 3 * BLOCK, 3), (6 * MIB + BLOCK, BLOCK, 4), (12 * MIB, BLOCK, 5)];
        for (at, length, seed) in changes {
            write(&engine, at, &bytes(seed, length as usize)).await;
            patched(&mut content, at, &bytes(seed, length as usize));
        }
        // The head of then is sealed meanwhile, and written over once more.
        engine.snapshot("new".into(), BTreeMap::new()).await.expect("snapshot");
        write(&engine, 5 * BLOCK, &bytes(6, BLOCK as usize)).await;
        patched(&mut content, 5 * BLOCK, &bytes(6, BLOCK as usize));
        cluster.start_replica(&away).await;
        until_all_in_sync(&engine).await;
        assert_eq!(moved(&engine, &away), 6 * BLOCK, "five blocks of the old head, one of the new");
        let looked = status_of(&engine, &away).last_rebuild.expect("it was rebuilt");
        assert!(looked.since.is_some(), "all of it was compared: {looked:?}");
        for shown in each_alone(&cluster, engine).await {
            assert!(shown == content, "a copy differs");
        }
    });
}

/// What a snapshot's removal moved from one layer to the next isn't a change of the volume: the
/// replica that was away moves it too, on its own disk.
#[test]
fn a_layer_that_was_joined_meanwhile_is_joined_and_not_sent() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        let engine = cluster.start_engine(false).await;
        let mut content = bytes(1, SIZE_BYTES as usize);
        write(&engine, 0, &content).await;
        engine.snapshot("s1".into(), BTreeMap::new()).await.expect("snapshot");
        write(&engine, MIB, &bytes(2, 2 << 20)).await;
        patched(&mut content, MIB, &bytes(2, 2 << 20));
        let away = ReplicaId::from("r2");
        cluster.kill_replica(&away);
        engine.snapshot("s2".into(), BTreeMap::new()).await.expect("snapshot");
        engine.remove_snapshot("s1").await.expect("remove");
        let joined = |status: &EngineStatus| {
            status.snapshots.len() == 1 && {
                let parentless = &status.snapshots[0];
                parentless.data_bytes > 8 * MIB
            }
        };
        until(&engine, joined).await;
        write(&engine, 4 * MIB, &bytes(3, BLOCK as usize)).await;
        patched(&mut content, 4 * MIB, &bytes(3, BLOCK as usize));
        cluster.start_replica(&away).await;
        until_all_in_sync(&engine).await;
        assert_eq!(moved(&engine, &away), BLOCK);
        engine.revert("s2").await.expect("revert");
        patched(&mut content, 4 * MIB, &bytes(1, SIZE_BYTES as usize)[4 << 20..][..4096]);
        for shown in each_alone(&cluster, engine).await {
            assert!(shown == content, "a copy differs");
        }
    });
}

/// Began again from nothing, a rebuild over an unsteady link would never end.
#[test]
fn a_rebuild_that_was_interrupted_does_not_move_again_what_is_there() {
    run(async {
        let cluster = Cluster::new(2, false).await;
        let engine = cluster.start_engine(false).await;
        write(&engine, 0, &bytes(1, MIB as usize)).await;
        engine.detach();
        engine.ended().await;
        cluster.limit.set(Some(8 * MIB));
        let target = ReplicaId::from("r2");
        cluster.record.borrow_mut().in_sync.retain(|member| member.replica != target);
        let engine = cluster.start_engine(false).await;
        let content = bytes(7, SIZE_BYTES as usize);
        cluster.kill_replica(&target);
        write(&engine, 0, &content).await;
        cluster.start_replica(&target).await;
        let half = |status: &EngineStatus| {
            let rebuild = status.replicas.iter().find_map(|replica| replica.rebuild);
            rebuild.is_some_and(|it| it.done_bytes >= 6 * MIB)
        };
        until(&engine, half).await;
        cluster.kill_replica(&target);
        until(&engine, |status| status.replicas[1].mode == ReplicaMode::Error).await;
        let first = status_of(&engine, &target).last_rebuild.expect("it began");
        cluster.start_replica(&target).await;
        until_all_in_sync(&engine).await;
        let second = moved(&engine, &target);
        let twice = (first.moved_bytes + second).saturating_sub(SIZE_BYTES);
        assert!(first.moved_bytes >= 6 * MIB && twice <= 2 * MIB, "{first:?}, then {second}");
        for shown in each_alone(&cluster, engine).await {
            assert!(shown == content, "a copy differs");
        }
    });
}

/// While only one region may be on its way, the second replica waited for the end of the first.
#[test]
fn two_replicas_are_rebuilt_at_once_while_the_client_writes() {
    run(async {
        let cluster = Cluster::new(4, false).await;
        cluster.limit.set(Some(4 * MIB)); // the second has seconds to begin
        let engine = cluster.start_engine(false).await;
        let away = ["r2", "r4"].map(ReplicaId::from);
        away.iter().for_each(|replica| cluster.kill_replica(replica));
        let mut content = bytes(1, SIZE_BYTES as usize);
        write(&engine, 0, &content).await;
        for replica in &away {
            cluster.start_replica(replica).await;
        }
        let both = |status: &EngineStatus| {
            let under_way = status.replicas.iter().filter_map(|replica| replica.rebuild);
            under_way.filter(|it| it.done_bytes > 0).count() == 2
        };
        until(&engine, both).await;
        for number in 0..40u64 {
            let at = number * 397 * BLOCK % (SIZE_BYTES - BLOCK);
            write(&engine, at, &bytes(number as u8, 700)).await;
            patched(&mut content, at, &bytes(number as u8, 700));
        }
        until_all_in_sync(&engine).await;
        for shown in each_alone(&cluster, engine).await {
            assert!(shown == content, "a copy differs");
        }
    });
}

/// Each of these changes the layers that are being copied. They began the rebuild anew, or had to
/// wait for its end.
#[test]
fn the_chain_changes_in_the_middle_of_a_rebuild() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        cluster.limit.set(Some(4 * MIB));
        let engine = cluster.start_engine(false).await;
        let away = ReplicaId::from("r1");
        cluster.kill_replica(&away);
        write(&engine, 0, &bytes(1, 8 << 20)).await;
        engine.snapshot("s1".into(), BTreeMap::new()).await.expect("snapshot");
        write(&engine, 0, &bytes(2, 3 << 20)).await;
        engine.snapshot("s2".into(), BTreeMap::new()).await.expect("snapshot");
        write(&engine, 6 << 20, &bytes(3, 3 << 20)).await;
        cluster.start_replica(&away).await;
        let begun =
            |status: &EngineStatus| status.replicas[0].rebuild.is_some_and(|it| it.done_bytes > 0);
        until(&engine, begun).await;
        engine.snapshot("s3".into(), BTreeMap::new()).await.expect("snapshot");
        write(&engine, 0, &bytes(4, 4096)).await;
        engine.remove_snapshot("s2").await.expect("remove");
        engine.expand(2 * SIZE_BYTES).await.expect("expand");
        write(&engine, SIZE_BYTES + 4096, &bytes(5, 4096)).await;
        engine.revert("s3").await.expect("revert");
        write(&engine, 12 << 20, &bytes(6, 4096)).await;
        let status = status_of(&engine, &away);
        assert!(status.rebuild.is_some() && status.last_rebuild.is_none(), "{status:?}");
        until_all_in_sync(&engine).await;
        let mut content = vec![0; 2 * SIZE_BYTES as usize];
        patched(&mut content, 0, &bytes(1, 8 << 20));
        patched(&mut content, 0, &bytes(2, 3 << 20));
        patched(&mut content, 6 << 20, &bytes(3, 3 << 20));
        let s3 = content.clone();
        patched(&mut content, 12 << 20, &bytes(6, 4096));
        for shown in each_alone(&cluster, engine).await {
            assert!(shown == content, "a copy differs");
        }
        let alone = cluster.start_engine(false).await;
        alone.revert("s3").await.expect("revert");
        assert!(read(&alone, 0, s3.len()).await == s3, "the snapshot differs");
        alone.revert("s1").await.expect("revert");
        assert!(read(&alone, 0, 8 << 20).await == bytes(1, 8 << 20), "the older one differs");
    });
}

/// One block that the source can't read ended the rebuild, again and again.
#[test]
fn what_one_member_cannot_read_comes_from_another() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        let engine = cluster.start_engine(false).await;
        let content = bytes(9, SIZE_BYTES as usize);
        let away = ReplicaId::from("r3");
        cluster.kill_replica(&away);
        write(&engine, 0, &content).await;
        engine.flush().await.expect("flush");
        // Both have rotten blocks, but not the same ones.
        for (replica, at) in [("r1", 3 * MIB), ("r2", 9 * MIB + 5 * BLOCK)] {
            damage(&cluster.dir.path().join(replica), at);
        }
        cluster.start_replica(&away).await;
        until_all_in_sync(&engine).await;
        let shown = each_alone_of(&cluster, engine, &away).await;
        assert!(shown == content, "the copy differs");
    });
}

/// Other bytes than were written, in the file that holds the head's data.
fn damage(dir: &std::path::Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let names = std::fs::read_dir(dir).expect("list").flatten().map(|entry| entry.path());
    let largest = names.max_by_key(|path| path.metadata().map_or(0, |meta| meta.len()));
    let path = largest.expect("it has files");
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("open");
    file.write_all_at(&[0xee; BLOCK as usize], at).expect("write");
    file.sync_all().expect("sync");
}
