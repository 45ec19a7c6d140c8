//! A disk that is full or fails, at each of its calls.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redb::{StorageBackend, StorageError};

use super::super::disk::{DiskFile, Health};
use super::super::writer::{Outside, attach};
use super::super::{EmbeddedStore, Verified, verify};
use super::{LAMP, all, block_on, create, lamp, lumen, open, path_in, replace};
use crate::{Event, Selector, Store, StoreError};

const NEVER: u64 = u64::MAX;

/// Fails from a call on, until it is healed.
#[derive(Debug)]
struct Plan {
    calls_left: AtomicU64,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// What needs room fails.
    Full,
    /// Syncs fail.
    Sync,
    /// All that changes fails.
    All,
}

impl Plan {
    fn call(&self, is_write: bool) -> io::Result<()> {
        let (is_meant, error) = match self.fault {
            Fault::Full => (is_write, io::Error::from(io::ErrorKind::StorageFull)),
            Fault::Sync => (!is_write, io::Error::from_raw_os_error(5)),
            Fault::All => (true, io::Error::from_raw_os_error(5)),
        };
        if !is_meant {
            return Ok(());
        }
        let one_less = |left: u64| (left != NEVER).then(|| left.saturating_sub(1));
        match self.calls_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
            Ok(0) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Faulty {
    disk: DiskFile,
    health: Arc<Health>,
    plan: Arc<Plan>,
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.plan.call(true)?;
        self.disk.set_len(length)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.plan.call(false).inspect_err(|_| self.health.sync_has_failed())?;
        self.disk.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.plan.call(true)?;
        self.disk.write(offset, data)
    }
}

fn store_on(path: &std::path::Path, fault: Fault) -> (EmbeddedStore, Arc<Plan>) {
    let plan = Arc::new(Plan { calls_left: AtomicU64::new(NEVER), fault });
    let given = Arc::clone(&plan);
    let attach = move |disk: DiskFile| {
        if given.calls_left.load(Ordering::SeqCst) == 0 {
            return Err(StorageError::Io(io::Error::from_raw_os_error(5)).into());
        }
        let health = Arc::clone(&disk.disk().upgrade().unwrap().health);
        attach(Faulty { disk, health, plan: Arc::clone(&given) })
    };
    let outside = Outside { attach: Box::new(attach), ..Outside::default() };
    (EmbeddedStore::open_with(path, outside).unwrap(), plan)
}

/// Until the store can be changed again.
async fn until_written(store: &EmbeddedStore, name: &str, value: u64) {
    for _ in 0..10_000 {
        match replace(store, name, value).await {
            Ok(()) => return,
            Err(StoreError::Unavailable { .. } | StoreError::OutcomeUnknown { .. }) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the store stays closed");
}

/// redb refuses everything after an error of the disk, and nobody opened it again: one full disk ended
/// every change of an in-sync set, and with it the writes of all volumes, until a restart.
#[test]
fn after_a_failure_at_any_call_what_was_answered_is_there_and_the_store_goes_on() {
    let mut seen = [0; 2];
    for fault in [Fault::Full, Fault::Sync, Fault::All] {
        for calls in 0..40 {
            let told = block_on(fails_at(fault, calls));
            seen = [seen[0] + told[0], seen[1] + told[1]];
            assert_eq!(told[2], 0, "the disk can be read, so it is known");
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "written, not written: {seen:?}");
}

/// How many writes were answered: written, not written, it isn't known.
async fn fails_at(fault: Fault, calls: u64) -> [usize; 3] {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    let case = format!("{fault:?} after {calls} calls");
    let (store, plan) = store_on(&path, fault);
    create(&store, "l1", 0).await;
    let from = create(&store, "l2", 0).await;
    let mut watch = store.watch_raw(LAMP, &Selector::all(), &from).await.unwrap();
    let mut told = [0; 3];
    // What was answered, and what may have become true since.
    let (mut is, mut may_be) = (0, Vec::new());
    plan.calls_left.store(calls, Ordering::SeqCst);
    for value in 1..10 {
        match replace(&store, "l1", value).await {
            Ok(()) => {
                (is, told[0]) = (value, told[0] + 1);
                may_be.clear();
            }
            Err(StoreError::Unavailable { .. }) => told[1] += 1,
            Err(StoreError::OutcomeUnknown { .. }) => {
                may_be.push(value);
                told[2] += 1;
            }
            Err(error) => panic!("{case}: {error}"),
        }
    }
    let may_read =
        |read: Option<u64>| read.is_some_and(|read| read == is || may_be.contains(&read));
    let read = lumen(&store, "l1").await;
    assert!(may_read(read), "{case}: {read:?} in the outage, not {is} or {may_be:?}");
    plan.calls_left.store(NEVER, Ordering::SeqCst);
    until_written(&store, "l2", 99).await;
    let read = lumen(&store, "l1").await;
    assert!(may_read(read), "{case}: {read:?}, not {is} or {may_be:?}");
    assert!(all_told(&mut watch).await, "{case}");
    let before = all(&store).await;
    drop((store, watch));
    assert_eq!(all(&open(&path)).await, before, "{case}");
    told
}

/// Versions rise, up to the last change.
async fn all_told(watch: &mut crate::Events) -> bool {
    use futures_util::StreamExt;
    let mut last = 0;
    while let Some(Event::Applied(raw)) = watch.next().await {
        let version: u64 = raw.metadata.resource_version.0.parse().unwrap();
        assert!(version > last);
        last = version;
        if raw.name() == "l2" {
            return true;
        }
    }
    false
}

/// A page cache that lost what it had to write tells so once, and then shows it as if it were there.
#[tokio::test]
async fn after_a_failed_sync_the_file_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    let (store, plan) = store_on(&path, Fault::Sync);
    create(&store, "l1", 1).await;
    let inode = |path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let before = inode(&path);
    plan.calls_left.store(0, Ordering::SeqCst);
    let failed = replace(&store, "l1", 2).await;
    assert!(matches!(failed, Err(StoreError::Unavailable { .. })), "{failed:?}");
    assert_eq!(lumen(&store, "l1").await, Some(1));
    plan.calls_left.store(NEVER, Ordering::SeqCst);
    until_written(&store, "l1", 3).await;
    assert_ne!(inode(&path), before);
}

/// Neither can the file be looked into, nor can it be made anew.
#[tokio::test]
async fn what_is_not_known_is_said_and_known_when_the_disk_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    let (store, plan) = store_on(&path, Fault::Sync);
    create(&store, "l1", 1).await;
    let in_the_way = folder.path().join("ankole.redb.new");
    std::fs::create_dir(&in_the_way).unwrap();
    plan.calls_left.store(0, Ordering::SeqCst);
    let failed = replace(&store, "l1", 2).await;
    assert!(matches!(failed, Err(StoreError::OutcomeUnknown { .. })), "{failed:?}");
    let next = replace(&store, "l1", 3).await;
    assert!(matches!(next, Err(StoreError::Unavailable { .. })), "{next:?}");
    assert_eq!(lumen(&store, "l1").await, Some(1), "reads go on");
    std::fs::remove_dir(&in_the_way).unwrap();
    plan.calls_left.store(NEVER, Ordering::SeqCst);
    until_written(&store, "l1", 4).await;
    drop(store);
    assert_eq!(lumen(&open(&path), "l1").await, Some(4));
}

/// What was answered is in memory, whatever becomes of the file.
#[tokio::test]
async fn a_file_that_is_damaged_while_it_is_closed_is_made_anew_from_memory() {
    for how in [Some(b"garbage".to_vec()), Some(Vec::new()), None] {
        let folder = tempfile::tempdir().unwrap();
        let path = path_in(&folder);
        let (store, plan) = store_on(&path, Fault::Full);
        create(&store, "l1", 1).await;
        plan.calls_left.store(0, Ordering::SeqCst);
        replace(&store, "l1", 2).await.unwrap_err();
        std::fs::remove_file(&path).unwrap();
        how.into_iter().for_each(|bytes| std::fs::write(&path, bytes).unwrap());
        plan.calls_left.store(NEVER, Ordering::SeqCst);
        until_written(&store, "l1", 3).await;
        drop(store);
        let Ok(Verified::Sound(state)) = verify(&path) else { panic!("it is whole") };
        assert_eq!(state.objects().count(), 1);
    }
}

/// It would be overwritten with what is older.
#[tokio::test]
async fn a_file_that_another_program_has_changed_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (path_in(&folder), folder.path().join("other"));
    let newer = open(&other);
    for number in 0..20 {
        create(&newer, &format!("l{number}"), 1).await;
    }
    drop(newer);
    let (store, plan) = store_on(&path, Fault::Full);
    create(&store, "l1", 1).await;
    plan.calls_left.store(0, Ordering::SeqCst);
    replace(&store, "l1", 2).await.unwrap_err();
    let bytes = std::fs::read(&other).unwrap();
    std::fs::rename(&other, &path).unwrap();
    plan.calls_left.store(NEVER, Ordering::SeqCst);
    let mut why = String::new();
    for _ in 0..1000 {
        why = replace(&store, "l1", 2).await.unwrap_err().to_string();
        if why.contains("another program has changed it") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(why.starts_with("nothing was written") && why.contains("another program"), "{why}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(lumen(&store, "l1").await, Some(1), "reads go on");
}

#[tokio::test]
async fn two_programs_do_not_have_one_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&path_in(&folder));
    let second = EmbeddedStore::open(&path_in(&folder)).err().expect("it is in use");
    assert!(second.to_string().contains("is in use by another program"), "{second}");
    store.create_raw(LAMP, lamp("l1", 1)).await.unwrap();
}

/// A process that another thread forks has all descriptors until it becomes another program: the lock
/// of a store that was closed at that moment, too. And one that was killed has it until it has ended.
#[test]
fn a_lock_that_is_about_to_be_given_up_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    drop(EmbeddedStore::open(&path).unwrap());
    let (locked, is_locked) = std::sync::mpsc::channel();
    let file = path.clone();
    let other = std::thread::spawn(move || {
        let file = std::fs::File::open(file).unwrap();
        file.try_lock().unwrap();
        locked.send(()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
    });
    is_locked.recv().unwrap();
    assert!(EmbeddedStore::open(&path).is_ok());
    other.join().unwrap();
}
