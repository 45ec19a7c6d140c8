//! A file system that is full.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use super::super::EmbeddedStore;
use super::{LAMP, all, block_on, create, lamp, lumen, open, replace};
use crate::{Raw, Store, StoreError};

struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(folder.path());
        if !mount.status().is_ok_and(|status| status.success()) {
            let required =
                std::env::var_os("ANKOLE_TEST_REQUIRE_TOOLS").is_some_and(|it| it == "1");
            assert!(!required, "nothing may be skipped here: mounting a small tmpfs");
            println!("SKIPPED: mounting a small tmpfs");
            return None;
        }
        Some(Self(folder))
    }

    fn fill(&self) -> std::path::PathBuf {
        let path = self.0.path().join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

async fn report(store: &EmbeddedStore, name: &str, size: usize) -> Result<(), StoreError> {
    let metadata = store.get_raw(LAMP, name).await?.unwrap().metadata.clone();
    let status = serde_json::json!({ "log": "x".repeat(size) });
    let next = Raw::new(metadata, &serde_json::json!({}), Some(&status));
    store.replace_status_raw(LAMP, next).await.map(drop)
}

/// One full disk ended every change of an in-sync set, and with it the writes of all volumes.
#[test]
fn requires_root_on_a_full_disk_what_is_there_can_be_changed_and_nothing_is_created() {
    let Some(disk) = Mounted::new("size=24m") else { return };
    let path = disk.0.path().join("ankole.redb");
    block_on(fills_up(&disk, &path));
}

async fn fills_up(disk: &Mounted, path: &Path) {
    let store = open(path);
    for number in 0..200 {
        create(&store, &format!("l{number}"), number).await;
    }
    let filler = disk.fill();
    for number in 0..200 {
        report(&store, &format!("l{number}"), 4096).await.unwrap();
    }
    let refused = store.create_raw(LAMP, lamp("more", 1)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    std::fs::remove_file(filler).unwrap();
    create(&store, "other", 1).await; // nothing else need be changed before
    let filler = disk.fill();
    // What was reserved ends, too: then it is said, and nothing is lost.
    let mut is_full = false;
    for number in (0..200).cycle().take(4000) {
        match report(&store, &format!("l{number}"), 100_000).await {
            Ok(()) => {}
            Err(StoreError::Unavailable { why }) => {
                assert!(why.contains("No space left"), "{why}");
                is_full = true;
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(is_full);
    assert_eq!(lumen(&store, "l7").await, Some(7));
    std::fs::remove_file(filler).unwrap();
    let mut last = Ok(());
    for _ in 0..2000 {
        last = replace(&store, "l7", 8).await;
        if last.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    last.unwrap();
    create(&store, "more", 1).await;
    let before = all(&store).await;
    drop(store);
    assert_eq!(all(&open(path)).await, before);
}
