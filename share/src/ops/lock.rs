//! Byte-range locks (RFC 8881, 18.10 to 18.12).

use super::open::encode_stateid;
use super::{Cursor, Failed};
use crate::state::{Claims, Conflict, LockOutcome, LockRequest, Range};
use crate::tree::Result;
use crate::wire::arguments::{Lock, LockRange, Locker};
use crate::wire::status::Status;
use crate::wire::types::{ClientId, FileHandle, FileType, StateId};
use crate::wire::xdr::Encoder;

const READ_LOCK: u32 = 1;
const WRITE_LOCK: u32 = 2;

impl Cursor<'_> {
    pub(super) fn lock(
        &mut self,
        asked: &Lock,
        reply: &mut Encoder,
    ) -> std::result::Result<(), Failed> {
        let file = self.lockable()?;
        let range = Range::new(asked.range)?;
        let locker = match asked.locker {
            Locker::New { open, owner } => Locker::New { open: self.stateid(open)?, owner },
            Locker::Known(stateid) => Locker::Known(self.stateid(stateid)?),
        };
        let (Locker::New { open: stateid, .. } | Locker::Known(stateid)) = locker;
        let client = self.holder(stateid)?;
        let (now, exclusive) = (self.now, asked.exclusive);
        let waits = asked.waits && !asked.reclaim;
        let request = LockRequest { client, locker, file, range, exclusive, waits };
        let outcome = self.acquire(client, Claims::of_lock(file), asked.reclaim, |state| {
            state.lock(now, request)
        })?;
        match outcome {
            LockOutcome::Locked(stateid) => {
                self.set_stateid(stateid);
                encode_stateid(&stateid, reply);
                Ok(())
            }
            LockOutcome::Denied(conflict) => Err(denied(&conflict, reply)),
        }
    }

    pub(super) fn test_lock(
        &mut self,
        client: ClientId,
        range: LockRange,
        exclusive: bool,
        owner: &[u8],
        reply: &mut Encoder,
    ) -> std::result::Result<(), Failed> {
        let (client, file) = (self.client(client)?, self.lockable()?);
        let range = Range::new(range)?;
        let conflict = self.export.with_state(|state| {
            if state.is_contested(Claims::of_lock(file)) {
                return Err(Status::Grace);
            }
            Ok(state.test_lock(self.now, client, owner, file, range, exclusive))
        })?;
        conflict.map_or(Ok(()), |conflict| Err(denied(&conflict, reply)))
    }

    pub(super) fn unlock(
        &mut self,
        stateid: StateId,
        range: LockRange,
        reply: &mut Encoder,
    ) -> Result<()> {
        let file = self.lockable()?;
        let (range, stateid) = (Range::new(range)?, self.stateid(stateid)?);
        let client = self.holder(stateid)?;
        let left = self.export.with_state(|state| state.unlock(client, stateid, file, range))?;
        self.set_stateid(left);
        encode_stateid(&left, reply);
        Ok(())
    }

    fn lockable(&self) -> Result<FileHandle> {
        let file = self.current()?.file;
        match self.export.tree.attributes(file)?.kind {
            FileType::Regular => Ok(file),
            FileType::Directory => Err(Status::IsDir),
            FileType::Symlink => Err(Status::Symlink),
            _ => Err(Status::WrongType),
        }
    }
}

/// Says who has it.
fn denied(conflict: &Conflict, reply: &mut Encoder) -> Failed {
    reply.u64(conflict.range.first);
    reply.u64(conflict.range.length());
    reply.u32(if conflict.exclusive { WRITE_LOCK } else { READ_LOCK });
    reply.u64(conflict.client.0);
    reply.opaque(&conflict.owner);
    Failed { status: Status::Denied, keeps_result: true }
}
