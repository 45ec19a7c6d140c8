//! The way back to a client: calls of ours over a connection of its (RFC 8881, 2.10.3.1, 18.34, 20.9).
//!
//! ```text
//!  notice ──▶ queue of a session ──▶ under way, in the session's one slot ──answered──▶ (done)
//!                                       │ no answer in time, or the connection ends
//!                                       ▼
//!                                    no way back: the client is told so in each reply, binds a connection
//!                                    anew, and the same call is made again
//! ```
//! Nothing waits for an answer, and what is queued is bounded: a client that doesn't answer costs a notice.

use super::State;
use crate::wire::rpc::CallbackAuth;
use crate::wire::status::{OK, Status};
use crate::wire::types::{ClientId, FileHandle, SessionId};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// One connection of a client, as long as it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub u64);

/// How long a client may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// More notices are forgotten: who waits for a lock asks for it now and then anyhow.
const QUEUE_MAX: usize = 64;

const PATH_DOWN: u32 = 1;
const PATH_DOWN_SESSION: u32 = 0x200;

/// A lock that somebody waits for may be free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub client: ClientId,
    pub file: FileHandle,
    pub owner: Box<[u8]>,
}

/// To be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    pub connection: ConnectionId,
    pub xid: u32,
    pub program: u32,
    pub auth: CallbackAuth,
    pub minor_version: u32,
    pub session: SessionId,
    pub sequence: u32,
    pub notice: Notice,
}

/// Of one session.
pub struct BackChannel {
    program: u32,
    auth: Option<CallbackAuth>,
    minor_version: u32,
    connection: Option<ConnectionId>,
    /// It had one.
    was_bound: bool,
    sequence: u32,
    under_way: Option<UnderWay>,
    queue: VecDeque<Notice>,
}

struct UnderWay {
    xid: u32,
    since: Instant,
    notice: Notice,
}

impl BackChannel {
    pub fn new(program: u32, auth: Option<CallbackAuth>, minor_version: u32) -> Self {
        Self {
            program,
            auth,
            minor_version,
            connection: None,
            was_bound: false,
            sequence: 0,
            under_way: None,
            queue: VecDeque::new(),
        }
    }
}

impl<F: Clone> State<F> {
    /// From now on the client is called back over this connection. False: it can't be.
    pub fn bind_back(&mut self, session: SessionId, to: ConnectionId) -> bool {
        let Some(known) = self.sessions.get_mut(&session) else { return false };
        if known.back.auth.is_none() {
            return false;
        }
        known.back.connection = Some(to);
        known.back.was_bound = true;
        let sessions = &self.sessions;
        let is_bound =
            |id: &SessionId| sessions.get(id).is_some_and(|s| s.back.connection == Some(to));
        let bound = self.bound.entry(to).or_default();
        bound.retain(|id| *id != session && is_bound(id));
        bound.push(session);
        self.call_next(session, true);
        true
    }

    pub fn set_callback(&mut self, session: SessionId, program: u32, auth: Option<CallbackAuth>) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.back.program = program;
            session.back.auth = auth.or(session.back.auth);
        }
    }

    /// What has to be sent.
    pub fn take_callbacks(&mut self) -> Vec<Callback> {
        std::mem::take(&mut self.callbacks)
    }

    pub fn connection_ended(&mut self, connection: ConnectionId) {
        for session in self.bound.remove(&connection).into_iter().flatten() {
            if let Some(session) = self.sessions.get_mut(&session)
                && session.back.connection == Some(connection)
            {
                session.back.connection = None;
            }
        }
    }

    /// What a reply in this session says of the way back.
    pub(super) fn path_flags(&self, session: SessionId) -> u32 {
        let back = &self.sessions[&session].back;
        match back.connection {
            Some(_) => 0,
            None if !back.was_bound => 0,
            None if self.has_way_back(self.sessions[&session].client) => PATH_DOWN_SESSION,
            None => PATH_DOWN_SESSION | PATH_DOWN,
        }
    }

    pub fn has_way_back(&self, client: ClientId) -> bool {
        self.ways_back(client).next().is_some()
    }

    fn ways_back(&self, client: ClientId) -> impl Iterator<Item = SessionId> {
        let sessions = self.clients.get(&client).map(|client| &client.sessions[..]);
        sessions
            .unwrap_or_default()
            .iter()
            .copied()
            .filter(|id| self.sessions[id].back.connection.is_some())
    }

    /// False: it can't be told.
    pub(super) fn notify(&mut self, notice: Notice) -> bool {
        let length = |id: &SessionId| self.sessions[id].back.queue.len();
        let Some(session) = self.ways_back(notice.client).min_by_key(length) else { return false };
        let queue = &mut self.sessions.get_mut(&session).expect("found above").back.queue;
        if queue.len() >= QUEUE_MAX {
            return false;
        }
        queue.push_back(notice);
        self.call_next(session, false);
        true
    }

    /// Calls, if nothing is under way. `again`: what is under way is called once more, on a new connection.
    fn call_next(&mut self, id: SessionId, again: bool) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let back = &mut session.back;
        let (Some(connection), Some(auth)) = (back.connection, back.auth) else { return };
        let notice = match back.under_way.take() {
            Some(under_way) if again => {
                self.called.remove(&under_way.xid);
                under_way.notice
            }
            Some(under_way) => {
                back.under_way = Some(under_way);
                return;
            }
            None => {
                let Some(next) = back.queue.pop_front() else { return };
                back.sequence = back.sequence.wrapping_add(1);
                next
            }
        };
        self.last_xid = self.last_xid.wrapping_add(1);
        let xid = self.last_xid;
        self.called.insert(xid, id);
        back.under_way = Some(UnderWay { xid, since: self.now, notice: notice.clone() });
        self.callbacks.push(Callback {
            connection,
            xid,
            program: back.program,
            auth,
            minor_version: back.minor_version,
            session: id,
            sequence: back.sequence,
            notice,
        });
    }

    /// The client has answered, with this status for the slot (`None`: the call didn't get there). What it
    /// says of the notice changes nothing.
    pub fn answered(&mut self, connection: ConnectionId, xid: u32, status: Option<u32>) {
        let Some(&id) = self.called.get(&xid) else { return };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.back.connection != Some(connection) {
            return;
        }
        let was_done = [OK, Status::RetryUncachedRep.number()];
        if status.is_some_and(|status| was_done.contains(&status)) {
            self.called.remove(&xid);
            session.back.under_way = None;
            self.call_next(id, false);
        } else {
            session.back.connection = None;
        }
    }

    /// Called now and then: who hasn't answered in time has no way back.
    pub(super) fn look_at_calls(&mut self, now: Instant) {
        let sessions = &mut self.sessions;
        self.called.retain(|_, id| {
            let Some(session) = sessions.get_mut(id) else { return false };
            let since = session.back.under_way.as_ref().map(|under_way| under_way.since);
            if since.is_some_and(|since| now.saturating_duration_since(since) > ANSWER_TIME) {
                session.back.connection = None;
            }
            true
        });
    }
}
