//! What many attached volumes cost a manager and an agent; measured, not judged.
//!
//!     cargo test --release --locked -p ankole --test many_volumes -- --ignored --nocapture
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ankole_api::Name;
use ankole_api::attachment::AttachRequest;
use ankole_api::objects::node::LeaseSpec;
use ankole_api::objects::{EngineSpec, VolumeSpec};
use ankole_api::volume::{State, VolumeView};
use ankole_client::Client;
use ankole_store::{EmbeddedStore, Selector};

use common::World;
use common::cluster::Cluster;

const VOLUMES: usize = 300;
const IDLE: Duration = Duration::from_secs(30);
const ATTACHES: usize = 20;

/// All writes to the store so far, and those of leases.
fn writes(cluster: &Cluster) -> (u64, u64) {
    let all = Selector::all();
    let leases = cluster.runtime.block_on(cluster.store.list::<LeaseSpec>(&all)).unwrap();
    let version = leases.version.0.parse().unwrap();
    let of_lease = leases.objects.iter().flatten().map(|lease| lease.metadata.generation);
    (version, of_lease.sum())
}

/// Of this process, in ticks of 10 ms.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(')').next().unwrap().split_whitespace();
    after_name.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn count(cluster: &Cluster, state: State) -> usize {
    let all = Selector::all();
    let volumes = cluster.store.list::<VolumeSpec>(&all);
    let volumes = cluster.runtime.block_on(volumes).unwrap().objects;
    volumes.iter().flatten().filter(|volume| volume.status.state == Some(state)).count()
}

fn until_all(cluster: &Cluster, state: State) {
    while count(cluster, state) < VOLUMES {
        thread::sleep(Duration::from_millis(200));
    }
}

fn quantile(times: &mut [Duration], part: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * part) as usize]
}

/// As a client that has just been told the endpoint: connects, and reads a block.
fn read_first_block(endpoint: &str, volume: &str) -> io::Result<()> {
    let socket = endpoint.split_once("socket=").unwrap().1;
    let mut stream = UnixStream::connect(socket)?;
    stream.read_exact(&mut [0; 18])?;
    stream.write_all(&3u32.to_be_bytes())?; // fixed newstyle, no zeroes
    let mut option = b"IHAVEOPT".to_vec();
    option.extend(1u32.to_be_bytes());
    option.extend(u32::try_from(volume.len()).unwrap().to_be_bytes());
    option.extend(volume.as_bytes());
    stream.write_all(&option)?;
    stream.read_exact(&mut [0; 10])?;
    let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
    request.extend([0; 20]);
    request.extend(4096u32.to_be_bytes());
    stream.write_all(&request)?;
    stream.read_exact(&mut [0; 16 + 4096])
}

fn attach_to_first_read(cluster: &Cluster, volume: &str) -> Duration {
    let begun = Instant::now();
    cluster.want(volume, None);
    let endpoint = loop {
        let engine = cluster.runtime.block_on(cluster.store.find::<EngineSpec>(volume)).unwrap();
        if let Some(endpoint) = engine.and_then(|engine| engine.status.endpoint) {
            break endpoint;
        }
        thread::sleep(Duration::from_millis(1));
    };
    read_first_block(&endpoint, volume).unwrap();
    begun.elapsed()
}

#[test]
#[ignore = "figures for the design note"]
fn figures_of_300_attached_volumes() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("store")).unwrap();
    let cluster = Cluster::over(Arc::new(store));
    let node = cluster.start("n1", folder.path());
    let names: Vec<_> = (0..VOLUMES).map(|number| format!("v{number}")).collect();

    let begun = Instant::now();
    names.iter().for_each(|name| cluster.make_small(name));
    until_all(&cluster, State::Detached);
    println!("{VOLUMES} volumes made: {:.1?}", begun.elapsed());

    let is_over = Arc::new(AtomicBool::new(false));
    let looker = {
        let (store, runtime) = (Arc::clone(&cluster.store), cluster.runtime.clone());
        let is_over = Arc::clone(&is_over);
        thread::spawn(move || {
            let (mut times, mut most_threads) = (Vec::new(), 0);
            while !is_over.load(Ordering::Acquire) {
                let begun = Instant::now();
                runtime.block_on(store.list::<VolumeSpec>(&Selector::all())).unwrap();
                times.push(begun.elapsed());
                most_threads = most_threads.max(threads());
                thread::sleep(Duration::from_millis(50));
            }
            (times, most_threads)
        })
    };
    let (begun, ticks) = (Instant::now(), cpu_ticks());
    names.iter().for_each(|name| cluster.want(name, None));
    until_all(&cluster, State::Attached);
    println!("{VOLUMES} attached at once: {:.1?}", begun.elapsed());
    println!("  CPU of manager and agent: {} ms", (cpu_ticks() - ticks) * 10);
    is_over.store(true, Ordering::Release);
    let (mut times, most_threads) = looker.join().unwrap();
    let (middle, most) = (quantile(&mut times, 0.5), quantile(&mut times, 1.0));
    let late = quantile(&mut times, 0.99);
    println!("  all volumes read meanwhile: {middle:.1?}, 99 %: {late:.1?}, most {most:.1?}");
    println!("  threads: at most {most_threads}");

    thread::sleep(Duration::from_secs(10)); // what was begun ends
    let (before, ticks, begun) = (writes(&cluster), cpu_ticks(), Instant::now());
    thread::sleep(IDLE);
    let cpu = (cpu_ticks() - ticks) as f64 * 0.01 / begun.elapsed().as_secs_f64() * 100.0;
    let after = writes(&cluster);
    let (all, leases) = (after.0 - before.0, after.1 - before.1);
    println!("idle with {VOLUMES} attached: {cpu:.2} % of a core, {} threads", threads());
    println!("  writes to the store in {IDLE:?}: {all}, of leases {leases}");

    let names: Vec<_> = (0..ATTACHES).map(|number| format!("w{number}")).collect();
    names.iter().for_each(|name| cluster.make_small(name));
    while count(&cluster, State::Detached) < ATTACHES {
        thread::sleep(Duration::from_millis(50));
    }
    let mut times: Vec<_> = names.iter().map(|name| attach_to_first_read(&cluster, name)).collect();
    let (middle, most) = (quantile(&mut times, 0.5), quantile(&mut times, 1.0));
    println!("attach to first read: {middle:.1?}, at most {most:.1?}, besides {VOLUMES}");
    assert_eq!(node.node.supervisor.list().len(), VOLUMES + ATTACHES);
}

/// `work` for each number, by so many clients at a time.
fn by_clients(clients: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                loop {
                    match next.fetch_add(1, Ordering::Relaxed) {
                        number if number < VOLUMES => work(number),
                        _ => return,
                    }
                }
            });
        }
    });
}

/// How long each call took, until `is_over`.
fn ask(is_over: &AtomicBool, call: impl Fn()) -> Vec<Duration> {
    let mut times = Vec::new();
    while !is_over.load(Ordering::Acquire) {
        let begun = Instant::now();
        call();
        times.push(begun.elapsed());
        thread::sleep(Duration::from_millis(50));
    }
    times
}

#[test]
#[ignore = "figures for the design note"]
fn figures_of_the_api_while_300_volumes_are_attached() {
    let mut world = World::real();
    let client = Client::local(world.data().join("run/api.sock"));
    let name = |number: usize| -> Name { format!("vol{number}").parse().unwrap() };
    let begun = Instant::now();
    by_clients(16, |number| {
        let name = name(number);
        let json = format!(
            r#"{{"name": "{name}", "sizeBytes": 2097152, "replicas": 1, "inEngine": true, "frontend": "socket"}}"#
        );
        client.create_volume(&serde_json::from_str(&json).unwrap()).unwrap();
    });
    println!("{VOLUMES} volumes made through the API: {:.1?}", begun.elapsed());

    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let list = scope.spawn(|| ask(&is_over, || drop(client.volumes().unwrap())));
        let show = scope.spawn(|| ask(&is_over, || drop(client.volume(&name(7)).unwrap())));
        let node = scope.spawn(|| ask(&is_over, || drop(client.node().unwrap())));
        let begun = Instant::now();
        let request = AttachRequest { read_only: false, node: None };
        by_clients(16, |number| drop(client.attach(&name(number), &request).unwrap()));
        let is_attached = |volume: &VolumeView| volume.state == State::Attached;
        while client.volumes().unwrap().iter().filter(|it| is_attached(it)).count() < VOLUMES {
            thread::sleep(Duration::from_millis(100));
        }
        println!("{VOLUMES} attached at once through the API: {:.1?}", begun.elapsed());
        is_over.store(true, Ordering::Release);
        for (what, times) in [("list", list), ("show", show), ("node", node)] {
            let mut times = times.join().unwrap();
            let (middle, most) = (quantile(&mut times, 0.5), quantile(&mut times, 1.0));
            println!("  {what} meanwhile: {middle:.1?}, at most {most:.1?} of {}", times.len());
        }
    });
    assert_eq!(world.stop().code(), Some(0));
}
