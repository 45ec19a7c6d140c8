//! Many runs and many cuts of each: counts them, and keeps what failed.

use std::fmt;
use std::path::Path;
use std::process::Command;

use crate::case::Case;
use crate::machine::fresh_folder;
use crate::process::run_tool;

/// What a campaign has come to so far.
#[derive(Debug, Default)]
pub struct Tally {
    pub cuts: u64,
    /// Of them, those that were also checked with an engine.
    pub together: u64,
    pub failed: u64,
    /// Runs that ended before their time.
    pub broken_runs: u64,
}

impl Tally {
    /// A run that came to no end of its own.
    pub fn note_broken(&mut self, seed: u64, error: &anyhow::Error) {
        println!("FAILED: the run of seed {seed}: {error:#}");
        self.broken_runs += 1;
    }

    pub fn is_good(&self) -> bool {
        self.failed == 0 && self.broken_runs == 0
    }

    /// Counts a cut. One with problems is printed, and what lay on its disks is kept.
    pub fn note(
        &mut self,
        case: &Case,
        folder: &Path,
        keep: &Path,
        problems: &[String],
    ) -> anyhow::Result<()> {
        self.cuts += 1;
        if problems.is_empty() {
            return Ok(());
        }
        self.failed += 1;
        println!("FAILED: {}", case.name);
        problems.iter().for_each(|problem| println!("  {problem}"));
        let kept = keep.join(format!("powercut-{}", case.name.replace([' ', ','], "-")));
        fresh_folder(&kept)?;
        copy_sparse(folder, &kept)?;
        case.save(&kept)?;
        println!("  check it again: powercut check {}", kept.display());
        Ok(())
    }
}

/// Copies what is in a folder; images stay as small as they are.
pub fn copy_sparse(from: &Path, to: &Path) -> anyhow::Result<()> {
    let mut copy = Command::new("cp");
    run_tool(copy.args(["-r", "--sparse=always"]).arg(from.join(".")).arg(to)).map(drop)
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cuts, together, failed, broken_runs } = self;
        write!(
            f,
            "{cuts} cuts, {together} of them also with an engine; {failed} failed, {broken_runs} \
             runs broke off"
        )
    }
}
