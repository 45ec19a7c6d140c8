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
mod sabotage;
mod sector;
mod world;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ankole_blockdev::disk::SECTOR_BYTES;
use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use tokio::task::LocalSet;

use crate::load::Load;
use crate::operator::Operator;
use crate::oracle::Oracle;
use crate::plan::{Means, Plan};
use crate::random::Random;
use crate::round::{Report, Torture};
use crate::sabotage::{Known, Sabotage};
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
    /// Show that damage is found: each kind is done once, and must be reported
    #[arg(long)]
    prove: bool,
    /// Do this after two rounds; the run must fail then
    #[arg(long, value_enum)]
    sabotage: Option<Sabotage>,
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
    if !images && !arguments.prove {
        println!("SKIPPED: full disks: only root can mount the small file systems for them");
    }
    if arguments.prove {
        return prove(&arguments);
    }
    torture(&arguments, images, arguments.sabotage)
}

/// Every kind of damage must end a run with a report of it.
fn prove(arguments: &Arguments) -> anyhow::Result<()> {
    let mut missed = Vec::new();
    for sabotage in Sabotage::value_variants() {
        println!("{sabotage:?}");
        match torture(arguments, false, Some(*sabotage)) {
            Err(error) if error.is::<Found>() => {
                let report = format!("{:#}", error.root_cause());
                println!("      found: {}", report.lines().next().unwrap_or_default());
                ensure!(
                    report.contains(sabotage.reported_as()),
                    "that is another problem: {report}"
                );
            }
            Err(error) => return Err(error.context(format!("{sabotage:?}"))),
            Ok(()) => missed.push(sabotage),
        }
    }
    ensure!(missed.is_empty(), "not found: {missed:?}");
    println!("all {} kinds of damage were found", Sabotage::value_variants().len());
    Ok(())
}

/// After damage was done, a round failed.
#[derive(Debug, thiserror::Error)]
#[error("the damage was found")]
struct Found;

fn torture(arguments: &Arguments, images: bool, sabotage: Option<Sabotage>) -> anyhow::Result<()> {
    let binary = std::fs::canonicalize(&arguments.binary);
    let binary = binary.with_context(|| format!("find {}", arguments.binary.display()))?;
    let seed = arguments.seed.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        since.as_secs() % 1_000_000_000
    });
    let mut folder = Folder::new(arguments.dir.as_deref())?;
    println!("seed {seed}, in {}", folder.path.display());
    let setup = Setup {
        binary,
        dir: folder.path.clone(),
        replicas: usize::from(arguments.replicas),
        size_bytes: SIZE_BYTES,
        images,
        replica_timeout: REPLICA_TIMEOUT,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rounds = if sabotage.is_some() { 2 } else { arguments.rounds };
    let run = Run { seed, rounds, verbose: arguments.verbose, sabotage };
    let result = LocalSet::new().block_on(&runtime, run.all(setup));
    folder.keep = arguments.keep || result.is_err() && !arguments.prove;
    if folder.keep {
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
    sabotage: Option<Sabotage>,
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
        let mut known = Vec::new();
        torture.begin().await.context("start everything")?;
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
            known.push(torture.world.oracle.borrow().known().to_vec());
            known.drain(..known.len().saturating_sub(2));
            for refused in torture.operator.take_refused() {
                println!("      refused: {refused}");
            }
            summary.add(&report);
        }
        summary.print(self.seed, began.elapsed());
        match (self.sabotage, &mut known[..]) {
            (Some(sabotage), [before, now]) => {
                let known = Known { before: std::mem::take(before), now: std::mem::take(now) };
                sabotaged(sabotage, known, &mut torture, &mut random).await
            }
            _ => Ok(()),
        }
    }
}

/// The damage is done, and the volume looked at.
async fn sabotaged(
    sabotage: Sabotage,
    known: Known,
    torture: &mut Torture,
    random: &mut Random,
) -> anyhow::Result<()> {
    if sabotage.is_of_directories() {
        torture.sabotage = Some((sabotage, known));
    } else {
        println!("      sabotage: {}", sabotage::lie(torture).await?);
    }
    torture.round(&Plan::quiet(), random).await.map(drop).context(Found)
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
