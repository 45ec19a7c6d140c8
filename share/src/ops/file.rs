//! Reading and writing (RFC 8881, 18.3, 18.22, 18.32).

use super::Cursor;
use crate::buffers::SMALL_BYTES;
use crate::tree::{OpenFile, Result};
use crate::wire::status::Status;
use crate::wire::types::{FileHandle, IO_BYTES_MAX, Share, Stability, StateId};
use crate::wire::xdr::Encoder;
use std::sync::Arc;

/// What stands around the data in the result of a READ.
const READ_AROUND_BYTES: usize = 16;

impl Cursor<'_> {
    /// The file behind a stateid, if it allows `access`. A special stateid is no open: then the caller has to
    /// have the right itself.
    pub(super) fn file_for(
        &mut self,
        stateid: StateId,
        file: FileHandle,
        access: Share,
    ) -> Result<Arc<dyn OpenFile>> {
        let stateid = self.stateid(stateid)?;
        let client = self.holder(stateid)?;
        let held = self
            .export
            .with_state(|state| state.for_access(self.now, client, stateid, file, access))?;
        if let Some(held) = held {
            if held.uid != self.caller.uid {
                // A stateid is no secret: who didn't open the file needs the right to it.
                self.permit(file, access, true)?;
            }
            return Ok(held.file);
        }
        let open = self.export.tree.open(file)?;
        self.permit(file, access, false)?;
        Ok(open)
    }

    /// How much of `count` the reply may have, with `around_bytes` around it, in a buffer for that.
    pub(super) fn room_for_data(
        &self,
        count: u32,
        around_bytes: usize,
        reply: &mut Encoder,
    ) -> usize {
        let room = self.room(reply).saturating_sub(around_bytes);
        let most = room.min(count.min(IO_BYTES_MAX) as usize);
        if most + around_bytes <= reply.spare_bytes() {
            return most;
        }
        match self.export.buffers.try_take() {
            Some(large) => {
                reply.move_to(large);
                most
            }
            // All are in use: a short answer now instead of a whole one later.
            None => most.min(SMALL_BYTES / 2),
        }
    }

    pub(super) fn read(
        &mut self,
        stateid: StateId,
        offset: u64,
        count: u32,
        reply: &mut Encoder,
    ) -> Result<()> {
        let file = self.current()?.file;
        let open = self.file_for(stateid, file, Share::READ)?;
        let most = self.room_for_data(count, READ_AROUND_BYTES, reply);
        let eof_at = reply.mark();
        reply.bool(false);
        let mut eof = false;
        reply.opaque_filled(most, |into| {
            let (read, ends) = open.read(self.caller, offset, into)?;
            eof = ends;
            Ok::<_, Status>(read)
        })?;
        reply.patch_u32(eof_at, eof.into());
        Ok(())
    }

    pub(super) fn write(
        &mut self,
        stateid: StateId,
        offset: u64,
        stability: Stability,
        data: &[u8],
        reply: &mut Encoder,
    ) -> Result<()> {
        let file = self.current()?.file;
        let open = self.file_for(stateid, file, Share::WRITE)?;
        let verifier = self.export.tree.write_verifier();
        let written = open.write(self.caller, offset, data, stability)?;
        reply.u32(written as u32);
        reply.u32(match stability {
            Stability::Unstable => Stability::Unstable,
            _ => Stability::FileSync,
        } as u32);
        reply.u64(verifier);
        Ok(())
    }

    /// Always of the whole file.
    pub(super) fn commit(&mut self, offset: u64, count: u32, reply: &mut Encoder) -> Result<()> {
        let file = self.current()?.file;
        offset.checked_add(count.into()).ok_or(Status::Inval)?;
        reply.u64(self.export.tree.open(file)?.commit()?);
        Ok(())
    }
}
