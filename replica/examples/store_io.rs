//! What a block costs: random 4 KiB I/O on a prefilled volume, beside `fio` on a raw file.
//!
//! `cargo run --release -p ankole-replica --example store_io -- DIR [SECONDS]`: makes a replica of
//! 1 GiB and a file of the same size in `DIR`, and prints IOPS and CPU time per I/O (user and
//! system, of the whole process) for both, interleaved.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};
use ankole_replica::store::crash::Random;
use ankole_replica::store::file::{Directory, DirectoryOptions};
use ankole_replica::store::{Identity, Membership, ReplicaState, Store, StoreOptions, View};
use ankole_replica::types::{BlockIndex, BlockRange, Generation, Incarnation, LayerId};

const SIZE: u64 = 1 << 30;
const BLOCK: usize = BLOCK_BYTES as usize;
const ROUNDS: usize = 3;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

struct Figures {
    iops: f64,
    cpu_us: f64,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("say in which directory to work")?);
    let seconds = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let dir = tempfile::tempdir_in(dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, measure(dir.path(), seconds))
}

async fn measure(dir: &Path, seconds: u64) -> Result<()> {
    let replica = dir.join("replica");
    std::fs::create_dir(&replica)?;
    let raw = dir.join("raw");
    println!("filling a volume and a file of 1 GiB");
    fio(&raw, "write", 8, 30, &["--bs=1M", "--end_fsync=1"])?;
    let identity =
        Identity { volume: "bench".into(), replica: "r1".into(), incarnation: Incarnation(1) };
    let options = DirectoryOptions::default();
    Store::format(Directory::open(&replica, &options)?, identity, SIZE, LayerId(1)).await?;
    let directory = Directory::open(&replica, &options)?;
    println!("{:?}", directory.data_path());
    let store = Rc::new(Store::open(directory, StoreOptions::default()).await?);
    let state = ReplicaState::Member;
    store.set_membership(Membership { state, ..Membership::NEW }).await?;
    fill(&store).await?;

    println!("{:28} {:>9} {:>9} {:>12} {:>12}", "", "store", "fio", "store µs/IO", "fio µs/IO");
    for (name, writes, depth) in [
        ("randwrite", true, 32),
        ("randread", false, 32),
        ("randwrite", true, 1),
        ("randread", false, 1),
    ] {
        let mut rows = Vec::new();
        for _ in 0..ROUNDS {
            let ours = random_io(&store, writes, depth, Duration::from_secs(seconds)).await?;
            let theirs = fio(&raw, name, depth, seconds, &["--bs=4k"])?;
            rows.push((ours, theirs));
        }
        let median = |of: &dyn Fn(&(Figures, Figures)) -> f64| {
            let mut values: Vec<f64> = rows.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        println!(
            "4 KiB {name:10} depth {depth:<4} {:>9.0} {:>9.0} {:>12.1} {:>12.1}",
            median(&|row| row.0.iops),
            median(&|row| row.1.iops),
            median(&|row| row.0.cpu_us),
            median(&|row| row.1.cpu_us),
        );
    }
    Ok(())
}

async fn fill(store: &Store<Directory>) -> Result<()> {
    let mut random = Random::new(1);
    for megabyte in 0..SIZE >> 20 {
        let mut buffer = Buffer::zeroed(1 << 20);
        for word in buffer.chunks_exact_mut(8) {
            word.copy_from_slice(&random.number().to_le_bytes());
        }
        let sums: Vec<u32> =
            buffer.chunks_exact(BLOCK).map(ankole_replica::checksum::of_block).collect();
        let range = BlockRange::new(BlockIndex(megabyte * 256), 256);
        store.write(range, Rc::new(buffer), 0, &sums, Generation::FIRST).await?;
    }
    Ok(store.flush().await?)
}

/// `depth` tasks, each with one request at a time on its own part of the volume.
async fn random_io(
    store: &Rc<Store<Directory>>,
    writes: bool,
    depth: u64,
    time: Duration,
) -> Result<Figures> {
    let count = Rc::new(Cell::new(0u64));
    let cpu_before = cpu_seconds()?;
    let start = Instant::now();
    let tasks: Vec<_> = (0..depth)
        .map(|task| {
            let (store, count) = (store.clone(), count.clone());
            tokio::task::spawn_local(async move {
                let mut random = Random::new(task + 1);
                let part = SIZE / BLOCK_BYTES / depth;
                let mut buffer = Buffer::zeroed(BLOCK);
                buffer.fill(task as u8 + 1);
                let data = Rc::new(Buffer::copy_of(&buffer));
                let sums = [ankole_replica::checksum::of_block(&data)];
                while start.elapsed() < time {
                    let range = BlockRange::new(BlockIndex(task * part + random.below(part)), 1);
                    if writes {
                        let written = store.write(range, data.clone(), 0, &sums, Generation::FIRST);
                        written.await.expect("the disk works");
                    } else {
                        let report;
                        (report, buffer) = store.read(View::Top, range, buffer).await;
                        report.expect("the disk works");
                    }
                    count.set(count.get() + 1);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = cpu_seconds()? - cpu_before;
    let done = count.get() as f64;
    Ok(Figures { iops: done / seconds, cpu_us: cpu * 1e6 / done })
}

fn cpu_seconds() -> Result<f64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn fio(file: &Path, kind: &str, depth: u64, seconds: u64, more: &[&str]) -> Result<Figures> {
    let mut command = Command::new("fio");
    command
        .args([
            "--name=raw",
            "--ioengine=io_uring",
            "--direct=1",
            "--size=1G",
            "--output-format=json",
        ])
        .arg(format!("--filename={}", file.display()))
        .args([format!("--rw={kind}"), format!("--iodepth={depth}")])
        .args(more);
    if kind.starts_with("rand") {
        command.args([format!("--runtime={seconds}"), "--time_based".into()]);
    }
    let output = command.output().map_err(|error| format!("fio (package fio): {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let job = &report["jobs"][0];
    let side = if kind.ends_with("read") { &job["read"] } else { &job["write"] };
    let number = |value: &serde_json::Value| value.as_f64().ok_or("fio reports numbers");
    let cpu_share = (number(&job["usr_cpu"])? + number(&job["sys_cpu"])?) / 100.0;
    let iops = number(&side["iops"])?;
    Ok(Figures { iops, cpu_us: cpu_share * 1e6 / iops })
}
