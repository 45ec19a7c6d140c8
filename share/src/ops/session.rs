//! Clients and sessions (RFC 8881, 18.34 to 18.37, 18.46, 18.50, 18.51), and names of security flavors.

use super::{Cursor, Place};
use crate::state::{Begun, Via};
use crate::tree::Name;
use crate::wire::arguments::{
    ChannelAttributes, CreateSession, ExchangeId, Number, Operation, Protect, stateid,
};
use crate::wire::status::{OK, Status};
use crate::wire::types::{ClientId, SessionId, StateId};
use crate::wire::xdr::{Decoded, Decoder, Encoder, Malformed};

/// What a client may say of itself; the rest has no meaning. One came with minor version 2.
const EXCHANGE_FLAGS: u32 = 0x4007_0103;
const EXCHANGE_FLAGS_SINCE_2: u32 = 0x4;
const FLAG_USE_NON_PNFS: u32 = 0x1_0000;
const FLAG_CONFIRMED: u32 = 0x8000_0000;
/// Persistent session, calls back on this connection, RDMA: the second may be granted.
const SESSION_FLAGS: u32 = 7;
const FLAG_BACK_CHANNEL: u32 = 2;
/// What a client may want of a connection, and what it gets: sums of these. The last wish means that it
/// could do with one of them.
const FORE: u32 = 1;
const BACK: u32 = 2;
const DIRECTIONS: [u32; 4] = [FORE, BACK, 3, 7];

const AUTH_SYS: u32 = 1;

pub enum Sequenced {
    Done(u32),
    /// The whole answer, from before.
    Repeated(Vec<u8>),
}

impl Cursor<'_> {
    pub(super) fn sequence(
        &mut self,
        body: &mut Decoder,
        operations: u32,
        reply: &mut Encoder,
    ) -> Decoded<Sequenced> {
        let Operation::Sequence(asked) = Operation::decode(Number::Sequence, body)? else {
            return Err(Malformed);
        };
        let (now, request_bytes) = (self.now, self.record.len());
        let begun =
            self.export.with_state(|state| state.begin(now, &asked, request_bytes, operations));
        reply.u32(Number::Sequence as u32);
        Ok(match begun {
            Err(status) => {
                reply.u32(status.number());
                Sequenced::Done(status.number())
            }
            Ok(Begun::Repeated(kept)) => Sequenced::Repeated(kept),
            Ok(Begun::New(running)) => {
                reply.u32(OK);
                reply.fixed(&asked.session.0);
                reply.u32(asked.sequence);
                reply.u32(asked.slot);
                reply.u32(running.slots - 1);
                reply.u32(running.slots - 1);
                reply.u32(running.flags);
                self.running = Some(running);
                Sequenced::Done(OK)
            }
        })
    }

    pub(super) fn exchange_id(
        &mut self,
        asked: &ExchangeId,
        reply: &mut Encoder,
    ) -> Result<(), Status> {
        let since_2 = if self.minor_version < 2 { 0 } else { EXCHANGE_FLAGS_SINCE_2 };
        if asked.flags & !(EXCHANGE_FLAGS | since_2) != 0 {
            return Err(Status::Inval);
        }
        match asked.protect {
            Protect::None => {}
            Protect::MachineCredential => return Err(Status::Inval), // it needs Kerberos
            Protect::SharedSecret => return Err(Status::EncrAlgUnsupp),
        }
        let known =
            self.export.with_state(|state| state.exchange_id(self.now, self.principal, asked))?;
        reply.u64(known.client.0);
        reply.u32(known.sequence);
        reply.u32(FLAG_USE_NON_PNFS | if known.confirmed { FLAG_CONFIRMED } else { 0 });
        reply.u32(0); // no protection of state
        // The same after a restart and wherever this file system is served, so that clients may claim.
        let owner = self.export.tree.id().to_be_bytes();
        reply.u64(0);
        reply.opaque(&owner);
        reply.opaque(&owner);
        reply.u32(0); // no name of the implementation
        Ok(())
    }

    pub(super) fn create_session(
        &mut self,
        asked: &CreateSession,
        reply: &mut Encoder,
    ) -> Result<(), Status> {
        if asked.flags & !SESSION_FLAGS != 0 {
            return Err(Status::Inval);
        }
        let via = Via { connection: self.connection, minor_version: self.minor_version };
        let created = self.export.with_state(|state| match state.is_40(asked.client) {
            true => Err(Status::StaleClientId),
            false => state.create_session(self.now, self.principal, asked, via),
        })?;
        reply.fixed(&created.session.0);
        reply.u32(created.sequence);
        reply.u32(if created.calls_back { FLAG_BACK_CHANNEL } else { 0 });
        for channel in [created.fore, created.back] {
            encode_channel(&channel, reply);
        }
        Ok(())
    }

    pub(super) fn destroy_session(&mut self, session: SessionId) -> Result<(), Status> {
        self.export.with_state(|state| state.destroy_session(session))
    }

    pub(super) fn destroy_client(&mut self, client: ClientId) -> Result<(), Status> {
        self.export.with_state(|state| match state.is_40(client) {
            true => Err(Status::StaleClientId),
            false => state.destroy_client(client),
        })
    }

    /// Requests of a session may come over any connection; calls back need one that is bound for them.
    pub(super) fn bind_connection(
        &mut self,
        session: SessionId,
        direction: u32,
        reply: &mut Encoder,
    ) -> Result<(), Status> {
        if !self.export.with_state(|state| state.has_session(session)) {
            return Err(Status::BadSession);
        }
        if !DIRECTIONS.contains(&direction) {
            return Err(Status::Inval);
        }
        let connection = self.connection.filter(|_| direction & BACK != 0);
        let calls_back = connection
            .is_some_and(|to| self.export.with_state(|state| state.bind_back(session, to)));
        let got = direction & FORE | if calls_back { BACK } else { 0 };
        if got == 0 {
            return Err(Status::Inval);
        }
        reply.fixed(&session.0);
        reply.u32(got);
        reply.bool(false);
        Ok(())
    }

    pub(super) fn reclaim_complete(&mut self, one_fs: bool) -> Result<(), Status> {
        let client = self.running()?.client;
        if one_fs {
            self.current()?;
            return Ok(()); // there is but one
        }
        self.export.with_state(|state| state.reclaim_complete(self.now, client))
    }

    pub(super) fn free_stateid(&mut self, given: StateId) -> Result<(), Status> {
        let (client, given) = (self.running()?.client, self.stateid(given)?);
        self.export.with_state(|state| state.free(client, given))
    }

    pub(super) fn test_stateids(
        &mut self,
        mut stateids: Decoder,
        count: usize,
        reply: &mut Encoder,
    ) -> Result<(), Status> {
        let client = self.running()?.client;
        reply.u32(count as u32);
        for _ in 0..count {
            let one = stateid(&mut stateids)?;
            let tested = self.export.with_state(|state| state.test(client, one));
            reply.u32(tested.err().map_or(OK, Status::number));
        }
        Ok(())
    }

    /// How one may call for this name: the same everywhere.
    pub(super) fn security(&mut self, name: &[u8], reply: &mut Encoder) -> Result<(), Status> {
        let name = Name::new(name)?;
        self.export.tree.lookup(self.caller, self.current()?.file, name)?;
        self.security_of(reply);
        Ok(())
    }

    pub(super) fn security_here(
        &mut self,
        of_parent: bool,
        reply: &mut Encoder,
    ) -> Result<(), Status> {
        let Place { file, .. } = self.current()?;
        if of_parent {
            self.export.tree.parent(self.caller, file)?;
        }
        self.security_of(reply);
        Ok(())
    }

    fn security_of(&mut self, reply: &mut Encoder) {
        reply.u32(1);
        reply.u32(AUTH_SYS);
        if self.minor_version > 0 {
            self.current = None; // as the protocol wants it
        }
    }
}

fn encode_channel(channel: &ChannelAttributes, reply: &mut Encoder) {
    reply.u32(0); // no padding of headers
    reply.u32(channel.request_bytes_max);
    reply.u32(channel.reply_bytes_max);
    reply.u32(channel.cached_reply_bytes_max);
    reply.u32(channel.operations_max);
    reply.u32(channel.slots);
    reply.u32(0); // no RDMA
}
