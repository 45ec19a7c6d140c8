//! What goes over the wire, as types: XDR, RPC, and NFSv4's operations and attributes. Pure.

pub mod arguments;
pub mod arguments40;
pub mod arguments42;
pub mod attributes;
pub mod callback;
pub mod record;
pub mod rpc;
pub mod status;
pub mod types;
pub mod xdr;
