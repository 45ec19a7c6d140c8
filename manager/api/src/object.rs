//! What every object has, whatever keeps it: the envelope of the Kubernetes API.
//!
//! ```text
//! metadata  who it is: name, uid, version, labels; who waits for its end; to whom it belongs
//! spec      what is wanted        written by users and the manager; each change raises the generation
//! status    what is true          written by whoever sees it; may be lost, and is seen again then
//! ```
//! Field names and meanings are those of `ObjectMeta` in the Kubernetes API conventions, so that one
//! shape serves the store, REST, the command line and a custom resource.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Name;

/// What is wanted of one kind of object.
pub trait Spec:
    Clone + fmt::Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    const KIND: Kind;
    /// One that was lost is the default: it must never read as "new".
    type Status: Clone
        + fmt::Debug
        + Default
        + PartialEq
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static;

    /// Whose agent looks after it; a watch can ask for those of one node only.
    fn node(&self) -> Option<&str> {
        None
    }
}

/// A kind of object, by the names that it has in manifests and in paths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// `Volume`
    pub name: &'static str,
    /// `volumes`
    pub plural: &'static str,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound = "", rename_all = "camelCase")]
pub struct Object<S: Spec> {
    pub metadata: Metadata,
    pub spec: S,
    #[serde(default)]
    pub status: S::Status,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    pub name: Name,
    /// Random, made with the object: tells it from every other of its name.
    #[serde(default)]
    pub uid: String,
    /// Of the last change, given by the store.
    #[serde(default)]
    pub resource_version: ResourceVersion,
    /// Raised by the store at each change of the spec; 1 at first.
    #[serde(default)]
    pub generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// Set once, when somebody asked for its end; it goes with the last finalizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<Timestamp>,
    /// What has to be done before it may go, each taken away by who has done it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub finalizers: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Notes of programs to themselves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Those without which it has no use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<OwnerReference>,
}

/// Opaque to all but the store that gave it: equal or not is all that it tells. Empty: none yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceVersion(pub String);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerReference {
    pub kind: String,
    pub name: Name,
    pub uid: String,
}

impl<S: Spec> Object<S> {
    /// One that no store knows yet.
    pub fn new(name: Name, spec: S) -> Self {
        Self { metadata: Metadata::new(name), spec, status: S::Status::default() }
    }

    pub fn name(&self) -> &Name {
        &self.metadata.name
    }

    pub fn is_ending(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    #[must_use]
    pub fn owned_by<O: Spec>(mut self, owner: &Object<O>) -> Self {
        self.metadata.owner_references.push(OwnerReference {
            kind: O::KIND.name.into(),
            name: owner.name().clone(),
            uid: owner.metadata.uid.clone(),
        });
        self
    }

    /// An object of that name may be another one by now: its owner is known by the uid.
    pub fn is_owned_by<O: Spec>(&self, owner: &Object<O>) -> bool {
        let is_it = |it: &OwnerReference| it.kind == O::KIND.name && it.uid == owner.metadata.uid;
        self.metadata.owner_references.iter().any(is_it)
    }
}

impl Metadata {
    pub fn new(name: Name) -> Self {
        Self {
            name,
            uid: String::new(),
            resource_version: ResourceVersion::default(),
            generation: 0,
            creation_timestamp: None,
            deletion_timestamp: None,
            finalizers: BTreeSet::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            owner_references: Vec::new(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct LampSpec {
        is_lit: bool,
    }

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct LampStatus {
        lumen: u32,
    }

    impl Spec for LampSpec {
        const KIND: Kind = Kind { name: "Lamp", plural: "lamps" };
        type Status = LampStatus;
    }

    fn lamp(name: &str, uid: &str) -> Object<LampSpec> {
        let mut lamp = Object::new(name.parse().unwrap(), LampSpec { is_lit: true });
        lamp.metadata.uid = uid.into();
        lamp
    }

    #[test]
    fn an_object_reads_as_in_kubernetes() {
        let mut lamp = lamp("l2", "u2").owned_by(&lamp("l1", "u1"));
        lamp.metadata.creation_timestamp = Some("2026-01-02T03:04:05Z".parse().unwrap());
        lamp.metadata.finalizers.insert("ankole.io/dark".into());
        let json = serde_json::to_string_pretty(&lamp).unwrap();
        expect![[r#"
            {
              "metadata": {
                "name": "l2",
                "uid": "u2",
                "resourceVersion": "",
                "generation": 0,
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "finalizers": [
                  "ankole.io/dark"
                ],
                "ownerReferences": [
                  {
                    "kind": "Lamp",
                    "name": "l1",
                    "uid": "u1"
                  }
                ]
              },
              "spec": {
                "isLit": true
              },
              "status": {
                "lumen": 0
              }
            }"#]]
        .assert_eq(&json);
        assert_eq!(serde_json::from_str::<Object<LampSpec>>(&json).unwrap(), lamp);
    }

    /// A restore of a cluster brings objects back without it.
    #[test]
    fn an_object_without_its_status_is_one_with_the_default() {
        let json = r#"{"metadata": {"name": "l1"}, "spec": {"isLit": false}}"#;
        let read: Object<LampSpec> = serde_json::from_str(json).unwrap();
        assert_eq!(read.status, LampStatus::default());
    }

    #[test]
    fn what_belonged_to_a_volume_does_not_belong_to_the_next_of_that_name() {
        let (before, now) = (lamp("l1", "u1"), lamp("l1", "u3"));
        let owned = lamp("l2", "u2").owned_by(&before);
        assert!(owned.is_owned_by(&before) && !owned.is_owned_by(&now));
    }
}
