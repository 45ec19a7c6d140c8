//! `simulate --seeds N`: histories of a volume, each from its seed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ankole_simulate::{Outcome, Tally, run};
use clap::Parser;

/// Runs a volume's engines and replicas in a simulated world full of faults.
#[derive(Parser)]
struct Options {
    /// How many histories.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// The first seed; without it, one from the clock.
    #[arg(long)]
    from: Option<u64>,
    /// Only this one.
    #[arg(long)]
    seed: Option<u64>,
    /// Tell all that happens.
    #[arg(long)]
    verbose: bool,
    #[arg(long, default_value_t = 2)]
    jobs: u64,
}

fn main() {
    let options = Options::parse();
    std::panic::set_hook(Box::new(|_| ())); // the failure is told below
    if options.verbose {
        tracing_subscriber::fmt().without_time().with_target(false).init();
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let base = options.seed.or(options.from).unwrap_or(clock.as_micros() as u64);
    let count = if options.seed.is_some() { 1 } else { options.seeds };
    println!("{count} seeds from {base}");
    let start = Instant::now();
    let next = AtomicU64::new(0);
    let outcomes: Mutex<Vec<Outcome>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.min(count) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    let outcome = run(base + at, options.verbose);
                    if options.verbose {
                        println!("seed {}: trace {:016x}", outcome.seed, outcome.trace);
                    }
                    if let Some(why) = &outcome.failure {
                        let length = if options.verbose { usize::MAX } else { 300 };
                        println!("seed {} failed: {why:.length$}", outcome.seed);
                        println!("  simulate --seed {} --verbose", outcome.seed);
                    }
                    outcomes.lock().expect("nobody panics with it").push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("nobody panics with it");
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    let average = |of: fn(&Tally) -> u64| {
        outcomes.iter().map(|outcome| of(&outcome.tally)).sum::<u64>() / count.max(1)
    };
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{count} seeds in {seconds:.1} s ({:.0} a minute), {failed} failed; on average {} I/Os, \
         {} faults, {} events, {} looks at all members",
        count as f64 * 60.0 / seconds,
        average(|tally| tally.ios),
        average(|tally| tally.faults),
        average(|tally| tally.events),
        average(|tally| tally.checks),
    );
    if failed > 0 {
        std::process::exit(1);
    }
}
