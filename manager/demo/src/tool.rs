//! Programs of the system that the demo needs, run so that a signal ends them.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use ankole_api::ApiError;
use ankole_blockdev::program;

use super::report::Progress;
use super::trouble::{Result, failed};

/// Of what a program says on stderr.
const COMPLAINT_BYTES_MAX: u64 = 64 << 10;

pub(super) struct Tools {
    mke2fs: PathBuf,
    debugfs: PathBuf,
}

impl Tools {
    pub(super) fn find(search_path: &OsStr) -> std::result::Result<Self, ApiError> {
        let find = |name| {
            program::find_in(search_path, name).ok_or_else(|| {
                ApiError::failed(format!("the demo needs {name}, which isn't on this machine"))
                    .next("install its package: apt-get install e2fsprogs")
            })
        };
        Ok(Self { mke2fs: find("mke2fs")?, debugfs: find("debugfs")? })
    }

    /// An ext4 of `bytes` with what is in `folder`, at the start of the file `image`.
    pub(super) fn make_ext4(
        &self,
        image: &Path,
        bytes: u64,
        folder: &Path,
        files: u64,
        progress: &Progress<'_>,
    ) -> Result<()> {
        let blocks = (bytes / 4096).to_string();
        let inodes = (files + files / 8 + 256).to_string();
        let mut args: Vec<OsString> = [
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-m",
            "0",
            "-L",
            "ankole-demo",
            "-N",
            &inodes,
            "-d",
        ]
        .map(Into::into)
        .into();
        args.extend([folder.into(), image.into(), blocks.into()]);
        run(Command::new(&self.mke2fs).args(args), &self.mke2fs, progress, &|| image_bytes(image))
    }

    /// All files of an ext4, read without mounting it; `folder` exists and is empty.
    pub(super) fn read_ext4(
        &self,
        image: &Path,
        folder: &Path,
        progress: &Progress<'_>,
    ) -> Result<()> {
        // A relative name needs no quotes in debugfs' own language.
        let mut command = Command::new(&self.debugfs);
        command.current_dir(folder).args(["-R", "rdump / ."]).arg(image);
        run(&mut command, &self.debugfs, progress, &|| 0)
    }
}

/// What the file really holds.
pub(super) fn image_bytes(image: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(image).map_or(0, |metadata| metadata.blocks() * 512)
}

/// Runs it to its end, or kills it when the demo ends. `done_bytes` tells how far it is.
pub(super) fn run(
    command: &mut Command,
    program: &Path,
    progress: &Progress<'_>,
    done_bytes: &dyn Fn() -> u64,
) -> Result<()> {
    let mut child = command
        .process_group(0) // a Ctrl-C is ours to answer
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("start", program))?;
    let stderr = child.stderr.take();
    let complaint = thread::spawn(move || {
        let mut text = Vec::new();
        let Some(mut stderr) = stderr else { return text };
        let _ = stderr.by_ref().take(COMPLAINT_BYTES_MAX).read_to_end(&mut text);
        let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        text
    });
    let ended = loop {
        if let Some(status) = child.try_wait().map_err(failed("wait for", program))? {
            break status;
        }
        if let Err(stopped) = progress.set(done_bytes()).and_then(|()| progress.stop().pause()) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(stopped);
        }
    };
    let complaint = complaint.join().unwrap_or_default();
    if ended.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&complaint);
    let (program, complaint) = (program.display(), complaint.trim().replace('\n', "; "));
    Err(ApiError::failed(format!("{program} failed ({ended}): {complaint}")).into())
}
