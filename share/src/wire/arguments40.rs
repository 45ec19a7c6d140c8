//! The arguments of the operations that only minor version 0 has (RFC 7530, 16).

use super::arguments::{Claim, HowToCreate, Number, Open, Operation, stateid};
use super::types::*;
use super::xdr::{Decoded, Decoder, Malformed};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation40<'a> {
    OpenConfirm { stateid: StateId, seqid: u32 },
    ReleaseLockOwner { client: ClientId, owner: &'a [u8] },
    Renew(ClientId),
    SetClientId { verifier: Verifier, id: &'a [u8] },
    SetClientIdConfirm { client: ClientId, verifier: Verifier },
}

/// The longest name of a transport, and of an address.
const NETWORK_BYTES_MAX: usize = 1024;

/// The arguments of operation `number` of minor version 0.
pub fn decode<'a>(number: Number, body: &mut Decoder<'a>) -> Decoded<Operation<'a>> {
    use Number as N;
    Ok(Operation::V40(match number {
        N::OpenConfirm => Operation40::OpenConfirm { stateid: stateid(body)?, seqid: body.u32()? },
        N::ReleaseLockOwner => Operation40::ReleaseLockOwner {
            client: ClientId(body.u64()?),
            owner: body.opaque(OWNER_BYTES_MAX)?,
        },
        N::Renew => Operation40::Renew(ClientId(body.u64()?)),
        N::SetClientId => {
            let (verifier, id) = (body.array()?, body.opaque(OWNER_BYTES_MAX)?);
            // Where to call back; nothing is.
            let (_program, _transport) = (body.u32()?, body.opaque(NETWORK_BYTES_MAX)?);
            let (_address, _ident) = (body.opaque(NETWORK_BYTES_MAX)?, body.u32()?);
            Operation40::SetClientId { verifier, id }
        }
        N::SetClientIdConfirm => Operation40::SetClientIdConfirm {
            client: ClientId(body.u64()?),
            verifier: body.array()?,
        },
        _ => {
            return match Operation::decode(number, body)? {
                Operation::Open(open) if is_newer(&open) => Err(Malformed),
                operation => Ok(operation),
            };
        }
    }))
}

/// A choice that only later versions have.
fn is_newer(open: &Open) -> bool {
    let exclusive = matches!(open.create, Some(HowToCreate::Exclusive(_, Some(_))));
    exclusive || open.claim == Claim::File
}
