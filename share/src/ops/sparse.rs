//! Files with holes (RFC 7862, 15.1, 15.4, 15.5, 15.10, 15.11).

use super::Cursor;
use crate::tree::{Content, OpenFile, Range, Result};
use crate::wire::arguments42::Region;
use crate::wire::status::Status;
use crate::wire::types::{Share, StateId};
use crate::wire::xdr::Encoder;
use std::sync::Arc;

const DATA: u32 = 0;
const HOLE: u32 = 1;

/// What READ_PLUS has before the first piece, and before the bytes of a piece; a hole has no bytes.
const READ_PLUS_AROUND_BYTES: usize = 32;
const DATA_HEAD_BYTES: usize = 16;
const HOLE_BYTES: usize = 20;
/// Bounds the searches of one request; the rest is asked for anew.
const PIECES_MAX: u32 = 64;

impl Cursor<'_> {
    pub(super) fn allocate(&mut self, region: &Region) -> Result<()> {
        let (open, range) = self.writable(region)?;
        open.allocate(self.caller, range)
    }

    pub(super) fn deallocate(&mut self, region: &Region) -> Result<()> {
        let (open, range) = self.writable(region)?;
        open.deallocate(self.caller, range)
    }

    fn writable(&mut self, region: &Region) -> Result<(Arc<dyn OpenFile>, Range)> {
        let range = Range::new(region.offset, region.length)?;
        let file = self.current()?.file;
        Ok((self.file_for(region.stateid, file, Share::WRITE)?, range))
    }

    /// No hint is taken: the kernel sees by itself how a file is read.
    pub(super) fn advise(&mut self, region: &Region, reply: &mut Encoder) -> Result<()> {
        let file = self.current()?.file;
        self.file_for(region.stateid, file, Share::NONE)?;
        reply.u32(0);
        Ok(())
    }

    pub(super) fn seek(
        &mut self,
        stateid: StateId,
        offset: u64,
        what: u32,
        reply: &mut Encoder,
    ) -> Result<()> {
        let what = match what {
            DATA => Content::Data,
            HOLE => Content::Hole,
            _ => return Err(Status::UnionNotSupp),
        };
        let file = self.current()?.file;
        let found = self.file_for(stateid, file, Share::READ)?.next(what, offset)?;
        let size_bytes = self.export.tree.attributes(file)?.size_bytes;
        let at = found.unwrap_or(size_bytes);
        reply.bool(at >= size_bytes);
        reply.u64(at);
        Ok(())
    }

    /// Data and holes in turn. A reply never takes more than one of READ with as many bytes: clients have
    /// made room for that.
    pub(super) fn read_plus(
        &mut self,
        stateid: StateId,
        offset: u64,
        count: u32,
        reply: &mut Encoder,
    ) -> Result<()> {
        let file = self.current()?.file;
        let open = self.file_for(stateid, file, Share::READ)?;
        let most = self.room_for_data(count, READ_PLUS_AROUND_BYTES, reply);
        let head = reply.mark();
        reply.bool(false);
        let pieces_at = reply.mark();
        reply.u32(0);
        let start = reply.mark();
        let (mut at, end) = (offset, offset.saturating_add(count.into()));
        for pieces in 1..=PIECES_MAX {
            let room = (most + DATA_HEAD_BYTES).saturating_sub(reply.since(start));
            if at >= end || room < HOLE_BYTES {
                break;
            }
            let data = match open.next(Content::Data, at) {
                Ok(Some(data)) => data,
                Ok(None) => self.export.tree.attributes(file)?.size_bytes,
                Err(Status::NxIo) => break, // it ends before
                Err(status) => return Err(status),
            };
            let reached = if data > at {
                let hole_end = data.min(end);
                reply.u32(HOLE);
                reply.u64(at);
                reply.u64(hole_end - at);
                hole_end
            } else {
                let hole = open.next(Content::Hole, at)?.unwrap_or(end).min(end);
                let bytes = hole.saturating_sub(at).min((room - DATA_HEAD_BYTES) as u64);
                self.read_piece(&*open, at, bytes as usize, reply)?
            };
            if reached == at {
                break; // it was cut off meanwhile
            }
            at = reached;
            reply.patch_u32(pieces_at, pieces);
        }
        let ends = at >= self.export.tree.attributes(file)?.size_bytes;
        reply.patch_u32(head, ends.into());
        Ok(())
    }

    /// Where what was read ends; nothing is said of nothing.
    fn read_piece(
        &self,
        open: &dyn OpenFile,
        at: u64,
        bytes: usize,
        reply: &mut Encoder,
    ) -> Result<u64> {
        let piece = reply.mark();
        reply.u32(DATA);
        reply.u64(at);
        let mut filled = 0;
        reply.opaque_filled(bytes, |into| {
            filled = open.read(self.caller, at, into)?.0;
            Ok::<_, Status>(filled)
        })?;
        if filled == 0 {
            reply.take_back(piece);
        }
        Ok(at + filled as u64)
    }
}
