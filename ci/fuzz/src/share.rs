//! What a client of the share may send: whole messages, and compounds of all minor versions.
//!
//! ```text
//! compounds:  | minor version (1) | then, again and again: | operations (1) | their bytes (2, big-endian) | … |
//! ```
//! In the versions 1 and 2 each compound is put into a session that is there, so that nothing is spent on
//! finding its way into one; version 0 has none. The tree is one in memory, and all ids are the same each time.

use ankole_share::ops::Export;
use ankole_share::tree::memory::MemoryTree;
use ankole_share::wire::rpc::{NFS_PROGRAM, NFS_VERSION, PROCEDURE_COMPOUND};
use ankole_share::wire::types::IO_BYTES_MAX;
use ankole_share::wire::xdr::{Decoded, Decoder, Encoder};
use std::time::{Duration, Instant};

const REPLY_BYTES_MAX: usize = IO_BYTES_MAX as usize + 8 * 1024;
const LEASE: Duration = Duration::from_secs(20);

fn export(now: Instant) -> Export {
    Export::new(Box::<MemoryTree>::default(), now, 1, LEASE)
}

/// A whole message: it is answered, or isn't a call.
pub fn record(input: &[u8]) {
    let now = Instant::now();
    let mut reply = Vec::new();
    let answered = export(now).answer(now, input, &mut reply);
    assert_eq!(answered.is_ok(), !reply.is_empty());
    assert!(reply.len() <= REPLY_BYTES_MAX, "a reply of {} bytes", reply.len());
}

/// Compounds of one client, one after the other. Each is answered by as many results as it had operations, or
/// by fewer of which the last failed.
pub fn compounds(input: &[u8]) {
    statuses(input);
}

/// The status of each compound.
pub fn statuses(input: &[u8]) -> Vec<u32> {
    let Some((&minor, mut rest)) = input.split_first() else { return Vec::new() };
    let mut server = Server::new(u32::from(minor % 3));
    let mut statuses = Vec::new();
    while let Some((&[operations, high, low], behind)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (body, behind) = behind.split_at(length.min(behind.len()));
        rest = behind;
        statuses.push(server.compound(operations.into(), body));
    }
    statuses
}

struct Server {
    export: Export,
    now: Instant,
    minor: u32,
    xid: u32,
    session: [u8; 16],
    sequence: u32,
}

impl Server {
    fn new(minor: u32) -> Self {
        let now = Instant::now();
        let session = [0; 16];
        let mut server = Self { export: export(now), now, minor, xid: 0, session, sequence: 0 };
        if minor > 0 {
            server.begin_session().expect("it is answered as it has to be");
        }
        server
    }

    /// As one client with one session that has nothing to claim.
    fn begin_session(&mut self) -> Decoded<()> {
        let identify = encoded(|e| {
            e.u32(42);
            e.fixed(b"verifier");
            e.opaque(b"client");
            [0, 0, 0].into_iter().for_each(|number| e.u32(number));
        });
        let reply = self.send(1, &identify);
        let mut results = results(&reply)?.1;
        let _ok = (results.u32()?, results.u32()?);
        let (client, sequence) = (results.u64()?, results.u32()?);
        let create = encoded(|e| {
            e.u32(43);
            e.u64(client);
            e.u32(sequence);
            e.u32(0);
            for _ in 0..2 {
                let channel = [0, 1 << 20, 1 << 20, 4096, 64, 8, 0];
                channel.into_iter().for_each(|number| e.u32(number));
            }
            e.u32(0);
            e.u32(0);
        });
        let reply = self.send(1, &create);
        let mut results = self::results(&reply)?.1;
        let _ok = (results.u32()?, results.u32()?);
        self.session = results.array()?;
        let complete = encoded(|e| {
            e.u32(58);
            e.bool(false);
        });
        assert_eq!(self.compound(1, &complete), 0);
        Ok(())
    }

    fn compound(&mut self, operations: u32, body: &[u8]) -> u32 {
        let (mut asked, mut body) = (operations, body.to_vec());
        if self.minor > 0 {
            self.sequence += 1;
            let sequence = encoded(|e| {
                e.u32(53);
                e.fixed(&self.session);
                [self.sequence, 0, 0, 0].into_iter().for_each(|number| e.u32(number));
            });
            body.splice(0..0, sequence);
            asked += 1;
        }
        let reply = self.send(asked, &body);
        // Arguments that can't be are refused without results.
        let Ok((answered, mut results)) = results(&reply) else { return u32::MAX };
        let status = answered.0;
        assert!(answered.1 <= asked && (status != 0 || answered.1 == asked), "{answered:?}");
        assert!(!results.is_empty() || answered.1 == 0);
        if self.minor > 0 && results.array().is_ok_and(|first: [u8; 8]| first[4..] != [0; 4]) {
            // The session is gone, or its number is another now: as a client would, begin anew.
            *self = Self::new(self.minor);
        }
        status
    }

    fn send(&mut self, operations: u32, body: &[u8]) -> Vec<u8> {
        self.xid += 1;
        let mut message = encoded(|e| {
            let head = [self.xid, 0, 2, NFS_PROGRAM, NFS_VERSION, PROCEDURE_COMPOUND, 1, 24];
            head.into_iter().for_each(|number| e.u32(number));
            e.u32(0);
            e.opaque(b"host");
            [0, 0, 0, 0, 0].into_iter().for_each(|number| e.u32(number)); // root; no verifier
            e.opaque(b"");
            [self.minor, operations].into_iter().for_each(|number| e.u32(number));
        });
        message.extend(body);
        let mut reply = Vec::new();
        self.export.answer(self.now, &message, &mut reply).expect("it is a call");
        assert!(reply.len() <= REPLY_BYTES_MAX, "a reply of {} bytes", reply.len());
        reply
    }
}

fn encoded(encode: impl FnOnce(&mut Encoder)) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut Encoder::new(&mut bytes));
    bytes
}

/// The status and the number of results, and what these are.
fn results(reply: &[u8]) -> Decoded<((u32, u32), Decoder<'_>)> {
    let mut body = Decoder::new(reply);
    let _head: [u8; 24] = body.array()?;
    let status = body.u32()?;
    let _tag = body.opaque(1024)?;
    Ok(((status, body.u32()?), body))
}
