//! Who the clients are (RFC 8881, 18.35).
//!
//! ```text
//!             EXCHANGE_ID                CREATE_SESSION               lease over, and in somebody's way
//!  (unknown) ────────────▶ unconfirmed ────────────────▶ confirmed ───or nothing to lose──▶ (unknown)
//!                               │ lease over                 │
//!                               ▼                            ▼ the same owner, restarted, is confirmed
//!                           (unknown)                     (unknown)
//! ```
//! A client whose lease is over keeps its state as long as it is in nobody's way: a network that was away
//! for a minute then costs nothing.

use super::State;
use super::claims::Claims;
use super::sessions::Created;
use super::table::Place;
use crate::wire::arguments::ExchangeId;
use crate::wire::status::Status;
use crate::wire::types::{ClientId, SessionId, Verifier};
use std::time::{Duration, Instant};

/// Who may speak for a client: what its messages' credentials say.
pub type Principal = u32;

pub struct Client {
    pub owner: Box<[u8]>,
    pub verifier: Verifier,
    pub principal: Principal,
    pub confirmed: bool,
    pub renewed: Instant,
    /// The next CREATE_SESSION has this number; the last answer is kept for a repetition.
    pub session_sequence: u32,
    pub last_session: Option<Created>,
    pub sessions: Vec<SessionId>,
    pub reclaim_complete: bool,
    /// Opens and lock owners.
    pub states: usize,
    /// What it has had since its record was last looked at.
    pub used: Option<Claims>,
}

impl Client {
    pub fn is_expired(&self, now: Instant, lease: Duration) -> bool {
        now.saturating_duration_since(self.renewed) > lease
    }
}

/// The clients of one owner: the one that counts, and one that may take its place.
#[derive(Default)]
pub struct Owner {
    pub confirmed: Option<ClientId>,
    pub unconfirmed: Option<ClientId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identified {
    pub client: ClientId,
    pub sequence: u32,
    pub confirmed: bool,
}

const FLAG_UPDATE_CONFIRMED: u32 = 0x4000_0000;

impl<F: Clone> State<F> {
    pub fn exchange_id(
        &mut self,
        now: Instant,
        principal: Principal,
        asked: &ExchangeId,
    ) -> Result<Identified, Status> {
        let confirmed = self.owners.get(asked.owner).and_then(|owner| owner.confirmed);
        let known = confirmed.map(|id| (id, &self.clients[&id]));
        if asked.flags & FLAG_UPDATE_CONFIRMED != 0 {
            let (id, client) = known.ok_or(Status::NoEnt)?;
            return if client.verifier != asked.verifier {
                Err(Status::NotSame)
            } else if client.principal != principal {
                Err(Status::Perm)
            } else {
                Ok(self.identified(id))
            };
        }
        if let Some((id, client)) = known {
            let expired = client.is_expired(now, self.lease);
            if client.principal != principal {
                if client.states > 0 && !expired {
                    return Err(Status::ClidInUse);
                }
                self.remove_client(id);
            } else if client.verifier == asked.verifier {
                return Ok(self.identified(id));
            }
        }
        self.new_client(now, principal, asked)
    }

    fn new_client(
        &mut self,
        now: Instant,
        principal: Principal,
        asked: &ExchangeId,
    ) -> Result<Identified, Status> {
        if let Some(replaced) = self.owners.get(asked.owner).and_then(|owner| owner.unconfirmed) {
            self.remove_client(replaced);
        }
        if self.clients.len() >= self.limits.clients {
            let idle = self.clients.iter().filter(|(_, c)| c.is_expired(now, self.lease));
            let oldest = idle.min_by_key(|(_, client)| client.renewed).map(|(&id, _)| id);
            self.remove_client(oldest.ok_or(Status::Delay)?);
        }
        let id = ClientId(u64::from(self.epoch) << 32 | u64::from(self.next_number()));
        let client = Client {
            owner: asked.owner.into(),
            verifier: asked.verifier,
            principal,
            confirmed: false,
            renewed: now,
            session_sequence: 1,
            last_session: None,
            sessions: Vec::new(),
            reclaim_complete: false,
            states: 0,
            used: None,
        };
        self.owners.entry(asked.owner.into()).or_default().unconfirmed = Some(id);
        self.clients.insert(id, client);
        Ok(self.identified(id))
    }

    fn identified(&self, id: ClientId) -> Identified {
        let client = &self.clients[&id];
        Identified { client: id, sequence: client.session_sequence, confirmed: client.confirmed }
    }

    /// From now on this is *the* client of its owner: an earlier one was before a restart of the
    /// client, and what it had is gone with it.
    pub(super) fn confirm(&mut self, id: ClientId) {
        let client = self.clients.get_mut(&id).expect("the caller has found it");
        if std::mem::replace(&mut client.confirmed, true) {
            return;
        }
        let name = client.owner.clone();
        let owner = self.owners.get_mut(&name).expect("each client has its owner");
        owner.unconfirmed = None;
        if let Some(earlier) = owner.confirmed.replace(id) {
            self.remove_client40(earlier);
            self.remove_states(earlier);
            self.remove_sessions(earlier);
            self.clients.remove(&earlier);
        }
    }

    pub fn destroy_client(&mut self, id: ClientId) -> Result<(), Status> {
        let client = self.clients.get(&id).ok_or(Status::StaleClientId)?;
        if !client.sessions.is_empty() || client.states > 0 {
            return Err(Status::ClientIdBusy);
        }
        self.remove_client(id);
        Ok(())
    }

    /// With all that it has.
    pub(super) fn remove_client(&mut self, id: ClientId) {
        self.remove_client40(id);
        self.remove_states(id);
        self.remove_sessions(id);
        let Some(client) = self.clients.remove(&id) else { return };
        let owner = self.owners.get_mut(&client.owner).expect("each client has its owner");
        if client.confirmed {
            owner.confirmed = None;
        } else {
            owner.unconfirmed = None;
        }
        if owner.confirmed.is_none() && owner.unconfirmed.is_none() {
            self.owners.remove(&client.owner);
        }
        if client.confirmed {
            self.nothing_to_claim(client.owner);
        }
    }

    fn remove_sessions(&mut self, id: ClientId) {
        for session in
            self.clients.get_mut(&id).map(|c| std::mem::take(&mut c.sessions)).iter().flatten()
        {
            self.remove_session(session);
        }
    }

    fn remove_states(&mut self, id: ClientId) {
        let opens: Vec<Place> = self.opens_of(id).collect();
        for open in opens {
            self.remove_open(open);
        }
    }

    /// In this life of the server, as the id of a client or of a session.
    pub(super) fn was_given(&self, id: ClientId) -> bool {
        id.0 >> 32 == u64::from(self.epoch) && id.0 as u32 <= self.last_number
    }

    pub(super) fn is_expired(&self, now: Instant, id: ClientId) -> bool {
        self.clients.get(&id).is_none_or(|client| client.is_expired(now, self.lease))
    }

    /// One more open or lock owner of this client.
    pub(super) fn count_state(&mut self, id: ClientId) -> Result<(), Status> {
        let client = self.clients.get_mut(&id).ok_or(Status::StaleClientId)?;
        if client.states >= self.limits.states_per_client {
            return Err(Status::Resource);
        }
        client.states += 1;
        Ok(())
    }

    pub(super) fn uncount_state(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.states -= 1;
        }
    }
}
