//! A small file system of a test's own.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An ext4 in a file; unmounted when it goes.
pub struct Mounted(pub PathBuf);

impl Mounted {
    /// None where that isn't allowed.
    pub fn new(folder: &Path, options: &[&str]) -> Option<Self> {
        let (image, at) = (folder.join("image"), folder.join("mounted"));
        std::fs::create_dir(&at).unwrap();
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            let done = command.args(arguments).current_dir(folder).output();
            done.is_ok_and(|done| done.status.success())
        };
        let mke2fs = [&["-q", "-F", "-t", "ext4"], options, &["image"]].concat();
        let made = run("mke2fs", &mke2fs);
        let mounted = made && run("mount", &["-o", "loop", "image", "mounted"]);
        mounted.then_some(Self(at))
    }

    pub fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    pub fn used_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}
