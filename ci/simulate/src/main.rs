//! `simulate --seeds N`: histories of a volume, each from its seed.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ankole_simulate::{Caught, Mutation, Options, Outcome, Story, Tally, hunt, run};
use clap::Parser;

/// Runs a volume's engines and replicas in a simulated world full of faults.
#[derive(Parser)]
struct Arguments {
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
    /// Look at all snapshots after every event.
    #[arg(long)]
    pedantic: bool,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Break this rule.
    #[arg(long, value_parser = mutation)]
    mutation: Option<Mutation>,
    /// Tell this story in each.
    #[arg(long, value_parser = story)]
    story: Option<Story>,
    /// Break each rule in turn until that is noticed, and print a table. Fails if one isn't within
    /// `--limit` seeds.
    #[arg(long)]
    mutations: bool,
    #[arg(long, default_value_t = 1000)]
    limit: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    std::panic::set_hook(Box::new(|_| ())); // what went wrong is told below
    if arguments.verbose {
        tracing_subscriber::fmt().without_time().with_target(false).init();
    }
    let good = if arguments.mutations { break_rules(&arguments) } else { histories(&arguments) };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn histories(arguments: &Arguments) -> bool {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let base = arguments.seed.or(arguments.from).unwrap_or(clock.as_micros() as u64);
    let count = if arguments.seed.is_some() { 1 } else { arguments.seeds };
    println!("{count} seeds from {base}");
    let options = Options {
        verbose: arguments.verbose,
        pedantic: arguments.pedantic,
        mutation: arguments.mutation,
        story: arguments.story,
    };
    let start = Instant::now();
    let seeds: Vec<u64> = (base..base + count).collect();
    let outcomes = in_parallel(&seeds, arguments.jobs, |seed| {
        let outcome = run(*seed, options);
        tell(&outcome, arguments);
        outcome
    });
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    let average = |of: fn(&Tally) -> u64| {
        outcomes.iter().map(|outcome| of(&outcome.tally)).sum::<u64>() / count.max(1)
    };
    let seconds = start.elapsed().as_secs_f64();
    let longest = outcomes.iter().max_by_key(|outcome| outcome.tally.longest_wait_us);
    let longest = longest.map_or((0, 0), |it| (it.tally.longest_wait_us / 1000, it.seed));
    println!(
        "{count} seeds in {seconds:.1} s ({:.0} a minute), {failed} failed; on average {} I/Os, \
         {} faults, {} events, {} looks at all members, {} blocks shown to readers; the longest wait beside a sound member was \
         {} ms (seed {}), the longest turn of a replica {} us",
        count as f64 * 60.0 / seconds,
        average(|tally| tally.ios),
        average(|tally| tally.faults),
        average(|tally| tally.events),
        average(|tally| tally.checks),
        average(|tally| tally.reads),
        longest.0,
        longest.1,
        outcomes.iter().map(|outcome| outcome.tally.longest_turn_us).max().unwrap_or(0),
    );
    failed == 0
}

fn tell(outcome: &Outcome, arguments: &Arguments) {
    let seed = outcome.seed;
    if arguments.verbose {
        println!("seed {seed}: trace {:016x}", outcome.trace);
    }
    if let Some(why) = &outcome.failure {
        let length = if arguments.verbose { 60_000 } else { 300 };
        let mutation = arguments.mutation.map(|it| format!(" --mutation {it:?}"));
        println!("seed {seed} failed: {why:.length$}");
        println!("  simulate --seed {seed} --verbose{}", mutation.unwrap_or_default());
    }
}

fn break_rules(arguments: &Arguments) -> bool {
    let from = arguments.from.unwrap_or(0);
    let found = in_parallel(Mutation::ALL, arguments.jobs, |mutation| {
        (*mutation, hunt(*mutation, from, arguments.limit))
    });
    println!("| rule | broken on purpose | switch | seeds until noticed | what was seen |");
    println!("| --- | --- | --- | ---: | --- |");
    for (mutation, Caught { seeds, by }) in &found {
        let seen = match by {
            Some((_, why)) => first_words(why).to_owned(),
            None => "**nothing**".to_owned(),
        };
        let (rule, what) = (mutation.rule(), mutation.what());
        println!("| {rule} | {what} | `{mutation:?}` | {seeds} | {seen} |");
    }
    found.iter().all(|(_, caught)| caught.by.is_some())
}

fn first_words(why: &str) -> &str {
    let line = why.lines().next().unwrap_or_default();
    let line = line.strip_prefix("assertion `left == right` failed: ").unwrap_or(line);
    let end = line.char_indices().nth(90).map_or(line.len(), |(at, _)| at);
    line[..end].split(": Core").next().unwrap_or_default()
}

/// The results in the order of `work`.
fn in_parallel<T: Sync, R: Send>(work: &[T], jobs: usize, of: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, R)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, work.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = work.get(at) else { return };
                    let result = of(item);
                    results.lock().expect("nobody panics with it").push((at, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("nobody panics with it");
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

fn mutation(name: &str) -> Result<Mutation, String> {
    named(Mutation::ALL, name)
}

fn story(name: &str) -> Result<Story, String> {
    named(Story::ALL, name)
}

fn named<T: Copy + std::fmt::Debug>(all: &[T], name: &str) -> Result<T, String> {
    let found = all.iter().copied().find(|it| format!("{it:?}") == name);
    found.ok_or_else(|| format!("there is none of these: {all:?}"))
}
