//! Damaged, missing and hostile bytes in a target: always an error that says what and where.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod common;

use ankole_backup::inventory::{BackupState, Place, backups, look_around, verify};
use ankole_backup::layout::VolumePaths;
use ankole_backup::plan::{BackupMode, Basis, WhyFull};
use ankole_backup::prune::{Collected, WhyKept, delete_backup, prune};
use ankole_backup::target::{DirectoryTarget, MemoryTarget, Target};
use ankole_backup::*;
use common::*;
use proptest::prelude::*;
use serde_json::Value;

/// Two backups of a small volume, the second an increment.
fn stored() -> (MemoryTarget, Model) {
    let target = MemoryTarget::default();
    let mut model = Model::new("vol", 16 * SMALL_BLOCK);
    for block in 0..8 {
        model.write(block * 4, 4, block + 1);
    }
    back_up(&target, &model.snapshot("s1"), &request("b1"), &unobserved).unwrap();
    model.write(0, 1, 99);
    back_up(&target, &model.snapshot("s2"), &request("b2"), &unobserved).unwrap();
    (target, model)
}

fn first_block(target: &MemoryTarget, backup: &str) -> (String, String) {
    let manifest = inventory::inspect(target, &name("vol"), &name(backup)).unwrap().manifest;
    let checksum = manifest.mappings()[0].checksum;
    (VolumePaths::of(&name("vol")).block(&checksum), checksum.to_string())
}

/// The message must be enough to act on without reading this code.
#[test]
fn a_bad_block_is_named_with_its_volume_backup_and_place_and_a_full_backup_repairs_it() {
    type Spoil = fn(&MemoryTarget, &str);
    let ways: [(&str, Spoil); 4] = [
        ("missing", |target, key| target.delete(key).unwrap()),
        ("damaged", |target, key| {
            let mut bytes = target.read(key, 1 << 20).unwrap();
            bytes.truncate(bytes.len() / 2);
            target.write(key, &bytes).unwrap();
        }),
        ("damaged", |target, key| {
            let mut bytes = target.read(key, 1 << 20).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            target.write(key, &bytes).unwrap();
        }),
        // A whole, valid object, but of other bytes: only the hash tells.
        ("other bytes than its name says", |target, key| {
            let plain = vec![5; SMALL_BLOCK as usize];
            target.write(key, &plain).unwrap();
        }),
    ];
    for (problem, spoil) in ways {
        let (target, model) = stored();
        let (key, checksum) = first_block(&target, "b2");
        spoil(&target, &key);
        let text = told(&restored(&target, "vol", "b2").unwrap_err());
        for part in [problem, "volume vol", "backup b2", &checksum, &key] {
            assert!(text.contains(part), "{part:?} isn't in: {text}");
        }
        let report = verify(&target, &name("vol"), &name("b2"), &options(), &unobserved).unwrap();
        assert_eq!((report.blocks, report.bad_blocks.len()), (8, 1));
        // The other backup doesn't need that block.
        assert_eq!(restored(&target, "vol", "b1").unwrap(), model.snapshots[0].bytes);

        // A backup in mode full stores the block again.
        let mut repair = request("b3");
        repair.mode = BackupMode::Full;
        let report = back_up(&target, &model.snapshots[1], &repair, &unobserved).unwrap();
        assert_eq!(report.blocks_new, 8, "everything was written again");
        assert_eq!(restored(&target, "vol", "b2").unwrap(), model.bytes);
    }
}

#[test]
fn a_restore_to_a_file_that_fails_leaves_no_file_and_keeps_the_old_one() {
    let (target, model) = stored();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.img");
    let to_file = |backup: &str, overwrite| {
        let (volume, backup) = (name("vol"), name(backup));
        restore_to_file(&target, &volume, &backup, &path, overwrite, &options(), &unobserved)
    };
    to_file("b1", false).unwrap();
    assert!(matches!(to_file("b2", false), Err(Error::FileExists { .. })));
    target.delete(&first_block(&target, "b2").0).unwrap();
    assert!(matches!(to_file("b2", true), Err(Error::Block(_))));
    assert_eq!(std::fs::read(&path).unwrap(), model.snapshots[0].bytes);
    to_file("b1", true).unwrap();
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(matches!(to_file("b9", true), Err(Error::NoSuchBackup { .. })));
    // What a killed restore left is no obstacle.
    std::fs::write(dir.path().join("v.img.restoring"), vec![9; 1 << 20]).unwrap();
    to_file("b1", true).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), model.snapshots[0].bytes);
}

#[test]
fn a_garbage_manifest_is_named_and_harms_only_its_own_backup() {
    for garbage in [&b""[..], b"{", b"null", b"[]", b"{\"Name\":\"b1\"}", b"\xff\xfe", b"{}\0"] {
        let (target, model) = stored();
        let key = VolumePaths::of(&name("vol")).backup_manifest(&name("b1"));
        target.write(&key, garbage).unwrap();
        let text = told(&restored(&target, "vol", "b1").unwrap_err());
        assert!(text.contains(&key), "{text}");
        assert_eq!(restored(&target, "vol", "b2").unwrap(), model.bytes);
        let entries = backups(&target, &name("vol")).unwrap();
        assert!(matches!(entries[0].state, BackupState::Unreadable(_)));
        assert!(matches!(entries[1].state, BackupState::Complete(_)));
        // Who knows which blocks b1 needs: nothing may be collected.
        let blocks = |target: &MemoryTarget| {
            target.keys().into_iter().filter(|key| key.ends_with(".blk")).count()
        };
        let before = blocks(&target);
        let why = Collected::Nothing(WhyKept::Unreadable(name("b1")));
        assert_eq!(delete_backup(&target, &name("vol"), &name("b2"), quick()).unwrap(), why);
        assert_eq!(blocks(&target), before);
        // Until it is deleted itself.
        delete_backup(&target, &name("vol"), &name("b1"), quick()).unwrap();
        assert_eq!(blocks(&target), 0);
    }
}

/// The next backup must not fail for ever because the last one's manifest is damaged.
#[test]
fn a_damaged_last_backup_makes_the_next_one_full() {
    let (target, mut model) = stored();
    let key = VolumePaths::of(&name("vol")).backup_manifest(&name("b2"));
    target.write(&key, b"{").unwrap();
    model.write(5, 1, 50);
    let report = back_up(&target, &model.snapshot("s3"), &request("b3"), &unobserved).unwrap();
    assert_eq!(report.plan.basis, Basis::Nothing(WhyFull::LastBackupUnusable));
    assert_eq!(restored(&target, "vol", "b3").unwrap(), model.bytes);
}

/// A full disk or a power cut left a block of no bytes. It counted as stored: each later backup was
/// complete, and none could be restored.
#[test]
fn a_block_that_can_not_be_one_is_stored_anew_by_the_next_backup() {
    type Spoil = fn(&MemoryTarget, &str);
    let ways: [Spoil; 3] = [
        |target, key| target.write(key, b"").unwrap(),
        |target, key| target.write(key, &vec![1; 4 * SMALL_BLOCK as usize + (1 << 20)]).unwrap(),
        |target, key| target.delete(key).unwrap(),
    ];
    for spoil in ways {
        for is_taken_over in [true, false] {
            let (target, mut model) = stored();
            let (key, _) = first_block(&target, "b2");
            spoil(&target, &key);
            if is_taken_over {
                model.write(40, 1, 77); // the block isn't read for the next increment
            } else {
                model.write(0, 1, 99); // the same bytes again
            }
            let report =
                back_up(&target, &model.snapshot("s3"), &request("b3"), &unobserved).unwrap();
            assert!(report.plan.is_incremental());
            assert_eq!(restored(&target, "vol", "b3").unwrap(), model.bytes);
            assert_eq!(restored(&target, "vol", "b2").unwrap(), model.snapshots[1].bytes);
        }
    }
}

/// The volume could never be backed up to that target again.
#[test]
fn a_lost_volume_manifest_is_made_anew_of_backups_that_say_what_they_need() {
    for damage in [Some(&b""[..]), Some(b"{"), None] {
        let (target, mut model) = stored();
        let key = VolumePaths::of(&name("vol")).volume_manifest();
        let before = inventory::volume(&target, &name("vol")).unwrap();
        match damage {
            Some(bytes) => target.write(&key, bytes).unwrap(),
            None => target.delete(&key).unwrap(),
        }
        model.write(1, 1, 5);
        let report = back_up(&target, &model.snapshot("s3"), &request("b3"), &unobserved).unwrap();
        assert!(report.plan.is_incremental(), "{}", report.plan);
        let after = inventory::volume(&target, &name("vol")).unwrap();
        assert_eq!(after.block_count, before.block_count + report.blocks_new);
        for (index, backup) in ["b1", "b2", "b3"].into_iter().enumerate() {
            assert_eq!(restored(&target, "vol", backup).unwrap(), model.snapshots[index].bytes);
        }
    }
}

/// The backup was gone, and its deletion was told as failed.
#[test]
fn a_backup_of_a_volume_without_manifest_can_be_deleted_and_its_blocks_stay() {
    let (target, model) = stored();
    target.write(&VolumePaths::of(&name("vol")).volume_manifest(), b"").unwrap();
    let kept = delete_backup(&target, &name("vol"), &name("b1"), quick()).unwrap();
    assert_eq!(kept, Collected::Nothing(WhyKept::VolumeUnreadable));
    assert_eq!(restored(&target, "vol", "b2").unwrap(), model.bytes);
}

/// "Delete those backups" was advised, and the volume was refused also when they were gone.
#[test]
fn a_smaller_volume_of_an_old_name_is_backed_up_once_the_larger_ones_backups_are_gone() {
    let (target, _) = stored();
    let mut smaller = Model::new("vol", 4 * SMALL_BLOCK);
    smaller.write(0, 16, 1);
    let small = smaller.snapshot("s1");
    let refused = back_up(&target, &small, &request("b3"), &unobserved).unwrap_err();
    assert!(matches!(refused, Error::Shrank { .. }));
    for backup in ["b1", "b2"] {
        delete_backup(&target, &name("vol"), &name(backup), quick()).unwrap();
    }
    back_up(&target, &small, &request("b3"), &unobserved).unwrap();
    assert_eq!(restored(&target, "vol", "b3").unwrap(), smaller.bytes);
}

/// Longhorn's backups need the size and the image that only `volume.cfg` has; Ankole's don't.
#[test]
fn a_garbage_volume_manifest_stops_what_needs_it_with_its_name() {
    let (target, mut model) = stored();
    as_longhorn(&target, "b1");
    let key = VolumePaths::of(&name("vol")).volume_manifest();
    target.write(&key, b"\x00\x01").unwrap();
    let error = restored(&target, "vol", "b1").map(drop).unwrap_err();
    assert!(told(&error).contains(&key));
    let error = back_up(&target, &model.snapshot("s3"), &request("b3"), &unobserved).unwrap_err();
    assert!(told(&error).contains(&key));
    assert!(prune(&target, &name("vol"), quick()).is_err());
    assert_eq!(target.read(&key, 10).unwrap(), b"\x00\x01", "it is left for repair");
    assert_eq!(restored(&target, "vol", "b2").unwrap(), model.bytes);
}

/// A manifest could ask for terabytes of memory, or name a block past the volume's end.
#[test]
fn a_manifest_that_asks_for_too_much_is_refused() {
    for (from, to, problem) in [
        ("\"16384\"}", "\"1099511627776\"}", "block size"),
        ("\"16384\"}", "\"4096Gi\"}", "block size"),
        ("\"Offset\":114688", "\"Offset\":9223372036854759424", "past the end"),
        ("\"Offset\":114688", "\"Offset\":-1", "manifest"),
        ("\"Offset\":114688", "\"Offset\":98304", "two blocks"),
    ] {
        let (target, _) = stored();
        as_longhorn(&target, "b1");
        let key = edit_manifest(&target, "b1", from, to);
        let error = told(&restored(&target, "vol", "b1").unwrap_err());
        assert!(error.contains(problem) && error.contains(&key), "{error}");
    }
}

/// Rewrites a part of a backup's manifest, and tells where it is.
fn edit_manifest(target: &MemoryTarget, backup: &str, from: &str, to: &str) -> String {
    let key = VolumePaths::of(&name("vol")).backup_manifest(&name(backup));
    let text = String::from_utf8(target.read(&key, 1 << 20).unwrap()).unwrap();
    assert!(text.contains(from), "{from} isn't in {text}");
    target.write(&key, text.replacen(from, to, 1).as_bytes()).unwrap();
    key
}

/// Takes away what Longhorn wouldn't have written.
fn as_longhorn(target: &MemoryTarget, backup: &str) {
    let key = VolumePaths::of(&name("vol")).backup_manifest(&name(backup));
    let mut json: Value = serde_json::from_slice(&target.read(&key, 1 << 20).unwrap()).unwrap();
    json["Labels"] = Value::Null;
    target.write(&key, json.to_string().as_bytes()).unwrap();
}

fn edit_volume(target: &MemoryTarget, field: &str, value: &str) {
    let key = VolumePaths::of(&name("vol")).volume_manifest();
    let mut json: Value = serde_json::from_slice(&target.read(&key, 1 << 20).unwrap()).unwrap();
    json[field] = value.into();
    target.write(&key, json.to_string().as_bytes()).unwrap();
}

/// Blocks were cut from 125 to 10: the list said "complete", verify and restore succeeded, and the
/// image was another one. Longhorn's manifests say how many bytes their blocks have together.
#[test]
fn a_map_that_lost_blocks_is_noticed_by_list_verify_and_restore() {
    for is_longhorns in [false, true] {
        let (target, model) = stored();
        if is_longhorns {
            as_longhorn(&target, "b1");
        }
        let key = VolumePaths::of(&name("vol")).backup_manifest(&name("b1"));
        let mut json: Value = serde_json::from_slice(&target.read(&key, 1 << 20).unwrap()).unwrap();
        json["Blocks"].as_array_mut().unwrap().truncate(3);
        target.write(&key, json.to_string().as_bytes()).unwrap();

        let error = told(&restored(&target, "vol", "b1").unwrap_err());
        assert!(error.contains("lists 3 blocks") && error.contains(&key), "{error}");
        assert!(verify(&target, &name("vol"), &name("b1"), &options(), &unobserved).is_err());
        let listed = backups(&target, &name("vol")).unwrap();
        assert!(matches!(listed[0].state, BackupState::Unreadable(_)), "{listed:?}");
        assert_eq!(restored(&target, "vol", "b2").unwrap(), model.bytes);
    }
}

/// JSON that is valid and counts right could still map a block elsewhere: Ankole's backups have a
/// sum over what a restore goes by.
#[test]
fn any_change_of_an_ankole_backups_map_or_size_is_noticed() {
    let (target, _) = stored();
    let manifest = inventory::inspect(&target, &name("vol"), &name("b2")).unwrap().manifest;
    let [first, second] = [0, 1].map(|index| manifest.mappings()[index].checksum.to_string());
    for (from, to) in [
        ("\"Offset\":114688", "\"Offset\":131072"),
        (&first[..], &second[..]),
        ("volume-size\":\"262144\"", "volume-size\":\"278528\""),
        ("volume-size\"", "volume-sise\""),
    ] {
        let (target, _) = stored();
        edit_manifest(&target, "b2", from, to);
        let error = told(&restored(&target, "vol", "b2").unwrap_err());
        assert!(error.contains("sum"), "{from}: {error}");
        let listed = backups(&target, &name("vol")).unwrap();
        assert!(matches!(listed[1].state, BackupState::Unreadable(_)), "{listed:?}");
    }
}

/// Longhorn backs up only what differs from a volume's backing image. Restored without it, such a
/// backup gave wrong bytes, with success, and verify agreed.
#[test]
fn a_backup_over_a_backing_image_is_refused_and_shown() {
    let (target, mut model) = stored();
    as_longhorn(&target, "b1");
    edit_volume(&target, "BackingImageName", "\"base\"");
    let (volume, backup) = (name("vol"), name("b1"));
    let error = told(&restored(&target, "vol", "b1").unwrap_err());
    assert!(error.contains("backing image base"), "{error}");
    assert!(verify(&target, &volume, &backup, &options(), &unobserved).is_err());
    let details = inventory::inspect(&target, &volume, &backup).unwrap();
    assert_eq!(details.backing_image.as_deref(), Some("base"));
    let listed = backups(&target, &volume).unwrap();
    assert!(matches!(&listed[0].state, BackupState::Complete(d) if d.backing_image.is_some()));
    // A backup of a whole volume beside them would be taken for one over the image, too.
    let error = back_up(&target, &model.snapshot("s3"), &request("b3"), &unobserved).unwrap_err();
    assert!(matches!(error, Error::BackingImage { .. }));
    // One that says itself that it is whole, is.
    assert_eq!(restored(&target, "vol", "b2").unwrap(), model.bytes);
}

/// It was listed as complete, and refused by restore.
#[test]
fn a_backup_that_is_a_single_file_is_listed_as_what_can_not_be_read() {
    let (target, _) = stored();
    as_longhorn(&target, "b1");
    edit_manifest(&target, "b1", r#""FilePath":"""#, r#""FilePath":"BackupFiles/b1.bak""#);
    let listed = backups(&target, &name("vol")).unwrap();
    assert!(matches!(listed[0].state, BackupState::Unreadable(Error::SingleFile { .. })));
    assert!(matches!(restored(&target, "vol", "b1"), Err(Error::SingleFile { .. })));
}

/// Longhorn writes the present size of a volume, which may have been made anew, and smaller: then
/// what its older backups hold was out of reach.
#[test]
fn a_backup_larger_than_its_volume_restores_whole() {
    let (target, model) = stored();
    as_longhorn(&target, "b1");
    edit_volume(&target, "Size", &(2 * SMALL_BLOCK).to_string());
    let bytes = restored(&target, "vol", "b1").unwrap();
    assert_eq!(bytes, model.snapshots[0].bytes[..8 * SMALL_BLOCK as usize]);
    assert_eq!(restored(&target, "vol", "b2").unwrap(), model.bytes, "it says its own size");
}

/// A list was empty, whatever the reason.
#[test]
fn an_empty_list_can_be_told_from_a_wrong_folder_and_from_images() {
    let place = |keys: &[&str]| {
        let target = MemoryTarget::default();
        keys.iter().for_each(|key| target.write(key, b"").unwrap());
        look_around(&target).unwrap()
    };
    assert_eq!(place(&[]).place, Place::Empty);
    assert_eq!(place(&["notes.txt"]).place, Place::NoStore(vec!["notes.txt".into()]));
    let image = "backupstore/backing-images/backing-images/debian/backing-image.cfg";
    let images = place(&[image]);
    assert_eq!((images.place, &images.backing_images[..]), (Place::Store, &["debian".into()][..]));
    for cut in ["backupstore/", "backupstore/volumes/", "backupstore/volumes/22/"] {
        let key = "backupstore/volumes/22/fc/vol/volume.cfg";
        assert_eq!(place(&[key.strip_prefix(cut).unwrap()]).place, Place::InsideAStore, "{cut}");
    }
    let above = format!("longhorn/{image}");
    assert_eq!(place(&["a", &above]).place, Place::AboveAStore("longhorn".into()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Any object of a store, damaged in any place: every backup restores to its bytes or fails.
    #[test]
    fn no_single_damage_gives_wrong_bytes(
        object in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        flip in 1..=255_u8, how in 0..3_u8,
    ) {
        let (target, model) = stored();
        let keys = target.keys();
        let key = &keys[object.index(keys.len())];
        let mut bytes = target.read(key, 1 << 20).unwrap();
        let at = at.index(bytes.len());
        match how {
            0 => bytes[at] ^= flip,
            1 => bytes.truncate(at),
            _ => bytes.clear(),
        }
        target.write(key, &bytes).unwrap();
        // A manifest has no checksum of its own, so damage of it may go to another valid one; of
        // a block it may not.
        if key.ends_with(".blk") {
            for (index, backup) in ["b1", "b2"].into_iter().enumerate() {
                if let Ok(bytes) = restored(&target, "vol", backup) {
                    prop_assert!(bytes == model.snapshots[index].bytes);
                }
            }
        } else {
            let _ = backups(&target, &name("vol"));
            let _ = restored(&target, "vol", "b1");
            let _ = verify(&target, &name("vol"), &name("b2"), &options(), &unobserved);
            let _ = prune(&target, &name("vol"), quick());
        }
    }
}

#[test]
fn places_that_can_not_be_used_say_which_and_why() {
    let missing = "file:///no/such/folder".parse::<TargetUrl>().unwrap().open();
    let text = told(&missing.err().unwrap());
    assert!(text.contains("/no/such/folder") && text.contains("create or mount"), "{text}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    assert!(DirectoryTarget::open("file:///x".into(), file).is_err());

    let mut model = Model::new("vol", SMALL_BLOCK + UNIT);
    let target = MemoryTarget::default();
    let odd = back_up(&target, &model.snapshot("s"), &request("b1"), &unobserved).unwrap_err();
    assert!(told(&odd).contains("whole number of backup blocks"), "{odd}");
    let mut short = Model::new("v", SMALL_BLOCK);
    let odd = back_up(&target, &short.snapshot("s"), &request("b1"), &unobserved).unwrap_err();
    assert!(matches!(odd, Error::Name(_)));
    assert!(target.keys().is_empty(), "a refused backup leaves nothing");
}
