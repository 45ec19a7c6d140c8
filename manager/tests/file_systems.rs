//! What a file system can't hold is refused before anything is made on it.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::World;

/// An ext4 in a file; unmounted when it goes.
struct Mounted(PathBuf);

impl Mounted {
    /// None where that isn't allowed.
    fn new(folder: &Path, block_bytes: u32) -> Option<Self> {
        let (image, at) = (folder.join("image"), folder.join("mounted"));
        std::fs::create_dir(&at).unwrap();
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            let done = command.args(arguments).current_dir(folder).output();
            done.is_ok_and(|done| done.status.success())
        };
        let block_bytes = block_bytes.to_string();
        let made = run("mke2fs", &["-q", "-F", "-t", "ext4", "-b", &block_bytes, "image"]);
        let mounted = made && run("mount", &["-o", "loop", "image", "mounted"]);
        mounted.then_some(Self(at))
    }

    fn used_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

/// A volume that was too large filled the disk to the last byte, and again at each restart.
#[test]
fn requires_root_a_volume_larger_than_a_file_of_ext4_is_refused_and_takes_nothing() {
    for (block_bytes, too_large) in [(4096, "16TiB"), (1024, "4TiB")] {
        let folder = tempfile::tempdir().unwrap();
        let Some(mounted) = Mounted::new(folder.path(), block_bytes) else {
            return eprintln!("SKIPPED: mounting an ext4 image is not allowed here");
        };
        let mut world = World::on_disk(&mounted.0);
        let before = mounted.used_bytes();
        let create = |name: &str, size: &str| {
            world.say(&[
                "volume",
                "create",
                name,
                "--size",
                size,
                "--replicas",
                "1",
                "--frontend",
                "socket",
            ])
        };
        let refused = create("v1", too_large);
        assert_eq!(refused.code, 4, "{refused:?}");
        for word in ["volume v1", mounted.0.to_str().unwrap(), "ext4", "at most", "XFS"] {
            assert!(refused.err.contains(word), "{word}: {}", refused.err);
        }
        assert_eq!(world.json(&["volume", "ls"]), serde_json::json!([]), "no wish is left");
        assert_eq!(mounted.used_bytes(), before);

        if block_bytes == 4096 {
            let refused = create("v1", "8TiB");
            assert_eq!(refused.code, 4, "{refused:?}");
            assert!(refused.err.contains("take 66 MiB at once"), "{}", refused.err);
            assert_eq!(mounted.used_bytes(), before);
        }
        let created = create("v2", "2TiB");
        assert_eq!(created.code, 0, "volumes are thin: {created:?}");
        let used = mounted.used_bytes();
        assert!(used < before + (32 << 20), "{used}, {before} before: only its map of writes");
        let refused = world.say(&["volume", "resize", "v2", "--size", too_large]);
        assert_eq!(refused.code, 4, "{refused:?}");
        assert!(refused.err.contains("ext4"), "{}", refused.err);
        world.well(&["volume", "attach", "v2"]);
        assert!(mounted.used_bytes() < before + (32 << 20));
        let mut check = Command::new(env!("CARGO_BIN_EXE_ankole"));
        let check = check.arg("check").arg("--data").arg(&mounted.0).output().unwrap();
        let check = String::from_utf8(check.stdout).unwrap();
        assert!(check.contains("ext4") && check.contains("volumes of at most"), "{check}");
        world.stop();
    }
}
