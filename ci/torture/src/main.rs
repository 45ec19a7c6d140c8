//! `torture`: the real processes of one volume, a client that verifies every sector, and everything
//! that can go wrong, round after round. See the README beside it.

mod admin;
mod arbiter;
mod compare;
mod disks;
mod load;
mod operator;
mod oracle;
mod plan;
mod process;
mod proxy;
mod random;
mod round;
mod sector;
mod world;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ankole_blockdev::disk::SECTOR_BYTES;
use anyhow::{Context, ensure};
use clap::Parser;
use tokio::task::LocalSet;

use crate::load::Load;
use crate::operator::Operator;
use crate::oracle::Oracle;
use crate::plan::{Means, Plan};
use crate::random::Random;
use crate::round::{Report, Torture};
use crate::world::{Setup, World};

const SIZE_BYTES: u64 = 16 << 20;
const SIZE_BYTES_MAX: u64 = 24 << 20;
/// Short, so that a round in which it passes is short too.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(2);
/// A unix socket's path has no more, with what is added to the folder's.
const FOLDER_BYTES_MAX: usize = 80;

/// Tortures the real processes of a volume and checks every byte
#[derive(Debug, Parser)]
struct Arguments {
    /// The binary `ankole`
    #[arg(long, env = "ANKOLE", default_value = "target/release/ankole")]
    binary: PathBuf,
    #[arg(long, default_value_t = 50)]
    rounds: u64,
    /// Decides what goes wrong and when; printed, and made anew for each run unless given
    #[arg(long)]
    seed: Option<u64>,
    /// Where the replicas live; a temporary folder if not given
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Leave the folder also when all went well
    #[arg(long)]
    keep: bool,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5))]
    replicas: u8,
    /// Print what is done in each round
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("torture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let images = match rustix::process::geteuid().is_root() {
        true => disks::enter_private_namespace().is_ok(),
        false => false,
    };
    if !images {
        println!("SKIPPED: full disks: only root can mount the small file systems for them");
    }
    let binary = std::fs::canonicalize(&arguments.binary);
    let binary = binary.with_context(|| format!("find {}", arguments.binary.display()))?;
    let seed = arguments.seed.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        since.as_secs() % 1_000_000_000
    });
    let mut folder = Folder::new(arguments.dir.as_deref())?;
    println!("seed {seed}, {} rounds in {}", arguments.rounds, folder.path.display());
    let setup = Setup {
        binary,
        dir: folder.path.clone(),
        replicas: usize::from(arguments.replicas),
        size_bytes: SIZE_BYTES,
        images,
        replica_timeout: REPLICA_TIMEOUT,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = Run { seed, rounds: arguments.rounds, verbose: arguments.verbose };
    let result = LocalSet::new().block_on(&runtime, run.all(setup));
    folder.keep = arguments.keep || result.is_err();
    if result.is_err() {
        println!("seed {seed}; what is left is in {}", folder.path.display());
    }
    result
}

/// Removed in the end, unless it was there before or is to be kept.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn new(wanted: Option<&Path>) -> anyhow::Result<Self> {
        let path = match wanted {
            Some(path) => {
                std::fs::create_dir_all(path)?;
                std::fs::canonicalize(path)?
            }
            None => tempfile::Builder::new().prefix("torture-").tempdir()?.keep(),
        };
        let is_empty = std::fs::read_dir(&path)?.next().is_none();
        ensure!(is_empty, "{} isn't empty", path.display());
        ensure!(
            path.as_os_str().len() <= FOLDER_BYTES_MAX,
            "{} is too long for the names of sockets in it",
            path.display()
        );
        Ok(Self { path, keep: false })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("remove {}: {error}", self.path.display());
        }
    }
}

struct Run {
    seed: u64,
    rounds: u64,
    verbose: bool,
}

impl Run {
    async fn all(self, setup: Setup) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut random = Random::derived(self.seed, 0);
        let means = Means {
            replicas: setup.replicas,
            can_fill: setup.images,
            replica_timeout: setup.replica_timeout,
        };
        let volume = self.seed;
        let oracle = Rc::new(RefCell::new(Oracle::new(setup.size_bytes / SECTOR_BYTES)));
        let operator = Operator::new(oracle.clone(), setup.size_bytes, SIZE_BYTES_MAX);
        let world = World::new(setup, oracle.clone()).await?;
        let load = Load::start(volume, oracle, world.route(), &mut random);
        let mut torture = Torture::new(world, load, operator, volume);
        let mut summary = Summary::default();
        for round in 1..=self.rounds {
            let mut random = Random::derived(self.seed, round);
            let plan = Plan::random(&mut random, means);
            if self.verbose {
                println!("round {round}: {plan:?}");
            }
            let report = torture.round(&plan, &mut random).await;
            let report = report.with_context(|| {
                let steps: Vec<_> = plan
                    .steps
                    .iter()
                    .map(|(at, fault)| format!("  at {} ms: {fault}\n", at.as_millis()))
                    .collect();
                format!("round {round} of seed {}\n{}", self.seed, steps.concat())
            })?;
            print(round, &report);
            for refused in torture.operator.take_refused() {
                println!("      refused: {refused}");
            }
            summary.add(&report);
        }
        summary.print(self.seed, began.elapsed());
        Ok(())
    }
}

fn print(round: u64, report: &Report) {
    let Report { done, checked, .. } = report;
    println!(
        "{round:4} {:5.1} s, whole after {:4.1} s, longest wait {:4.1} s, {} requests ({} again), \
         {} accesses of {} sectors checked, {} snapshots; {}",
        report.whole.as_secs_f64(),
        report.healing.as_secs_f64(),
        done.longest.as_secs_f64(),
        done.requests,
        done.again,
        checked.accesses,
        checked.sectors_written,
        report.snapshots,
        report.what,
    );
}

#[derive(Default)]
struct Summary {
    rounds: u64,
    requests: u64,
    again: u64,
    bytes: u64,
    accesses: u64,
    snapshots: usize,
    longest: Duration,
    healing: Duration,
}

impl Summary {
    fn add(&mut self, report: &Report) {
        self.rounds += 1;
        self.requests += report.done.requests;
        self.again += report.done.again;
        self.bytes += report.done.bytes;
        self.accesses += report.checked.accesses;
        self.snapshots += report.snapshots;
        self.longest = self.longest.max(report.done.longest);
        self.healing = self.healing.max(report.healing);
    }

    fn print(&self, seed: u64, time: Duration) {
        println!(
            "seed {seed}: {} rounds in {:.0} s; {} requests ({} asked again), {} MiB written, {} \
             accesses of sectors explained, {} snapshots compared; longest wait {:.1} s, longest \
             healing {:.1} s; nothing lost, nothing wrong",
            self.rounds,
            time.as_secs_f64(),
            self.requests,
            self.again,
            self.bytes >> 20,
            self.accesses,
            self.snapshots,
            self.longest.as_secs_f64(),
            self.healing.as_secs_f64(),
        );
    }
}
