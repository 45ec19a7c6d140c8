//! A client of minor version 0: no session, and owners that number their requests.

use super::{Carrier, Create, Ops, Reply, message};
use ankole_share::wire::types::StateId;

/// One client with one open owner and one lock owner.
pub struct Client40<C> {
    pub carrier: C,
    pub uid: u32,
    pub id: u64,
    /// Of the next request of the open owner, and of the lock owner.
    pub seqid: u32,
    pub lock_seqid: u32,
    pub xid: u32,
}

pub const RESULT_CONFIRM: u32 = 2;

impl<C: Carrier> Client40<C> {
    /// A client that is confirmed.
    pub fn new(carrier: C, name: &str) -> Self {
        let mut client = Self { carrier, uid: 0, id: 0, seqid: 1, lock_seqid: 1, xid: 0 };
        let (id, confirm) = client.set_client_id(name, *b"verifier");
        client.confirm_client_id(id, confirm).ok(36);
        client.id = id;
        client
    }

    pub fn set_client_id(&mut self, name: &str, verifier: [u8; 8]) -> (u64, [u8; 8]) {
        let mut reply = self.try_set_client_id(name, verifier);
        reply.ok(35);
        (reply.u64(), reply.decode(|d| d.array().unwrap()))
    }

    pub fn try_set_client_id(&mut self, name: &str, verifier: [u8; 8]) -> Reply {
        let ops = Ops::default().op(35, |e| {
            e.fixed(&verifier);
            e.opaque(name.as_bytes());
            e.u32(0x4000_0000);
            e.opaque(b"tcp");
            e.opaque(b"127.0.0.1.3.4");
            e.u32(1);
        });
        self.call(ops)
    }

    pub fn confirm_client_id(&mut self, id: u64, confirm: [u8; 8]) -> Reply {
        self.call(Ops::default().op(36, |e| {
            e.u64(id);
            e.fixed(&confirm);
        }))
    }

    /// To be filled with operations that are this client's, with its next numbers.
    pub fn ops(&self) -> Ops {
        let mut ops = Ops::default();
        (ops.client, ops.seqid, ops.lock_seqid) = (self.id, self.seqid, self.lock_seqid);
        ops
    }

    pub fn call(&mut self, ops: Ops) -> Reply {
        self.xid += 1;
        self.repeat(ops)
    }

    /// With the number of the last message.
    pub fn repeat(&mut self, ops: Ops) -> Reply {
        let message = message(self.xid, self.uid, 0, &ops);
        Reply::new(self.carrier.carry(&message), 0)
    }

    /// Opens a file in the root, made if it isn't there; its handle too. It is confirmed if that is wanted.
    #[track_caller]
    pub fn open(&mut self, name: &str, access: u32, deny: u32) -> (Vec<u8>, StateId) {
        let create = Create::Unchecked { truncate: false };
        let ops = self.ops().put_root().open("owner", access, deny, create, name).get_handle();
        let mut reply = self.call(ops);
        self.seqid += 1;
        let (mut stateid, flags) = opened(&mut reply);
        let file = reply.ok(10).opaque();
        if flags & RESULT_CONFIRM != 0 {
            let confirm = self.ops().put(&file).confirm(stateid);
            stateid = self.call(confirm).ok(22).ok(20).stateid();
            self.seqid += 1;
        }
        (file, stateid)
    }
}

/// The stateid and the flags of an OPEN that came after the root.
#[track_caller]
pub fn opened(reply: &mut Reply) -> (StateId, u32) {
    let stateid = reply.ok(24).ok(18).stateid();
    reply.decode(|d| d.array::<20>().unwrap()); // change numbers
    let flags = reply.u32();
    let words = reply.u32();
    reply.decode(|d| (0..words).for_each(|_| assert!(d.u32().is_ok())));
    assert_eq!(reply.u32(), 0, "no delegation");
    (stateid, flags)
}
