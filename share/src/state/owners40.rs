//! What only minor version 0 has: clients without sessions, whose owners of opens and locks each number their
//! requests (RFC 7530, 9.1.3, 9.1.7 to 9.1.11, 16.33, 16.34).
//!
//! ```text
//!  SETCLIENTID ──▶ unconfirmed ──SETCLIENTID_CONFIRM──▶ confirmed, until its lease is over and in the way
//!
//!  open owner:  (unknown) ──OPEN──▶ unconfirmed ──OPEN_CONFIRM, or a claim──▶ confirmed ──idle──▶ (unknown)
//!                                      │    ▲
//!                                      └OPEN┘ what it opened before is closed: it was an old request, come late
//! ```
//! Opens, locks and share reservations are those of the other versions. An owner's requests are done one
//! after the other; the last result is kept, to be told again to who hasn't heard it.

use super::State;
use super::clients::Principal;
use super::table::{Entry, Place};
use crate::wire::arguments::{ExchangeId, Number, Protect};
use crate::wire::status::Status;
use crate::wire::types::{ClientId, FileHandle, StateId, Verifier};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

/// Tells owners of clients from those of the other versions, which may have the same name.
const OWNER_PREFIX: &[u8] = b"NFSv4.0\0";

/// More stateids than clients that were away still ask for.
const GONE_MAX: usize = 4096;

#[derive(Default)]
pub struct Clients40 {
    all: HashMap<ClientId, Client40>,
    /// Opens that were closed by the last request of their owner: it may come again.
    closed: HashMap<[u8; 12], (ClientId, Box<[u8]>)>,
    /// The stateids of clients that are gone, as far as that is remembered: who asks learns that it has lost them.
    gone: HashSet<[u8; 12]>,
    gone_in_order: VecDeque<[u8; 12]>,
    /// When owners are next looked at.
    look: Option<Instant>,
}

#[derive(Default)]
struct Client40 {
    /// What confirms it: the current one, and one that was given since.
    confirm: Verifier,
    next_confirm: Option<Verifier>,
    opens: HashMap<Box<[u8]>, OpenOwner>,
    locks: HashMap<Box<[u8]>, Sequence>,
}

struct OpenOwner {
    confirmed: bool,
    sequence: Sequence,
    last_closed: Option<[u8; 12]>,
}

/// The requests of one owner.
struct Sequence {
    last: u32,
    busy: bool,
    used: Instant,
    kept: Option<Kept>,
}

/// The result of the last request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    number: Number,
    pub status: u32,
    /// With the status, as on the wire.
    pub result: Vec<u8>,
    /// The current filehandle and its stateid afterwards.
    pub file: Option<FileHandle>,
}

/// A request that has a number within its owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbered<'a> {
    Open { client: ClientId, owner: &'a [u8], seqid: u32 },
    OfOpen { stateid: StateId, seqid: u32 },
    NewLocks { open: StateId, open_seqid: u32, client: ClientId, owner: &'a [u8], lock_seqid: u32 },
    OfLocks { stateid: StateId, seqid: u32 },
}

/// The owners whose turn it is, and the numbers of this request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    client: ClientId,
    open: Option<(Box<[u8]>, u32)>,
    lock: Option<(Box<[u8]>, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// To be done, and then given to [`State::end_turn`].
    Do(Ticket),
    /// It was done before: this was the result.
    Repeated(Kept),
    /// Another request of the owner is being done.
    Wait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identified40 {
    pub client: ClientId,
    pub confirm: Verifier,
}

impl Sequence {
    /// The next request will be `seqid`.
    fn before(seqid: u32, now: Instant) -> Self {
        Self { last: seqid.wrapping_sub(1), busy: false, used: now, kept: None }
    }

    fn turn(&self, number: Number, seqid: u32) -> Result<Option<Turn>, Status> {
        match &self.kept {
            _ if self.busy => Ok(Some(Turn::Wait)),
            Some(kept) if seqid == self.last && kept.number == number => {
                Ok(Some(Turn::Repeated(kept.clone())))
            }
            _ if seqid == self.last.wrapping_add(1) => Ok(None),
            _ => Err(Status::BadSeqId),
        }
    }

    fn begin(&mut self, now: Instant) {
        self.busy = true;
        self.used = now;
    }
}

/// After these a request counts as not having come at all.
fn leaves_number(status: u32) -> bool {
    [
        Status::StaleClientId,
        Status::StaleStateId,
        Status::BadStateId,
        Status::BadSeqId,
        Status::BadXdr,
        Status::Resource,
        Status::NoFileHandle,
    ]
    .iter()
    .any(|one| one.number() == status)
}

impl<F: Clone> State<F> {
    pub fn set_client_id(
        &mut self,
        now: Instant,
        principal: Principal,
        verifier: Verifier,
        id: &[u8],
    ) -> Result<Identified40, Status> {
        let owner = [OWNER_PREFIX, id].concat();
        let asked = ExchangeId { verifier, owner: &owner, flags: 0, protect: Protect::None };
        let confirm = u64::from(self.next_number()).to_be_bytes();
        let client = self.exchange_id(now, principal, &asked)?.client;
        let known = self.clients40.all.entry(client).or_default();
        if self.clients[&client].confirmed {
            known.next_confirm = Some(confirm);
        } else {
            known.confirm = confirm;
        }
        Ok(Identified40 { client, confirm })
    }

    pub fn confirm_client_id(
        &mut self,
        now: Instant,
        principal: Principal,
        id: ClientId,
        confirm: Verifier,
    ) -> Result<(), Status> {
        let known = self.clients40.all.get_mut(&id).ok_or(Status::StaleClientId)?;
        if known.next_confirm == Some(confirm) {
            known.confirm = confirm;
            known.next_confirm = None;
        } else if known.confirm != confirm {
            return Err(Status::StaleClientId);
        }
        let client = self.clients.get_mut(&id).ok_or(Status::StaleClientId)?;
        if client.principal != principal {
            return Err(Status::ClidInUse);
        }
        client.renewed = now;
        self.confirm(id);
        Ok(())
    }

    pub fn is_40(&self, id: ClientId) -> bool {
        self.clients40.all.contains_key(&id)
    }

    /// The client goes on.
    pub fn renew40(&mut self, now: Instant, id: ClientId) -> Result<(), Status> {
        self.now = now;
        if !self.clients.contains_key(&id) && self.was_given(id) {
            return Err(Status::Expired); // it was one in this life, and is gone since
        }
        let client = self.clients.get_mut(&id).filter(|client| client.confirmed);
        let client = client.filter(|_| self.clients40.all.contains_key(&id));
        client.ok_or(Status::StaleClientId)?.renewed = now;
        Ok(())
    }

    /// Whose stateid this is; the client goes on. One of an owner that isn't confirmed is good for nothing.
    pub fn holder40(&mut self, now: Instant, stateid: StateId) -> Result<ClientId, Status> {
        let place = self.find40(now, stateid)?;
        match self.states.get(place) {
            Entry::Open(open) if self.needs_confirmation(open.client, &open.owner) => {
                Err(Status::BadStateId)
            }
            entry => Ok(entry.client()),
        }
    }

    fn find40(&mut self, now: Instant, stateid: StateId) -> Result<Place, Status> {
        let client = self.states.get(self.find_any40(stateid)?).client();
        self.renew40(now, client).map_err(|_| Status::BadStateId)?;
        let newest = self.states.find(client, StateId { seqid: 0, ..stateid })?;
        // Zero isn't "the newest" here, it is older than all.
        if stateid.seqid == 0 { Err(Status::OldStateId) } else { Ok(newest) }
    }

    fn find_any40(&self, stateid: StateId) -> Result<Place, Status> {
        match self.states.find_any(stateid) {
            _ if stateid.is_special() => Err(Status::BadStateId),
            Err(Status::BadStateId) if self.clients40.gone.contains(&stateid.other) => {
                Err(Status::Expired)
            }
            found => found,
        }
    }

    pub fn needs_confirmation(&self, client: ClientId, owner: &[u8]) -> bool {
        let owners = self.clients40.all.get(&client).map(|client| &client.opens);
        owners.and_then(|owners| owners.get(owner)).is_some_and(|owner| !owner.confirmed)
    }

    /// Who claims knows that it isn't an old request that came late.
    pub fn confirm_owner(&mut self, client: ClientId, owner: &[u8]) {
        let owners = self.clients40.all.get_mut(&client).map(|client| &mut client.opens);
        if let Some(owner) = owners.and_then(|owners| owners.get_mut(owner)) {
            owner.confirmed = true;
        }
    }

    pub fn confirm_open(
        &mut self,
        now: Instant,
        stateid: StateId,
        file: FileHandle,
    ) -> Result<StateId, Status> {
        self.find40(now, stateid)?;
        let client = self.states.client_of(stateid)?;
        let place = self.find_open(client, stateid, file)?;
        let owner = self.states.open(place).owner.clone();
        if !self.needs_confirmation(client, &owner) {
            return Err(Status::BadStateId);
        }
        self.confirm_owner(client, &owner);
        Ok(self.states.advance(place))
    }

    /// Whether this request is to be done now.
    pub fn begin_turn(
        &mut self,
        now: Instant,
        number: Number,
        asked: Numbered,
    ) -> Result<Turn, Status> {
        match asked {
            Numbered::Open { client, owner, seqid } => {
                self.renew40(now, client)?;
                self.begin_open(now, number, client, owner, seqid)
            }
            Numbered::OfOpen { stateid, seqid } => {
                let (client, owner) = self.owner_of_open(now, stateid)?;
                self.begin_known(now, number, client, owner, seqid)
            }
            Numbered::NewLocks { open, open_seqid, client, owner, lock_seqid } => {
                self.renew40(now, client)?;
                let (holder, open_owner) = self.owner_of_open(now, open)?;
                if holder != client {
                    return Err(Status::BadStateId);
                }
                self.begin_new_locks(
                    now,
                    number,
                    client,
                    (open_owner, open_seqid),
                    (owner, lock_seqid),
                )
            }
            Numbered::OfLocks { stateid, seqid } => {
                let place = self.find_any40(stateid)?;
                let Entry::Locks(locks) = self.states.get(place) else {
                    return Err(Status::BadStateId);
                };
                let (client, owner) = (locks.client, locks.owner.clone());
                self.renew40(now, client).map_err(|_| Status::BadStateId)?;
                let sequence = self.lock_sequence(client, &owner).ok_or(Status::BadStateId)?;
                if let Some(turn) = sequence.turn(number, seqid)? {
                    return Ok(turn);
                }
                sequence.begin(now);
                Ok(Turn::Do(Ticket { client, open: None, lock: Some((owner, seqid)) }))
            }
        }
    }

    fn begin_open(
        &mut self,
        now: Instant,
        number: Number,
        client: ClientId,
        owner: &[u8],
        seqid: u32,
    ) -> Result<Turn, Status> {
        let limit = self.limits.states_per_client;
        let known = self.clients40.all.get_mut(&client).ok_or(Status::StaleClientId)?;
        if let Some(open) = known.opens.get(owner) {
            match open.sequence.turn(number, seqid) {
                Ok(Some(turn)) => return Ok(turn),
                Err(status) if open.confirmed => return Err(status),
                Ok(None) if open.confirmed => {}
                // It never said that the last one was meant.
                Ok(None) | Err(_) => {
                    self.close_opens_of(client, owner);
                    self.forget_owner(client, owner);
                }
            }
        } else if known.opens.len() >= limit {
            return Err(Status::Resource);
        }
        let known = self.clients40.all.get_mut(&client).expect("it was found above");
        let open = known.opens.entry(owner.into()).or_insert_with(|| OpenOwner {
            confirmed: false,
            sequence: Sequence::before(seqid, now),
            last_closed: None,
        });
        open.sequence.begin(now);
        Ok(Turn::Do(Ticket { client, open: Some((owner.into(), seqid)), lock: None }))
    }

    fn begin_known(
        &mut self,
        now: Instant,
        number: Number,
        client: ClientId,
        owner: Box<[u8]>,
        seqid: u32,
    ) -> Result<Turn, Status> {
        let sequence = self.open_sequence(client, &owner).ok_or(Status::BadStateId)?;
        if let Some(turn) = sequence.turn(number, seqid)? {
            return Ok(turn);
        }
        sequence.begin(now);
        Ok(Turn::Do(Ticket { client, open: Some((owner, seqid)), lock: None }))
    }

    fn begin_new_locks(
        &mut self,
        now: Instant,
        number: Number,
        client: ClientId,
        (open_owner, open_seqid): (Box<[u8]>, u32),
        (owner, lock_seqid): (&[u8], u32),
    ) -> Result<Turn, Status> {
        let opens = self.open_sequence(client, &open_owner).ok_or(Status::BadStateId)?;
        if let Some(turn) = opens.turn(number, open_seqid)? {
            return Ok(turn);
        }
        if let Some(locks) = self.lock_sequence(client, owner) {
            if locks.busy {
                return Ok(Turn::Wait);
            }
            // An owner without locks begins anew with any number.
            if lock_seqid != locks.last.wrapping_add(1) && self.has_lock_states(client, owner) {
                return Err(Status::BadSeqId);
            }
        }
        let limit = self.limits.states_per_client;
        let known = self.clients40.all.get_mut(&client).ok_or(Status::StaleClientId)?;
        if known.locks.len() >= limit && !known.locks.contains_key(owner) {
            return Err(Status::Resource);
        }
        let locks = known.locks.entry(owner.into());
        locks.or_insert_with(|| Sequence::before(lock_seqid, now)).begin(now);
        self.open_sequence(client, &open_owner).expect("it was found above").begin(now);
        let (open, lock) = ((open_owner, open_seqid), (owner.into(), lock_seqid));
        Ok(Turn::Do(Ticket { client, open: Some(open), lock: Some(lock) }))
    }

    /// The request was answered with `result`.
    pub fn end_turn(
        &mut self,
        ticket: Ticket,
        number: Number,
        status: u32,
        result: &[u8],
        file: Option<FileHandle>,
    ) {
        let kept = Kept { number, status, result: result.into(), file };
        let counts = !leaves_number(status);
        let Ticket { client, open, lock } = ticket;
        if let Some((owner, seqid)) = open {
            let Some(sequence) = self.open_sequence(client, &owner) else { return };
            sequence.end(seqid, counts.then(|| kept.clone()));
            if sequence.kept.is_none() {
                self.forget_owner(client, &owner); // it has begun with this, and comes again
            }
        }
        if let Some((owner, seqid)) = lock {
            let Some(sequence) = self.lock_sequence(client, &owner) else { return };
            sequence.end(seqid, counts.then_some(kept));
        }
    }

    /// Its owner may ask for that again. The stateid is good for nothing from then on.
    pub fn close40(
        &mut self,
        client: ClientId,
        stateid: StateId,
        file: FileHandle,
    ) -> Result<StateId, Status> {
        let place = self.find_open(client, stateid, file)?;
        let owner = self.states.open(place).owner.clone();
        let last = self.states.advance(place);
        self.remove_open(place);
        self.keep_closed(client, owner, last);
        Ok(last)
    }

    fn keep_closed(&mut self, client: ClientId, owner: Box<[u8]>, stateid: StateId) {
        let known = self.clients40.all.get_mut(&client);
        let Some(open) = known.and_then(|known| known.opens.get_mut(&owner)) else { return };
        if let Some(earlier) = open.last_closed.replace(stateid.other) {
            self.clients40.closed.remove(&earlier);
        }
        self.clients40.closed.insert(stateid.other, (client, owner));
    }

    pub fn release_lock_owner(
        &mut self,
        now: Instant,
        client: ClientId,
        owner: &[u8],
    ) -> Result<(), Status> {
        self.renew40(now, client)?;
        let states = self.lock_states(client, owner);
        let locked =
            |&place: &Place| self.files[&self.states.locks(place).file].ranges.has_any(place);
        if states.iter().any(locked) {
            return Err(Status::LocksHeld);
        }
        states.into_iter().for_each(|place| self.remove_locks(place));
        if let Some(known) = self.clients40.all.get_mut(&client) {
            known.locks.remove(owner);
        }
        Ok(())
    }

    /// Whose open this is or was.
    fn owner_of_open(
        &mut self,
        now: Instant,
        stateid: StateId,
    ) -> Result<(ClientId, Box<[u8]>), Status> {
        if let Some((client, owner)) = self.clients40.closed.get(&stateid.other).cloned() {
            self.renew40(now, client)?;
            return Ok((client, owner));
        }
        let place = self.find_any40(stateid)?;
        let Entry::Open(open) = self.states.get(place) else { return Err(Status::BadStateId) };
        let (client, owner) = (open.client, open.owner.clone());
        self.renew40(now, client).map_err(|_| Status::BadStateId)?;
        Ok((client, owner))
    }

    fn open_sequence(&mut self, client: ClientId, owner: &[u8]) -> Option<&mut Sequence> {
        let known = self.clients40.all.get_mut(&client)?;
        known.opens.get_mut(owner).map(|open| &mut open.sequence)
    }

    fn lock_sequence(&mut self, client: ClientId, owner: &[u8]) -> Option<&mut Sequence> {
        self.clients40.all.get_mut(&client)?.locks.get_mut(owner)
    }

    fn has_lock_states(&self, client: ClientId, owner: &[u8]) -> bool {
        !self.lock_states(client, owner).is_empty()
    }

    fn lock_states(&self, client: ClientId, owner: &[u8]) -> Vec<Place> {
        let of_owner = |entry: &Entry<F>| match entry {
            Entry::Locks(locks) => locks.client == client && *locks.owner == *owner,
            Entry::Open(_) => false,
        };
        self.states.iter().filter(|(_, entry)| of_owner(entry)).map(|(place, _)| place).collect()
    }

    fn close_opens_of(&mut self, client: ClientId, owner: &[u8]) {
        let opens: Vec<Place> = self
            .opens_of(client)
            .filter(|&place| *self.states.open(place).owner == *owner)
            .collect();
        opens.into_iter().for_each(|place| self.remove_open(place));
    }

    fn forget_owner(&mut self, client: ClientId, owner: &[u8]) {
        let known = self.clients40.all.get_mut(&client);
        let Some(open) = known.and_then(|known| known.opens.remove(owner)) else { return };
        if let Some(closed) = open.last_closed {
            self.clients40.closed.remove(&closed);
        }
    }

    /// The client is going, while its states are still there.
    pub(super) fn remove_client40(&mut self, id: ClientId) {
        if !self.is_40(id) {
            return;
        }
        let of_client = self.states.iter().filter(|(_, entry)| entry.client() == id);
        let gone: Vec<_> = of_client.map(|(place, _)| self.states.stateid(place).other).collect();
        let Clients40 { gone: all, gone_in_order: order, .. } = &mut self.clients40;
        for other in gone {
            all.insert(other);
            order.push_back(other);
        }
        while order.len() > GONE_MAX {
            all.remove(&order.pop_front().expect("it isn't empty"));
        }
        let Some(gone) = self.clients40.all.remove(&id) else { return };
        for closed in gone.opens.values().filter_map(|open| open.last_closed) {
            self.clients40.closed.remove(&closed);
        }
    }

    /// Once in a lease: owners that have nothing and have been silent for one are forgotten.
    pub(super) fn forget_idle_owners_now_and_then(&mut self, now: Instant) {
        if self.clients40.all.is_empty() || self.clients40.look.is_some_and(|look| now < look) {
            return;
        }
        self.clients40.look = Some(now + self.lease);
        let (mut opens, mut locks) = (HashSet::new(), HashSet::new());
        for (_, entry) in self.states.iter() {
            match entry {
                Entry::Open(open) => opens.insert((open.client, &*open.owner)),
                Entry::Locks(held) => locks.insert((held.client, &*held.owner)),
            };
        }
        let silent =
            |of: &Sequence| !of.busy && now.saturating_duration_since(of.used) > self.lease;
        let Clients40 { all, closed, .. } = &mut self.clients40;
        for (&id, client) in all {
            client.locks.retain(|owner, of| !silent(of) || locks.contains(&(id, &**owner)));
            client.opens.retain(|owner, of| {
                let keep = !silent(&of.sequence) || opens.contains(&(id, &**owner));
                if let (false, Some(last)) = (keep, of.last_closed) {
                    closed.remove(&last);
                }
                keep
            });
        }
    }
}

impl Sequence {
    /// `None`: as if it had not come.
    fn end(&mut self, seqid: u32, kept: Option<Kept>) {
        self.busy = false;
        if kept.is_some() {
            self.last = seqid;
            self.kept = kept;
        }
    }
}
