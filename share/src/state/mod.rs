//! What the server remembers of its clients: who they are, their sessions, what they have open and
//! locked, and after a restart what they may claim again.
//!
//! Pure: no socket, no file, no clock. Time is an argument; what has to be made durable comes out as
//! [`Record`]s, which the caller writes before it answers. What belongs to an open (`F`, a file that can
//! be read and written) is kept for it and dropped with it.
//!
//! ```text
//!  client owner ──EXCHANGE_ID──▶ client ──CREATE_SESSION──▶ session ── slots, each with its last reply
//!                                  │
//!                                  ├── open   (one per open owner and file) ── access, deny, F
//!                                  └── locks  (one per lock owner and file) ── goes with an open
//!  file ── opens, lock owners, locked ranges, who waits for a lock
//! ```
//! Never: a request done twice, a lock that two clients have, state of one client shown to another, a
//! claim from before a restart that could contradict what was granted since.

mod callbacks;
mod claims;
mod clients;
mod grace;
mod locks;
mod opens;
mod owners40;
mod ranges;
mod replies40;
mod sessions;
mod table;
mod waiters;

pub use callbacks::{Callback, ConnectionId, Notice};
pub use claims::{Claims, FEW, LockedFiles};
pub use clients::{Identified, Principal};
pub use grace::Record;
pub use locks::{Conflict, LockOutcome, LockRequest};
pub use opens::OpenRequest;
pub use owners40::{Identified40, Numbered, Ticket, Turn};
pub use ranges::Range;
pub use replies40::{Message, MessageId, Replies40};
pub use sessions::{Begun, Created, Running, Via};

use crate::wire::types::{ClientId, FileHandle, SessionId};
use clients::{Client, Owner};
use grace::Grace;
use opens::File;
use owners40::Clients40;
use sessions::Session;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use table::Table;

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub clients: usize,
    pub sessions_per_client: usize,
    /// Opens and lock owners.
    pub states_per_client: usize,
    pub locked_ranges_per_file: usize,
    /// What all sessions together may keep of replies.
    pub cached_replies_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 4096,
            sessions_per_client: 16,
            states_per_client: 100_000,
            locked_ranges_per_file: 100_000,
            cached_replies_bytes: 64 << 20,
        }
    }
}

pub struct State<F> {
    /// Tells this life of the server from earlier ones.
    epoch: u32,
    lease: Duration,
    limits: Limits,
    clients: HashMap<ClientId, Client>,
    owners: HashMap<Box<[u8]>, Owner>,
    sessions: HashMap<SessionId, Session>,
    states: Table<F>,
    files: HashMap<FileHandle, File>,
    clients40: Clients40,
    grace: Grace,
    records: Vec<Record>,
    /// For ids of clients and sessions: never given twice in one life.
    last_number: u32,
    cached_replies_bytes: usize,
    /// The time that was told last.
    now: Instant,
    /// Sessions that are called back over a connection, or were.
    bound: HashMap<ConnectionId, Vec<SessionId>>,
    /// Calls to clients that wait for their answer, and those that have to be sent.
    called: HashMap<u32, SessionId>,
    callbacks: Vec<Callback>,
    last_xid: u32,
    /// Files with somebody who waits for a lock, and those where one may have become free.
    waited_for: HashSet<FileHandle>,
    waiters: usize,
    freed: Vec<FileHandle>,
}

impl<F: Clone> State<F> {
    /// `remembered` are the owners of the clients that may claim what they had before the restart, and what
    /// that may be.
    pub fn new(
        now: Instant,
        epoch: u32,
        lease: Duration,
        limits: Limits,
        remembered: Vec<(Box<[u8]>, Claims)>,
    ) -> Self {
        Self {
            epoch,
            lease,
            limits,
            clients: HashMap::new(),
            owners: HashMap::new(),
            sessions: HashMap::new(),
            states: Table::new(epoch),
            files: HashMap::new(),
            clients40: Clients40::default(),
            grace: Grace::new(now, lease, remembered),
            records: Vec::new(),
            last_number: 0,
            cached_replies_bytes: 0,
            now,
            bound: HashMap::new(),
            called: HashMap::new(),
            callbacks: Vec::new(),
            last_xid: epoch,
            waited_for: HashSet::new(),
            waiters: 0,
            freed: Vec::new(),
        }
    }

    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// What has to be durable before anything that was decided so far is answered.
    pub fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }

    /// Called now and then: ends the grace when it is over, and forgets who has nothing to lose.
    pub fn tick(&mut self, now: Instant) {
        self.now = now;
        self.end_grace_if_over(now);
        self.forget_again();
        self.look_at_calls(now);
        self.offer_all();
        self.lower_records_now_and_then(now);
        self.forget_idle_owners_now_and_then(now);
        let gone: Vec<ClientId> = self
            .clients
            .iter()
            .filter(|(_, client)| client.is_expired(now, self.lease) && client.states == 0)
            .map(|(&id, _)| id)
            .collect();
        for id in gone {
            self.remove_client(id);
        }
    }

    fn next_number(&mut self) -> u32 {
        self.last_number += 1;
        self.last_number
    }
}
