//! Many runs and many cuts of each: counts them, and keeps what failed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::case::Case;

/// What a campaign has come to so far.
#[derive(Debug, Default)]
pub struct Tally {
    pub cuts: u64,
    /// Of them, those that were also checked with an engine.
    pub together: u64,
    pub failed: u64,
    /// Runs that ended before their time, in words.
    pub broken_runs: Vec<String>,
}

impl Tally {
    pub fn is_good(&self) -> bool {
        self.failed == 0 && self.broken_runs.is_empty()
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
        let kept = keep.join(case.name.replace([' ', ','], "-"));
        move_folder(folder, &kept)?;
        case.save(&kept)?;
        println!("  check it again: powercut check {}", kept.display());
        Ok(())
    }
}

/// Over the border of file systems, if need be.
fn move_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    crate::machine::fresh_folder(to)?;
    let mut folders = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = folders.pop() {
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            let target: PathBuf = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push((entry.path(), target));
            } else {
                fs::copy(entry.path(), target)?;
            }
        }
    }
    fs::remove_dir_all(from)
}
