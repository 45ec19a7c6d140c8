//! File systems in files: each image is the disk of one machine, and can be copied in an instant.
//!
//! Owns the ground, an XFS with reflinks in a file of its own, on which the images lie. A machine
//! is a mount namespace: in it the image is mounted, the boot has an id of its own, and the memory
//! that a reboot clears is empty. When the machine's last process ends, all of that is gone.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use crate::process::{LOOK_AGAIN, Process, run_tool};

const PATIENCE: Duration = Duration::from_secs(30);
const GROUND_BYTES: u64 = 32 << 30;

/// Mounts the image, takes on the boot's identity, and becomes the command.
const BOOT: &str = r#"
set -eu
image=$1 options=$2 place=$3 boot_id=$4
shift 4
device=$(losetup --direct-io=on --sector-size 512 --find --show "$image")
trap 'losetup --detach "$device"' EXIT
mount -o "$options" "$device" "$place"
losetup --detach "$device" # once it isn't mounted any more
trap - EXIT
mount --bind "$boot_id" /proc/sys/kernel/random/boot_id
exec setpriv --pdeathsig KILL "$@"
"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Filesystem {
    Ext4,
    Xfs,
}

impl Filesystem {
    /// Makes an empty one.
    pub fn make(self, image: &Path) -> anyhow::Result<()> {
        let (size_bytes, program, arguments): (u64, _, &[&str]) = match self {
            Self::Ext4 => (128 << 20, "mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096"]),
            Self::Xfs => (300 << 20, "mkfs.xfs", &["-q", "-f"]), // the smallest that it makes
        };
        File::create_new(image)?.set_len(size_bytes)?;
        run_tool(Command::new(program).args(arguments).arg(image)).map(drop)
    }

    fn mount_options(self) -> &'static str {
        match self {
            Self::Ext4 => "noatime",
            Self::Xfs => "noatime,nouuid", // copies are mounted beside the original
        }
    }

    /// Looks for damage, and mends nothing.
    pub fn check(self, image: &Path) -> anyhow::Result<()> {
        let (program, arguments): (_, &[&str]) = match self {
            Self::Ext4 => ("e2fsck", &["-f", "-n"]),
            Self::Xfs => ("xfs_repair", &["-n"]),
        };
        run_tool(Command::new(program).args(arguments).arg(image)).map(drop)
    }
}

/// What keeps this program from making images, if anything does.
pub fn obstacle() -> Option<String> {
    let tools = [
        ("mke2fs", "e2fsprogs"),
        ("e2fsck", "e2fsprogs"),
        ("mkfs.xfs", "xfsprogs"),
        ("xfs_repair", "xfsprogs"),
        ("losetup", "mount"),
        ("unshare", "util-linux"),
        ("setpriv", "util-linux"),
    ];
    if !nix::unistd::geteuid().is_root() {
        return Some("mounting images needs root".into());
    }
    let paths: Vec<PathBuf> =
        std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    let is_missing = |tool: &str| !paths.iter().any(|path| path.join(tool).exists());
    let missing = tools.iter().find(|(tool, _)| is_missing(tool));
    missing.map(|(tool, package)| format!("{tool} is missing (package {package})"))
}

/// Gives this program mounts of its own. Must come before it has a second thread.
pub fn leave_mount_namespace() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("keep mounts private")
}

/// Where images lie. Gone when dropped.
pub struct Ground {
    mounted: PathBuf,
}

impl Ground {
    /// In `folder`, in which it stays sparse.
    pub fn make(folder: &Path) -> anyhow::Result<Self> {
        let (image, mounted) = (folder.join("ground.img"), folder.join("ground"));
        File::create_new(&image)?.set_len(GROUND_BYTES)?;
        fs::create_dir(&mounted)?;
        run_tool(Command::new("mkfs.xfs").args(["-q", "-f", "-m", "reflink=1"]).arg(&image))?;
        run_tool(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted))?;
        Ok(Self { mounted })
    }

    pub fn path(&self) -> &Path {
        &self.mounted
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // The namespace takes it along if this fails.
        let _ = umount2(&self.mounted, MntFlags::MNT_DETACH);
    }
}

/// Copies an image as it is at one moment, without its bytes.
pub fn copy_at_once(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (File::open(from)?, File::create(to)?);
    Ok(rustix::fs::ioctl_ficlone(&to, &from)?)
}

/// A machine's disk and where it is mounted in the machine.
#[derive(Clone, Debug)]
pub struct Disk {
    pub image: PathBuf,
    pub filesystem: Filesystem,
    /// An empty folder.
    pub place: PathBuf,
}

impl Disk {
    /// The replica's directory, as a process on the machine sees it.
    pub fn directory(&self) -> PathBuf {
        self.place.join("replica")
    }

    /// Boots a machine that runs one command. The image must not be in use.
    pub fn boot(
        &self,
        boot_id: &str,
        command: &[String],
        output: &Path,
    ) -> anyhow::Result<Process> {
        self.until_free()?;
        fs::create_dir_all(&self.place)?;
        let id = self.image.with_extension("boot-id");
        fs::write(&id, format!("{boot_id}\n"))?;
        let mut boot = Command::new("unshare");
        boot.args(["--mount", "--propagation", "private", "sh", "-c", BOOT, "boot"]);
        boot.arg(&self.image).arg(self.filesystem.mount_options()).arg(&self.place).arg(id);
        boot.args(command);
        let what = format!("the machine of {}", self.image.display());
        Process::start(boot, &what, output)
    }

    /// Returns when the kernel has let go of the image.
    pub fn until_free(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while is_attached(&self.image)? {
            if Instant::now() > deadline {
                bail!("{} stays in use", self.image.display());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}

fn is_attached(image: &Path) -> io::Result<bool> {
    for device in fs::read_dir("/sys/block")? {
        let file = device?.path().join("loop/backing_file");
        if let Ok(attached) = fs::read_to_string(file)
            && Path::new(attached.trim_end()) == image
        {
            return Ok(true);
        }
    }
    Ok(false)
}
