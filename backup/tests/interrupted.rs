//! Backups that stop half-way, and several parties on one store.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, SystemTime};

use ankole_backup::inventory::{BackupState, backups};
use ankole_backup::layout::VolumePaths;
use ankole_backup::prune::{Collected, WhyKept, delete_backup, delete_volume, prune};
use ankole_backup::target::{DirectoryTarget, MemoryTarget, Target, TargetError};
use ankole_backup::*;
use common::*;

/// Blocks that all differ, so that each is an object.
fn filled(blocks: u64) -> Model {
    let mut model = Model::new("vol", blocks * SMALL_BLOCK);
    for block in 0..blocks {
        model.write(block * 4, 4, block + 1);
        // Bytes that don't compress away, so that a full target is met early.
        let at = (block * SMALL_BLOCK) as usize;
        let mut state = block + 1;
        for byte in &mut model.bytes[at..at + SMALL_BLOCK as usize] {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
    }
    model
}

/// The power goes at every single call to the target, one after the other. Whatever is there
/// afterwards: no backup that looks complete is wrong, and a second try succeeds.
#[test]
fn a_backup_cut_at_any_call_can_be_made_again() {
    let mut cuts = 0;
    for calls in 0.. {
        let mut model = filled(6);
        let target = Faulty::killed_after(calls);
        let source = model.snapshot("s1");
        let first = back_up(&target, &source, &request("b1"), &unobserved);
        target.revive();
        let listed = backups(&target, &name("vol")).unwrap();
        if listed.iter().any(|entry| matches!(entry.state, BackupState::Complete(_))) {
            assert_eq!(restored(&target, "vol", "b1").unwrap(), model.bytes);
        } else {
            let report = back_up(&target, &source, &request("b1"), &unobserved).unwrap();
            assert_eq!(report.blocks_new + report.blocks_reused, 6);
            assert_eq!(restored(&target, "vol", "b1").unwrap(), model.bytes);
            assert!(matches!(
                prune(&target, &name("vol"), quick()),
                Ok(Collected::Blocks { deleted: 0, kept: 6 })
            ));
        }
        if first.is_ok() {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 20, "only {cuts} calls were cut");
}

#[test]
fn blocks_of_an_interrupted_backup_are_not_uploaded_again() {
    let mut model = filled(16);
    let target = MemoryTarget::default();
    let source = model.snapshot("s1");
    let stop = |progress: Progress| match progress.blocks_new {
        0..10 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let error = back_up(&target, &source, &request("b1"), &stop).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    assert!(backups(&target, &name("vol")).unwrap().is_empty(), "its stub is gone");
    let report = back_up(&target, &source, &request("b2"), &unobserved).unwrap();
    assert!(report.blocks_reused >= 10, "{} of 16 were found", report.blocks_reused);
    assert_eq!(restored(&target, "vol", "b2").unwrap(), model.bytes);
}

#[test]
fn a_full_target_says_so_and_the_backup_goes_on_when_there_is_room() {
    let mut model = filled(32);
    let target = Faulty::full_after(20 * SMALL_BLOCK as i64);
    let source = model.snapshot("s1");
    let error = back_up(&target, &source, &request("b1"), &unobserved).unwrap_err();
    assert!(matches!(error, Error::Target(TargetError::Full { .. })));
    assert!(told(&error).contains("free some space"), "{}", told(&error));
    target.revive();
    let report = back_up(&target, &source, &request("b1"), &unobserved).unwrap();
    assert!(report.blocks_reused > 0);
    assert_eq!(restored(&target, "vol", "b1").unwrap(), model.bytes);
}

/// The same with a real filesystem that is full.
#[test]
fn requires_root_a_full_filesystem_says_so_and_keeps_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "ankole-test"])
        .arg(dir.path())
        .stderr(Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        let skipped = "SKIPPED: mounting a tmpfs needs root";
        assert!(std::env::var_os("ANKOLE_TEST_REQUIRE_TOOLS").is_none(), "{skipped}");
        return println!("{skipped}");
    }
    let target = DirectoryTarget::open("file:///full".into(), dir.path().to_owned()).unwrap();
    let mut model = filled(32);
    let early = model.snapshot("s1");
    let first = back_up(&target, &early, &request("b1"), &unobserved);
    let mut larger = filled(256);
    larger.volume = "larger".to_owned();
    let second = back_up(&target, &larger.snapshot("s1"), &request("b1"), &unobserved);
    let kept = restored(&target, "vol", "b1");
    let removed = delete_volume(&target, &name("larger"), quick());
    let third = back_up(&target, &model.snapshot("s2"), &request("b2"), &unobserved);
    drop(target);
    let unmounted = Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(unmounted.success());
    first.unwrap();
    let error = second.unwrap_err();
    assert!(matches!(error, Error::Target(TargetError::Full { .. })), "{}", told(&error));
    assert_eq!(kept.unwrap(), early.bytes);
    removed.unwrap();
    third.unwrap();
}

#[test]
fn two_backups_at_once_are_both_right() {
    let target = MemoryTarget::default();
    let mut model = filled(24);
    let first = model.snapshot("s1");
    model.write(3, 20, 200);
    let second = model.snapshot("s2");
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        for (source, backup) in [(&first, "b1"), (&second, "b2")] {
            let (target, start) = (&target, &start);
            scope.spawn(move || {
                start.wait();
                back_up(target, source, &request(backup), &unobserved).unwrap();
            });
        }
    });
    assert_eq!(restored(&target, "vol", "b1").unwrap(), first.bytes);
    assert_eq!(restored(&target, "vol", "b2").unwrap(), second.bytes);
}

/// A deletion that ran between an upload's "this block exists" and its manifest would take the
/// block away. The locks keep them apart, in both orders.
#[test]
fn nothing_is_deleted_while_a_backup_is_made_and_nothing_uploaded_while_deleting() {
    let target = MemoryTarget::default();
    let mut model = filled(4);
    back_up(&target, &model.snapshot("s1"), &request("b1"), &unobserved).unwrap();
    model.write(0, 1, 9);
    let source = model.snapshot("s2");
    let in_the_middle = |_| {
        let error = delete_backup(&target, &name("vol"), &name("b1"), quick()).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        assert!(matches!(prune(&target, &name("vol"), quick()), Err(Error::Busy { .. })));
        // Others may read and even back up.
        assert_eq!(restored(&target, "vol", "b1").unwrap(), model.snapshots[0].bytes);
        ControlFlow::Continue(())
    };
    back_up(&target, &source, &request("b2"), &in_the_middle).unwrap();

    let paths = VolumePaths::of(&name("vol"));
    let deletion = br#"{"Name":"lock-00000000000000aa","Type":2,"Acquired":true}"#;
    let key = paths.lock("lock-00000000000000aa");
    target.write(&key, deletion).unwrap();
    let error = back_up(&target, &source, &request("b3"), &unobserved).unwrap_err();
    assert!(told(&error).contains("a deletion"), "{}", told(&error));
    assert!(matches!(restored(&target, "vol", "b1"), Err(Error::Busy { .. })));
    // Its owner died: after a while it counts no more, and goes.
    target.set_modified(&key, SystemTime::now() - Duration::from_secs(61));
    back_up(&target, &source, &request("b3"), &unobserved).unwrap();
    prune(&target, &name("vol"), quick()).unwrap();
    assert!(!target.exists(&key).unwrap());
}

/// Two that wait for each other's answer must decide alike, whoever looks first: acquired before
/// not acquired, then the older one. Longhorn's writers decide so too.
#[test]
fn a_lock_that_is_still_settling_ranks_by_its_age() {
    let paths = VolumePaths::of(&name("vol"));
    let key = paths.lock("lock-00000000000000aa");
    let hour = Duration::from_secs(3600);
    let times = LockTimes { stale: 4 * hour, ..quick() };
    let now = SystemTime::now();
    for (acquired, modified, kind, goes_on) in [
        (false, now - hour, 2, false),
        (false, now + hour, 2, true),
        (true, now + hour, 2, false),
        (true, now - hour, 1, true),
    ] {
        let target = MemoryTarget::default();
        let lock = format!(r#"{{"Name":"x","Type":{kind},"Acquired":{acquired}}}"#);
        target.write(&key, lock.as_bytes()).unwrap();
        target.set_modified(&key, modified);
        let mut wanted = request("b1");
        wanted.lock_times = times;
        let made = back_up(&target, &filled(1).snapshot("s1"), &wanted, &unobserved);
        assert_eq!(made.is_ok(), goes_on, "{lock} {modified:?}");
        let locks = target.children(&paths.locks()).unwrap();
        assert_eq!(locks, ["lock-00000000000000aa.lck"], "its own lock is given back");
    }
    let target = MemoryTarget::default();
    target.write(&key, b"no lock at all").unwrap();
    back_up(&target, &filled(1).snapshot("s1"), &request("b1"), &unobserved).unwrap();
}

/// Contenders that write their locks at about the same time see each other: one goes on and the
/// other gives up or comes after it, so the backup never builds on blocks that are being deleted.
#[test]
fn a_backup_and_a_deletion_that_start_together_never_overlap() {
    let times = LockTimes { settle: Duration::from_millis(50), ..quick() };
    for round in 0..10 {
        let target = MemoryTarget::default();
        let mut model = filled(4);
        back_up(&target, &model.snapshot("s1"), &request("b1"), &unobserved).unwrap();
        model.write(0, 1, 9);
        // An increment on b1: all but one of its blocks are b1's.
        let source = model.snapshot("s2");
        let start = Barrier::new(2);
        let (made, deleted) = std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                let mut wanted = request("b2");
                wanted.lock_times = times;
                start.wait();
                // Long enough that the deletion's whole run would fall into it.
                let slowly = |_| {
                    std::thread::sleep(Duration::from_millis(60));
                    ControlFlow::Continue(())
                };
                back_up(&target, &source, &wanted, &slowly)
            });
            start.wait();
            std::thread::sleep(Duration::from_millis(10 * round));
            let deleted = delete_backup(&target, &name("vol"), &name("b1"), times);
            (made.join().unwrap(), deleted)
        });
        assert!(made.is_ok() || deleted.is_ok(), "round {round}: {made:?} {deleted:?}");
        for failed in [made.as_ref().err(), deleted.as_ref().err()].into_iter().flatten() {
            assert!(matches!(failed, Error::Busy { .. }), "round {round}: {failed}");
        }
        if made.is_ok() {
            assert_eq!(restored(&target, "vol", "b2").unwrap(), source.bytes, "round {round}");
        }
    }
}

/// A process that was stopped for minutes must not go on uploading: others have stopped to respect
/// its lock, and may have collected blocks that it found and skipped.
#[test]
fn a_backup_whose_lock_went_stale_stops() {
    let target = MemoryTarget::default();
    let mut model = filled(8);
    let mut wanted = request("b1");
    wanted.workers = 1;
    // Refreshing comes too late, as in a process that doesn't run.
    wanted.lock_times = LockTimes {
        settle: Duration::from_millis(1),
        refresh: Duration::from_secs(3600),
        stale: Duration::from_millis(500),
    };
    let sleep = |_| {
        std::thread::sleep(Duration::from_millis(600));
        ControlFlow::Continue(())
    };
    let error = back_up(&target, &model.snapshot("s1"), &wanted, &sleep).unwrap_err();
    assert!(matches!(error, Error::LockLost { .. }), "{error}");
    assert!(backups(&target, &name("vol")).unwrap().is_empty());
}

/// A long backup keeps its lock young.
#[test]
fn a_lock_that_is_held_long_is_refreshed() {
    let target = MemoryTarget::default();
    let mut model = filled(8);
    let mut wanted = request("b1");
    wanted.workers = 1;
    wanted.lock_times = LockTimes {
        settle: Duration::from_millis(1),
        refresh: Duration::from_millis(100),
        stale: Duration::from_secs(4),
    };
    let long = |_| {
        std::thread::sleep(Duration::from_millis(800));
        ControlFlow::Continue(())
    };
    back_up(&target, &model.snapshot("s1"), &wanted, &long).unwrap();
    assert!(!target.keys().iter().any(|key| key.ends_with(".lck")));
}

/// A lock that was written by a clock of next year kept every deletion away until then.
#[test]
fn a_lock_from_the_future_can_be_removed_and_a_living_ones_is_kept() {
    let target = MemoryTarget::default();
    let mut model = filled(4);
    back_up(&target, &model.snapshot("s1"), &request("b1"), &unobserved).unwrap();
    let paths = VolumePaths::of(&name("vol"));
    let lock = |name: &str| {
        let text = format!(r#"{{"Name":"{name}","Type":1,"Acquired":true}}"#);
        target.write(&paths.lock(name), text.as_bytes()).unwrap();
        target.set_modified(&paths.lock(name), SystemTime::now() + Duration::from_secs(1 << 25));
    };
    ["lock-dead", "lock-living"].into_iter().for_each(lock);
    let busy = || delete_backup(&target, &name("vol"), &name("b1"), quick()).unwrap_err();
    assert!(matches!(busy(), Error::Busy { .. }));
    let times = LockTimes { stale: Duration::from_millis(300), ..quick() };
    let unlocked = std::thread::scope(|scope| {
        let watching = scope.spawn(|| remove_dead_locks(&target, &name("vol"), times).unwrap());
        while !watching.is_finished() {
            target.write(&paths.lock("lock-living"), b"{\"Name\":\"\",\"Type\":1}").unwrap();
            std::thread::yield_now();
        }
        watching.join().unwrap()
    });
    assert_eq!(unlocked.removed, [target.locate(&paths.lock("lock-dead"))]);
    assert_eq!(unlocked.alive, [target.locate(&paths.lock("lock-living"))]);
    assert!(!target.exists(&paths.lock("lock-dead")).unwrap());
}

/// Whoever removes the lock of a living backup must not get a complete one whose blocks a deletion
/// took meanwhile.
#[test]
fn a_backup_whose_lock_was_removed_is_not_completed() {
    let target = MemoryTarget::default();
    let remove = |_| {
        let locks = target.keys().into_iter().filter(|key| key.ends_with(".lck"));
        locks.for_each(|key| target.delete(&key).unwrap());
        ControlFlow::Continue(())
    };
    let error = back_up(&target, &filled(4).snapshot("s1"), &request("b1"), &remove).unwrap_err();
    assert!(matches!(error, Error::LockLost { .. }), "{error}");
    assert!(backups(&target, &name("vol")).unwrap().is_empty());
}

#[test]
fn a_stub_that_was_left_hides_the_backup_and_is_reported_until_deleted() {
    let target = MemoryTarget::default();
    let mut model = filled(4);
    back_up(&target, &model.snapshot("s1"), &request("b1"), &unobserved).unwrap();
    let paths = VolumePaths::of(&name("vol"));
    let stub = br#"{"Name":"b2","VolumeName":"vol","SnapshotName":"","CreatedTime":"","Size":""}"#;
    target.write(&paths.backup_manifest(&name("b2")), stub).unwrap();
    assert!(matches!(restored(&target, "vol", "b2"), Err(Error::InProgress { .. })));
    let kept = Collected::Nothing(WhyKept::InProgress(name("b2")));
    assert_eq!(prune(&target, &name("vol"), quick()).unwrap(), kept);
    delete_backup(&target, &name("vol"), &name("b2"), quick()).unwrap();
    let collected = prune(&target, &name("vol"), quick()).unwrap();
    assert_eq!(collected, Collected::Blocks { deleted: 0, kept: 4 });
    let gone = delete_backup(&target, &name("vol"), &name("b2"), quick()).unwrap_err();
    assert!(matches!(gone, Error::NoSuchBackup { .. }));
}

#[test]
fn a_name_is_given_once_and_a_smaller_volume_does_not_replace_a_larger_one() {
    let target = MemoryTarget::default();
    let mut model = filled(8);
    back_up(&target, &model.snapshot("s1"), &request("b1"), &unobserved).unwrap();
    let again = back_up(&target, &model.snapshot("s2"), &request("b1"), &unobserved).unwrap_err();
    assert!(matches!(again, Error::BackupExists { .. }));
    assert_eq!(restored(&target, "vol", "b1").unwrap(), model.bytes);
    let small = back_up(&target, &filled(4).snapshot("s"), &request("b2"), &unobserved);
    assert!(matches!(small, Err(Error::Shrank { .. })));
    delete_volume(&target, &name("vol"), quick()).unwrap();
    assert!(target.keys().is_empty(), "{:?}", target.keys());
    assert!(matches!(
        delete_volume(&target, &name("vol"), quick()),
        Err(Error::NoSuchVolume { .. })
    ));
}

const CHILD_TARGET: &str = "ANKOLE_TEST_CHILD_TARGET";

/// Not a test of its own: what the next one runs in a process that it kills.
#[test]
fn child_that_backs_up_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD_TARGET) else { return };
    let target = DirectoryTarget::open("file:///t".into(), path.into()).unwrap();
    let slowly = |_| {
        std::thread::sleep(Duration::from_millis(20));
        ControlFlow::Continue(())
    };
    let _ = back_up(&target, &filled(1000).snapshot("s1"), &request("b1"), &slowly);
}

fn count(folder: &Path, suffix: &str) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let each = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count(&path, suffix)
        } else {
            usize::from(path.to_string_lossy().ends_with(suffix))
        }
    };
    entries.map(each).sum()
}

/// A real SIGKILL of a real process on a real directory.
#[test]
fn a_killed_process_leaves_a_store_in_which_its_backup_is_finished_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_backs_up_until_it_is_killed"])
        .env(CHILD_TARGET, dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while count(dir.path(), ".blk") < 10 {
        assert!(child.try_wait().unwrap().is_none(), "the child ended early");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let target = DirectoryTarget::open("file:///t".into(), dir.path().to_owned()).unwrap();
    let listed = backups(&target, &name("vol")).unwrap();
    assert!(matches!(listed[..], [inventory::BackupEntry { state: BackupState::InProgress, .. }]));

    let mut model = filled(1000);
    let source = model.snapshot("s1");
    // Its lock still counts, so it might be at work: the same name must wait, another needn't.
    let taken = back_up(&target, &source, &request("b1"), &unobserved).unwrap_err();
    assert!(matches!(taken, Error::InProgress { .. }), "{taken}");
    let report = back_up(&target, &source, &request("b2"), &unobserved).unwrap();
    assert!(report.blocks_reused >= 10);
    assert_eq!(restored(&target, "vol", "b2").unwrap(), model.bytes);

    // Once the lock is stale, the stub can go, and with it every trace.
    let at_once = LockTimes { stale: Duration::from_secs(2), ..quick() };
    std::thread::sleep(Duration::from_millis(2050));
    delete_backup(&target, &name("vol"), &name("b1"), at_once).unwrap();
    assert_eq!((count(dir.path(), ".lck"), count(dir.path(), ".cfg")), (0, 2));
    assert_eq!(count(dir.path(), ".blk"), 1000);
    assert!(target.unfinished_below("backupstore").unwrap().is_empty());
}
