//! Opens and share reservations (RFC 8881, 9.7 to 9.11).

use super::State;
use super::claims::Claims;
use super::ranges::Ranges;
use super::table::{Entry, Place};
use super::waiters::Waiter;
use crate::wire::status::Status;
use crate::wire::types::{ClientId, FileHandle, Share, StateId};
use std::time::Instant;

pub struct Open<F> {
    pub client: ClientId,
    pub owner: Box<[u8]>,
    pub file: FileHandle,
    pub access: Share,
    pub deny: Share,
    /// The accesses and denials that were ever asked for: only to those can it be lowered.
    asked: Vec<(Share, Share)>,
    pub seqid: u32,
    pub held: F,
}

/// What is open or locked of one file.
#[derive(Default)]
pub struct File {
    pub opens: Vec<Place>,
    pub lock_owners: Vec<Place>,
    pub ranges: Ranges,
    /// In the order in which they came.
    pub waiters: Vec<Waiter>,
}

#[derive(Clone, Copy, Debug)]
pub struct OpenRequest<'a> {
    pub client: ClientId,
    pub owner: &'a [u8],
    pub file: FileHandle,
    pub access: Share,
    pub deny: Share,
}

impl<F: Clone> State<F> {
    /// The same owner that opens a file again widens the open that it has. `Delay`: somebody was in the way and
    /// is gone. Once that is durable, it is tried again.
    pub fn open(&mut self, now: Instant, asked: OpenRequest, held: F) -> Result<StateId, Status> {
        self.refuse_if_denied(now, &asked)?;
        let mine = self.files.get(&asked.file).and_then(|file| {
            file.opens.iter().copied().find(|&place| {
                let open = self.states.open(place);
                open.client == asked.client && *open.owner == *asked.owner
            })
        });
        self.record(asked.client, Claims::of_open(!asked.deny.is_none()));
        if let Some(place) = mine {
            let Entry::Open(open) = self.states.get_mut(place) else { unreachable!("found above") };
            open.access = open.access.with(asked.access);
            open.deny = open.deny.with(asked.deny);
            if !open.asked.contains(&(asked.access, asked.deny)) {
                open.asked.push((asked.access, asked.deny));
            }
            return Ok(self.states.advance(place));
        }
        self.count_state(asked.client)?;
        let place = self.states.insert(Entry::Open(Open {
            client: asked.client,
            owner: asked.owner.into(),
            file: asked.file,
            access: asked.access,
            deny: asked.deny,
            asked: vec![(asked.access, asked.deny)],
            seqid: 1,
            held,
        }));
        self.files.entry(asked.file).or_default().opens.push(place);
        Ok(self.states.stateid(place))
    }

    /// What is open stands against it, its owner's own opens too, unless it is of a client whose lease is over.
    fn refuse_if_denied(&mut self, now: Instant, asked: &OpenRequest) -> Result<(), Status> {
        let Some(other) = self.denier(asked.file, asked.access, asked.deny) else {
            return Ok(());
        };
        if !self.is_expired(now, other) {
            return Err(Status::ShareDenied);
        }
        self.remove_client(other);
        Err(Status::Delay)
    }

    fn denier(&self, file: FileHandle, access: Share, deny: Share) -> Option<ClientId> {
        let mut opens = self.files.get(&file)?.opens.iter().map(|&place| self.states.open(place));
        opens
            .find(|open| open.deny.overlaps(access) || open.access.overlaps(deny))
            .map(|open| open.client)
    }

    /// What a read or a write with this stateid goes to; `None` for a special one, which stands for no
    /// open.
    pub fn for_access(
        &mut self,
        now: Instant,
        client: ClientId,
        stateid: StateId,
        file: FileHandle,
        access: Share,
    ) -> Result<Option<F>, Status> {
        if stateid.is_special() {
            if stateid == StateId::BYPASS && !access.writes() {
                return Ok(None);
            }
            if self.is_contested(Claims::OPENS) {
                return Err(Status::Grace);
            }
            return match self.denier(file, access, Share::NONE) {
                Some(other) if !self.is_expired(now, other) => Err(Status::Locked),
                _ => Ok(None),
            };
        }
        let open = self.open_behind(client, stateid)?;
        let open = self.states.open(open);
        if open.file != file {
            return Err(Status::BadStateId);
        }
        if !open.access.contains(access) {
            return Err(Status::OpenMode);
        }
        Ok(Some(open.held.clone()))
    }

    /// The open of this stateid, or the one that its locks go with.
    fn open_behind(&self, client: ClientId, stateid: StateId) -> Result<Place, Status> {
        let place = self.states.find(client, stateid)?;
        Ok(match self.states.get(place) {
            Entry::Open(_) => place,
            Entry::Locks(locks) => locks.open,
        })
    }

    pub(super) fn find_open(
        &self,
        client: ClientId,
        stateid: StateId,
        file: FileHandle,
    ) -> Result<Place, Status> {
        let place = self.states.find(client, stateid)?;
        match self.states.get(place) {
            Entry::Open(open) if open.file == file => Ok(place),
            _ => Err(Status::BadStateId),
        }
    }

    pub fn downgrade(
        &mut self,
        client: ClientId,
        stateid: StateId,
        file: FileHandle,
        access: Share,
        deny: Share,
    ) -> Result<StateId, Status> {
        let place = self.find_open(client, stateid, file)?;
        let Entry::Open(open) = self.states.get_mut(place) else {
            unreachable!("found as an open")
        };
        // What remains must be the union of some of what was asked for.
        let within = open.asked.iter().filter(|(a, d)| access.contains(*a) && deny.contains(*d));
        let union =
            within.fold((Share::NONE, Share::NONE), |(a, d), one| (a.with(one.0), d.with(one.1)));
        if access.is_none() || union != (access, deny) {
            return Err(Status::Inval);
        }
        open.access = access;
        open.deny = deny;
        open.asked.retain(|(a, d)| access.contains(*a) && deny.contains(*d));
        Ok(self.states.advance(place))
    }

    /// Ends an open, with the locks that go with it.
    pub fn close(
        &mut self,
        client: ClientId,
        stateid: StateId,
        file: FileHandle,
    ) -> Result<(), Status> {
        let place = self.find_open(client, stateid, file)?;
        self.remove_open(place);
        Ok(())
    }

    pub(super) fn remove_open(&mut self, place: Place) {
        let Entry::Open(open) = self.states.remove(place) else {
            unreachable!("only opens are closed")
        };
        self.uncount_state(open.client);
        let file = self.files.get_mut(&open.file).expect("a file that is open is known");
        file.opens.retain(|&other| other != place);
        let with_it: Vec<Place> = file
            .lock_owners
            .iter()
            .copied()
            .filter(|&locks| self.states.locks(locks).open == place)
            .collect();
        for locks in with_it {
            self.remove_locks(locks);
        }
        self.stop_waiting_if_closed(open.client, open.file);
        let file = &self.files[&open.file];
        if file.opens.is_empty() && file.lock_owners.is_empty() {
            self.files.remove(&open.file);
        }
    }

    pub(super) fn opens_of(&self, client: ClientId) -> impl Iterator<Item = Place> {
        self.states
            .iter()
            .filter(move |(_, entry)| matches!(entry, Entry::Open(open) if open.client == client))
            .map(|(place, _)| place)
    }

    /// Whether a stateid is good, without using it.
    pub fn test(&self, client: ClientId, stateid: StateId) -> Result<(), Status> {
        self.states.find(client, stateid).map(|_| ())
    }

    /// Ends the state of a lock owner that has no locks any more.
    pub fn free(&mut self, client: ClientId, stateid: StateId) -> Result<(), Status> {
        let place = self.states.find(client, stateid)?;
        match self.states.get(place) {
            Entry::Open(_) => Err(Status::LocksHeld),
            Entry::Locks(locks) if self.files[&locks.file].ranges.has_any(place) => {
                Err(Status::LocksHeld)
            }
            Entry::Locks(_) => {
                self.remove_locks(place);
                Ok(())
            }
        }
    }
}
