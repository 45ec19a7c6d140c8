//! What the write-intent map, settling and reads cost: an engine with three replicas on sockets.
//!
//! `cargo run --release -p ankole-replica --features mutations --example engine_io -- DIR WHAT [SECONDS]`
//! where WHAT is
//!
//! - `marks`: IOPS of random 4 KiB writes with marks and without (the mutation `NoMarks`), in turns,
//!   for a working set that fits and for a large fresh volume;
//! - `settle`: how long 1 GiB of marked regions takes after a crash, beside reading the files;
//! - `reads`: IOPS and CPU time of random reads of 4 KiB and 64 KiB (the whole process: the engine and
//!   all replicas).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ankole_blockdev::disk::{Buffer, Disk, Durability, Extent};
use ankole_replica::engine::{Engine, MemoryArbiter};
use ankole_replica::listen::Address;
use ankole_replica::record::{Change, EngineGrant, InstanceId, Member, Record};
use ankole_replica::replication::Config;
use ankole_replica::server::{Replica, format, serve};
use ankole_replica::store::crash::Random;
use ankole_replica::types::{Generation, ReplicaId};
use tokio::sync::oneshot;

const REPLICAS: usize = 3;
const DEPTH: u64 = 32;
const ROUNDS: usize = 3;
const GIB: u64 = 1 << 30;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
/// Replicas on threads of their own, and the record that names them.
struct Cluster {
    dir: PathBuf,
    record: Rc<RefCell<Record>>,
    served: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
    engines: u32,
}

impl Cluster {
    async fn new(dir: &Path, size_bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut in_sync = Vec::new();
        for number in 1..=REPLICAS {
            let replica = ReplicaId::from(format!("r{number}").as_str());
            let path = dir.join(replica.to_string());
            let incarnation = format(&path, "v", &replica, size_bytes).await?;
            in_sync.push(Member { replica, incarnation });
        }
        let record = Record {
            generation: Generation::FIRST,
            engine: None,
            attach_epoch: 0,
            in_sync,
            salvaged: None,
        };
        let record = Rc::new(RefCell::new(record));
        Ok(Self { dir: dir.to_owned(), record, served: Vec::new(), engines: 0 })
    }

    fn ids(&self) -> Vec<ReplicaId> {
        self.record.borrow().in_sync.iter().map(|member| member.replica.clone()).collect()
    }

    fn address(&self, replica: &ReplicaId) -> Address {
        Address::Unix(self.dir.join(format!("{replica}.sock")))
    }

    async fn start_replicas(&mut self, marks: bool) -> Result<()> {
        for replica in self.ids() {
            let (dir, address) = (self.dir.join(replica.to_string()), self.address(&replica));
            let (stop, stopped) = oneshot::channel::<()>();
            let (ready, is_open) = oneshot::channel();
            let thread = std::thread::spawn(move || {
                set_marks(marks);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.expect("a runtime starts");
                tokio::task::LocalSet::new().block_on(&runtime, async {
                    let open = Replica::open(&dir).await.expect("the replica opens");
                    let _told = ready.send(());
                    serve(open, &address, async { drop(stopped.await) }).await.expect("serves");
                });
            });
            is_open.await?;
            self.served.push((stop, thread));
        }
        Ok(())
    }

    /// As a kill would: nothing is closed in order.
    fn kill_replicas(&mut self) {
        for (stop, thread) in self.served.drain(..) {
            drop(stop);
            thread.join().expect("the replica's thread ends");
        }
    }

    async fn start_engine(&mut self) -> Result<Engine> {
        self.engines += 1;
        let instance = InstanceId(format!("e{}", self.engines));
        let engine = EngineGrant { node: "here".into(), instance: instance.clone() };
        let now = self.record.borrow().clone();
        let grant = Change::Grant { engine, attach_epoch: self.engines.into() };
        let granted = now.after(now.generation, grant).map_err(|_| "nobody else changes it")?;
        self.record.replace(granted);
        let replicas = self.ids();
        let addresses: BTreeMap<_, _> =
            replicas.iter().map(|replica| (replica.clone(), self.address(replica))).collect();
        let config = Config::new("v", instance, replicas);
        let engine = Engine::start(config, addresses, Box::new(MemoryArbiter(self.record.clone())));
        engine.opened().await.map_err(|end| format!("{end:?}"))?;
        Ok(engine)
    }
}

#[cfg(feature = "mutations")]
fn set_marks(on: bool) {
    use ankole_replica::mutation::{Mutation, set};
    set((!on).then_some(Mutation::NoMarks));
}

#[cfg(not(feature = "mutations"))]
fn set_marks(on: bool) {
    assert!(on, "build with --features mutations");
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("say in which directory to work")?);
    let what = arguments.next().ok_or("say what to measure: marks, settle or reads")?;
    let time = Duration::from_secs(arguments.next().map_or(Ok(5), |text| text.parse())?);
    let dir = tempfile::tempdir_in(dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        match what.as_str() {
            "marks" => marks(dir.path(), time).await,
            "settle" => settle(dir.path()).await,
            "reads" => reads(dir.path(), time).await,
            other => Err(format!("there is nothing called {other} to measure").into()),
        }
    })
}

async fn marks(dir: &Path, time: Duration) -> Result<()> {
    for (name, size_bytes, set_bytes) in
        [("256 MiB written again and again", GIB, GIB / 4), ("64 GiB, fresh", 64 * GIB, 64 * GIB)]
    {
        let mut rows = Vec::new();
        for round in 0..ROUNDS {
            let mut row = [0.0; 2];
            for (column, marks) in [true, false].into_iter().enumerate() {
                let dir = dir.join(format!("{size_bytes}-{round}-{marks}"));
                let mut cluster = Cluster::new(&dir, size_bytes).await?;
                cluster.start_replicas(marks).await?;
                let engine = cluster.start_engine().await?;
                if set_bytes < size_bytes {
                    fill(&engine, set_bytes).await?;
                }
                row[column] = random_io(&engine, set_bytes, 4096, true, time).await?.0;
                drop(engine);
                cluster.kill_replicas();
                std::fs::remove_dir_all(&dir)?;
            }
            println!("  {name}: {:.0} IOPS with marks, {:.0} without", row[0], row[1]);
            rows.push(row[0] / row[1]);
        }
        rows.sort_by(f64::total_cmp);
        println!("{name}: with marks {:.3} x without (median of {ROUNDS})", rows[ROUNDS / 2]);
    }
    Ok(())
}

async fn settle(dir: &Path) -> Result<()> {
    let mut cluster = Cluster::new(dir, 2 * GIB).await?;
    cluster.start_replicas(true).await?;
    let engine = cluster.start_engine().await?;
    fill(&engine, GIB).await?;
    // Overwritten, so that the checksums on the disk are older than the data.
    fill(&engine, GIB).await?;
    drop(engine);
    cluster.kill_replicas();
    let files: Vec<_> = cluster.ids().iter().map(|id| dir.join(id.to_string())).collect();
    let start = Instant::now();
    let readers: Vec<_> = files
        .iter()
        .map(|dir| {
            let from = format!("if={}", dir.join("layer-00000001.data").display());
            Command::new("dd")
                .args([&from, "of=/dev/null", "bs=1M", "count=1024"])
                .args(["iflag=direct", "status=none"])
                .spawn()
        })
        .collect();
    for reader in readers {
        assert!(reader?.wait()?.success(), "dd reads the file");
    }
    let reading = start.elapsed();
    let start = Instant::now();
    cluster.start_replicas(true).await?;
    let engine = cluster.start_engine().await?;
    let opened = start.elapsed();
    println!("{} MiB unsettled at open", engine.status().unsettled_bytes >> 20);
    while engine.status().unsettled_bytes > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let settled = start.elapsed() - opened;
    println!(
        "opened after {opened:?}, settled {settled:?} later; reading the three files takes \
         {reading:?}: {:.2} x",
        settled.as_secs_f64() / reading.as_secs_f64()
    );
    cluster.kill_replicas();
    Ok(())
}

async fn reads(dir: &Path, time: Duration) -> Result<()> {
    let mut cluster = Cluster::new(dir, GIB).await?;
    cluster.start_replicas(true).await?;
    let engine = cluster.start_engine().await?;
    fill(&engine, GIB / 2).await?;
    engine.flush().await?;
    for bytes in [4096, 65536] {
        let mut rows = Vec::new();
        for _ in 0..ROUNDS {
            rows.push(random_io(&engine, GIB / 2, bytes, false, time).await?);
        }
        rows.sort_by(|a, b| a.1.total_cmp(&b.1));
        let (iops, cpu_us) = rows[ROUNDS / 2];
        println!("random reads of {bytes} bytes: {iops:.0} IOPS, {cpu_us:.1} µs of CPU each");
    }
    cluster.kill_replicas();
    Ok(())
}

async fn fill(engine: &Engine, bytes: u64) -> Result<()> {
    let mut random = Random::new(Instant::now().elapsed().as_nanos() as u64 + 1);
    for at in (0..bytes).step_by(1 << 20) {
        let mut buffer = Buffer::zeroed(1 << 20);
        for word in buffer.chunks_exact_mut(8) {
            word.copy_from_slice(&random.number().to_le_bytes());
        }
        let extent = Extent { offset_bytes: at, length_bytes: 1 << 20 };
        drop(engine.write(extent, buffer, Durability::Volatile).await?);
    }
    Ok(())
}

/// IOPS and CPU time per I/O, in µs.
async fn random_io(
    engine: &Engine,
    within_bytes: u64,
    bytes: u64,
    writes: bool,
    time: Duration,
) -> Result<(f64, f64)> {
    let count = Rc::new(Cell::new(0u64));
    let cpu_before = cpu_seconds()?;
    let start = Instant::now();
    let tasks: Vec<_> = (0..DEPTH)
        .map(|task| {
            let (engine, count) = (engine.clone(), count.clone());
            tokio::task::spawn_local(async move {
                let mut random = Random::new(task + 1);
                let part = within_bytes / bytes / DEPTH;
                while start.elapsed() < time {
                    let at = (task * part + random.below(part)) * bytes;
                    let extent = Extent { offset_bytes: at, length_bytes: bytes };
                    let mut buffer = Buffer::zeroed(bytes as usize);
                    if writes {
                        buffer.fill(task as u8 + 1);
                        let written = engine.write(extent, buffer, Durability::Volatile).await;
                        drop(written.expect("the disk works"));
                    } else {
                        let (read, _) = engine.read(extent, buffer).await;
                        drop(read.expect("the disk works"));
                    }
                    count.set(count.get() + 1);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    let done = count.get() as f64;
    let cpu = cpu_seconds()? - cpu_before;
    Ok((done / start.elapsed().as_secs_f64(), cpu * 1e6 / done))
}

fn cpu_seconds() -> Result<f64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
