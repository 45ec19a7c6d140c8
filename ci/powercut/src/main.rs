//! `powercut`: cuts the power of machines with replicas, and checks what is left.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ankole_replica::server;
use ankole_replica::store::crash::Random;
use ankole_replica::types::ReplicaId;
use anyhow::Context;
use clap::{Parser, Subcommand};
use powercut::campaign::{Tally, copy_sparse};
use powercut::case::{Case, Disks};
use powercut::image::{Filesystem, Ground, leave_mount_namespace, obstacle};
use powercut::images::{self, Programs};
use powercut::inspect::inspect_directory;
use powercut::machine::{VOLUME, run};
use powercut::recorded::{self, Depth, Recorded};
use powercut::recording::Sabotage;
use tempfile::TempDir;

#[derive(Parser)]
#[command(version, about = "Cuts the power of replicas; what was flushed has to be there")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Cuts at any moment of recorded runs: each sector that wasn't synced is kept or lost
    Recorded(RecordedArguments),
    /// Cuts of file systems in images, under the real binary; needs root
    Images(ImagesArguments),
    /// Checks a cut that was kept
    Check {
        folder: PathBuf,
        /// The binary, for images
        #[arg(long, env)]
        ankole: Option<PathBuf>,
    },
    /// On a machine: makes a replica's directory, and prints its incarnation
    #[command(hide = true)]
    Format { directory: PathBuf, replica: String, size_bytes: u64 },
    /// On a machine: prints what the replica in a directory has by itself
    #[command(hide = true)]
    Inspect { directory: PathBuf, case: PathBuf },
}

#[derive(clap::Args)]
struct Common {
    /// The first run has this seed, the next one the next; random if not given
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, default_value_t = 1)]
    runs: u64,
    #[arg(long, default_value_t = 8, value_name = "MIB")]
    size_mib: u64,
    /// Where runs and what is kept lie [default: the folder for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Ends at the first cut that fails
    #[arg(long)]
    stop_at_first: bool,
}

#[derive(clap::Args)]
struct RecordedArguments {
    #[command(flatten)]
    common: Common,
    /// Of each run
    #[arg(long, default_value_t = 100)]
    cuts: u64,
    /// Every so manieth cut is also opened by an engine with all replicas; 0: none
    #[arg(long, default_value_t = 5)]
    together_every: u64,
    /// The client's, in each run
    #[arg(long, default_value_t = 600)]
    requests: u64,
    /// Machines that lose power while the others go on, in each run
    #[arg(long, default_value_t = 2)]
    losses: u64,
    /// Where what is left of each cut lies
    #[arg(long, default_value = "/dev/shm")]
    scratch: PathBuf,
    /// Break the stores: their syncs of files do nothing
    #[arg(long)]
    without_sync: bool,
    /// Break the stores: their syncs of the directory do nothing
    #[arg(long)]
    without_dir_sync: bool,
}

#[derive(clap::Args)]
struct ImagesArguments {
    #[command(flatten)]
    common: Common,
    /// Of each run
    #[arg(long, default_value_t = 10)]
    cuts: u64,
    /// The binary [default: beside this one]
    #[arg(long, env)]
    ankole: Option<PathBuf>,
}

impl Common {
    /// One after the other; the first is printed with each run.
    fn seeds(&self) -> std::ops::Range<u64> {
        let first = self.seed.unwrap_or_else(fresh_seed);
        first..first + self.runs
    }

    fn place(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(std::env::temp_dir)
    }
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| "off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = match Arguments::parse().command {
        Command::Recorded(arguments) => cut_recorded(&arguments),
        Command::Images(arguments) => cut_images(&arguments),
        Command::Check { folder, ankole } => check_again(&folder, ankole),
        Command::Format { directory, replica, size_bytes } => {
            format(&directory, &replica, size_bytes)
        }
        Command::Inspect { directory, case } => inspect(&directory, &case),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("powercut: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// From the clock: printed, so that it can be given again.
fn fresh_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Random::new(since.unwrap_or_default().as_nanos() as u64).number() % 1_000_000_000
}

fn folder_in(place: &Path) -> anyhow::Result<TempDir> {
    let made = tempfile::Builder::new().prefix("powercut-").tempdir_in(place);
    made.with_context(|| format!("make a folder in {}", place.display()))
}

fn cut_recorded(arguments: &RecordedArguments) -> anyhow::Result<bool> {
    let place = arguments.common.place();
    let (run_folder, scratch) = (folder_in(&place)?, folder_in(&arguments.scratch)?);
    let mut tally = Tally::default();
    for seed in arguments.common.seeds() {
        let plan = recorded::Plan {
            seed,
            size_bytes: arguments.common.size_mib << 20,
            requests: arguments.requests,
            losses: arguments.losses,
            sabotage: Sabotage {
                without_sync: arguments.without_sync,
                without_dir_sync: arguments.without_dir_sync,
            },
        };
        println!("run: powercut recorded --seed {seed} --cuts {}", arguments.cuts);
        match Recorded::make(&plan, &run_folder.path().join("run")) {
            Ok(recorded) => {
                println!("  {}", recorded.describe());
                cut_run(arguments, &recorded, seed, scratch.path(), &place, &mut tally)?;
            }
            Err(error) => tally.note_broken(seed, &error),
        }
        if arguments.common.stop_at_first && !tally.is_good() {
            break;
        }
    }
    println!("recorded: {tally}");
    Ok(tally.is_good())
}

fn cut_run(
    arguments: &RecordedArguments,
    recorded: &Recorded,
    seed: u64,
    scratch: &Path,
    keep: &Path,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let mut random = Random::new(!seed);
    let (folder, for_check) = (scratch.join("cut"), scratch.join("check"));
    for number in 0..arguments.cuts {
        let case = recorded.cut(number, &mut random, &folder)?;
        let every = arguments.together_every;
        let is_together = every > 0 && number % every == 0;
        let depth = if is_together { Depth::Together } else { Depth::Alone };
        let problems = recorded::check(&case, &folder, &for_check, depth)?;
        tally.together += u64::from(is_together);
        tally.note(&case, &folder, keep, &problems)?;
        if arguments.common.stop_at_first && !tally.is_good() {
            break;
        }
    }
    Ok(())
}

fn programs(ankole: Option<&Path>) -> anyhow::Result<Programs> {
    let powercut = std::env::current_exe()?;
    let ankole = ankole.map_or_else(|| powercut.with_file_name("ankole"), Path::to_owned);
    let ankole = ankole.canonicalize();
    Ok(Programs { ankole: ankole.context("find the binary; name it with --ankole")?, powercut })
}

fn cut_images(arguments: &ImagesArguments) -> anyhow::Result<bool> {
    if let Some(obstacle) = obstacle() {
        println!("SKIPPED: power cuts of images: {obstacle}");
        return Ok(true);
    }
    leave_mount_namespace()?;
    let programs = programs(arguments.ankole.as_deref())?;
    let place = arguments.common.place();
    let folder = folder_in(&place)?;
    let ground = Ground::make(folder.path())?;
    let mut tally = Tally::default();
    for seed in arguments.common.seeds() {
        let filesystem = if seed % 2 == 0 { Filesystem::Ext4 } else { Filesystem::Xfs };
        let size_bytes = arguments.common.size_mib << 20;
        let plan = images::Plan { seed, filesystem, size_bytes, cuts: arguments.cuts };
        println!("run: powercut images --seed {seed} --cuts {} ({filesystem:?})", plan.cuts);
        let (summary, cuts) = match images::make(&plan, &programs, &ground.path().join("run")) {
            Ok(made) => made,
            Err(error) => {
                tally.note_broken(seed, &error);
                continue;
            }
        };
        println!("  {summary}");
        for (number, (case, cut)) in (0..).zip(cuts) {
            let scratch = ground.path().join("check");
            let survivor = (number % 3 == 0).then_some(number / 3);
            let problems = images::check(&case, &cut, &scratch, filesystem, &programs, survivor)?;
            tally.together += 1;
            tally.note(&case, &cut, &place, &problems)?;
            std::fs::remove_dir_all(cut)?;
            if arguments.common.stop_at_first && !tally.is_good() {
                break;
            }
        }
        if arguments.common.stop_at_first && !tally.is_good() {
            break;
        }
    }
    println!("images: {tally}");
    Ok(tally.is_good())
}

fn check_again(folder: &Path, ankole: Option<PathBuf>) -> anyhow::Result<bool> {
    let case = Case::load(folder)?;
    println!("{}", case.name);
    let problems = match case.disks {
        Disks::Directories => {
            let scratch = folder_in(&std::env::temp_dir())?;
            recorded::check(&case, folder, &scratch.path().join("check"), Depth::Together)?
        }
        Disks::Images(filesystem) => {
            leave_mount_namespace()?;
            let programs = programs(ankole.as_deref())?;
            let scratch = folder_in(&std::env::temp_dir())?;
            let ground = Ground::make(scratch.path())?;
            let (cut, check) = (ground.path().join("cut"), ground.path().join("check"));
            std::fs::create_dir(&cut)?;
            copy_sparse(folder, &cut)?;
            images::check(&case, &cut, &check, filesystem, &programs, Some(0))?
        }
    };
    problems.iter().for_each(|problem| println!("  {problem}"));
    println!("{}", if problems.is_empty() { "nothing is wrong" } else { "FAILED" });
    Ok(problems.is_empty())
}

fn format(directory: &Path, replica: &str, size_bytes: u64) -> anyhow::Result<bool> {
    let replica = ReplicaId::from(replica);
    let made = async { Ok(server::format(directory, VOLUME, &replica, size_bytes).await?) };
    println!("{}", run(made)?);
    Ok(true)
}

fn inspect(directory: &Path, case: &Path) -> anyhow::Result<bool> {
    let case = Case::load(case)?;
    let found = run(async { Ok(inspect_directory(directory, &case.flushed).await) })?;
    println!("{}", serde_json::to_string(&found)?);
    Ok(true)
}
