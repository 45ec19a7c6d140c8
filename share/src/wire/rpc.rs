//! ONC RPC (RFC 5531): the head of a call, who calls (AUTH_NONE, AUTH_SYS), and the heads of replies.

use super::xdr::{Decoded, Decoder, Encoder, Malformed};

pub const NFS_PROGRAM: u32 = 100_003;
pub const NFS_VERSION: u32 = 4;
pub const PROCEDURE_NULL: u32 = 0;
pub const PROCEDURE_COMPOUND: u32 = 1;

/// AUTH_SYS carries no more.
pub const GROUPS_MAX: usize = 16;
const AUTH_BODY_BYTES_MAX: usize = 400;

const CALL: u32 = 0;
const REPLY: u32 = 1;
const RPC_VERSION: u32 = 2;
const AUTH_NONE: u32 = 0;
const AUTH_SYS: u32 = 1;

/// Who calls, as the client says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    groups: [u32; GROUPS_MAX],
    groups_len: u8,
}

impl Caller {
    /// Who says nothing is `nobody`.
    pub const NOBODY: Caller = Caller::new(65_534, 65_534);
    pub const ROOT: Caller = Caller::new(0, 0);

    pub const fn new(uid: u32, gid: u32) -> Self {
        Self { uid, gid, groups: [0; GROUPS_MAX], groups_len: 0 }
    }

    /// More than [`GROUPS_MAX`] are left out.
    pub fn with_groups(uid: u32, gid: u32, groups: &[u32]) -> Self {
        let mut caller = Self::new(uid, gid);
        for (to, &group) in caller.groups.iter_mut().zip(groups) {
            *to = group;
            caller.groups_len += 1;
        }
        caller
    }

    /// The same with other numbers.
    pub fn map(mut self, uid: impl Fn(u32) -> u32, gid: impl Fn(u32) -> u32) -> Self {
        (self.uid, self.gid) = (uid(self.uid), gid(self.gid));
        for group in &mut self.groups[..self.groups_len.into()] {
            *group = gid(*group);
        }
        self
    }

    /// The supplementary groups.
    pub fn groups(&self) -> &[u32] {
        &self.groups[..self.groups_len.into()]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub xid: u32,
    pub procedure: u32,
    pub caller: Caller,
}

/// Why a call isn't even looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    RpcVersion,
    /// The kind of credential isn't known, or it is broken (the RPC's number says which).
    Credential(u32),
    Program,
    Version,
    Procedure,
    GarbageArguments,
}

const BAD_CREDENTIAL: u32 = 1;
const CREDENTIAL_TOO_WEAK: u32 = 5;

/// The head of a call; `body` then stands at the arguments. `Err(Malformed)`: not even a call, there
/// is nobody to answer. The inner error goes back to the caller, with the number of its call.
pub fn decode_call(body: &mut Decoder) -> Decoded<Result<Call, (u32, Refusal)>> {
    let xid = body.u32()?;
    if body.u32()? != CALL {
        return Err(Malformed);
    }
    if body.u32()? != RPC_VERSION {
        return Ok(Err((xid, Refusal::RpcVersion)));
    }
    let (program, version, procedure) = (body.u32()?, body.u32()?, body.u32()?);
    let caller = decode_caller(body)?;
    let _verifier = (body.u32()?, body.opaque(AUTH_BODY_BYTES_MAX)?);
    Ok(if program != NFS_PROGRAM {
        Err((xid, Refusal::Program))
    } else if version != NFS_VERSION {
        Err((xid, Refusal::Version))
    } else if procedure > PROCEDURE_COMPOUND {
        Err((xid, Refusal::Procedure))
    } else {
        match caller {
            Ok(caller) => Ok(Call { xid, procedure, caller }),
            // The null procedure asks only whether somebody is there.
            Err(_) if procedure == PROCEDURE_NULL => {
                Ok(Call { xid, procedure, caller: Caller::NOBODY })
            }
            Err(why) => Err((xid, Refusal::Credential(why))),
        }
    })
}

fn decode_caller(body: &mut Decoder) -> Decoded<Result<Caller, u32>> {
    let flavor = body.u32()?;
    let credential = body.opaque(AUTH_BODY_BYTES_MAX)?;
    Ok(match flavor {
        AUTH_NONE => Ok(Caller::NOBODY),
        AUTH_SYS => {
            decode_auth_sys(&mut Decoder::new(credential)).map_err(|Malformed| BAD_CREDENTIAL)
        }
        _ => Err(CREDENTIAL_TOO_WEAK),
    })
}

pub(super) fn decode_auth_sys(body: &mut Decoder) -> Decoded<Caller> {
    let _stamp = body.u32()?;
    let _machine = body.opaque(255)?;
    let mut caller = Caller::new(body.u32()?, body.u32()?);
    let groups = body.count(GROUPS_MAX)?;
    for group in &mut caller.groups[..groups] {
        *group = body.u32()?;
    }
    caller.groups_len = groups as u8;
    Ok(caller)
}

/// Who we are when we call a client back, as it wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallbackAuth {
    None,
    Sys(Caller),
}

/// The head of a call of ours: of a program, its version, and a procedure.
pub fn encode_call(call: &mut Encoder, xid: u32, procedure: [u32; 3], auth: &CallbackAuth) {
    call.u32(xid);
    call.u32(CALL);
    call.u32(RPC_VERSION);
    procedure.iter().for_each(|&number| call.u32(number));
    match auth {
        CallbackAuth::None => {
            call.u32(AUTH_NONE);
            call.u32(0);
        }
        CallbackAuth::Sys(caller) => {
            call.u32(AUTH_SYS);
            call.u32(20 + 4 * u32::from(caller.groups_len));
            call.u32(0);
            call.opaque(b"");
            call.u32(caller.uid);
            call.u32(caller.gid);
            call.u32(caller.groups_len.into());
            caller.groups().iter().for_each(|&group| call.u32(group));
        }
    }
    call.u32(AUTH_NONE);
    call.u32(0);
}

pub fn is_reply(record: &[u8]) -> bool {
    record.get(4..8) == Some(&REPLY.to_be_bytes())
}

/// The head of a reply to a call of ours: of which, and whether results follow.
pub fn decode_reply(body: &mut Decoder) -> Decoded<(u32, bool)> {
    let xid = body.u32()?;
    if body.u32()? != REPLY {
        return Err(Malformed);
    }
    if body.u32()? != 0 {
        return Ok((xid, false)); // denied
    }
    let _verifier = (body.u32()?, body.opaque(AUTH_BODY_BYTES_MAX)?);
    Ok((xid, body.u32()? == 0))
}

/// The head of a reply whose results follow.
pub fn encode_accepted(reply: &mut Encoder, xid: u32) {
    reply.u32(xid);
    reply.u32(REPLY);
    reply.u32(0); // accepted
    reply.u32(AUTH_NONE);
    reply.u32(0);
    reply.u32(0); // success
}

/// The whole reply to a call that is refused.
pub fn encode_refused(reply: &mut Encoder, xid: u32, refusal: Refusal) {
    reply.u32(xid);
    reply.u32(REPLY);
    let denied = matches!(refusal, Refusal::RpcVersion | Refusal::Credential(_));
    reply.u32(denied.into());
    if !denied {
        reply.u32(AUTH_NONE);
        reply.u32(0);
    }
    match refusal {
        Refusal::RpcVersion => {
            reply.u32(0);
            reply.u32(RPC_VERSION);
            reply.u32(RPC_VERSION);
        }
        Refusal::Credential(why) => {
            reply.u32(1);
            reply.u32(why);
        }
        Refusal::Program => reply.u32(1),
        Refusal::Version => {
            reply.u32(2);
            reply.u32(NFS_VERSION);
            reply.u32(NFS_VERSION);
        }
        Refusal::Procedure => reply.u32(3),
        Refusal::GarbageArguments => reply.u32(4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(program: u32, version: u32, flavor: u32, credential: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes);
        for number in [9, CALL, RPC_VERSION, program, version, PROCEDURE_COMPOUND, flavor] {
            encoder.u32(number);
        }
        encoder.opaque(credential);
        encoder.u32(AUTH_NONE);
        encoder.opaque(b"");
        bytes
    }

    fn auth_sys(groups: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes);
        encoder.u32(0);
        encoder.opaque(b"client");
        encoder.u32(1000);
        encoder.u32(100);
        encoder.u32(groups.len() as u32);
        groups.iter().for_each(|&group| encoder.u32(group));
        bytes
    }

    #[test]
    fn a_caller_is_who_auth_sys_says() {
        let bytes = call(NFS_PROGRAM, NFS_VERSION, AUTH_SYS, &auth_sys(&[4, 27]));
        let call = decode_call(&mut Decoder::new(&bytes)).unwrap().unwrap();
        assert_eq!((call.caller.uid, call.caller.gid), (1000, 100));
        assert_eq!(call.caller.groups(), [4, 27]);
    }

    #[test]
    fn what_is_not_served_is_refused_by_its_name() {
        let refusal = |bytes: Vec<u8>| decode_call(&mut Decoder::new(&bytes)).unwrap().unwrap_err();
        assert_eq!(refusal(call(100_005, 3, AUTH_NONE, b"")), (9, Refusal::Program));
        assert_eq!(refusal(call(NFS_PROGRAM, 3, AUTH_NONE, b"")), (9, Refusal::Version));
        let gss = call(NFS_PROGRAM, NFS_VERSION, 6, b"");
        assert_eq!(refusal(gss), (9, Refusal::Credential(CREDENTIAL_TOO_WEAK)));
        let crowd = call(NFS_PROGRAM, NFS_VERSION, AUTH_SYS, &auth_sys(&[1; 17]));
        assert_eq!(refusal(crowd), (9, Refusal::Credential(BAD_CREDENTIAL)));
    }

    #[test]
    fn any_cut_of_a_call_is_malformed_and_nothing_worse() {
        let bytes = call(NFS_PROGRAM, NFS_VERSION, AUTH_SYS, &auth_sys(&[4, 27]));
        for end in 0..bytes.len() {
            assert_eq!(decode_call(&mut Decoder::new(&bytes[..end])), Err(Malformed), "{end}");
        }
    }
}
