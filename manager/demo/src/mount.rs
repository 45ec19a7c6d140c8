//! Mounts that nobody else sees, and that end with the demo however it ends.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};

use super::trouble::{Result, failed};

/// From now on, what this thread and those it starts mount is seen by them only; the kernel takes
/// it back when they have ended.
pub(super) fn enter_private_namespace() -> Result<()> {
    let root = Path::new("/");
    let failed = |error: nix::Error| failed("make mounts private below", root)(error.into());
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, root, None::<&str>, private, None::<&str>).map_err(failed)
}

/// An ext4 that is mounted for as long as this lives.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    pub(super) fn new(device: &Path, at: &Path, read_only: bool) -> Result<Self> {
        match std::fs::create_dir(at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", at)(error));
            }
            _ => {}
        }
        let mut flags = MsFlags::MS_NOATIME | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        flags.set(MsFlags::MS_RDONLY, read_only);
        mount(Some(device), at, Some("ext4"), flags, None::<&str>)
            .map_err(|error| failed("mount", device)(error.into()))?;
        Ok(Self(at.into()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = umount(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "unmount");
        }
    }
}
