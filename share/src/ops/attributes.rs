//! Attributes that are asked for, compared, and set (RFC 8881, 18.7, 18.15, 18.30, 18.31).

use super::{Cursor, Export, Failed};
use crate::tree::{Attributes, Change, Space, Tree};
use crate::wire::attributes::{AttributeSet, AttributeValues, Changes, SETTABLE, number::*};
use crate::wire::status::{OK, Status};
use crate::wire::types::*;
use crate::wire::xdr::Encoder;
use std::time::Duration;

/// What is told when it is asked for, in minor version 1.
const READABLE: AttributeSet = AttributeSet::of(&[
    SUPPORTED_ATTRS,
    TYPE,
    FH_EXPIRE_TYPE,
    CHANGE,
    SIZE,
    LINK_SUPPORT,
    SYMLINK_SUPPORT,
    NAMED_ATTR,
    FSID,
    UNIQUE_HANDLES,
    LEASE_TIME,
    RDATTR_ERROR,
    ACLSUPPORT,
    CANSETTIME,
    CASE_INSENSITIVE,
    CASE_PRESERVING,
    CHOWN_RESTRICTED,
    FILEHANDLE,
    FILEID,
    FILES_AVAIL,
    FILES_FREE,
    FILES_TOTAL,
    HOMOGENEOUS,
    MAXFILESIZE,
    MAXLINK,
    MAXNAME,
    MAXREAD,
    MAXWRITE,
    MODE,
    NO_TRUNC,
    NUMLINKS,
    OWNER,
    OWNER_GROUP,
    RAWDEV,
    SPACE_AVAIL,
    SPACE_FREE,
    SPACE_TOTAL,
    SPACE_USED,
    TIME_ACCESS,
    TIME_CREATE,
    TIME_DELTA,
    TIME_METADATA,
    TIME_MODIFY,
    MOUNTED_ON_FILEID,
    SUPPATTR_EXCLCREAT,
]);

/// What is older than minor version 1 doesn't know, and what 2 added.
const SINCE_1: AttributeSet = AttributeSet::of(&[SUPPATTR_EXCLCREAT]);
const SINCE_2: AttributeSet = AttributeSet::of(&[XATTR_SUPPORT]);

pub(super) const WRITE_ONLY: AttributeSet = AttributeSet::of(&[TIME_ACCESS_SET, TIME_MODIFY_SET]);

const OF_SPACE: AttributeSet =
    AttributeSet::of(&[FILES_AVAIL, FILES_FREE, FILES_TOTAL, SPACE_AVAIL, SPACE_FREE, SPACE_TOTAL]);

/// Not the times: an exclusive creation keeps its verifier there.
const SETTABLE_EXCLUSIVELY: AttributeSet = AttributeSet::of(&[SIZE, MODE, OWNER, OWNER_GROUP]);

/// The times are as fine as the file system's: nanoseconds.
const TIME_STEP_NS: u32 = 1;

impl AttributeSet {
    fn readable(minor_version: u32) -> Self {
        match minor_version {
            0 => READABLE.without(&SINCE_1),
            1 => READABLE,
            _ => READABLE.or(&SINCE_2),
        }
    }

    fn supported(minor_version: u32) -> Self {
        Self::readable(minor_version).or(&SETTABLE)
    }
}

/// All that the values of attributes come from.
pub struct Source<'a> {
    pub tree: &'a dyn Tree,
    pub lease: Duration,
    pub minor_version: u32,
    pub file: FileHandle,
    pub attributes: Attributes,
}

impl Source<'_> {
    /// The set of what is told, and the values.
    pub fn encode(&self, wanted: &AttributeSet, reply: &mut Encoder) -> Result<(), Status> {
        let told = wanted.and(&AttributeSet::readable(self.minor_version));
        let space = match told.and(&OF_SPACE).is_empty() {
            true => None,
            false => Some(self.tree.space()?),
        };
        told.encode(reply);
        let length = reply.mark();
        reply.u32(0);
        let start = reply.mark();
        for number in told.iter() {
            match &space {
                Some(space) if OF_SPACE.has(number) => reply.u64(of_space(space, number)),
                _ => self.encode_one(number, reply),
            }
        }
        reply.patch_u32(length, reply.since(start) as u32);
        Ok(())
    }

    fn encode_one(&self, number: u32, reply: &mut Encoder) {
        let of = &self.attributes;
        match number {
            SUPPORTED_ATTRS => AttributeSet::supported(self.minor_version).encode(reply),
            TYPE => reply.u32(of.kind as u32),
            FH_EXPIRE_TYPE => reply.u32(0), // handles don't expire
            CHANGE => reply.u64(of.change),
            SIZE => reply.u64(of.size_bytes),
            FSID => {
                let id = self.tree.id();
                reply.u64((id >> 64) as u64);
                reply.u64(id as u64);
            }
            LINK_SUPPORT | SYMLINK_SUPPORT | UNIQUE_HANDLES | CANSETTIME | CASE_PRESERVING
            | CHOWN_RESTRICTED | HOMOGENEOUS | NO_TRUNC => reply.bool(true),
            NAMED_ATTR | CASE_INSENSITIVE => reply.bool(false),
            LEASE_TIME => reply.u32(self.lease.as_secs() as u32),
            RDATTR_ERROR => reply.u32(OK),
            ACLSUPPORT => reply.u32(0),
            FILEHANDLE => reply.opaque(self.file.as_bytes()),
            FILEID | MOUNTED_ON_FILEID => reply.u64(of.file_id),
            MAXFILESIZE => reply.u64(i64::MAX as u64),
            MAXLINK => reply.u32(32_000),
            MAXNAME => reply.u32(NAME_BYTES_MAX as u32),
            MAXREAD | MAXWRITE => reply.u64(IO_BYTES_MAX.into()),
            MODE => reply.u32(of.mode),
            NUMLINKS => reply.u32(of.links),
            OWNER => reply.decimal(of.uid),
            OWNER_GROUP => reply.decimal(of.gid),
            RAWDEV => {
                reply.u32(of.device.0);
                reply.u32(of.device.1);
            }
            SPACE_USED => reply.u64(of.used_bytes),
            TIME_ACCESS => of.accessed.encode(reply),
            TIME_CREATE => of.created.unwrap_or(of.changed).encode(reply),
            TIME_DELTA => {
                reply.i64(0);
                reply.u32(TIME_STEP_NS);
            }
            TIME_METADATA => of.changed.encode(reply),
            TIME_MODIFY => of.modified.encode(reply),
            SUPPATTR_EXCLCREAT => SETTABLE_EXCLUSIVELY.encode(reply),
            XATTR_SUPPORT => reply.bool(self.tree.has_xattrs()),
            _ => unreachable!("each number that is readable stands above"),
        }
    }
}

fn of_space(space: &Space, number: u32) -> u64 {
    match number {
        FILES_AVAIL | FILES_FREE => space.free_files,
        FILES_TOTAL => space.total_files,
        SPACE_AVAIL => space.available_bytes,
        SPACE_FREE => space.free_bytes,
        _ => space.total_bytes,
    }
}

/// What was asked to be set, ready for the tree.
pub struct Wanted {
    pub size_bytes: Option<u64>,
    pub change: Change,
    pub set: AttributeSet,
}

impl Wanted {
    pub fn parse(values: &AttributeValues, minor_version: u32) -> Result<Self, Status> {
        let supported = AttributeSet::supported(minor_version);
        if values.names_unknown || !values.set.without(&supported).is_empty() {
            return Err(Status::AttrNotSupp);
        }
        if !values.set.without(&SETTABLE).is_empty() {
            return Err(Status::Inval); // it can only be read
        }
        let changes = Changes::decode(values)?;
        if changes.mode.is_some_and(|mode| mode > 0o7777) {
            return Err(Status::Inval);
        }
        let change = Change {
            mode: changes.mode,
            uid: changes.owner.map(parse_owner).transpose()?,
            gid: changes.group.map(parse_owner).transpose()?,
            accessed: changes.accessed,
            modified: changes.modified,
        };
        Ok(Self { size_bytes: changes.size_bytes, change, set: values.set })
    }

    /// For a file that is created exclusively.
    pub fn parse_exclusive(values: &AttributeValues, minor_version: u32) -> Result<Self, Status> {
        let wanted = Self::parse(values, minor_version)?;
        match wanted.set.without(&SETTABLE_EXCLUSIVELY).is_empty() {
            true => Ok(wanted),
            false => Err(Status::Inval),
        }
    }

    pub fn nothing() -> Self {
        Self { size_bytes: None, change: Change::default(), set: AttributeSet::default() }
    }
}

/// Owners are numbers: names would need the same users on all machines.
fn parse_owner(name: &[u8]) -> Result<u32, Status> {
    let digits = std::str::from_utf8(name).map_err(|_| Status::Inval)?;
    if digits.is_empty() {
        return Err(Status::Inval);
    }
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse::<u32>() {
        Ok(id) if plain && id != u32::MAX => Ok(id),
        _ => Err(Status::BadOwner),
    }
}

impl Cursor<'_> {
    pub(super) fn source(&self, file: FileHandle) -> Result<Source<'_>, Status> {
        Ok(self.source_of(file, self.export.tree.attributes(file)?))
    }

    pub(super) fn source_of(&self, file: FileHandle, attributes: Attributes) -> Source<'_> {
        let Export { tree, lease, .. } = self.export;
        Source { tree: &**tree, lease: *lease, minor_version: self.minor_version, file, attributes }
    }

    pub(super) fn get_attributes(
        &mut self,
        wanted: AttributeSet,
        reply: &mut Encoder,
    ) -> Result<(), Status> {
        if !wanted.and(&WRITE_ONLY).is_empty() {
            return Err(Status::Inval);
        }
        self.source(self.current()?.file)?.encode(&wanted, reply)
    }

    pub(super) fn verify(&mut self, values: &AttributeValues, same: bool) -> Result<(), Status> {
        let file = self.current()?.file;
        let supported = AttributeSet::supported(self.minor_version);
        if values.names_unknown || !values.set.without(&supported).is_empty() {
            return Err(Status::AttrNotSupp);
        }
        let never = WRITE_ONLY.or(&AttributeSet::of(&[RDATTR_ERROR]));
        if !values.set.and(&never).is_empty() {
            return Err(Status::Inval);
        }
        let mut ours = Vec::new();
        let mut encoder = Encoder::new(&mut ours);
        values.set.encode(&mut encoder);
        encoder.opaque(values.bytes);
        let theirs = std::mem::take(&mut ours);
        self.source(file)?.encode(&values.set, &mut Encoder::new(&mut ours))?;
        match (ours == theirs, same) {
            (false, true) => Err(Status::NotSame),
            (true, false) => Err(Status::Same),
            _ => Ok(()),
        }
    }

    pub(super) fn set_attributes(
        &mut self,
        stateid: StateId,
        values: &AttributeValues,
        reply: &mut Encoder,
    ) -> Result<(), Failed> {
        let file = self.current()?.file;
        let wanted = Wanted::parse(values, self.minor_version)?;
        let mut set = AttributeSet::default();
        let done = self.apply(file, stateid, &wanted, &mut set);
        set.encode(reply);
        done.map_err(|status| Failed { status, keeps_result: true })
    }

    /// `set` becomes what was really set.
    fn apply(
        &mut self,
        file: FileHandle,
        stateid: StateId,
        wanted: &Wanted,
        set: &mut AttributeSet,
    ) -> Result<(), Status> {
        if let Some(size_bytes) = wanted.size_bytes {
            self.file_for(stateid, file, Share::WRITE)?.set_size(self.caller, size_bytes)?;
            set.insert(SIZE);
        }
        if !wanted.change.is_empty() {
            self.export.tree.set(self.caller, file, &wanted.change)?;
        }
        *set = wanted.set;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_a_plain_number() {
        assert_eq!(parse_owner(b"1000"), Ok(1000));
        for other in [&b"+5"[..], b"root", b"root@example.org", b"4294967295", b"99999999999"] {
            assert_eq!(parse_owner(other), Err(Status::BadOwner), "{other:?}");
        }
        for no_name in [&b""[..], b"\xff"] {
            assert_eq!(parse_owner(no_name), Err(Status::Inval));
        }
    }
}
