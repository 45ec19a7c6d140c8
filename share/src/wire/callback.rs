//! Calls of the server to a client (RFC 8881, 20): one notice in a compound of its own.

use super::rpc::{self, CallbackAuth};
use super::status::OK;
use super::types::{ClientId, FileHandle, SessionId, TAG_BYTES_MAX};
use super::xdr::{Decoded, Decoder, Encoder, Malformed};

const VERSION: u32 = 1;
const COMPOUND: u32 = 1;
const SEQUENCE: u32 = 11;
const NOTIFY_LOCK: u32 = 13;

pub struct Head {
    pub xid: u32,
    pub program: u32,
    pub auth: CallbackAuth,
    pub minor_version: u32,
    pub session: SessionId,
    pub sequence: u32,
}

/// That a lock may be free which this owner waits for.
pub fn encode_notify_lock(
    head: &Head,
    file: FileHandle,
    client: ClientId,
    owner: &[u8],
) -> Vec<u8> {
    let mut message = Vec::with_capacity(256);
    let call = &mut Encoder::new(&mut message);
    rpc::encode_call(call, head.xid, [head.program, VERSION, COMPOUND], &head.auth);
    call.opaque(b"");
    call.u32(head.minor_version);
    call.u32(0); // no ident: that is of minor version 0
    call.u32(2);
    call.u32(SEQUENCE);
    call.fixed(&head.session.0);
    call.u32(head.sequence);
    call.u32(0); // there is but one slot
    call.u32(0);
    call.bool(false);
    call.u32(0); // it refers to no request
    call.u32(NOTIFY_LOCK);
    call.opaque(file.as_bytes());
    call.u64(client.0);
    call.opaque(owner);
    message
}

/// Whose reply it is, and the status of its slot: `None` when the call didn't even get there.
pub fn decode_reply(record: &[u8]) -> Decoded<(u32, Option<u32>)> {
    let mut body = Decoder::new(record);
    let (xid, accepted) = rpc::decode_reply(&mut body)?;
    if !accepted {
        return Ok((xid, None));
    }
    let status = body.u32()?;
    body.opaque(TAG_BYTES_MAX)?;
    if body.u32()? == 0 {
        return Ok((xid, (status != OK).then_some(status)));
    }
    if body.u32()? != SEQUENCE {
        return Err(Malformed);
    }
    Ok((xid, Some(body.u32()?)))
}
