//! Sessions: each request has a slot and a number, so that none is done twice (RFC 8881, 2.10.6).

use super::State;
use super::callbacks::{BackChannel, ConnectionId};
use super::clients::Principal;
use crate::wire::arguments::{ChannelAttributes, CreateSession, Sequence};
use crate::wire::status::Status;
use crate::wire::types::{ClientId, IO_BYTES_MAX, OPERATIONS_MAX, SessionId};
use std::time::Instant;

/// The requests that a client may have under way in one session.
pub const SLOTS_MAX: u32 = 64;
const FLAG_BACK_CHANNEL: u32 = 2;
/// Room around the data of a read or write.
const HEADROOM_BYTES: u32 = 4096;
/// Replies longer than this aren't kept for a repetition; those of operations that change something are short.
const CACHED_REPLY_BYTES_MAX: u32 = 4096;
/// A reply that nobody asked to keep is kept all the same when that costs next to nothing.
const SMALL_REPLY_BYTES: usize = 512;
/// Below, nothing useful fits.
const MESSAGE_BYTES_MIN: u32 = 256;
/// Of an RPC, a compound with an empty tag, and the result of SEQUENCE.
const SHORTEST_REPLY_BYTES: u32 = 80;

pub struct Session {
    pub client: ClientId,
    fore: ChannelAttributes,
    slots: Vec<Slot>,
    pub back: BackChannel,
}

/// How a request came.
#[derive(Clone, Copy, Debug)]
pub struct Via {
    /// `None`: no call can be made on it.
    pub connection: Option<ConnectionId>,
    pub minor_version: u32,
}

#[derive(Default)]
struct Slot {
    sequence: u32,
    busy: bool,
    /// What was answered to the request `sequence`, if it was kept.
    reply: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    pub session: SessionId,
    pub sequence: u32,
    pub fore: ChannelAttributes,
    pub back: ChannelAttributes,
    /// The connection that it came by is one to call back on.
    pub calls_back: bool,
}

/// A request is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    pub client: ClientId,
    /// What is wrong, as SEQUENCE tells it.
    pub flags: u32,
    pub session: SessionId,
    pub slot: u32,
    pub slots: u32,
    pub reply_bytes_max: usize,
    pub cached_reply_bytes_max: usize,
    pub cache_this: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    New(Running),
    /// It was done before: this was the answer.
    Repeated(Vec<u8>),
}

impl<F: Clone> State<F> {
    pub fn create_session(
        &mut self,
        now: Instant,
        principal: Principal,
        asked: &CreateSession,
        via: Via,
    ) -> Result<Created, Status> {
        let client = self.clients.get(&asked.client).ok_or(Status::StaleClientId)?;
        if asked.sequence != client.session_sequence {
            return match &client.last_session {
                Some(last) if last.sequence == asked.sequence => Ok(last.clone()),
                _ => Err(Status::SeqMisordered),
            };
        }
        if !client.confirmed && client.principal != principal {
            return Err(Status::ClidInUse);
        }
        if client.sessions.len() >= self.limits.sessions_per_client {
            return Err(Status::Resource);
        }
        if is_too_small(&asked.fore) || is_too_small(&asked.back) || asked.back.operations_max < 2 {
            return Err(Status::TooSmall);
        }
        let fore = self.grant(&asked.fore)?;
        self.confirm(asked.client);

        let number = self.next_number();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&asked.client.0.to_be_bytes());
        id[8..12].copy_from_slice(&number.to_be_bytes());
        let session = SessionId(id);
        let back = ChannelAttributes {
            slots: asked.back.slots.clamp(1, SLOTS_MAX),
            operations_max: asked.back.operations_max.clamp(2, OPERATIONS_MAX),
            ..asked.back
        };
        let wants_calls = asked.flags & FLAG_BACK_CHANNEL != 0;
        let connection = via.connection.filter(|_| wants_calls && asked.callback_auth.is_some());
        let created = Created {
            session,
            sequence: asked.sequence,
            fore,
            back,
            calls_back: connection.is_some(),
        };
        let slots = (0..fore.slots).map(|_| Slot::default()).collect();
        self.cached_replies_bytes += cost_bytes(&fore);
        let back = BackChannel::new(asked.callback_program, asked.callback_auth, via.minor_version);
        self.sessions.insert(session, Session { client: asked.client, fore, slots, back });
        if let Some(connection) = connection {
            self.bind_back(session, connection);
        }
        let client = self.clients.get_mut(&asked.client).expect("it was found above");
        client.session_sequence = client.session_sequence.wrapping_add(1);
        client.last_session = Some(created.clone());
        client.sessions.push(session);
        client.renewed = now;
        Ok(created)
    }

    /// What is asked for, as far as we go; fewer slots when all sessions together keep too much.
    fn grant(&self, asked: &ChannelAttributes) -> Result<ChannelAttributes, Status> {
        let left = self.limits.cached_replies_bytes.saturating_sub(self.cached_replies_bytes);
        let mut granted = ChannelAttributes {
            request_bytes_max: asked.request_bytes_max.min(IO_BYTES_MAX + HEADROOM_BYTES),
            reply_bytes_max: asked.reply_bytes_max.min(IO_BYTES_MAX + HEADROOM_BYTES),
            cached_reply_bytes_max: asked.cached_reply_bytes_max.min(CACHED_REPLY_BYTES_MAX),
            operations_max: asked.operations_max.clamp(2, OPERATIONS_MAX),
            slots: asked.slots.clamp(1, SLOTS_MAX),
        };
        while cost_bytes(&granted) > left {
            granted.slots /= 2;
            if granted.slots == 0 {
                return Err(Status::Delay);
            }
        }
        Ok(granted)
    }

    pub fn destroy_session(&mut self, session: SessionId) -> Result<(), Status> {
        let client = self.sessions.get(&session).ok_or(Status::BadSession)?.client;
        self.remove_session(&session);
        if let Some(client) = self.clients.get_mut(&client) {
            client.sessions.retain(|&other| other != session);
        }
        Ok(())
    }

    pub(super) fn remove_session(&mut self, session: &SessionId) {
        if let Some(session) = self.sessions.remove(session) {
            self.cached_replies_bytes -= cost_bytes(&session.fore);
        }
    }

    pub fn has_session(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// The first operation of a request. Once it is `New`, [`Self::finish`] must follow.
    pub fn begin(
        &mut self,
        now: Instant,
        asked: &Sequence,
        request_bytes: usize,
        operations: u32,
    ) -> Result<Begun, Status> {
        self.now = now;
        let session = self.sessions.get_mut(&asked.session).ok_or(Status::BadSession)?;
        let fore = session.fore;
        let slot = session.slots.get_mut(asked.slot as usize).ok_or(Status::BadSlot)?;
        if asked.highest_slot >= fore.slots {
            return Err(Status::BadHighSlot);
        }
        if request_bytes > fore.request_bytes_max as usize {
            return Err(Status::ReqTooBig);
        }
        if operations > fore.operations_max {
            return Err(Status::TooManyOps);
        }
        if asked.sequence == slot.sequence {
            return match &slot.reply {
                _ if slot.busy => Err(Status::Delay),
                Some(reply) => Ok(Begun::Repeated(reply.clone())),
                None if slot.sequence == 0 => Err(Status::SeqMisordered), // nothing was asked yet
                None => Err(Status::RetryUncachedRep),
            };
        }
        if slot.busy || asked.sequence != slot.sequence.wrapping_add(1) {
            return Err(Status::SeqMisordered);
        }
        if asked.cache_this && fore.cached_reply_bytes_max < SHORTEST_REPLY_BYTES {
            return Err(Status::RepTooBigToCache);
        }
        slot.sequence = asked.sequence;
        slot.busy = true;
        let client = session.client;
        if let Some(client) = self.clients.get_mut(&client) {
            client.renewed = now;
        }
        Ok(Begun::New(Running {
            client,
            flags: self.path_flags(asked.session),
            session: asked.session,
            slot: asked.slot,
            slots: fore.slots,
            reply_bytes_max: fore.reply_bytes_max as usize,
            cached_reply_bytes_max: fore.cached_reply_bytes_max as usize,
            cache_this: asked.cache_this,
        }))
    }

    /// The request is answered with `reply`, which is kept if it may have to be repeated.
    pub fn finish(&mut self, running: &Running, reply: &[u8]) {
        // The session may have ended, by this very request too.
        let Some(session) = self.sessions.get_mut(&running.session) else { return };
        let slot = &mut session.slots[running.slot as usize];
        slot.busy = false;
        let most = if running.cache_this { usize::MAX } else { SMALL_REPLY_BYTES };
        if reply.len() <= most.min(running.cached_reply_bytes_max) {
            let kept = slot.reply.get_or_insert_default();
            kept.clear();
            kept.extend_from_slice(reply);
        } else {
            slot.reply = None;
        }
    }
}

fn is_too_small(channel: &ChannelAttributes) -> bool {
    channel.request_bytes_max.min(channel.reply_bytes_max) < MESSAGE_BYTES_MIN
}

/// What a session may come to keep.
fn cost_bytes(fore: &ChannelAttributes) -> usize {
    fore.slots as usize * (fore.cached_reply_bytes_max as usize + size_of::<Slot>())
}
