//! What comes of the objects of a store of format 1 or 2.

use ankole_store::Raw;
use ankole_store::embedded::StoredObject;
use serde::de::DeserializeOwned;

use crate::api::object::{Object, Spec};
use crate::api::objects::of_one_node::older::Volume;
use crate::api::objects::of_one_node::{NotConverted, OneNode, VolumeObjects, target_of};
use crate::api::objects::{BackupTargetSpec, VolumeSpec};
use crate::api::target::BackupTarget;

/// One that can't be read is kept as it is, and listed as unreadable. The node is there from the first
/// look on: a manager takes one that it doesn't know for gone.
pub(super) fn convert(
    older: &[StoredObject],
    node: &OneNode<'_>,
) -> Result<Vec<StoredObject>, NotConverted> {
    let mut objects: Vec<_> = node.object().as_ref().map(stored).into_iter().collect();
    for older in older {
        objects.extend(convert_one(older, node)?);
    }
    Ok(objects)
}

fn convert_one(
    older: &StoredObject,
    node: &OneNode<'_>,
) -> Result<Vec<StoredObject>, NotConverted> {
    match older.key.split_once('/') {
        Some(("volumes", name)) => {
            let Some(volume) = read(older, |volume: &Volume| *volume.name == *name) else {
                return Ok(vec![as_it_is::<VolumeSpec>(older, name)]);
            };
            let VolumeObjects { volume, attachment, engine, replicas } =
                node.objects_of(&volume)?;
            let mut objects = vec![stored(&volume)];
            objects.extend(attachment.as_ref().map(stored));
            objects.extend(engine.as_ref().map(stored));
            objects.extend(replicas.iter().map(stored));
            Ok(objects)
        }
        Some(("backup-targets", name)) => {
            let target = read(older, |target: &BackupTarget| *target.name == *name);
            Ok(vec![match target {
                Some(target) => stored(&target_of(&target)),
                None => as_it_is::<BackupTargetSpec>(older, name),
            }])
        }
        _ => Ok(vec![older.clone()]),
    }
}

fn read<T: DeserializeOwned>(older: &StoredObject, is_it: impl Fn(&T) -> bool) -> Option<T> {
    let read = serde_json::from_str(&older.json);
    let read = read.inspect_err(|error| {
        tracing::error!(object = older.key, %error, "it can't be read, and is kept as it is");
    });
    read.ok().filter(is_it)
}

fn as_it_is<S: Spec>(older: &StoredObject, name: &str) -> StoredObject {
    StoredObject { key: key::<S>(name), ..older.clone() }
}

fn stored<S: Spec>(object: &Object<S>) -> StoredObject {
    StoredObject { key: key::<S>(object.name()), version: 0, json: Raw::of(object).to_json() }
}

fn key<S: Spec>(name: &str) -> String {
    format!("{}/{name}", S::KIND.plural)
}

/// `tests/golden/store-format-2.txt` has the sectors of a store that 0.1.0 wrote and that was never closed,
/// as hexadecimal text; `.copy` is its copy. Volumes rest, run (over sockets, TCP, in the engine,
/// read-only), are being deleted, grow, and have a replica that is to be made anew.
#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use ankole_replica::types::Incarnation;
    use ankole_store::EmbeddedStore;
    use ankole_store::embedded::{Opening, Recover, Verified, copy_of, verify};
    use expect_test::expect_file;

    use super::*;

    const SECTOR: usize = 512;

    fn golden(name: &str) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
        fs::read_to_string(format!("{folder}/{name}")).unwrap()
    }

    fn write_golden(path: &Path) {
        let text = golden("store-format-2.txt");
        let mut lines = text.lines();
        let length = lines.next().unwrap().split_once(' ').unwrap().1.parse().unwrap();
        let mut bytes = vec![0; length];
        for line in lines {
            let (sector, hex) = line.trim_start().split_once(' ').unwrap();
            let begin = sector.parse::<usize>().unwrap() * SECTOR;
            for (at, pair) in (begin..).zip(hex.as_bytes().chunks(2)) {
                let pair = std::str::from_utf8(pair).unwrap();
                bytes[at] = u8::from_str_radix(pair, 16).unwrap();
            }
        }
        fs::write(path, bytes).unwrap();
        fs::write(copy_of(path), golden("store-format-2.copy")).unwrap();
    }

    fn open(path: &Path, recover: Option<Recover>) -> String {
        let node = OneNode {
            name: "one",
            socket: &|volume, id| format!("/data/run/{volume}.{id}").into(),
            found: &|directory| directory.ends_with("rebuilt-r3").then_some(Incarnation(3)),
            now: "2026-01-02T03:04:05Z".parse().unwrap(),
        };
        let opening = Opening {
            recover,
            convert: Some(&|older| Ok(convert(older, &node)?)),
            ..Opening::default()
        };
        drop(EmbeddedStore::open_as(path, &opening).unwrap());
        let Ok(Verified::Sound(state)) = verify(path) else { panic!("it is sound") };
        assert_eq!(state.unreadable().count(), 0);
        let line = |(plural, object): (&str, &std::sync::Arc<Raw>)| {
            format!("{plural}/{} {}\n", object.name(), object.to_json())
        };
        state.objects().map(line).collect()
    }

    #[test]
    fn a_store_of_the_version_before_becomes_objects() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ankole.redb");
        write_golden(&path);
        let objects = open(&path, None);
        expect_file!["../../tests/golden/store-format-2.objects"].assert_eq(&objects);
        // Its copy has the same.
        write_golden(&path);
        fs::remove_file(&path).unwrap();
        assert_eq!(open(&path, Some(Recover::Copy)), objects);
    }

    /// It hides no other, and nobody takes its name.
    #[test]
    fn what_can_not_be_read_is_kept_under_its_new_kind() {
        let node = OneNode {
            name: "one",
            socket: &|_, _| unreachable!("it has no replicas"),
            found: &|_| None,
            now: jiff::Timestamp::UNIX_EPOCH,
        };
        let cases = [
            ("volumes/v1", r#"{"name": "v1", "later": {}}"#, "volumes/v1"),
            ("volumes/v1", r#"{"name": "v2"}"#, "volumes/v1"),
            ("backup-targets/t", "", "backuptargets/t"),
            ("others/o", "{}", "others/o"),
        ];
        for (key, json, kept) in cases {
            let older = StoredObject { key: key.into(), version: 7, json: json.into() };
            let expected = StoredObject { key: kept.into(), ..older.clone() };
            assert_eq!(convert_one(&older, &node).unwrap(), [expected]);
        }
    }
}
