//! Histories from seeds; prints those that went wrong.

use ankole_cluster::history;
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// So many, one after the other.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Print what happened in each that went wrong.
    #[arg(long)]
    log: bool,
}

fn main() -> anyhow::Result<()> {
    let Arguments { seeds, from, log } = Arguments::parse();
    let (mut failed, mut acknowledged) = (0, 0);
    for seed in from..from + seeds {
        let ended = history(seed);
        acknowledged += ended.acknowledged;
        if ended.wrong.is_empty() {
            continue;
        }
        failed += 1;
        if log {
            ended.log.iter().for_each(|line| println!("  {line}"));
        }
        println!("seed {seed}: {}", ended.wrong.join("\n  "));
    }
    println!("{seeds} histories from seed {from}, {acknowledged} writes: {failed} went wrong");
    anyhow::ensure!(failed == 0, "{failed} histories went wrong");
    Ok(())
}
