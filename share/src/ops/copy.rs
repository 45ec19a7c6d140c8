//! Data that goes from file to file without passing the client (RFC 7862, 15.2, 15.13).

use super::{Cursor, Place};
use crate::tree::{Range, Result};
use crate::wire::arguments42::Copy;
use crate::wire::status::Status;
use crate::wire::types::{FileHandle, Share, Stability, StateId};
use crate::wire::xdr::Encoder;

/// Done before the reply: a client waits no longer than for a few writes, and asks for the rest anew.
const COPY_BYTES_MAX: u64 = 16 << 20;

impl Cursor<'_> {
    pub(super) fn copy(
        &mut self,
        asked: &Copy,
        from_other_server: bool,
        reply: &mut Encoder,
    ) -> Result<()> {
        if from_other_server {
            return Err(Status::NotSupp);
        }
        let (source, target) = self.source_and_target(asked)?;
        let size_bytes = self.export.tree.attributes(source)?.size_bytes;
        let left = size_bytes.checked_sub(asked.source_offset).ok_or(Status::Inval)?;
        let length = if asked.length == 0 { left } else { asked.length };
        if length > left {
            return Err(Status::Inval);
        }
        asked.target_offset.checked_add(length).ok_or(Status::FBig)?;
        let verifier = self.export.tree.write_verifier();
        let copied = self.export.tree.copy(
            self.caller,
            (source, asked.source_offset),
            (target, asked.target_offset),
            length.min(COPY_BYTES_MAX),
        )?;
        reply.u32(0); // it is done: nothing is called back
        reply.u64(copied);
        reply.u32(Stability::Unstable as u32);
        reply.u64(verifier);
        reply.bool(true); // from the first byte to the last
        reply.bool(true);
        Ok(())
    }

    pub(super) fn clone_range(&mut self, asked: &Copy) -> Result<()> {
        let (source, target) = self.source_and_target(asked)?;
        // Zero is "to the end" here too.
        let length = asked.length.max(1);
        Range::new(asked.source_offset, length)?;
        Range::new(asked.target_offset, length)?;
        let (from, to) = ((source, asked.source_offset), (target, asked.target_offset));
        self.export.tree.clone_range(self.caller, from, to, asked.length)
    }

    /// The saved and the current file, if their stateids allow it.
    fn source_and_target(&mut self, asked: &Copy) -> Result<(FileHandle, FileHandle)> {
        let Place { file: source, stateid } = self.saved.ok_or(Status::NoFileHandle)?;
        let target = self.current()?.file;
        let given = if asked.source == StateId::CURRENT { stateid } else { asked.source };
        self.file_for(given, source, Share::READ)?;
        self.file_for(asked.target, target, Share::WRITE)?;
        Ok((source, target))
    }
}
