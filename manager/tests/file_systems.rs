//! What a file system can't hold is refused before anything is made on it.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::process::Command;

use common::mounted::Mounted;
use common::{World, until};

/// A volume that was too large filled the disk to the last byte, and again at each restart.
#[test]
fn requires_root_a_volume_larger_than_a_file_of_ext4_is_refused_and_takes_nothing() {
    for (block_bytes, too_large) in [("4096", "16TiB"), ("1024", "4TiB")] {
        let folder = tempfile::tempdir().unwrap();
        let Some(mounted) = Mounted::new(folder.path(), &["-b", block_bytes]) else {
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

        if block_bytes == "4096" {
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

const CREATE: [&str; 6] = ["volume", "create", "--replicas", "1", "--frontend", "socket"];

/// The wish stayed, was tried for ever, and nothing but a larger one was taken.
#[test]
fn requires_root_a_size_for_which_there_is_no_room_any_more_can_be_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mounted) = Mounted::new(folder.path(), &[]) else {
        return eprintln!("SKIPPED: mounting an ext4 image is not allowed here");
    };
    let mut world = World::on_disk(&mounted.0);
    world.well(&[&CREATE[..], &["v1", "--size", "32MiB"]].concat());
    world.well(&[&CREATE[..], &["v2", "--size", "32MiB"]].concat());
    let later = world.say(&["volume", "resize", "v1", "--size", "3TiB"]);
    assert_eq!(
        (later.code, later.err.contains("when it is attached next")),
        (0, true),
        "{later:?}"
    );
    let listed = world.well(&["volume", "ls"]);
    assert!(listed.contains("32 MiB (3 TiB wanted)"), "{listed}");

    let rest = usize::try_from(mounted.free_bytes() - (16 << 20)).unwrap();
    std::fs::write(mounted.0.join("filler"), vec![1; rest]).unwrap();
    let endpoint = world.well(&["volume", "attach", "v2"]).trim().to_owned();
    world.well(&["volume", "attach", "v1"]);
    let told = until("it is told", || {
        let volume = world.volume("v1");
        let conditions = volume["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition["reason"] == "CantGrow").cloned()
    });
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("stays at 32 MiB, though 3 TiB are wanted"), "{message}");
    let back = "ankole volume resize v1 --size 32MiB";
    assert!(told["next"].as_str().unwrap().ends_with(back), "{told}");
    let before = mounted.used_bytes();
    let again = world.say(&["volume", "resize", "v1", "--size", "3073GiB"]);
    assert_eq!(again.code, 4, "{again:?}");
    let lower = world.say(&["volume", "resize", "v1", "--size", "2560GiB"]);
    assert_eq!(lower.code, 4, "no room for that either: {lower:?}");
    assert_eq!(mounted.used_bytes(), before, "what fails keeps nothing");
    let written =
        Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 1M", &endpoint]).output();
    assert!(written.unwrap().status.success(), "another volume goes on");

    world.well(&["volume", "resize", "v1", "--size", "32MiB"]);
    until("the wish is taken back", || {
        let volume = world.volume("v1");
        let over = volume["conditions"] == serde_json::json!([]);
        (over && volume["wantedBytes"].is_null() && volume["sizeBytes"] == 32 << 20).then_some(())
    });
    world.well(&["volume", "resize", "v1", "--size", "34MiB"]);
    assert_eq!(world.volume("v1")["sizeBytes"], 34 << 20, "it has it when the command returns");
    assert_eq!(world.say(&["volume", "resize", "v1", "--size", "32MiB"]).code, 4);
    world.stop();
}

/// It said that nothing was left behind while its name was still taken and its files were there.
#[test]
fn requires_root_a_volume_that_fails_while_it_is_made_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mounted) = Mounted::new(folder.path(), &["-N", "64"]) else {
        return eprintln!("SKIPPED: mounting an ext4 image is not allowed here");
    };
    let mut world = World::on_disk(&mounted.0);
    // Room for three files more: a replica has some more than that.
    let filler = |number: usize| mounted.0.join(format!("filler{number}"));
    let made = (0..).take_while(|number| std::fs::write(filler(*number), []).is_ok()).count();
    (0..3).for_each(|number| std::fs::remove_file(filler(made - 1 - number)).unwrap());
    let before = mounted.used_bytes();
    for _ in 0..2 {
        let failed = world.say(&[&CREATE[..], &["v1", "--size", "32MiB"]].concat());
        assert_eq!(failed.code, 1, "{failed:?}");
        assert!(failed.err.contains("No space left"), "{failed:?}");
        assert_eq!(world.json(&["volume", "ls"]), serde_json::json!([]));
        assert!(mounted.used_bytes() <= before + (64 << 10), "{}", mounted.used_bytes() - before);
    }
    world.stop();
}
