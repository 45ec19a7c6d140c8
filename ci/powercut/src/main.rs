//! `powercut`: cuts the power of machines with replicas, and checks what is left.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ankole_replica::store::crash::Random;
use clap::{Parser, Subcommand};
use powercut::campaign::Tally;
use powercut::case::Case;
use powercut::recorded::{self, Depth, Plan, Recorded};
use powercut::recording::Sabotage;

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
    /// Checks a cut that was kept
    Check { folder: PathBuf },
}

#[derive(clap::Args)]
struct RecordedArguments {
    /// The first run has this seed, the next one the next; random if not given
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// Of each run
    #[arg(long, default_value_t = 100)]
    cuts: u64,
    /// Every so manieth cut is also opened by an engine with all replicas
    #[arg(long, default_value_t = 5)]
    together_every: u64,
    /// The client's, in each run
    #[arg(long, default_value_t = 600)]
    requests: u64,
    /// Machines that lose power while the others go on, in each run
    #[arg(long, default_value_t = 2)]
    losses: u64,
    #[arg(long, default_value_t = 8, value_name = "MIB")]
    size_mib: u64,
    /// Where runs and what is kept lie [default: the folder for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where what is left of each cut lies
    #[arg(long, default_value = "/dev/shm")]
    scratch: PathBuf,
    /// Ends at the first cut that fails
    #[arg(long)]
    stop_at_first: bool,
    /// Break the stores: their syncs of files do nothing
    #[arg(long)]
    without_sync: bool,
    /// Break the stores: their syncs of the directory do nothing
    #[arg(long)]
    without_dir_sync: bool,
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| "off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = match Arguments::parse().command {
        Command::Recorded(arguments) => recorded_runs(&arguments),
        Command::Check { folder } => check_again(&folder),
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

fn recorded_runs(arguments: &RecordedArguments) -> anyhow::Result<bool> {
    let first = arguments.seed.unwrap_or_else(fresh_seed);
    let place = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let run_folder = tempfile::Builder::new().prefix("powercut-").tempdir_in(&place)?;
    let scratch = tempfile::Builder::new().prefix("powercut-").tempdir_in(&arguments.scratch)?;
    let sabotage = Sabotage {
        without_sync: arguments.without_sync,
        without_dir_sync: arguments.without_dir_sync,
    };
    let mut tally = Tally::default();
    for seed in first..first + arguments.runs {
        let plan = Plan {
            seed,
            size_bytes: arguments.size_mib << 20,
            requests: arguments.requests,
            losses: arguments.losses,
            sabotage,
        };
        println!("run: powercut recorded --seed {seed} --cuts {}", arguments.cuts);
        let recorded = match Recorded::make(&plan, &run_folder.path().join("run")) {
            Ok(recorded) => recorded,
            Err(error) => {
                println!("FAILED: the run of seed {seed}: {error:#}");
                tally.broken_runs.push(format!("{error:#}"));
                continue;
            }
        };
        println!("  {}", recorded.describe());
        let mut random = Random::new(!seed);
        for number in 0..arguments.cuts {
            let folder = scratch.path().join("cut");
            let case = recorded.cut(number, &mut random, &folder)?;
            let is_together = number % arguments.together_every == 0;
            let depth = if is_together { Depth::Together } else { Depth::Alone };
            let problems = recorded::check(&case, &folder, &scratch.path().join("check"), depth)?;
            tally.together += u64::from(is_together);
            tally.note(&case, &folder, &place, &problems)?;
            if arguments.stop_at_first && tally.failed > 0 {
                break;
            }
        }
    }
    println!(
        "recorded: {} cuts, {} of them also with an engine; {} failed, {} runs broke off",
        tally.cuts,
        tally.together,
        tally.failed,
        tally.broken_runs.len()
    );
    Ok(tally.is_good())
}

fn check_again(folder: &Path) -> anyhow::Result<bool> {
    let case = Case::load(folder)?;
    let scratch = tempfile::tempdir()?;
    println!("{}", case.name);
    let problems = recorded::check(&case, folder, &scratch.path().join("check"), Depth::Together)?;
    problems.iter().for_each(|problem| println!("  {problem}"));
    println!("{}", if problems.is_empty() { "nothing is wrong" } else { "FAILED" });
    Ok(problems.is_empty())
}
