//! Names: found, listed, made, moved and removed (RFC 8881, 18.1, 18.4, 18.9, 18.13, 18.14, 18.23 to 18.26).

use super::attributes::{WRITE_ONLY, Wanted};
use super::{Cursor, Place};
use crate::tree::{Access, Change, Changed, Entry, Name, NewFile, Result};
use crate::wire::arguments::{Create, CreateKind, ReadDir};
use crate::wire::attributes::{AttributeSet, number};
use crate::wire::status::Status;
use crate::wire::types::{FileType, LINK_BYTES_MAX};
use crate::wire::xdr::Encoder;
use std::ops::ControlFlow;

/// The bits of ACCESS.
const READ: u32 = 0x01;
const LOOKUP: u32 = 0x02;
const MODIFY: u32 = 0x04;
const EXTEND: u32 = 0x08;
const DELETE: u32 = 0x10;
const EXECUTE: u32 = 0x20;
/// Of minor version 2: extended attributes are read, written and listed with the right to the data.
const XATTR_READ: u32 = 0x40;
const XATTR_WRITE: u32 = 0x80;
const XATTR_LIST: u32 = 0x100;

/// What ends a listing: "no more entries", and whether that is all.
const LIST_END_BYTES: usize = 8;
const VERIFIER_BYTES: usize = 8;
/// Names and attributes of one READDIR; a client that asks for more gets less.
const LIST_BYTES_MAX: usize = 64 * 1024;

impl Cursor<'_> {
    pub(super) fn access(&mut self, wanted: u32, reply: &mut Encoder) -> Result<()> {
        let file = self.current()?.file;
        let kind = self.export.tree.attributes(file)?.kind;
        let (mut read, mut write, execute) = match kind {
            FileType::Directory => (READ, MODIFY | EXTEND | DELETE, LOOKUP),
            _ => (READ, MODIFY | EXTEND, EXECUTE),
        };
        let may_have_xattrs = matches!(kind, FileType::Directory | FileType::Regular);
        if self.minor_version >= 2 && may_have_xattrs && self.export.tree.has_xattrs() {
            read |= XATTR_READ | XATTR_LIST;
            write |= XATTR_WRITE;
        }
        let asked = Access {
            read: wanted & read != 0,
            write: wanted & write != 0 && !self.export.policy.read_only,
            execute: wanted & execute != 0,
        };
        let may = self.export.tree.access(self.caller, file, asked)?;
        let allowed = [(may.read, read), (may.write, write), (may.execute, execute)]
            .into_iter()
            .fold(0, |all, (may, bits)| if may { all | bits } else { all });
        reply.u32(wanted & (read | write | execute));
        reply.u32(wanted & allowed);
        Ok(())
    }

    pub(super) fn lookup(&mut self, name: &[u8]) -> Result<()> {
        let directory = self.current()?.file;
        let file = self.export.tree.lookup(self.caller, directory, Name::new(name)?)?;
        self.current = Some(Place::new(file));
        Ok(())
    }

    pub(super) fn parent(&mut self) -> Result<()> {
        let parent = self.export.tree.parent(self.caller, self.current()?.file)?;
        self.current = Some(Place::new(parent));
        Ok(())
    }

    pub(super) fn read_link(&mut self, reply: &mut Encoder) -> Result<()> {
        reply.opaque(&self.export.tree.read_link(self.caller, self.current()?.file)?);
        Ok(())
    }

    pub(super) fn read_directory(&mut self, asked: &ReadDir, reply: &mut Encoder) -> Result<()> {
        let directory = self.current()?.file;
        if matches!(asked.cookie, 1 | 2) {
            return Err(Status::BadCookie);
        }
        if !asked.wanted.and(&WRITE_ONLY).is_empty() {
            return Err(Status::Inval);
        }
        // A cookie is good for as long as its directory is, so that there is but one verifier.
        if asked.verifier != [0; VERIFIER_BYTES] {
            return Err(Status::NotSame);
        }
        let start = reply.mark();
        reply.u64(0);
        let most = (asked.reply_bytes_max as usize).min(self.room(reply)).min(LIST_BYTES_MAX);
        let most = most.checked_sub(LIST_END_BYTES).filter(|&most| most >= VERIFIER_BYTES);
        let most = most.ok_or(Status::TooSmall)?;
        let (mut entries, mut names_bytes) = (0u32, 0);
        let mut failed = None;
        let ended = self.export.tree.read_directory(
            self.caller,
            directory,
            asked.cookie,
            &mut |entry| {
                let before = reply.mark();
                match self.encode_entry(&entry, &asked.wanted, reply) {
                    // It went away while we looked, or isn't to be seen.
                    Err(Status::NoEnt | Status::Stale) => {
                        reply.take_back(before);
                        return ControlFlow::Continue(());
                    }
                    Err(status) => {
                        failed = Some(status);
                        return ControlFlow::Break(());
                    }
                    Ok(()) => {}
                }
                names_bytes += entry.name.len() + 8;
                let hint = asked.names_bytes_max as usize;
                if reply.since(start) > most || (hint > 0 && entries > 0 && names_bytes > hint) {
                    reply.take_back(before);
                    return ControlFlow::Break(());
                }
                entries += 1;
                ControlFlow::Continue(())
            },
        )?;
        if let Some(status) = failed {
            return Err(status);
        }
        if !ended && entries == 0 {
            return Err(Status::TooSmall);
        }
        reply.bool(false);
        reply.bool(ended);
        Ok(())
    }

    fn encode_entry(
        &self,
        entry: &Entry,
        wanted: &AttributeSet,
        reply: &mut Encoder,
    ) -> Result<()> {
        reply.bool(true);
        reply.u64(entry.cookie);
        reply.opaque(entry.name);
        if wanted.is_empty() {
            wanted.encode(reply);
            reply.u32(0);
            return Ok(());
        }
        match (entry.file)() {
            Ok((file, attributes)) => self.source_of(file, attributes).encode(wanted, reply),
            Err(gone @ (Status::NoEnt | Status::Stale)) => Err(gone),
            // One file that can't be looked at doesn't hide the others from who can bear it.
            Err(status) if wanted.has(number::RDATTR_ERROR) => {
                AttributeSet::of(&[number::RDATTR_ERROR]).encode(reply);
                reply.u32(4);
                reply.u32(status.number());
                Ok(())
            }
            Err(status) => Err(status),
        }
    }

    pub(super) fn create(&mut self, asked: &Create, reply: &mut Encoder) -> Result<()> {
        let directory = self.current()?.file;
        let (kind, mode) = match asked.kind {
            CreateKind::Directory => (NewFile::Directory, 0o700),
            CreateKind::Symlink(b"") => return Err(Status::Inval),
            CreateKind::Symlink(to) if to.len() > LINK_BYTES_MAX - 1 => {
                return Err(Status::NameTooLong);
            }
            CreateKind::Symlink(to) => (NewFile::Symlink(to), 0o777),
            CreateKind::Device { kind, major, minor } => {
                (NewFile::Special(kind, major, minor), 0o600)
            }
            CreateKind::Special(kind) => (NewFile::Special(kind, 0, 0), 0o600),
            CreateKind::Bad => return Err(Status::BadType),
        };
        let name = Name::new(asked.name)?;
        let wanted = Wanted::parse(&asked.values, self.minor_version)?;
        if wanted.size_bytes.is_some() {
            return Err(Status::Inval);
        }
        let tree = &self.export.tree;
        let mode = wanted.change.mode.unwrap_or(mode);
        let (file, changed) = tree.create(self.caller, directory, name, kind, mode)?;
        // A directory takes the bits of its parent's group; a symlink has no mode of its own.
        let rest = Change { mode: None, ..wanted.change };
        if !rest.is_empty() {
            tree.set(self.caller, file, &rest)?;
        }
        self.current = Some(Place::new(file));
        encode_changed(&changed, reply);
        wanted.set.encode(reply);
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &[u8], reply: &mut Encoder) -> Result<()> {
        let directory = self.current()?.file;
        let name = Name::new(name)?;
        encode_changed(&self.export.tree.remove(self.caller, directory, name)?, reply);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &[u8], to: &[u8], reply: &mut Encoder) -> Result<()> {
        let source = self.saved.ok_or(Status::NoFileHandle)?.file;
        let target = self.current()?.file;
        let (from, to) = ((source, Name::new(from)?), (target, Name::new(to)?));
        let (source, target) = self.export.tree.rename(self.caller, from, to)?;
        encode_changed(&source, reply);
        encode_changed(&target, reply);
        Ok(())
    }

    pub(super) fn link(&mut self, name: &[u8], reply: &mut Encoder) -> Result<()> {
        let file = self.saved.ok_or(Status::NoFileHandle)?.file;
        let directory = self.current()?.file;
        let tree = &self.export.tree;
        if tree.attributes(file)?.kind == FileType::Directory {
            return Err(Status::IsDir);
        }
        encode_changed(&tree.link(self.caller, file, directory, Name::new(name)?)?, reply);
        Ok(())
    }
}

/// Nothing was between: a client need not read the directory again.
pub(super) fn encode_changed(changed: &Changed, reply: &mut Encoder) {
    reply.bool(true);
    reply.u64(changed.before);
    reply.u64(changed.after);
}
