//! How fast a replica is rebuilt, next to `cp` of the same file, and what clients notice of it.
//! `cargo run --release --example rebuild_speed -- DIR [GIB]`; DIR needs four times the space.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ankole_blockdev::disk::{Buffer, Disk, Durability, Extent};
use ankole_replica::admin::{Progress, ReplicaMode};
use ankole_replica::engine::{Engine, MemoryArbiter};
use ankole_replica::listen::Address;
use ankole_replica::record::{Change, EngineGrant, InstanceId, Member, Record};
use ankole_replica::replication::Config;
use ankole_replica::server::{Replica, format, serve};
use ankole_replica::types::{Generation, ReplicaId};
use tokio::task::LocalSet;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().expect("a directory"));
    let gib: u64 = args.next().map_or(4, |text| text.parse().expect("a number of GiB"));
    run(async {
        full(&dir.join("dense"), gib << 30, BLOCK).await;
        full(&dir.join("holes"), (gib << 30).min(2 << 30), 2 * BLOCK).await;
        foreground(&dir.join("busy"), (gib << 30).min(4 << 30)).await;
        delta(&dir.join("delta"), 10 << 30).await;
    });
}

/// A block of data in every `step` bytes.
async fn full(dir: &Path, size_bytes: u64, step: u64) {
    let volume = Volume::new(dir, size_bytes).await;
    let engine = volume.start(&["r1"]);
    engine.opened().await.expect("opens");
    fill(&engine, 0, size_bytes, step).await;
    let data = size_bytes / step * BLOCK;
    let begin = Instant::now();
    let progress = add(&volume, &engine, "r2").await;
    let rebuilt = mib_per_s(data, begin);
    println!(
        "{} MiB of data, {} moved: {rebuilt:.0} MiB/s",
        data / MIB,
        progress.moved_bytes / MIB
    );
    if step == BLOCK {
        let copied = copy_file(&largest(&dir.join("r1")), &dir.join("copy"), data);
        println!("cp --sparse=never and sync: {copied:.0} MiB/s; ratio {:.2}", rebuilt / copied);
    }
    volume.end(engine).await;
}

/// What clients do alone, and while a replica is rebuilt.
async fn foreground(dir: &Path, size_bytes: u64) {
    let volume = Volume::new(dir, size_bytes).await;
    let engine = volume.start(&["r1"]);
    engine.opened().await.expect("opens");
    fill(&engine, 0, size_bytes, BLOCK).await;
    let time = Duration::from_secs(5);
    let (reads, _) = load(&engine, size_bytes, false, time).await;
    let (writes, _) = load(&engine, size_bytes, true, time).await;
    volume.set(&engine, &["r1", "r2"]).await;
    for (write, alone) in [(false, reads), (true, writes)] {
        let done = || engine.status().replicas[1].rebuild.map_or(size_bytes, |it| it.done_bytes);
        let before = done();
        let (beside, took) = load(&engine, size_bytes, write, time).await;
        let rate = (done() - before) as f64 / MIB as f64 / took;
        let kind = if write { "writes" } else { "reads" };
        println!(
            "random {kind}: {alone:.0}/s alone, {beside:.0}/s during a rebuild at {rate:.0} MiB/s; \
             ratio {:.2}",
            beside / alone
        );
    }
    volume.end(engine).await;
}

/// 100 MiB change while one of two is away.
async fn delta(dir: &Path, size_bytes: u64) {
    let volume = Volume::new(dir, size_bytes).await;
    let engine = volume.start(&["r1"]);
    engine.opened().await.expect("opens");
    // 1 GiB of data over 10 GiB: each region holds something.
    fill(&engine, 0, size_bytes, 10 * BLOCK).await;
    add(&volume, &engine, "r2").await;
    engine.detach();
    engine.ended().await;
    volume.leave("r2");
    let engine = volume.start(&["r1"]);
    engine.opened().await.expect("opens");
    for number in 0..100 {
        fill(&engine, number * 97 * MIB, MIB, BLOCK).await;
    }
    let begin = Instant::now();
    let progress = add(&volume, &engine, "r2").await;
    println!(
        "delta of 100 MiB in {} GiB: {:.2} s, {} MiB moved, {} MiB looked at",
        size_bytes >> 30,
        begin.elapsed().as_secs_f64(),
        progress.moved_bytes / MIB,
        progress.total_bytes / MIB
    );
    volume.end(engine).await;
}

async fn add(volume: &Volume, engine: &Engine, replica: &str) -> Progress {
    volume.set(engine, &["r1", replica]).await;
    loop {
        let status = engine.status();
        let added = status.replicas.iter().find(|it| it.replica == ReplicaId::from(replica));
        if let Some(added) = added.filter(|it| it.mode == ReplicaMode::ReadWrite) {
            return added.last_rebuild.expect("it was rebuilt");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn fill(engine: &Engine, start: u64, length: u64, step: u64) {
    let mut state = start | 1;
    if step == BLOCK {
        for at in (start..start + length).step_by(MIB as usize) {
            write(engine, at, noise(&mut state, MIB as usize)).await;
        }
        return;
    }
    let blocks: Vec<u64> = (start..start + length).step_by(step as usize).collect();
    for batch in blocks.chunks(64) {
        let writes = batch.iter().map(|at| write(engine, *at, noise(&mut state, BLOCK as usize)));
        futures_util::future::join_all(writes.collect::<Vec<_>>()).await;
    }
}

/// Eight clients that each do one random block after the other. Requests a second, and the time.
async fn load(engine: &Engine, size_bytes: u64, write_too: bool, time: Duration) -> (f64, f64) {
    let (count, begin) = (Cell::new(0u64), Instant::now());
    let clients = (1..=8u64).map(|client| {
        let count = &count;
        async move {
            let mut state = client * 7919;
            while begin.elapsed() < time {
                let at = next(&mut state) % (size_bytes / BLOCK) * BLOCK;
                if write_too {
                    write(engine, at, noise(&mut state, BLOCK as usize)).await;
                } else {
                    let extent = Extent { offset_bytes: at, length_bytes: BLOCK };
                    let (done, _) = engine.read(extent, Buffer::zeroed(BLOCK as usize)).await;
                    drop(done.expect("read"));
                }
                count.set(count.get() + 1);
            }
        }
    });
    futures_util::future::join_all(clients).await;
    let took = begin.elapsed().as_secs_f64();
    (count.get() as f64 / took, took)
}

async fn write(engine: &Engine, at: u64, data: Buffer) {
    let extent = Extent { offset_bytes: at, length_bytes: data.len() as u64 };
    drop(engine.write(extent, data, Durability::Volatile).await.expect("write"));
}

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 16
}

fn noise(state: &mut u64, length: usize) -> Buffer {
    let mut buffer = Buffer::zeroed(length);
    for chunk in buffer.chunks_exact_mut(64) {
        chunk[..8].copy_from_slice(&next(state).to_le_bytes());
    }
    buffer
}

fn copy_file(from: &Path, to: &Path, data: u64) -> f64 {
    let begin = Instant::now();
    let copied = std::process::Command::new("cp").arg("--sparse=never").arg(from).arg(to).status();
    assert!(copied.expect("cp runs").success());
    std::fs::File::open(to).and_then(|file| file.sync_all()).expect("sync");
    let rate = mib_per_s(data, begin);
    std::fs::remove_file(to).expect("remove");
    rate
}

fn largest(dir: &Path) -> PathBuf {
    let names = std::fs::read_dir(dir).expect("list").flatten().map(|entry| entry.path());
    names.max_by_key(|path| path.metadata().map_or(0, |meta| meta.len())).expect("it has files")
}

fn mib_per_s(bytes: u64, since: Instant) -> f64 {
    bytes as f64 / MIB as f64 / since.elapsed().as_secs_f64()
}

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("runtime"), work);
}

/// Two replicas, each served by a thread of its own, and the record.
struct Volume {
    dir: PathBuf,
    arbiter: MemoryArbiter,
    engines: Cell<u32>,
}

impl Volume {
    async fn new(dir: &Path, size_bytes: u64) -> Self {
        let mut members = Vec::new();
        for name in ["r1", "r2"] {
            let (path, replica) = (dir.join(name), ReplicaId::from(name));
            let incarnation = format(&path, "v1", &replica, size_bytes).await.expect("format");
            members.push(Member { replica, incarnation });
            let address = Address::Unix(dir.join(format!("{name}.sock")));
            std::thread::spawn(move || {
                run(async {
                    let open = Replica::open(&path).await.expect("open");
                    serve(open, &address, std::future::pending()).await.expect("serve");
                });
            });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        members.truncate(1);
        let record = Record {
            generation: Generation::FIRST,
            engine: None,
            attach_epoch: 0,
            in_sync: members,
            salvaged: None,
        };
        let arbiter = MemoryArbiter(Rc::new(RefCell::new(record)));
        Self { dir: dir.to_owned(), arbiter, engines: Cell::new(0) }
    }

    fn start(&self, replicas: &[&str]) -> Engine {
        self.engines.set(self.engines.get() + 1);
        let instance = InstanceId(format!("e{}", self.engines.get()));
        let now = self.arbiter.0.borrow().clone();
        let engine = EngineGrant { node: "here".into(), instance: instance.clone() };
        let grant = Change::Grant { engine, attach_epoch: 1 };
        self.arbiter.0.replace(now.after(now.generation, grant).expect("nobody else"));
        let ids: Vec<_> = replicas.iter().map(|name| ReplicaId::from(*name)).collect();
        let addresses: BTreeMap<_, _> = replicas
            .iter()
            .map(|name| {
                let path = self.dir.join(format!("{name}.sock"));
                (ReplicaId::from(*name), Address::Unix(path))
            })
            .collect();
        let arbiter = Box::new(self.arbiter.clone());
        Engine::start(Config::new("v1", instance, ids), addresses, arbiter)
    }

    async fn set(&self, engine: &Engine, replicas: &[&str]) {
        let named = |name: &&str| ankole_replica::admin::ReplicaAddress {
            replica: ReplicaId::from(*name),
            address: format!("unix:{}", self.dir.join(format!("{name}.sock")).display()),
        };
        engine.set_replicas(replicas.iter().map(named).collect()).expect("few enough");
    }

    fn leave(&self, replica: &str) {
        let mut record = self.arbiter.0.borrow_mut();
        record.in_sync.retain(|member| member.replica != ReplicaId::from(replica));
    }

    async fn end(self, engine: Engine) {
        engine.detach();
        engine.ended().await;
        std::fs::remove_dir_all(&self.dir).expect("remove");
    }
}
