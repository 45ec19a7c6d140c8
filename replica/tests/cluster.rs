//! An engine and three replicas over real sockets and files, in one process: what a client sees
//! through deaths and returns.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use ankole_blockdev::disk::{Buffer, Disk, Durability, Extent};
use ankole_replica::admin::{EngineStatus, ReplicaMode};
use ankole_replica::arbiter::{Change, EngineGrant, InstanceId, Member, Record, Refused};
use ankole_replica::engine::{Arbiter, ArbiterError, Engine};
use ankole_replica::listen::Address;
use ankole_replica::replication::{Config, End};
use ankole_replica::server::{Replica, format, serve};
use ankole_replica::types::{Generation, ReplicaId};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

const SIZE_BYTES: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct MemoryArbiter(Rc<RefCell<Record>>);

type Served = (oneshot::Sender<()>, JoinHandle<()>);
type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, ArbiterError>> + 'a>>;

impl Arbiter for MemoryArbiter {
    fn read<'a>(&'a self, _volume: &'a str) -> Asked<'a, Record> {
        Box::pin(async { Ok(self.0.borrow().clone()) })
    }
    fn change<'a>(
        &'a self,
        _volume: &'a str,
        expected: Generation,
        change: &'a Change,
    ) -> Asked<'a, Result<Record, Refused>> {
        Box::pin(async move {
            let after = self.0.borrow().after(expected, change.clone());
            if let Ok(record) = &after {
                self.0.replace(record.clone());
            }
            Ok(after)
        })
    }
}

/// Replicas on sockets, and the record that says which of them count.
struct Cluster {
    dir: tempfile::TempDir,
    record: Rc<RefCell<Record>>,
    served: RefCell<BTreeMap<ReplicaId, Served>>,
    engines: Cell<u32>,
    in_process: bool,
}

impl Cluster {
    async fn new(replicas: usize, in_process: bool) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut in_sync = Vec::new();
        for number in 1..=replicas {
            let replica = ReplicaId::from(format!("r{number}").as_str());
            let path = dir.path().join(replica.to_string());
            let incarnation = format(&path, "v1", &replica, SIZE_BYTES).await.expect("format");
            in_sync.push(Member { replica, incarnation });
        }
        let record =
            Record { generation: Generation::FIRST, engine: None, attach_epoch: 0, in_sync };
        let cluster = Self {
            dir,
            record: Rc::new(RefCell::new(record)),
            served: RefCell::default(),
            engines: Cell::new(0),
            in_process,
        };
        if !in_process {
            for replica in cluster.replicas() {
                cluster.start_replica(&replica).await;
            }
        }
        cluster
    }

    fn replicas(&self) -> Vec<ReplicaId> {
        let names = std::fs::read_dir(self.dir.path()).expect("list").flatten();
        let dirs = names.filter(|entry| entry.path().is_dir());
        let mut ids: Vec<_> = dirs
            .map(|entry| ReplicaId::from(entry.file_name().to_string_lossy().as_ref()))
            .collect();
        ids.sort();
        ids
    }

    fn address(&self, replica: &ReplicaId) -> Address {
        let path = self.dir.path();
        if self.in_process {
            Address::Directory(path.join(replica.to_string()))
        } else {
            Address::Unix(path.join(format!("{replica}.sock")))
        }
    }

    /// Serves a replica on a thread of its own; returns when it is open.
    async fn start_replica(&self, replica: &ReplicaId) {
        let dir = self.dir.path().join(replica.to_string());
        let address = self.address(replica);
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_open) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            run(async {
                let open = Replica::open(&dir).await.expect("open replica");
                ready.send(()).expect("the test waits");
                serve(open, &address, async { drop(stopped.await) }).await.expect("serve");
            });
        });
        is_open.await.expect("the replica opens");
        self.served.borrow_mut().insert(replica.clone(), (stop, thread));
    }

    /// Flips bits of a block where the disk keeps them, behind the replica's back.
    fn damage(&self, replica: &ReplicaId, layer_file: u32, kind: &str, offset_bytes: u64) {
        use std::os::unix::fs::FileExt;
        let file = self.file(replica, layer_file, kind);
        let mut bytes = [0; 512];
        file.read_exact_at(&mut bytes, offset_bytes).expect("there is data");
        bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
        file.write_all_at(&bytes, offset_bytes).expect("writable");
        file.sync_all().expect("synced");
    }

    fn file(&self, replica: &ReplicaId, layer_file: u32, kind: &str) -> std::fs::File {
        let name = format!("layer-{layer_file:08}.{kind}");
        let path = self.dir.path().join(replica.to_string()).join(name);
        std::fs::File::options().read(true).write(true).open(path).expect("a layer's file")
    }

    fn holds(&self, replica: &ReplicaId, layer_file: u32, offset_bytes: u64) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; 4096];
        let file = self.file(replica, layer_file, "data");
        file.read_exact_at(&mut bytes, offset_bytes).expect("there is data");
        bytes
    }

    /// Its thread ends as a killed process does: connections break, nothing is closed in order.
    fn kill_replica(&self, replica: &ReplicaId) {
        let (stop, thread) = self.served.borrow_mut().remove(replica).expect("it is served");
        drop(stop);
        thread.join().expect("the replica's thread ends");
    }

    async fn start_engine(&self, recover: bool) -> Engine {
        self.start_engine_with(recover, |config| config).await
    }

    async fn start_engine_with(
        &self,
        recover: bool,
        change: impl FnOnce(Config) -> Config,
    ) -> Engine {
        self.engines.set(self.engines.get() + 1);
        let instance = InstanceId(format!("e{}", self.engines.get()));
        let now = self.record.borrow().clone();
        let engine = EngineGrant { node: "here".into(), instance: instance.clone() };
        let grant = Change::Grant { engine, attach_epoch: 1 };
        let granted = now.after(now.generation, grant).expect("nobody else changes it");
        self.record.replace(granted);
        let replicas = self.replicas();
        let addresses =
            replicas.iter().map(|replica| (replica.clone(), self.address(replica))).collect();
        let config = change(Config { recover, ..Config::new("v1", instance, replicas) });
        let engine = Engine::start(config, addresses, Box::new(MemoryArbiter(self.record.clone())));
        let opened = tokio::time::timeout(PATIENCE, engine.opened()).await;
        opened.expect("opens in time").expect("opens");
        engine
    }
}

async fn until_all_in_sync(engine: &Engine) {
    let all = async {
        loop {
            let status = engine.status();
            if status.replicas.iter().all(|replica| replica.mode == ReplicaMode::ReadWrite) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        panic!("not in sync: {:#?}", engine.status());
    }
}

/// Waits for something that the engine's status shows.
async fn until(engine: &Engine, what: &str, test: impl Fn(&EngineStatus) -> bool) {
    let seen = async {
        while !test(&engine.status()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, seen).await.is_err() {
        panic!("{what}: {:#?}", engine.status());
    }
}

/// Bytes that no block has twice.
fn unlike(seed: u64, length: usize) -> Vec<u8> {
    let word = |at: u64| (seed << 40 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..length as u64 / 8).flat_map(word).collect()
}

fn bytes(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| seed.wrapping_add((at % 251) as u8) | 1).collect()
}

async fn write(disk: &impl Disk, offset_bytes: u64, content: &[u8]) {
    let at = Extent { offset_bytes, length_bytes: content.len() as u64 };
    disk.write(at, Buffer::copy_of(content), Durability::Volatile).await.map(drop).expect("write");
}

async fn read(disk: &impl Disk, offset_bytes: u64, length: usize) -> Vec<u8> {
    let at = Extent { offset_bytes, length_bytes: length as u64 };
    let (result, buffer) = disk.read(at, Buffer::zeroed(length)).await;
    drop(result.expect("read"));
    buffer.to_vec()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("runtime"), test);
}

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

/// What was written long ago isn't compared after a crash: the marks are gone, on all replicas,
/// without a detach.
#[test]
fn an_idle_volume_has_no_marks_and_a_crash_leaves_nothing_to_settle() {
    run(async {
        let cluster = Cluster::new(3, false).await;
        let quick = |config| Config { clear_after: Duration::from_millis(200), ..config };
        let engine = cluster.start_engine_with(false, quick).await;
        // Sequential: the replicas mark regions ahead of it, of which the engine isn't told.
        write(&engine, 0, &unlike(1, 3 << 20)).await;
        write(&engine, 3 << 20, &unlike(2, 1 << 20)).await;
        let marked = || {
            let marks = |replica: &ReplicaId| {
                let path = cluster.dir.path().join(replica.to_string()).join("intent");
                let intent = std::fs::read(path).expect("the intent map");
                intent[..62 * 8].chunks_exact(8).filter(|entry| entry[0] & 1 == 1).count()
            };
            cluster.replicas().iter().map(marks).sum::<usize>()
        };
        assert!(marked() >= 3 * 4, "{} marks while it is written", marked());
        let none = async {
            while marked() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, none).await;
        in_time.unwrap_or_else(|_| panic!("{} marks are left", marked()));
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
        assert_eq!((status.repaired_blocks, status.lost), (3, None));
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
        until(&engine, "a lost block is shown", |status| status.lost.is_some()).await;
        write(&engine, 9 * 4096, &unlike(6, 4096)).await;
        assert_eq!(read(&engine, 9 * 4096, 4096).await, unlike(6, 4096));
        until(&engine, "it is there again", |status| status.lost.is_none()).await;
    });
}
