//! After a restart: clients that were remembered may claim what they had, before anybody gets anything new.
//!
//! The time ends when each has said that it is done, or else after two leases. Who came too late is
//! forgotten durably *before* anything new is granted: otherwise it could claim, after one more restart,
//! what others have got since.

use super::State;
use crate::wire::status::Status;
use crate::wire::types::ClientId;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// What has to be durable, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// This client may claim after a restart.
    Remember(Box<[u8]>),
    Forget(Box<[u8]>),
}

pub struct Grace {
    /// The owners of clients that haven't said yet that they are done.
    awaited: HashSet<Box<[u8]>>,
    until: Option<Instant>,
}

impl Grace {
    pub fn new(now: Instant, lease: Duration, remembered: Vec<Box<[u8]>>) -> Self {
        let until = (!remembered.is_empty()).then(|| now + 2 * lease);
        Self { awaited: remembered.into_iter().collect(), until }
    }
}

impl<F: Clone> State<F> {
    pub fn in_grace(&self) -> bool {
        self.grace.until.is_some()
    }

    pub(super) fn end_grace_if_over(&mut self, now: Instant) {
        let Some(until) = self.grace.until else { return };
        if self.grace.awaited.is_empty() || now >= until {
            self.grace.until = None;
            self.records.extend(self.grace.awaited.drain().map(Record::Forget));
        }
    }

    /// Whether the client may open or lock, anew or by a claim to what it had.
    pub fn may_acquire(&mut self, now: Instant, id: ClientId, claims: bool) -> Result<(), Status> {
        self.end_grace_if_over(now);
        let client = self.clients.get(&id).ok_or(Status::StaleClientId)?;
        if !claims {
            let must_wait = self.in_grace() || !client.reclaim_complete;
            return if must_wait { Err(Status::Grace) } else { Ok(()) };
        }
        let may_claim = self.in_grace()
            && !client.reclaim_complete
            && self.grace.awaited.contains(&client.owner);
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
        self.records.push(Record::Remember(client.owner.clone()));
        self.end_grace_if_over(now);
        Ok(())
    }

    /// The client is gone for good: nobody needs to wait for it.
    pub(super) fn nothing_to_claim(&mut self, owner: Box<[u8]>) {
        self.grace.awaited.remove(&owner);
        self.records.push(Record::Forget(owner));
    }
}
