//! The states that have a stateid, found by it without a search.
//!
//! ```text
//! stateid.other:  | epoch of the server's life (4) | place in the table (4) | which use of that place (4) |
//! ```

use super::opens::Open;
use crate::wire::status::Status;
use crate::wire::types::{ClientId, FileHandle, StateId};
use slab::Slab;

pub type Place = usize;

pub enum Entry<F> {
    Open(Open<F>),
    Locks(LockState),
}

/// What one lock owner has on one file; the ranges are kept with the file.
pub struct LockState {
    pub client: ClientId,
    pub owner: Box<[u8]>,
    pub file: FileHandle,
    pub open: Place,
    pub seqid: u32,
}

impl<F> Entry<F> {
    pub fn client(&self) -> ClientId {
        match self {
            Entry::Open(open) => open.client,
            Entry::Locks(locks) => locks.client,
        }
    }

    fn seqid(&mut self) -> &mut u32 {
        match self {
            Entry::Open(open) => &mut open.seqid,
            Entry::Locks(locks) => &mut locks.seqid,
        }
    }
}

pub struct Table<F> {
    epoch: u32,
    entries: Slab<(u32, Entry<F>)>,
    last_use: u32,
}

impl<F> Table<F> {
    pub fn new(epoch: u32) -> Self {
        Self { epoch, entries: Slab::new(), last_use: 0 }
    }

    pub fn insert(&mut self, entry: Entry<F>) -> Place {
        self.last_use = self.last_use.wrapping_add(1);
        self.entries.insert((self.last_use, entry))
    }

    pub fn remove(&mut self, place: Place) -> Entry<F> {
        self.entries.remove(place).1
    }

    pub fn get(&self, place: Place) -> &Entry<F> {
        &self.entries[place].1
    }

    pub fn get_mut(&mut self, place: Place) -> &mut Entry<F> {
        &mut self.entries[place].1
    }

    pub fn iter(&self) -> impl Iterator<Item = (Place, &Entry<F>)> {
        self.entries.iter().map(|(place, (_, entry))| (place, entry))
    }

    pub fn open(&self, place: Place) -> &Open<F> {
        match self.get(place) {
            Entry::Open(open) => open,
            Entry::Locks(_) => unreachable!("a file's list of opens has opens only"),
        }
    }

    pub fn locks(&self, place: Place) -> &LockState {
        match self.get(place) {
            Entry::Locks(locks) => locks,
            Entry::Open(_) => unreachable!("a file's list of lock owners has those only"),
        }
    }

    /// What `stateid` names, if it is `client`'s and as new as it can be.
    pub fn find(&self, client: ClientId, stateid: StateId) -> Result<Place, Status> {
        let place = self.find_any(stateid).map_err(|_| Status::BadStateId)?;
        let entry = self.get(place);
        if entry.client() != client {
            return Err(Status::BadStateId);
        }
        let seqid = match entry {
            Entry::Open(open) => open.seqid,
            Entry::Locks(locks) => locks.seqid,
        };
        // Zero means the newest, whatever it is.
        match stateid.seqid {
            0 => Ok(place),
            asked if asked == seqid => Ok(place),
            asked if (seqid.wrapping_sub(asked) as i32) > 0 => Err(Status::OldStateId),
            _ => Err(Status::BadStateId),
        }
    }

    /// What `stateid` names, whoever's it is and however old. `StaleStateId`: it is of an earlier life.
    pub fn find_any(&self, stateid: StateId) -> Result<Place, Status> {
        let word = |at: usize| {
            u32::from_be_bytes(*stateid.other[at..].first_chunk().expect("12 bytes are 3 words"))
        };
        if word(0) != self.epoch {
            return Err(Status::StaleStateId);
        }
        let place = word(4) as Place;
        match self.entries.get(place) {
            Some((used, _)) if *used == word(8) => Ok(place),
            _ => Err(Status::BadStateId),
        }
    }

    pub fn client_of(&self, stateid: StateId) -> Result<ClientId, Status> {
        Ok(self.get(self.find_any(stateid)?).client())
    }

    pub fn stateid(&self, place: Place) -> StateId {
        let (used, entry) = &self.entries[place];
        let seqid = match entry {
            Entry::Open(open) => open.seqid,
            Entry::Locks(locks) => locks.seqid,
        };
        let mut other = [0; 12];
        other[..4].copy_from_slice(&self.epoch.to_be_bytes());
        other[4..8].copy_from_slice(&(place as u32).to_be_bytes());
        other[8..].copy_from_slice(&used.to_be_bytes());
        StateId { seqid, other }
    }

    /// The stateid after a change of what it names. Zero is left out: it has a meaning of its own.
    pub fn advance(&mut self, place: Place) -> StateId {
        let seqid = self.get_mut(place).seqid();
        *seqid = seqid.checked_add(1).unwrap_or(1);
        self.stateid(place)
    }
}
