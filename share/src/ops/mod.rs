//! The operations: what a message asks for is done to the tree and the state, and answered.
//!
//! A compound is a fold over a cursor: the current and the saved file. It ends at the first operation that
//! fails. One file here for each family of operations.

mod attributes;
mod callback;
mod copy;
mod file;
mod lock;
mod minor0;
mod names;
mod open;
mod session;
mod sparse;
mod xattr;

use crate::buffers::Buffers;
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::state::{Claims, ConnectionId, Limits, Principal, Record, Replies40, Running, State};
use crate::tree::{OpenFile, Tree};
use crate::wire::arguments::{ILLEGAL, Number, Operation};
use crate::wire::arguments42::Operation42;
use crate::wire::rpc::{self, Caller, PROCEDURE_NULL, Refusal};
use crate::wire::status::{OK, Status};
use crate::wire::types::{
    ClientId, FileHandle, IO_BYTES_MAX, OPERATIONS_MAX, StateId, TAG_BYTES_MAX,
};
use crate::wire::xdr::{Decoder, Encoder, Malformed, Mark};
use callback::WaysBack;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the result of an operation that changes something takes, at most: it isn't begun with less room.
const CHANGE_REPLY_BYTES: usize = 160;

/// Where no session says how much: the largest read, and what is around it.
const REPLY_BYTES_MAX: usize = IO_BYTES_MAX as usize + 4096;

/// All messages that move data, at one time: some 64 MiB.
const LARGE_BUFFERS: usize = 64;

/// Fewer than a connection has threads.
const WAITING_MAX: usize = 8;

/// A tree that is served, with the state of its clients.
pub struct Export {
    tree: Box<dyn Tree>,
    state: Mutex<State<Held>>,
    lease: Duration,
    buffers: Buffers,
    /// How long something new waits for the grace to end, before it is told to ask again.
    patience: Duration,
    grace_ended: Condvar,
    /// A request that was numbered by its owner is done.
    turn_ended: Condvar,
    replies40: Mutex<Replies40>,
    waiting: AtomicUsize,
    ways_back: WaysBack,
    policy: Policy,
    metrics: Metrics,
}

impl Export {
    /// `epoch` tells this life of the server from all others.
    pub fn new(tree: Box<dyn Tree>, now: Instant, epoch: u32, lease: Duration) -> Self {
        let state = State::new(now, epoch, lease, Limits::default(), tree.remembered());
        Self {
            tree,
            state: Mutex::new(state),
            lease,
            buffers: Buffers::new(LARGE_BUFFERS),
            patience: Duration::ZERO,
            grace_ended: Condvar::new(),
            turn_ended: Condvar::new(),
            replies40: Mutex::default(),
            waiting: AtomicUsize::new(0),
            ways_back: WaysBack::default(),
            policy: Policy::default(),
            metrics: Metrics::default(),
        }
    }

    /// Something new waits so long for the end of the grace: a client that is told to ask again does so
    /// later and later, and would stay away long after it.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Called every second or so.
    pub fn tick(&self, now: Instant) {
        self.with_state(|state| state.tick(now));
    }

    /// The export ends: no request is being done any more. After the next start only those are waited for
    /// who have something.
    pub fn stop(&self) {
        self.with_state(State::stop);
    }

    /// Appends the reply to the message `record`. An error: it isn't even a call, and nobody can be
    /// answered.
    pub fn answer(
        &self,
        now: Instant,
        record: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        self.answer_on(Origin::NOWHERE, now, record, reply)
    }

    /// The same, for a message of a connection that clients may be called back on.
    pub fn answer_on(
        &self,
        origin: Origin,
        now: Instant,
        record: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        let mut body = Decoder::new(record);
        let call = rpc::decode_call(&mut body)?;
        let mut reply = Encoder::new(reply);
        let start = reply.mark();
        match call {
            Err((xid, refusal)) => rpc::encode_refused(&mut reply, xid, refusal),
            Ok(call) => {
                rpc::encode_accepted(&mut reply, call.xid);
                if call.procedure == PROCEDURE_NULL {
                    return Ok(());
                }
                let mut cursor = Cursor {
                    export: self,
                    caller: &self.policy.caller(call.caller),
                    principal: call.caller.uid,
                    connection: origin.connection,
                    now,
                    start,
                    record,
                    peer: origin.peer,
                    minor_version: 0,
                    changes: false,
                    running: None,
                    current: None,
                    saved: None,
                };
                if cursor.compound(&mut body, &mut reply).is_err() {
                    reply.take_back(start);
                    rpc::encode_refused(&mut reply, call.xid, Refusal::GarbageArguments);
                }
            }
        }
        Ok(())
    }

    /// What has to be durable is, before anybody sees the state that needs it. That is rare: clients come
    /// and go.
    fn with_state<T>(&self, work: impl FnOnce(&mut State<Held>) -> T) -> T {
        let mut state = self.lock_state();
        let was_in_grace = state.in_grace();
        let done = work(&mut state);
        state.offer_freed();
        if was_in_grace && !state.in_grace() {
            self.grace_ended.notify_all();
        }
        let forgets = |record: &Record| matches!(record, Record::Forget(..));
        for alike in state.take_records().chunk_by(|a, b| forgets(a) && forgets(b)) {
            let owners = alike.iter().map(Record::owner);
            let written = match &alike[0] {
                Record::Remember(owner, claims) => self.tree.remember(owner, *claims),
                Record::Forget(..) => self.tree.forget(&owners.collect::<Vec<_>>()),
            };
            if let Err(error) = written {
                tracing::warn!(
                    ?error,
                    "records of clients can't be written: some may lose their locks with this process, or keep others from locks"
                );
                for record in alike {
                    if let Record::Forget(owner, claims) = record {
                        state.not_forgotten(owner.clone(), *claims);
                    }
                }
            }
        }
        let callbacks = state.take_callbacks();
        drop(state);
        callbacks.iter().for_each(|callback| self.ways_back.send(callback));
        done
    }

    fn lock_state(&self) -> MutexGuard<'_, State<Held>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the grace has ended, which may be worth a wait. Few wait at a time, so that those are served
    /// who have to claim first.
    fn grace_ends_soon(&self) -> bool {
        let waits = self.waiting.fetch_add(1, Ordering::SeqCst) < WAITING_MAX;
        let patience = if waits { self.patience } else { Duration::ZERO };
        let state = self.lock_state();
        let waited = self.grace_ended.wait_timeout_while(state, patience, |state| state.in_grace());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        !state.in_grace()
    }

    /// How many requests wait for the end of the grace.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
}

/// Where a message comes from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    pub peer: IpAddr,
    pub connection: Option<ConnectionId>,
}

impl Origin {
    /// No connection, so nobody can be called back.
    const NOWHERE: Self = Self { peer: IpAddr::V4(Ipv4Addr::UNSPECIFIED), connection: None };
}

/// What belongs to an open: the file, and the user whose right to it was asked for.
#[derive(Clone)]
struct Held {
    file: Arc<dyn OpenFile>,
    uid: u32,
}

/// A file, and the stateid that the operation gave which came to it.
#[derive(Clone, Copy)]
struct Place {
    file: FileHandle,
    stateid: StateId,
}

impl Place {
    fn new(file: FileHandle) -> Self {
        Self { file, stateid: StateId::INVALID }
    }
}

/// Where the status and the number of results of a compound stand.
#[derive(Clone, Copy)]
struct Marks {
    status_at: Mark,
    count_at: Mark,
}

/// An operation that failed; its result may say more than the status.
struct Failed {
    status: Status,
    keeps_result: bool,
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self { status, keeps_result: false }
    }
}

/// One compound that is being done.
struct Cursor<'a> {
    export: &'a Export,
    /// Whom the caller is taken for.
    caller: &'a Caller,
    principal: Principal,
    connection: Option<ConnectionId>,
    now: Instant,
    /// Where the reply begins.
    start: Mark,
    record: &'a [u8],
    peer: IpAddr,
    minor_version: u32,
    /// Something may have been changed by it.
    changes: bool,
    running: Option<Running>,
    current: Option<Place>,
    saved: Option<Place>,
}

impl Cursor<'_> {
    fn compound(&mut self, body: &mut Decoder, reply: &mut Encoder) -> Result<(), Malformed> {
        let tag = body.opaque(TAG_BYTES_MAX)?;
        self.minor_version = body.u32()?;
        let operations = body.u32()?;
        let status_at = reply.mark();
        reply.u32(OK);
        reply.opaque(tag);
        let count_at = reply.mark();
        reply.u32(0);
        if self.minor_version > 2 {
            reply.patch_u32(status_at, Status::MinorVersMismatch.number());
            return Ok(());
        }
        let marks = Marks { status_at, count_at };
        match self.minor_version {
            0 => self.compound40(body, operations, marks, reply),
            _ => self.operations(body, operations, marks, reply),
        }
    }

    fn operations(
        &mut self,
        body: &mut Decoder,
        operations: u32,
        Marks { status_at, count_at }: Marks,
        reply: &mut Encoder,
    ) -> Result<(), Malformed> {
        let mut begun = Instant::now();
        for done in 0..operations {
            let number = body.u32()?;
            let at = reply.mark();
            let status = match self.number(number, done, operations) {
                Ok(Number::Sequence) => match self.sequence(body, operations, reply)? {
                    session::Sequenced::Repeated(kept) => {
                        reply.take_back(status_at);
                        reply.fixed(&kept);
                        return Ok(());
                    }
                    session::Sequenced::Done(status) => status,
                },
                Ok(number) => self.operation(number, body, reply),
                Err(refused) => {
                    let known = refused != Status::OpIllegal;
                    reply.u32(if known { number } else { ILLEGAL });
                    reply.u32(refused.number());
                    refused.number()
                }
            };
            debug_assert!(reply.since(at) >= 8, "each operation has a result");
            reply.patch_u32(count_at, done + 1);
            reply.patch_u32(status_at, status);
            let ended = Instant::now();
            if let Some(operation) = Number::new(number) {
                self.export.metrics.count(operation, status, ended - begun);
            }
            begun = ended;
            if status != OK {
                break;
            }
        }
        if let Some(running) = &self.running {
            let kept = reply.written_since(status_at);
            self.export.with_state(|state| state.finish(running, kept));
        }
        Ok(())
    }

    /// Whether this operation may stand here.
    fn number(&self, number: u32, place: u32, operations: u32) -> Result<Number, Status> {
        let known = Number::new(number).ok_or(Status::OpIllegal)?;
        if self.minor_version == 0 {
            return match place {
                _ if known as u32 > Number::ReleaseLockOwner as u32 => Err(Status::OpIllegal),
                OPERATIONS_MAX.. => Err(Status::Resource),
                _ => Ok(known),
            };
        }
        if self.minor_version < 2 && known as u32 > Number::ReclaimComplete as u32 {
            return Err(Status::OpIllegal);
        }
        let needs_no_session = matches!(
            known,
            Number::ExchangeId
                | Number::CreateSession
                | Number::DestroySession
                | Number::DestroyClientId
                | Number::BindConnToSession
        );
        match known {
            Number::Sequence if place > 0 => Err(Status::SequencePos),
            Number::Sequence => Ok(known),
            _ if self.running.is_some() => Ok(known),
            _ if !needs_no_session => Err(Status::OpNotInSession),
            _ if operations > 1 => Err(Status::NotOnlyOp),
            _ => Ok(known),
        }
    }

    /// Does one operation, with its result. The status is that on the wire.
    fn operation(&mut self, number: Number, body: &mut Decoder, reply: &mut Encoder) -> u32 {
        reply.u32(number as u32);
        match self.minor_version {
            0 => self.operation40(number, body, reply),
            _ => self.do_operation(number, Operation::decode(number, body), reply),
        }
    }

    fn do_operation(
        &mut self,
        number: Number,
        decoded: Result<Operation, Malformed>,
        reply: &mut Encoder,
    ) -> u32 {
        let status_at = reply.mark();
        reply.u32(OK);
        let result_at = reply.mark();
        self.changes |= changes_something(number);
        let done = match decoded {
            Err(Malformed) => Err(Status::BadXdr.into()),
            Ok(_) if self.room(reply) < CHANGE_REPLY_BYTES && changes_something(number) => {
                Err(self.no_room().into())
            }
            Ok(operation) if self.export.policy.read_only && operation.changes_files() => {
                Err(Status::RoFs.into())
            }
            Ok(operation) => self.run(operation, reply),
        };
        let failed = match done {
            Ok(()) if self.room(reply) > 0 || self.has_no_session() => return OK,
            Ok(()) => self.no_room().into(),
            Err(failed) => failed,
        };
        if !failed.keeps_result {
            reply.take_back(result_at);
            if number == Number::SetAttr {
                reply.u32(0); // it always says what was set
            }
        }
        let status = match self.minor_version {
            0 => minor0::status(number, failed.status),
            _ => failed.status,
        };
        reply.patch_u32(status_at, status.number());
        status.number()
    }

    fn run(&mut self, operation: Operation, reply: &mut Encoder) -> Result<(), Failed> {
        use Operation as O;
        match operation {
            O::Access(wanted) => self.access(wanted, reply)?,
            O::Close { stateid, .. } => self.close(stateid, reply)?,
            O::Commit { offset, count } => self.commit(offset, count, reply)?,
            O::Create(create) => self.create(&create, reply)?,
            O::DelegReturn(_) => return Err(Status::BadStateId.into()), // nobody has a delegation
            O::GetAttr(wanted) => self.get_attributes(wanted, reply)?,
            O::GetFh => reply.opaque(self.current()?.file.as_bytes()),
            O::Link(name) => self.link(name, reply)?,
            O::Lock(lock) => self.lock(&lock, reply)?,
            O::LockT { client, range, exclusive, owner } => {
                self.test_lock(client, range, exclusive, owner, reply)?
            }
            O::LockU { stateid, range, .. } => self.unlock(stateid, range, reply)?,
            O::Lookup(name) => self.lookup(name)?,
            O::LookupP => self.parent()?,
            O::Verify { values, same } => self.verify(&values, same)?,
            O::Open(open) => self.open(&open, reply)?,
            O::OpenDowngrade { stateid, access, deny, .. } => {
                self.open_downgrade(stateid, access, deny, reply)?
            }
            O::PutFh(handle) => self.current = Some(Place::new(self.export.tree.check(handle)?)),
            O::PutRootFh => self.current = Some(Place::new(self.export.tree.root())),
            O::Read { stateid, offset, count } => self.read(stateid, offset, count, reply)?,
            O::ReadDir(arguments) => self.read_directory(&arguments, reply)?,
            O::ReadLink => self.read_link(reply)?,
            O::Remove(name) => self.remove(name, reply)?,
            O::Rename { from, to } => self.rename(from, to, reply)?,
            O::RestoreFh => self.current = Some(self.saved.ok_or(self.nothing_saved())?),
            O::SaveFh => self.saved = Some(self.current()?),
            O::SecInfo(name) => self.security(name, reply)?,
            O::SecInfoNoName { of_parent } => self.security_here(of_parent, reply)?,
            O::SetAttr { stateid, values } => return self.set_attributes(stateid, &values, reply),
            O::Write { stateid, offset, stability, data } => {
                self.write(stateid, offset, stability, data, reply)?
            }
            O::BackChannelCtl { program, auth } => {
                let session = self.running()?.session;
                self.export.with_state(|state| state.set_callback(session, program, auth));
            }
            O::BindConnToSession { session, direction } => {
                self.bind_connection(session, direction, reply)?
            }
            O::ExchangeId(arguments) => self.exchange_id(&arguments, reply)?,
            O::CreateSession(arguments) => self.create_session(&arguments, reply)?,
            O::DestroySession(session) => self.destroy_session(session)?,
            O::FreeStateId(stateid) => self.free_stateid(stateid)?,
            O::TestStateId(stateids, count) => self.test_stateids(stateids, count, reply)?,
            O::DestroyClientId(client) => self.destroy_client(client)?,
            O::ReclaimComplete { one_fs } => self.reclaim_complete(one_fs)?,
            O::Sequence(_) => unreachable!("it is told apart before"),
            O::V40(operation) => return self.run40(operation, reply),
            O::V42(operation) => self.run42(operation, reply)?,
            O::NotSupported => return Err(Status::NotSupp.into()),
        }
        Ok(())
    }

    fn run42(&mut self, operation: Operation42, reply: &mut Encoder) -> Result<(), Status> {
        use Operation42 as O;
        match operation {
            O::Allocate(region) => self.allocate(&region),
            O::Clone(copy) => self.clone_range(&copy),
            O::Copy { copy, from_other_server } => self.copy(&copy, from_other_server, reply),
            O::Deallocate(region) => self.deallocate(&region),
            O::IoAdvise(region) => self.advise(&region, reply),
            O::ReadPlus { stateid, offset, count } => self.read_plus(stateid, offset, count, reply),
            O::Seek { stateid, offset, what } => self.seek(stateid, offset, what, reply),
            O::GetXattr(name) => self.get_xattr(name, reply),
            O::SetXattr { when, name, value } => self.set_xattr(when, name, value, reply),
            O::ListXattrs { cookie, reply_bytes_max } => {
                self.list_xattrs(cookie, reply_bytes_max, reply)
            }
            O::RemoveXattr(name) => self.remove_xattr(name, reply),
        }
    }

    fn current(&self) -> Result<Place, Status> {
        self.current.ok_or(Status::NoFileHandle)
    }

    fn running(&self) -> Result<&Running, Status> {
        self.running.as_ref().ok_or(Status::OpNotInSession)
    }

    /// Whether the client may open or lock.
    fn may_acquire(
        &mut self,
        client: ClientId,
        wanted: Claims,
        claims: bool,
    ) -> Result<(), Status> {
        let ask = |now| {
            loop {
                let asked =
                    self.export.with_state(|state| state.may_acquire(now, client, wanted, claims));
                if asked != Err(Status::Delay) {
                    return asked;
                }
            }
        };
        match ask(self.now) {
            Err(Status::Grace) if self.export.grace_ends_soon() => ask(self.now),
            answer => answer,
        }
    }

    /// Gets it. Each time that somebody was in the way who is gone now, it is tried again.
    fn acquire<T>(
        &mut self,
        client: ClientId,
        wanted: Claims,
        claims: bool,
        get: impl Fn(&mut State<Held>) -> Result<T, Status>,
    ) -> Result<T, Status> {
        loop {
            self.may_acquire(client, wanted, claims)?;
            match self.export.with_state(&get) {
                Err(Status::Delay) => {}
                done => return done,
            }
        }
    }

    /// What a stateid stands for: perhaps for the one that an earlier operation gave.
    fn stateid(&self, given: StateId) -> Result<StateId, Status> {
        let is_current = given == StateId::CURRENT && self.minor_version > 0;
        let stateid = if is_current { self.current()?.stateid } else { given };
        if stateid == StateId::INVALID { Err(Status::BadStateId) } else { Ok(stateid) }
    }

    fn set_stateid(&mut self, stateid: StateId) {
        if let Some(place) = &mut self.current {
            place.stateid = stateid;
        }
    }

    /// Such operations of the later versions have short results.
    fn has_no_session(&self) -> bool {
        self.running.is_none() && self.minor_version > 0
    }

    fn nothing_saved(&self) -> Status {
        if self.minor_version == 0 { Status::RestoreFh } else { Status::NoFileHandle }
    }

    /// How much more the reply may have.
    fn room(&self, reply: &Encoder) -> usize {
        let without_session = if self.minor_version == 0 { REPLY_BYTES_MAX } else { 4096 };
        let most =
            self.running.as_ref().map_or(without_session, |running| match running.cache_this {
                true => running.reply_bytes_max.min(running.cached_reply_bytes_max),
                false => running.reply_bytes_max,
            });
        most.saturating_sub(reply.since(self.start))
    }

    fn no_room(&self) -> Status {
        match &self.running {
            Some(r) if r.cache_this && r.cached_reply_bytes_max < r.reply_bytes_max => {
                Status::RepTooBigToCache
            }
            _ => Status::RepTooBig,
        }
    }
}

fn changes_something(number: Number) -> bool {
    use Number as N;
    matches!(
        number,
        N::Allocate
            | N::Clone
            | N::Close
            | N::Copy
            | N::Create
            | N::Deallocate
            | N::Link
            | N::Lock
            | N::LockU
            | N::Open
            | N::OpenDowngrade
            | N::Remove
            | N::RemoveXattr
            | N::Rename
            | N::SetAttr
            | N::SetXattr
            | N::Write
    )
}
