//! A file system for each replica, small enough to be filled.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// Room for the volume, its snapshots, and a rebuild.
const IMAGE_BYTES: u64 = 320 << 20;
const BALLAST: &str = "ballast";

/// One replica's disk.
pub struct ReplicaDisk {
    root: PathBuf,
    is_mounted: bool,
}

/// From now on what is mounted is seen by this process and its children only, and the kernel takes
/// it back when they have ended. Must be called before any thread is started.
pub fn enter_private_namespace() -> io::Result<()> {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    Ok(mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?)
}

impl ReplicaDisk {
    /// A plain folder, which can't be filled.
    pub fn folder(root: &Path) -> anyhow::Result<Self> {
        fs::create_dir(root).with_context(|| format!("make {}", root.display()))?;
        Ok(Self { root: root.into(), is_mounted: false })
    }

    /// An ext4 of its own in an image beside `root`. Needs root.
    pub fn image(root: &Path) -> anyhow::Result<Self> {
        let mut disk = Self::folder(root)?;
        let image = root.with_extension("img");
        File::create(&image)?.set_len(IMAGE_BYTES)?;
        run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-m", "0"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop,noatime"]).arg(&image).arg(root))?;
        disk.is_mounted = true;
        Ok(disk)
    }

    /// Where the replica's directory belongs.
    pub fn replica(&self) -> PathBuf {
        self.root.join("replica")
    }

    /// Takes all room but `left_bytes`.
    pub fn fill(&self, left_bytes: u64) -> anyhow::Result<()> {
        if !self.is_mounted {
            bail!("{} isn't a file system of its own", self.root.display());
        }
        let stat = rustix::fs::statvfs(&self.root)?;
        let free_bytes = stat.f_bavail * stat.f_frsize;
        let ballast = File::create(self.root.join(BALLAST))?;
        let take_bytes = free_bytes.saturating_sub(left_bytes);
        if take_bytes > 0 {
            let none = rustix::fs::FallocateFlags::empty();
            match rustix::fs::fallocate(&ballast, none, 0, take_bytes) {
                Ok(()) | Err(rustix::io::Errno::NOSPC) => {} // the replica was faster
                Err(error) => return Err(error).context("fill a disk"),
            }
        }
        Ok(())
    }

    pub fn make_room(&self) -> io::Result<()> {
        match fs::remove_file(self.root.join(BALLAST)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for ReplicaDisk {
    fn drop(&mut self) {
        if self.is_mounted
            && let Err(error) = nix::mount::umount2(&self.root, nix::mount::MntFlags::MNT_DETACH)
        {
            eprintln!("unmount {}: {error}", self.root.display());
        }
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
