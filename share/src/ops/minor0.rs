//! What only minor version 0 has: clients without sessions, and requests that are numbered by their owner
//! (RFC 7530). What they do is done as in the other versions.

use super::open::encode_stateid;
use super::{Cursor, Export, Failed, Marks, Place};
use crate::state::{Message, Numbered, Replies40, Turn};
use crate::tree::Result;
use crate::wire::arguments::{Locker, Number, Operation};
use crate::wire::arguments40::{self, Operation40};
use crate::wire::status::{OK, Status};
use crate::wire::types::{ClientId, StateId};
use crate::wire::xdr::{Decoded, Decoder, Encoder};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a request waits for another of its owner, or for itself, that came before.
const TURN_TIME: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);

impl Export {
    /// An error: the number isn't the owner's next, or there is no such owner.
    pub(super) fn begin_turn(&self, now: Instant, number: Number, asked: Numbered) -> Result<Turn> {
        let until = Instant::now() + TURN_TIME;
        loop {
            match self.with_state(|state| state.begin_turn(now, number, asked))? {
                Turn::Wait if Instant::now() >= until => return Err(Status::Resource),
                Turn::Wait => {
                    drop(self.turn_ended.wait_timeout(self.lock_state(), LOOK));
                }
                turn => return Ok(turn),
            }
        }
    }

    fn replies40(&self) -> MutexGuard<'_, Replies40> {
        self.replies40.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: it is too long to be kept.
    fn begin_message(&self, cursor: &Cursor) -> Option<Message> {
        let until = Instant::now() + TURN_TIME;
        loop {
            let begun = self.replies40().begin(cursor.now, cursor.peer, cursor.record)?;
            if begun != Message::BeingDone || Instant::now() >= until {
                return Some(begun);
            }
            drop(self.turn_ended.wait_timeout(self.lock_state(), LOOK));
        }
    }
}

/// The number of a request that has one.
pub(super) fn numbered<'a>(operation: &Operation<'a>) -> Option<Numbered<'a>> {
    use Operation as O;
    Some(match *operation {
        O::Open(open) => {
            Numbered::Open { client: open.client, owner: open.owner, seqid: open.seqid }
        }
        O::Close { seqid, stateid }
        | O::OpenDowngrade { stateid, seqid, .. }
        | O::V40(Operation40::OpenConfirm { stateid, seqid }) => {
            Numbered::OfOpen { stateid, seqid }
        }
        O::Lock(lock) => match lock.locker {
            Locker::New { open, owner } => Numbered::NewLocks {
                open,
                open_seqid: lock.open_seqid,
                client: lock.client,
                owner,
                lock_seqid: lock.lock_seqid,
            },
            Locker::Known(stateid) => Numbered::OfLocks { stateid, seqid: lock.lock_seqid },
        },
        O::LockU { seqid, stateid, .. } => Numbered::OfLocks { stateid, seqid },
        _ => return None,
    })
}

/// Errors that this version doesn't know.
pub(super) fn status(number: Number, status: Status) -> Status {
    match status {
        // An argument was right, and the client couldn't know.
        Status::WrongType if number == Number::Open => Status::Symlink,
        Status::WrongType => Status::Inval,
        Status::RepTooBig | Status::RepTooBigToCache | Status::TooManyOps => Status::Resource,
        other => other,
    }
}

impl Cursor<'_> {
    /// Does it, unless it was done before.
    pub(super) fn compound40(
        &mut self,
        body: &mut Decoder,
        operations: u32,
        marks: Marks,
        reply: &mut Encoder,
    ) -> Decoded<()> {
        let id = match self.export.begin_message(self) {
            Some(Message::New(id)) => Some(id),
            Some(Message::Repeated(kept)) => {
                reply.take_back(marks.status_at);
                reply.fixed(&kept);
                return Ok(());
            }
            Some(Message::BeingDone) => {
                reply.patch_u32(marks.status_at, Status::Delay.number());
                return Ok(());
            }
            None => None,
        };
        let done = self.operations(body, operations, marks, reply);
        if let Some(id) = id {
            let changed = self.changes && done.is_ok();
            let kept = changed.then(|| reply.written_since(marks.status_at));
            self.export.replies40().end(self.now, id, kept);
            self.export.turn_ended.notify_all();
        }
        done
    }

    /// Does one operation, unless its owner's number says that it was done before.
    pub(super) fn operation40(
        &mut self,
        number: Number,
        body: &mut Decoder,
        reply: &mut Encoder,
    ) -> u32 {
        let result_at = reply.mark();
        let decoded = arguments40::decode(number, body);
        let Some(numbered) = decoded.as_ref().ok().and_then(numbered) else {
            return self.do_operation(number, decoded, reply);
        };
        let ticket = match self.export.begin_turn(self.now, number, numbered) {
            Ok(Turn::Do(ticket)) => ticket,
            Ok(Turn::Repeated(kept)) => {
                reply.fixed(&kept.result);
                if let Some(file) = kept.file {
                    self.current = Some(Place::new(file));
                }
                return kept.status;
            }
            Ok(Turn::Wait) => unreachable!("it has waited"),
            Err(status) => {
                reply.u32(status.number());
                return status.number();
            }
        };
        let status = self.do_operation(number, decoded, reply);
        let file = self.current.filter(|_| number == Number::Open && status == OK);
        let (result, file) = (reply.written_since(result_at), file.map(|place| place.file));
        self.export.with_state(|state| state.end_turn(ticket, number, status, result, file));
        self.export.turn_ended.notify_all();
        status
    }

    pub(super) fn run40(
        &mut self,
        operation: Operation40,
        reply: &mut Encoder,
    ) -> std::result::Result<(), Failed> {
        let (now, principal) = (self.now, self.principal);
        let export = self.export;
        match operation {
            Operation40::OpenConfirm { stateid, .. } => {
                let file = self.current()?.file;
                let confirmed =
                    export.with_state(|state| state.confirm_open(now, stateid, file))?;
                encode_stateid(&confirmed, reply);
            }
            Operation40::ReleaseLockOwner { client, owner } => {
                export.with_state(|state| state.release_lock_owner(now, client, owner))?;
            }
            Operation40::Renew(client) => export.with_state(|state| state.renew40(now, client))?,
            Operation40::SetClientId { verifier, id } => {
                let known =
                    export.with_state(|state| state.set_client_id(now, principal, verifier, id));
                match known {
                    Ok(known) => {
                        reply.u64(known.client.0);
                        reply.fixed(&known.confirm);
                    }
                    // By whom, as a network address: it has told us none.
                    Err(Status::ClidInUse) => {
                        reply.opaque(b"");
                        reply.opaque(b"");
                        return Err(Failed { status: Status::ClidInUse, keeps_result: true });
                    }
                    Err(status) => return Err(status.into()),
                }
            }
            Operation40::SetClientIdConfirm { client, verifier } => export
                .with_state(|state| state.confirm_client_id(now, principal, client, verifier))?,
        }
        Ok(())
    }

    /// Whose stateid this is.
    pub(super) fn holder(&self, stateid: StateId) -> Result<ClientId> {
        match self.minor_version {
            0 if stateid.is_special() => Ok(ClientId(0)), // nobody's, and it needs nobody
            0 => self.export.with_state(|state| state.holder40(self.now, stateid)),
            _ => Ok(self.running()?.client),
        }
    }

    /// The client that says in the operation who it is.
    pub(super) fn client(&self, said: ClientId) -> Result<ClientId> {
        match self.minor_version {
            0 => self.export.with_state(|state| state.renew40(self.now, said)).map(|()| said),
            _ => Ok(self.running()?.client),
        }
    }
}
