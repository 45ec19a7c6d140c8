//! Byte-range locks (RFC 8881, 9.1 to 9.6; 18.10 to 18.12).

use super::State;
use super::claims::Claims;
use super::ranges::Range;
use super::table::{Entry, LockState, Place};
use super::waiters::Asked;
use crate::wire::arguments::Locker;
use crate::wire::status::Status;
use crate::wire::types::{ClientId, FileHandle, Share, StateId};
use std::time::Instant;

/// The lock that stands in the way, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub range: Range,
    pub exclusive: bool,
    pub client: ClientId,
    pub owner: Box<[u8]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockOutcome {
    Locked(StateId),
    Denied(Conflict),
}

#[derive(Clone, Copy, Debug)]
pub struct LockRequest<'a> {
    pub client: ClientId,
    pub locker: Locker<'a>,
    pub file: FileHandle,
    pub range: Range,
    pub exclusive: bool,
    /// If it is denied, it is asked for again.
    pub waits: bool,
}

impl<F: Clone> State<F> {
    /// `Delay`: somebody was in the way and is gone. Once that is durable, it is tried again.
    pub fn lock(&mut self, now: Instant, request: LockRequest) -> Result<LockOutcome, Status> {
        let LockRequest { client, locker, file, range, exclusive, waits } = request;
        let (open, known) = match locker {
            Locker::New { open, owner } => {
                let open = self.find_open(client, open, file)?;
                (open, self.lock_owner(client, owner, file))
            }
            Locker::Known(stateid) => {
                let place = self.find_locks(client, stateid, file)?;
                (self.states.locks(place).open, Some(place))
            }
        };
        let needed = if exclusive { Share::WRITE } else { Share::READ };
        if !self.states.open(open).access.contains(needed) {
            return Err(Status::OpenMode);
        }
        let owner: Box<[u8]> = match locker {
            Locker::New { owner, .. } => owner.into(),
            Locker::Known(_) => self.states.locks(known.expect("found above")).owner.clone(),
        };
        let asked = Asked { client, owner: &owner, file, range, exclusive };
        if let Some(conflict) = self.in_the_way(now, asked, known) {
            if !self.is_expired(now, conflict.client) {
                if waits {
                    self.wait_for_lock(now, asked);
                } else {
                    self.stop_waiting(asked);
                }
                return Ok(LockOutcome::Denied(conflict));
            }
            self.remove_client(conflict.client);
            return Err(Status::Delay);
        }
        self.stop_waiting(asked);
        if self.files[&file].ranges.len() >= self.limits.locked_ranges_per_file {
            return Err(Status::Resource);
        }
        let place = match (known, locker) {
            (Some(place), _) => place,
            (None, Locker::New { owner, .. }) => self.new_lock_owner(client, owner, file, open)?,
            (None, Locker::Known(_)) => unreachable!("it was found above"),
        };
        self.record(client, Claims::of_lock(file));
        let file = self.files.get_mut(&file).expect("it is open");
        file.ranges.lock(range, exclusive, place);
        self.freed(request.file); // it may have been exclusive before
        Ok(LockOutcome::Locked(self.states.advance(place)))
    }

    /// Whether such a lock would be granted.
    pub fn test_lock(
        &mut self,
        now: Instant,
        client: ClientId,
        owner: &[u8],
        file: FileHandle,
        range: Range,
        exclusive: bool,
    ) -> Option<Conflict> {
        let known = self.lock_owner(client, owner, file);
        self.conflict(file, range, exclusive, known)
            .filter(|conflict| !self.is_expired(now, conflict.client))
    }

    pub fn unlock(
        &mut self,
        client: ClientId,
        stateid: StateId,
        file: FileHandle,
        range: Range,
    ) -> Result<StateId, Status> {
        let place = self.find_locks(client, stateid, file)?;
        let known = self.files.get_mut(&file).expect("a file with lock owners is known");
        known.ranges.unlock(range, place);
        self.freed(file);
        Ok(self.states.advance(place))
    }

    /// A lock that is held, or kept for who has waited longer. In the grace nothing is kept: what is claimed
    /// was held.
    fn in_the_way(&self, now: Instant, asked: Asked, known: Option<Place>) -> Option<Conflict> {
        let held = self.conflict(asked.file, asked.range, asked.exclusive, known);
        held.or_else(|| if self.in_grace() { None } else { self.kept_for(now, asked) })
    }

    pub(super) fn conflict(
        &self,
        file: FileHandle,
        range: Range,
        exclusive: bool,
        except: Option<Place>,
    ) -> Option<Conflict> {
        let held = self.files.get(&file)?.ranges.conflict(range, exclusive, except)?;
        let locks = self.states.locks(held.holder);
        Some(Conflict {
            range: held.range,
            exclusive: held.exclusive,
            client: locks.client,
            owner: locks.owner.clone(),
        })
    }

    fn find_locks(
        &self,
        client: ClientId,
        stateid: StateId,
        file: FileHandle,
    ) -> Result<Place, Status> {
        let place = self.states.find(client, stateid)?;
        match self.states.get(place) {
            Entry::Locks(locks) if locks.file == file => Ok(place),
            _ => Err(Status::BadStateId),
        }
    }

    pub(super) fn lock_owner(
        &self,
        client: ClientId,
        owner: &[u8],
        file: FileHandle,
    ) -> Option<Place> {
        self.files.get(&file)?.lock_owners.iter().copied().find(|&place| {
            let locks = self.states.locks(place);
            locks.client == client && *locks.owner == *owner
        })
    }

    fn new_lock_owner(
        &mut self,
        client: ClientId,
        owner: &[u8],
        file: FileHandle,
        open: Place,
    ) -> Result<Place, Status> {
        self.count_state(client)?;
        let locks = LockState { client, owner: owner.into(), file, open, seqid: 0 };
        let place = self.states.insert(Entry::Locks(locks));
        self.files.get_mut(&file).expect("it is open").lock_owners.push(place);
        Ok(place)
    }

    /// With all that is locked.
    pub(super) fn remove_locks(&mut self, place: Place) {
        let Entry::Locks(locks) = self.states.remove(place) else {
            unreachable!("only lock owners are removed here")
        };
        self.uncount_state(locks.client);
        let file = self.files.get_mut(&locks.file).expect("a file with lock owners is known");
        file.ranges.unlock(Range::ALL, place);
        file.lock_owners.retain(|&other| other != place);
        self.freed(locks.file);
    }
}
