//! What comes of the objects of a store of format 1 or 2.

use ankole_store::Raw;
use ankole_store::embedded::StoredObject;
use serde::de::DeserializeOwned;

use crate::api::object::{Object, Spec};
use crate::api::objects::of_one_node::{NotConverted, OneNode, VolumeObjects, target_of};
use crate::api::objects::{BackupTargetSpec, VolumeSpec};
use crate::api::target::BackupTarget;
use crate::api::volume::Volume;

/// One that can't be read is kept as it is, and listed as unreadable.
pub(super) fn convert(
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
