//! Stores that a real Longhorn wrote: they restore, can be built upon, and have the shape of ours.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use ankole_backup::block::CompressionMethod;
use ankole_backup::layout::VolumePaths;
use ankole_backup::plan::{Basis, WhyFull};
use ankole_backup::prune::{Collected, delete_backup};
use ankole_backup::target::{DirectoryTarget, MemoryTarget};
use ankole_backup::*;
use common::*;
use serde_json::Value;

const METHODS: [CompressionMethod; 3] =
    [CompressionMethod::Lz4, CompressionMethod::Gzip, CompressionMethod::None];

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples")
}

/// Unpacks one store; `tar` and `gzip` are on every Debian.
fn unpacked(method: CompressionMethod) -> (tempfile::TempDir, DirectoryTarget) {
    let dir = tempfile::tempdir().unwrap();
    let archive = samples().join(format!("backupstore-{method}.tar.gz"));
    let status =
        Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(dir.path()).status().unwrap();
    assert!(status.success(), "tar can't unpack {}", archive.display());
    let target = DirectoryTarget::open("file:///samples".into(), dir.path().to_owned()).unwrap();
    (dir, target)
}

fn expected() -> Value {
    let text = std::fs::read_to_string(samples().join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The promise to everyone who comes with a store full of Longhorn's backups.
#[test]
fn longhorns_backups_restore_to_their_sums() {
    for method in METHODS {
        let (dir, target) = unpacked(method);
        let volume = name(&format!("sample-{method}"));
        assert_eq!(inventory::volumes(&target).unwrap().names, std::slice::from_ref(&volume));
        let backups = inventory::backups(&target, &volume).unwrap();
        assert_eq!(backups.len(), 2);
        for entry in backups {
            let path = dir.path().join(format!("{}.img", entry.name));
            let report = restore_to_file(
                &target,
                &volume,
                &entry.name,
                &path,
                false,
                &options(),
                &unobserved,
            )
            .unwrap();
            assert_eq!(report.size_bytes, expected()["volume_size"].as_u64().unwrap());
            let sum = sha256(&std::fs::read(&path).unwrap());
            assert_eq!(sum, expected()["restored_sha256"][entry.name.as_str()], "{method}");
            let verified =
                inventory::verify(&target, &volume, &entry.name, &options(), &unobserved).unwrap();
            assert!(verified.bad_blocks.is_empty());
            // Into a place full of old bytes, too: holes of the backup must become zeroes.
            let bytes = restored(&target, volume.as_str(), entry.name.as_str()).unwrap();
            assert_eq!(sha256(&bytes), sum);
        }
    }
}

/// A volume that moved here from Longhorn goes on in its old store. Its first backup is full, as
/// Longhorn doesn't say exactly which snapshot the last one held, but equal blocks aren't uploaded,
/// and Longhorn's own backups stay right when ours are deleted.
#[test]
fn a_backup_can_be_added_to_longhorns_store_and_taken_away_again() {
    for method in METHODS {
        let (_dir, target) = unpacked(method);
        let volume = format!("sample-{method}");
        let mut model = Model::new(&volume, 16 << 20);
        model.bytes = restored(&target, &volume, "backup-incr").unwrap();
        model.write(0, 4096, 7);
        model.bytes = restored(&target, &volume, "backup-incr").unwrap();
        model.write(3000, 1, 7);
        let mut wanted = request("ours");
        wanted.block_bytes = 2 << 20;
        let report = back_up(&target, &model.snapshot("s1"), &wanted, &unobserved).unwrap();
        assert_eq!(report.plan.basis, Basis::Nothing(WhyFull::UnknownSnapshot));
        assert_eq!(report.manifest.compression_method, method, "volume.cfg's method is kept");
        // Four of the eight blocks are Longhorn's, one is new, three are zeroes: one more object.
        assert_eq!((report.blocks_new, report.blocks_reused), (2, 6));
        assert_eq!(restored(&target, &volume, "ours").unwrap(), model.bytes);

        let collected = delete_backup(&target, &name(&volume), &name("ours"), quick()).unwrap();
        assert_eq!(collected, Collected::Blocks { deleted: 2, kept: 6 });
        for backup in ["backup-full", "backup-incr"] {
            let sum = sha256(&restored(&target, &volume, backup).unwrap());
            assert_eq!(sum, expected()["restored_sha256"][backup]);
        }
        let last = inventory::volume(&target, &name(&volume)).unwrap();
        assert_eq!(last.last_backup_name, "backup-incr");
        assert_eq!(last.block_count, 6);
    }
}

fn read_json(target: &dyn Target, key: &str) -> Value {
    serde_json::from_slice(&target.read(key, 1 << 20).unwrap()).unwrap()
}

/// Same keys, same types, all the way down; lists by their first element, maps of labels aside.
fn assert_same_shape(at: &str, ours: &Value, theirs: &Value) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) if !at.ends_with("Labels") => {
            let keys = |map: &serde_json::Map<String, Value>| {
                map.keys().cloned().collect::<std::collections::BTreeSet<_>>()
            };
            assert_eq!(keys(ours), keys(theirs), "keys of {at}");
            for (key, value) in ours {
                assert_same_shape(&format!("{at}.{key}"), value, &theirs[key]);
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            assert_same_shape(&format!("{at}[0]"), &ours[0], &theirs[0]);
        }
        (Value::String(ours), Value::String(theirs)) => {
            // A quoted string inside a string is part of the shape, and so is a decimal number.
            assert_eq!(ours.starts_with('"'), theirs.starts_with('"'), "quotes of {at}");
            let is_decimal = |text: &str| text.parse::<u64>().is_ok();
            assert_eq!(is_decimal(ours), is_decimal(theirs), "digits of {at}");
            let is_time = |text: &str| text.len() == 20 && text.ends_with('Z');
            assert_eq!(is_time(ours), is_time(theirs), "time of {at}");
        }
        (ours, theirs) => assert_eq!(
            std::mem::discriminant(ours),
            std::mem::discriminant(theirs),
            "type of {at}: {ours} and {theirs}"
        ),
    }
}

/// Longhorn must be able to read ours: a key too few or a number where it wants a string breaks it.
#[test]
fn our_manifests_have_the_shape_of_longhorns() {
    let (_dir, theirs) = unpacked(CompressionMethod::Lz4);
    let their_paths = VolumePaths::of(&name("sample-lz4"));
    let ours = MemoryTarget::default();
    let our_paths = VolumePaths::of(&name("vol"));
    let mut model = Model::new("vol", 8 << 20);
    let mut backup = request("b1");
    backup.labels.insert("from".into(), "<test>".into());
    model.write(0, 10, 1);
    back_up(&ours, &model.snapshot("s1"), &backup, &unobserved).unwrap();
    model.write(5, 100, 2);
    backup.backup = name("b2");
    back_up(&ours, &model.snapshot("s2"), &backup, &unobserved).unwrap();
    for (our_backup, their_backup) in [("b1", "backup-full"), ("b2", "backup-incr")] {
        let mut theirs = read_json(&theirs, &their_paths.backup_manifest(&name(their_backup)));
        // Longhorn writes {} or null here, and reads neither.
        assert!(theirs["ProcessingBlocks"].is_null() || theirs["ProcessingBlocks"].is_object());
        theirs["ProcessingBlocks"] = serde_json::json!({});
        assert_same_shape(
            our_backup,
            &read_json(&ours, &our_paths.backup_manifest(&name(our_backup))),
            &theirs,
        );
    }
    let mut volume = read_json(&theirs, &their_paths.volume_manifest());
    // The sample's "0" is a quirk of how it was made.
    volume["StorageClassName"] = "\"\"".into();
    assert_same_shape("volume", &read_json(&ours, &our_paths.volume_manifest()), &volume);
}

/// What we read and write again without a change is the same bytes, in Longhorn's own order.
#[test]
fn longhorns_volume_manifest_survives_a_rewrite_byte_by_byte() {
    for method in METHODS {
        let (_dir, target) = unpacked(method);
        let volume = name(&format!("sample-{method}"));
        let key = VolumePaths::of(&volume).volume_manifest();
        let before = target.read(&key, 1 << 20).unwrap();
        prune::prune(&target, &volume, quick()).unwrap();
        let after = target.read(&key, 1 << 20).unwrap();
        assert_eq!(String::from_utf8(after).unwrap(), String::from_utf8(before).unwrap());
    }
}
