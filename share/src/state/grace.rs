//! After a restart: clients that were remembered may claim what they had, before anybody gets what could
//! contradict such a claim (RFC 8881, 8.4.2.1).
//!
//! ```text
//!   may still be claimed by somebody     what is new and waits for it
//!   opens                                an open that denies others something
//!   … some of which deny something       any open, and access without one
//!   … and locks                          locks of the same files
//! ```
//! The time ends when each has said that it is done, or else after two leases. Who came too late is
//! forgotten durably *before* anything new is granted that it could claim: otherwise it could, after one
//! more restart, claim what others have got since.
//!
//! A client is remembered from its first open on, and forgotten when it has had nothing open for a minute or
//! two: so nobody waits for a client that only looks around, and one that opens and closes now and then costs
//! a record in a minute.

use super::State;
use super::claims::{Claims, LockedFiles};
use super::table::Entry;
use crate::wire::status::Status;
use crate::wire::types::ClientId;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What has to be durable, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// This client may claim so much after a restart.
    Remember(Box<[u8]>, Claims),
    /// It may claim no more what it could until now.
    Forget(Box<[u8]>, Claims),
}

impl Record {
    pub fn owner(&self) -> &[u8] {
        match self {
            Record::Remember(owner, _) | Record::Forget(owner, _) => owner,
        }
    }
}

/// How often records are lowered to what clients still have.
const LOOK: Duration = Duration::from_secs(60);

type Owners = HashMap<Box<[u8]>, Claims>;

pub struct Grace {
    /// The owners of clients that haven't said yet that they are done.
    awaited: Owners,
    until: Option<Instant>,
    /// What is remembered durably.
    recorded: Owners,
    /// Who may claim for want of a disk that takes it back: see [`State::not_forgotten`].
    unforgotten: Owners,
    /// When records are next lowered to what clients still have.
    look: Instant,
}

impl Grace {
    pub fn new(now: Instant, lease: Duration, remembered: Vec<(Box<[u8]>, Claims)>) -> Self {
        let until = (!remembered.is_empty()).then(|| now + 2 * lease);
        let awaited: Owners = remembered.into_iter().collect();
        Self {
            recorded: awaited.clone(),
            awaited,
            until,
            unforgotten: Owners::new(),
            look: now + LOOK,
        }
    }

    /// Whether somebody may still claim what stands against this.
    fn is_contested(&self, new: Claims) -> bool {
        let all = self.awaited.values().chain(self.unforgotten.values());
        all.into_iter().any(|had| had.contests(new))
    }
}

impl<F: Clone> State<F> {
    pub fn in_grace(&self) -> bool {
        self.grace.until.is_some()
    }

    /// Whether something new has to wait for the end of the grace.
    pub fn is_contested(&self, new: Claims) -> bool {
        self.grace.is_contested(new)
    }

    pub(super) fn end_grace_if_over(&mut self, now: Instant) {
        let Some(until) = self.grace.until else { return };
        if self.grace.awaited.is_empty() || now >= until {
            self.grace.until = None;
            let late: Vec<_> = self.grace.awaited.drain().collect();
            for (owner, _) in late {
                match self.claimed40(&owner) {
                    Some(claims) => self.remember(owner, claims),
                    None => self.forget(owner),
                }
            }
        }
    }

    /// What a client of minor version 0 has claimed: it never says that it is done.
    fn claimed40(&self, owner: &[u8]) -> Option<Claims> {
        let id = self.owners.get(owner)?.confirmed.filter(|&id| self.is_40(id))?;
        self.clients[&id].used
    }

    /// Whether the client may get this, anew or by a claim to what it had. `Delay`: that can be said when what
    /// was decided so far is durable.
    pub fn may_acquire(
        &mut self,
        now: Instant,
        id: ClientId,
        wanted: Claims,
        claims: bool,
    ) -> Result<(), Status> {
        self.end_grace_if_over(now);
        if !self.records.is_empty() {
            return Err(Status::Delay);
        }
        let client = self.clients.get(&id).ok_or(Status::StaleClientId)?;
        if !claims {
            let claims_first = !client.reclaim_complete && !self.is_40(id);
            let must_wait = claims_first || self.is_contested(wanted);
            return if must_wait { Err(Status::Grace) } else { Ok(()) };
        }
        let had = self.grace.awaited.get(&client.owner);
        let may_claim = self.in_grace()
            && !client.reclaim_complete
            && had.is_some_and(|had| had.contains(wanted));
        if may_claim { Ok(()) } else { Err(Status::NoGrace) }
    }

    /// The client has claimed all that it wants to.
    pub fn reclaim_complete(&mut self, now: Instant, id: ClientId) -> Result<(), Status> {
        let client = self.clients.get_mut(&id).ok_or(Status::StaleClientId)?;
        if client.reclaim_complete {
            return Err(Status::CompleteAlready);
        }
        client.reclaim_complete = true;
        self.grace.awaited.remove(&client.owner);
        self.end_grace_if_over(now);
        Ok(())
    }

    /// The client is gone for good: nobody needs to wait for it.
    pub(super) fn nothing_to_claim(&mut self, owner: Box<[u8]>) {
        self.grace.awaited.remove(&owner);
        self.forget(owner);
    }

    /// The client gets this: it may claim it after a restart.
    pub(super) fn record(&mut self, id: ClientId, has: Claims) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.used = Some(client.used.unwrap_or_default().with(has));
        let recorded = self.grace.recorded.get(&client.owner).copied();
        if !recorded.is_some_and(|recorded| recorded.contains(has)) {
            let owner = client.owner.clone();
            self.remember(owner, recorded.unwrap_or_default().with(has));
        }
    }

    fn remember(&mut self, owner: Box<[u8]>, claims: Claims) {
        if self.grace.recorded.insert(owner.clone(), claims) != Some(claims) {
            self.records.push(Record::Remember(owner, claims));
        }
    }

    fn forget(&mut self, owner: Box<[u8]>) {
        if let Some(claims) = self.grace.recorded.remove(&owner) {
            self.records.push(Record::Forget(owner, claims));
        }
    }

    /// It couldn't be made durable that this client is forgotten, so after a restart it could claim what it
    /// had: nothing that this contests is granted to others until it can.
    pub fn not_forgotten(&mut self, owner: Box<[u8]>, claims: Claims) {
        self.grace.unforgotten.insert(owner, claims);
    }

    pub(super) fn forget_again(&mut self) {
        let again: Vec<_> = self.grace.unforgotten.drain().collect();
        for (owner, claims) in again {
            // It may be back meanwhile, with a record of its own.
            if !self.grace.recorded.contains_key(&owner) {
                self.records.push(Record::Forget(owner, claims));
            }
        }
    }

    /// Once in a minute: what clients haven't had since the last time they can't claim.
    pub(super) fn lower_records_now_and_then(&mut self, now: Instant) {
        if !self.in_grace() && now >= self.grace.look {
            self.grace.look = now + LOOK;
            self.lower_records();
        }
    }

    /// The server ends, and nothing is granted any more: only who has something needs to be waited for.
    pub fn stop(&mut self) {
        if !self.in_grace() {
            self.clients.values_mut().for_each(|client| client.used = None);
            self.lower_records();
        }
    }

    fn lower_records(&mut self) {
        let mut has: HashMap<ClientId, Claims> = HashMap::new();
        for (_, entry) in self.states.iter() {
            let all = has.entry(entry.client()).or_default();
            let one = match entry {
                Entry::Open(open) => Claims::of_open(!open.deny.is_none()),
                Entry::Locks(_) if all.locks == LockedFiles::ANY => continue,
                Entry::Locks(locks) => Claims::of_lock(locks.file),
            };
            *all = all.with(one);
        }
        let confirmed = self.clients.iter_mut().filter(|(_, client)| client.confirmed);
        let kept: Vec<_> = confirmed
            .map(|(id, client)| {
                let has = has.get(id).copied();
                let had = std::mem::replace(&mut client.used, has);
                let keep = has.or(had).map(|any| any.with(had.unwrap_or_default()));
                (client.owner.clone(), keep)
            })
            .collect();
        for (owner, keep) in kept {
            match keep {
                Some(keep) => self.remember(owner, keep),
                None => self.forget(owner),
            }
        }
    }
}
