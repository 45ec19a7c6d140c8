//! A client of our own, as small as can be: it puts compounds together by hand and takes replies apart, by
//! the RFC and without the server's types for operations. What carries a message is given to it.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use ankole_share::wire::attributes::AttributeSet;
use ankole_share::wire::types::StateId;
use ankole_share::wire::xdr::{Decoder, Encoder};

pub mod minor0;

pub const OK: u32 = 0;

/// Carries one message to the server, and its reply back.
pub trait Carrier {
    fn carry(&mut self, message: &[u8]) -> Vec<u8>;
}

impl<F: FnMut(&[u8]) -> Vec<u8>> Carrier for F {
    fn carry(&mut self, message: &[u8]) -> Vec<u8> {
        self(message)
    }
}

/// Operations that are put together.
#[derive(Default)]
pub struct Ops {
    bytes: Vec<u8>,
    count: u32,
    /// What minor version 0 puts into what follows: who calls, and the numbers of the owners' requests.
    pub client: u64,
    pub seqid: u32,
    pub lock_seqid: u32,
}

pub enum Create<'a> {
    No,
    Unchecked { truncate: bool },
    Guarded,
    Exclusive(&'a [u8; 8]),
}

impl Ops {
    pub fn op(mut self, number: u32, arguments: impl FnOnce(&mut Encoder)) -> Self {
        let mut encoder = Encoder::new(&mut self.bytes);
        encoder.u32(number);
        arguments(&mut encoder);
        self.count += 1;
        self
    }

    pub fn put_root(self) -> Self {
        self.op(24, |_| {})
    }
    pub fn put(self, handle: &[u8]) -> Self {
        self.op(22, |e| e.opaque(handle))
    }
    pub fn get_handle(self) -> Self {
        self.op(10, |_| {})
    }
    pub fn save(self) -> Self {
        self.op(32, |_| {})
    }
    pub fn lookup(self, name: &str) -> Self {
        self.op(15, |e| e.opaque(name.as_bytes()))
    }
    pub fn parent(self) -> Self {
        self.op(16, |_| {})
    }
    pub fn access(self, bits: u32) -> Self {
        self.op(3, |e| e.u32(bits))
    }
    pub fn attributes(self, numbers: &[u32]) -> Self {
        self.op(9, |e| AttributeSet::of(numbers).encode(e))
    }
    pub fn make_directory(self, name: &str) -> Self {
        self.op(6, |e| {
            e.u32(2);
            e.opaque(name.as_bytes());
            mode(0o755, e);
        })
    }
    pub fn remove(self, name: &str) -> Self {
        self.op(28, |e| e.opaque(name.as_bytes()))
    }
    pub fn rename(self, from: &str, to: &str) -> Self {
        self.op(29, |e| {
            e.opaque(from.as_bytes());
            e.opaque(to.as_bytes());
        })
    }
    pub fn set_size(self, stateid: StateId, size_bytes: u64) -> Self {
        self.op(34, |e| {
            encode(&stateid, e);
            AttributeSet::of(&[4]).encode(e);
            e.opaque(&size_bytes.to_be_bytes());
        })
    }
    pub fn open(self, owner: &str, access: u32, deny: u32, create: Create, name: &str) -> Self {
        self.open_claiming(owner, access, deny, create, |e| {
            e.u32(0);
            e.opaque(name.as_bytes());
        })
    }
    pub fn reclaim(self, owner: &str, access: u32) -> Self {
        self.open_claiming(owner, access, 0, Create::No, |e| {
            e.u32(1);
            e.u32(0);
        })
    }
    fn open_claiming(
        self,
        owner: &str,
        access: u32,
        deny: u32,
        create: Create,
        claim: impl FnOnce(&mut Encoder),
    ) -> Self {
        let (seqid, id) = (self.seqid, self.client);
        self.op(18, |e| {
            numbers(e, &[seqid, access, deny]);
            e.u64(id);
            e.opaque(owner.as_bytes());
            e.u32(!matches!(create, Create::No) as u32);
            match create {
                Create::No => {}
                Create::Unchecked { truncate: false } => {
                    e.u32(0);
                    mode(0o644, e);
                }
                Create::Unchecked { truncate: true } => {
                    e.u32(0);
                    AttributeSet::of(&[4]).encode(e);
                    e.opaque(&[0; 8]);
                }
                Create::Guarded => {
                    e.u32(1);
                    mode(0o644, e);
                }
                Create::Exclusive(verifier) => {
                    e.u32(3);
                    e.fixed(verifier);
                    mode(0o644, e);
                }
            }
            claim(e);
        })
    }
    pub fn close(self, stateid: StateId) -> Self {
        let seqid = self.seqid;
        self.op(4, |e| {
            e.u32(seqid);
            encode(&stateid, e);
        })
    }
    pub fn downgrade(self, stateid: StateId, access: u32, deny: u32) -> Self {
        let seqid = self.seqid;
        self.op(21, |e| {
            encode(&stateid, e);
            numbers(e, &[seqid, access, deny]);
        })
    }
    pub fn read(self, stateid: StateId, offset: u64, count: u32) -> Self {
        self.op(25, |e| {
            encode(&stateid, e);
            e.u64(offset);
            e.u32(count);
        })
    }
    pub fn write(self, stateid: StateId, offset: u64, stability: u32, data: &[u8]) -> Self {
        self.op(38, |e| {
            encode(&stateid, e);
            e.u64(offset);
            e.u32(stability);
            e.opaque(data);
        })
    }
    pub fn commit(self) -> Self {
        self.op(5, |e| {
            e.u64(0);
            e.u32(0);
        })
    }
    /// The first lock of `owner`, on an open.
    pub fn lock(
        self,
        open: StateId,
        owner: &str,
        exclusive: bool,
        first: u64,
        length: u64,
    ) -> Self {
        self.lock_or_claim(open, owner, exclusive, first, length, false)
    }
    pub fn lock_or_claim(
        self,
        open: StateId,
        owner: &str,
        exclusive: bool,
        first: u64,
        length: u64,
        claims: bool,
    ) -> Self {
        self.lock_of_kind(1 + u32::from(exclusive), open, owner, [first, length], claims)
    }
    fn lock_of_kind(
        self,
        kind: u32,
        open: StateId,
        owner: &str,
        range: [u64; 2],
        claims: bool,
    ) -> Self {
        let (seqid, lock_seqid, id) = (self.seqid, self.lock_seqid, self.client);
        self.op(12, |e| {
            e.u32(kind);
            e.bool(claims);
            range.iter().for_each(|&bytes| e.u64(bytes));
            e.bool(true);
            e.u32(seqid);
            encode(&open, e);
            e.u32(lock_seqid);
            e.u64(id);
            e.opaque(owner.as_bytes());
        })
    }
    /// The first lock of `owner`, which keeps out all, and will be asked for again if it is denied.
    pub fn wait_to_lock(self, open: StateId, owner: &str, first: u64, length: u64) -> Self {
        self.lock_of_kind(4, open, owner, [first, length], false)
    }
    pub fn wait_to_share(self, open: StateId, owner: &str, first: u64, length: u64) -> Self {
        self.lock_of_kind(3, open, owner, [first, length], false)
    }
    pub fn unlock(self, locks: StateId, first: u64, length: u64) -> Self {
        let seqid = self.lock_seqid;
        self.op(14, |e| {
            e.u32(2);
            e.u32(seqid);
            encode(&locks, e);
            e.u64(first);
            e.u64(length);
        })
    }
    /// More locks of an owner that has some on this file.
    pub fn lock_more(self, locks: StateId, exclusive: bool, first: u64, length: u64) -> Self {
        let seqid = self.lock_seqid;
        self.op(12, |e| {
            e.u32(1 + u32::from(exclusive));
            e.bool(false);
            e.u64(first);
            e.u64(length);
            e.bool(false);
            encode(&locks, e);
            e.u32(seqid);
        })
    }
    pub fn confirm(self, open: StateId) -> Self {
        let seqid = self.seqid;
        self.op(20, |e| {
            encode(&open, e);
            e.u32(seqid);
        })
    }
    pub fn release_lock_owner(self, owner: &str) -> Self {
        let id = self.client;
        self.op(39, |e| {
            e.u64(id);
            e.opaque(owner.as_bytes());
        })
    }
    pub fn renew(self, client: u64) -> Self {
        self.op(30, |e| e.u64(client))
    }
    pub fn read_directory(self, after: u64, reply_bytes_max: u32) -> Self {
        self.op(26, |e| {
            e.u64(after);
            e.u64(0);
            e.u32(0);
            e.u32(reply_bytes_max);
            AttributeSet::of(&[20]).encode(e);
        })
    }
    pub fn reclaim_complete(self) -> Self {
        self.op(58, |e| e.bool(false))
    }
    pub fn allocate(self, stateid: StateId, offset: u64, length: u64) -> Self {
        self.op(59, |e| region(e, &stateid, offset, length))
    }
    pub fn deallocate(self, stateid: StateId, offset: u64, length: u64) -> Self {
        self.op(62, |e| region(e, &stateid, offset, length))
    }
    /// `hole`: the next one, else the next data.
    pub fn seek(self, stateid: StateId, offset: u64, hole: bool) -> Self {
        self.op(69, |e| {
            encode(&stateid, e);
            e.u64(offset);
            e.u32(hole.into());
        })
    }
    pub fn read_plus(self, stateid: StateId, offset: u64, count: u32) -> Self {
        self.op(68, |e| {
            encode(&stateid, e);
            e.u64(offset);
            e.u32(count);
        })
    }
    /// Of the saved file into the current one, each with its stateid and offset.
    pub fn copy(self, from: (StateId, u64), to: (StateId, u64), length: u64) -> Self {
        self.op(60, |e| {
            copied(e, from, to, length);
            numbers(e, &[1, 0, 0]);
        })
    }
    pub fn clone_range(self, from: (StateId, u64), to: (StateId, u64), length: u64) -> Self {
        self.op(71, |e| copied(e, from, to, length))
    }
    pub fn get_xattr(self, name: &str) -> Self {
        self.op(72, |e| e.opaque(name.as_bytes()))
    }
    /// `when`: 0 always, 1 if it isn't there, 2 if it is.
    pub fn set_xattr(self, when: u32, name: &str, value: &[u8]) -> Self {
        self.op(73, |e| {
            e.u32(when);
            e.opaque(name.as_bytes());
            e.opaque(value);
        })
    }
    pub fn list_xattrs(self, cookie: u64, bytes_max: u32) -> Self {
        self.op(74, |e| {
            e.u64(cookie);
            e.u32(bytes_max);
        })
    }
    pub fn remove_xattr(self, name: &str) -> Self {
        self.op(75, |e| e.opaque(name.as_bytes()))
    }
    /// How the client may be called: by a program of its, as user 0.
    pub fn callback_control(self, program: u32) -> Self {
        self.op(40, |e| numbers(e, &[program, 2, 0, 1, 0, 0, 0, 0, 0]))
    }
    /// What the connection is for: 1 requests, 2 calls back, 3 both.
    pub fn bind(self, session: [u8; 16], direction: u32) -> Self {
        self.op(41, |e| {
            e.fixed(&session);
            e.u32(direction);
            e.bool(false);
        })
    }
    pub fn free(self, stateid: StateId) -> Self {
        self.op(45, |e| encode(&stateid, e))
    }
}

fn numbers(e: &mut Encoder, numbers: &[u32]) {
    numbers.iter().for_each(|&number| e.u32(number));
}

fn region(e: &mut Encoder, stateid: &StateId, offset: u64, length: u64) {
    encode(stateid, e);
    e.u64(offset);
    e.u64(length);
}

fn copied(e: &mut Encoder, from: (StateId, u64), to: (StateId, u64), length: u64) {
    encode(&from.0, e);
    encode(&to.0, e);
    [from.1, to.1, length].iter().for_each(|&number| e.u64(number));
}

fn mode(mode: u32, e: &mut Encoder) {
    AttributeSet::of(&[33]).encode(e);
    e.opaque(&mode.to_be_bytes());
}

fn encode(stateid: &StateId, e: &mut Encoder) {
    e.u32(stateid.seqid);
    e.fixed(&stateid.other);
}

/// A reply that is taken apart, operation by operation.
pub struct Reply {
    bytes: Vec<u8>,
    at: usize,
    pub status: u32,
    pub results: u32,
}

impl Reply {
    fn new(bytes: Vec<u8>, minor: u32) -> Self {
        let mut decoder = Decoder::new(&bytes);
        let head = decoder.array::<24>().expect("the head of a reply");
        assert_eq!(head[8..], [0; 16], "accepted, no verifier, success: minor version {minor}");
        let status = decoder.u32().unwrap();
        decoder.opaque(1024).expect("the tag");
        let results = decoder.u32().unwrap();
        let at = bytes.len() - decoder.rest().len();
        Self { bytes, at, status, results }
    }

    pub fn decode<T>(&mut self, decode: impl FnOnce(&mut Decoder) -> T) -> T {
        let mut decoder = Decoder::new(&self.bytes[self.at..]);
        let decoded = decode(&mut decoder);
        self.at = self.bytes.len() - decoder.rest().len();
        decoded
    }

    /// The status of the next result, which is operation `number`'s.
    #[track_caller]
    pub fn next(&mut self, number: u32) -> u32 {
        let (found, status) = self.decode(|d| (d.u32().unwrap(), d.u32().unwrap()));
        assert_eq!(found, number, "another operation's result");
        status
    }

    #[track_caller]
    pub fn ok(&mut self, number: u32) -> &mut Self {
        assert_eq!(self.next(number), OK, "operation {number}");
        self
    }

    pub fn u32(&mut self) -> u32 {
        self.decode(|d| d.u32().unwrap())
    }

    pub fn u64(&mut self) -> u64 {
        self.decode(|d| d.u64().unwrap())
    }

    pub fn opaque(&mut self) -> Vec<u8> {
        self.decode(|d| d.opaque(1 << 21).unwrap().to_vec())
    }

    pub fn stateid(&mut self) -> StateId {
        self.decode(|d| StateId { seqid: d.u32().unwrap(), other: d.array().unwrap() })
    }

    /// The whole message.
    pub fn bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }
}

/// One client with one session, that uses one slot.
pub struct Client<C> {
    pub carrier: C,
    pub uid: u32,
    pub minor: u32,
    pub session: [u8; 16],
    pub sequence: u32,
    pub cache_this: bool,
    /// What the last reply said is wrong.
    pub flags: u32,
}

impl<C: Carrier> Client<C> {
    /// A client that has said who it is and that it has nothing to claim.
    pub fn new(carrier: C, name: &str) -> Self {
        let mut client = Self::before_claims(carrier, name);
        client.call(Ops::default().reclaim_complete()).ok(58);
        client
    }

    /// It may still claim what it had.
    pub fn before_claims(carrier: C, name: &str) -> Self {
        let mut client = Self {
            carrier,
            uid: 0,
            minor: 1,
            session: [0; 16],
            sequence: 0,
            cache_this: false,
            flags: 0,
        };
        let (id, sequence) = client.exchange_id(name, *b"verifier");
        let mut created = client.create_session(id, sequence, (1 << 20) + 4096);
        created.ok(43);
        client.session = created.decode(|d| d.array().unwrap());
        client
    }

    pub fn exchange_id(&mut self, name: &str, verifier: [u8; 8]) -> (u64, u32) {
        let mut reply = self.bare(Ops::default().op(42, |e| {
            e.fixed(&verifier);
            e.opaque(name.as_bytes());
            numbers(e, &[0, 0, 0]);
        }));
        reply.ok(42);
        (reply.u64(), reply.u32())
    }

    pub fn create_session(&mut self, id: u64, sequence: u32, bytes_max: u32) -> Reply {
        self.bare(Ops::default().op(43, |e| {
            e.u64(id);
            e.u32(sequence);
            e.u32(0);
            for _ in 0..2 {
                numbers(e, &[0, bytes_max, bytes_max, 4096, 16, 8, 0]);
            }
            e.u32(0x4000_0000);
            e.u32(0);
        }))
    }

    /// A compound outside of the session.
    pub fn bare(&mut self, ops: Ops) -> Reply {
        let message = self.message(&ops);
        Reply::new(self.carrier.carry(&message), self.minor)
    }

    pub fn call(&mut self, ops: Ops) -> Reply {
        self.sequence += 1;
        self.repeat(ops)
    }

    /// With the number of the last call.
    pub fn repeat(&mut self, ops: Ops) -> Reply {
        let message = self.sequenced(ops);
        let mut reply = Reply::new(self.carrier.carry(&message), self.minor);
        if reply.next(53) == OK {
            reply.decode(|d| d.array::<32>().unwrap());
            self.flags = reply.u32();
        }
        reply
    }

    pub fn sequenced(&self, ops: Ops) -> Vec<u8> {
        let (session, sequence, cache_this) = (self.session, self.sequence, self.cache_this);
        let mut all = Ops::default().op(53, |e| {
            e.fixed(&session);
            numbers(e, &[sequence, 0, 0]);
            e.bool(cache_this);
        });
        all.bytes.extend(ops.bytes);
        all.count += ops.count;
        self.message(&all)
    }

    fn message(&self, ops: &Ops) -> Vec<u8> {
        message(7, self.uid, self.minor, ops)
    }
}

/// One compound, as a call.
fn message(xid: u32, uid: u32, minor: u32, ops: &Ops) -> Vec<u8> {
    let mut message = Vec::new();
    let mut e = Encoder::new(&mut message);
    numbers(&mut e, &[xid, 0, 2, 100_003, 4, 1]);
    let mut credential = Vec::new();
    let mut c = Encoder::new(&mut credential);
    c.u32(0);
    c.opaque(b"machine");
    numbers(&mut c, &[uid, uid, 0]);
    e.u32(1);
    e.opaque(&credential);
    numbers(&mut e, &[0, 0]);
    e.opaque(b"tag");
    numbers(&mut e, &[minor, ops.count]);
    message.extend(&ops.bytes);
    message
}

impl<C: Carrier> Client<C> {
    /// Opens a file in the root, made if it isn't there; its handle too.
    #[track_caller]
    pub fn open(&mut self, name: &str, access: u32, deny: u32) -> (Vec<u8>, StateId) {
        let create = Create::Unchecked { truncate: false };
        let ops = Ops::default().put_root().open("owner", access, deny, create, name).get_handle();
        let mut reply = self.call(ops);
        let stateid = reply.ok(24).ok(18).stateid();
        reply.decode(|d| d.array::<24>().unwrap()); // change numbers, flags
        let words = reply.u32();
        reply.decode(|d| (0..words).for_each(|_| assert!(d.u32().is_ok())));
        assert_eq!(reply.u32(), 0, "no delegation");
        (reply.ok(10).opaque(), stateid)
    }
}
