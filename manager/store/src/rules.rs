//! What a write does to one object, as the Kubernetes API has it. Pure; every backend of our own
//! decides here.
//!
//! ```text
//! (absent) ──create──▶ lives ──delete──▶ gone                    without finalizers
//!                        │ delete
//!                        ▼
//!                      ending ──replace without the last finalizer──▶ gone
//! ```

use std::sync::Arc;

use ankole_api::object::{Kind, Metadata, ResourceVersion};
use jiff::Timestamp;

use crate::{Raw, StoreError, Unreadable};

/// Of an object's JSON: what etcd takes with room to spare.
pub const OBJECT_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Its status is left out: it is written when something is true.
    Create(Raw),
    /// All but the status and what is the store's own. It names the version that its writer has seen.
    Replace(Raw),
    /// The status alone, in the same way.
    ReplaceStatus(Raw),
    Delete {
        name: String,
        precondition: Precondition,
    },
}

impl Write {
    pub fn name(&self) -> &str {
        match self {
            Self::Create(object) | Self::Replace(object) | Self::ReplaceStatus(object) => {
                object.name()
            }
            Self::Delete { name, .. } => name,
        }
    }
}

/// What must still be so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Precondition {
    pub uid: Option<String>,
    pub resource_version: Option<ResourceVersion>,
}

impl Precondition {
    /// Whatever is there by now.
    pub fn none() -> Self {
        Self::default()
    }

    /// Still this object, changed or not.
    pub fn same(seen: &Metadata) -> Self {
        Self { uid: Some(seen.uid.clone()), resource_version: None }
    }

    /// Still this object, unchanged.
    pub fn unchanged(seen: &Metadata) -> Self {
        let resource_version = Some(seen.resource_version.clone());
        Self { uid: Some(seen.uid.clone()), resource_version }
    }
}

/// What a write takes from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub now: Timestamp,
    /// For an object that is made.
    pub uid: String,
}

impl Stamp {
    /// In whole seconds, as Kubernetes has them, and with a random uid.
    pub fn of_the_system() -> Self {
        let now = Timestamp::from_second(Timestamp::now().as_second());
        Self { now: now.expect("whole seconds of a time are one"), uid: random_uid() }
    }
}

/// A UUID, version 4.
fn random_uid() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes");
    let random = u128::from_be_bytes(bytes);
    let marked = random & !(0xf << 76) & !(0b11 << 62) | 0x4 << 76 | 0b10 << 62;
    let hex = format!("{marked:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Present<'a> {
    Nothing,
    Object(&'a Arc<Raw>),
    Unreadable(&'a Unreadable),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is so already.
    Nothing(Arc<Raw>),
    Put(Raw),
    /// As it was last, with the version of its end.
    Remove(Raw),
    RemoveUnreadable,
}

/// `version` is that of the change, if it is one.
pub(crate) fn decide(
    kind: Kind,
    present: Present<'_>,
    write: &Write,
    stamp: &Stamp,
    version: ResourceVersion,
) -> Result<Decision, StoreError> {
    let refusal = Refusal { kind, name: write.name() };
    let decision = match (write, present) {
        (Write::Create(object), Present::Nothing) => {
            Decision::Put(created(object, stamp, &refusal)?)
        }
        (Write::Create(_), _) => return Err(refusal.exists()),
        (_, Present::Nothing) => return Err(refusal.not_found()),
        (Write::Delete { precondition, .. }, Present::Unreadable(_))
            if *precondition == Precondition::none() =>
        {
            Decision::RemoveUnreadable
        }
        (_, Present::Unreadable(it)) => return Err(refusal.unreadable(it)),
        (Write::Replace(object), Present::Object(present)) => {
            check_seen(object, present, &refusal)?;
            replaced(object, present, &refusal)?
        }
        (Write::ReplaceStatus(object), Present::Object(present)) => {
            check_seen(object, present, &refusal)?;
            let next = Raw::clone(present).with_status(object.status().cloned());
            put_unless_same(next, present)
        }
        (Write::Delete { precondition, .. }, Present::Object(present)) => {
            check_precondition(precondition, present, &refusal)?;
            deleted(present, stamp)
        }
    };
    Ok(match decision {
        Decision::Put(mut object) => {
            object.metadata.resource_version = version;
            // One that is as large as it may be can be deleted all the same.
            if !matches!(write, Write::Delete { .. }) {
                refusal.check_size(&object)?;
            }
            Decision::Put(object)
        }
        Decision::Remove(mut object) => {
            object.metadata.resource_version = version;
            Decision::Remove(object)
        }
        other => other,
    })
}

fn created(object: &Raw, stamp: &Stamp, refusal: &Refusal<'_>) -> Result<Raw, StoreError> {
    if object.metadata.resource_version != ResourceVersion::default() {
        return Err(refusal.invalid("an object that is made has no version yet"));
    }
    let mut next = object.clone().with_status(None);
    next.metadata = Metadata {
        uid: stamp.uid.clone(),
        generation: 1,
        creation_timestamp: Some(stamp.now),
        deletion_timestamp: None,
        ..next.metadata
    };
    Ok(next)
}

fn replaced(
    object: &Raw,
    present: &Arc<Raw>,
    refusal: &Refusal<'_>,
) -> Result<Decision, StoreError> {
    let is = &present.metadata;
    if is.deletion_timestamp.is_some() && !object.metadata.finalizers.is_subset(&is.finalizers) {
        return Err(refusal.invalid("no finalizer can be added to what is ending"));
    }
    let mut next = Raw::clone(present).with_spec_of(object);
    next.metadata = Metadata {
        name: is.name.clone(),
        uid: is.uid.clone(),
        resource_version: is.resource_version.clone(),
        generation: is.generation + u64::from(next.spec() != present.spec()),
        creation_timestamp: is.creation_timestamp,
        deletion_timestamp: is.deletion_timestamp,
        ..object.metadata.clone()
    };
    let is_over = is.deletion_timestamp.is_some() && next.metadata.finalizers.is_empty();
    Ok(if is_over { Decision::Remove(next) } else { put_unless_same(next, present) })
}

fn deleted(present: &Arc<Raw>, stamp: &Stamp) -> Decision {
    let mut next = Raw::clone(present);
    if next.metadata.finalizers.is_empty() {
        return Decision::Remove(next);
    }
    next.metadata.deletion_timestamp.get_or_insert(stamp.now);
    put_unless_same(next, present)
}

fn put_unless_same(next: Raw, present: &Arc<Raw>) -> Decision {
    if next == **present { Decision::Nothing(Arc::clone(present)) } else { Decision::Put(next) }
}

fn check_seen(object: &Raw, present: &Raw, refusal: &Refusal<'_>) -> Result<(), StoreError> {
    let seen = &object.metadata;
    if seen.resource_version == ResourceVersion::default() {
        return Err(refusal.invalid("it doesn't say which version it replaces"));
    }
    // An object that was made in place of the one that was seen has another version, too; the uid
    // is looked at for those who bring a version from elsewhere.
    let is_same = seen.uid.is_empty() || seen.uid == present.metadata.uid;
    if is_same && seen.resource_version == present.metadata.resource_version {
        Ok(())
    } else {
        Err(refusal.conflict())
    }
}

fn check_precondition(
    wanted: &Precondition,
    present: &Raw,
    refusal: &Refusal<'_>,
) -> Result<(), StoreError> {
    let is = &present.metadata;
    let is_met = wanted.uid.as_ref().is_none_or(|uid| *uid == is.uid)
        && wanted.resource_version.as_ref().is_none_or(|version| *version == is.resource_version);
    if is_met { Ok(()) } else { Err(refusal.conflict()) }
}

struct Refusal<'a> {
    kind: Kind,
    name: &'a str,
}

impl Refusal<'_> {
    fn exists(&self) -> StoreError {
        StoreError::Exists { kind: self.kind, name: self.name.into() }
    }

    fn not_found(&self) -> StoreError {
        StoreError::NotFound { kind: self.kind, name: self.name.into() }
    }

    fn conflict(&self) -> StoreError {
        StoreError::Conflict { kind: self.kind, name: self.name.into() }
    }

    fn invalid(&self, why: &'static str) -> StoreError {
        StoreError::Invalid { kind: self.kind, name: self.name.into(), why }
    }

    fn unreadable(&self, it: &Unreadable) -> StoreError {
        StoreError::Unreadable { kind: self.kind, name: self.name.into(), why: it.why.clone() }
    }

    fn check_size(&self, object: &Raw) -> Result<(), StoreError> {
        let size_bytes = object.size_bytes();
        if size_bytes <= OBJECT_BYTES_MAX {
            return Ok(());
        }
        Err(StoreError::TooLarge { kind: self.kind, name: self.name.into(), size_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_a_uuid_and_never_the_same() {
        let (one, two) = (random_uid(), random_uid());
        assert_ne!(one, two);
        let parts: Vec<_> = one.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12], "{one}");
        assert_eq!(&one[14..15], "4", "{one}");
        assert!("89ab".contains(&one[19..20]), "{one}");
    }
}
