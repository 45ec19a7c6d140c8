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
use ankole_replica::admin::{EngineStatus, ReplicaMode, ReplicaStatus};
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
    /// What rebuilds may move a second.
    limit: Cell<Option<u64>>,
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
        let record = Record::first(in_sync);
        let cluster = Self {
            dir,
            record: Rc::new(RefCell::new(record)),
            served: RefCell::default(),
            engines: Cell::new(0),
            in_process,
            limit: Cell::new(None),
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
        let engine = self.begin_engine(recover, change);
        let opened = tokio::time::timeout(PATIENCE, engine.opened()).await;
        opened.expect("opens in time").expect("opens");
        engine
    }

    /// An engine whose volume isn't open yet.
    fn begin_engine(&self, recover: bool, change: impl FnOnce(Config) -> Config) -> Engine {
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
        let rebuild_bytes_per_second = self.limit.get();
        let defaults = Config::new("v1", instance, replicas);
        let config = change(Config { recover, rebuild_bytes_per_second, ..defaults });
        Engine::start(config, addresses, Box::new(MemoryArbiter(self.record.clone())))
    }
}

async fn until_all_in_sync(engine: &Engine) {
    let whole = |replica: &ReplicaStatus| replica.mode == ReplicaMode::ReadWrite;
    until(engine, |status| status.replicas.iter().all(whole)).await;
}

async fn until(engine: &Engine, holds: impl Fn(&EngineStatus) -> bool) {
    let waited = async {
        while !holds(&engine.status()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, waited).await.is_err() {
        panic!("it never came to that: {:#?}", engine.status());
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

// ---- rebuilds ----------------------------------------------------------------------------------

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

fn status_of(engine: &Engine, replica: &ReplicaId) -> ReplicaStatus {
    let replicas = engine.status().replicas;
    replicas.into_iter().find(|it| it.replica == *replica).expect("it is wanted")
}

/// What the last rebuild of a replica moved.
fn moved(engine: &Engine, replica: &ReplicaId) -> u64 {
    status_of(engine, replica).last_rebuild.expect("it was rebuilt").moved_bytes
}

/// The volume as each replica alone shows it, through an engine that has no other.
async fn each_alone(cluster: &Cluster, engine: Engine) -> Vec<Vec<u8>> {
    engine.detach();
    tokio::time::timeout(PATIENCE, engine.ended()).await.expect("it ends");
    let members = cluster.record.borrow().in_sync.clone();
    let mut shown = Vec::new();
    for member in &members {
        cluster.record.borrow_mut().in_sync = vec![member.clone()];
        let alone = cluster.start_engine(false).await;
        let size = alone.size_bytes() as usize;
        shown.push(read(&alone, 0, size).await);
        alone.detach();
        tokio::time::timeout(PATIENCE, alone.ended()).await.expect("it ends");
    }
    shown
}

fn patched(content: &mut [u8], at: u64, with: &[u8]) {
    content[at as usize..at as usize + with.len()].copy_from_slice(with);
}

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
        assert!(looked.since.is_some() && looked.total_bytes <= 6 * MIB, "{looked:?}");
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

#[test]
fn two_replicas_are_rebuilt_at_once_while_the_client_writes() {
    run(async {
        let cluster = Cluster::new(4, false).await;
        cluster.limit.set(Some(16 * MIB));
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

async fn each_alone_of(cluster: &Cluster, engine: Engine, replica: &ReplicaId) -> Vec<u8> {
    cluster.record.borrow_mut().in_sync.sort_by_key(|member| member.replica != *replica);
    engine.detach();
    tokio::time::timeout(PATIENCE, engine.ended()).await.expect("it ends");
    let member = cluster.record.borrow().in_sync[0].clone();
    cluster.record.borrow_mut().in_sync = vec![member];
    let alone = cluster.start_engine(false).await;
    read(&alone, 0, SIZE_BYTES as usize).await
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
        until(&engine, |status| status.lost.is_some()).await;
        write(&engine, 9 * 4096, &unlike(6, 4096)).await;
        assert_eq!(read(&engine, 9 * 4096, 4096).await, unlike(6, 4096));
        until(&engine, |status| status.lost.is_none()).await;
    });
}
