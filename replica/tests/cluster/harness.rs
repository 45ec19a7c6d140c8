//! Replicas on sockets and in directories, an arbiter in memory, and the engines that are started.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use ankole_blockdev::disk::{Buffer, Disk, Durability, Extent};
use ankole_replica::admin::{EngineStatus, ReplicaMode, ReplicaStatus};
use ankole_replica::engine::{Engine, MemoryArbiter};
use ankole_replica::listen::Address;
use ankole_replica::record::{Change, EngineGrant, InstanceId, Member, Record};
use ankole_replica::replication::Config;
use ankole_replica::server::{Replica, format, serve};
use ankole_replica::types::ReplicaId;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

pub const SIZE_BYTES: u64 = 16 << 20;
pub const PATIENCE: Duration = Duration::from_secs(60);

type Served = (oneshot::Sender<()>, JoinHandle<()>);
/// Replicas on sockets, and the record that says which of them count.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub record: Rc<RefCell<Record>>,
    pub served: RefCell<BTreeMap<ReplicaId, Served>>,
    pub engines: Cell<u32>,
    pub in_process: bool,
    /// What rebuilds may move a second.
    pub limit: Cell<Option<u64>>,
}

impl Cluster {
    pub async fn new(replicas: usize, in_process: bool) -> Self {
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

    pub fn replicas(&self) -> Vec<ReplicaId> {
        let names = std::fs::read_dir(self.dir.path()).expect("list").flatten();
        let dirs = names.filter(|entry| entry.path().is_dir());
        let mut ids: Vec<_> = dirs
            .map(|entry| ReplicaId::from(entry.file_name().to_string_lossy().as_ref()))
            .collect();
        ids.sort();
        ids
    }

    pub fn address(&self, replica: &ReplicaId) -> Address {
        let path = self.dir.path();
        if self.in_process {
            Address::Directory(path.join(replica.to_string()))
        } else {
            Address::Unix(path.join(format!("{replica}.sock")))
        }
    }

    /// Serves a replica on a thread of its own; returns when it is open.
    pub async fn start_replica(&self, replica: &ReplicaId) {
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
    pub fn damage(&self, replica: &ReplicaId, layer_file: u32, kind: &str, offset_bytes: u64) {
        use std::os::unix::fs::FileExt;
        let file = self.file(replica, layer_file, kind);
        let mut bytes = [0; 512];
        file.read_exact_at(&mut bytes, offset_bytes).expect("there is data");
        bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
        file.write_all_at(&bytes, offset_bytes).expect("writable");
        file.sync_all().expect("synced");
    }

    pub fn file(&self, replica: &ReplicaId, layer_file: u32, kind: &str) -> std::fs::File {
        let name = format!("layer-{layer_file:08}.{kind}");
        let path = self.dir.path().join(replica.to_string()).join(name);
        std::fs::File::options().read(true).write(true).open(path).expect("a layer's file")
    }

    pub fn holds(&self, replica: &ReplicaId, layer_file: u32, offset_bytes: u64) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; 4096];
        let file = self.file(replica, layer_file, "data");
        file.read_exact_at(&mut bytes, offset_bytes).expect("there is data");
        bytes
    }

    /// Its thread ends as a killed process does: connections break, nothing is closed in order.
    pub fn kill_replica(&self, replica: &ReplicaId) {
        let (stop, thread) = self.served.borrow_mut().remove(replica).expect("it is served");
        drop(stop);
        thread.join().expect("the replica's thread ends");
    }

    pub async fn start_engine(&self, recover: bool) -> Engine {
        self.start_engine_with(recover, |config| config).await
    }

    pub async fn start_engine_with(
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
    pub fn begin_engine(&self, recover: bool, change: impl FnOnce(Config) -> Config) -> Engine {
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

pub async fn until_all_in_sync(engine: &Engine) {
    let whole = |replica: &ReplicaStatus| replica.mode == ReplicaMode::ReadWrite;
    until(engine, |status| status.replicas.iter().all(whole)).await;
}

pub async fn until(engine: &Engine, holds: impl Fn(&EngineStatus) -> bool) {
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
pub fn unlike(seed: u64, length: usize) -> Vec<u8> {
    let word = |at: u64| (seed << 40 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..length as u64 / 8).flat_map(word).collect()
}

pub fn bytes(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| seed.wrapping_add((at % 251) as u8) | 1).collect()
}

pub async fn write(disk: &impl Disk, offset_bytes: u64, content: &[u8]) {
    let at = Extent { offset_bytes, length_bytes: content.len() as u64 };
    disk.write(at, Buffer::copy_of(content), Durability::Volatile).await.map(drop).expect("write");
}

pub async fn read(disk: &impl Disk, offset_bytes: u64, length: usize) -> Vec<u8> {
    let at = Extent { offset_bytes, length_bytes: length as u64 };
    let (result, buffer) = disk.read(at, Buffer::zeroed(length)).await;
    drop(result.expect("read"));
    buffer.to_vec()
}

pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("runtime"), test);
}

pub const MIB: u64 = 1 << 20;
pub const BLOCK: u64 = 4096;

pub fn status_of(engine: &Engine, replica: &ReplicaId) -> ReplicaStatus {
    let replicas = engine.status().replicas;
    replicas.into_iter().find(|it| it.replica == *replica).expect("it is wanted")
}

/// What the last rebuild of a replica moved.
pub fn moved(engine: &Engine, replica: &ReplicaId) -> u64 {
    status_of(engine, replica).last_rebuild.expect("it was rebuilt").moved_bytes
}

/// The volume as each replica alone shows it, through an engine that has no other.
pub async fn each_alone(cluster: &Cluster, engine: Engine) -> Vec<Vec<u8>> {
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

pub fn patched(content: &mut [u8], at: u64, with: &[u8]) {
    content[at as usize..at as usize + with.len()].copy_from_slice(with);
}

pub async fn each_alone_of(cluster: &Cluster, engine: Engine, replica: &ReplicaId) -> Vec<u8> {
    cluster.record.borrow_mut().in_sync.sort_by_key(|member| member.replica != *replica);
    engine.detach();
    tokio::time::timeout(PATIENCE, engine.ended()).await.expect("it ends");
    let member = cluster.record.borrow().in_sync[0].clone();
    cluster.record.borrow_mut().in_sync = vec![member];
    let alone = cluster.start_engine(false).await;
    read(&alone, 0, SIZE_BYTES as usize).await
}
