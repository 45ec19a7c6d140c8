//! A program that shall become a volume's engine: it runs as the server does, most often as root.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::process::geteuid;

/// For `engine run --help`.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);
const ERROR_BYTES_MAX: u64 = 4 << 10;

/// The program without links, which others could change, or why it can't be one.
pub(super) fn check(program: &Path) -> Result<PathBuf, String> {
    if !program.is_absolute() {
        return Err("it isn't an absolute path".into());
    }
    let program = program.canonicalize().map_err(|error| error.to_string())?;
    let me = geteuid().as_raw();
    for path in program.ancestors() {
        let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
        let (owner, mode) = (metadata.uid(), metadata.mode());
        if let Some(why) = who_could_change(owner, mode, me) {
            return Err(format!("{} {why}: whoever that is could run anything", path.display()));
        }
    }
    has_engine(&program)?;
    Ok(program)
}

/// Only root and this user may decide what is run. Who may write to a folder with the sticky bit, as
/// `/tmp`, can't replace what others have there.
fn who_could_change(owner: u32, mode: u32, me: u32) -> Option<String> {
    if owner != 0 && owner != me {
        return Some(format!("belongs to user {owner}"));
    }
    let is_sticky_folder = mode & 0o170_000 == 0o040_000 && mode & 0o1000 != 0;
    (mode & 0o022 != 0 && !is_sticky_folder).then(|| "can be written by others".into())
}

fn has_engine(program: &Path) -> Result<(), String> {
    let words = ["engine", "run", "--help"].map(OsStr::new);
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let deadline = Instant::now() + PATIENCE;
    let ended = loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < deadline => thread::sleep(LOOK),
            ended => break ended,
        }
    };
    let status = match ended {
        Ok(Some(status)) => status,
        other => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(match other {
                Err(error) => error.to_string(),
                Ok(_) => format!("`engine run --help` took longer than {} s", PATIENCE.as_secs()),
            });
        }
    };
    match status.success() {
        true => Ok(()),
        false => Err(format!("it has no `engine run` ({status}){}", said(child.stderr.take()))),
    }
}

/// What it wrote to its error output, as an end of the sentence.
fn said(errors: Option<impl Read>) -> String {
    let mut text = Vec::new();
    let read = errors.map(|errors| errors.take(ERROR_BYTES_MAX).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    match (read, text.trim().lines().next()) {
        (Some(io::Result::Ok(_)), Some(line)) => format!(": {line}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A token was enough to run any file as root.
    #[test]
    fn what_somebody_else_could_have_written_is_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("engine");
        let ran = folder.path().join("ran");
        fs::write(&program, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        for (file, folder_mode) in [(0o777, 0o700), (0o755, 0o777)] {
            set(&program, file).unwrap();
            set(folder.path(), folder_mode).unwrap();
            let why = check(&program).expect_err("others can write");
            assert!(why.contains("written by others"), "{why}");
        }
        assert!(!ran.exists());
        set(folder.path(), 0o700).unwrap();
        assert_eq!(check(&program), Ok(program.canonicalize().unwrap()));
        assert!(ran.exists());
        assert!(check(Path::new("engine")).expect_err("relative").contains("absolute"));
    }

    #[test]
    fn only_root_and_this_user_count() {
        assert_eq!(who_could_change(1000, 0o100_755, 1000), None);
        assert_eq!(who_could_change(0, 0o100_755, 1000), None);
        assert_eq!(who_could_change(0, 0o041_777, 1000), None);
        assert!(who_could_change(1001, 0o100_755, 1000).is_some());
        assert!(who_could_change(0, 0o040_775, 1000).is_some());
    }
}
