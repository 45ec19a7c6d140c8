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
use ankole_replica::admin::ReplicaMode;
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

    /// Its thread ends as a killed process does: connections break, nothing is closed in order.
    fn kill_replica(&self, replica: &ReplicaId) {
        let (stop, thread) = self.served.borrow_mut().remove(replica).expect("it is served");
        drop(stop);
        thread.join().expect("the replica's thread ends");
    }

    async fn start_engine(&self, recover: bool) -> Engine {
        let engine = self.begin_engine(recover);
        let opened = tokio::time::timeout(PATIENCE, engine.opened()).await;
        opened.expect("opens in time").expect("opens");
        engine
    }

    /// An engine whose volume isn't open yet.
    fn begin_engine(&self, recover: bool) -> Engine {
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
        let config = Config { recover, ..Config::new("v1", instance, replicas) };
        Engine::start(config, addresses, Box::new(MemoryArbiter(self.record.clone())))
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

/// Asked while it opened, an engine answered that there is no such snapshot, and would have made
/// a second one of a name that exists.
#[test]
fn an_engine_that_opens_does_not_say_that_a_snapshot_is_gone() {
    run(async {
        let cluster = Cluster::new(2, false).await;
        let engine = cluster.start_engine(false).await;
        engine.snapshot("s1".into(), BTreeMap::new()).await.expect("snapshot");
        let engine = cluster.begin_engine(true);
        assert!(engine.snapshot("s1".into(), BTreeMap::new()).await.is_err(), "name is taken");
        let engine = cluster.begin_engine(true);
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
